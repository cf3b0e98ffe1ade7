"""Can the profiles of a GPU be trusted? Three measurements of a few convolutions, the part ``checks`` of a GPU session.

- *slope and event*: what an op takes between two events alone, over the slope of two graphs, which a profile holds. The
  excess is launch and graph entry; it should fall towards 1 as the op gets longer.
- *builds*: the same ops in several processes, each of which lets cuDNN try its algorithms anew: how often the choice
  differs, and how far the times are apart.
- *staircase*: one convolution over its output widths; where the time jumps lie the edges that a sweep must know.

On a CPU an op alone is compared with eight of it; there is no choice of algorithm to see.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latency import Op
from latency.backends import Built
from latency.backends.torch import Torch
from latency.device import PRECISIONS, pinned
from latency.timing.timer import time_call

CONVS = ((64, 64, 56, 3), (256, 64, 56, 1), (256, 256, 14, 3), (1024, 256, 14, 1), (512, 512, 7, 3))
"""(C_in, C_out, size, kernel) of ResNet-50."""

JUMP = 0.08
"""A step of the staircase: so much more than the width before."""

REPEATED = 8


@dataclass(frozen=True, kw_only=True)
class Convolutions:
    """The convolutions that are timed, NHWC."""

    device: str  # `cuda` or `cpu`
    precision: str  # of the arithmetic
    batch: int = 1  # images per call
    size: int | None = None  # of every image, for a quick trial

    def ops(self) -> list[Op]:
        """Returns the ops."""
        return [
            Op(
                kind="conv", c_in=c_in, c_out=c_out, h=self.size or size, w=self.size or size, batch=self.batch,
                kernel=(k, k), stride=(1, 1), padding=(k // 2, k // 2), dilation=(1, 1), tail=("relu",),
                dtype=PRECISIONS[self.precision], layout="nhwc",
            )
            for c_in, c_out, size, k in CONVS
        ]  # fmt: skip

    def backend(self) -> Torch:
        """Returns the backend that times them."""
        return Torch(device=self.device, precision=self.precision, channels_last=True)  # type: ignore[arg-type]


def measured(
    given: Convolutions, *, builds: int = 2, widths: Sequence[int] = range(8, 257, 8)
) -> dict[str, Any]:
    """Returns the three checks; ``builds`` processes choose algorithms, the staircase has these widths."""
    backend = given.backend()
    found = agreement([_built_apart(given) for _ in range(builds)])
    with pinned(1):
        us = [_timed(replace(given.ops()[0], c_out=width), backend)["slope_us"] for width in widths]
    staircase = {"widths": list(widths), "us": us, "jumps": jumps(widths, us)}
    return {**found, "staircase": staircase}


def _timed(op: Op, backend: Torch) -> dict[str, Any]:
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


def build(given: Convolutions) -> None:
    """Prints the times of the ops as JSON; the process of one build."""
    backend = given.backend()
    with pinned(1):
        print(json.dumps([_timed(op, backend) for op in given.ops()]))


def _built_apart(given: Convolutions) -> list[dict[str, Any]]:
    """Measures the ops in a process of its own: within one, cuDNN keeps what it chose."""
    code = f"from tools.gpu_checks import Convolutions, build; build(Convolutions(**{asdict(given)!r}))"
    here = Path(__file__).resolve().parents[1]
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=False
    )
    if shown.returncode != 0:
        raise RuntimeError(
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


def jumps(widths: Sequence[int], us: Sequence[float]) -> list[int]:
    """Returns the widths that take clearly longer than the one before."""
    return [w for w, before, now in zip(widths[1:], us, us[1:], strict=False) if now > (1.0 + JUMP) * before]
