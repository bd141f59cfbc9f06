"""A run under siege: an attack planted, measured and rejected, refused where it cannot be, and gone on with."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedsiege.cli import execute
from fedsiege.errors import InputError, ThreatModelError
from fedsiege.experiment.collect import figures
from fedsiege.experiment.config import load
from fedsiege.experiment.integrity import Watch
from fedsiege.experiment.prepare import prepare
from fedsiege.experiment.run import run
from fedsiege.experiment.siege import plot_of
from fedsiege.federation.state import Models, State

STAMP = {"name": "pixel", "row": 0, "column": 0}
SIEGE: dict[str, Any] = {
    "data": "digits",
    "model": {"name": "mlp", "hidden": [32]},
    "clients": 10,
    "participation": 0.5,
    "rounds": 6,
    "training": {"epochs": 2, "batch": 32, "lr": 0.05, "momentum": 0.9},
    "pretrain_rounds": 6,
    "aggregator": {"name": "fedavg", "weighted": False},
    "attacks": [],
    "backdoor": {"trigger": STAMP, "target": 2},
    "adversary": {"name": "model_replacement", "poisoned": 8},
    "compromised": {"clients": [3], "rounds": [2]},
    "checkpoint_every": 2,
    "threads": 1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIEGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def result(folder: Path, **changes: Any) -> dict[str, Any]:
    """result.json of the siege with changes."""
    run({**SIEGE, **changes}, folder, progress=False)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_one_round_of_replacement_plants_the_backdoor_and_data_poisoning_does_not(tmp_path: Path) -> None:
    replaced = result(tmp_path / "a")["poisoning"]
    assert replaced["success"]["before"]["value"] < 0.2
    assert replaced["success"]["attacked"]["value"] > 0.9
    assert replaced["main"]["attacked"]["value"] > replaced["main"]["before"]["value"] - 0.1
    assert replaced["detection"]["attackers"]["answers"] == 1
    assert replaced["detection"]["honest"]["answers"] == 6 * 5 - 1
    (sent,) = replaced["attacks"]
    assert (sent["round"], sent["norm_rank"], sent["of"]) == (2, 1, 5)
    assert sent["norm_ratio"] > 2
    poisoned = result(tmp_path / "b", adversary={"name": "data_poisoning", "poisoned": 8})["poisoning"]
    assert poisoned["success"]["attacked"]["value"] < 0.3
    assert poisoned["backdoor"] == replaced["backdoor"]


def test_both_accuracies_are_there_for_every_round_and_before_the_first(tmp_path: Path) -> None:
    history = result(tmp_path / "a")["task"]["history"]
    assert [one["round"] for one in history] == list(range(7))
    assert all(0 <= one[key] <= 1 for one in history for key in ("accuracy", "backdoor", "mistaken"))
    assert [one.get("attackers") for one in history] == [None, 0, 1, 0, 0, 0, 0]


def test_around_an_attack_the_model_is_measured_however_rarely_else(tmp_path: Path) -> None:
    history = result(tmp_path / "a", evaluate_every=100)["task"]["history"]
    assert [one["round"] for one in history] == [0, 1, 2, 3, 6]


def test_a_run_without_membership_attacks_leaves_no_evidence(tmp_path: Path) -> None:
    found = result(tmp_path / "a")
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert {"result.json", "report.html", "checkpoint.safetensors"} <= left
    assert not {"trace", "scores.parquet", "candidates.parquet"} & left
    assert found["attacks"] == []
    assert "plays client 3" in found["threat_model"]["adversary"]


def test_an_attack_and_a_membership_audit_go_together(tmp_path: Path) -> None:
    both = result(tmp_path / "a", attacks=["loss_series"], record_every=2)
    alone = result(tmp_path / "b")
    assert both["poisoning"] == alone["poisoning"]
    assert {row["attack"] for row in both["attacks"]} == {"loss_series"}
    assert "plays client 3" in both["threat_model"]["adversary"]


TURNED = """
import torch
from fedsiege.attacks.poisoning.base import Poisoner
from fedsiege.registry import register

@register("turned")
class Turned(Poisoner):
    {title}

    def poison_updates(self, scene):
        {counted}
        return torch.stack([-scene.honest(at) for at in range(len(scene.clients))])
"""


@pytest.fixture
def turned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Writes a user's own poisoner `turned_by_me:Turned`."""

    def write(title: str, counted: str) -> None:
        (tmp_path / "turned_by_me.py").write_text(TURNED.format(title=title, counted=counted))
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "turned_by_me", raising=False)

    return write


@pytest.mark.parametrize(
    ("title", "given"), [("pass", "no title"), ("title = 3", "the title 3"), ("title = ' '", "the title ' '")]
)
def test_a_poisoner_without_a_title_is_refused_before_the_first_round(
    title: str, given: str, turned: Callable[[str, str], None], tmp_path: Path
) -> None:
    turned(title, "pass")
    expected = f"adversary: the class Turned has {given}; expected a class variable title"
    with pytest.raises(InputError, match=expected):
        run({**SIEGE, "adversary": "turned_by_me:Turned"}, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("counted", "unproven", "acted"),
    [
        ("pass", "poisoned_updates", False),
        ("scene.count('turns')", "poisoned_updates", False),
        ("scene.count('poisoned_updates', 0)", None, False),
        ("scene.count('poisoned_updates')", None, True),
    ],
)
def test_of_a_poisoner_that_counts_nothing_it_is_not_known_whether_it_acted(
    counted: str, unproven: str | None, acted: bool, turned: Callable[[str, str], None], tmp_path: Path
) -> None:
    turned("title = 'Turned'", counted)
    small = {"adversary": "turned_by_me:Turned", "backdoor": None, "rounds": 2, "pretrain_rounds": 0}
    found = result(tmp_path / "run", **small)
    (row,) = [one for one in found["components"] if one["kind"] == "poisoning"]
    assert (row["acted"], row.get("unproven")) == (acted, unproven)
    assert figures(tmp_path / "run")["unproven"] == ({} if unproven is None else {"turned": unproven})


@pytest.mark.parametrize("name", ["sign_flip", "turned_by_me:Turned"])
def test_an_attack_that_never_came_to_act_is_known_not_to_have(
    name: str, turned: Callable[[str, str], None], tmp_path: Path
) -> None:
    """Client 3 is invited to no round of attack, so that there is nothing that it could count."""
    turned("title = 'Turned'", "pass")
    places = {"clients": [3], "rounds": [2], "invited": False}
    changes = {"adversary": name, "backdoor": None, "rounds": 2, "participation": 0.1, "seed": 1}
    found = result(tmp_path / "run", **changes, compromised=places, pretrain_rounds=0)
    (row,) = [one for one in found["components"] if one["kind"] == "poisoning"]
    assert (row["acted"], row["counters"], "unproven" in row) == (False, {"attackers": 0}, False)


def test_a_rule_that_rejects_the_attacker_says_so(tmp_path: Path) -> None:
    adversary = {"name": "model_replacement", "poisoned": 8, "gamma": 5}
    found = result(tmp_path / "a", adversary=adversary, aggregator={"name": "multi_krum", "f": 1})["poisoning"]
    assert found["detection"]["attackers"]["rejected"]["value"] == 1
    assert found["detection"]["honest"]["rejected"]["value"] == pytest.approx(5 / 29, abs=0.01)
    assert found["success"]["attacked"]["value"] < 0.3


def test_clipping_is_reported_as_scale_and_acts_before_the_rule(tmp_path: Path) -> None:
    found = result(tmp_path / "a", server_defences=[{"name": "norm_bounding", "bound": 0.05}], adversary=None)
    side = found["poisoning"]["detection"]["honest"]
    assert side["rejected"]["value"] == 0
    assert side["scale"] < 0.9
    acted = {one["label"]: one["acted"] for one in found["components"]}
    assert acted["norm_bounding(bound=0.05)"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backdoor": {"trigger": STAMP, "target": 10}}, "backdoor.target: got 10; expected a class from 0 to 9"),
        ({"backdoor": {"trigger": STAMP, "target": "bird"}}, "backdoor.target: got 'bird'; expected a class"),
        ({"backdoor": {"trigger": STAMP}}, "backdoor.target: missing; expected a class from 0 to 9"),
        ({"backdoor": None}, "adversary: model_replacement plants a backdoor, and the config names none"),
        ({"aggregator": "median"}, "adversary.gamma: got auto; aggregator median has no step here"),
        (
            {"adversary": {"name": "data_poisoning", "poisoned": 32}},
            "adversary.poisoned: got 32 of every 32 examples; expected fewer than 32",
        ),
        (
            {
                "adversary": {"name": "data_poisoning", "poisoned": 25},
                "training": {"algorithm": "fedsgd"},
                "examples_per_client": 25,
            },
            "adversary.poisoned: got 25 of a step that takes all of an attacker's 25 examples; expected fewer",
        ),
        (
            {"compromised": {"clients": [0, 1, 2, 3, 4, 5], "rounds": [2]}},
            "compromised: got 6 attackers in a round and invited: true; a round has 5 places (participation 0.5 of "
            "10 clients); expected 5 attackers at most, invited: false, or turns: one_by_one",
        ),
        (
            {"aggregator": {"name": "krum", "f": 2}, "adversary": None},
            "aggregator.f: got 2; krum needs n",
        ),
        ({"aggregator": "fltrust", "adversary": None}, ": root: got 0; fltrust needs examples of the server's own"),
        (
            {"server_defences": ["accuracy_audit"], "adversary": None},
            ": root: got 0; accuracy_audit needs examples of the server's own",
        ),
        ({"compromised": {"clients": [10]}}, "compromised.clients: got client 10; expected clients from 0 to 9"),
        ({"compromised": {"clients": [1], "share": 0.1}}, "compromised: got both clients and share"),
        (
            {"compromised": {"rounds": [7]}},
            "compromised.rounds: got [7]; expected at least one of the federation's",
        ),
        ({"compromised": {"first": 7, "every": 2}}, "compromised.first: got 7; expected one of the federation's"),
        (
            {"compromised": {"first": 3, "last": 2}},
            "compromised.last: got 2; expected null, or no round before `fi",
        ),
        ({"aggregator": "norm_bounding"}, "aggregator: norm_bounding is a server-side defence"),
        ({"server_defences": ["median"]}, "server_defences.0: median is an aggregation rule"),
        ({"server_defences": ["weak_dp", "weak_dp"]}, "server_defences.1: weak_dp is listed twice"),
        ({"adversary": "model_replacment"}, "adversary: unknown poisoning attack 'model_replacment' (did you mean"),
        ({"start": "nowhere.safetensors"}, "start: nowhere.safetensors is not there"),
    ],
)
def test_what_cannot_be_is_refused_before_the_first_round(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "siege.yaml"
    path.write_text(yaml.safe_dump({**SIEGE, "pretrain_rounds": 0, **changes}))
    assert execute(["run", str(path), "--out", str(tmp_path / "out"), "-q"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert str(path) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("rule", "defences", "step"),
    [("fedavg", ["norm_bounding", "nnm"], 0.5), ("fedavg", [], 0.5), ("median", [], None)],
)
def test_attackers_know_the_step_of_a_mean_and_not_what_stands_before_it(
    rule: str, defences: list[str], step: float | None
) -> None:
    attack = {"name": "model_replacement", "poisoned": 31, "gamma": "auto" if step else 2.0}
    changes = {"aggregator": rule, "server_defences": defences, "server_step": 0.5, "adversary": attack}
    ready = prepare(load({**SIEGE, **changes}))
    assert ready.campaign is not None
    plot = plot_of(ready, ready.campaign)
    assert (plot.step, plot.training.batch) == (step, 32)
    assert list(plot.sizes) == [len(rows) for rows in ready.shards]
    assert sum(plot.sizes) == len(ready.data.train)


def test_secure_aggregation_hides_what_rules_and_defences_read() -> None:
    for field, value in (("aggregator", "median"), ("server_defences", ["norm_bounding"])):
        with pytest.raises(ThreatModelError, match="single clients' updates, which secure_aggregation: true hides"):
            prepare(load({**SIEGE, "adversary": None, "secure_aggregation": True, field: value}))


def test_what_the_server_owns_is_nobodys_and_not_tested_on() -> None:
    with_root, without = (prepare(load({**SIEGE, "adversary": None, "root": root})) for root in (40, 0))
    assert with_root.root is not None
    assert len(with_root.root) == 40
    assert not set(with_root.root.ids) & {*with_root.data.heldout.ids, *with_root.data.train.ids}
    assert len(with_root.data.heldout) == len(without.data.heldout) - 40


@pytest.mark.parametrize("changes", [{"turns": "one_by_one"}, {"invited": False}])
def test_more_attackers_than_places_are_none_too_many_where_they_take_turns_or_are_drawn(
    changes: dict[str, Any],
) -> None:
    ready = prepare(load({**SIEGE, "compromised": {"clients": [5, 4, 3, 2, 1, 0], **changes}}))
    assert {len(ready.invited(number)) for number in range(1, 7)} == {5}
    full = {"clients": [5, 4, 3, 2, 1], "rounds": [2]}
    assert prepare(load({**SIEGE, "compromised": full})).invited(2) == [1, 2, 3, 4, 5]


def test_attackers_take_their_turns_in_the_order_of_the_list(tmp_path: Path) -> None:
    who = {"clients": [7, 3, 5], "rounds": [1, 2, 3, 4], "turns": "one_by_one"}
    adversary = {"name": "dba", "poisoned": 8, "epochs": 1}
    trigger = {"name": "distributed", "length": 2, "gap": 1}
    changes = {"compromised": who, "adversary": adversary, "backdoor": {"trigger": trigger, "target": 2}}
    ready = prepare(load({**SIEGE, **changes, "rounds": 4, "pretrain_rounds": 0}))
    done = ready.federation().run(State(0, Models((ready.task.state.clone(),))))
    assert [one.attackers for one in done] == [(7,), (3,), (5,), (7,)]
    found = result(tmp_path / "a", **changes, rounds=4)
    assert found["poisoning"]["adversary"]["compromised"] == [7, 3, 5]
    assert "clients 7, 3, 5" in found["threat_model"]["adversary"]


def test_attackers_of_a_round_are_invited_in_the_place_of_others() -> None:
    ready = prepare(load(SIEGE))
    plain = prepare(load({**SIEGE, "compromised": {"clients": [3], "rounds": [2], "invited": False}}))
    for number in range(1, 7):
        now, before = ready.invited(number), plain.invited(number)
        assert len(now) == len(before) == 5
        assert (number == 2) <= (3 in now)
        assert len(set(now) - set(before)) <= (number == 2)


class TestStart:
    """The model that round 1 begins with."""

    def test_pretraining_is_done_once_and_found_again(self, tmp_path: Path, cache: Path) -> None:
        first = result(tmp_path / "a")
        kept = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
        assert len(kept) == 1
        assert result(tmp_path / "b", aggregator="fedavg", rounds=3)["task"]["history"][0] == {
            **first["task"]["history"][0]
        }
        assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == kept

    @pytest.mark.parametrize(
        "changes",
        [{"seed": 1}, {"pretrain_rounds": 5}, {"clients": 9}, {"model": "mlp"}, {"training": {"lr": 0.1}}],
    )
    def test_what_decides_it_is_in_its_name(self, changes: dict[str, Any], tmp_path: Path, cache: Path) -> None:
        result(tmp_path / "a", rounds=2)
        result(tmp_path / "b", **{"rounds": 2, **changes})
        assert len(list(cache.rglob("*.safetensors"))) == 2

    def test_it_is_honest_whatever_the_run_does(self, tmp_path: Path, cache: Path) -> None:
        result(tmp_path / "a", rounds=2)
        adversary = {"name": "data_poisoning", "poisoned": 8}
        result(tmp_path / "b", rounds=2, adversary=adversary, aggregator="median", server_defences=["weak_dp"])
        assert len(list(cache.rglob("*.safetensors"))) == 1

    def test_an_interrupted_one_goes_on_to_the_same_bytes(
        self, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = result(tmp_path / "a", rounds=2)
        (model,) = cache.rglob("model.safetensors")
        content = model.read_bytes()
        model.unlink()
        from fedsiege.federation import checkpoint

        saved, save = [0], checkpoint.save

        def dying(path: Path, what: Any) -> None:
            save(path, what)
            saved[0] += path.name == "partial.safetensors"
            if saved[0] == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(checkpoint, "save", dying)
        with pytest.raises(KeyboardInterrupt):
            run({**SIEGE, "rounds": 2}, tmp_path / "b", progress=False)
        assert not model.is_file()
        monkeypatch.setattr(checkpoint, "save", save)
        run({**SIEGE, "rounds": 2}, tmp_path / "b", progress=False, resume=True)
        assert model.read_bytes() == content
        assert not (model.parent / "partial.safetensors").exists()
        again = json.loads((tmp_path / "b" / "result.json").read_text())
        assert again["task"]["history"] == whole["task"]["history"]

    def test_a_checkpoint_of_a_run_is_a_start(self, tmp_path: Path) -> None:
        first = result(tmp_path / "a", adversary=None)
        place = str(tmp_path / "a" / "checkpoint.safetensors")
        second = result(tmp_path / "b", start=place, pretrain_rounds=0, adversary=None)
        assert second["task"]["history"][0]["accuracy"] == first["task"]["history"][-1]["accuracy"]

    def test_a_state_dict_is_a_start(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        ready = prepare(load({**SIEGE, "pretrain_rounds": 0}))
        layout, flat = ready.task.layout, torch.randn(ready.task.layout.size)
        tensors = {
            name: flat[place].view(shape).clone()
            for (name, place), shape in zip(layout.slices(), layout.shapes, strict=True)
        }
        save_file(tensors, tmp_path / "m.safetensors")
        from fedsiege.experiment.start import read_model

        assert torch.equal(read_model(tmp_path / "m.safetensors", layout, torch.device("cpu")), flat)
        wrong = dict(tensors)
        name = layout.names[0]
        wrong[name] = wrong[name][:-1].clone()
        save_file(wrong, tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=f"of tensor '{name}' there is shape"):
            read_model(tmp_path / "m.safetensors", layout, torch.device("cpu"))
        del wrong[name]
        save_file(wrong, tmp_path / "m.safetensors")
        with pytest.raises(InputError, match=f"of tensor '{name}' there is none"):
            read_model(tmp_path / "m.safetensors", layout, torch.device("cpu"))
        (tmp_path / "m.safetensors").write_bytes(b"no tensors at all")
        with pytest.raises(InputError, match="cannot be read as safetensors"):
            read_model(tmp_path / "m.safetensors", layout, torch.device("cpu"))


@pytest.mark.parametrize("rule", ["fedavg", {"name": "centered_clipping", "tau": 0.5}, "foolsgold"])
def test_a_killed_siege_goes_on_to_the_same_result(
    rule: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {
        "aggregator": rule,
        "adversary": {"name": "neurotoxin", "poisoned": 8},
        "compromised": {"clients": [3]},
    }
    whole = result(tmp_path / "a", **changes)
    measured = [0]
    model = Watch.model

    def dying(self: Watch, vector: torch.Tensor) -> dict[str, Any]:
        measured[0] += 1
        if measured[0] == 6:
            raise KeyboardInterrupt
        return model(self, vector)

    monkeypatch.setattr(Watch, "model", dying)
    with pytest.raises(KeyboardInterrupt):
        run({**SIEGE, **changes}, tmp_path / "b", progress=False)
    monkeypatch.setattr(Watch, "model", model)
    run({**SIEGE, **changes}, tmp_path / "b", progress=False, resume=True)
    again = json.loads((tmp_path / "b" / "result.json").read_text())
    assert again["poisoning"] == whole["poisoning"]
    assert again["task"]["history"] == whole["task"]["history"]
    names = ("checkpoint.safetensors",)
    from fedsiege.files import read_tensors

    for name in names:
        before, after = (read_tensors(tmp_path / folder / name) for folder in ("a", "b"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_watch_counts_clean_examples_that_are_taken_for_the_target() -> None:
    ready = prepare(load(SIEGE))
    watch = Watch.over(ready)
    found = watch.model(ready.task.state.clone())
    logits = ready.task.predict(ready.task.state.clone(), ready.data.heldout)
    others = ready.data.heldout.y != 2
    assert found["mistaken"] == pytest.approx(float((logits[others].argmax(1) == 2).double().mean()))
    assert ready.backdoor is not None
    assert found["backdoor"] == ready.task.measure(ready.task.state.clone(), ready.backdoor.test)[0]
    assert not np.isin(ready.backdoor.test.ids, ready.data.train.ids).any()
