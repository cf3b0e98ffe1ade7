"""The program in this process: what a command line comes to, short of its work."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from halpiee.cli.app import main

from .conftest import content, one_sentence


class Reached(BaseException):
    """The work was reached: what was typed is taken."""


def reach(*_: object, **__: object) -> Any:
    raise Reached


WORK = (
    "halpiee.training.pipeline.execute",
    "halpiee.studies.work.work",
    "halpiee.compare.cells.Ground.of",
    "halpiee.deploy.onnx.export_onnx",
    "halpiee.deploy.int8.export_int8",
    "halpiee.cli.doctor.examine",
    "latency.sweeping.LazySweep",
    "latency.timing.benchmark.compare",
    "latency.timing.throughput.measure_throughput",
)
"""Where the work of a verb begins."""


def stop_at(monkeypatch: pytest.MonkeyPatch, *places: str) -> None:
    """Ends a command where it reaches the work, or one of the places."""
    for place in (*WORK, *places):
        monkeypatch.setattr(place, reach)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int | None  # None: it reached its work
    said: str  # on stderr
    left: dict[str, bytes]  # files that it wrote or changed


def typed(arguments: list[str], folder: Path) -> Done:
    """Runs a command whose working folder is ``folder``; an error that is no refusal comes through."""
    before = content(folder)
    streams = sys.stdout, sys.stderr
    raw = io.BytesIO()
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(data, "utf-8", write_through=True) for data in (io.BytesIO(), raw)
    )
    code: int | None = None
    try:
        main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except Reached:
        pass
    finally:
        said = raw.getvalue().decode()
        sys.stdout, sys.stderr = streams
    after = content(folder)
    left = {name: data for name, data in after.items() if before.get(name) != data}
    return Done(code, said, left)


def refusal(done: Done) -> str | None:
    """Returns the sentence that a command was refused with, or None where it was not; checks that it is one."""
    if done.code in (None, 0):
        return None
    assert done.code in (2, 3, 4), done
    found = re.search(r"^(?:halpiee|Error): (.*)\Z", done.said.removesuffix("\n"), re.DOTALL | re.MULTILINE)
    assert found is not None, done.said
    assert one_sentence(found[0]), found[0]
    assert found[0].isprintable(), found[0]
    assert not done.left, list(done.left)
    return found[1]
