"""A real sweep process, killed at random moments, and started again."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latency.profiles import Profile

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[2])
from fakes import FakeBackend, conv, staircase
import latency, time

backend = FakeBackend(staircase(8))
build = backend.build
backend.build = lambda op: (time.sleep(0.006), build(op))[1]
latency.sweep([conv(32, 32), conv(64, 64), conv(64, 64, groups=64)], backend=backend, path=sys.argv[1])
"""


KILLS = 20


@pytest.mark.slow  # twenty-one starts of Python
def test_a_sweep_killed_twenty_times_loses_no_line_and_measures_no_cell_twice(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "p.jsonl"
    command = [sys.executable, "-c", PROGRAM, str(path), str(request.path.parent)]
    rng = random.Random(0)
    seen: list[str] = []
    for _ in range(KILLS):
        process = subprocess.Popen(command)
        # Until this start has written a line, and then a moment more: Python starts slower than it measures.
        while process.poll() is None and lines_of(path)[: len(seen) + 1] == seen:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.03))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        lines = lines_of(path)
        assert lines[: len(seen)] == seen
        seen = lines
        if seen:
            Profile.load(path)
    subprocess.run(command, check=True)
    assert lines_of(path)[: len(seen)] == seen
    keys = [
        (c["op"], c["groups"] > 1, c["c_in"], c["c_out"], c["role"])
        for c in map(json.loads, lines_of(path)[1:])
    ]
    assert len(keys) == len(set(keys)) > len(seen)


def lines_of(path: Path) -> list[str]:
    """Returns the whole lines of a file that may not be there yet."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1].decode().splitlines()


def test_two_processes_do_not_sweep_into_one_file(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = tmp_path / "p.jsonl"
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from latency.profile_io import Journal\n"
            "journal = Journal(Path(sys.argv[1]), {}); print('open', flush=True); time.sleep(60)",
            str(path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        second = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(path), str(request.path.parent)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "is being written by another sweep; wait for it, or name another file" in second.stderr
    finally:
        holder.kill()
        holder.wait()
        if holder.stdout is not None:
            holder.stdout.close()
