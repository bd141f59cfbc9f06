"""The adversary's own federations: what they are trained on, what is recorded of them, and that it is done once."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from curious import SEEN, curious, seen
from tiny import deterministic, files

import fedsiege
from fedsiege.data.fingerprint import fingerprint
from fedsiege.errors import InputError, TrainingDivergedError
from fedsiege.experiment import run, shadows, train
from fedsiege.experiment.cache import cache_of
from fedsiege.experiment.cell import LOG, Work, carry_out
from fedsiege.experiment.config import EngineSpec, Experiment, load
from fedsiege.experiment.grid import Grid
from fedsiege.experiment.prepare import Loaded, Prepared, Shelf, loaded, prepare
from fedsiege.experiment.progress import Bars
from fedsiege.experiment.shadows import DONE, Shadows, plan_shadows
from fedsiege.experiment.train import train_and_record
from fedsiege.federation.state import Models, State
from fedsiege.metrics import audit
from fedsiege.report.schema import ResultFile
from fedsiege.trace import Trace

DIGITS: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "mlp", "hidden": [8]},
    "clients": 3,
    "examples_per_client": 40,
    "rounds": 4,
    "training": {"epochs": 2, "batch": 20},
    "record_every": 2,
    "checkpoint_every": 2,
    "candidates": {"ifl": 30, "ofl": 50},
    "attacks": [curious(shadows=2)],
    "threads": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that keeps shadow federations."""
    SEEN.clear()
    torch.set_num_threads(1)
    monkeypatch.setenv("FEDSIEGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shadows"


def ready(**changes: Any) -> Prepared:
    return prepare(load({**DIGITS, **changes}))


def planned(**changes: Any) -> Shadows:
    return plan_shadows(ready(**changes))


def names(**changes: Any) -> list[str]:
    return [one.folder.name for one in planned(**changes).runs]


def made(out: Path, **changes: Any) -> dict[str, Any]:
    """The result of a run."""
    return run({**DIGITS, **changes}, out, progress=False).data


def owned(prepared: Prepared, client: int) -> set[str]:
    return set(prepared.data.train.ids[prepared.shards[client]].tolist())


def test_nobody_of_the_real_federation_is_in_a_shadow_federation() -> None:
    real = ready(attacks=[curious(shadows=2, population=15)], validation=12)
    assert real.validation is not None
    forbidden = {*real.candidates.examples.ids.tolist(), *real.validation.ids.tolist()}
    forbidden |= set().union(*(owned(real, client) for client in range(3)))
    for one in plan_shadows(real).runs:
        shadow = one.ready()
        assert shadow.validation is not None
        there = set(shadow.data.train.ids.tolist()) | set(shadow.data.heldout.ids.tolist())
        assert not (there | set(shadow.validation.ids.tolist())) & forbidden
        assert [len(rows) for rows in shadow.shards] == [40, 40, 40]
        assert len(shadow.validation) == 12


def test_what_is_asked_and_what_is_known_of_a_shadow_federation() -> None:
    real = ready()
    for one in plan_shadows(real).runs:
        shadow = one.ready()
        ids = shadow.candidates.examples.ids
        assert ids[one.asked].tolist() == real.candidates.examples.ids.tolist()
        assert [known.target for known in one.known] == [0, 1, 2]
        for known in one.known:
            members = set(ids[known.columns[known.members]].tolist())
            others = set(ids[known.columns[~known.members]].tolist())
            assert members == owned(shadow, known.target)
            elsewhere = set().union(*(owned(shadow, k) for k in range(3) if k != known.target))
            assert len(others & elsewhere) == 30
            assert len(others - elsewhere) == 50
            assert others - elsewhere <= set(shadow.data.heldout.ids.tolist())
            assert not set(known.columns.tolist()) & set(one.asked.tolist())


def test_the_same_federation_but_for_data_and_randomness() -> None:
    defences = [{"name": "perturb", "sigma": 0.1, "clients": [1]}]
    real = ready(defences=defences, coalition={"name": "cofedmid", **NEUTRAL}, participation=0.7, dropout=0.1)
    first, second = (one.ready() for one in plan_shadows(real).runs)
    assert not torch.equal(first.task.state, real.task.state), "initial weights of its own"
    assert not torch.equal(first.task.state, second.task.state)
    for shadow in (first, second):
        e, ours = shadow.experiment, real.experiment
        for field in (
            "model",
            "training",
            "rounds",
            "participation",
            "dropout",
            "delay",
            "server_step",
            "defences",
        ):
            assert getattr(e, field) == getattr(ours, field)
        assert [one.label for one in shadow.defences] == [one.label for one in real.defences]
        assert [one.clients for one in shadow.defences] == [one.clients for one in real.defences]
        assert (shadow.data.mean, shadow.data.std) == (real.data.mean, real.data.std)
        circle, known = shadow.defences[1].circle, real.defences[1].circle
        assert circle is not None
        assert known is not None
        assert circle.secret != known.secret
        assert list(circle.volumes) == list(known.volumes)
    assert len({real.experiment.seed, first.experiment.seed, second.experiment.seed}) == 3


NEUTRAL = {"assignment": "none", "compensation": "none", "perturbation": "none"}


def test_the_evidence_is_that_of_the_federation_that_was_trained(tmp_path: Path) -> None:
    """Trained again here, by the protocol alone: its last model gives the losses that the attack was shown."""
    made(tmp_path / "out")
    ((view, _), *_) = seen(shadows=2)
    runs = planned().runs
    assert len(view.background.shadows) == 2
    for one, shadow in zip(runs, view.background.shadows, strict=True):
        own = one.ready()
        *_, last = own.federation().run(State(0, Models((own.task.state.clone(),))))
        asked = own.candidates.examples
        logits = own.task.predict(last.end, asked)
        losses = torch.nn.functional.cross_entropy(logits, asked.y, reduction="none")
        evidence = shadow.evidence
        assert evidence.rounds == (2, 4)
        np.testing.assert_allclose(evidence.global_loss(1), losses.numpy(), rtol=1e-4, atol=1e-5)
        assert evidence.labels[shadow.asked].tolist() == view.labels.tolist()
        assert [known.columns.tolist() for known in shadow.known] == [k.columns.tolist() for k in one.known]


def test_members_of_shadow_federations_look_like_members(tmp_path: Path) -> None:
    made(
        tmp_path / "out",
        rounds=30,
        record_every=30,
        model={"name": "mlp", "hidden": [64]},
        training={"epochs": 5, "batch": 10},
        attacks=[curious(shadows=1)],
    )
    ((view, _), *_) = seen(shadows=1)
    (shadow,) = view.background.shadows
    for known in shadow.known:
        losses = shadow.evidence.loss(0)[known.target, known.columns]
        assert audit(-losses[known.members], -losses[~known.members]).auc.value > 0.6
    nobodys = shadow.evidence.loss(0)[0, shadow.asked]
    assert nobodys.mean() > losses[known.members].mean()


def test_an_attack_finds_its_own_columns_in_a_shadow_federation(tmp_path: Path) -> None:
    """Another attack's population is in the shadow federations' evidence too, and between its columns."""
    made(tmp_path / "out", attacks=[curious(shadows=1), curious(shadows=1, population=200)])
    candidates = set(pq.read_table(tmp_path / "out" / "candidates.parquet")["candidate"].to_pylist())
    drawn = Trace(tmp_path / "out" / "trace").ids.tolist()
    for population, columns in ((0, [one for one in drawn if one in candidates]), (200, drawn)):
        (shadow,) = seen(shadows=1, population=population)[0][0].background.shadows
        assert isinstance(shadow.evidence, Trace)
        assert shadow.evidence.ids[shadow.asked].tolist() == columns


def test_an_attack_is_shown_as_many_as_it_wants(tmp_path: Path) -> None:
    made(tmp_path / "out", attacks=[curious(shadows=1), curious(shadows=2), curious(), curious(told=True)])
    for fields in ({"shadows": 1}, {"shadows": 2}, {}, {"told": True}):
        for view, _ in seen(**fields):
            assert len(view.background.shadows) == fields.get("shadows", 0)


@pytest.mark.parametrize(
    ("changes", "rounds", "single"),
    [
        ({"attacks": ["lira"]}, {4}, False),
        ({"attacks": ["lira"], "secure_aggregation": True}, {4}, False),
        ({"attacks": [{"name": "lira", "vantage": "server"}]}, {4}, True),
        ({"attacks": [{"name": "lira", "round": 2}]}, {2, 4}, False),
        ({"attacks": [{"name": "lira", "vantage": "server"}], "participation": 0.7}, {2, 4}, True),
        ({"attacks": [{"name": "lira", "vantage": "server"}], "dropout": 0.1}, {2, 4}, True),
        ({"attacks": ["lira"], "participation": 0.7}, {4}, False),
        ({"attacks": [curious(shadows=1)]}, {2, 4}, True),
        ({"attacks": [curious(shadows=1, vantage="client")]}, {2, 4}, False),
    ],
)
def test_no_more_is_recorded_than_the_attacks_read(changes: dict[str, Any], rounds: set[int], single: bool) -> None:
    (first, *_) = planned(**changes).runs
    e = first.ready().experiment
    assert {number for number in range(1, 5) if e.recorded(number)} == rounds
    assert e.secure_aggregation is not single
    assert e.evaluate_every == 4


def test_each_shadow_federation_records_for_those_who_see_it() -> None:
    runs = planned(attacks=[curious(shadows=1), {"name": "lira", "shadows": 3}]).runs
    recorded = [run.ready().experiment for run in runs]
    assert [e.record_every for e in recorded] == [2, 4, 4]
    assert [e.secure_aggregation for e in recorded] == [False, True, True]


def test_less_data_is_dealt_evenly_and_said(tmp_path: Path) -> None:
    changes = {"examples_per_client": None, "attacks": [curious(shadows=1)]}
    result = made(tmp_path / "out", **changes)
    ResultFile.model_validate(result)
    found = result["data"]["shadows"]
    (one,) = planned(**changes).runs
    sizes = [len(rows) for rows in one.ready().shards]
    assert (found["count"], found["cached"], found["clients"], found["pool"]) == (1, 0, 3, 489)
    assert sum(sizes) == 489 - 50
    assert max(sizes) - min(sizes) <= 1
    assert found["examples_per_client"] == pytest.approx(439 / 3)
    assert any(
        "have 146 examples each on average, this federation's 419" in said
        and "489 examples of its own" in said
        and "trains on 90 %" in said
        for said in result["warnings"]
    ), result["warnings"]


def test_enough_data_needs_no_warning(tmp_path: Path) -> None:
    result = made(tmp_path / "out", attacks=[curious(shadows=1)])
    assert result["data"]["shadows"]["examples_per_client"] == 40
    assert not any("shadow" in said for said in result["warnings"])
    assert any("Examples of its own" in said for said in result["threat_model"]["sees"])


def test_a_shadow_federation_may_have_fewer_clients() -> None:
    found = planned(shadows={"clients": 2}, targets=[0, 2])
    for one in found.runs:
        shadow = one.ready()
        assert [len(rows) for rows in shadow.shards] == [40, 40]
        assert shadow.targets == [0]
    assert found.clients == 2
    assert [one.targets for one in [run.ready() for run in planned(shadows={"clients": 2}, targets=2).runs]] == [
        [0, 1],
        [0, 1],
    ], "where it has none of the targets, it has others"
    assert [shadow.ready().targets for shadow in planned(targets=2).runs] == [[2], [2]]


def test_the_cost_is_told_beforehand(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    announced = (
        "2 shadow federations: 0 cached, 2 to train, about 2.0 times this run's own training (examples x epochs x "
        f"rounds); kept in {cache}"
    )
    assert planned().announced == announced
    run(DIGITS, tmp_path / "out", progress=True)
    assert announced in capsys.readouterr().err
    more = planned(attacks=[curious(shadows=3)], shadows={"clients": None})
    assert more.announced.startswith("3 shadow federations: 2 cached, 1 to train, about 1.0 times")
    assert planned(attacks=[curious(shadows=1)]).announced == (
        f"1 shadow federation: nothing to train, kept in {cache}"
    )
    run(DIGITS, tmp_path / "quiet", progress=False)
    assert capsys.readouterr().err == ""


def test_what_was_trained_is_not_trained_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = made(tmp_path / "first")
    before = files(cache)
    assert not list(cache.rglob("checkpoint*")), "no models are kept"

    def never(*arguments: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(shadows, "train_and_record", never)
    again = made(tmp_path / "again")
    assert files(cache) == before
    assert (first["data"]["shadows"]["cached"], again["data"]["shadows"]["cached"]) == (0, 2)
    assert deterministic(tmp_path / "again") == {**deterministic(tmp_path / "first")}


TOLD = [curious(shadows=1), {"name": "seqmia", "shadows": 1, "updates": "denoised", "epochs": 1}]
"""Their shadow federations have evidence after a countermeasure too."""

DEFENDED = {"coalition": {"name": "cofedmid", "members": [0, 1]}, "attacks": TOLD}


@pytest.fixture(scope="module")
def defended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a run whose shadow federation has evidence in two folders."""
    place = tmp_path_factory.mktemp("defended")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIEGE_CACHE", str(place / "cache"))
        made(place / "out", **DEFENDED)
    return place / "cache" / "shadows"


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def altered(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        *((place + "round_000002.safetensors", Path.unlink) for place in ("trace/", "trace/denoised/")),
        *((place + "round_000004.safetensors", torn) for place in ("trace/", "trace/denoised/")),
        *((place + "trace.json", Path.unlink) for place in ("trace/", "trace/denoised/")),
        *((place + "trace.json", torn) for place in ("trace/", "trace/denoised/")),
        *((place + "round_000002.safetensors", altered) for place in ("trace/", "trace/denoised/")),
        ("trace/denoised", shutil.rmtree),
        ("trace", shutil.rmtree),
        ("trace/round_000003.safetensors", Path.touch),
        *((DONE, harm) for harm in (Path.unlink, torn)),
        *(
            (DONE, partial(Path.write_text, data=text))
            for text in ("{}", "[]", "null", '{"files": []}', '{"files": {"a": 1}}', '{"files": {}}')
        ),
    ],
)
def test_evidence_that_is_not_whole_is_made_again(
    defended: Path, tmp_path: Path, cache: Path, file: str, harm: Callable[[Path], object]
) -> None:
    shutil.copytree(defended, cache)
    whole = evidence_in(cache)
    (folder,) = cache.iterdir()
    (one,) = planned(**DEFENDED).runs

    def state() -> tuple[bool, bool]:
        return one.finished, one.sound

    assert state() == (True, True)
    harm(folder / file)
    assert state() == (harm is altered, False), "a checksum takes reading everything"
    with Bars(False) as bars:
        assert planned(**DEFENDED).train(bars) == 1
        assert planned(**DEFENDED).train(bars) == 0
    assert evidence_in(cache) == whole
    assert one.shown("denoised").evidence.rounds == one.shown().evidence.rounds == (2, 4)


@pytest.mark.parametrize(
    "file",
    [*(f"{place}/round_000002.safetensors" for place in ("trace", "trace/denoised")), "checkpoint.safetensors"],
)
def test_an_interrupted_one_that_lost_something_begins_anew(
    defended: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    rounds = iter(range(100))

    def stopped(*arguments: Any) -> list[Any]:
        if next(rounds) == 2:
            raise KeyboardInterrupt
        return []

    with Bars(False) as bars, monkeypatch.context() as patch:
        patch.setattr(train, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            planned(**DEFENDED).train(bars)
    (folder,) = cache.iterdir()
    torn(folder / file)
    with Bars(False) as bars:
        assert planned(**DEFENDED).train(bars) == 1
    assert evidence_in(cache) == evidence_in(defended)


def test_what_cannot_be_mended_is_said(defended: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(defended, cache)
    (one,) = planned(**DEFENDED).runs
    altered(one.folder / "trace" / "trace.json")

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "unlink", refuse)
    with (
        Bars(False) as bars,
        pytest.raises(
            InputError, match=r"shadows\.cache: got .*; expected a folder that can be written to \(Read-only"
        ),
    ):
        planned(**DEFENDED).train(bars)


CHANGING: dict[str, list[Any]] = {
    "partition": [{"name": "dirichlet", "alpha": 5.0}],
    "model": [{"name": "mlp", "hidden": [9]}],
    "clients": [4],
    "examples_per_client": [39],
    "root": [20],
    "server_defences": [["norm_bounding"], [{"name": "norm_bounding", "bound": 0.5}]],
    "rounds": [6],
    "seed": [1],
    "training": [{"epochs": 1, "batch": 20}, {"epochs": 2, "batch": 20, "lr": 0.2}],
    "participation": [0.7],
    "dropout": [0.1],
    "delay": [1],
    "server_step": [0.5],
    "aggregator": [{"name": "fedavg", "weighted": False}],
    "defences": [["perturb"], [{"name": "perturb", "clients": [1]}], ["mixup"]],
    "coalition": ["cofedmid", {"name": "cofedmid", "members": [1, 2]}],
    "secure_aggregation": [True],
    "targets": [[0, 2]],
    "candidates": [{"ifl": 30, "ofl": 51}, {"members": 9, "ifl": 30, "ofl": 50}],
    "validation": [10],
    "data": [{"name": "digits", "holdout": 0.4}],
    "attacks": [
        [curious(shadows=2, population=3)],
        [curious(shadows=2), {"name": "seqmia", "shadows": 2}],
        [curious(shadows=2, vantage="client")],
    ],
    "shadows": [{"clients": 2}],
    "record_every": [1],
    "record_rounds": [[2, 4]],
    "trace": [{"groups": "total"}, {"logits": True}, {"tail": 0.1}],
}
"""Values of fields that change what a shadow federation leaves, each against `DIGITS`."""

UNBUILT: dict[str, Any] = {"engine": EngineSpec(name="flower"), "updates": "log"}
"""Fields with values that this run cannot have."""

REFUSED = {"start": "model.safetensors", "pretrain_rounds": 3}
"""Fields with which no shadow federation is trained: they begin with fresh weights."""

SAME: dict[str, list[Any]] = {
    "adversary": ["label_flip"],
    "compromised": [{"clients": [1]}],
    "backdoor": [{"trigger": {"name": "pixel", "row": 0, "column": 0}, "target": 1}],
    "cache": ["elsewhere"],
    "name": ["other"],
    "title": ["Other"],
    "description": ["Another one."],
    "out": ["elsewhere"],
    "evaluate_every": [2],
    "checkpoint_every": [1],
    "threads": [7],  # as a config's number; the threads that there are count
    "device": ["cpu"],  # likewise
    "paper": [{"claim": "c", "source": "s", "table": "t", "link": "l", "figures": []}],
    "profiles": [{"small": {"rounds": 1}}],
    "profile": [None],
    "changed": [["rounds"]],
    "attacks": [[curious(shadows=2), "loss_series"], [curious(shadows=2, cheat=True)]],
    "partition": [{"name": "iid"}],
    "aggregator": [{"name": "fedavg"}],
}
"""Values that change nothing about it."""


def test_every_field_of_a_config_is_sorted() -> None:
    """Whoever adds a field says here whether it decides the bytes of a shadow federation."""
    assert {*CHANGING, *UNBUILT, *REFUSED, *SAME} == set(Experiment.model_fields)
    assert not UNBUILT.keys() & {*CHANGING, *SAME}


@pytest.mark.parametrize("field", REFUSED)
def test_shadow_federations_begin_with_fresh_weights(field: str) -> None:
    with pytest.raises(InputError, match="begin with fresh weights; expected a run without start"):
        planned(**{field: REFUSED[field]})


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, some in CHANGING.items() for value in some])
def test_whatever_decides_the_bytes_decides_the_name(field: str, value: Any) -> None:
    if field == "secure_aggregation":  # changes nothing for those who see global models only
        before, after = (
            [one.folder.name for one in planned(attacks=[curious(shadows=1, vantage=vantage)]).runs]
            for vantage in ("client", "server")
        )
        assert not set(before) & set(after)
        return
    assert not set(names()) & set(names(**{field: value}))


@pytest.mark.parametrize("field", UNBUILT)
def test_fields_that_nothing_carries_out_yet_are_in_the_name(field: str) -> None:
    real = ready()
    changed = real.experiment.model_copy(update={field: UNBUILT[field]})
    before, after = (
        [one.folder for one in plan_shadows(one).runs] for one in (real, replace(real, experiment=changed))
    )
    assert not set(before) & set(after)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, some in SAME.items() for value in some])
def test_whatever_does_not_decide_them_does_not(field: str, value: Any) -> None:
    assert names() == names(**{field: value})


@pytest.mark.parametrize(
    ("field", "one", "other"),
    [
        ("defences", ["perturb"], [{"name": "perturb"}]),
        ("defences", [{"name": "perturb", "sigma": 1}], [{"name": "perturb", "sigma": 1.0, "clients": "all"}]),
        ("coalition", "cofedmid", [{"name": "cofedmid"}]),
        ("model", "mlp", {"name": "mlp"}),
    ],
)
def test_one_component_in_two_spellings_has_one_name(field: str, one: Any, other: Any) -> None:
    assert names(**{field: one}) == names(**{field: other})


def test_the_order_of_defences_is_in_the_name() -> None:
    first, second = {"name": "perturb", "sigma": 0.1}, {"name": "perturb", "sigma": 0.2}
    assert not set(names(defences=[first, second])) & set(names(defences=[second, first]))


def about(shadow: Prepared, **changes: Any) -> dict[str, Any]:
    """What would decide the name if these parts of a shadow federation were others."""
    return shadows._about(replace(shadow, **changes))


def test_the_name_knows_every_example_by_its_pixels_and_its_place() -> None:
    (first, *_) = planned(validation=12).runs
    shadow = first.ready()
    data, held = shadow.data, shadow.validation
    assert held is not None
    assert about(shadow) == first.about
    turned = [shadow.shards[1], shadow.shards[0], shadow.shards[2]]
    fewer = [shadow.shards[0][:-1], *shadow.shards[1:]]
    most = np.arange(len(data.heldout) - 1)
    for changes in (
        {"shards": turned},
        {"shards": fewer},
        {"data": replace(data, heldout=data.heldout.take(most))},
        {"data": replace(data, mean=tuple(value + 0.1 for value in data.mean))},
        {"data": replace(data, std=tuple(value + 0.1 for value in data.std))},
        {"validation": held.take(np.arange(11))},
        {"validation": None},
        {"fingerprint": "another"},
        {"candidates": replace(shadow.candidates, examples=shadow.candidates.examples.take(np.arange(9)))},
        {"task": SimpleNamespace(device=torch.device("meta"))},
    ):
        assert about(shadow, **changes) != first.about, changes


def test_other_pixels_under_the_same_ids_are_other_data() -> None:
    def faded(experiment: Experiment) -> Loaded:
        data = loaded(experiment).data
        x = data.train.x.clone()
        x[0] //= 2
        changed = replace(data, train=replace(data.train, x=x))
        return Loaded(changed, fingerprint(changed))

    other = plan_shadows(prepare(load(DIGITS), faded))
    assert [run.about["examples"] for run in other.runs] == [run.about["examples"] for run in planned().runs]
    assert not {run.folder.name for run in other.runs} & set(names())


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_the_name_knows_the_versions_of_what_computes(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names()
    monkeypatch.setattr(f"{library}.__version__", "0.0.1")
    assert not set(names()) & set(before)


def test_the_name_knows_threads_and_code(monkeypatch: pytest.MonkeyPatch) -> None:
    before = names()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 5)
        assert not set(names()) & set(before)
    monkeypatch.setattr(shadows, "code", lambda: "another version")
    assert not set(names()) & set(before)


def test_the_name_knows_a_users_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_here.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    for model in ("made_here:net", {"name": "made_here:net", "wide": 4}, {"name": "made_here:Net"}):
        (tmp_path / "made_here.py").write_text(OWN)
        before = names(model=model)
        (tmp_path / "made_here.py").write_text(OWN + "# changed\n")
        assert not set(names(model=model)) & set(before)


OWN = """
from torch import nn

def net(shape, classes, wide=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, wide), nn.ReLU(), nn.Linear(wide, classes))

class Net(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(64, classes)

    def forward(self, x):
        return self.head(self.flat(x))
"""


def evidence_in(cache: Path) -> dict[str, bytes]:
    return {
        path.relative_to(cache).as_posix(): path.read_bytes()
        for path in cache.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def interrupt() -> None:
    raise KeyboardInterrupt


def fill_the_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What an undisturbed run and its shadow federations leave."""
    place = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIEGE_CACHE", str(place / "cache"))
        run({**DIGITS, "name": "x"}, place / "out", progress=False)
    return deterministic(place / "out"), evidence_in(place / "cache" / "shadows")


@pytest.mark.parametrize(
    ("number", "action"),
    [(1, interrupt), (6, fill_the_disk), (11, interrupt), (12, fill_the_disk), (17, interrupt)],
)
def test_stopped_in_the_middle_of_its_shadows_a_run_goes_on_to_the_same_bytes(
    whole: Any, tmp_path: Path, cache: Path, number: int, action: Callable[[], None]
) -> None:
    """Files and folders are flushed some ten times by a shadow federation: the n-th of these flushes fails."""
    calls, sync = [-1], os.fsync

    def counted(descriptor: int) -> None:
        calls[0] += calls[0] >= 0
        if calls[0] == number:
            action()
        sync(descriptor)

    def from_now(*arguments: Any) -> Any:
        calls[0] = max(calls[0], 0)
        return train_and_record(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counted)
        patch.setattr(shadows, "train_and_record", from_now)
        with pytest.raises((KeyboardInterrupt, OSError)):
            run({**DIGITS, "name": "x"}, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "result.json").exists()
    trained = [path for path in cache.rglob("round_*") if path.parent.parent.joinpath(DONE).exists()]
    before = {path: path.stat().st_mtime_ns for path in trained}
    run({**DIGITS, "name": "x"}, tmp_path / "out", resume=True, progress=False)
    assert (deterministic(tmp_path / "out"), evidence_in(cache)) == whole
    assert {path: path.stat().st_mtime_ns for path in trained} == before, "what was finished stays"


@pytest.mark.slow
def test_another_process_is_waited_for(tmp_path: Path, cache: Path) -> None:
    """Two processes that want the same: each shadow federation is trained by one of them."""
    script = (
        "import json, sys\n"
        "from fedsiege.experiment import run\n"
        "result = run(json.loads(sys.argv[1]), sys.argv[2], progress=False)\n"
        "print(result.data['data']['shadows']['cached'])\n"
    )
    place = [str(Path(fedsiege.__file__).parents[1]), str(Path(__file__).parent)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(place), "OMP_NUM_THREADS": "1"}
    config = json.dumps({**DIGITS, "attacks": [curious(shadows=4)]})
    both = [
        subprocess.Popen(
            [sys.executable, "-c", script, config, str(tmp_path / name)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    cached = [int(process.communicate(timeout=120)[0]) for process in both]
    assert sum(cached) == 4
    assert len(list(cache.glob(f"*/{DONE}"))) == 4
    assert (tmp_path / "one/scores.parquet").read_bytes() == (tmp_path / "two/scores.parquet").read_bytes()


def test_a_folder_that_is_held_is_looked_at_again_when_it_is_free(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had it finished it meanwhile: nothing is left to train."""
    found = planned(attacks=[curious(shadows=1)])
    (one,) = found.runs
    one.folder.mkdir(parents=True)
    lock = (one.folder / ".lock").open("a+")
    fcntl.flock(lock, fcntl.LOCK_EX)

    def theirs() -> None:
        time.sleep(0.2)
        shadows._train(one, Bars(False))
        lock.close()

    other = threading.Thread(target=theirs)
    other.start()
    assert found.train(Bars(False)) == 0
    other.join()
    assert one.finished


def test_cells_of_a_sweep_train_the_same_shadows_once(tmp_path: Path, cache: Path) -> None:
    grid = {
        "title": "Shadows",
        "experiment": {**DIGITS, "attacks": ["loss_series"]},
        "axes": {
            "attacks": {"one": [{"name": "lira", "shadows": 2}], "two": [{"name": "lira", "shadows": 3}]},
            "evaluate_every": [1, 2],
        },
    }
    loaded, where = Grid.load(grid)
    for place, cell in enumerate(loaded.cells_of(where)):
        work = Work(place, tmp_path / "out" / cell.folder, cell.experiment, ())
        assert carry_out(work, tmp_path / LOG, Shelf()).error is None
    results = [ResultFile.model_validate_json(path.read_text()) for path in tmp_path.rglob("result.json")]
    found = [one.data.shadows for one in results]
    assert len(found) == 4
    assert sum(one.count - one.cached for one in found if one is not None) == 3
    assert len(list(cache.iterdir())) == 3


def test_a_shadow_federation_that_diverges_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def diverge(*arguments: Any) -> None:
        raise TrainingDivergedError("round 1: too large")

    monkeypatch.setattr(shadows, "train_and_record", diverge)
    with pytest.raises(TrainingDivergedError, match=r"shadow federation 1: round 1: too large"):
        made(tmp_path / "out")


@pytest.mark.parametrize("place", ["file", "file/below", "closed", "/proc/self", "/proc/self/below"])
def test_a_cache_that_cannot_be_written_to_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "closed").mkdir(mode=0o500)
    if place == "closed" and os.access(tmp_path / place, os.W_OK):
        pytest.skip("root may write anywhere")
    if place.startswith("/proc") and not Path("/proc/self").is_dir():
        pytest.skip("no such folder here")
    with pytest.raises(
        InputError, match=rf"shadows\.cache: got .*{place}; expected a folder that can be written to"
    ):
        made(tmp_path / "out", shadows={"cache": str(tmp_path / place)})
    assert not (tmp_path / "out").exists()


def test_a_full_disk_is_no_fault_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: fill_the_disk())
    with pytest.raises(OSError, match="No space left"):
        planned()


def test_a_whole_cache_is_not_written_to(cache: Path, defended: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(defended, cache)
    monkeypatch.setattr("tempfile.TemporaryFile", lambda dir: fill_the_disk())
    (one,) = planned(**DEFENDED).runs
    assert one.sound


def test_where_the_cache_is(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_of(load(DIGITS).shadows.cache, "shadows") == cache
    assert cache_of("~/here", "shadows") == Path.home() / "here"
    monkeypatch.delenv("FEDSIEGE_CACHE")
    assert cache_of(None, "shadows") == Path.home() / ".cache" / "fedsiege" / "shadows"


def test_a_client_that_took_part_in_too_few_rounds_teaches_nothing(tmp_path: Path) -> None:
    """With a third of the clients a round, some shadow clients are in no recorded round."""
    made(tmp_path / "out", clients=6, participation=0.34, attacks=[curious(shadows=2)], rounds=4, record_every=2)
    ((view, _), *_) = seen(shadows=2)
    for one, shadow in zip(planned_partial().runs, view.background.shadows, strict=True):
        present = np.array([shadow.evidence.present(t) for t in range(2)]).any(axis=0)
        assert [known.target for known in shadow.known] == np.flatnonzero(present).tolist()
        assert len(one.known) == 6
        assert present.sum() < 6


def planned_partial() -> Shadows:
    return planned(clients=6, participation=0.34, attacks=[curious(shadows=2)])


OVERFITTED = {
    "model": {"name": "mlp", "hidden": [64]},
    "clients": 4,
    "examples_per_client": 60,
    "rounds": 12,
    "training": {"epochs": 5, "batch": 15, "lr": 0.1},
    "record_every": 4,
    "candidates": {"ifl": 60, "ofl": 250},
}


def test_lira_rmia_and_seqmia_find_members_of_an_overfitted_federation(tmp_path: Path) -> None:
    attacks = [
        {"name": "lira", "shadows": 4},
        {"name": "rmia", "shadows": 4, "population": 150},
        {"name": "seqmia", "epochs": 5, "sequences": 600},
    ]
    result = made(tmp_path / "out", **OVERFITTED, attacks=attacks)
    found = {
        row["name"]: row["auc"]["low"]
        for row in result["attacks"]
        if (row["target"], row["against"]) == ("pooled", "ofl")
    }
    assert len(found) == 3
    assert min(found.values()) > 0.51, found  # the lower ends of the AUCs' intervals
    assert all(component["acted"] for component in result["components"])
    assert {line["attack"] for line in json.loads((tmp_path / "out/curves.json").read_text())["rounds"]}


@pytest.mark.parametrize("secure", [False, True])
def test_global_vantages_need_no_single_updates(tmp_path: Path, secure: bool) -> None:
    attacks = ["lira", {"name": "seqmia", "vantage": "client", "epochs": 1}]
    made(tmp_path / "out", attacks=attacks, secure_aggregation=secure)
    for one in planned(attacks=attacks, secure_aggregation=secure).runs:
        assert one.finished
        shown = one.shown()
        assert isinstance(shown.evidence, Trace)
        with pytest.raises(InputError, match="the trace has no loss"):
            shown.evidence.loss(0)


def test_a_null_test_runs_with_every_new_attack(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(4600, 6)).astype(np.float32), rng.integers(0, 2, 4600)
    np.savez(tmp_path / "made.npz", x=x[:2300], y=y[:2300], x_test=x[2300:], y_test=y[2300:])
    result = made(
        tmp_path / "out",
        data=str(tmp_path / "made.npz"),
        examples_per_client=400,
        candidates={"ifl": 600, "ofl": 1500, "null": True},
        targets=[0],
        attacks=[
            {"name": "lira", "shadows": 2},
            {"name": "rmia", "shadows": 2, "population": 100},
            {"name": "seqmia", "epochs": 1, "sequences": 200},
            {"name": "seqmia", "trained_on": "labelled", "epochs": 1, "sequences": 200},
            "fta_c",
            "fta_l",
        ],
    )
    verdicts = {row["attack"]: row for row in result["null_test"] if row["against"] == "all"}
    assert len(verdicts) == 6
    assert all(row["passed"] for row in verdicts.values()), verdicts
    assert {row["nulls"] for row in verdicts.values()} == {20}
