"""Writes requirements/lock-PYTHON.txt: the exact versions that ``make demo`` and ``make test`` install.

uv resolves pyproject.toml for each supported Python, below requirements/limits.txt, in an environment of its own. The
files name versions only, no hashes (a machine may serve repacked wheels) and no index.
"""

from __future__ import annotations

import subprocess
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")


def main() -> None:
    """Resolves for every Python, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        place = Path(folder) / "bin"
        subprocess.run([place / "python", "-m", "pip", "install", "--quiet", "uv"], check=True)
        for python in PYTHONS:
            lock = Path("requirements") / f"lock-{python}.txt"
            command = f"""pip compile pyproject.toml --extra dev --constraints requirements/limits.txt --upgrade --quiet
                --python-version {python} --python-platform x86_64-manylinux_2_28 --no-config --no-header
                --no-annotate --no-emit-index-url --no-emit-find-links --output-file {lock}"""
            subprocess.run([place / "uv", *command.split()], check=True, cwd=ROOT)
            print(f"{lock}: {len((ROOT / lock).read_text().splitlines())} versions")


if __name__ == "__main__":
    main()
