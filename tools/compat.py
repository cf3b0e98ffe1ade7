"""The test suite on every supported torch and Python: ``make compat`` writes docs/compatibility.md.

Each pair gets an environment of its own (6 GB), one after the other; an environment goes when its tests have run. What
has run is in runs/compat/journal.jsonl, by commit, Python, torch and folder of tests, so that the same command goes on
where it was interrupted. pip is used as this machine configures it: where that caps torch, "newest" is the cap.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
TORCHES = {
    "2.11": ("torch==2.11.*", "torchvision==0.26.*"),
    "2.14": ("torch==2.14.*", "torchvision==0.29.*"),
    "newest": ("torch>=2.14", "torchvision>=0.29"),
}
"""What pip is asked for. The first is the lowest that pyproject.toml allows."""
HEAD = """# Versions that the tests pass on

Written by `make compat`. `halpiee` allows what stands in `pyproject.toml`; these were tried. *Slow* says whether the
tests marked slow ran too. Other packages are the newest that pip takes.

| Python | torch | torchvision | passed | failed | skipped | slow | commit |
|---|---|---|---:|---:|---:|---|---|
"""


def find(python: str, path: str | None = None, roots: Iterable[Path] = ()) -> str | None:
    """Returns an interpreter of a version such as ``3.12``, from the path or a pyenv root; None without one."""
    there = [shutil.which(f"python{python}", path=path)]
    there += [
        str(p) for root in roots for p in sorted(root.glob(f"versions/{python}.*/bin/python"), reverse=True)
    ]
    for found in filter(None, there):
        if (
            subprocess.run([found, "--version"], capture_output=True).returncode == 0
        ):  # a shim may lead nowhere
            return found
    return None


def counts(report: Path) -> dict[str, Any]:
    """Returns what pytest's JUnit file says: passed, failed, skipped and the names of what failed."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    bad = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    return {
        "passed": len(cases) - len(bad) - len(skipped),
        "failed": len(bad),
        "skipped": len(skipped),
        "failing": [f"{c.get('classname')}::{c.get('name')}" for c in bad],
    }


def table(rows: Sequence[dict[str, Any]], missing: Sequence[str]) -> str:
    """Returns docs/compatibility.md: one row an environment, of the newest commit it ran on."""
    newest: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        at = (row["python"], row["torch"], row["torchvision"])
        kept = newest.setdefault(at, [])
        if kept and kept[0]["commit"] != row["commit"]:
            kept.clear()
        kept[:] = [other for other in kept if other["folder"] != row["folder"]] + [row]
    text, failing = HEAD, []
    for (python, torch, vision), kept in sorted(newest.items()):
        passed, failed, skipped = (sum(row[key] for row in kept) for key in ("passed", "failed", "skipped"))
        slow = "yes" if all(row["slow"] for row in kept) else "no"
        text += f"| {python} | {torch} | {vision} | {passed} | {failed} | {skipped} | {slow} | {kept[0]['commit']} |\n"
        failing += [f"- torch {torch}, Python {python}: `{name}`" for row in kept for name in row["failing"]]
    if failing:
        text += "\nFailing:\n\n" + "\n".join(failing) + "\n"
    if missing:
        text += f"\nNot tried, since the machine has no such interpreter: Python {', '.join(missing)}.\n"
    return text


def prepare(place: Path, interpreter: str, given: Sequence[str]) -> tuple[str, str] | None:
    """Makes the environment unless it is there; returns the versions of torch and torchvision, None if pip refuses."""
    python = place / "bin" / "python"
    if not (place / "ready").exists():
        subprocess.run([interpreter, "-m", "venv", "--clear", place], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        done = subprocess.run([*pip, *given, "-e", f"{ROOT}[dev]"], capture_output=True, text=True)
        if done.returncode:
            print(
                "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")), flush=True
            )
            return None
        (place / "ready").touch()
    code = "from importlib.metadata import version as v; print(v('torch'), v('torchvision'))"
    torch, vision = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    return torch, vision


def test(python: Path, folder: str, *, slow: bool, report: Path) -> dict[str, Any]:
    """Runs one folder of tests, and returns its counts and seconds; a run without a report counts as one failure."""
    report.unlink(missing_ok=True)
    marks = [] if slow else ["-m", "not slow"]
    begun = time.monotonic()
    command = [str(python), "-m", "pytest", "-q", folder, *marks, f"--junitxml={report}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    code = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment).returncode
    if not report.exists():
        found = {"passed": 0, "failed": 1, "skipped": 0, "failing": [f"{folder} (pytest ended with {code})"]}
    else:
        found = counts(report)
    return {**found, "seconds": round(time.monotonic() - begun)}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs what has not run on this commit; returns 1 where tests failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--python", nargs="*", default=PYTHONS, choices=PYTHONS)
    parser.add_argument("--torch", nargs="*", default=tuple(TORCHES), choices=tuple(TORCHES))
    parser.add_argument("--full", action="store_true", help="the slow tests too")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "compat")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "compatibility.md")
    given = parser.parse_args(argv)
    git = ["git", "-C", str(ROOT)]
    if subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout.strip():
        sys.exit("compat: tracked files differ from the commit, and results go by commit: commit them first")
    head = subprocess.run(
        [*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True
    )
    commit = head.stdout.strip()
    given.folder.mkdir(parents=True, exist_ok=True)
    journal = given.folder / "journal.jsonl"
    rows = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    folders = sorted(
        f"tests/{p.name}" for p in (ROOT / "tests").iterdir() if re.match(r"test_|[a-z]+$", p.name)
    )
    missing, refused = [], False
    for python in given.python:
        interpreter = find(python, roots=[Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))])
        if interpreter is None:
            missing.append(python)
            continue
        for label in given.torch:
            at = {"python": python, "asked": label, "commit": commit, "slow": given.full}
            done = {row["folder"] for row in rows if at.items() <= row.items()}
            if done >= set(folders):
                continue
            place = given.folder / f"py{python}-torch{label}"
            versions = prepare(place, interpreter, TORCHES[label])
            if versions is None:
                print(f"compat: Python {python}, torch {label}: cannot be installed here", flush=True)
                refused = True
                continue
            for folder in folders:
                if folder in done:
                    continue
                found = test(
                    place / "bin" / "python", folder, slow=given.full, report=given.folder / "report.xml"
                )
                row = {**at, "torch": versions[0], "torchvision": versions[1], "folder": folder, **found}
                rows.append(row)
                with journal.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(
                    f"{python} torch {versions[0]} {folder}: {row['passed']} passed, {row['failed']} failed",
                    flush=True,
                )
            if not given.keep:
                shutil.rmtree(place)
    text = table(rows, missing)
    given.out.write_text(text)
    print(text)
    return int(refused or any(row["failed"] for row in rows if row["commit"] == commit))


if __name__ == "__main__":
    sys.exit(main())
