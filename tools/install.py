"""Installs the project into the environment that runs this: exact versions from the lock of this Python.

    python -m tools.install            the lock; where it cannot be installed, the ranges of pyproject.toml
    python -m tools.install --newest   the ranges of pyproject.toml
    python -m tools.install --lock     writes requirements/lock-PYTHON.txt anew, for each supported Python (make lock)

Needs pip and nothing else. The lock holds for what it names only, so a dependency that was added after the lock was
made installs too; ``make lock`` adds it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
PYTHONS = ("3.11", "3.12", "3.13")
PROJECT = ("-e", f"{ROOT}[dev]")

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


def captured(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command and keeps what it prints."""
    return subprocess.run(command, capture_output=True, text=True)


def lock_of(version: tuple[int, ...] = sys.version_info[:2]) -> Path:
    """Returns the file with the exact versions for a Python; it need not exist."""
    return ROOT / "requirements" / f"lock-{version[0]}.{version[1]}.txt"


def install(lock: Path, run: Run = captured) -> int:
    """Installs from a lock, or from the ranges where there is none or pip refuses it; returns the exit code."""
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


def lock() -> int:
    """Writes the locks; returns the exit code.

    uv resolves pyproject.toml for each supported Python, below requirements/limits.txt, in an environment of its own.
    The files name versions only, no hashes (a machine may serve repacked wheels) and no index.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        place = Path(folder) / "bin"
        subprocess.run([place / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        for python in PYTHONS:
            file = Path("requirements") / f"lock-{python}.txt"
            command = f"""pip compile pyproject.toml --extra dev --constraints requirements/limits.txt --upgrade --quiet
                --python-version {python} --python-platform x86_64-manylinux_2_28 --no-config --no-header
                --no-annotate --no-emit-index-url --no-emit-find-links --output-file {file}"""
            subprocess.run([place / "uv", *command.split()], check=True, cwd=ROOT)
            print(f"{file}: {len((ROOT / file).read_text().splitlines())} versions")
    return 0


if __name__ == "__main__":
    others = {"--newest": newest, "--lock": lock}
    sys.exit(others[sys.argv[1]]() if len(sys.argv) > 1 else install(lock_of()))
