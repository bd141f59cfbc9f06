"""`fedsiege bench`: what it shows of what was measured. Nothing here is timed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsiege import bench
from fedsiege.cli import execute

Figures = Callable[[], list[Any]]

PROMISED = {
    *("evidence_alexnet_k5", "evidence_alexnet_k10", "evidence_resnet18_k10", "evidence_growth_5_100"),
    *("train_fp32", "train_bf16", "train_cnn", "overhead"),
    *("grid_2", "memory_1000", "attack_stage", "metrics_1m", "start_help", "start_list"),
}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `benchmarks.command`; what its import changes is put back."""
    for name in bench.THREADS:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(sys, "path", sys.path.copy())
    return bench.command()


@pytest.fixture
def register(command: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Figures], None]:
    """Registers made-up benchmarks in place of the real ones."""
    from benchmarks.measure import Benchmark

    known: dict[str, Any] = {}
    monkeypatch.setattr(command, "registered", lambda: known)

    def add(name: str, figures: Figures) -> None:
        known[name] = Benchmark(name, "x", "higher", f"about {name}", figures)

    return add


def figure(name: str, values: list[float]) -> Any:
    from benchmarks.measure import spread

    return spread(name, values, "x", "higher")


def unmeasurable() -> list[Any]:
    from benchmarks.measure import Unmeasurable

    raise Unmeasurable("no GPU here")


@pytest.fixture
def fakes(register: Any) -> list[str]:
    """Three benchmarks; the list says which of them were asked to measure."""
    asked: list[str] = []

    def fast() -> list[Any]:
        print("noise of a library")
        asked.append("fast")
        return [figure("fast", [2.0, 1.0, 4.5]), figure("fast_share", [1234.5])]

    def fast_too() -> list[Any]:
        asked.append("fast_too")
        return [figure("fast_too", [0.00123])]

    register("fast", fast)
    register("fast_too", fast_too)
    register("gpu_fast", unmeasurable)
    return asked


@pytest.mark.usefixtures("fakes")
def test_a_line_for_each_figure(capsys: Any) -> None:
    assert execute(["bench"]) == 0
    machine, *lines = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}, 1 thread" in machine
    assert " cores" in machine
    assert [line.split() for line in lines if "noise" not in line] == [
        ["fast", "2", "x", "(1", "to", "4.5,", "higher", "is", "better)", "about", "fast"],
        ["fast_share", "1,234", "x", "(1,234", "to", "1,234,", "higher", "is", "better)", "with", "fast"],
        ["fast_too", "0.00123", "x", "(0.00123", "to", "0.00123,", "higher", "is", "better)", "about", "fast_too"],
        ["gpu_fast", "not", "measured:", "no", "GPU", "here"],
    ]


@pytest.mark.usefixtures("fakes")
def test_json_and_nothing_else(capsys: Any) -> None:
    assert execute(["bench", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert found[0] == {
        **{"name": "fast", "value": 2.0, "low": 1.0, "high": 4.5, "unit": "x", "better": "higher"},
        **{"measured": True, "reason": ""},
    }
    assert found[3] == {
        **{"name": "gpu_fast", "value": None, "low": None, "high": None, "unit": "x", "better": "higher"},
        **{"measured": False, "reason": "no GPU here"},
    }
    assert [one["name"] for one in found] == ["fast", "fast_share", "fast_too", "gpu_fast"]
    assert "noise of a library" in captured.err
    assert "gpu_fast" in captured.err


@pytest.mark.parametrize(
    ("name", "measured"),
    [
        ("fast", ["fast"]),
        ("fa", ["fast", "fast_too"]),
        ("fast_too", ["fast_too"]),
        ("fast_share", ["fast"]),  # it comes with fast
        ("gpu", []),
    ],
)
def test_only_what_is_asked_for_is_measured(name: str, measured: list[str], fakes: list[str]) -> None:
    assert execute(["bench", name]) == 0
    assert fakes == measured


@pytest.mark.usefixtures("fakes")
def test_an_interrupt_leaves_what_was_measured(register: Any, capsys: Any) -> None:
    def endless() -> list[Any]:
        raise KeyboardInterrupt

    register("slow", endless)
    assert execute(["bench", "--json"]) == 130
    captured = capsys.readouterr()
    assert [one["name"] for one in json.loads(captured.out)][:2] == ["fast", "fast_share"]
    assert captured.err.splitlines()[-1] == "fedsiege: error: interrupted"


@pytest.mark.parametrize(("name", "nearest"), [("fasd", " (did you mean 'fast'?)"), ("", ""), ("ast", None)])
def test_an_unknown_figure_names_the_known_ones(
    name: str, nearest: str | None, fakes: list[str], capsys: Any
) -> None:
    assert execute(["bench", name, "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith(f"fedsiege: error: bench: nothing is named {name!r}{nearest or ''}")
    assert line.endswith("known: fast, fast_too, gpu_fast")
    assert fakes == []


def test_without_a_checkout_the_way_to_one_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(bench, "ROOT", tmp_path)
    assert execute(["bench", "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert f"bench: {tmp_path / 'benchmarks'} is not there" in line
    assert "git clone" in line


def test_a_package_that_is_missing_is_a_reason(register: Any, capsys: Any) -> None:
    def needs_more() -> list[Any]:
        import no_such_package  # type: ignore[import-not-found]

        return [no_such_package]

    register("needs_more", needs_more)
    assert execute(["bench", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert (found["measured"], found["reason"]) == (False, "no_such_package is not installed")


def test_sides_that_disagree_cost_their_own_figure_alone(register: Any, capsys: Any) -> None:
    def wrong() -> list[Any]:
        raise AssertionError("\nTensor-likes are not close!\n\nMismatched elements: 1 / 2")

    register("wrong", wrong)
    register("right", lambda: [figure("right", [1.0])])
    assert execute(["bench", "--json"]) == 1
    captured = capsys.readouterr()
    first, second = json.loads(captured.out)
    assert (first["measured"], first["reason"]) == (False, "Tensor-likes are not close!")
    assert (second["name"], second["measured"]) == ("right", True)
    assert captured.err.splitlines()[-1].endswith("the compared sides do not give the same result: wrong")


def test_every_benchmark_begins_on_one_thread(register: Any) -> None:
    seen: list[int] = []

    def greedy() -> list[Any]:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(2)
        return []

    register("greedy", greedy)
    register("greedy_too", greedy)
    try:
        assert execute(["bench"]) == 0
    finally:
        torch.set_num_threads(1)
    assert seen == [1, 1]


def test_a_spread_is_the_median_with_lowest_and_highest(command: Any) -> None:
    from benchmarks import measure

    assert command.BENCHMARKS is measure.BENCHMARKS
    found = measure.spread("name", [5.0, 1.0, 2.0], "s", "lower")
    assert (found.value, found.low, found.high) == (2.0, 1.0, 5.0)
    assert measure.ratios([6.0, 8.0], [3.0, 2.0]) == [2.0, 4.0]


@pytest.mark.usefixtures("command")
def test_turns_are_taken_and_the_first_is_thrown_away() -> None:
    from benchmarks.measure import interleaved

    order: list[str] = []
    times = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 2)
    assert order == ["a", "b"] * 3
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2}


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize(
    ("text", "there"), [("flags\t\t: fpu avx512_bf16 amx_tile\n", True), ("flags\t: fpu avx2\n", False)]
)
def test_bfloat16_is_what_the_processor_says(
    text: str, there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import hardware
    from benchmarks.measure import BENCHMARKS

    (tmp_path / "cpuinfo").write_text(f"model name\t: Some CPU\n{text}\nmodel name\t: Another\n")
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    hardware._cpuinfo.cache_clear()
    try:
        assert (hardware.cpu_name(), hardware.has_bf16()) == ("Some CPU", there)
        if not there:
            (found,) = BENCHMARKS["matmul_bf16_gflops"].run()
            assert found.reason == "Some CPU has no bfloat16 arithmetic of its own"
    finally:
        hardware._cpuinfo.cache_clear()


@pytest.mark.usefixtures("command")
def test_what_this_system_cannot_measure_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import fresh, start
    from benchmarks.command import registered

    monkeypatch.setattr(fresh, "STATUS", tmp_path / "status")
    monkeypatch.setattr(start, "COMMAND", tmp_path / "fedsiege")
    for name in ("memory_1000", "memory_10000", "start_help", "start_list"):
        (found,) = registered()[name].run()
        assert (found.name, found.measured, found.value) == (name, False, None)
        assert str(tmp_path) in found.reason


@pytest.mark.usefixtures("command")
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc/self/status")
def test_a_child_does_not_inherit_its_parents_peak() -> None:
    """As `ru_maxrss` would: here the parent holds 300 MB more than the child."""
    from benchmarks import fresh

    held = bytearray(300 * 2**20)
    code = "from benchmarks import fresh; print(fresh.megabytes('VmHWM'))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(bench.ROOT), str(bench.ROOT / "src")])}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert 10 < float(done.stdout) < fresh.megabytes("VmRSS") - 100
    assert len(held) > 0


def test_python_m_benchmarks_is_the_command() -> None:
    environment = {**os.environ, "PYTHONPATH": str(bench.ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "no_such_figure"],
        cwd=bench.ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedsiege: error: bench: nothing is named 'no_such_figure'")
    assert len(done.stderr.splitlines()) == 1


def test_what_was_promised_is_registered(command: Any) -> None:
    known = command.registered()
    assert set(known) >= PROMISED
    for name, benchmark in known.items():
        assert benchmark.name == name
        assert benchmark.better in ("higher", "lower")
        assert benchmark.unit
        assert benchmark.about


def test_the_gpus_benchmarks_run_on_a_cpu_where_they_are_small(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import gpu
    from benchmarks.evidence import Setting

    for name, small in (("SIZE", 32), ("PRODUCTS", 1), ("REPEATS", 1)):
        monkeypatch.setattr(gpu, name, small)
    trained = gpu.trained("gpu_train_bf16", "bf16", "cpu", clients=1, images=4)
    assert [one.name for one in trained] == ["gpu_train_bf16", "gpu_train_bf16_limit"]
    recorded = gpu.recorded("gpu_evidence", Setting("cnn", 2, ours=6, theirs=3))
    assert [one.name for one in recorded] == ["gpu_evidence", "gpu_evidence_candidates"]
    assert all(one.value and one.value > 0 for one in (*trained, *recorded))


def test_without_a_gpu_its_figures_have_a_reason(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    names = [name for name in command.registered() if name.startswith("gpu_")]
    assert len(names) == 4
    for name in names:
        (figure,) = command.registered()[name].run()
        assert not figure.measured
        assert "no CUDA device" in figure.reason


def test_published_networks_pool_after_relu_and_compute_the_same(command: Any) -> None:
    from benchmarks.training import as_published

    from fedsiege.models.base import build_model

    for name in ("cnn", "alexnet"):
        ours = build_model(name, (3, 32, 32), 10)
        theirs = as_published(ours)
        stage = [type(layer).__name__ for name, layer in theirs.named_modules() if name.startswith("conv1.")]
        assert stage == ["Conv2d", "ReLU", "MaxPool2d"]
        x, gradients = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)), []
        for module in (ours, theirs):
            module(x).square().sum().backward()
            gradients.append([p.grad for p in module.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
