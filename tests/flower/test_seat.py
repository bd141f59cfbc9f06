"""What a client knows: with its own data alone it answers to the bit what it answers with everybody's."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")

from flwr.app import Context, RecordDict

from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment, load
from fedsiege.federation.local import answer_of
from fedsiege.files import write_tensors
from fedsiege.flower.seat import DECIDES, Seat, digest, number_of, seat_of, write_sites

pytestmark = pytest.mark.flower

CONFIG: dict[str, Any] = {
    "data": "digits",
    "clients": 4,
    "rounds": 3,
    "threads": 1,
    "device": "cpu",
    "participation": 0.75,
    "examples_per_client": 40,
    "validation": 30,
    "coalition": {"name": "cofedmid", "members": [0, 2]},
    "defences": [{"name": "mixup", "clients": [1]}, {"name": "perturb", "sigma": 0.01, "clients": [3]}],
    "attacks": [],
}


def experiment(**changes: Any) -> Experiment:
    return load({**CONFIG, **changes})


def seat(e: Experiment, **config: Any) -> Seat:
    text = json.dumps(e.model_dump(mode="json"))
    return seat_of(text, Context(1, 1, config, RecordDict(), {}))


def test_a_client_with_its_own_data_alone_answers_the_same(tmp_path: Path) -> None:
    e = experiment()
    nodes = write_sites(e, tmp_path)
    for client, node in enumerate(nodes):
        assert node["partition-id"] == str(client)
        assert ("coalition" in node) == (client in (0, 2))
        config = {**node, "partition-id": client}
        one, all_data = seat(e, **config), seat(e, **{"partition-id": client})
        assert one.client == client
        assert all_data.client is None
        assert [len(shard) > 0 for shard in one.federation.shards] == [number == client for number in range(4)]
        for number in (1, 2):
            start = all_data.federation.task.state.clone()
            mine = answer_of(one.federation, number, client, 0, start)
            theirs = answer_of(all_data.federation, number, client, 0, start)
            assert torch.equal(mine.update, theirs.update)
            assert mine.counters == theirs.counters
            assert mine.weight == theirs.weight


def test_what_members_share_is_for_their_eyes_alone_and_nothing_of_it_is_in_the_data(tmp_path: Path) -> None:
    nodes = write_sites(experiment(), tmp_path)
    path = Path(nodes[0]["coalition"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = json.loads(path.read_text())
    assert set(known) == {"secret", "volumes", "rounds", "classes"}
    assert str(known["secret"]).encode() not in Path(nodes[0]["data"]).read_bytes()


def test_compromised_clients_get_no_file(tmp_path: Path) -> None:
    nodes = write_sites(experiment(adversary="sign_flip", compromised={"clients": [1]}), tmp_path)
    assert ["data" in node for node in nodes] == [True, False, True, True]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "node-config: partition-id: got None; expected the client's number, from 0"),
        ({"partition-id": "0"}, "node-config: partition-id: got '0'"),
        ({"partition-id": 4}, "node-config: partition-id: got 4; expected clients from 0 to 3"),
        ({"partition-id": 1, "data": "DIR/none.safetensors"}, "none.safetensors is not there"),
        ({"partition-id": 1, "data": "DIR/client_0000.safetensors", "coalition": "DIR/coalition_0000.json"},
         "is client 0's data; expected that of client 1"),
        ({"partition-id": 0, "data": "DIR/client_0000.safetensors"}, "client 0 is a member of .* no word"),
        ({"partition-id": 0, "data": "DIR/client_0000.safetensors", "coalition": "DIR/client_0000.safetensors"},
         "node-config: coalition: .* cannot be read"),
        ({"partition-id": 1, "data": "DIR/other.safetensors"}, "not a client's data"),
        ({"partition-id": 1, "data": "DIR/coalition_0000.json"}, "cannot be read as a file of this run"),
    ],
)  # fmt: skip
def test_a_node_that_is_set_up_wrongly_says_what_it_wants(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    e = experiment()
    write_sites(e, tmp_path)
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"round": 1})
    config = {
        key: value.replace("DIR", str(tmp_path)) if isinstance(value, str) else value
        for key, value in config.items()
    }
    with pytest.raises(InputError, match=said):
        seat(e, **config)


def test_the_digest_is_of_all_that_both_sides_must_agree_on() -> None:
    base = digest(experiment())
    assert digest(experiment(out="elsewhere", threads=2, attacks=["loss_series"], data="breast_cancer")) == base
    changes: dict[str, Any] = {
        "rounds": 4,
        "seed": 1,
        "delay": 1,
        "participation": 1.0,
        "clients": 5,
        "validation": 31,
        "model": "cnn",
        "training": {"lr": 0.2},
        "defences": [],
        "coalition": None,
        "adversary": "sign_flip",
        "compromised": {"clients": [1]},
        "backdoor": {"trigger": "pixel", "target": 1},
        "pretrain_rounds": 1,
        "targets": [0],
        "candidates": {"ofl": 10},
        "partition": {"name": "dirichlet", "alpha": 1.0},
        "examples_per_client": 30,
        "aggregator": "median",
        "server_step": 0.5,
    }
    assert set(changes) == set(DECIDES)
    for field, value in changes.items():
        assert digest(experiment(**{field: value})) != base, field


def test_a_truth_value_is_no_number() -> None:
    with pytest.raises(InputError, match="partition-id"):
        number_of(Context(1, 1, {"partition-id": True}, RecordDict(), {}))
