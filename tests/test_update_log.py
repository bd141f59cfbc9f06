"""A log of updates: what is written is read back, and what is not sound is refused in a line."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

import recorded_by_hand
from fedsiege.errors import InputError
from fedsiege.update_log import LOG, MOST_BYTES, Absence, LogWriter, UpdateLog

TENSORS = [("conv.weight", (2, 3)), ("conv.bias", (2,)), ("scale", ())]
D = 9


def vector(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=D).astype(np.float32)


def begun(folder: Path, **options: Any) -> LogWriter:
    return LogWriter(folder, **{"clients": 4, "tensors": TENSORS, "source": "a test", **options})


def written(folder: Path) -> Path:
    """A log of rounds 1 and 3: clients 2, 0 and 1, then 3 alone."""
    writer = begun(folder)
    updates = {client: vector(client) for client in (2, 0, 1)}
    writer.write_round(1, vector(10), vector(11), updates, {2: 7.0, 0: 5.0, 1: 6.0})
    writer.write_round(3, vector(12), vector(13), {3: vector(3)}, {3: 8.0})
    writer.close()
    return folder


def tensors_of(folder: Path, number: int = 1) -> dict[str, NDArray[Any]]:
    """The tensors of a round's file, by the library."""
    with safe_open(folder / f"round_{number:06d}.safetensors", framework="np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def with_tensors(folder: Path, **changes: NDArray[Any] | None) -> None:
    """Round 1 again, by the library, with other tensors; None leaves one out."""
    tensors = {**tensors_of(folder), **changes}
    save_file(
        {name: values for name, values in tensors.items() if values is not None},
        folder / "round_000001.safetensors",
    )


def with_log(folder: Path, **changes: Any) -> None:
    """log.json with other fields."""
    said = json.loads((folder / LOG).read_text())
    (folder / LOG).write_text(json.dumps({**said, **changes}))


# What is written is read back


def test_what_is_written_is_read_back_sorted_by_client(tmp_path: Path) -> None:
    log = UpdateLog.read(written(tmp_path / "log"))
    assert (log.clients, log.rounds, log.missing, log.size) == (4, (1, 3), (2,), D)
    assert [(one.name, one.shape) for one in log.tensors] == TENSORS
    assert (log.observable, log.source, log.final, log.absences) == ("updates", "a test", "observed", ())
    one = log.round(1)
    assert (one.number, one.clients, one.weights.tolist()) == (1, (0, 1, 2), [5.0, 6.0, 7.0])
    assert one.ages.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(one.start, vector(10))
    np.testing.assert_array_equal(one.end, vector(11))
    np.testing.assert_array_equal(one.updates, np.stack([vector(0), vector(1), vector(2)]))
    np.testing.assert_array_equal(np.stack(list(one.rows())), one.updates)
    assert log.round(3).clients == (3,)


def test_the_files_are_what_the_safetensors_library_reads(tmp_path: Path) -> None:
    found = tensors_of(written(tmp_path / "log"))
    assert {name: (values.dtype.name, values.shape) for name, values in found.items()} == {
        "clients": ("int64", (3,)),
        "weights": ("float64", (3,)),
        "ages": ("int64", (3,)),
        "start": ("float32", (D,)),
        "end": ("float32", (D,)),
        "updates": ("float32", (3, D)),
    }
    np.testing.assert_array_equal(found["updates"], np.stack([vector(0), vector(1), vector(2)]))


def test_rows_in_any_order_in_the_file_are_sorted_by_client(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    order = [2, 0, 1]
    found = tensors_of(folder)
    with_tensors(folder, **{name: found[name][order] for name in ("clients", "weights", "ages", "updates")})
    one = UpdateLog.read(folder).round(1)
    assert (one.clients, one.weights.tolist()) == ((0, 1, 2), [5.0, 6.0, 7.0])
    np.testing.assert_array_equal(one.updates, np.stack([vector(0), vector(1), vector(2)]))


def test_rows_are_mapped_and_a_reader_who_writes_to_them_writes_to_a_copy(tmp_path: Path) -> None:
    log = UpdateLog.read(written(tmp_path / "log"))
    updates = log.round(1).updates
    assert isinstance(updates, np.memmap)
    updates[0] = 0
    np.testing.assert_array_equal(log.round(1).updates[0], vector(0))


def test_a_log_is_valid_after_every_round(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log")
    writer.write_round(1, vector(0), vector(1), {0: vector(2)}, {0: 1.0})
    assert UpdateLog.read(tmp_path / "log").rounds == (1,)
    writer.absent(2, 1, "failed", "said\nno")
    writer.write_round(2, vector(0), vector(1), {0: vector(2)}, {0: 1.0})
    log = UpdateLog.read(tmp_path / "log")
    assert (log.rounds, log.absences) == ((1, 2), (Absence(2, 1, "failed", "said no"),))
    assert not list((tmp_path / "log").glob(".*"))


def test_notes_on_clients_are_read_back(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log", skipped=["bn.num_batches_tracked"])
    writer.name(2, "node 7 /\x1b[31m hospital B")
    writer.declare(1, [{"name": "sparsify", "share": 0.9}])
    writer.write_round(1, vector(0), vector(1), {0: vector(2)}, {0: 1.0})
    writer.close(final="assumed_mean")
    log = UpdateLog.read(tmp_path / "log")
    assert log.names == {2: "node 7 / [31m hospital B"}
    assert log.declared == {1: ({"name": "sparsify", "share": 0.9},)}
    assert (log.skipped, log.final) == (("bn.num_batches_tracked",), "assumed_mean")


def test_where_only_the_aggregate_was_observable_there_are_no_updates(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log", observable="aggregate")
    writer.write_round(1, vector(0), vector(1), {}, {2: 3.0, 1: 4.0})
    with pytest.raises(InputError, match="round 2: got 1 updates; this log is of the aggregate alone"):
        writer.write_round(2, vector(0), vector(1), {0: vector(2)}, {0: 1.0})
    log = UpdateLog.read(tmp_path / "log")
    one = log.round(1)
    assert (log.observable, one.clients, one.weights.tolist()) == ("aggregate", (1, 2), [4.0, 3.0])
    assert one.updates.shape == (0, D)
    assert list(one.rows()) == []


def test_a_file_of_the_aggregate_needs_no_clients(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log", observable="aggregate")
    writer.write_round(1, vector(0), vector(1), {}, {})
    save_file({"start": vector(0), "end": vector(1)}, tmp_path / "log" / "round_000001.safetensors")
    assert UpdateLog.read(tmp_path / "log").round(1).clients == ()


def test_ages_may_be_left_out_of_a_file(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    with_tensors(folder, ages=None)
    assert UpdateLog.read(folder).round(1).ages.tolist() == [0, 0, 0]


def test_a_round_in_which_nobody_answered_is_a_round(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log")
    writer.write_round(1, vector(0), vector(0), {}, {})
    one = UpdateLog.read(tmp_path / "log").round(1)
    assert (one.clients, one.updates.shape) == ((), (0, D))


def test_the_recipe_of_the_documentation_writes_a_log(tmp_path: Path) -> None:
    text = (Path(__file__).parent / "recorded_by_hand.py").read_text()
    recipe = text[text.index("import json") :]
    assert sum(bool(line.strip()) for line in recipe.splitlines()) <= 20
    assert "fedsiege." not in recipe
    page = Path(__file__).parents[1] / "docs" / "traces.md"
    assert f"```python\n{recipe}```" in page.read_text(encoding="utf-8")
    models = {
        seed: {"w": torch.from_numpy(vector(seed)), "n": torch.tensor(seed), "b": torch.tensor(1.5)}
        for seed in range(5)
    }
    recorded_by_hand.begin(tmp_path / "log", models[0], clients=7)
    recorded_by_hand.record(tmp_path / "log", 1, models[0], models[1], {6: (models[3], 10), 2: (models[4], 20)})
    log = UpdateLog.read(tmp_path / "log")
    one = log.round(1)
    assert [(t.name, t.shape) for t in log.tensors] == [("w", (D,)), ("b", ())]
    assert (log.clients, log.observable, one.clients, one.weights.tolist()) == (7, "updates", (2, 6), [20.0, 10.0])
    np.testing.assert_array_equal(one.start, [*vector(0), 1.5])
    np.testing.assert_array_equal(one.end, [*vector(1), 1.5])
    np.testing.assert_array_equal(one.updates, [[*(vector(s) - vector(0)), 0] for s in (4, 3)])


# What cannot be used is left out and said


def test_rows_that_are_not_finite_are_left_out_and_noted(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    updates = tensors_of(folder)["updates"]
    updates[1, -1] = np.inf
    with_tensors(folder, updates=updates)
    log = UpdateLog.read(folder)
    one = log.round(1)
    assert (one.clients, one.weights.tolist()) == ((0, 2), [5.0, 7.0])
    np.testing.assert_array_equal(one.updates, np.stack([vector(0), vector(2)]))
    assert log.absences == (Absence(1, 1, "nonfinite"),)


def test_the_writer_leaves_out_a_row_that_is_not_finite_in_single_precision(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log")
    huge = vector(1).astype(np.float64)
    huge[0] = 1e300
    writer.write_round(1, vector(10), vector(11), {0: vector(0), 1: huge}, {0: 1.0, 1: 1.0})  # type: ignore[dict-item]
    assert tensors_of(tmp_path / "log")["clients"].tolist() == [0]
    assert UpdateLog.read(tmp_path / "log").absences == (Absence(1, 1, "nonfinite"),)


def test_what_the_recorder_noted_of_a_row_goes_before_what_the_reader_finds(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    updates = tensors_of(folder)["updates"]
    updates[1, 0] = np.nan
    with_tensors(folder, updates=updates)
    with_log(folder, absences=[{"round": 1, "client": 1, "why": "nonfinite", "said": "NaN in conv"}])
    assert UpdateLog.read(folder).absences == (Absence(1, 1, "nonfinite", "NaN in conv"),)


@pytest.mark.parametrize("name", ["start", "end"])
def test_a_round_whose_models_are_not_finite_is_refused_alone(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "log")
    with_tensors(folder, **{name: np.full(D, np.nan, dtype=np.float32)})
    log = UpdateLog.read(folder)
    assert (log.rounds, log.refused, log.missing) == ((3,), {1: f"{name} is not finite"}, (1, 2))
    with pytest.raises(InputError, match=r"got round 1; the usable rounds of this log are \(3,\)"):
        log.round(1)


def late(folder: Path, age: int, rounds: tuple[int, ...]) -> UpdateLog:
    """A log in which client 1 is `age` rounds late in round 4."""
    writer = begun(folder)
    for number in rounds:
        ages = {1: age} if number == 4 else {}
        updates = {0: vector(0), 1: vector(1)}
        writer.write_round(number, vector(number), vector(number + 1), updates, {0: 1.0, 1: 2.0}, ages)
    return UpdateLog.read(folder)


@pytest.mark.parametrize("rounds", [(2, 4), (1, 4)])
def test_a_late_row_is_there_where_its_start_model_is_in_a_file(tmp_path: Path, rounds: tuple[int, ...]) -> None:
    one = late(tmp_path / "log", 2, rounds).round(4)
    assert (one.clients, one.ages.tolist()) == ((0, 1), [0, 2])


def test_a_late_row_without_its_start_model_is_left_out_and_noted(tmp_path: Path) -> None:
    log = late(tmp_path / "log", 2, (3, 4))
    one = log.round(4)
    assert (one.clients, one.weights.tolist()) == ((0,), [1.0])
    np.testing.assert_array_equal(one.updates, vector(0)[None])
    said = "it started from the model of round 2, which is not in the log"
    assert log.absences == (Absence(4, 1, "late", said),)


def test_a_round_s_first_model_is_in_its_file_or_in_that_of_the_round_before(tmp_path: Path) -> None:
    log = late(tmp_path / "log", 2, (1, 4))
    for number in (1, 2, 4, 5):
        np.testing.assert_array_equal(log.start_of(number), vector(number))
    for number in (3, 6):
        with pytest.raises(InputError, match="the usable rounds of this log are"):
            log.start_of(number)


def test_logs_are_told_apart_by_what_they_say_and_by_their_models(tmp_path: Path) -> None:
    log = UpdateLog.read(written(tmp_path / "one"))
    digest = log.digest(log.rounds)
    assert len(digest) == 32
    assert UpdateLog.read(written(tmp_path / "two")).digest(log.rounds) == digest
    assert log.digest((1,)) != digest
    changes: list[dict[str, Any]] = [
        {name: tensors_of(tmp_path / "one")[name] + 1} for name in ("start", "end", "updates", "weights")
    ]
    for place, change in enumerate([*changes, {"clients": np.array([0, 1, 3])}, {"ages": None}]):
        folder = written(tmp_path / f"changed{place}")
        with_tensors(folder)
        same = UpdateLog.read(folder).digest(log.rounds)
        with_tensors(folder, **change)
        assert UpdateLog.read(folder).digest(log.rounds) != same, change
    with_log(tmp_path / "two", source="another")
    assert UpdateLog.read(tmp_path / "two").digest(log.rounds) != digest


# The writer refuses what nobody could read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 0}, "got round 0; expected a number from 1, once"),
        ({"number": 1}, "got round 1; expected a number from 1, once"),
        ({"start": np.zeros(3, dtype=np.float32)}, r"round 2, start: got shape \(3,\); expected \(9,\)"),
        ({"updates": {0: np.zeros((9, 1))}}, r"round 2, client 0: got shape \(9, 1\); expected \(9,\)"),
        ({"weights": {1: 1.0}}, r"got updates of clients \[0\] and weights of \[1\]"),
        ({"weights": {0: -1.0}}, "weights: got -1.0 for client 0; expected a finite number from 0"),
        ({"weights": {0: float("nan")}}, "weights: got nan for client 0"),
        ({"ages": {0: 2}}, "ages: got 2 for client 0; expected 0 to 1"),
        ({"updates": {4: vector(0)}, "weights": {4: 1.0}}, "clients: got 4; expected 0 to 3"),
    ],
)
def test_the_writer_refuses_a_round_that_nobody_could_read(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    writer = begun(tmp_path / "log")
    good: dict[str, Any] = {
        "number": 2,
        "start": vector(0),
        "end": vector(1),
        "updates": {0: vector(2)},
        "weights": {0: 1.0},
    }
    writer.write_round(**{**good, "number": 1})
    with pytest.raises(InputError, match=message):
        writer.write_round(**{**good, **change})
    assert UpdateLog.read(tmp_path / "log").rounds == (1,)


def test_the_writer_does_not_write_over_a_log(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds a log already; expected a new folder"):
        begun(written(tmp_path / "log"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clients": 0}, "clients: got 0; .*greater than or equal to 1"),
        ({"clients": 10**9}, "clients: got 1000000000; .*less than or equal to 1000000"),
        ({"tensors": []}, "tensors: got .*at least 1 item"),
        ({"tensors": [("a", (2,)), ("a", (2,))]}, "tensors.1.name: got 'a' twice"),
        ({"observable": "gradients"}, "observable: got 'gradients'; .*'updates' or 'aggregate'"),
    ],
)
def test_the_writer_refuses_a_log_that_nobody_could_read(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        begun(tmp_path / "log", **options)
    assert not (tmp_path / "log").exists()


def test_notes_on_a_client_that_there_is_not_are_refused(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log")
    with pytest.raises(InputError, match="client: got 4; expected 0 to 3"):
        writer.name(4, "D")
    with pytest.raises(InputError, match="client: got -1; expected 0 to 3"):
        writer.declare(-1, [])
    with pytest.raises(InputError, match="client: got 4; expected 0 to 3"):
        writer.absent(1, 4, "failed")


def test_an_interrupted_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = begun(tmp_path / "log")

    def full(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        writer.write_round(1, vector(0), vector(1), {}, {})
    assert [path.name for path in (tmp_path / "log").iterdir()] == [LOG]


# What others wrote is refused in a line, and never believed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "else"}, "format: got 'else'; expected 'fedsiege-updates'"),
        ({"format": None}, "format: got None; expected"),
        ({"version": 2}, "version: got 2; this FedSiege reads 1: update it"),
        ({"version": "1"}, "version: got '1'"),
        ({"version": 0}, "version: got 0"),
        ({"version": True}, "version: got True"),
        ({"clients": 10**9}, "clients: got 1000000000; .*less than or equal to 1000000"),
        ({"clients": 0}, "clients: got 0"),
        ({"clients": -3}, "clients: got -3"),
        ({"clients": 4.0}, "clients: got 4.0"),
        ({"clients": "4"}, "clients: got '4'"),
        ({"clients": True}, "clients: got True"),
        ({"tensors": {}}, "tensors: got {}"),
        ({"tensors": []}, "tensors: got .*at least 1 item"),
        ({"tensors": [{"name": "a"}]}, "tensors.0.shape: missing"),
        ({"tensors": [{"name": "a", "shape": [-9]}]}, "tensors.0.shape.0: got -9"),
        ({"tensors": [{"name": "a", "shape": [9.0]}]}, "tensors.0.shape.0: got 9.0"),
        (
            {"tensors": [{"name": "a", "shape": [2**32, 2**32]}]},
            "tensors: have 18446744073709551616 entries in all",
        ),
        ({"tensors": [{"name": "a", "shape": [0]}]}, "tensors: have 0 entries in all"),
        ({"tensors": [{"name": 7, "shape": [9]}]}, "tensors.0.name: got 7"),
        ({"tensors": [{"name": "a", "shape": [4]}, {"name": "a", "shape": [5]}]}, "tensors.1.name: got 'a' twice"),
        ({"tensors": [{"name": "../../etc/passwd", "shape": [9]}]}, "tensors.0.name: .*looks like a path"),
        ({"tensors": [{"name": "/etc/passwd", "shape": [9]}]}, "tensors.0.name: .*looks like a path"),
        ({"tensors": [{"name": "a\\..\\b", "shape": [9]}]}, "tensors.0.name: .*looks like a path"),
        ({"tensors": [{"name": "a\x00", "shape": [9]}]}, "tensors.0.name: .*printable"),
        ({"tensors": [{"name": " ", "shape": [9]}]}, "tensors.0.name: .*printable"),
        ({"tensors": [{"name": "a" * 1001, "shape": [9]}]}, "tensors.0.name: .*1 to 1000"),
        ({"observable": "all"}, "observable: got 'all'; .*'updates' or 'aggregate'"),
        ({"final": "maybe"}, "final: got 'maybe'"),
        ({"names": {"4": "x"}}, "names: got client '4'; expected 0 to 3"),
        ({"names": {"01": "x"}}, "names: got client '01'"),
        ({"names": {"9" * 5000: "x"}}, "names: got client '999"),
        ({"names": {"1": 2}}, "names.1: got 2"),
        ({"declared": {"1": [{"share": 1}]}}, "declared.1: got .*; expected {name: ..., field: ...}"),
        ({"declared": {"7": []}}, "declared: got client '7'"),
        ({"declared": {"1": "sparsify"}}, "declared.1: got 'sparsify'"),
        ({"absences": [{"round": 1, "client": 4, "why": "late"}]}, "absences.0.client: got 4; expected 0 to 3"),
        ({"absences": [{"round": 0, "client": 1, "why": "late"}]}, "absences.0.round: got 0"),
        ({"absences": [{"round": 1, "client": 1, "why": "bored"}]}, "absences.0.why: got 'bored'"),
        ({"skipped": "bn"}, "skipped: got 'bn'"),
    ],
)
def test_a_log_that_says_what_cannot_be_is_refused_by_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = written(tmp_path / "log")
    with_log(folder, **change)
    with pytest.raises(InputError, match=f"^{folder / LOG}: {message}"):
        UpdateLog.read(folder)


def test_keys_that_are_not_known_are_somebodys_notes(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    with_log(folder, site="ours", tensors=[{"name": n, "shape": list(s), "unit": "m"} for n, s in TENSORS])
    assert UpdateLog.read(folder).rounds == (1, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", r"got \[1, 2\]; expected a mapping"),
        (b'{"clients": NaN}', "not JSON .*NaN is not a finite number"),
        (b'{"clients": 1e999}', "not JSON .*1e999 is not a finite number"),
        (b'{"clients": 1, "clients": 2}', "not JSON .*'clients' is there twice"),
        (b"[" * 100_000, "not JSON"),
        (b'{"clients": ' + b"9" * 10_000 + b"}", "not JSON"),
    ],
)
def test_a_log_that_is_not_json_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    folder = written(tmp_path / "log")
    (folder / LOG).write_bytes(text)
    with pytest.raises(InputError, match=f"{LOG}: {message}") as caught:
        UpdateLog.read(folder)
    assert len(str(caught.value)) < 600


def test_a_log_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    with (folder / LOG).open("ab") as file:
        file.truncate(MOST_BYTES[LOG] + 1)
    with pytest.raises(InputError, match=r"log\.json: has 67108865 bytes; expected at most 67108864"):
        UpdateLog.read(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": np.zeros(D)}, r"start: got 'F64' of shape \[9\]; expected F32 of shape \[9\]"),
        ({"start": np.zeros(D + 1, "f4")}, r"start: got 'F32' of shape \[10\]; expected F32 of shape \[9\]"),
        ({"end": None}, "end: missing; expected a tensor of type F32"),
        ({"updates": None}, "updates: missing"),
        ({"clients": None}, r"ages: got 'I64' of shape \[3\]|clients: missing"),
        ({"weights": None}, "weights: missing"),
        ({"clients": np.array([0, 1, 1])}, "clients: got 1 twice; expected each client once"),
        ({"clients": np.array([0, 1, 4])}, "clients: got 4; expected 0 to 3"),
        ({"clients": np.array([0, -1, 2])}, "clients: got -1; expected 0 to 3"),
        ({"clients": np.array([0, 1, 2], "i4")}, "clients: got 'I32'"),
        ({"clients": np.array([[0, 1, 2]])}, r"clients: got shape \[1, 3\]; expected \[n\]"),
        ({"clients": np.arange(5)}, "clients: got 5 rows; expected at most 4, one a client"),
        ({"clients": np.array([0, 1])}, r"weights: got 'F64' of shape \[3\]; expected F64 of shape \[2\]"),
        (
            {"weights": np.array([1.0, np.nan, 1.0])},
            "weights: got nan for client 1; expected a finite number from 0",
        ),
        ({"weights": np.array([1.0, -2.0, 1.0])}, "weights: got -2.0 for client 1"),
        ({"weights": np.ones(3, "f4")}, "weights: got 'F32'"),
        ({"ages": np.array([0, 1, 0])}, "ages: got 1 for client 1; expected 0 to 0"),
        ({"ages": np.array([0, -1, 0])}, "ages: got -1 for client 1"),
        ({"updates": np.zeros((3, D), "f2")}, "updates: got 'F16'"),
        ({"updates": np.zeros((3, D + 1), "f4")}, r"updates: got 'F32' of shape \[3, 10\]"),
        (
            {"updates": np.zeros((2, D), "f4")},
            r"updates: got 'F32' of shape \[2, 9\]; expected F32 of shape \[3, 9\]",
        ),
    ],
)
def test_a_round_that_is_not_what_the_log_says_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folder = written(tmp_path / "log")
    with_tensors(folder, **changes)
    with pytest.raises(InputError, match=rf"round_000001\.safetensors: ({message})"):
        UpdateLog.read(folder)


def test_a_file_without_content_is_refused_before_its_rows_are_counted_out(tmp_path: Path) -> None:
    # As long as it says, and a few kilobytes on disk: lists of its rows alone would take gigabytes.
    folder, rows, place = written(tmp_path / "log"), 10**9, 0
    header = dict[str, Any]()
    shapes = {"clients": ("I64", [rows], 8), "weights": ("F64", [rows], 8), "start": ("F32", [D], 4)}
    for name, (kind, shape, width) in {**shapes, "end": ("F32", [D], 4), "updates": ("F32", [rows, D], 4)}.items():
        end = place + width * int(np.prod(shape))
        header[name], place = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}, end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "round_000001.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + place)
    with pytest.raises(InputError, match="clients: got 1000000000 rows; expected at most 4, one a client"):
        UpdateLog.read(folder)


def test_updates_where_none_were_observable_are_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    with_log(folder, observable="aggregate")
    with pytest.raises(InputError, match="updates: are there; expected none"):
        UpdateLog.read(folder)


def crafted(folder: Path, header: Any, length: int | None = None, body: bytes = b"\0" * 400) -> None:
    """Round 1 with a header of one's own."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    claimed = len(text) if length is None else length
    (folder / "round_000001.safetensors").write_bytes(claimed.to_bytes(8, "little") + text + body)


def honest(rows: int = 1) -> dict[str, Any]:
    """A sound header of round 1."""
    sizes = {"clients": ("I64", [rows], 8), "weights": ("F64", [rows], 8), "start": ("F32", [D], 4)}
    sizes |= {"end": ("F32", [D], 4), "updates": ("F32", [rows, D], 4)}
    header, place = {}, 0
    for name, (kind, shape, width) in sizes.items():
        end = place + width * int(np.prod(shape))
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [place, end]}
        place = end
    return header


def test_a_header_of_ones_own_is_read_where_it_is_sound(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    text = json.dumps({"__metadata__": {"by": "hand"}, **honest()}).encode()
    crafted(folder, text + b" " * (-len(text) % 8))
    assert UpdateLog.read(folder).round(1).clients == (0,)


def changed(name: str, **fields: Any) -> dict[str, Any]:
    header = honest()
    return {**header, name: {**header[name], **fields}}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "not JSON"),
        (b"\x80\x04\x95", "not JSON"),
        (b'{"start": {}, "start": {}}', "'start' is there twice"),
        ([1], "expected a mapping"),
        ({**honest(), "start": 3}, r"start: got None of shape None; expected F32 of shape \[9\]"),
        ({**honest(), "clients": "many"}, "got"),
        (changed("start", data_offsets=[0, 10**12]), "start: got bytes 0 to 1000000000000"),
        (changed("start", data_offsets=[-4, 32]), r"start: got data_offsets \[-4, 32\]"),
        (changed("start", data_offsets=[4, 2**70]), "start: got bytes 4 to"),
        (changed("start", data_offsets=[2**70, 2**70 + 36]), "start: got bytes .*torn or was altered"),
        (changed("start", data_offsets=[52, 16]), "start: got bytes 52 to 16"),
        (changed("start", data_offsets=[17, 53]), "start: begins at byte .*expected a multiple of 4"),
        (changed("start", data_offsets="x"), "start: got data_offsets 'x'"),
        (changed("start", data_offsets=[0.0, 36.0]), "start: got data_offsets"),
        (changed("start", shape=[2**62, 2**62]), r"start: got 'F32' of shape \[4611"),
        (changed("clients", shape=[2**62]), "got"),
        (changed("clients", shape=[-1]), r"clients: got shape \[-1\]; expected \[n\]"),
        (changed("clients", shape=[]), r"clients: got 'I64' of shape \[\]"),
        (changed("clients", dtype="BOOL"), "clients: got 'BOOL'"),
        (changed("updates", data_offsets=[88, 124 + 400]), "updates: got bytes"),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any, message: str) -> None:
    folder = written(tmp_path / "log")
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    crafted(folder, text + b" " * (-len(text) % 8))
    with pytest.raises(InputError, match=rf"round_000001\.safetensors: .*{message}") as caught:
        UpdateLog.read(folder)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**6, 2**20 + 1])
def test_a_header_longer_than_its_file_is_not_read(tmp_path: Path, length: int) -> None:
    folder = written(tmp_path / "log")
    crafted(folder, honest(), length)
    with pytest.raises(InputError, match=f"header: got a length of {length} bytes"):
        UpdateLog.read(folder)


def test_a_header_that_is_too_long_is_not_read_though_it_is_there(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    crafted(folder, b" " * (MOST_BYTES["header"] + 8))
    with pytest.raises(InputError, match="header: got a length of 1048584 bytes"):
        UpdateLog.read(folder)


def test_a_torn_file_is_refused_wherever_it_is_torn(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    path = folder / "round_000001.safetensors"
    whole = path.read_bytes()
    for size in (0, 3, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"round_000001\.safetensors: "):
            UpdateLog.read(folder)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 600), byte=st.integers(0, 255))
@example(place=0, byte=255)
def test_a_byte_that_is_changed_anywhere_is_read_or_refused(tmp_path: Path, place: int, byte: int) -> None:
    folder = tmp_path / "log"
    if not folder.exists():
        written(folder)
        (tmp_path / "whole").write_bytes((folder / "round_000001.safetensors").read_bytes())
    content = bytearray((tmp_path / "whole").read_bytes())
    content[min(place, len(content) - 1)] = byte
    (folder / "round_000001.safetensors").write_bytes(content)
    with contextlib.suppress(InputError):
        assert UpdateLog.read(folder).rounds in ((1, 3), (3,))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    field=st.sampled_from(["clients", "tensors", "names", "declared", "absences", "version", "final", "source"]),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
)
def test_whatever_a_field_of_the_log_holds_it_is_read_or_refused(tmp_path: Path, field: str, value: Any) -> None:
    folder = tmp_path / "log"
    if not folder.exists():
        written(folder)
        (tmp_path / "said").write_bytes((folder / LOG).read_bytes())
    said = json.loads((tmp_path / "said").read_bytes())
    (folder / LOG).write_text(json.dumps({**said, field: value}))
    with contextlib.suppress(InputError):
        assert UpdateLog.read(folder).rounds == (1, 3)


# The folder


def test_a_folder_without_a_log_says_what_was_expected(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"no log\.json here; expected the folder of a log of updates"):
            UpdateLog.read(folder)


def test_a_log_without_rounds_is_refused(tmp_path: Path) -> None:
    begun(tmp_path / "log")
    with pytest.raises(InputError, match=r"no usable round here; expected round_000001\.safetensors"):
        UpdateLog.read(tmp_path / "log")


def test_a_log_of_refused_rounds_says_why_they_are(tmp_path: Path) -> None:
    writer = begun(tmp_path / "log")
    writer.write_round(1, vector(0) * np.nan, vector(1), {}, {})
    with pytest.raises(InputError, match=r"no usable round here \(round 1: start is not finite\)"):
        UpdateLog.read(tmp_path / "log")


@pytest.mark.parametrize(
    "name",
    [
        "round_1.safetensors",
        "round_0000001.safetensors",
        "round_000000.safetensors",
        "round_999999999999.safetensors",
        f"round_{'9' * 200}.safetensors",
        "round_１.safetensors",
        "other.safetensors",
    ],
)
def test_a_file_whose_name_says_no_round_is_refused(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "log")
    (folder / "round_000003.safetensors").rename(folder / name)
    with pytest.raises(InputError, match=r"got a file '.*; expected round_000001\.safetensors"):
        UpdateLog.read(folder)


def test_other_files_and_those_half_written_are_left_alone(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    (folder / "notes.txt").write_text("ours")
    (folder / ".round_000004.safetensors.part").write_text("half")
    (folder / ".hidden.safetensors").write_text("half")
    assert UpdateLog.read(folder).rounds == (1, 3)


@pytest.mark.parametrize("name", [LOG, "round_000001.safetensors"])
def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "log")
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"{re.escape(name)}: leads out of the log's folder"):
        UpdateLog.read(folder)


def test_a_link_within_the_folder_is_followed(tmp_path: Path) -> None:
    folder = written(tmp_path / "log")
    (folder / "round_000002.safetensors").symlink_to("round_000003.safetensors")
    assert UpdateLog.read(folder).rounds == (1, 2, 3)


def test_a_folder_that_is_a_link_itself_is_read(tmp_path: Path) -> None:
    written(tmp_path / "log")
    (tmp_path / "link").symlink_to("log")
    assert UpdateLog.read(tmp_path / "link").rounds == (1, 3)


def as_pipe(path: Path) -> None:
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.mkdir()


def as_loop(path: Path) -> None:
    path.symlink_to(path.name)


def as_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


@pytest.mark.parametrize("make", [as_pipe, as_folder, as_loop, as_dangling])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = written(tmp_path / "log")
    (folder / "round_000001.safetensors").unlink()
    make(folder / "round_000001.safetensors")
    with pytest.raises(InputError, match="round_000001"):
        UpdateLog.read(folder)


def test_a_log_is_read_without_loading_its_rows(tmp_path: Path) -> None:
    """64 MB of rows, in a process that may not take 64 MB more than it had."""
    d, rows = 2**20, 16
    writer = LogWriter(tmp_path / "log", rows, [("w", (d,))])
    row = np.ones(d, dtype=np.float32)
    writer.write_round(1, row, row, dict.fromkeys(range(rows), row), dict.fromkeys(range(rows), 1.0))
    script = (
        "import resource, sys\n"
        "from fedsiege.update_log import UpdateLog\n"
        "from pathlib import Path\n"
        "private = lambda: next(int(l.split()[1]) for l in Path('/proc/self/status').read_text().splitlines()"
        " if l.startswith('RssAnon'))\n"
        "before = private()\n"
        "log = UpdateLog.read(sys.argv[1])\n"
        "total = sum(float(row[-1]) for row in log.round(1).rows())\n"
        "print(total, private() - before)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "log")], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(found[0]) == rows
    assert int(found[1]) * 1024 < 2**24
