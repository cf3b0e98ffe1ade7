"""A small network and made-up tables, so that costs can be checked by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from halpiee.selection.cost import Also, Cost
from halpiee.selection.grid import FloatArray, IntArray
from halpiee.selection.limits import solve_within
from halpiee.selection.options import offer
from halpiee.structure.groups import ChannelGroup, GroupRef, Structure, TimedOp
from halpiee.structure.plan import Selection
from latency.backends import Built
from latency.op import Op

Refs = tuple[GroupRef, ...]


class FormulaTable:
    """A table that answers from a formula; cells whose widths are multiples of ``step`` count as measured."""

    def __init__(self, formula: Callable[[np.ndarray, np.ndarray], np.ndarray], step: int = 1) -> None:
        self.formula, self.step = formula, step

    def lookup(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        c_in, c_out = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        return np.asarray(self.formula(c_in.astype(float), c_out.astype(float)))

    def measured(self, c_in: IntArray, c_out: IntArray) -> NDArray[np.bool_]:
        c_in, c_out = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        return np.asarray((c_in % self.step == 0) & (c_out % self.step == 0))


class FormulaProfile:
    """One formula per kind of op; kinds that are not named have no table."""

    def __init__(self, step: int = 1, **formulas: Any) -> None:
        self.step, self.formulas = step, formulas

    def table(self, op: Op) -> FormulaTable | None:
        formula = self.formulas.get("depthwise" if op.depthwise else op.kind)
        return None if formula is None else FormulaTable(formula, self.step)


class FormulaBackend:
    """A runtime whose ops take ``us(op)`` µs of its own clock."""

    name, kind = "formula", "cpu"

    def __init__(self, us: Callable[[Op], float]) -> None:
        self.us, self.now_us = us, 0.0

    def environment(self) -> dict[str, object]:
        return {"backend": self.name, "device": "imagined", "threads": 1, "dtype": "float32"}

    def clock(self) -> FormulaBackend:
        return self

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        begun = self.now_us
        run()
        return self.now_us - begun, self.now_us - begun

    def anchor(self) -> None:
        return None

    def build(self, op: Op) -> Built:
        def run() -> None:
            self.now_us += self.us(op)

        return Built(run=run)


def group(name: str, size: int, *, prunable: bool = True, may_vanish: bool = False) -> ChannelGroup:
    reason = None if prunable else "network input"
    return ChannelGroup(name, size, 0, prunable, may_vanish, reason)


def conv(layer: str, ins: Refs, outs: Refs, sizes: dict[str, int], kernel: int = 3) -> TimedOp:
    c_in, c_out = (sum(m * sizes[g] for g, m in refs) for refs in (ins, outs))
    depthwise = ins == outs
    op = Op(
        kind="conv",
        c_in=c_in,
        c_out=c_out,
        h=8,
        w=8,
        kernel=(kernel, kernel),
        stride=(1, 1),
        padding=(1, 1),
        dilation=(1, 1),
        groups=c_in if depthwise else 1,
    )
    return TimedOp(op, layer, ins, outs)


def other(kind: str, layer: str, ins: Refs, outs: Refs, sizes: dict[str, int]) -> TimedOp:
    c_in, c_out = (sum(m * sizes[g] for g, m in refs) for refs in (ins, outs))
    return TimedOp(Op(kind=kind, c_in=c_in, c_out=c_out, h=8, w=8), layer, ins, outs)


def structure(groups: list[ChannelGroup], ops: list[TimedOp]) -> Structure:
    return Structure(layers=(), groups=tuple(groups), ops=tuple(ops), slots=())


def residual(sizes: dict[str, int] | None = None) -> Structure:
    """Stem → (a: 3×3, 3×3 back onto the stream) + skip → linear head."""
    sizes = {"input": 3, "stream": 8, "a": 8, "head": 10, **(sizes or {})}
    one = {name: ((name, 1),) for name in sizes}
    return structure(
        [
            group("input", 3, prunable=False),
            group("stream", sizes["stream"]),
            group("a", sizes["a"], may_vanish=True),
            group("head", 10, prunable=False),
        ],
        [
            conv("stem", one["input"], one["stream"], sizes),
            conv("block.conv1", one["stream"], one["a"], sizes),
            conv("block.conv2", one["a"], one["stream"], sizes),
            other("add", "block.add", one["stream"], one["stream"], sizes),
            other("linear", "head", one["stream"], one["head"], sizes),
        ],
    )


def select_within(
    scores: Mapping[str, Tensor],
    limits: Sequence[tuple[Cost, float]],
    *,
    names: Sequence[str] = (),
    **how: Any,
) -> Selection:
    """Selects units within several costs, over the candidate widths of the first."""
    called = names or [f"limit {n}" for n in range(len(limits))]
    others = [Also(name, *limit) for name, limit in zip(called, limits, strict=True)]
    return solve_within(offer(scores, others[0].cost.limited(*others[1:])), others, **how)
