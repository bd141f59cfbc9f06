"""The grid file: what becomes of it, and what is said of one that is wrong."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import TINY, written

from fedsiege import shipped
from fedsiege.errors import InputError
from fedsiege.experiment.config import Experiment, load
from fedsiege.experiment.grid import Cell, Grid, compact

PAPER = {"claim": "c", "source": "s", "table": "t", "link": "l"}
AUC = {"cell": "rounds=1", "attack": "fedmia_ii", "metric": "auc", "value": 0.5}
CHANGE = {"cell": "rounds=1", "metric": "accuracy_change", "against": "longer", "value": -0.01}


def cells_of(grid: Any, *overrides: str) -> list[Cell]:
    made, where = Grid.load(grid, overrides)
    return made.cells_of(where)


def published(*figures: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A grid of three cells that states these figures."""
    paper = {**PAPER, "figures": list(figures), **more}
    return {"axes": {"rounds": [1, 2]}, "cells": [{"name": "longer", "set": {"rounds": 9}}], "paper": paper}


def grid_file(folder: Path, **keys: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(keys, sort_keys=False), encoding="utf-8")
    return path


def test_the_product_of_the_axes_with_every_seed() -> None:
    cells = cells_of(
        {
            "experiment": TINY,
            "set": {"rounds": 3},
            "axes": {"training.lr": [0.1, 1e-5], "model": {"small": {"name": "mlp", "hidden": [4]}, "cnn": "cnn"}},
            "cells": [{"name": "both", "set": {"training.lr": 1, "model.hidden": [2]}}],
            "seeds": [3, 1],
        }
    )
    assert [(cell.name, cell.seed) for cell in cells] == [
        (name, seed)
        for name in (
            "training.lr=0.1, model=small",
            "training.lr=0.1, model=cnn",
            "training.lr=1.0e-05, model=small",
            "training.lr=1.0e-05, model=cnn",
            "both",
        )
        for seed in (3, 1)
    ]
    assert cells[2].axes == {"training.lr": "0.1", "model": "cnn"}
    assert cells[-1].axes == {}
    assert cells[-1].changes == {"training.lr": "1", "model.hidden": "[2]"}
    assert cells[0].changes == {}
    assert [cell.experiment.training.lr for cell in cells[::2]] == [0.1, 0.1, 1e-5, 1e-5, 1.0]
    assert [cell.experiment.model for cell in cells[::2]] == [
        {"name": "mlp", "hidden": [4]},
        "cnn",
        {"name": "mlp", "hidden": [4]},
        "cnn",
        {"name": "mlp", "hidden": [2]},
    ]
    assert {cell.experiment.rounds for cell in cells} == {3}
    assert [cell.experiment.seed for cell in cells] == [3, 1] * 5
    assert cells[0].folder == "cells/training.lr=0.1-model=small/seed3"
    assert cells[0].experiment.title == "training.lr=0.1, model=small, seed 3"


def test_a_cell_outside_the_product_says_its_values_as_the_axes_name_them() -> None:
    extra = {"name": "both", "set": {"model": {"name": "mlp", "hidden": [4]}, "rounds": 2}}
    cells = cells_of({"axes": {"model": {"small": {"name": "mlp", "hidden": [4]}}}, "cells": [extra]})
    assert cells[-1].changes == {"model": "small", "rounds": "2"}


def test_a_part_is_set_before_what_is_in_it() -> None:
    (cell,) = cells_of({"axes": {"model.hidden": [[3]], "model": [{"name": "mlp", "hidden": [9]}]}})
    assert cell.experiment.model == {"name": "mlp", "hidden": [3]}
    assert cell.name == "model.hidden=[3], model={name: mlp, hidden: [9]}"


def test_without_axes_the_base_is_the_cell_and_its_seed_the_seed() -> None:
    (cell,) = cells_of({"experiment": {"seed": 7, "rounds": 2}, "budget": 0.1})
    assert (cell.name, cell.seed, cell.folder, cell.experiment.rounds) == ("base", 7, "cells/base/seed7", 2)
    assert [cell.name for cell in cells_of({"cells": [{"name": "alone"}]})] == ["alone"]


def test_a_base_by_name_and_beside_the_grid(tmp_path: Path) -> None:
    (cell,) = cells_of({"base": "quickstart"})
    base = load("quickstart")
    left = {"title", "changed"}
    assert cell.experiment.model_dump(exclude=left) == base.model_dump(exclude=left)
    written(tmp_path / "mine.yaml", seed=4)
    (cell,) = cells_of(grid_file(tmp_path, base="mine.yaml"))
    assert (cell.experiment.name, cell.experiment.clients, cell.seed) == ("mine", 5, 4)


def test_profiles_come_before_everything_else() -> None:
    base = {"rounds": 9, "clients": 4, "profiles": {"small": {"rounds": 2, "clients": 3, "seed": 5}, "more": {}}}
    (cell,) = cells_of({"experiment": base, "profile": "small", "set": {"clients": 6}})
    assert (cell.experiment.rounds, cell.experiment.clients, cell.seed) == (2, 6, 5)
    cells = cells_of({"experiment": base, "axes": {"profile": ["small", "more"]}, "set": {"clients": 6}})
    assert [(cell.experiment.profile, cell.experiment.rounds) for cell in cells] == [("small", 2), ("more", 9)]


def test_what_is_written_down_gives_the_same_cells(tmp_path: Path) -> None:
    made, where = Grid.load(
        grid_file(tmp_path, base="quickstart", axes={"rounds": [1, 2]}, profile=None, seeds=[1])
    )
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
    assert Grid.load(again)[0] == made
    assert Grid.load(again)[0].cells_of("again") == made.cells_of(where)


def test_a_cells_config_can_be_run_as_it_is() -> None:
    """Its profile is applied: loading what the program wrote down does not apply it over the axis again."""
    base = {"rounds": 9, "profiles": {"small": {"rounds": 2}}}
    (cell,) = cells_of({"experiment": base, "profile": "small", "axes": {"rounds": [5]}})
    assert cell.experiment.rounds == 5
    assert load(cell.experiment.model_dump(mode="json")) == cell.experiment
    assert load(cell.experiment.model_dump(mode="json"), ["profile=small"]).rounds == 2


def test_folders_differ_even_where_names_hardly_do() -> None:
    names = ["a b", "a/b", "A b", "..", "中", "x" * 99, "x" * 98]
    cells = cells_of({"cells": [{"name": name} for name in names]})
    folders = [cell.folder.lower() for cell in cells]
    assert len(set(folders)) == len(names)
    assert all(Path(folder).parts[0] == "cells" and ".." not in folder for folder in folders)
    assert all(len(part) < 100 for folder in folders for part in Path(folder).parts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("perturb 0.05", "perturb 0.05"),
        (0.05, "0.05"),
        (None, "null"),
        (False, "false"),
        ([], "[]"),
        ([{"name": "perturb", "sigma": 0.05}], "[{name: perturb, sigma: 0.05}]"),
        (list(range(60)), f"[{', '.join(map(str, range(60)))}]"),
    ],
)
def test_a_value_on_one_line(value: Any, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"axis": {"rounds": [1]}, "seeds": [0]}, "axis: unknown key (did you mean 'axes'?); known: base, title,"),
        (
            {"axes": {"training.lrr": [1]}},
            "axes: 'training.lrr' names no field of an experiment (did you mean 'train",
        ),
        ({"axes": {"trainning.lr": [1]}}, "(did you mean 'training.lr'?)"),
        ({"axes": {"defenses": [1]}}, "(did you mean 'defences'?)"),
        ({"set": {"candidate.ofl": 1}}, "set: 'candidate.ofl' names no field of an experiment (did you mean 'cand"),
        ({"cells": [{"name": "x", "set": {"round": 1}}]}, "cells.0.set: 'round' names no field"),
        ({"axes": {"seed": [1, 2]}}, "axes: a grid cannot set 'seed'; expected a list under seeds:"),
        ({"set": {"out": "x"}}, "set: a grid cannot set 'out'; cells are written below the sweep's own folder"),
        (
            {"axes": {"rounds": []}},
            "axes.rounds: got []; expected a list of values, or a mapping of names to values",
        ),
        ({"axes": {"rounds": 5}}, "axes.rounds: got 5; expected a list of values"),
        ({"axes": {"rounds": {}}}, "axes.rounds: got {}; expected a list of values"),
        ({"axes": [1]}, "axes: got [1]; expected a mapping of fields to lists of values"),
        ({"axes": {"rounds": [3, 4, 3]}}, "axes.rounds: '3' is there twice; expected different values"),
        ({"seeds": [1, 2, 1]}, "seeds: 1 is there twice; expected different seeds"),
        ({"seeds": []}, "seeds: got []; List should have at least 1 item"),
        ({"seeds": 3}, "seeds: got 3; Input should be a valid list"),
        ({"budget": 2}, "budget: got 2; Input should be less than 1"),
        ({"cells": [{"name": "x"}, {"name": "x"}]}, "cells: 'x' is there twice; expected another name"),
        ({"cells": [{"nam": "x"}]}, "cells.0.name: missing; expected a value"),
        (
            {"cells": [{"name": "x", "sets": {}}]},
            "cells.0.sets: unknown key (did you mean 'set'?); known: name, set",
        ),
        (
            {"axes": {"rounds": [1]}, "cells": [{"name": "rounds=1"}]},
            "cells: 'rounds=1' is there twice; expected another name",
        ),
        (
            {"axes": {"rounds": [1, 0]}},
            "cell 'rounds=0': rounds: got 0; Input should be greater than or equal to 1",
        ),
        (
            {"experiment": {"rounds": 5}, "axes": {"rounds.deep": [1]}},
            "axes.rounds.deep: rounds is 5 and has no fields",
        ),
        (
            {"experiment": {"attacks": ["fedmia_i"]}, "axes": {"attacks.3.tau": [1]}},
            "axes.attacks.3.tau: '3' is not a position in a list of 1",
        ),
        ({"axes": {"profile": ["tiny"]}}, "cell 'profile=tiny': profile: unknown 'tiny'; known: none"),
        ({"profile": "tiny", "budget": 0.1}, "grid.yaml: profile: unknown 'tiny'; known: none"),
        ({"base": "quickstart", "experiment": {}}, "has base and experiment; expected one of them"),
        (
            {"base": "quickstrat"},
            "base: quickstrat: no such file or shipped experiment (did you mean 'quickstart'?)",
        ),
        ({"base": 3}, "base: got 3; expected a file or the name of a shipped experiment"),
        ({"base": "grid.yaml"}, "is a grid itself; expected a single experiment"),
        ({"experiment": {"axes": {}}}, "experiment: is a grid itself; expected a single experiment"),
        ({"experiment": 3}, "experiment: got 3; expected a mapping of fields to values"),
        ({"experiment": {"round": 3}}, "round: unknown field (did you mean 'rounds'?)"),
        ({"rounds": 3}, "is a single experiment; expected a grid, which has some of axes, base, budget, cells,"),
        (
            published({**AUC, "cell": "round=1"}),
            "paper.figures.0.cell: got 'round=1' (did you mean 'rounds=1'?); expected one of the grid's cells: "
            "rounds=1, rounds=2, longer",
        ),
        (
            published(AUC, {**CHANGE, "against": "long"}),
            "paper.figures.1.against: got 'long' (did you mean 'longer'?); expected one of the grid's cells",
        ),
        (
            published({**CHANGE, "against": ""}),
            "paper.figures.0.against: got '' with metric accuracy_change; expected the cell without the defence",
        ),
        (
            published({**AUC, "against": "longer"}),
            "paper.figures.0.against: got 'longer' with metric auc; expected none",
        ),
        (
            published({**AUC, "attack": ""}),
            "paper.figures.0.attack: got '' with metric auc; expected the attack that it was measured with",
        ),
        (
            published({**CHANGE, "attack": "x"}),
            "paper.figures.0.attack: got 'x' with metric accuracy_change; expected none",
        ),
        (
            published(AUC, AUC),
            "paper.figures: 'rounds=1, fedmia_ii, auc' is there twice; expected each figure once",
        ),
        (
            published({**AUC, "cel": 1}),
            "paper.figures.0.cel: unknown key (did you mean 'cell'?); known: cell, metric",
        ),
        (
            published(AUC, tabel="x"),
            "paper.tabel: unknown key (did you mean 'table'?); known: claim, source, table",
        ),
        (published({**AUC, "metric": "tpr@0.02"}), "paper.figures.0.metric: got 'tpr@0.02'; Input should be 'auc'"),
        (published({**AUC, "spread": -1}), "paper.figures.0.spread: got -1; Input should be greater than or equal"),
        (published(), "paper.figures: got []; List should have at least 1 item"),
        (published(AUC, rounding={"tpr": 0.1}), "paper.rounding.tpr"),
        ({"axes": {"rounds": [1]}, "paper": 3}, "paper: got 3; expected a mapping of keys to values"),
        ({"axes": {"rounds": [1]}, "paper": PAPER}, "paper.figures: missing; expected a value"),
        (
            {"cells": [{"name": "x", "profiles": {"tiny": {}}}], "experiment": {"profiles": {"small": {}}}},
            "cells.0.profiles: the base has no profile 'tiny'; expected one of small",
        ),
        (
            {
                "cells": [{"name": "x", "profiles": {"small": {"round": 1}}}],
                "experiment": {"profiles": {"small": {}}},
            },
            "cells.0.profiles.small: 'round' names no field of an experiment (did you mean 'rounds'?)",
        ),
        ({"cells": [{"name": "x", "profiles": {"small": {}}}]}, "has no profile 'small'; expected one of none"),
        ({"budget": 0.1, "overrides": 3}, "overrides: got 3; expected a mapping of fields to values"),
    ],
)
def test_what_is_wrong_with_a_grid_is_said(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = grid_file(tmp_path, **keys)
    with pytest.raises(InputError) as caught:
        cells_of(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_run_refuses_a_grid_and_names_the_command(tmp_path: Path) -> None:
    path = grid_file(tmp_path, base="quickstart", seeds=[1, 2])
    with pytest.raises(
        InputError, match=f"{path}: is a grid of experiments; expected a single one: use fedsiege sw"
    ):
        load(path)


def test_a_grids_own_keys_are_those_that_no_experiment_has() -> None:
    assert {"base", *Grid.model_fields} - set(Experiment.model_fields) == shipped.GRID_KEYS


@pytest.mark.parametrize("name", shipped.grids())
def test_every_shipped_grid_is_valid(name: str) -> None:
    made, where = Grid.load(name)
    assert made.title
    assert made.cells_of(where)


def test_a_cell_says_more_of_a_profile() -> None:
    base = {"rounds": 9, "profiles": {"small": {"rounds": 2}, "tiny": {"rounds": 1}}}
    extra = {"name": "x", "set": {"defences": ["perturb"]}, "profiles": {"small": {"defences.0.sigma": 0.5}}}
    grid = {"experiment": base, "cells": [extra, {"name": "y", "set": {"rounds": 7}}]}
    for profile, rounds, defences in (
        (None, 9, ["perturb"]),
        ("small", 2, [{"name": "perturb", "sigma": 0.5}]),
        ("tiny", 1, ["perturb"]),
    ):
        x, y = cells_of({**grid, "profile": profile})
        assert (x.experiment.rounds, x.experiment.defences, y.experiment.rounds) == (rounds, defences, 7)
        assert x.changes.get("defences.0.sigma") == ("0.5" if profile == "small" else None)


def test_overrides_come_after_what_the_grid_sets_and_before_what_a_cell_does() -> None:
    base = {"rounds": 9, "profiles": {"small": {"rounds": 2, "clients": 4}}}
    grid = {
        "experiment": base,
        "set": {"clients": 6, "training.lr": 0.2},
        "axes": {"training.lr": [0.5]},
        "cells": [{"name": "x"}],
    }
    asked = ["training.lr=0.3", "clients=7", "profile=small", "seeds=[4, 5]", "budget=0.3", "title=mine"]
    cells = cells_of(grid, *asked)
    assert [(c.name, c.seed, c.experiment.training.lr) for c in cells] == [
        ("training.lr=0.5", 4, 0.5),
        ("training.lr=0.5", 5, 0.5),
        ("x", 4, 0.3),
        ("x", 5, 0.3),
    ]
    assert {(c.experiment.rounds, c.experiment.clients, c.experiment.profile) for c in cells} == {(2, 7, "small")}
    made, _ = Grid.load(grid, asked)
    assert (made.profile, made.budget, made.title) == ("small", 0.3, "mine")
    assert made.overrides == {"training.lr": 0.3, "clients": 7}
    assert cells[0].experiment.title == "mine: training.lr=0.5, seed 4"


def test_a_part_that_is_asked_for_is_set_before_what_is_in_it() -> None:
    (cell,) = cells_of({"cells": [{"name": "x"}]}, "model.hidden=[3]", "model={name: mlp, hidden: [9]}")
    assert cell.experiment.model == {"name": "mlp", "hidden": [3]}


def test_a_grid_that_was_written_down_keeps_its_overrides(tmp_path: Path) -> None:
    keys = {**published(AUC, CHANGE, rounding={"auc": 0.005}), "experiment": {"clients": 3}}
    made, where = Grid.load(grid_file(tmp_path, **keys), ["clients=4", "seeds=[1]"])
    again = tmp_path / "again.yaml"
    again.write_text(yaml.safe_dump(made.model_dump(mode="json"), sort_keys=False))
    assert Grid.load(again)[0] == made
    assert [c.experiment for c in cells_of(again)] == [c.experiment for c in made.cells_of(where)]
    assert cells_of(again, "clients=5")[0].experiment.clients == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.lrr=1", "--set: 'training.lrr' names no field of an experiment (did you mean 'training.lr'?)"),
        ("seed=1", "--set: a grid cannot set 'seed'; expected a list under seeds:"),
        ("seeds=1", "seeds: got 1; Input should be a valid list"),
        ("seeds", "--set seeds: expected field=value"),
        (
            "axes={}",
            "--set axes: is the grid's own; expected profile, seeds, budget, title, description or a field",
        ),
        ("paper.claim=x", "--set paper.claim: is the grid's own; expected profile, seeds"),
        ("profile=tiny", "grid.yaml: profile: unknown 'tiny'; known: none"),
        ("rounds=0", "cell 'a': rounds: got 0; Input should be greater than or equal to 1"),
        ("rounds.deep=1", "--set rounds.deep: rounds is 5 and has no fields"),
        ("model=cnn", "--set model: every cell sets it itself; expected another field"),
        ("model.hidden=[3]", "--set model.hidden: every cell sets it itself; expected another field"),
    ],
)
def test_what_is_wrong_with_an_override_is_said(override: str, message: str, tmp_path: Path) -> None:
    cells = [{"name": "a", "set": {"model": "mlp", "training.lr": 1}}, {"name": "b", "set": {"model": "cnn"}}]
    path = grid_file(tmp_path, experiment={"rounds": 5}, cells=cells, seeds=[0])
    with pytest.raises(InputError) as caught:
        cells_of(path, override)
    assert message in str(caught.value)
    assert cells_of(path, "training.lr=2")[1].experiment.training.lr == 2


def test_an_override_that_every_cell_of_a_product_sets_is_refused() -> None:
    grid = {"axes": {"model": ["mlp"]}}
    with pytest.raises(InputError, match=r"--set model\.hidden: every cell sets it itself"):
        cells_of(grid, "model.hidden=[3]")
    assert cells_of({**grid, "cells": [{"name": "x"}]}, "model.hidden=[3]")[1].experiment.model == {
        "name": "mlp",
        "hidden": [3],
    }


def test_a_cell_that_is_the_base_has_changed_nothing() -> None:
    cells = cells_of({"experiment": {"rounds": 4}, "axes": {"rounds": [4, 5]}, "seeds": [0, 1]})
    assert [cell.experiment.changed for cell in cells] == [[], ["seed"], ["rounds"], ["rounds", "seed"]]
