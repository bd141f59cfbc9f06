import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr", reason="the tap needs the flower extra: pip install fedsiege[flower]")

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.app.error import Error
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from tapped import Sites, adds, arrays, asks, context, fails, replies

from fedsiege.errors import InputError
from fedsiege.flower import received as receiving
from fedsiege.flower.received import MASKED
from fedsiege.flower.server_tap import TappedGrid, TappedServerApp, wishes_of
from fedsiege.flower.settings import setting
from fedsiege.flower.signature import KEY, sign
from fedsiege.update_log import LogWriter, UpdateLog

pytestmark = pytest.mark.flower

Main = Callable[[Grid], Any]


@pytest.fixture(autouse=True)
def _in_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages ask who the process is."""
    for name in ("task_id", "run_id", "node_id"):
        monkeypatch.setattr(f"flwr.supercore.task_identity.TaskIdentity._{name}", 1)


def tapped(grid: Grid, folder: Path, main: Main, **settings: Any) -> UpdateLog:
    """The log of an app with this main function."""
    run(grid, folder, main, **settings)
    return UpdateLog.read(folder)


def run(grid: Grid, folder: Path, main: Main, **settings: Any) -> None:
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        main(grid)

    TappedServerApp(app)(grid, context(fedsiege_trace=str(folder), **settings))


def signed(site: Callable[[Message], Message], partition: int, declared: Sequence[Mapping[str, Any]] = ()) -> Any:
    """A site whose replies carry its signature."""
    seat = Context(run_id=7, node_id=0, node_config={"partition-id": partition}, state=RecordDict(), run_config={})

    def signing(message: Message) -> Message:
        reply = site(message)
        sign(reply, seat, declared)
        return reply

    return signing


def rows(log: UpdateLog, number: int) -> dict[int, list[float]]:
    one = log.round(number)
    return {client: row.tolist() for client, row in zip(one.clients, one.updates, strict=True)}


def of_bytes(data: bytes) -> ArrayRecord:
    return ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", data)})


def archive() -> bytes:
    """What NumPy's reader takes for several arrays."""
    file = io.BytesIO()
    np.savez(file, w=np.zeros(2, dtype=np.float32))
    return file.getvalue()


def headed(shape: tuple[int, ...], size: int = 0) -> bytes:
    """A file of NumPy's that says it is of this shape, and so many bytes after it."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\0" * size


def weights(log: UpdateLog, number: int) -> dict[int, float]:
    one = log.round(number)
    return dict(zip(one.clients, one.weights.tolist(), strict=True))


def absences(log: UpdateLog) -> list[tuple[int, int, str]]:
    return [(one.round, one.client, one.why) for one in log.absences]


def test_updates_are_what_came_back_less_what_was_sent(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[1, 2], b=[3]), [10, 20], 1))
        grid.send_and_receive(asks(arrays(w=[5, 6], b=[7]), [10, 20], 2))
        grid.send_and_receive(asks(arrays(w=[8, 8], b=[8]), [10, 20], kind="evaluate"))

    log = tapped(Sites({10: adds(0.5, 30), 20: adds(-1, 10)}), tmp_path / "log", main)
    assert log.rounds == (1, 2)
    assert [(tensor.name, tensor.shape) for tensor in log.tensors] == [("w", (2,)), ("b", (1,))]
    assert rows(log, 1) == {0: [0.5, 0.5, 0.5], 1: [-1, -1, -1]}
    assert weights(log, 1) == {0: 30, 1: 10}
    assert log.round(1).start.tolist() == [1, 2, 3]
    assert log.round(1).end.tolist() == log.round(2).start.tolist() == [5, 6, 7]
    assert log.round(2).end.tolist() == [8, 8, 8]
    assert log.final == "observed"
    assert log.observable == "updates"
    assert log.names == {0: "node 10", 1: "node 20"}
    assert "server tap" in log.source


def test_differences_are_taken_in_single_precision_to_the_bit(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    start, local = (generator.standard_normal(1000).astype(np.float32) for _ in range(2))

    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=start), [10], 1))

    log = tapped(Sites({10: lambda message: replies(message, arrays(w=local))}), tmp_path / "log", main)
    np.testing.assert_array_equal(log.round(1).updates[0], local - start)


def test_the_last_round_without_an_evaluation_ends_in_the_weighted_mean(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[1]), [10, 20], 1))

    log = tapped(Sites({10: adds(4, 3), 20: adds(-4, 1)}), tmp_path / "log", main)
    assert log.final == "assumed_mean"
    assert log.round(1).end.tolist() == [1 + (3 * 4 - 1 * 4) / 4]


def test_a_round_that_nobody_weighs_in_ends_where_it_began(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[1]), [10], 1))

    log = tapped(Sites({10: adds(4, 0)}), tmp_path / "log", main)
    assert log.round(1).end.tolist() == [1]


def test_models_evaluated_before_anybody_answered_end_no_round(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[1]), [10], kind="evaluate"))
        ids = grid.push_messages(asks(arrays(w=[1]), [10], 1))
        grid.send_and_receive(asks(arrays(w=[9]), [10], kind="evaluate"))
        grid.pull_messages(ids)

    log = tapped(Sites({10: adds(4)}), tmp_path / "log", main)
    assert log.final == "assumed_mean"
    assert log.round(1).end.tolist() == [5]


def test_pushing_and_pulling_is_recorded_like_sending_and_receiving(tmp_path: Path) -> None:
    def pushes(grid: Grid) -> None:
        for model in ([0], [7]):
            ids = [name for ask in asks(arrays(w=model), [10, 20]) for name in grid.push_messages(iter([ask]))]
            assert len([reply for name in ids for reply in grid.pull_messages([name])]) == 2

    def sends(grid: Grid) -> None:
        for model in ([0], [7]):
            assert len(list(grid.send_and_receive(iter(asks(arrays(w=model), [10, 20]))))) == 2

    one, other = (
        tapped(Sites({10: adds(1), 20: adds(2)}), tmp_path / name, main)
        for name, main in (("pushed", pushes), ("sent", sends))
    )
    assert one.rounds == other.rounds == (1, 2)
    for number in one.rounds:
        assert rows(one, number) == rows(other, number) == {0: [1], 1: [2]}
        assert one.round(number).end.tolist() == other.round(number).end.tolist()


def test_signatures_number_the_clients_and_never_reach_the_app(tmp_path: Path) -> None:
    mod = {"name": "sparsify", "share": 0.9}

    def main(grid: Grid) -> None:
        for kind in ("train", "evaluate"):
            for reply in grid.send_and_receive(asks(arrays(w=[0]), [10, 20], 1, kind)):
                assert KEY not in reply.content
        for reply in grid.pull_messages(grid.push_messages(asks(arrays(w=[0]), [10, 20], 2))):
            assert KEY not in reply.content

    log = tapped(Sites({10: signed(adds(1), 2, [mod]), 20: signed(adds(2), 0)}), tmp_path / "log", main)
    assert rows(log, 1) == rows(log, 2) == {2: [1], 0: [2]}
    assert log.clients == 3
    assert log.names == {0: "node 20", 2: "node 10"}
    assert log.declared == {2: (mod,)}


def test_nodes_that_sign_nothing_are_numbered_by_their_ids(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [30, 10], 1))
        grid.send_and_receive(asks(arrays(w=[1]), [20, 10], 2))

    log = tapped(Sites({30: adds(3), 10: adds(1), 20: adds(2)}), tmp_path / "log", main)
    assert log.clients == 3
    assert rows(log, 1) == {0: [1], 2: [3]}
    assert rows(log, 2) == {0: [1], 1: [2]}


def test_of_two_nodes_with_one_signature_the_first_is_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10, 20, 30], 1))

    sites = Sites({10: signed(adds(1), 1), 20: signed(adds(2), 1), 30: signed(adds(3), -5)})
    log = tapped(sites, tmp_path / "log", main)
    assert rows(log, 1) == {1: [1], 0: [2], 2: [3]}
    assert "node 20 signs as client 1, which is node 10" in caplog.text
    assert "node 30 signs as client -5" in caplog.text


def test_a_site_that_returns_under_another_node_id_stays_the_same_client(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10, 20], 1))
        grid.send_and_receive(asks(arrays(w=[1]), [30, 20], 2))

    sites = Sites({10: signed(adds(1), 0), 20: signed(adds(2), 1), 30: signed(adds(3), 0)})
    log = tapped(sites, tmp_path / "log", main)
    assert rows(log, 2) == {0: [3], 1: [2]}
    assert log.names[0] == "node 10, node 30"


def test_what_a_hostile_site_declares_cannot_spoil_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = ['{"name": "x"}', "[1]", '[{"name": 3}]', '[{"name": "x", "share": NaN}]', "[" * 100_000]
    said.append(json.dumps([{"name": "x" * 20_000}]))
    # Deep enough for JSON's reader, too deep for its writer; and just too deep to be a component.
    said += ['[{"name": "x", "a": ' + "[" * deep + "]" * deep + "}]" for deep in (980, 7)]

    def site(number: int) -> Any:
        def answer(message: Message) -> Message:
            reply = adds(1)(message)
            reply.content[KEY] = ConfigRecord({"client": number, "declared": said[number]})
            return reply

        return answer

    nodes = range(len(said))

    def main(grid: Grid) -> None:
        for reply in grid.send_and_receive(asks(arrays(w=[0]), nodes, 1)):
            assert KEY not in reply.content

    log = tapped(Sites({node: site(node) for node in nodes}), tmp_path / "log", main)
    assert log.declared == {}
    assert len(rows(log, 1)) == len(said)
    assert "no list of mods" in caplog.text


@pytest.mark.parametrize(
    ("site", "why", "said"),
    [
        (fails, "failed", "error 201: ValueError: out of cheese"),
        (lambda message: Message(RecordDict(), reply_to=message), "empty", "none"),
        (lambda message: replies(message, arrays(v=[1, 2])), "misshapen", "no array w"),
        (lambda message: replies(message, arrays(w=[1, 2, 3])), "misshapen", "(3,); expected floats of shape (2,)"),
        (lambda message: replies(message, arrays(w=np.ones((1, 2)))), "misshapen", "shape (1, 2)"),
        (lambda message: replies(message, arrays(w=[1, 2], v=[1])), "misshapen", "that the model has not"),
        (lambda message: replies(message, arrays(w=np.array([1, 2]))), "misshapen", "int64"),
        (lambda message: replies(message, arrays(w=[1.0, np.nan])), "nonfinite", "1 entries"),
        (lambda message: replies(message, arrays(w=np.array([1e300, 0]))), "nonfinite", "1 entries"),
        (
            lambda message: replies(
                message, ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"\x93NUMPY and no more")})
            ),
            "misshapen",
            "w: cannot be read",
        ),
        (lambda message: replies(message, of_bytes(archive())), "misshapen", "w: cannot be read"),
        # NumPy's reader makes room for as much as the header says.
        (
            lambda message: replies(message, of_bytes(headed((2**50,)))),
            "misshapen",
            "0 bytes for an array of float32 and shape (1125899906842624,)",
        ),
        (lambda message: replies(message, of_bytes(headed((-2, -1), 8))), "misshapen", "shape (-2, -1)"),
        (lambda message: replies(message, of_bytes(headed((2,), 12))), "misshapen", "12 bytes for an array"),
        (
            lambda message: replies(message, of_bytes(b"\x1b[2J\n" + headed((2,), 8))),
            "misshapen",
            "the magic string is not correct",
        ),
        (
            lambda message: Message(Error(code=1, reason="\x1b[2J\u202e gone"), reply_to=message),
            "failed",
            "error 1: [2J gone",
        ),
    ],
)
def test_an_answer_that_is_no_update_is_noted_with_its_reason(
    site: Any, why: str, said: str, tmp_path: Path
) -> None:
    def main(grid: Grid) -> None:
        for number in (1, 2):
            grid.send_and_receive(asks(arrays(w=[number, 0]), [10, 20], number))

    log = tapped(Sites({10: adds(1), 20: site}), tmp_path / "log", main)
    assert rows(log, 1) == rows(log, 2) == {0: [1, 1]}
    assert absences(log) == [(1, 1, why), (2, 1, why)]
    assert all(said in one.said for one in log.absences)


def test_a_difference_beyond_single_precision_is_not_finite(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[3e38]), [10, 20], 1))

    sites = Sites({10: adds(0), 20: lambda message: replies(message, arrays(w=[-3e38]))})
    assert absences(tapped(sites, tmp_path / "log", main)) == [(1, 1, "nonfinite")]


def test_a_node_that_does_not_answer_is_missing(tmp_path: Path) -> None:
    sites = Sites({10: adds(1), 20: adds(2)})
    sites.silent = {20}

    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10, 20], 1))
        sites.silent = set()
        grid.send_and_receive(asks(arrays(w=[1]), [10, 20], 2))

    log = tapped(sites, tmp_path / "log", main)
    assert absences(log) == [(1, 1, "missing")]
    assert rows(log, 2) == {0: [1], 1: [2]}


def test_the_silent_get_the_numbers_that_the_signed_leave(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10, 20, 30], 1))

    log = tapped(Sites({10: fails, 20: signed(adds(2), 0), 30: signed(adds(3), 2)}), tmp_path / "log", main)
    assert absences(log) == [(1, 1, "failed")]
    assert log.names[1] == "node 10"
    assert rows(log, 1) == {0: [2], 2: [3]}


def test_integers_are_skipped_even_where_averaging_made_them_floats(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0], count=np.array(3)), [10], 1))
        grid.send_and_receive(asks(arrays(w=[1], count=np.array(3.5)), [10], 2))

    log = tapped(Sites({10: adds(2)}), tmp_path / "log", main)
    assert log.skipped == ("count",)
    assert [tensor.name for tensor in log.tensors] == ["w"]
    assert rows(log, 2) == {0: [2]}


@pytest.mark.parametrize(
    ("metrics", "option", "expected"),
    [
        ({"num-examples": 12}, {}, 12),
        ({"num_examples": 5}, {}, 5),
        ({"num-examples": 12, "size": 3.5}, {"fedsiege_weight_key": "size"}, 3.5),
        ({"loss": 2.0}, {}, 1),
        ({"num-examples": -2}, {}, 0),
        ({"num-examples": float("nan")}, {}, 0),
        ({"num-examples": [3]}, {}, 0),
    ],
)
def test_weights_come_from_the_metrics(
    metrics: dict[str, Any], option: dict[str, Any], expected: float, tmp_path: Path
) -> None:
    def site(message: Message) -> Message:
        return Message(RecordDict({"a": arrays(w=[1]), "m": MetricRecord(metrics)}), reply_to=message)

    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10], 1))

    assert weights(tapped(Sites({10: site}), tmp_path / "log", main, **option), 1) == {0: expected}


def test_the_reply_s_model_is_the_record_of_the_same_name(tmp_path: Path) -> None:
    def site(message: Message) -> Message:
        model = arrays(w=[1]) if message.metadata.dst_node_id == 10 else arrays(w=[2])
        key = "arrays" if message.metadata.dst_node_id == 10 else "model"
        return Message(RecordDict({key: model, "control": arrays(w=[9])}), reply_to=message)

    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10, 20], 1))

    log = tapped(Sites({10: site, 20: site}), tmp_path / "log", main)
    assert rows(log, 1) == {0: [1]}
    assert absences(log) == [(1, 1, "misshapen")]


def test_which_of_several_records_is_the_model_can_be_said_and_must_be(tmp_path: Path) -> None:
    sites = Sites({10: lambda message: replies(message, arrays(w=[2]), key="model")})

    def main(grid: Grid) -> None:
        several = {"model": arrays(w=[0]), "control": arrays(w=[9])}
        grid.send_and_receive(asks(several, [10], 1))

    log = tapped(sites, tmp_path / "said", main, fedsiege_arrays_key="model")
    assert rows(log, 1) == {0: [2]}
    sites.sent.clear()
    with pytest.raises(InputError, match=r"fedsiege-arrays-key.*\['control', 'model'\]"):
        run(sites, tmp_path / "unsaid", main)
    assert not sites.sent


@pytest.mark.parametrize("model", [arrays(w=np.array([1, 2])), arrays()])
def test_a_model_without_floats_is_refused_before_it_is_sent(model: ArrayRecord, tmp_path: Path) -> None:
    sites = Sites({10: adds(1)})
    with pytest.raises(InputError, match="expected tensors of floats"):
        run(sites, tmp_path / "log", lambda grid: grid.send_and_receive(asks(model, [10], 1)))
    assert not sites.sent


@pytest.mark.parametrize(
    ("asked", "numbers"),
    [
        ([([0], 1, None), ([0], 2, None)], (1, 2)),  # a round that changed nothing
        ([([0], None, "1"), ([0], None, "2")], (1, 2)),  # the group's id is the round
        ([([0], None, None), ([1], None, None)], (1, 2)),  # counted by models
        ([([0], None, None), ([0], None, None)], (1, 2)),  # the same nodes again
        ([([0], 0, None), ([1], 1, None)], (1, 2)),  # from 0
        ([([0], 5, None), ([1], 9, None)], (5, 9)),  # resumed, every fourth
        ([([0], 1, None), ([1], 2, None), ([2], 1, None), ([3], 2, None)], (1, 2, 3, 4)),  # two phases
        ([([0], 1, None), ([1], 1, None)], (1, 2)),  # two phases of one round
        ([([0], 1, None), ([0], 1, None)], (1,)),  # two steps of one round
    ],
)
def test_rounds_are_numbered_as_the_app_says_or_counted(
    asked: Any, numbers: tuple[int, ...], tmp_path: Path
) -> None:
    def main(grid: Grid) -> None:
        for model, number, group in asked:
            grid.send_and_receive(asks(arrays(w=model), [10, 20], number, group=group))

    log = tapped(Sites({10: adds(1), 20: adds(2)}), tmp_path / "log", main)
    assert log.rounds == numbers
    for number in numbers:
        assert rows(log, number) == {0: [1], 1: [2]}
    assert log.round(numbers[-1]).start.tolist() == [float(value) for value in asked[-1][0]]
    assert not log.absences


def test_models_of_one_s_own_are_one_round_and_each_update_is_against_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive([*asks(arrays(w=[0]), [10]), *asks(arrays(w=[5]), [20])])

    log = tapped(Sites({10: adds(1), 20: adds(2)}), tmp_path / "log", main)
    assert log.rounds == (1,)
    assert rows(log, 1) == {0: [1], 1: [2]}
    assert log.round(1).start.tolist() == [0]
    assert "different models" in caplog.text


def test_a_late_answer_is_kept_with_its_age_against_the_model_it_started_from(tmp_path: Path) -> None:
    sites = Sites({10: adds(1), 20: adds(2)})

    def main(grid: Grid) -> None:
        sites.silent = {20}
        ids = list(grid.push_messages(asks(arrays(w=[0]), [10, 20], 1)))
        grid.pull_messages(ids)
        grid.send_and_receive(asks(arrays(w=[100]), [10], 2))
        late = list(grid.push_messages(asks(arrays(w=[200]), [10], 3)))
        sites.silent = set()
        grid.pull_messages([*ids, *late])

    log = tapped(sites, tmp_path / "log", main)
    assert absences(log) == [(1, 1, "missing")]
    assert rows(log, 2) == {0: [1]}
    assert rows(log, 3) == {0: [1], 1: [2]}
    assert dict(zip(log.round(3).clients, log.round(3).ages.tolist(), strict=True)) == {0: 0, 1: 2}
    assert log.round(3).end.tolist() == [201], "a late row is no part of the assumed mean"


@pytest.mark.parametrize("late_first", [True, False])
def test_a_newer_answer_goes_before_a_late_one(late_first: bool, tmp_path: Path) -> None:
    sites = Sites({10: adds(1), 20: lambda message: replies(message, arrays(w=[50]))})

    def main(grid: Grid) -> None:
        sites.silent = {20}
        ids = list(grid.push_messages(asks(arrays(w=[0]), [10, 20], 1)))
        grid.pull_messages(ids)
        fresh = list(grid.push_messages(asks(arrays(w=[20]), [10, 20], 2)))
        sites.silent = set()
        grid.pull_messages([*ids, *fresh] if late_first else [*fresh, *ids])

    log = tapped(sites, tmp_path / "log", main)
    assert rows(log, 2) == {0: [1], 1: [30]}
    assert log.round(2).ages.tolist() == [0, 0]


def test_start_models_are_kept_for_so_many_rounds_and_no_longer(tmp_path: Path) -> None:
    sites = Sites({10: adds(1), 20: adds(2)})

    def main(grid: Grid) -> None:
        sites.silent = {20}
        ids = list(grid.push_messages(asks(arrays(w=[0]), [10, 20], 1)))
        grid.pull_messages(ids)
        last = 2 + receiving.PATIENCE
        for number in range(2, last + 1):
            grid.send_and_receive(asks(arrays(w=[number]), [10], number))
        sites.silent = set()
        grid.pull_messages(ids)

    log = tapped(sites, tmp_path / "log", main)
    assert absences(log) == [(1, 1, "missing"), (2 + receiving.PATIENCE, 1, "late")]
    assert "of round 1, is no longer kept" in log.absences[1].said


def test_every_so_many_rounds_are_recorded_and_the_last(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        for number in range(1, 6):
            grid.send_and_receive(asks(arrays(w=[number]), [10], number))

    log = tapped(Sites({10: adds(1)}), tmp_path / "log", main, fedsiege_record_every=2)
    assert log.rounds == (2, 4, 5)
    assert log.round(2).end.tolist() == [3]


def test_an_app_that_fails_leaves_what_it_received(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10], 1))
        raise ArithmeticError("my own mistake")

    with pytest.raises(ArithmeticError, match="my own mistake"):
        run(Sites({10: adds(1)}), tmp_path / "log", main)
    assert rows(UpdateLog.read(tmp_path / "log"), 1) == {0: [1]}


def test_a_disk_that_fails_ends_the_recording_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write, done = LogWriter.write_round, list[int]()

    def failing(self: LogWriter, number: int, *rest: Any) -> None:
        if number == 2:
            raise OSError("no space left on device")
        write(self, number, *rest)

    monkeypatch.setattr(LogWriter, "write_round", failing)

    def main(grid: Grid) -> None:
        for number in range(1, 6):
            replied = list(grid.send_and_receive(asks(arrays(w=[number]), [10], number)))
            done.append(len(replied))

    log = tapped(Sites({10: signed(adds(1), 0)}), tmp_path / "log", main)
    assert done == [1] * 5
    assert log.rounds == (1,)
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == [
        "FedSiege: the recording ends here, the run goes on: no space left on device"
    ]


def mistaken(*_: Any) -> float:
    raise ZeroDivisionError("mine")


def test_a_mistake_of_the_tap_s_own_ends_the_recording_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(receiving.Received, "_close", mistaken)

    def main(grid: Grid) -> None:
        for number in (1, 2):
            assert len(list(grid.send_and_receive(asks(arrays(w=[number]), [10], number)))) == 1

    run(Sites({10: adds(1)}), tmp_path / "log", main)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info, "a mistake is shown with where it was made"


def test_whatever_fails_while_a_reply_is_read_is_that_client_s_absence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    weighs = receiving.Received._weight

    def weight(self: receiving.Received, reply: Message, node: int) -> float:
        return mistaken() if node == 20 else weighs(self, reply, node)

    monkeypatch.setattr(receiving.Received, "_weight", weight)

    def main(grid: Grid) -> None:
        for number in (1, 2):
            assert len(list(grid.send_and_receive(asks(arrays(w=[number]), [10, 20], number)))) == 2

    log = tapped(Sites({10: adds(1), 20: adds(2)}), tmp_path / "log", main)
    assert rows(log, 1) == rows(log, 2) == {0: [1]}
    assert absences(log) == [(1, 1, "misshapen"), (2, 1, "misshapen")]
    assert log.absences[0].said == "cannot be read (ZeroDivisionError)"
    assert all(record.exc_info for record in caplog.records if record.levelno == logging.ERROR)


def test_a_model_that_changes_its_shape_ends_the_recording_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[0]), [10], 1))
        assert len(list(grid.send_and_receive(asks(arrays(w=[0, 0]), [10], 2)))) == 1

    run(Sites({10: adds(1)}), tmp_path / "log", main)
    assert "not the first round's" in caplog.text


def test_a_node_beyond_the_log_s_room_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sites = Sites({10: adds(1)})

    def main(grid: Grid) -> None:
        for number in (1, 2, 3):
            grid.send_and_receive(asks(arrays(w=[number]), list(sites.sites), number))
            sites.sites[20] = adds(2)

    log = tapped(sites, tmp_path / "small", main)
    assert rows(log, 3) == {0: [1]}
    assert "node 20 came after the log was begun for 1 clients" in caplog.text
    sites.sites.pop(20)
    log = tapped(sites, tmp_path / "large", main, fedsiege_clients=2)
    assert rows(log, 3) == {0: [1], 1: [2]}


def test_secure_aggregation_is_recognised_by_its_own_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Whatever such a reply's arrays hold, they are masked.
    def main(grid: Grid) -> None:
        for number in (1, 2):
            messages = asks(arrays(w=[number]), [10, 20], number)
            for message in messages:
                message.content[MASKED] = ConfigRecord({"stage": "collect_masked_vectors"})
            grid.send_and_receive(messages)

    grid = Sites({10: adds(1, 3), 20: fails})
    log = tapped(grid, tmp_path / "log", main)
    assert log.observable == "aggregate"
    assert log.rounds == (1,), "what the last round made was never seen"
    assert len(log.round(1).updates) == 0
    assert log.round(1).end.tolist() == [2]
    assert log.round(1).clients == (0,)
    assert log.round(1).weights.tolist() == [3]
    assert absences(log) == [(1, 1, "failed")]
    assert caplog.text.count("aggregates securely") == 1
    assert "updates" not in (tmp_path / "log" / "round_000001.safetensors").read_bytes().decode("latin-1")


def test_no_update_is_recorded_once_masks_were_seen(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        for number in (1, 2, 3):
            messages = asks(arrays(w=[number]), [10], number)
            list(grid.send_and_receive(messages))
            if number == 2:
                masked = asks(arrays(w=[number]), [10], number)
                masked[0].content[MASKED] = ConfigRecord({"stage": "setup"})
                grid.send_and_receive(masked)

    log = tapped(Sites({10: adds(1)}), tmp_path / "log", main)
    assert rows(log, 1) == {0: [1]}
    assert rows(log, 2) == {}


def test_a_site_that_claims_to_be_masked_hides_nobody(tmp_path: Path) -> None:
    def masked(message: Message) -> Message:
        reply = adds(2)(message)
        reply.content[MASKED] = ConfigRecord({"stage": "setup"})
        return reply

    def main(grid: Grid) -> None:
        for number in (1, 2):
            grid.send_and_receive(asks(arrays(w=[number]), [10, 20], number))

    log = tapped(Sites({10: adds(1), 20: masked}), tmp_path / "log", main)
    assert log.observable == "updates"
    assert rows(log, 1) == rows(log, 2) == {0: [1], 1: [2]}


@pytest.mark.parametrize(
    ("nodes", "number", "settings", "clients"),
    [
        (2, 999_999, {}, 2),
        (2, 1000, {}, 2),
        (2, 999, {}, 1000),
        (101, 1010, {}, 101),
        (101, 1009, {}, 1010),
        (2, 1000, {"fedsiege_clients": 1001}, 1001),
    ],
)
def test_the_number_that_a_site_signs_with_is_believed_within_reason(
    nodes: int, number: int, settings: dict[str, int], clients: int, tmp_path: Path
) -> None:
    sites = Sites({node: adds(1) for node in range(nodes)})
    sites.sites[1] = signed(adds(2), number)

    def main(grid: Grid) -> None:
        grid.send_and_receive(asks(arrays(w=[1]), [0, 1], 1))

    log = tapped(sites, tmp_path / "log", main, **settings)
    assert log.clients == clients
    assert rows(log, 1) == {0: [1], number if clients > nodes else 1: [2]}


def test_flower_s_own_secure_aggregation_hides_every_update(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log, sums = _secure(tmp_path / "log")
    assert MASKED == pytest.importorskip("flwr.common.secure_aggregation.secaggplus_constants").RECORD_KEY_CONFIGS
    assert log.observable == "aggregate"
    assert log.rounds == (1, 2)
    assert log.round(1).start.tolist() == [0, 0]
    for number in log.rounds:
        assert len(log.round(number).updates) == 0
        np.testing.assert_allclose(log.round(number).end, sums[number - 1], atol=1e-3)
    assert log.final == "observed"
    assert caplog.text.count("aggregates securely") == 1


def _secure(folder: Path) -> tuple[UpdateLog, list[list[float]]]:
    """Two rounds of SecAgg+ between three sites that add 1, 2 and 3; the means they make."""
    workflows = pytest.importorskip("flwr.server.workflow", reason="this Flower has no SecAgg+")
    mods = pytest.importorskip("flwr.client.mod", reason="this Flower has no SecAgg+")
    server = pytest.importorskip("flwr.server")
    common = pytest.importorskip("flwr.common")
    states = {node: Context(7, node, {}, RecordDict(), {}) for node in (10, 20, 30)}

    def site(step: float) -> Any:
        def train(message: Message, _context: Context) -> Message:
            record = message.content.array_records["fitins.parameters"]
            made = ArrayRecord({name: Array(array.numpy() + np.float32(step)) for name, array in record.items()})
            reply = RecordDict(
                {
                    "fitres.parameters": made,
                    "fitres.num_examples": MetricRecord({"num_examples": 10}),
                    "fitres.metrics": ConfigRecord({}),
                    "fitres.status": ConfigRecord({"code": 0, "message": ""}),
                }
            )
            return Message(reply, reply_to=message)

        def answer(message: Message) -> Message:
            message = deepcopy(message)  # as a network would: the mod empties what it is sent
            if message.metadata.message_type == "evaluate":
                metrics: dict[str, Any] = {
                    "evaluateres.loss": MetricRecord({"loss": 0.0}),
                    "evaluateres.num_examples": MetricRecord({"num_examples": 10}),
                    "evaluateres.metrics": ConfigRecord({}),
                    "evaluateres.status": ConfigRecord({"code": 0, "message": ""}),
                }
                return Message(RecordDict(metrics), reply_to=message)
            reply: Message = mods.secaggplus_mod(message, states[message.metadata.dst_node_id], train)
            return reply

        return answer

    def main(grid: Grid) -> None:
        strategy = server.strategy.FedAvg(
            initial_parameters=common.ndarrays_to_parameters([np.zeros(2, dtype=np.float32)]),
            min_fit_clients=3,
            min_evaluate_clients=3,
            min_available_clients=3,
        )
        legacy = server.LegacyContext(
            context=context(), config=server.ServerConfig(num_rounds=2), strategy=strategy
        )
        secure = workflows.SecAggPlusWorkflow(num_shares=3, reconstruction_threshold=2)
        workflows.DefaultWorkflow(fit_workflow=secure)(grid, legacy)

    class _Run:
        run_id = 7

    sites = Sites({10: site(1), 20: site(2), 30: site(3)})
    sites.set_run(_Run())
    return tapped(sites, folder, main), [[2, 2], [4, 4]]


def test_a_secure_aggregation_of_one_s_own_can_be_declared(tmp_path: Path) -> None:
    def main(grid: Grid) -> None:
        for number in (1, 2):
            grid.send_and_receive(asks(arrays(w=[number]), [10], number))
            grid.send_and_receive(asks(arrays(w=[number + 1]), [10], kind="evaluate"))

    log = tapped(Sites({10: adds(1)}), tmp_path / "log", main, fedsiege_observable="aggregate")
    assert log.observable == "aggregate"
    assert log.rounds == (1, 2)
    assert log.round(2).end.tolist() == [3]
    assert log.final == "observed"


def test_flower_s_strategy_makes_the_same_of_tapped_and_signed_replies(tmp_path: Path) -> None:
    outcomes = list[Any]()

    def main(grid: Grid) -> None:
        start = arrays(w=np.random.default_rng(0).standard_normal(50).astype(np.float32))
        outcomes.append(FedAvg(min_available_nodes=2).start(grid, start, num_rounds=3))

    sites = {10: adds(0.1, 3), 20: adds(-0.7, 5)}
    main(Sites(sites))
    signing = {node: signed(site, place) for place, (node, site) in enumerate(sites.items())}
    log = tapped(Sites(signing), tmp_path / "log", main)
    plain, seen = outcomes
    assert plain.arrays["w"].data == seen.arrays["w"].data
    assert plain.train_metrics_clientapp == seen.train_metrics_clientapp
    np.testing.assert_array_equal(log.round(3).end, plain.arrays["w"].numpy())


def test_flower_s_older_strategies_are_recorded_from_their_threads(tmp_path: Path) -> None:
    server, common = pytest.importorskip("flwr.server"), pytest.importorskip("flwr.common")

    def site(step: float) -> Any:
        def answer(message: Message) -> Message:
            kind = "fit" if message.metadata.message_type == "train" else "evaluate"
            status = {f"{kind}res.status": ConfigRecord({"code": 0, "message": ""})}
            examples = {f"{kind}res.num_examples": MetricRecord({"num_examples": 10})}
            more: dict[str, Any] = {f"{kind}res.metrics": ConfigRecord({}), **status, **examples}
            if kind == "fit":
                record = message.content.array_records["fitins.parameters"]
                more["fitres.parameters"] = ArrayRecord(
                    {name: Array(array.numpy() + np.float32(step)) for name, array in record.items()}
                )
            else:
                more["evaluateres.loss"] = MetricRecord({"loss": 0.0})
            return Message(RecordDict(more), reply_to=message)

        return answer

    def components(context: Context) -> Any:
        start = common.ndarrays_to_parameters([np.zeros(2, dtype=np.float32)])
        strategy = server.strategy.FedAvg(initial_parameters=start)
        return server.ServerAppComponents(strategy=strategy, config=server.ServerConfig(num_rounds=3))

    class _Run:
        run_id = 7

    sites = Sites({10: site(1), 20: site(3)})
    sites.set_run(_Run())
    folder = tmp_path / "log"
    TappedServerApp(ServerApp(server_fn=components))(sites, context(fedsiege_trace=str(folder)))
    log = UpdateLog.read(folder)
    assert log.rounds == (1, 2, 3)
    for number in log.rounds:
        assert rows(log, number) == {0: [1, 1], 1: [3, 3]}
        assert weights(log, number) == {0: 10, 1: 10}
        assert log.round(number).end.tolist() == [2 * number] * 2


def test_the_tapped_grid_is_the_grid_behind_it(tmp_path: Path) -> None:
    sites = Sites({10: adds(1)})

    class _Run:
        run_id = 7

    def main(grid: Grid) -> None:
        assert isinstance(grid, TappedGrid)
        grid.set_run(_Run())
        assert grid.run is sites.run
        assert list(grid.get_node_ids()) == [10]
        assert [node.node_id for node in grid.get_nodes()] == [10]
        assert grid.held is sites.held
        assert not hasattr(grid, "nothing_of_the_kind")
        assert grid.create_message(RecordDict(), "train", 10, "3").metadata.group_id == "3"

    run(sites, tmp_path / "log", main)
    assert not any((tmp_path / "log").iterdir())


def test_the_node_s_settings_go_before_its_environment_s_and_those_before_the_run_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = context(fedsiege_trace="run's", fedsiege_weight_key="")
    assert setting(told, "trace") == "run's"
    monkeypatch.setenv("FEDSIEGE_WEIGHT_KEY", "environment's")
    monkeypatch.setenv("FEDSIEGE_TRACE", "environment's")
    assert setting(told, "trace") == "environment's"
    told.node_config["fedsiege-trace"] = "node's"
    assert setting(told, "trace") == "node's"
    monkeypatch.setenv("FEDSIEGE_TRACE", "")
    del told.node_config["fedsiege-trace"]
    assert setting(told, "trace") == "run's"
    assert setting(told, "weight-key", "default") == "environment's"
    assert setting(told, "record-every", 3) == 3


def test_the_log_s_folder_is_made_unique_by_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert wishes_of(context()).folder == tmp_path / "fedsiege-updates" / "7"
    assert wishes_of(context(fedsiege_trace="logs/of-{run}")).folder == tmp_path / "logs" / "of-7"


def test_a_folder_that_holds_something_is_refused_before_the_first_round(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"fedsiege-trace: .* holds notes.txt already; expected a new or empty"):
        run(Sites({}), tmp_path, lambda grid: pytest.fail("the app was run"))
    with pytest.raises(InputError, match=r"fedsiege-trace: .*expected a folder that can be made"):
        run(Sites({}), tmp_path / "notes.txt", lambda grid: pytest.fail("the app was run"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("record_every", value) for value in (0, -1, 1.5, "often", True, float("inf"))],
        ("clients", -1),
        ("clients", 10**9),
        ("observable", "everything"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"fedsiege-{key.replace('_', '-')}: got {value!r}; expected"):
        wishes_of(context(fedsiege_trace=str(tmp_path), **{f"fedsiege_{key}": value}))
