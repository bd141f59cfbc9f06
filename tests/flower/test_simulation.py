"""A simulation that is interrupted leaves nothing behind, and goes on where it was; what cannot run is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("flwr", reason="Flower is not installed; it comes with the extra flower")
pytest.importorskip("ray", reason="Ray is not installed; it comes with the extra flower")

pytestmark = pytest.mark.flower

CONFIG: dict[str, Any] = {
    "data": "digits",
    "clients": 4,
    "rounds": 40,
    "threads": 1,
    "device": "cpu",
    "record_every": 20,
    "checkpoint_every": 1,
    "examples_per_client": 60,
    "defences": [{"name": "loden", "warmup": 1}],
    "attacks": ["loss_series"],
    "candidates": {"members": 20, "ifl": 20, "ofl": 20},
}


def command(config: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "fedsiege", "run", str(config), "--out", str(out), "--quiet", *options]


def marked(mark: str) -> list[str]:
    """The processes of this machine that were started with such a mark in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if mark.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_an_interrupted_simulation_leaves_no_process_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump(CONFIG))
    out, mark = tmp_path / "flower", f"FEDSIEGE_TEST_MARK={tmp_path.name}.{os.getpid()}"
    name, _, value = mark.partition("=")
    begun = subprocess.Popen(
        command(config, out, "--set", "engine=flower"),
        env={**os.environ, name: value},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    until = time.monotonic() + 240
    while not (out / "checkpoint.safetensors").is_file():
        assert begun.poll() is None, begun.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    assert len(marked(mark)) > 2  # Ray's
    begun.send_signal(signal.SIGINT)
    said, _ = begun.communicate(timeout=120)
    assert begun.returncode == 130, said
    assert "interrupted; go on with --resume" in said
    until = time.monotonic() + 30
    while marked(mark) and time.monotonic() < until:
        time.sleep(0.2)
    assert marked(mark) == []

    again = subprocess.run(
        command(config, out, "--set", "engine=flower", "--resume"), capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    local = tmp_path / "local"
    assert subprocess.run(command(config, local), check=False).returncode == 0
    for path in [Path("scores.parquet"), *(one.relative_to(local) for one in (local / "trace").iterdir())]:
        assert (out / path).read_bytes() == (local / path).read_bytes(), path
    assert (
        json.loads((out / "result.json").read_text())["warnings"]
        == json.loads((local / "result.json").read_text())["warnings"]
    )


def test_without_flower_one_message_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import importlib.util, sys\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'flwr' else find(name)\n"
        "from fedsiege.cli import execute\n"
        f"sys.exit(execute(['run', 'quickstart', '--quiet', '--out', {str(tmp_path / 'out')!r}, "
        "'--set', 'engine=flower', '--set', 'rounds=2', '--set', 'record_every=1']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "engine: flower needs flwr, which is not installed" in done.stderr
    assert "pip install fedsiege[flower]" in done.stderr
