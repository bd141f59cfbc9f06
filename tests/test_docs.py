"""The documentation says what is so: its examples run, its keys exist, its links lead somewhere."""

import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import fedsiege as fs
from fedsiege import shipped
from fedsiege.attacks.membership.base import MembershipAttack
from fedsiege.attacks.poisoning.base import Poisoner, Scene
from fedsiege.experiment import load as load_experiment
from fedsiege.experiment.config import Experiment, validated
from fedsiege.experiment.grid import Grid
from fedsiege.experiment.prepare import check, prepare
from fedsiege.experiment.run import run
from fedsiege.models.base import build_model
from fedsiege.records import Examples
from fedsiege.registry import build, index, load
from fedsiege.task import Task
from fedsiege.training import Training
from fedsiege.view import ArrayEvidence, Background, Shadow, View

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), *ROOT.glob("*.md")])


def blocks(page: str, language: str) -> list[str]:
    """The code blocks of a page, without the indentation of a list."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return ["\n".join(line.removeprefix(indent) for line in code.splitlines()) for indent, code in found]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Writes a user's own module `mine`."""

    def write(code: str) -> None:
        (tmp_path / "mine.py").write_text(code)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "mine", raising=False)

    return write


def test_the_attack_of_the_tutorial_works_as_its_test_says(mine: Callable[[str], None]) -> None:
    attack, _, check, *_ = blocks("docs/add-an-attack.md", "python")
    mine(attack)
    exec(check, {})
    mean = fs.score("mine:LossGap", {"loss": np.array([[[1.0], [3.0], [8.0]]])}, middle="mean")
    assert mean.tolist() == [4.5]


def test_the_tutorials_attack_with_shadow_federations_works(mine: Callable[[str], None]) -> None:
    _, attack, *_ = blocks("docs/add-an-attack.md", "python")
    mine(attack)
    built: MembershipAttack = build("membership", {"name": "mine:LossDrop", "shadows": 2}, "test")
    assert built.shadows_wanted == 2
    own = [[[0.0, 0.0, 0.0], [5.0, 7.0, 3.0]], [[0.0, 0.0, 0.0], [3.0, 9.0, 1.0]]]
    asked = [np.array([0, 1]), np.array([1, 2])]
    shadows = tuple(Shadow(ArrayEvidence({"global_loss": a}), b, ()) for a, b in zip(own, asked, strict=True))
    evidence = ArrayEvidence({"global_loss": [[8.0, 8.0], [1.0, 3.5]]})
    assert built.score(View(evidence, "client", Background(shadows)), 0).tolist() == [6.0, 0.5]


def test_the_tutorials_poisoner_sends_the_honest_update_the_other_way(
    mine: Callable[[str], None], tmp_path: Path
) -> None:
    *_, attack, _ = blocks("docs/add-an-attack.md", "python")
    (config,) = blocks("docs/add-an-attack.md", "yaml")
    mine(attack)
    task = Task(torch.nn.Linear(2, 2))
    shards = tuple(
        Examples(np.array([f"{at}{i}" for i in range(4)]), torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))
        for at in range(2)
    )
    scene = Scene(
        1, 1, task.state.clone(), (3, 7), shards, (0.5, 0.5), 1.0, 2, task, Training(epochs=1, batch=2), 0.1, 2, 0
    )
    named = yaml.safe_load(config)
    sent = build("poisoning", {**named["adversary"], "factor": 3}, "test").poison_updates(scene)
    torch.testing.assert_close(sent, torch.stack([-3 * scene.honest(0), -3 * scene.honest(1)]))
    assert scene.counters == {"poisoned_updates": 2}
    small = {"data": "wine", "model": "mlp", "rounds": 1, "attacks": [], "training": {"epochs": 1}, "threads": 1}
    run({**small, **named}, tmp_path / "run", progress=False)
    found = json.loads((tmp_path / "run" / "result.json").read_text())["components"]
    (row,) = [one for one in found if one["kind"] == "poisoning"]
    assert (row["label"], row["acted"]) == ("turned", True)
    assert row["counters"] == {"attackers": 2, "poisoned_updates": 2}


def test_the_tutorial_names_what_a_poisoner_and_a_scene_have() -> None:
    section = (ROOT / "docs/add-an-attack.md").read_text().partition("## Add a poisoning attack")[2]
    section = section.partition("\n## ")[0]
    parts = set(re.findall(r"`scene\.(\w+)", section))
    assert parts == {part for part in parts if part in Scene.__dataclass_fields__ or hasattr(Scene, part)}
    assert parts >= {"clients", "shards", "honest", "train", "benign", "targets", "memory", "rng", "count"}
    named = set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
    assert named == {"title", "proof", "plants", "probes"} <= set(Poisoner.__annotations__)


def test_the_tutorials_rule_is_a_median(mine: Callable[[str], None]) -> None:
    *_, rule = blocks("docs/add-an-attack.md", "python")
    mine(rule)
    combined, found = fs.aggregate("mine:Middle", np.array([[1.0, 9.0], [2.0, 0.0], [7.0, 3.0]]))
    assert combined.tolist() == [2.0, 3.0]
    assert found.kept.tolist() == [1, 1, 1]


def test_the_defence_of_the_tutorial_works_as_its_test_says(mine: Callable[[str], None], tmp_path: Path) -> None:
    defence, check = blocks("docs/add-a-defence.md", "python")
    mine(defence)
    exec(check, {"folder": tmp_path / "run"})


def test_the_attack_on_one_screen_scores_as_it_says(mine: Callable[[str], None]) -> None:
    (attack,) = blocks("CONTRIBUTING.md", "python")
    mine(attack)
    losses = np.random.default_rng(0).random((3, 4, 5))
    naive = [np.mean([np.median(losses[t, 1:, i]) - losses[t, 0, i] for t in range(3)]) for i in range(5)]
    np.testing.assert_allclose(fs.score("mine:LossGap", {"loss": losses}), naive)


def test_contributing_fits_on_its_screen() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.partition("## Add an attack")[2].partition("\n## ")[0]
    assert len(section.splitlines()) <= 60


def test_the_model_of_ones_own_works(mine: Callable[[str], None]) -> None:
    (network,) = blocks("docs/models.md", "python")
    mine(network)
    module = build_model({"name": "mine:network", "width": 5}, (1, 8, 8), 10)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_the_table_of_models_counts_right() -> None:
    text = (ROOT / "docs/models.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*?\| ([\d,]+) \(", text, re.MULTILINE))
    assert set(rows) == {name for kind, name in index() if kind == "model"}
    settings: dict[str, tuple[tuple[int, ...], int]] = {
        "alexnet": ((3, 32, 32), 100),
        "resnet18": ((3, 32, 32), 100),
        "mlp": ((600,), 100),
        "lstm": ((64,), 50_000),
    }
    for name, count in rows.items():
        shape, classes = settings.get(name, ((3, 32, 32), 10))
        parameters = build_model(name, shape, classes).parameters()
        assert sum(p.numel() for p in parameters) == int(count.replace(",", ""))


def test_the_array_example_of_the_quickstart_runs(capsys: Any) -> None:
    code = blocks("docs/quickstart.md", "python")[1]
    values: dict[str, Any] = {}
    exec(code, values)
    assert values["audit"].auc.value > 0.9
    assert values["update"].shape == (1000,)
    assert "Estimate" in capsys.readouterr().out


def test_the_first_config_on_the_page_is_valid() -> None:
    config = yaml.safe_load(blocks("docs/configuration.md", "yaml")[0])
    assert validated(config, "docs").rounds == 40


def test_the_grid_on_the_page_has_the_cells_it_says() -> None:
    made, where = Grid.load(yaml.safe_load(blocks("docs/sweeps.md", "yaml")[0]))
    cells = made.cells_of(where)
    assert (len({cell.name for cell in cells}), len(cells)) == (7, 21)
    assert cells[0].name == "defences=none, training.lr=0.1"
    for cell in cells:
        check(cell.experiment)


def test_every_key_of_a_grid_is_explained() -> None:
    text = (ROOT / "docs/sweeps.md").read_text()
    assert [key for key in ("base", *Grid.model_fields) if f"`{key}`" not in text] == []


def test_every_key_of_a_config_is_explained() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    keys = [name for name in Experiment.model_fields if name not in ("training", "candidates", "trace")]
    assert [key for key in [*keys, *Training.model_fields] if f"`{key}`" not in text] == []
    assert [key for key in ("members", "ifl", "ofl", "null", "compat") if f"`candidates.{key}`" not in text] == []
    assert [key for key in ("groups", "logits") if f"`trace.{key}`" not in text] == []


def test_every_default_on_the_page_is_the_default() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    default = Experiment().model_dump(mode="json")
    stated = re.findall(r"^\| `(\w+)` \| `?([\w.]+)`? \|", text, re.MULTILINE)
    plain = {key: value for key, value in stated if key in default and value not in ("empty", "all")}
    assert len(plain) > 10
    assert {key: yaml.safe_load(value) for key, value in plain.items()} == {key: default[key] for key in plain}


def test_the_readme_names_every_attack() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for kind, name in index() if kind == "membership" and f"| `{name}` |" not in text] == []


def test_threat_models_tell_what_secure_aggregation_refuses() -> None:
    """The page lists three groups of attacks; the classes say which group each belongs to."""
    section = (ROOT / "docs/threat-models.md").read_text().partition("## Secure aggregation")[2]
    whole, others, single = (set(re.findall(r"`(\w+)`", part)) for part in section.split("\n- ")[1:4])
    for kind, name in index():
        if kind == "membership":
            cls: Any = load(kind, name)
            group = whole if not cls.single_update else others if cls.needs_others else single
            assert name in group


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if "://" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_every_page_is_in_the_navigation() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f": {page.name}\n" not in text] == []


def documented_runs() -> list[str]:
    """Every `fedsiege run quickstart` of README and docs that needs no file of the reader's."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    lines = [line for page in pages for line in page.read_text().splitlines()]
    return sorted({line for line in lines if line.startswith("$ fedsiege run quickstart") and "mine" not in line})


@pytest.mark.parametrize("line", documented_runs())
def test_documented_runs_can_begin(line: str) -> None:
    words = shlex.split(line)
    overrides = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    prepare(load_experiment("quickstart", overrides))


@pytest.mark.parametrize("name", [n for n in shipped.names() if n.startswith("fedmia/")])
def test_small_profiles_can_begin_on_the_real_data(
    name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIEGE_DATA", str(shared_data))
    prepare(load_experiment(name, ["profile=small"]))
