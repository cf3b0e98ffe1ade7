"""How a run ends that somebody else ends: the terminal is closed, or the locale knows no µ."""

from __future__ import annotations

import functools
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TRAIN = [
    *(
        "train",
        "toy:net",
        "--data",
        "toy:data",
        "--method",
        "magnitude",
        "--sparsity",
        "0.5",
        "--epochs",
        "100000",
    ),
    *("--batch-size", "12", "--no-baseline", "--device", "cpu", "--out"),
]


def environment(**other: str) -> dict[str, str]:
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests / "training")])
    return {**os.environ, "PYTHONPATH": path, **other}


def controlled_by(slave: int) -> None:
    """Gives this process a terminal of its own, whose end it hears of also where the tests run under nohup."""
    os.close(os.open(os.ttyname(slave), os.O_RDWR))
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.mark.slow  # starts torch, and trains a moment
def test_a_terminal_that_is_closed_ends_a_run_whose_state_is_saved(tmp_path: Path) -> None:
    master, slave = pty.openpty()
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "halpiee", *TRAIN, str(folder)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env=environment(),
        preexec_fn=functools.partial(controlled_by, slave),
    )
    os.close(slave)
    os.set_blocking(master, False)
    while not (folder / "pruned.state").exists() and process.poll() is None:
        time.sleep(0.05)
        try:
            os.read(master, 65536)
        except BlockingIOError:
            continue
    before = (folder / "pruned.state").stat().st_mtime_ns
    os.close(master)
    assert process.wait(timeout=60) == 130
    assert (folder / "pruned.state").stat().st_mtime_ns >= before
    assert not [name for name in os.listdir(folder) if name.endswith(".part")]


@pytest.mark.slow  # starts torch
def test_a_locale_without_micro_signs_changes_no_file_and_fails_no_table(finished_run: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    shown = subprocess.run(
        [sys.executable, "-m", "halpiee", "report", str(finished_run)],
        capture_output=True,
        check=True,
        env=environment(**plain),
    )
    assert b"?s" in shown.stdout + shown.stderr  # the terminal cannot show µs
    for name in ("report.html", "report.md"):
        assert "µs" in (finished_run / name).read_bytes().decode("utf-8")


def test_a_file_in_the_way_of_an_answer_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "net.onnx")
    for arguments in (
        ["export", "no-such-model", "--out", out],
        ["bench", "no-such-model", "--csv", out],
        ["explain", "no-such-model", "--ops", out],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "halpiee", *arguments], capture_output=True, text=True, env=environment()
        )
        assert done.returncode == 2
        assert "a file stands where a folder belongs" in done.stderr
        assert "Traceback" not in done.stderr
