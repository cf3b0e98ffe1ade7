"""Installs the project into the environment that runs this: exact versions from the lock of this Python.

    python -m tools.install            the lock; where it cannot be installed, the ranges of pyproject.toml
    python -m tools.install --newest   the ranges of pyproject.toml

Needs pip and nothing else. The lock holds for what it names only, so a dependency that was added after the lock was
made installs too; ``make lock`` adds it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
PROJECT = ("-e", f"{ROOT}[dev]")

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def captured(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command and keeps what it prints."""
    return subprocess.run(command, capture_output=True, text=True)


def lock_of(version: tuple[int, ...] = sys.version_info[:2]) -> Path:
    """Returns the file with the exact versions for a Python; it need not exist."""
    return ROOT / "requirements" / f"lock-{version[0]}.{version[1]}.txt"


def install(lock: Path, run: Run = captured) -> int:
    """Installs from a lock, or from the ranges where there is no lock or pip refuses it.

    Args:
        lock: file of ``name==version`` lines, read by pip as constraints.
        run: runs a command and returns how it ended and what it printed.

    Returns:
        The exit code: 0 installed, 1 neither the lock nor the ranges can be.
    """
    if not lock.is_file():
        why = "no such file"
    else:
        tried = run([*PIP, "-c", str(lock), *PROJECT])
        if tried.returncode == 0:
            return 0
        errors = [
            line.removeprefix("ERROR: ") for line in tried.stderr.splitlines() if line.startswith("ERROR")
        ]
        why = errors[0] if errors else f"pip ended with {tried.returncode}"
    print(
        f"install: {lock.name} cannot be installed here ({why}); installing the ranges of pyproject.toml",
        flush=True,
    )
    return newest(run)


def newest(run: Run = captured) -> int:
    """Installs the newest versions that pyproject.toml and this machine allow; returns the exit code."""
    tried = run([*PIP, *PROJECT])
    if tried.returncode:
        print(tried.stderr, file=sys.stderr)
    return int(tried.returncode != 0)


if __name__ == "__main__":
    sys.exit(newest() if sys.argv[1:] == ["--newest"] else install(lock_of()))
