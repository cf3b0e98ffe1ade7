"""``halpiee doctor``: checks what is installed and what can be measured here, and says how to fix the rest."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import time
from dataclasses import asdict, dataclass
from typing import Literal

import click

from halpiee.cli.options import Answered, verb
from halpiee.cli.output import answer, screen
from halpiee.errors import EXTRAS, HalpieeError, said
from latency.backends import Found

LEAST = {
    "torch": (2, 11),
    "torchvision": (0, 26),
    "onnx": (1, 18),
    "onnxruntime": (1, 22),
    "ortools": (9, 10),
}
"""Oldest versions that the tests have run with (pyproject.toml)."""

BUSY = 0.10
"""Share of wall time taken by others above which timings spread more (measured)."""


@dataclass(frozen=True)
class Finding:
    """One line of the result; states as in `latency.backends.Found`."""

    what: str
    state: Literal["ok", "note", "broken"]
    found: str
    fix: str = ""


@verb("doctor", Answered, examples=("halpiee doctor", "halpiee doctor --json"))
def command(given: Answered) -> None:
    """Look at versions, backends, threads and contention; say what to fix and how."""
    findings = examine()
    broken = any(f.state == "broken" for f in findings)

    def show() -> None:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for title in ("", "", "found", "what to do"):
            table.add_column(title, overflow="fold")
        colour = {"ok": "green", "note": "yellow", "broken": "red"}
        for f in findings:
            table.add_row(Text(f.state, style=colour[f.state]), f.what, f.found, f.fix)
        screen().print(table)

    answer({"healthy": not broken, "findings": [asdict(f) for f in findings]}, given.as_json, show)
    if broken:
        raise click.exceptions.Exit(3)


def examine() -> list[Finding]:
    """Returns every finding, the basics first."""
    python = Finding("Python", "ok", platform.python_version())
    return [python, *_packages(), *_backends(), *_threads(), _contention()]


def _packages() -> list[Finding]:
    findings = []
    for name, least in LEAST.items():
        wanted = ".".join(map(str, least))
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            extra = next(extra for extra, modules in EXTRAS.items() if name in modules)
            findings.append(Finding(name, "note", "not installed", f"pip install 'halpiee[{extra}]'"))
            continue
        numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
        if numbers < least:
            findings.append(Finding(name, "broken", version, f"pip install -U '{name}>={wanted}'"))
        else:
            findings.append(Finding(name, "ok", version))
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("torchvision") is None:
        return findings
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        fix = "pip install --force-reinstall torch torchvision (a CPU-only torch does not load PyPI's torchvision)"
        findings.append(Finding("torchvision loads", "broken", said(error, first=True), fix))
    return findings


def _backends() -> list[Finding]:
    """Returns what of every registered backend is here, and the libraries that open a GPU without PyTorch."""
    from latency.backends import BACKENDS
    from latency.backends.cuda import libraries

    findings = []
    for name in BACKENDS.names():
        try:
            found = BACKENDS[name].found() or [(f"backend {name}", Found("note", "registered"))]
        except HalpieeError as error:  # of another package, which does not load
            found = [(f"backend {name}", Found("broken", str(error)))]
        findings += [Finding(what, one.state, one.what, one.fix) for what, one in found]
    return findings + [Finding(what, one.state, one.what, one.fix) for what, one in libraries()]


def _threads() -> list[Finding]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    policy = os.environ.get("OMP_WAIT_POLICY", "unset")
    findings = [Finding("cores", "ok" if cores > 1 else "note", str(cores))]
    if policy.upper() == "PASSIVE":
        findings.append(Finding("OMP_WAIT_POLICY", "ok", policy))
    else:
        text = f"{policy}: spinning threads can slow training thirty times on a shared machine"
        findings.append(Finding("OMP_WAIT_POLICY", "note", text, "export OMP_WAIT_POLICY=PASSIVE"))
    return findings


def _contention(seconds: float = 0.5) -> Finding:
    """Returns the share of half a second of computing that other processes took."""
    wall, cpu = time.perf_counter(), time.thread_time()
    while time.perf_counter() - wall < seconds:
        pass
    index = 1 - (time.thread_time() - cpu) / (time.perf_counter() - wall)
    text = f"{max(index, 0.0):.0%} of the time went to others"
    if index > BUSY:
        return Finding("contention", "note", text, "close other work, or measure with one thread (CPU time)")
    return Finding("contention", "ok", text)
