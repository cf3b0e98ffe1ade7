"""Plans of a small network from a made-up profile, as the tests of ``halpiee plan`` ask for them."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

import halpiee
from halpiee.cli.app import program
from halpiee.errors import HalpieeError
from latency import Profile

MODEL = ("separable:build", "--width", "0.25")
SIZES = ("--size", "3x16x16")


def write_profile(structure: halpiee.Structure, path: Path, *, batch: int = 1) -> Path:
    """Every op costs 1 + C_in·C_out/10 (a depthwise one 1 + C) µs per image, at multiples of 4."""
    cells = {}
    for timed in structure.ops:
        ins, outs = (range(4, c + 1, 4) if c % 4 == 0 else [c] for c in (timed.op.c_in, timed.op.c_out))
        for i, o in itertools.product(ins, outs):
            if timed.op.diagonal and i * timed.op.c_out != o * timed.op.c_in:
                continue
            key = {**timed.op.with_channels(i, o).key(), "batch": batch}
            cost = 1 + (i if timed.op.diagonal else i * o / 10)
            cells[json.dumps(key)] = {**key, "us": batch * cost, "role": "sweep", "steps": [4, 4]}
    Profile({}, cells.values()).save(path)
    return path


def run(profile: Path, *options: str) -> Result:
    base = ["plan", *MODEL, *SIZES, "--profile", str(profile)]
    return CliRunner().invoke(program, [*base, *options])


def plan(profile: Path, *options: str) -> dict[str, Any]:
    shown = run(profile, "--json", *options)
    assert shown.exception is None, shown.exception
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def refusal(profile: Path, kind: type[HalpieeError], *options: str) -> str:
    shown = run(profile, *options)
    assert isinstance(shown.exception, kind), shown.output
    return str(shown.exception)
