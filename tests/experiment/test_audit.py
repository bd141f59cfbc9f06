"""An audit of somebody else's federation: what a log says comes to the same figures as the run it was made of."""

import copy
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from numpy.typing import NDArray
from tiny import TINY
from torch import nn

from fedsiege.cli import execute
from fedsiege.errors import InputError
from fedsiege.experiment import audit, load, run
from fedsiege.experiment.audit import completed, config_of
from fedsiege.experiment.prepare import prepare
from fedsiege.experiment.start import first_model
from fedsiege.federation.state import Models, State
from fedsiege.records import Round
from fedsiege.report.result import Result
from fedsiege.trace import Trace
from fedsiege.update_log import LogWriter, UpdateLog
from recorded_by_hand import begin, record

OF_THE_RUN = ("data", "model", "candidates", "attacks", "threads")
"""What a run and the audit of its log have in common."""

BYTES = ("scores.parquet", "candidates.parquet", "curves.json")

EVERYTHING = (
    *("avg_cosine", "blackbox_loss", "fedmia_i", "fedmia_ii", "fta_c", "fta_l"),
    *("grad_cosine", "grad_diff", "grad_norm", "label_only", "loss_series"),
)
"""The membership attacks that a log serves and that need no federation of the adversary's own."""


@pytest.fixture(autouse=True)
def _only_what_is_looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures and pages, which take longer than all the rest, but where a test asks for `pages`."""
    if "pages" not in request.fixturenames:
        monkeypatch.setattr("fedsiege.report.write", lambda _: None)


@pytest.fixture
def pages() -> None:
    """Named by tests that look at the report."""


def rounds_of(config: Mapping[str, Any]) -> tuple[list[Round], Any]:
    """The rounds of a run, all of them with their cohorts, and the run."""
    prepared = prepare(load(config))
    state = State(0, Models((first_model(prepared),)))
    return list(prepared.federation(keeps=lambda _: True).run(state)), prepared


def logged(
    folder: Path,
    config: Mapping[str, Any],
    only: Sequence[int] | None = None,
    order: Sequence[int] | None = None,
    without: Sequence[str] = (),
    **options: Any,
) -> Path:
    """The log of a run: `only` some rounds, the tensors in another `order`, `without` some of them."""
    rounds, prepared = rounds_of(config)
    layout = prepared.task.layout
    places = list(layout.slices())
    wanted = [i for i in (order or range(len(places))) if places[i][0] not in without]
    tensors = [(layout.names[i], layout.shapes[i]) for i in wanted]
    writer = LogWriter(folder, len(prepared.shards), tensors, **{"source": "a test", **options})

    def laid(vector: torch.Tensor) -> NDArray[np.float32]:
        return np.concatenate([vector[places[i][1]].numpy() for i in wanted])

    for done in rounds:
        if only is not None and done.number not in only:
            continue
        cohort = done.cohort
        assert cohort is not None
        single = options.get("observable") != "aggregate"
        writer.write_round(
            done.number,
            laid(done.start),
            laid(done.end),
            {c: laid(row) for c, row in zip(cohort.clients, cohort.updates, strict=True) if single},
            dict(zip(cohort.clients, cohort.weights.tolist(), strict=True)),
            dict(zip(cohort.clients, cohort.ages, strict=True)),
        )
    writer.close()
    return folder


def audited(out: Path, log: Path, config: Mapping[str, Any], **changes: Any) -> Result:
    """The audit of a run's log, with the run's own data, model, candidates and attacks."""
    shared = {key: config[key] for key in OF_THE_RUN}
    return run({**shared, "partition": "iid", "updates": str(log), **changes}, out, progress=False)


def files_of(folder: Path) -> dict[str, bytes]:
    """What must be the same bytes in a run and in the audit of its log."""
    trace = sorted(path.relative_to(folder).as_posix() for path in (folder / "trace").rglob("*") if path.is_file())
    return {name: (folder / name).read_bytes() for name in (*BYTES, *trace)}


def warnings_of(result: Result) -> str:
    return "\n".join(result.data["warnings"])


def message_of(out: Path, log: Path, config: Mapping[str, Any], **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        audited(out, log, config, **changes)
    assert not out.exists()
    return str(caught.value)


# What the log of a run says is what the run said


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"participation": 0.6, "rounds": 8, "record_every": 1, "attacks": ["avg_cosine", "fedmia_ii"]},
        {"delay": 2, "record_every": 1, "attacks": ["avg_cosine", "blackbox_loss", "fedmia_ii"]},
        {"defences": [{"name": "sparsify", "share": 0.5, "spare": 10}], "aggregator": "median"},
        {"adversary": {"name": "sign_flip"}, "compromised": {"clients": [1]}, "attacks": ["fedmia_ii"]},
    ],
    ids=["passive", "participation", "late answers", "a defence and a rule", "an attacker"],
)
def test_the_audit_of_a_run_s_log_gives_the_run_s_own_scores_bit_for_bit(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    config = {**TINY, **changes}
    run(config, tmp_path / "run", progress=False)
    log = logged(tmp_path / "log", config)
    recorded = list(range(config["record_every"], config["rounds"] + 1, config["record_every"]))
    found = audited(tmp_path / "audit", log, config, record_rounds=recorded)
    assert files_of(tmp_path / "audit") == files_of(tmp_path / "run")
    ours, theirs = (json.loads((tmp_path / one / "result.json").read_text()) for one in ("audit", "run"))
    assert ours["attacks"] == theirs["attacks"]
    assert ours["task"]["accuracy"] == theirs["task"]["accuracy"]
    assert "Nothing was trained: the rounds are those of the log" in warnings_of(found)


def test_a_late_answer_s_start_model_may_be_what_the_round_before_ended_with(tmp_path: Path) -> None:
    config = {**TINY, "delay": 2, "attacks": ["avg_cosine", "blackbox_loss"]}
    whole = logged(tmp_path / "log", config)
    lacking = logged(tmp_path / "lacking", config, only=[1, 2, 3, 5, 6])
    ages = {number: UpdateLog.read(whole).round(number).ages.tolist() for number in (5, 6)}
    assert 1 in ages[5] or 2 in ages[6], "nobody started from the model of round 4"
    assert UpdateLog.read(lacking).absences == ()
    found = [
        files_of(audited(tmp_path / str(place), log, config, record_rounds=[5, 6]).folder)
        for place, log in enumerate((whole, lacking))
    ]
    assert found[0] == found[1]


def test_the_rounds_that_are_recorded_may_be_named(tmp_path: Path) -> None:
    every = {**TINY, "record_every": 2}
    named = {**TINY, "record_every": 5, "record_rounds": [6, 2, 4, 2]}
    for place, config in (("every", every), ("named", named)):
        run(config, tmp_path / place, progress=False)
    assert files_of(tmp_path / "named") == files_of(tmp_path / "every")
    assert load(named).record_rounds == [2, 4, 6]
    with pytest.raises(InputError, match="record_rounds: got 7; expected rounds from 1 to 6"):
        run({**TINY, "record_rounds": [2, 7]}, tmp_path / "none", progress=False)


def test_the_last_round_need_not_be_recorded_where_the_rounds_are_named(tmp_path: Path) -> None:
    run({**TINY, "record_rounds": [1, 3]}, tmp_path / "run", progress=False)
    assert Trace(tmp_path / "run" / "trace").rounds == (1, 3)


def test_tensors_in_another_order_are_found_by_name(tmp_path: Path) -> None:
    straight = audited(tmp_path / "a", logged(tmp_path / "log", TINY), TINY)
    turned = audited(tmp_path / "b", logged(tmp_path / "turned", TINY, order=[2, 0, 3, 1]), TINY)
    names = [one.name for one in UpdateLog.read(tmp_path / "turned").tensors]
    assert names != [one.name for one in UpdateLog.read(tmp_path / "log").tensors]
    assert files_of(straight.folder) == files_of(turned.folder)


def test_tensors_with_numbers_for_names_are_those_of_the_state_dict_in_order(tmp_path: Path) -> None:
    straight = audited(tmp_path / "a", logged(tmp_path / "log", TINY), TINY)
    log = logged(tmp_path / "numbered", TINY)
    said = json.loads((log / "log.json").read_text())
    said["tensors"] = [{**one, "name": str(place)} for place, one in enumerate(said["tensors"])]
    (log / "log.json").write_text(json.dumps(said))
    assert files_of(audited(tmp_path / "b", log, TINY).folder) == files_of(straight.folder)


# What the log says of itself


def test_an_audit_takes_from_the_log_what_its_config_does_not_say(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY, only=[1, 2, 5])
    e = completed(load({"updates": str(log), "data": "wine", "model": TINY["model"]}))
    assert (e.clients, e.rounds, e.record_rounds, e.secure_aggregation) == (5, 5, [1, 2, 5], False)
    assert e.partition == {"name": "owner"}
    assert tuple(e.attacks) == EVERYTHING
    assert e.title == "Audit of log"


def test_of_an_aggregate_every_attack_is_scored_that_can_do_with_it(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY, observable="aggregate")
    config = {**TINY, "secure_aggregation": True, "record_every": 1}
    behind = {"vantage": "server_aggregate_only"}
    config["attacks"] = [
        {"name": "avg_cosine", **behind},
        *("blackbox_loss", "fta_c", "fta_l"),
        {"name": "grad_cosine", **behind},
        {"name": "grad_diff", **behind},
        *("grad_norm", "loss_series"),
    ]
    run(config, tmp_path / "run", progress=False)
    shared = {key: TINY[key] for key in OF_THE_RUN if key != "attacks"}
    found = run({**shared, "partition": "iid", "updates": str(log)}, tmp_path / "audit", progress=False)
    assert files_of(tmp_path / "audit") == files_of(tmp_path / "run")
    assert found.data["threat_model"]["secure_aggregation"] is True
    assert "Not scored: fedmia_i, fedmia_ii, label_only: needs single clients' updates" in warnings_of(found)


def test_a_log_of_updates_may_be_audited_as_if_only_the_aggregate_had_been_seen(tmp_path: Path) -> None:
    attacks = [{"name": "avg_cosine", "vantage": "server_aggregate_only"}]
    whole = logged(tmp_path / "whole", TINY)
    behind = logged(tmp_path / "behind", TINY, observable="aggregate")
    found = [
        audited(tmp_path / str(place), log, TINY, attacks=attacks, secure_aggregation=True)
        for place, log in enumerate((whole, behind))
    ]
    assert files_of(found[0].folder) == files_of(found[1].folder)


def test_a_log_of_the_aggregate_is_not_audited_for_single_updates(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY, observable="aggregate")
    said = message_of(tmp_path / "a", log, TINY, secure_aggregation=False)
    assert said.startswith("secure_aggregation: got false; the log ")
    said = message_of(tmp_path / "a", log, TINY, attacks=["fedmia_ii"])
    assert "needs single clients' updates, which secure_aggregation: true hides" in said


def test_attacks_that_are_not_scored_are_named_with_the_reason(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY, only=[2])
    shared = {key: TINY[key] for key in OF_THE_RUN if key != "attacks"}
    found = run({**shared, "partition": "iid", "updates": str(log)}, tmp_path / "one", progress=False)
    assert {row["attack"] for row in found.data["attacks"]} == {
        "blackbox_loss",
        "grad_cosine",
        "grad_diff",
        "grad_norm",
    }
    said = warnings_of(found)
    assert "Not scored: lira, rmia, seqmia: shadow federations would train as the config says" in said
    assert "fedmia_ii, fta_c, fta_l, label_only, loss_series: got 1 recorded round(s); expected at least 2" in said
    assert "The log lacks round 1." in said
    chosen = audited(tmp_path / "two", log, TINY, attacks=["grad_cosine"])
    assert "Not scored" not in warnings_of(chosen)


def test_rounds_may_be_cut_short_and_chosen(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY)
    assert completed(load({"updates": str(log), "rounds": 4})).record_rounds == [1, 2, 3, 4]
    e = completed(load({"updates": str(log), "rounds": 5, "record_rounds": [1, 3, 6]}))
    assert (e.record_rounds, e.rounds) == ([1, 3], 3)
    found = audited(tmp_path / "audit", log, TINY, record_rounds=[2, 5])
    assert Trace(found.folder / "trace").rounds == (2, 5)
    assert [one["round"] for one in found.data["task"]["history"]] == [2, 5]
    late = logged(tmp_path / "late", TINY, only=[4, 6])
    with pytest.raises(InputError, match=r"rounds: got 3; the first round of the log .* is 4"):
        completed(load({"updates": str(late), "rounds": 3}))


# What does not fit is refused in a line


def test_a_config_that_says_other_than_the_log_is_refused(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY, only=[1, 2, 4])
    assert message_of(tmp_path / "a", log, TINY, clients=6).startswith("clients: got 6; the log ")
    said = message_of(tmp_path / "a", log, TINY, record_rounds=[1, 3])
    assert said.startswith("record_rounds: got 3 with rounds: 3; expected rounds of the log ")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("participation", 0.5),
        ("dropout", 0.1),
        ("delay", 1),
        ("server_step", 0.5),
        ("aggregator", "median"),
        ("defences", ["quantize"]),
        ("server_defences", ["norm_bounding"]),
        ("coalition", {"name": "cofedmid", "members": "pair"}),
        ("adversary", "sign_flip"),
        ("compromised", {"clients": [1]}),
        ("backdoor", {"target": 1}),
        ("start", "model.safetensors"),
        ("pretrain_rounds", 2),
        ("engine", "flower"),
    ],
)
def test_what_a_federation_would_do_is_refused_as_that_of_a_log_is_over(
    tmp_path: Path, field: str, value: object
) -> None:
    log = of_zeros(tmp_path / "log")
    said = message_of(tmp_path / "a", log, TINY, **{field: value})
    assert said.startswith(f"{field}: got ")
    assert "whose federation is over: expected the default" in said


def of_zeros(folder: Path) -> Path:
    """A log of one round of TINY's model, all of it zeros."""
    tensors = [("1.weight", (8, 13)), ("1.bias", (8,)), ("3.weight", (3, 8)), ("3.bias", (3,))]
    zeros = np.zeros(8 * 13 + 8 + 3 * 8 + 3, dtype=np.float32)
    writer = LogWriter(folder, 5, tensors)
    writer.write_round(1, zeros, zeros, {}, {})
    return folder


def test_a_log_of_another_model_is_refused_with_the_first_few_names(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY)
    said = message_of(tmp_path / "a", log, TINY, model={"name": "mlp", "hidden": [9]})
    assert "the tensors of {'name': 'mlp', 'hidden': [9]} are not those of the log" in said
    assert "of another shape: " in said
    assert "([8, 13] in the log, [9, 13] in the model)" in said
    said = message_of(tmp_path / "a", log, TINY, model={"name": "mlp", "hidden": [8, 8, 8]})
    assert "not in the log: " in said
    assert "and 1 more" in said
    said = message_of(tmp_path / "a", log, TINY, model={"name": "mlp", "hidden": []})
    assert "not in the model: " in said


class Normed(nn.Module):
    """A model with float and integer buffers, and a tensor that may be frozen."""

    def __init__(self, features: int, classes: int, frozen: float | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(features, 8), nn.BatchNorm1d(8), nn.Linear(8, classes)
        self.scale = nn.Parameter(torch.ones(8) if frozen is None else torch.full((8,), frozen))
        self.scale.requires_grad_(frozen is None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.first(x))) * self.scale)  # type: ignore[no-any-return]


def normed(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Normed(shape[0], classes)


def frozen(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Normed(shape[0], classes, frozen=1.5)


def frozen_elsewhere(shape: tuple[int, ...], classes: int) -> nn.Module:
    return Normed(shape[0], classes, frozen=2.5)


OWN: dict[str, Any] = {**TINY, "attacks": ["avg_cosine", "blackbox_loss"], "record_every": 1}
OWN["training"] = {"epochs": 1, "batch": 5}  # BatchNorm cannot train on a batch of one


def own(name: str) -> dict[str, Any]:
    return {**OWN, "model": f"test_audit:{name}"}


def test_buffers_are_audited_as_they_are_in_the_log(tmp_path: Path) -> None:
    run(own("normed"), tmp_path / "run", progress=False)
    log = logged(tmp_path / "log", own("normed"))
    assert "norm.running_var" in {one.name for one in UpdateLog.read(log).tensors}
    audited(tmp_path / "audit", log, own("normed"))
    assert files_of(tmp_path / "audit") == files_of(tmp_path / "run")


def test_buffers_that_the_log_lacks_stay_as_the_model_was_built_with_them(tmp_path: Path) -> None:
    lacking = ("norm.running_mean", "norm.running_var")
    log = logged(tmp_path / "log", own("normed"), without=lacking)
    found = audited(tmp_path / "audit", log, own("normed"))
    assert "The log holds no buffers norm.running_mean, norm.running_var of the model" in warnings_of(found)
    rounds, prepared = rounds_of(own("normed"))
    model = rounds[-1].end.clone()
    for name, place in prepared.task.layout.slices():
        if name in lacking:
            model[place] = float(name.endswith("var"))
    asked = prepared.candidates.examples
    expected = prepared.task.losses(prepared.task.predict(model, asked), asked.y)
    trace = Trace(found.folder / "trace")
    np.testing.assert_allclose(trace.global_loss(len(trace.rounds) - 1), expected, rtol=1e-6)


def test_a_trained_tensor_that_the_log_lacks_is_refused(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", own("normed"), without=["last.bias"])
    assert "not in the log: last.bias; expected the model" in message_of(tmp_path / "a", log, own("normed"))


def with_frozen(log: Path, value: float) -> Path:
    """A log of the model with a frozen tensor, its values in every round."""
    found = UpdateLog.read(log)
    writer = LogWriter(
        log.with_name("whole"),
        found.clients,
        [*found.tensors, ("scale", (8,)), ("norm.num_batches_tracked", ())],
    )
    more, none = np.array([value] * 8 + [7.0], dtype=np.float32), np.zeros(9, dtype=np.float32)
    for number in found.rounds:
        one = found.round(number)
        updates = {c: np.concatenate([row, none]) for c, row in zip(one.clients, one.rows(), strict=True)}
        start, end = np.concatenate([one.start, more]), np.concatenate([one.end, more])
        writer.write_round(number, start, end, updates, dict(zip(one.clients, one.weights.tolist(), strict=True)))
    return writer.folder


def test_what_the_model_has_frozen_may_be_in_the_log_with_the_model_s_values(tmp_path: Path) -> None:
    run(own("frozen"), tmp_path / "run", progress=False)
    log = with_frozen(logged(tmp_path / "log", own("frozen")), 1.5)
    audited(tmp_path / "audit", log, own("frozen"))
    assert files_of(tmp_path / "audit") == files_of(tmp_path / "run")
    said = message_of(tmp_path / "a", log, own("frozen_elsewhere"))
    assert (
        "model: scale of 'test_audit:frozen_elsewhere' is frozen, and its values are not those of the log" in said
    )


# Who owns what


def owned(path: Path, **arrays: Any) -> dict[str, Any]:
    """Wine with a column of owners, as an .npz file, and what a config says of it."""
    from sklearn.datasets import load_wine

    x, y = load_wine(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y, rows = x[order].astype(np.float32), y[order], 120
    first = {"x": x[:rows], "y": y[:rows], "x_test": x[rows:], "y_test": y[rows:]}
    np.savez(path, **{**first, "client": np.arange(rows) % 5, **arrays})
    return {"name": "npz", "path": str(path), "natural": ["client"]}


def test_a_column_of_the_data_says_who_owns_what(tmp_path: Path) -> None:
    config = {**TINY, "data": owned(tmp_path / "wine.npz"), "partition": "owner"}
    run(config, tmp_path / "run", progress=False)
    log = logged(tmp_path / "log", config)
    overrides = ["candidates={ifl: 20, ofl: 30}", "threads=1", f"attacks={json.dumps(TINY['attacks'])}"]
    overrides.append("record_rounds=[2, 4, 6]")
    model = "{name: mlp, hidden: [8]}"
    audit(log, str(tmp_path / "wine.npz"), model, tmp_path / "audit", overrides=overrides, progress=False)
    assert files_of(tmp_path / "audit") == files_of(tmp_path / "run")


def test_names_of_the_log_may_say_who_owns_what(tmp_path: Path) -> None:
    names = ["north", "0", "south", "east", "west"]
    data = owned(tmp_path / "wine.npz")
    log = logged(tmp_path / "log", {**TINY, "data": data, "partition": "owner"})
    said = json.loads((log / "log.json").read_text())
    named = {str(client): name for client, name in enumerate(names)}
    (log / "log.json").write_text(json.dumps({**said, "names": named}))
    by_name = owned(tmp_path / "named.npz", client=np.array(names)[np.arange(120) % 5])
    shared = {key: TINY[key] for key in OF_THE_RUN if key != "data"}
    numbered = run({**shared, "data": by_name, "updates": str(log)}, tmp_path / "named", progress=False)
    assert [one["examples"] for one in numbered.data["task"]["clients"]] == [24] * 5
    other = owned(tmp_path / "other.npz", client=np.arange(120) % 6)
    # A value that is somebody's name is not a number: client 1 is called 0.
    with pytest.raises(
        InputError, match=r"partition\.column: column 'client' holds '5'; expected a client's number"
    ):
        run({**shared, "data": other, "updates": str(log)}, tmp_path / "other", progress=False)
    (log / "log.json").write_text(json.dumps({**said, "names": {"0": "same", "3": "same"}}))
    with pytest.raises(InputError, match="two clients are called 'same'"):
        run({**shared, "data": by_name, "updates": str(log)}, tmp_path / "twice", progress=False)


def test_clients_of_which_the_auditor_has_nothing_are_not_asked_about(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", {**TINY, "data": owned(tmp_path / "wine.npz"), "partition": "owner"})
    data = owned(tmp_path / "some.npz", client=np.array([1, 3])[np.arange(120) % 2])
    shared = {**{key: TINY[key] for key in OF_THE_RUN if key != "data"}, "data": data, "updates": str(log)}
    found = run(shared, tmp_path / "audit", progress=False)
    assert set(pd.read_parquet(found.folder / "scores.parquet")["target"]) == {1, 3}
    assert "The data has no training examples of clients 0, 2, 4: nobody asks about theirs." in warnings_of(found)
    with pytest.raises(InputError, match="targets: client 2 has no training examples in this data"):
        run({**shared, "targets": [1, 2]}, tmp_path / "two", progress=False)
    with pytest.raises(InputError, match=r"examples_per_client: got 5; .*expected null"):
        run({**shared, "examples_per_client": 5}, tmp_path / "few", progress=False)


def test_data_that_says_nothing_of_clients_is_refused_by_column(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY)
    with pytest.raises(InputError, match=r"partition\.column: got 'client'; natural columns of this data: none"):
        audit(log, "wine", "{name: mlp, hidden: [8]}", tmp_path / "a", progress=False)


def test_a_loop_that_knows_nothing_of_this_package_is_audited_by_its_log(tmp_path: Path) -> None:
    data = owned(tmp_path / "wine.npz")
    arrays = np.load(tmp_path / "wine.npz")
    x, y, owners = (torch.from_numpy(arrays[name]) for name in ("x", "y", "client"))
    x_test = torch.from_numpy(arrays["x_test"])
    torch.manual_seed(0)
    model, models = Normed(13, 3), dict[tuple[int, int], nn.Module]()
    begin(tmp_path / "log", model.state_dict(), clients=5)
    for number in (1, 2, 3):
        start, replies = copy.deepcopy(model.state_dict()), {}
        for client in (4, 0, 2, 1, 3):
            local = copy.deepcopy(model)
            optimiser = torch.optim.SGD(local.parameters(), lr=1e-3)
            for _ in range(3):
                optimiser.zero_grad()
                nn.functional.cross_entropy(local(x[owners == client]), y[owners == client]).backward()
                optimiser.step()
            replies[client] = local.state_dict(), int((owners == client).sum())
            models[number, client] = local.eval()
        mean = {name: torch.stack([state[name].float() for state, _ in replies.values()]).mean(0) for name in start}
        model.load_state_dict({name: value.to(start[name].dtype) for name, value in mean.items()})
        record(tmp_path / "log", number, start, model.state_dict(), replies)
    # The loop trained on the features as they are.
    raw = {**data, "mean": [0.0] * 13, "std": [1.0] * 13}
    config = {**{key: TINY[key] for key in OF_THE_RUN}, "data": raw, "model": "test_audit:normed"}
    found = run({**config, "updates": str(tmp_path / "log")}, tmp_path / "audit", progress=False)
    trace = Trace(found.folder / "trace")
    asked = pd.read_parquet(found.folder / "candidates.parquet")
    places = [place.split(":") for place in asked["row"]]
    inputs = torch.stack([(x if split == "train" else x_test)[int(row)] for split, row in places])
    labels = torch.tensor(asked["label"].tolist())
    for client in range(5):
        expected = nn.functional.cross_entropy(models[3, client](inputs), labels, reduction="none")
        np.testing.assert_allclose(trace.loss(2)[client], expected.detach(), rtol=1e-4, atol=1e-5)


# What is missing is said


def test_missing_and_refused_rounds_and_absences_stand_in_the_report(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY, only=[1, 2, 4, 6])
    said = json.loads((log / "log.json").read_text())
    absences = [{"round": 2, "client": client, "why": "late", "said": "after 9 s"} for client in range(5)]
    absences += [{"round": 1, "client": 3, "why": "failed"}]
    (log / "log.json").write_text(json.dumps({**said, "absences": absences, "final": "assumed_mean"}))
    spoil(log, 4, "end", slice(None))
    spoil(log, 6, "updates", (1, 0))
    found = audited(tmp_path / "audit", log, TINY)
    said = warnings_of(found)
    assert "The log lacks rounds 3, 5." in said
    assert "Round 4 of the log was left out: its end is not finite." in said
    late = "; ".join(f"round 2, client {client}: late (after 9 s)" for client in range(4))
    counted = "Answers that are not in the log: 1 failed, 5 late, 1 nonfinite."
    assert f"{counted} round 1, client 3: failed; {late}; and 2 more." in said
    assert "Nobody saw the model that round 6 ended with" in said
    trace = Trace(found.folder / "trace")
    assert trace.rounds == (1, 2, 6)
    assert trace.present(2).tolist() == [True, False, True, True, True]


def spoil(log: Path, number: int, name: str, place: Any) -> None:
    """Make entries of a round's tensor NaN."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    path = log / f"round_{number:06d}.safetensors"
    with safe_open(path, framework="np") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    tensors[name][place] = np.nan
    save_file(tensors, path)


def test_an_answer_whose_model_has_no_finite_loss_is_left_out_and_counted(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY)
    path = log / "round_000002.safetensors"
    content = bytearray(path.read_bytes())
    row = UpdateLog.read(log).size * 4
    content[-row:] = np.full(row // 4, 3e38, dtype=np.float32).tobytes()  # the last row: client 4's
    path.write_bytes(content)
    found = audited(tmp_path / "audit", log, TINY)
    trace = Trace(found.folder / "trace")
    assert trace.present(1).tolist() == [True] * 4 + [False]
    said = "Answers that were left out, as their model's loss on the candidates is not finite: 1."
    assert said in warnings_of(found)


def test_a_global_model_without_a_finite_loss_is_refused_by_round(tmp_path: Path) -> None:
    log = logged(tmp_path / "log", TINY)
    rewritten = UpdateLog.read(log)
    writer = LogWriter(tmp_path / "lost", 5, rewritten.tensors)
    for number in (1, 2, 3):
        one = rewritten.round(number)
        end = np.full_like(one.end, 3e38) if number == 2 else one.end
        rows = dict(zip(one.clients, one.rows(), strict=True))
        writer.write_round(number, one.start, end, rows, dict.fromkeys(one.clients, 1.0))
    with pytest.raises(
        InputError, match=r"updates: round 2 of .*lost: .*not finite; expected record_rounds without it"
    ):
        audited(tmp_path / "audit", tmp_path / "lost", TINY)
    found = audited(tmp_path / "again", tmp_path / "lost", TINY, record_rounds=[1, 3])
    assert Trace(found.folder / "trace").rounds == (1, 3)


def test_what_clients_declared_is_held_against_what_came(tmp_path: Path) -> None:
    defended = {**TINY, "defences": [{"name": "sparsify", "share": 0.5, "spare": 10, "clients": [0]}]}
    log = logged(tmp_path / "log", defended)
    said = json.loads((log / "log.json").read_text())
    mod = [{"name": "sparsify", "share": 0.5, "spare": 10}]
    (log / "log.json").write_text(json.dumps({**said, "declared": {"0": mod, "1": mod}}))
    found = warnings_of(audited(tmp_path / "audit", log, TINY))
    assert "Client 0, sparsify(share=0.5, spare=10): kept" in found
    assert "Client 1, sparsify(share=0.5, spare=10): broken" in found


def test_nobody_here_is_said_to_have_aggregated(tmp_path: Path) -> None:
    found = audited(tmp_path / "audit", logged(tmp_path / "log", TINY), TINY)
    assert "aggregator" not in {one["kind"] for one in found.data["components"]}


# The command


def test_the_command_audits_and_a_run_of_its_config_does_the_same(tmp_path: Path, capsys: Any, pages: None) -> None:
    data = owned(tmp_path / "wine.npz")
    log = logged(tmp_path / "log", {**TINY, "data": data, "partition": "owner"})
    sets = ["--set", "candidates={ifl: 20, ofl: 30}", "--set", "threads=1"]
    command = [
        "audit",
        str(log),
        "--data",
        str(tmp_path / "wine.npz"),
        "--model",
        "{name: mlp, hidden: [8]}",
        *sets,
    ]
    assert execute([*command, "--out", str(tmp_path / "audit")]) == 0
    shown = capsys.readouterr().out
    assert "Audit of log" in shown
    assert f"report: {tmp_path / 'audit' / 'report.html'}" in shown
    config = yaml.safe_load((tmp_path / "audit" / "config.yaml").read_text())
    assert (config["updates"], config["clients"], config["rounds"]) == (str(log), 5, 6)
    assert config["attacks"] == list(EVERYTHING)
    assert execute(["run", str(tmp_path / "audit" / "config.yaml"), "--out", str(tmp_path / "run"), "-q"]) == 0
    assert files_of(tmp_path / "run") == files_of(tmp_path / "audit")
    assert execute([*command, "--out", str(tmp_path / "audit"), "--resume", "-q"]) == 0
    assert execute(["report", str(tmp_path / "audit")]) == 0


def test_an_audit_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedsiege.experiment import train

    log, record = logged(tmp_path / "log", TINY), train.record
    whole = audited(tmp_path / "whole", log, TINY, checkpoint_every=1)

    def cut(recorder: Any, done: Round, logged: bool = False) -> int:
        if done.number == 4:
            raise KeyboardInterrupt
        return record(recorder, done, logged)

    monkeypatch.setattr(train, "record", cut)
    with pytest.raises(KeyboardInterrupt):
        audited(tmp_path / "part", log, TINY, checkpoint_every=1)
    monkeypatch.setattr(train, "record", record)
    shared = {key: TINY[key] for key in OF_THE_RUN}
    config = {**shared, "partition": "iid", "updates": str(log), "checkpoint_every": 1}
    log.rename(tmp_path / "first")
    logged(log, {**TINY, "server_step": 0.5})
    with pytest.raises(InputError, match=r"cannot resume: the log is not what it was when the audit began"):
        run(config, tmp_path / "part", resume=True, progress=False)
    shutil.rmtree(log)
    (tmp_path / "first").rename(log)
    found = run(config, tmp_path / "part", resume=True, progress=False)
    assert files_of(found.folder) == files_of(whole.folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "wine", "--model", "mlp"], "no log.json here; expected the folder of a log of updates"),
        (["--data", "wine"], "Missing option '--model'"),
        (["--data", "{name: npz, path: [", "--model", "mlp"], "not a YAML mapping"),
        (["--data", "wine", "--model", "{hidden: [8]}"], "--model {hidden: [8]}: expected a name or {name: ..., "),
    ],
)
def test_what_the_command_cannot_do_is_said_in_a_line(
    tmp_path: Path, capsys: Any, arguments: list[str], message: str
) -> None:
    assert execute(["audit", str(tmp_path / "none"), "--out", str(tmp_path / "out"), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_hostile_log_ends_in_a_line_and_not_in_a_traceback(tmp_path: Path, capsys: Any) -> None:
    log = logged(tmp_path / "log", TINY)
    (log / "round_000003.safetensors").write_bytes((2**63).to_bytes(8, "little"))
    command = ["audit", str(log), "--data", "wine", "--model", "mlp", "--out", str(tmp_path / "out")]
    assert execute(command) == 2
    assert "round_000003.safetensors: header: got a length of 9223372036854775808 bytes" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_npz_file_with_owners_is_read_with_them(tmp_path: Path) -> None:
    owned(tmp_path / "wine.npz")
    assert config_of("log", str(tmp_path / "wine.npz"), "mlp") == {
        "name": "audit",
        "updates": "log",
        "data": {"name": "npz", "path": str(tmp_path / "wine.npz"), "natural": ["client"]},
        "model": "mlp",
    }
    np.savez(tmp_path / "plain.npz", x=np.zeros(3))
    for path in (tmp_path / "plain.npz", tmp_path / "none.npz"):
        assert config_of("log", str(path), "mlp")["data"] == {"name": "npz", "path": str(path)}
    assert config_of("log", "digits", "a:b")["data"] == "digits"
    assert config_of("log", "{name: npz, path: w}", "a:b")["data"] == {"name": "npz", "path": "w"}
