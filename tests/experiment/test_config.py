"""How a file, a profile and overrides become one experiment, and what is said of those that do not."""

import copy
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment, Published, load
from fedsiege.experiment.folder import dump
from fedsiege.metrics import FPRS
from fedsiege.shipped import names


def file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_an_empty_file_is_the_defaults_under_the_files_name(tmp_path: Path) -> None:
    assert load(file(tmp_path, "")) == Experiment(name="mine")
    assert load(file(tmp_path, "name: other")).name == "other"
    assert load({}) == Experiment()


@pytest.mark.parametrize("name", names())
def test_a_written_config_is_read_as_the_same_experiment(name: str, tmp_path: Path) -> None:
    experiment = load(name)
    assert load(file(tmp_path, dump(experiment))) == experiment


def test_every_kind_of_value_comes_back_from_the_written_config(tmp_path: Path) -> None:
    experiment = load(
        {
            "name": "null",
            "title": "1e5",
            "description": "a: b # c",
            "targets": [3, 1],
            "training": {"lr": 1e-5},
            "candidates": {"null": True, "members": 4},
            "attacks": ["grad_norm", {"name": "fedmia_ii", "sigma_filter": None}],
            "profiles": {"small": {"candidates": {"null": True}}},
        }
    )
    assert load(file(tmp_path, dump(experiment))) == experiment


def test_null_is_a_key_however_it_is_written(tmp_path: Path) -> None:
    """YAML reads the bare word as no key at all."""
    for text in (
        "candidates: {null: true}",
        "candidates:\n  null: true",
        'candidates: {"null": true}',
        "candidates: {~: true}",
    ):
        assert load(file(tmp_path, text)).candidates.null
    for override in ("candidates={null: true}", "candidates.null=true", 'candidates={"null": true}'):
        assert load({}, [override]).candidates.null
    profiled = load(file(tmp_path, "profiles: {honest: {candidates: {null: true, ifl: 7}}}"), ["profile=honest"])
    assert (profiled.candidates.null, profiled.candidates.ifl, profiled.candidates.ofl) == (True, 7, 500)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("rounds=7", "rounds", 7),
        ("training.lr=1e-3", "training.lr", 0.001),
        ("training.momentum=0", "training.momentum", 0.0),
        ("targets=[1, 2]", "targets", [1, 2]),
        ("targets=all", "targets", "all"),
        ("examples_per_client=null", "examples_per_client", None),
        ("title=a = b", "title", "a = b"),
        ("data=/some/folder", "data", "/some/folder"),
        ("model.hidden=[64]", "model", {"name": "mlp", "hidden": [64]}),
        ("model={name: cnn}", "model", {"name": "cnn"}),
        ("attacks.7.combine=sum_z", "attacks.7", {"name": "fedmia_ii", "combine": "sum_z"}),
        ("attacks=[fedmia_i]", "attacks", ["fedmia_i"]),
        (" trace.groups =total", "trace.groups", "total"),
        ("defences=[{name: perturb, sigma: 0.1}]", "defences", [{"name": "perturb", "sigma": 0.1}]),
    ],
)
def test_overrides(override: str, field: str, value: Any) -> None:
    found: Any = load({}, [override]).model_dump()
    for part in field.split("."):
        found = found[int(part)] if isinstance(found, list) else found[part]
    assert found == value


def test_overrides_come_in_order_and_change_nothing_of_the_callers() -> None:
    raw = {"model": {"name": "mlp", "hidden": [4]}, "attacks": ["grad_norm", "fedmia_i"], "training": {"lr": 1.0}}
    before = copy.deepcopy(raw)
    overrides = [
        "model.hidden=[8]",
        "attacks.1.combine=sum_z",
        "training.lr=2",
        "training.lr=3",
        "attacks.0=grad_diff",
    ]
    found = load(raw, overrides)
    assert found.model == {"name": "mlp", "hidden": [8]}
    assert found.attacks == ["grad_diff", {"name": "fedmia_i", "combine": "sum_z"}]
    assert found.training.lr == 3
    assert raw == before
    assert Experiment().attacks[0] == "blackbox_loss"


PROFILES = """
rounds: 100
model: {name: mlp, hidden: [256]}
data: digits
training: {lr: 0.5, epochs: 3}
attacks: [fedmia_i, fedmia_ii]
profiles:
  small: {rounds: 10, training: {epochs: 1}, model: {hidden: [8]}, data: {holdout: 0.5}, attacks: [grad_norm]}
  other: {model: {name: cnn}}
"""


def test_a_profile_merges_parts_and_replaces_components_and_lists(tmp_path: Path) -> None:
    path = file(tmp_path, PROFILES)
    small = load(path, ["training.lr=0.25", "profile=small"])
    assert (small.rounds, small.profile) == (10, "small")
    assert (small.training.epochs, small.training.lr) == (1, 0.25), "an override goes before the profile"
    assert small.model == {"name": "mlp", "hidden": [8]}
    assert small.data == {"name": "digits", "holdout": 0.5}
    assert small.attacks == ["grad_norm"]
    assert load(path, ["profile=other"]).model == {"name": "cnn"}
    assert load(path).rounds == 100
    assert load(file(tmp_path, PROFILES + "profile: small")).rounds == 10
    assert load(file(tmp_path, PROFILES + "profile: small"), ["profile=null"]).rounds == 100


def test_which_rounds_are_recorded() -> None:
    experiment = load({"rounds": 7, "record_every": 3})
    assert [n for n in range(1, 8) if experiment.recorded(n)] == [3, 6, 7]
    assert [n for n in range(1, 4) if load({"rounds": 3, "record_every": 10}).recorded(n)] == [3]


def test_published_metrics_are_those_that_are_measured() -> None:
    metrics = set(get_args(Published.model_fields["metric"].annotation))
    assert metrics == {"auc", *(f"tpr@{fpr}" for fpr in FPRS)}


PAPER = {"claim": "c", "source": "s", "table": "t", "link": "l"}


@pytest.mark.parametrize(
    ("raw", "overrides", "message"),
    [
        ({"clientss": 3}, [], "config: clientss: unknown field (did you mean 'clients'?)"),
        (
            {"training": {"lrr": 1}},
            [],
            "config: training.lrr: unknown field (did you mean 'lr'?); known: algorithm, augment, batch",
        ),
        ({"candidates": {"oflx": 1}}, [], "config: candidates.oflx: unknown field (did you mean 'ofl'?)"),
        ({"trace": {"group": "total"}}, [], "config: trace.group: unknown field (did you mean 'groups'?)"),
        ({"paper": {**PAPER, "figures": [], "year": 3}}, [], "config: paper.year: unknown field"),
        ({"clients": "ten"}, [], "config: clients: got 'ten'; Input should be a valid integer"),
        ({"clients": 0}, [], "config: clients: got 0; Input should be greater than or equal to 1"),
        ({"rounds": 2.5}, [], "config: rounds: got 2.5; Input should be a valid integer"),
        ({"training": {"lr": "fast"}}, [], "config: training.lr: got 'fast'; Input should be a valid number"),
        ({"training": 3}, [], "config: training: got 3; expected a mapping of fields to values"),
        ({"candidates": [1]}, [], "config: candidates: got [1]; expected a mapping of fields to values"),
        (
            {"candidates": {"ifl": -1}},
            [],
            "config: candidates.ifl: got -1; Input should be greater than or equal to 0",
        ),
        ({"server_step": float("inf")}, [], "config: server_step: got inf; Input should be a finite number"),
        ({"training": {"lr": float("nan")}}, [], "config: training.lr: got nan; Input should be a finite number"),
        ({"participation": 1.5}, [], "config: participation: got 1.5; Input should be less than or equal to 1"),
        (
            {"targets": "some"},
            [],
            "config: targets: got 'some'; expected all, a client's number or a list of numbers",
        ),
        ({"targets": [0, "x"]}, [], "config: targets: got [0, 'x']; expected all, a client's number"),
        ({"targets": True}, [], "config: targets: got True; expected all, a client's number"),
        ({"attacks": "fedmia_ii"}, [], "config: attacks: got 'fedmia_ii'; Input should be a valid list"),
        ({"attacks": ["fedmia_ii", 3]}, [], "config: attacks.1: got 3; expected a name or {name: ..., field: ...}"),
        (
            {"model": {"hidden": [3]}},
            [],
            "config: model: got {'hidden': [3]}; expected a name or {name: ..., field: ...}",
        ),
        ({"coalition": 4}, [], "config: coalition: got 4; expected a name or {name: ..., field: ...}"),
        ({"engine": "ray"}, [], "config: engine.name: got 'ray'; Input should be 'local' or 'flower'"),
        ({"device": "tpu"}, [], "config: device: got 'tpu'"),
        ({"paper": PAPER}, [], "config: paper.figures: missing; expected a value"),
        (
            {"paper": {**PAPER, "figures": [{"attack": "a", "metric": "tpr@0.02", "value": 1}]}},
            [],
            "config: paper.figures.0.metric: got 'tpr@0.02'; Input should be 'auc', 'tpr@0.1'",
        ),
        ({}, ["rounds=x"], "config (or --set): rounds: got 'x'; Input should be a valid integer"),
        ({"clientss": 3}, ["rounds=2"], "config: clientss: unknown field"),
        ({"training": {"lrr": 3}}, ["training.lr=2"], "config: training.lrr: unknown field"),
        ({}, ["rounds"], "--set rounds: expected field=value, as in training.lr=0.05"),
        ({}, ["=3"], "--set =3: expected field=value"),
        ({}, ["rounds=[1"], "--set rounds=[1: '[1' is not a YAML value"),
        ({}, ["attacks.9.combine=sum_z"], "--set attacks.9.combine: '9' is not a position in a list of 9"),
        ({}, ["attacks.x=fedmia_i"], "--set attacks.x: 'x' is not a position in a list of 9"),
        ({"rounds": 3}, ["rounds.x=3"], "--set rounds.x: rounds is 3 and has no fields"),
        ({}, ["profile=small"], "config: profile: unknown 'small'; known: none"),
        (
            {"profiles": {"small": {}}},
            ["profile=smal"],
            "profile: unknown 'smal' (did you mean 'small'?); known: small",
        ),
        ({"profiles": {"small": {}}}, ["profile=[1]"], "profile: unknown [1]; known: small"),
        (
            {"profiles": {"small": 3}},
            ["profile=small"],
            "config: profiles.small: got 3; expected a mapping of fields",
        ),
        ({"profiles": 3}, ["profile=small"], "config: profile: unknown 'small'; known: none"),
        (
            {"profiles": {"small": {"roundss": 3}}},
            ["profile=small"],
            "config: roundss: unknown field (did you mean 'rounds'?)",
        ),
    ],
)
def test_what_is_wrong_is_said_with_field_value_and_expectation(
    raw: Any, overrides: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load(raw, overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"rounds: [1\nseed: 2", r"mine.yaml: not YAML in line 2: "),
        (b"rounds: \x00", r"mine.yaml: not YAML"),
        (b"\xff\xfe\x00", r"mine.yaml: not YAML: not text"),
        (b"- 1\n- 2", r"mine.yaml: got a list; expected a mapping of fields to values"),
        (b"just words", r"mine.yaml: got a str; expected a mapping"),
        (b"!!python/object/apply:os.system ['true']", r"mine.yaml: not YAML in line 1"),
        (b"seed: one", r"mine.yaml: seed: got 'one'"),
        (b"seed: 1\nrounds: 5\nseed: 2", r"mine.yaml: not YAML in line 3: 'seed' is there twice"),
        (b"training:\n  lr: 1\n  lr: 2", r"mine.yaml: not YAML in line 3: 'lr' is there twice"),
    ],
)
def test_files_that_are_no_config(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load(path)


def test_the_written_config_is_plain_yaml() -> None:
    assert yaml.safe_load(dump(load("quickstart")))["candidates"]["null"] is False


def test_what_a_profile_and_overrides_changed_is_noted() -> None:
    config = {"rounds": 9, "profiles": {"small": {"clients": 4, "training": {"lr": 0.2}}}}
    assert load(config).changed == []
    assert sorted(load(config, ["profile=small"]).changed) == ["clients", "training"]
    assert load(config, ["rounds=9", "device=cpu", "out=here"]).changed == []
    assert load(config, ["candidates.null=true"]).changed == ["candidates"]
