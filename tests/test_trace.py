"""Evidence on disk: what comes back, and what is refused."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsiege.errors import InputError
from fedsiege.records import Layout
from fedsiege.trace import Header, Trace, absent, entries, grouping, path_of, recorded_in, write_round

K, M, G = 3, 4, 2
SIZES = (8, 6)
LAYOUT = Layout(
    names=("stem.0.weight", "stem.0.bias", "head.weight", "stem.1.running_mean"),
    shapes=((2, 3), (2,), (4, 2), (2,)),
    kinds=("trained", "trained", "trained", "buffer"),
    groups=("stem", "stem", "head", "stem"),
)


def tensors(seed: int) -> dict[str, torch.Tensor]:
    """A round in which client 1 is absent and client 2 answered from another model."""
    rng = torch.Generator().manual_seed(seed)
    made = {
        "loss": torch.rand(K, M, generator=rng),
        "global_loss": torch.rand(M, generator=rng),
        "dot": torch.randn(G, K, M, generator=rng),
        "update_norm2": 5 + torch.rand(G, K, generator=rng),
        "gradient_norm2": 5 + torch.rand(2, G, M, generator=rng),
        "start_of": torch.tensor([0, 0, 1]),
        "aggregate_dot": torch.randn(G, M, generator=rng),
        "aggregate_norm2": 5 + torch.rand(G, generator=rng),
        "head": torch.randn(K, 8, generator=rng),
        "gradient_sum": torch.randn(2, G, M, generator=rng),
        "update_sum": torch.randn(G, K, generator=rng),
        "support_norm2": 1 + torch.rand(G, K, M, generator=rng),
        "present": torch.tensor([1, 0, 1], dtype=torch.uint8),
    }
    for name in ("loss", "head"):
        made[name][1] = torch.nan
    for name in ("dot", "update_norm2", "update_sum", "support_norm2"):
        made[name][:, 1] = torch.nan
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "trace"
    header(place)
    for number in (20, 3, 100):
        write_round(place, number, tensors(number))
    return place


def header(place: Path) -> None:
    ids, labels = np.array(["a", "b", "c", "d"]), np.array([0, 1, 1, 0])
    Header(K, 2, ("stem", "head"), (8,), ids, labels, SIZES).write(place)


def test_rounds_are_in_order_and_the_header_comes_back(folder: Path) -> None:
    (folder / ".round_000007.safetensors.part").write_bytes(b"interrupted")
    (folder / "round_note.safetensors").write_bytes(b"somebody's own")
    trace = Trace(folder)
    assert trace.rounds == recorded_in(folder) == (3, 20, 100)
    assert (trace.clients, trace.classes, trace.groups, trace.head_sizes) == (3, 2, ("stem", "head"), (8,))
    assert trace.ids.tolist() == ["a", "b", "c", "d"]
    assert trace.labels.tolist() == [0, 1, 1, 0]
    assert trace.labels.dtype == np.int64


@pytest.mark.parametrize("t", [0, 1, 2])
@pytest.mark.parametrize("groups", [None, ["stem"], ["head"], ["head", "stem"]])
def test_signals_are_the_formulas_by_group(folder: Path, t: int, groups: list[str] | None) -> None:
    trace = Trace(folder)
    raw = {name: value.double().numpy() for name, value in tensors(trace.rounds[t]).items()}
    chosen = [("stem", "head").index(name) for name in groups or ("stem", "head")]
    dot, g2, u2 = (
        raw["dot"][chosen].sum(0),
        raw["gradient_norm2"][:, chosen].sum(1),
        raw["update_norm2"][chosen].sum(0),
    )
    found = trace.cosine(t, groups)
    for client, start in ((0, 0), (2, 1)):
        np.testing.assert_allclose(found[client], dot[client] / np.sqrt(g2[start] * u2[client]), rtol=1e-6)
        if groups is None:
            np.testing.assert_allclose(trace.diff(t)[client], 2 * dot[client] - g2[start], rtol=1e-6)
    assert np.isnan(found[1]).all()
    assert found.dtype == np.float32


@pytest.mark.parametrize("t", [0, 1, 2])
def test_adapted_cosines_are_the_formulas(folder: Path, t: int) -> None:
    trace = Trace(folder)
    raw = {name: value.double().numpy() for name, value in tensors(trace.rounds[t]).items()}
    nonzero, unshifted = trace.cosine_nonzero(t), trace.cosine_unshifted(t)
    for client, other, start in ((0, 2, 0), (2, 0, 1)):
        dot, u2 = raw["dot"][:, client], raw["update_norm2"][:, client].sum()
        size = np.sqrt(raw["support_norm2"][:, client].sum(0) * u2)
        np.testing.assert_allclose(nonzero[client], dot.sum(0) / size, rtol=1e-6)
        total, rest = dot.sum(0), u2
        for group, n in enumerate(SIZES):  # of the two that were there, each is brought to the other's mean
            c = (raw["update_sum"][group, client] - raw["update_sum"][group, other]) / n
            total = total + c * raw["gradient_sum"][start, group]
            rest += n * c * c - 2 * c * raw["update_sum"][group, client]
        norm2 = raw["gradient_norm2"][start].sum(0)
        np.testing.assert_allclose(unshifted[client], total / np.sqrt(norm2 * rest), rtol=1e-5)
    assert np.isnan(nonzero[1]).all()
    assert np.isnan(unshifted[1]).all()


def test_a_client_alone_keeps_its_mean(tmp_path: Path) -> None:
    header(tmp_path)
    alone = tensors(2)
    alone["present"] = torch.tensor([1, 0, 0], dtype=torch.uint8)
    write_round(tmp_path, 1, alone)
    np.testing.assert_array_equal(Trace(tmp_path).cosine_unshifted(0)[0], Trace(tmp_path).cosine(0)[0])


def test_an_update_that_is_all_shift_has_cosine_zero(tmp_path: Path) -> None:
    header(tmp_path)
    made = tensors(3)
    sizes = torch.tensor(SIZES)
    made["update_sum"][:, 0], made["update_norm2"][:, 0] = 0.3 * sizes, 0.09 * sizes
    made["update_sum"][:, 2] = 0
    write_round(tmp_path, 1, made)
    assert Trace(tmp_path).cosine_unshifted(0)[0].tolist() == [0.0] * M
    assert np.isfinite(Trace(tmp_path).cosine_unshifted(0)[2]).all()


def test_how_far_classes_were_raised_by_hand(tmp_path: Path) -> None:
    header(tmp_path)
    made = tensors(4)
    made["head"][0] = torch.tensor([1.0, 2, 3, 4, -1, 0, 1, -8])
    made["head"][2] = torch.tensor([5.0, 6, 7, 8, 5, 6, 7, 8])
    write_round(tmp_path, 1, made)
    # Measured from the mean over both classes, the first moves by 1, 1, 1 and 6.
    rise = Trace(tmp_path).rise(0)
    assert rise[0].tolist() == [1.0, 0.0]
    assert rise[2].tolist() == [0.5, 0.5], "one vector added to both classes moves neither"
    assert np.isnan(rise[1]).all()
    shifted = {**made, "head": made["head"] + 100}
    write_round(tmp_path, 2, shifted)
    np.testing.assert_array_equal(Trace(tmp_path).rise(1)[0], rise[0])


def test_a_trace_from_before_sums_were_recorded_can_still_be_read(tmp_path: Path) -> None:
    header(tmp_path)
    path = tmp_path / "trace.json"
    content = json.loads(path.read_text())
    for name in ("sizes", "sha256"):
        del content[name]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))
    older = {name: value for name, value in tensors(5).items() if not name.endswith("_sum")}
    write_round(tmp_path, 1, older)
    trace = Trace(tmp_path)
    assert np.isfinite(trace.cosine(0)[0]).all()
    with pytest.raises(
        InputError, match=r"no gradient_sum; it was recorded without, by an older version: train again"
    ):
        trace.cosine_unshifted(0)


def test_other_signals(folder: Path) -> None:
    trace, raw = Trace(folder), tensors(20)
    np.testing.assert_array_equal(trace.loss(1), raw["loss"])
    np.testing.assert_array_equal(trace.global_loss(1), raw["global_loss"])
    assert trace.present(1).tolist() == [True, False, True]
    own = raw["gradient_norm2"][0].double().sum(0)
    np.testing.assert_allclose(trace.norm2(1), own, rtol=1e-6)
    dot, size = raw["aggregate_dot"].double().sum(0), raw["aggregate_norm2"].double().sum()
    np.testing.assert_allclose(trace.aggregate_cosine(1), dot / (own * size).sqrt(), rtol=1e-6)
    np.testing.assert_allclose(trace.aggregate_diff(1), 2 * dot - own, rtol=1e-5)
    np.testing.assert_allclose(trace.head(1)[2], raw["head"][2].view(2, 4).sum(1), rtol=1e-6)


def test_a_client_that_did_not_move_has_cosine_zero(tmp_path: Path) -> None:
    header(tmp_path)
    still = tensors(1)
    still["dot"][:, 0], still["update_norm2"][:, 0] = 0, 0
    write_round(tmp_path, 1, still)
    assert Trace(tmp_path).cosine(0)[0].tolist() == [0.0] * M


def test_asking_for_a_block_that_is_not_there_names_the_nearest(folder: Path) -> None:
    with pytest.raises(InputError, match=r"no group 'haed' \(did you mean 'head'\?\); expected some of stem, head"):
        Trace(folder).cosine(0, ["haed"])


def test_asking_for_a_signal_that_was_not_recorded(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"round_000003.safetensors: the trace has no logits; it was recorded without"
    ):
        Trace(folder).logits(0)


def test_rounds_are_read_once_while_they_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    read = Trace._read

    def counted(self: Trace, t: int, name: str) -> Any:
        reads.append(name)
        return read(self, t, name)

    monkeypatch.setattr(Trace, "_read", counted)
    trace = Trace(folder)
    for _ in range(3):
        trace.loss(0)
        trace.present(0)
    assert reads == ["loss", "present"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 64
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    ("spoil", "message"), [(cut, "cannot be read"), (flip, "checksum"), (Path.unlink, "cannot be read")]
)
def test_a_round_that_is_torn_altered_or_gone(folder: Path, spoil: Any, message: str) -> None:
    trace = Trace(folder)
    spoil(path_of(folder, 20))
    assert trace.loss(0).shape == (K, M), "the other rounds can be read"
    with pytest.raises(InputError, match=rf"round_000020\.safetensors: .*{message}"):
        trace.loss(1)


def test_a_round_under_another_rounds_name(folder: Path) -> None:
    shutil.copy(path_of(folder, 20), path_of(folder, 100))
    with pytest.raises(InputError, match=r"round_000100.*holds .*20.*expected round 100 of schema 1"):
        Trace(folder).loss(2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1, 1, 1]}, "checksum does not match"),
        ({"clients": "three"}, "checksum does not match"),
        ({"groups": None}, "checksum does not match"),
        ({"sha256": "0"}, "checksum does not match"),
        ({"schema": 2}, "not a trace of schema 1"),
    ],
)
def test_an_altered_header(folder: Path, change: dict[str, Any], message: str) -> None:
    path = folder / "trace.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=rf"trace\.json: .*{message}"):
        Trace(folder)


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[1]", "not a trace"), ("\xff", "not JSON")])
def test_a_header_that_is_none(folder: Path, text: str, message: str) -> None:
    (folder / "trace.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        Trace(folder)


def test_no_trace_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(InputError, match=r"no trace\.json here; expected the folder of a trace"):
            Trace(place)


def test_groupings_of_trained_tensors() -> None:
    assert entries(LAYOUT, "total") == (16,)
    assert entries(LAYOUT, "blocks") == (8, 8)
    assert entries(LAYOUT, "tensors") == (6, 2, 8)
    assert grouping(LAYOUT, "total") == (("total",), (0, 0, 0))
    assert grouping(LAYOUT, "blocks") == (("stem", "head"), (0, 0, 1))
    assert grouping(LAYOUT, "tensors") == (("stem.0.weight", "stem.0.bias", "head.weight"), (0, 1, 2))


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_are_spread_to_their_clients(axis: int) -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    found = absent(values, [3, 0], 5, axis)
    expected = torch.full((5, 2) if axis == 0 else (2, 5), torch.nan)
    if axis == 0:
        expected[3], expected[0] = values[0].float(), values[1].float()
    else:
        expected[:, 3], expected[:, 0] = values[:, 0].float(), values[:, 1].float()
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=0)
