"""Checks whether the profiles of a GPU can be trusted: three measurements of a few convolutions.

- *slope and event*: what an op takes between two events alone, over the slope of two graphs, which a profile holds. The
  excess is launch and graph entry; it should fall towards 1 as the op gets longer.
- *builds*: the same ops in several processes, each of which lets cuDNN try its algorithms anew: how often the choice
  differs, and how far the times are apart.
- *staircase*: one convolution over its output widths; where the time jumps lie the edges that a sweep must know.

    python -m tools.gpu_checks --precision fp16 --channels-last --batch 32 --json checks.json

On a CPU the same is done with the op alone and eight of it; there is no choice of algorithm to see.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from latency import Op
from latency._files import write
from latency.backends import Built
from latency.backends.torch import Torch
from latency.device import pinned
from latency.timing.timer import time_call

CONVS = ((64, 64, 56, 3), (256, 64, 56, 1), (256, 256, 14, 3), (1024, 256, 14, 1), (512, 512, 7, 3))
"""(C_in, C_out, size, kernel) of ResNet-50."""

JUMP = 0.08
"""A step of the staircase: so much more than the width before."""

REPEATED = 8


def main(arguments: list[str] | None = None) -> int:
    """Prints the three checks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", choices=["fp32", "tf32", "fp16", "bf16"])
    parser.add_argument("--channels-last", action="store_true", help="NHWC activations")
    parser.add_argument("--batch", type=int, default=1, help="images per call (default 1)")
    parser.add_argument("--builds", type=int, default=3, help="processes that choose algorithms (default 3)")
    parser.add_argument(
        "--step", type=int, default=8, help="channels between two widths of the staircase (default 8)"
    )
    parser.add_argument("--widest", type=int, default=256, help="last width of the staircase (default 256)")
    parser.add_argument("--size", type=int, help="image size of every conv, for a quick trial")
    parser.add_argument("--one-build", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also into this file")
    given = parser.parse_args(arguments)
    if min(given.builds, given.step, given.batch) < 1 or given.widest < given.step:
        parser.error("--builds, --step and --batch are 1 or more, and --widest at least --step")
    backend = Torch(device=given.device, precision=given.precision, channels_last=given.channels_last)
    with pinned(1):
        if given.one_build:
            print(json.dumps([timed(op, backend) for op in ops(given)]))
            return 0
        builds = [
            one_build(arguments if arguments is not None else sys.argv[1:]) for _ in range(given.builds)
        ]
        stairs = staircase(ops(given)[0], backend, range(given.step, given.widest + 1, given.step))
    found = {"environment": backend.environment(), **agreement(builds), "staircase": stairs}
    show(found)
    if given.json is not None:
        write(given.json, json.dumps(found, indent=1), overwrite=True)
    return 0


def ops(given: argparse.Namespace) -> list[Op]:
    """Returns the convolutions that the arguments ask for."""
    dtype = {"fp16": "float16", "bf16": "bfloat16"}.get(given.precision, "float32")
    return [
        Op(
            kind="conv", c_in=c_in, c_out=c_out, h=given.size or size, w=given.size or size, batch=given.batch,
            kernel=(k, k), stride=(1, 1), padding=(k // 2, k // 2), dilation=(1, 1), tail=("relu",), dtype=dtype,
            layout="nhwc" if given.channels_last else "nchw",
        )
        for c_in, c_out, size, k in CONVS
    ]  # fmt: skip


def timed(op: Op, backend: Any) -> dict[str, Any]:
    """Returns an op's slope and its time alone, in µs, with what the library chose."""
    built = backend.build(op)
    many, one, copies = pair(built)
    slope = time_call(many, minus=one, clock=backend.clock()).us / copies
    alone = time_call(one, clock=backend.clock()).us
    return {"op": op.key(), "slope_us": slope, "event_us": alone, "tactic": built.tactic}


def pair(built: Built) -> tuple[Callable[[], object], Callable[[], object], int]:
    """Returns a call of several ops, a call of one, and how many more the first holds."""
    if built.minus is not None:
        return built.run, built.minus, built.copies

    def many() -> object:
        for _ in range(REPEATED):
            answer = built.run()
        return answer

    return many, built.run, REPEATED - 1


def one_build(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """Measures the ops in a process of its own: within one, cuDNN keeps what it chose."""
    command = [sys.executable, "-m", "tools.gpu_checks", *arguments, "--one-build"]
    here = Path(__file__).resolve().parents[1]
    shown = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    if shown.returncode != 0:
        raise SystemExit(
            f"a build was to be timed in a process of its own, which ended so:\n{shown.stderr[-2000:]}"
        )
    found: list[dict[str, Any]] = json.loads(shown.stdout.splitlines()[-1])
    return found


def agreement(builds: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Compares several builds of the same ops.

    Returns:
        ``slope_and_event``: per op the medians over builds and their ratio; ``builds``: their number, the share of ops
        with more than one choice of algorithm, and per op largest over smallest slope, minus one.
    """
    rows = []
    for same in zip(*builds, strict=True):
        slope, event = (float(np.median([b[key] for b in same])) for key in ("slope_us", "event_us"))
        slopes = [b["slope_us"] for b in same]
        rows.append(
            {
                "op": same[0]["op"],
                "slope_us": slope,
                "event_us": event,
                "event_over_slope": event / slope,
                "choices": len({b["tactic"] for b in same}),
                "apart": max(slopes) / min(slopes) - 1.0,
            }
        )
    differ = sum(row["choices"] > 1 for row in rows) / len(rows)
    return {"slope_and_event": rows, "builds": {"n": len(builds), "differ": differ}}


def staircase(op: Op, backend: Any, widths: Sequence[int]) -> dict[str, Any]:
    """Returns µs of an op over its output widths, and the widths at which it jumps."""
    us = [timed(replace(op, c_out=width), backend)["slope_us"] for width in widths]
    return {"widths": list(widths), "us": us, "jumps": jumps(widths, us)}


def jumps(widths: Sequence[int], us: Sequence[float]) -> list[int]:
    """Returns the widths that take clearly longer than the one before."""
    return [w for w, before, now in zip(widths[1:], us, us[1:], strict=False) if now > (1.0 + JUMP) * before]


def show(found: dict[str, Any]) -> None:
    """Prints the checks as tables."""
    n = found["builds"]["n"]
    print(
        f"{'conv':24} {'slope µs':>9} {'event µs':>9} {'ratio':>6} {'choices':>8} {'apart':>6}   {n} builds"
    )
    for row in found["slope_and_event"]:
        key = row["op"]
        label = (
            f"{key['kernel'][0]}×{key['kernel'][0]} {key['c_in']}→{key['c_out']} {key['h']}px b{key['batch']}"
        )
        print(
            f"{label:24} {row['slope_us']:9.1f} {row['event_us']:9.1f} {row['event_over_slope']:6.2f} "
            f"{row['choices']:8d} {row['apart']:6.1%}"
        )
    print(f"ops whose algorithm differs between builds: {found['builds']['differ']:.0%}")
    stairs = found["staircase"]
    print(
        "staircase: "
        + " ".join(f"{w}:{us:.1f}" for w, us in zip(stairs["widths"], stairs["us"], strict=True))
    )
    print("jumps at: " + (", ".join(map(str, stairs["jumps"])) or "none"))


if __name__ == "__main__":
    sys.exit(main())
