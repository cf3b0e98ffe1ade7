"""The lock is what is installed, and where it cannot be, one line says so and the ranges are."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tools.install import ROOT, install, lock_of

Capture = pytest.CaptureFixture[str]

INSTALLED = ("profile", "train", "report", "cpsat", "dev")
LOCKS = sorted((ROOT / "requirements").glob("lock-*.txt"))


class Pip:
    """Refuses what was named, and writes down how it was called."""

    def __init__(self, *, lock: bool, ranges: bool) -> None:
        self.takes = {True: lock, False: ranges}
        self.calls: list[bool] = []

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        locked = "-c" in command
        self.calls.append(locked)
        said = "WARNING: old pip\nERROR: No matching distribution found for torch==2.14.1\nERROR: more\n"
        taken = self.takes[locked]
        return subprocess.CompletedProcess(list(command), 0 if taken else 1, "", "" if taken else said)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock-3.11.txt"
    path.write_text("torch==2.14.1\n")
    return path


def test_a_lock_that_installs_is_all_that_is_installed(lock: Path, capsys: Capture) -> None:
    pip = Pip(lock=True, ranges=True)
    assert install(lock, pip) == 0
    assert pip.calls == [True]
    assert capsys.readouterr().out == ""


def test_the_ranges_are_installed_where_the_lock_cannot_be_and_one_line_says_so(
    lock: Path, capsys: Capture
) -> None:
    pip = Pip(lock=False, ranges=True)
    assert install(lock, pip) == 0
    assert pip.calls == [True, False]
    assert capsys.readouterr().out == (
        "install: lock-3.11.txt cannot be installed here (No matching distribution found for torch==2.14.1); "
        "installing the ranges of pyproject.toml\n"
    )


def test_a_python_without_a_lock_gets_the_ranges_and_the_line(tmp_path: Path, capsys: Capture) -> None:
    pip = Pip(lock=True, ranges=True)
    assert install(tmp_path / "lock-3.19.txt", pip) == 0
    assert pip.calls == [False]
    assert "lock-3.19.txt cannot be installed here (no such file)" in capsys.readouterr().out


def test_what_cannot_be_installed_at_all_fails_with_pips_own_words(lock: Path, capsys: Capture) -> None:
    assert install(lock, Pip(lock=False, ranges=False)) == 1
    assert "No matching distribution found" in capsys.readouterr().err


def test_every_supported_python_has_a_lock() -> None:
    assert [path.name for path in LOCKS] == ["lock-3.11.txt", "lock-3.12.txt", "lock-3.13.txt"]
    assert lock_of((3, 12, 1)) in LOCKS


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_holds_exact_versions_and_nothing_else(path: Path) -> None:
    odd = [
        line for line in path.read_text().splitlines() if not re.fullmatch(r"[a-z0-9.\-]+==[a-z0-9.+]+", line)
    ]
    assert odd == []


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_names_every_dependency_of_the_project(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(line for e in INSTALLED for line in extras[e])]
    names = {re.split(r"[<>=!~;\[ ]", line)[0].lower().replace("_", "-") for line in asked}
    names.discard("halpiee")  # an extra that names another one
    assert names - {line.split("==")[0] for line in path.read_text().splitlines()} == set()  # else: make lock
