"""A run's folder: one owner at a time, nothing half written in it, nothing left of a run that was refused."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import latency
from halpiee.errors import BudgetError, OutputInUseError, UsageError, WriteError
from halpiee.training import pipeline
from halpiee.training.checkpoint import save_json, save_state, save_weights
from halpiee.training.preflight import open_run
from tests.forked import begin, end

from . import test_run
from .talk import Quiet, ended
from .test_run import Whole, execute, settings, weights

profile, toy, whole = test_run.profile, test_run.toy, test_run.whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_second_run_into_a_folder_is_refused_while_the_first_one_works(
    tmp_path: Path, profile: Path
) -> None:
    folder = tmp_path / "run"
    first = open_run(settings(profile), folder, Quiet())
    second = open_run(settings(profile), folder, Quiet(), resume=True)
    with first.owned():
        for resume in (False, True):
            with pytest.raises(OutputInUseError, match="another process is writing it; wait for it to end"):
                open_run(settings(profile), folder, Quiet(), resume=resume)
        with pytest.raises(OutputInUseError, match="another process is writing it; wait for it to end"):
            pipeline.execute(second)
        assert names(folder) == ["settings.json"]
    open_run(settings(profile), folder, Quiet(), resume=True)


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path

sys.path[:0] = [sys.argv[3], str(Path(sys.argv[3]) / "training")]
from talk import Quiet
import halpiee.training.preflight as run

def kill(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = kill
run.open_run(run.Settings.from_dict(__import__("json").loads(sys.argv[1])), Path(sys.argv[2]), Quiet())
"""


@pytest.mark.slow  # one start of torch
def test_a_run_killed_while_it_writes_its_settings_is_begun_by_the_same_command(
    tmp_path: Path, profile: Path, request: pytest.FixtureRequest
) -> None:
    folder, given = tmp_path / "run", settings(profile)
    tests = str(request.path.parents[1])
    started = begin(KILLED, json.dumps(given.as_dict()), str(folder), tests, said=tmp_path, ranks=1)
    ((code, _),) = end(started, tmp_path)
    assert code == -signal.SIGKILL
    (left,) = names(folder)
    assert left.startswith(".settings.json.")
    open_run(given, folder, Quiet())
    assert names(folder) == ["settings.json"]


def test_what_a_killed_process_left_half_written_is_gone_when_the_run_is_opened_again(
    tmp_path: Path, profile: Path
) -> None:
    folder = tmp_path / "run"
    open_run(settings(profile), folder, Quiet())
    for name in (".dense.state.41.3.part", ".report.json.41.17.part"):
        (folder / name).write_text("half")
    open_run(settings(profile), folder, Quiet(), resume=True)
    assert names(folder) == ["settings.json"]


def test_a_refused_run_leaves_its_folder_as_it_was(tmp_path: Path, profile: Path) -> None:
    folder = tmp_path / "new" / "run"
    with pytest.raises(BudgetError):
        execute(settings(profile, budget="5us"), folder)
    assert names(tmp_path) == ["profile.jsonl"]
    folder.mkdir(parents=True)
    with pytest.raises(UsageError):
        open_run(settings(profile, model="resnet99"), folder, Quiet())
    assert names(folder) == []
    open_run(settings(profile), folder, Quiet())


def test_a_refused_run_leaves_the_profile_it_measured_and_the_corrected_one_takes_it(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, measured = tmp_path / "run", latency.Profile.load(profile)

    def sweep(ops: object, *, path: Path, **_: Any) -> latency.Profile:
        measured.save(path, overwrite=True)
        return measured

    monkeypatch.setattr(latency, "sweep", sweep)
    with pytest.raises(BudgetError, match=r"what was measured is kept in .*run; it goes on from there"):
        execute(replace(settings(profile, budget="5us"), profile=None), folder)
    assert names(folder) == ["profile.jsonl"]
    open_run(replace(settings(profile), profile=None), folder, Quiet())
    assert names(folder) == ["profile.jsonl", "settings.json"]
    # a profile without cells is no reason to keep anything
    other = tmp_path / "other"
    measured = latency.Profile(measured.environment, [])
    with pytest.raises(UsageError):
        execute(replace(settings(profile), profile=None), other)
    assert not other.exists()


def test_a_folder_that_holds_anything_else_is_refused(tmp_path: Path, profile: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "profile.jsonl").write_text("mine")
    with pytest.raises(OutputInUseError, match="is not empty"):
        open_run(settings(profile), tmp_path / "notes", Quiet())
    assert names(tmp_path / "notes") == ["profile.jsonl"]


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_looked_at(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputInUseError, match="is a file; choose a folder that does not exist yet"):
        open_run(settings(profile), tmp_path / "file", Quiet())
    with pytest.raises(WriteError, match="a file stands where a folder belongs; name another place"):
        open_run(settings(profile, model="no such"), tmp_path / "file" / "run", Quiet())

    def refuse(path: object, mode: int = 0o777) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(WriteError, match="Read-only file system; name a place that may be written"):
        open_run(settings(profile, model="no such"), tmp_path / "run", Quiet())


def test_every_file_of_a_run_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_weights(tmp_path / "a.safetensors", {"w": torch.ones(3)})
        save_state(tmp_path / "a.state", {"step": 1})
        save_json(tmp_path / "a.json", {"µs": float("nan")})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


@pytest.mark.slow  # trains, and goes on
def test_a_full_disk_ends_a_run_whose_state_is_kept_and_continues_bit_equal(
    whole: Whole, tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, really, writes = tmp_path / "run", os.write, 0

    def write(descriptor: int, data: Any) -> int:
        nonlocal writes
        writes += "dense.state" in os.readlink(f"/proc/self/fd/{descriptor}")
        if writes > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(WriteError, match="No space left on device; free some space"):
        execute(settings(profile), folder)
    monkeypatch.undo()
    assert not [name for name in names(folder) if name.startswith(".")]
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    ended(open_run(settings(profile), folder, Quiet(), resume=True))
    for name, value in weights(whole.folder).items():
        assert torch.equal(value, weights(folder)[name]), name


@pytest.mark.slow  # trains, and goes on
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_closed_terminal_or_a_kill_saves_the_run_as_control_c_does(
    tmp_path: Path, profile: Path, number: signal.Signals
) -> None:
    class Ended(Quiet):
        def training(self, label: str, step: int, total: int, entry: object, pace: str) -> None:
            if (label, step) == ("dense", 7) and entry is None:
                for _ in range(2 if number is signal.SIGHUP else 1):  # the shell sends its own
                    os.kill(os.getpid(), number)

    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        execute(settings(profile), folder, Ended())
    assert torch.load(folder / "dense.state", weights_only=True)["step"] == 7
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    from halpiee.errors import ending_signals

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in ending_signals()
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert signal.SIGHUP in ending_signals()
    finally:
        signal.signal(signal.SIGHUP, before)
