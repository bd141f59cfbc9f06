"""Processes that end with their owner, however deep they are and however it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedsiege.flower.processes import MARK, Processes, descendants, killed, marked, swept

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")

FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
deep = int(sys.argv[1])
if deep:
    subprocess.Popen([sys.executable, "-c", sys.argv[2], str(deep - 1), sys.argv[2]], start_new_session=True)
print("up", os.getpid(), flush=True)
time.sleep(600)
"""
"""A process that does not listen to SIGTERM, its child in a session of its own, and that one's."""

OWNER = """
import sys, time
from pathlib import Path
from fedsiege.flower.processes import Processes
processes = Processes()
processes.start([sys.executable, "-c", sys.argv[2], "2", sys.argv[2]], Path(sys.argv[1]), {})
time.sleep(600)
"""


def in_time(condition: Callable[[], bool]) -> bool:
    """Whether something comes true before patience ends."""
    for _ in range(600):
        if condition():
            return True
        time.sleep(0.1)
    return False


def pids(log: Path, many: int) -> list[int]:
    """The members of a family, when all of them are up."""

    def found() -> list[int]:
        return [int(line.split()[1]) for line in (log.read_text() if log.exists() else "").splitlines()]

    assert in_time(lambda: len(found()) == many)
    return found()


def runs(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has looked at does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as made:
        yield made


def family(processes: Processes, log: Path) -> list[int]:
    processes.start([sys.executable, "-c", FAMILY, "2", FAMILY], log, {})
    return pids(log, 3)


def test_children_of_children_end_although_they_do_not_listen(tmp_path: Path) -> None:
    with Processes() as processes:
        members = family(processes, tmp_path / "log")
        assert set(processes.marked()) == set(members)
        processes.end(grace=0.2)
        assert not any(runs(pid) for pid in members)
        assert processes.marked() == []


def test_an_error_of_the_owner_ends_them_too(tmp_path: Path) -> None:
    members = list[int]()

    def fails() -> None:
        with Processes() as processes:
            members.extend(family(processes, tmp_path / "log"))
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert len(members) == 3
    assert not any(runs(pid) for pid in members)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_they_end_however_the_owner_does(tmp_path: Path, number: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "log"), FAMILY],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    members = pids(tmp_path / "log", 3)
    mark = Path(f"/proc/{members[0]}/environ").read_bytes().split(f"{MARK}=".encode())[1].split(b"\0")[0].decode()
    owner.send_signal(number)
    owner.wait()
    assert in_time(lambda: not any(runs(pid) for pid in members))
    assert in_time(lambda: not watchers(mark))


def watchers(mark: str) -> list[str]:
    listed = subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if mark in line]


def test_a_process_that_listens_is_asked_before_it_is_killed(processes: Processes, tmp_path: Path) -> None:
    polite = "import signal, sys, time\nsignal.signal(15, lambda *_: sys.exit(print('bye', flush=True)))\n"
    log = tmp_path / "log"
    processes.start([sys.executable, "-c", f"{polite}print('up 0', flush=True)\ntime.sleep(600)"], log, {})
    pids(log, 1)
    processes.end(grace=60.0)
    assert log.read_text() == "up 0\nbye\n"


def test_processes_of_another_mark_are_left_alone(processes: Processes, tmp_path: Path) -> None:
    members = family(processes, tmp_path / "log")
    with Processes() as others:
        assert others.marked() == []
    swept("of nobody", grace=0.0)
    assert marked("of nobody") == []
    assert all(runs(pid) for pid in members)


def test_killed_takes_the_descendants_and_nobody_else(processes: Processes, tmp_path: Path) -> None:
    members, others = family(processes, tmp_path / "one"), family(processes, tmp_path / "other")
    assert set(descendants(members[0])) == set(members[1:])
    assert set(members) < set(descendants(os.getpid()))
    killed(members[1])
    assert in_time(lambda: not runs(members[1]) and not runs(members[2]))
    assert all(runs(pid) for pid in [members[0], *others])


def test_a_process_reads_what_it_is_given_and_logs_are_added_to(processes: Processes, tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    command = [sys.executable, "-c", "import os, sys; print(sys.stdin.read(), os.environ['GREETING'])"]
    assert processes.start(command, log, {"GREETING": "there"}, b"hello").wait() == 0
    assert log.read_text() == "before\nhello there\n"
