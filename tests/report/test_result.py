import json
import math
from pathlib import Path

import pytest

from fedsiege.errors import InputError
from fedsiege.report import Result

from . import made


def pooled(folder: Path, attack: str, against: str = "all") -> dict[str, object]:
    entries = json.loads((folder / "result.json").read_text())["attacks"]
    found = [e for e in entries if (e["attack"], e["target"], e["against"]) == (attack, "pooled", against)]
    return dict(found[0])


def test_table_holds_the_figures_of_the_file(folder: Path) -> None:
    table = Result.read(folder).table(against="ofl").set_index("attack")
    entry = pooled(folder, "fedmia_ii", "ofl")
    assert list(table.index) == list(made.ATTACKS)
    assert table.loc["fedmia_ii", "title"] == "FedMIA-II"
    assert table.loc["fedmia_ii", "auc"] == entry["auc"]["value"]  # type: ignore[index]
    rate = entry["tpr_at_fpr"]["0.001"]  # type: ignore[index]
    columns = ["tpr@0.001", "tpr@0.001_low", "tpr@0.001_high", "false_positives@0.001"]
    assert list(table.loc["fedmia_ii", columns]) == [rate[k] for k in ("value", "low", "high", "false_positives")]


def test_table_of_a_client_the_worst_and_the_mean(folder: Path) -> None:
    run = Result.read(folder)
    assert list(run.table(target=2)["target"].unique()) == [2]
    worst = run.table(target="worst").set_index("attack")
    assert worst.loc["fedmia_ii", "worst_target"] == 3
    mean = run.table(target="mean").set_index("attack").to_dict("index")["fedmia_ii"]
    means = pooled(folder, "fedmia_ii")["mean_over_targets"]
    assert mean["auc"] == means["auc"]  # type: ignore[index]
    assert math.isnan(mean["auc_low"])


@pytest.mark.parametrize(("against", "target"), [("all", 99), ("nobody", "pooled"), ("all", "any")])
def test_table_that_does_not_exist_names_what_does(folder: Path, against: str, target: int) -> None:
    with pytest.raises(
        InputError, match="expected a target of pooled, mean, worst, 0, 1, 2, 3 and against one of all"
    ):
        Result.read(folder).table(against, target)


def test_attacks_accuracy_and_data_are_the_files_own(folder: Path) -> None:
    run = Result.read(folder)
    data = json.loads((folder / "result.json").read_text())
    assert run.data == data
    assert run.attacks == data["attacks"]
    assert run.accuracy == data["task"]["accuracy"]


def test_plot_draws_every_attack_on_log_axes(folder: Path) -> None:
    axes = Result.read(folder).plot().axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert len(axes.get_lines()) == len(made.ATTACKS) + 1  # and the diagonal


def test_a_notebook_shows_table_and_figure(hostile: Path) -> None:
    run = Result.read(hostile)
    shown = run._repr_html_()
    assert shown.count("<tr") == len(made.ATTACKS) + 2
    assert "<script>" not in shown
    assert run.plot()._repr_png_().startswith(b"\x89PNG")


def test_show_prints_every_attack(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Result.read(folder).show()
    printed = capsys.readouterr().out
    assert all(title in printed for title, _, _ in made.ATTACKS.values())


def test_attacks_that_share_a_title_are_told_apart(tmp_path: Path) -> None:
    data, curves = made.result(targets=1)
    for one in (*data["attacks"], *curves["roc"], *curves["rounds"]):
        if one["attack"] == "fedmia_i":
            one |= {"attack": "fedmia_ii(combine=sum_z)", "title": "FedMIA-II"}
    names = Result.read(made.folder(tmp_path, data, curves)).names
    assert names["fedmia_ii(combine=sum_z)"] == "FedMIA-II · fedmia_ii(combine=sum_z)"
    assert names["avg_cosine"] == "Avg-Cosine"


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a finished run folder; expected the file result\.json"):
        Result.read(tmp_path / "absent")


def test_missing_curves(folder: Path) -> None:
    (folder / "curves.json").unlink()
    with pytest.raises(InputError, match=r"curves\.json: missing"):
        Result.read(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[]", "got a JSON list; expected an object"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"schema": 2}', "schema is 2; this version reads schema 1"),
        ('{"schema": 1}', "experiment: got .*; Field required"),
    ],
)
def test_unreadable_result(folder: Path, text: str, message: str) -> None:
    (folder / "result.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Result.read(folder)


def test_bytes_that_are_no_text(folder: Path) -> None:
    (folder / "result.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as JSON"):
        Result.read(folder)


def test_nan_is_refused(folder: Path) -> None:
    path = folder / "result.json"
    path.write_text(path.read_text().replace('"accuracy": 0.9131', '"accuracy": NaN'))
    with pytest.raises(InputError, match=r"task\.accuracy: got nan"):
        Result.read(folder)


def test_curves_of_unequal_length_are_refused(tmp_path: Path) -> None:
    data, curves = made.result(targets=1)
    curves["roc"][0]["tpr"].pop()
    with pytest.raises(InputError, match=r"curves\.json: roc\.0: .*unequal length"):
        Result.read(made.folder(tmp_path, data, curves))


def test_what_a_later_run_adds_is_no_error(tmp_path: Path) -> None:
    data, curves = made.result(targets=1)
    data["task"]["fairness"] = 0.4
    data["new"] = {"of": "tomorrow"}
    assert Result.read(made.folder(tmp_path, data, curves)).accuracy == 0.9131
