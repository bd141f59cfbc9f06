"""What travels, and what cannot be read of what comes back."""

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedsiege.flower import SILENT, wire
from fedsiege.flower.signature import KEY, Signature, sign, unsign
from fedsiege.flower.wire import Letter

pytestmark = pytest.mark.flower


@pytest.fixture(autouse=True)
def _identified(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1, raising=False)


def message(records: RecordDict) -> Message:
    return Message(records, 1, "train")


TENSORS = {
    "float": torch.tensor([1.5, -0.0, torch.nan]),
    "a/name with spaces": torch.arange(6).reshape(2, 3),
    "none": torch.zeros(0),
    "scalar": torch.tensor(3.0, dtype=torch.float64),
    "truth": torch.tensor([True, False]),
    "strided": torch.arange(12, dtype=torch.float32).reshape(3, 4).T,
}


def test_a_letter_arrives_as_it_was_sent() -> None:
    sent = Letter({"round": 3, "text": "é", "list": [1, 2]}, TENSORS, {"kept": torch.ones(2)})
    came = wire.read(message(wire.content(sent)))
    assert came.about == sent.about
    assert came.memory is not None
    assert list(came.memory) == ["kept"]
    for name, tensor in TENSORS.items():
        assert came.arrays[name].dtype == tensor.dtype
        assert came.arrays[name].shape == tensor.shape
        assert came.arrays[name].numpy().tobytes() == tensor.numpy().tobytes()
    assert wire.read(message(wire.content(Letter({}, {})))).memory is None


@pytest.mark.parametrize("text", ["", "[]", "{", "null", "[" * 100_000, '{"a": 1}'])
def test_what_is_no_letter_is_said(text: str) -> None:
    with pytest.raises(wire.UnreadableError):
        wire.read(message(RecordDict({wire.ABOUT: ConfigRecord({"json": text})})))


@pytest.mark.parametrize("declared", ["[]", "[" * 100_000, "{", "7", '[{"name": "sparsify"}]'])
def test_a_signature_is_taken_off_whatever_it_holds(declared: str) -> None:
    reply = message(RecordDict({KEY: ConfigRecord({"client": 2, "declared": declared})}))
    found = unsign(reply)
    assert KEY not in reply.content
    assert found is None or found.client == 2


def test_a_node_signs_with_its_partition_alone() -> None:
    reply = message(RecordDict({}))
    sign(reply, Context(1, 1, {}, RecordDict(), {}))
    assert unsign(reply) is None
    sign(reply, Context(1, 1, {"partition-id": 4}, RecordDict(), {}), [{"name": "perturb"}])
    assert unsign(reply) == Signature(4, ({"name": "perturb"},))


def test_nothing_calls_anybody_once_the_room_is_imported() -> None:
    import os

    for name, value in SILENT.items():
        assert name.startswith("HF_") or os.environ[name] == value
