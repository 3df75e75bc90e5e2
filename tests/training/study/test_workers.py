from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kizu.errors import UserError
from kizu.training.study.workers import pool

PARENT = """
import os, sys, time
from pathlib import Path
from kizu.training.study.workers import pool
sys.path.insert(0, {here!r})
from busy import note_and_sleep

if __name__ == "__main__":
    with pool(2) as workers:
        for index in range(2):
            workers.submit(note_and_sleep, {folder!r}, index)
        time.sleep(300)
"""
BUSY = """
import os, time
from pathlib import Path

def note_and_sleep(folder, index):
    part = Path(folder) / f"{index}.part"
    part.write_text(str(os.getpid()))
    part.rename(Path(folder) / f"{index}.pid")
    time.sleep(300)
"""


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(reached: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.05)
    return reached()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "busy.py").write_text(BUSY)
    script = tmp_path / "parent.py"
    script.write_text(PARENT.format(here=str(tmp_path), folder=str(tmp_path)))
    with subprocess.Popen([sys.executable, str(script)]) as parent:
        try:
            assert wait_until(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
            pids = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
            assert all(alive(pid) for pid in pids)
        finally:
            os.kill(parent.pid, signal.SIGKILL)
    assert wait_until(lambda: not any(alive(pid) for pid in pids), 20)


def test_what_a_worker_raises_arrives_and_those_that_still_work_end():
    began = time.monotonic()

    def wait_for_an_error() -> None:
        with pool(2) as workers:
            workers.submit(time.sleep, 300)
            workers.submit(int, "no number").result()

    with pytest.raises(ValueError, match="invalid literal"):
        wait_for_an_error()
    assert time.monotonic() - began < 200


def test_a_killed_worker_is_told_with_a_remedy():
    with pytest.raises(UserError, match="smaller --parallel"), pool(1) as workers:
        workers.submit(os.abort).result()


def test_work_that_ends_well_gives_its_results():
    with pool(1) as workers:
        assert [workers.submit(pow, 2, n).result() for n in range(4)] == [1, 2, 4, 8]
