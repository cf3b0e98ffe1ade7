"""Where are the steps? They are found by measuring a standard shape of each kind of op, never assumed.

Along one axis of a 64-channel op a dozen widths below 64 tell the step: the largest g of 2, 4 … 32 for which the
widths between 64 − g and 64 save next to nothing. (On a CPU with AVX-512 that is 16, with AVX2 8; widths inside a step
may be *slower* than its edge, by 30 % and more.) The edges up to 128 then tell the pattern: whether the steps differ
in a period of 2, 4 or 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from latency.device import TimingPolicy
from latency.op import Op, filled
from latency.table import FloatArray, normalised_width

DEFAULT = TimingPolicy()

BASE = 64
"""Width of the standard shape: a multiple of every block of channels in use."""

ELSEWHERE = 8
"""Steps from here on must show at two of 64, 48 and 32 channels.

One slowed run, or the last block of a kernel's four, which costs little, looks like a step of 16 at 64 channels: widths
inside it then cost up to 40 % too much. One run that was too fast hides a step.
"""


@dataclass(frozen=True)
class Steps:
    """Steps of the two axes of one kind of op, and the patterns in which they repeat."""

    steps: tuple[int, int]  # widths whose multiples are the edges, for C_in and C_out
    # for each axis None (equal steps) or the shares of a period's cost at its edges, up to 1
    pattern: tuple[tuple[float, ...] | None, tuple[float, ...] | None] = (None, None)
    # for each axis whether steps are neither equal nor periodic: edges tell nothing of others
    irregular: tuple[bool, bool] = (False, False)
    # for each axis None, or `(align, factor)`: widths inside a step that are no multiple of `align` take `factor` times
    # as long as its edge
    slow: tuple[tuple[int, float] | None, tuple[int, float] | None] = (None, None)

    def fields(self) -> dict[str, Any]:
        """Returns what a cell states of them."""
        shared: dict[str, Any] = {"steps": list(self.steps)}
        for name, axes in (("pattern", self.pattern), ("slow", self.slow)):
            if any(axes):
                shared[name] = [list(axis) if axis else None for axis in axes]
        return shared


def kind_of(op: Op) -> tuple[object, ...]:
    """Returns what decides an op's steps: of ops with the same the one with most work is probed, once."""
    return op.kind, len(op.kernel), op.depthwise, op.dtype, op.layout


def axes_of(op: Op) -> tuple[int, ...]:
    """Returns the axes that are probed: 0 for C_in (or both sides of a diagonal op), 1 for C_out."""
    return (0,) if op.diagonal else (0, 1)


def probe_op(op: Op, axis: int, width: int) -> Op:
    """Returns the standard shape of an op's kind, with one axis at a width."""
    groups = BASE if op.depthwise else 1
    n = len(op.kernel) if op.spec.window else 0  # a patch of 16×16 pixels needs so many
    reach = [d * (k - 1) + 1 for k, d in zip(op.kernel, filled(op.dilation, n, 1), strict=True)] if n else [1]
    most = max(14, *reach)
    small = replace(
        op,
        c_in=BASE,
        c_out=BASE,
        groups=groups,
        d=min(op.d, 4),
        h=min(op.h, most),
        w=min(op.w, most),
        batch=1,
        stride=(1,) * len(op.kernel),
    )
    if op.diagonal:
        return small.with_channels(width, width)
    return small.with_channels(*((width, BASE) if axis == 0 else (BASE, width)))


def widths_for_step() -> tuple[int, ...]:
    """Returns the widths that tell the step: an edge, and what lies just above and at each smaller one."""
    below = {BASE - g + d for g in (2, 4, 8, 16, 32) for d in (0, 1)} | {BASE - 1}
    elsewhere = {edge - g // 2 for g in (ELSEWHERE, 16, 32) for edge in _places(g)}
    return (BASE, *sorted(below | elsewhere, reverse=True))


def _places(step: int) -> tuple[int, ...]:
    """Returns the edges at which a step is looked for."""
    return tuple(edge for edge in (BASE, 3 * BASE // 4, BASE // 2) if edge % step == 0)


def found_step(us: Mapping[int, float], policy: TimingPolicy = DEFAULT) -> int:
    """Returns the step: 1 where every width counts.

    Widths inside a step that are slower than its edge save nothing and are left aside. A step g holds where the
    others show less than 40 % of the slope of a proportional saving, and the edge of the next smaller step, 64 − g/2,
    saves less than 65 % of it; from 8 on, less than 40 % at two of its edges.
    """
    top = us[BASE]
    share = float(np.clip(2.0 * (top - us[BASE // 2]) / top, 0.0, 1.0))
    if share < 0.1:
        return BASE // 2  # nothing is saved at all by removing half
    channel_us = top * share / BASE
    for step in (32, 16, 8, 4, 2):
        level = [w for w in us if BASE - step < w <= BASE and us[w] <= policy.step_slower * top]
        saved = np.array([(top - us[w]) / (top * share) for w in level])
        removed = np.array([(BASE - w) / BASE for w in level])
        slope = float(np.polyfit(removed, saved, 1)[0]) if len(level) > 2 else 0.0
        places, most = (
            (_places(step), policy.step_inside) if step >= ELSEWHERE else ((BASE,), policy.step_flat)
        )
        flat = [us[w] - us[w - step // 2] < most * channel_us * step / 2 for w in places]
        if slope < policy.step_inside and sum(flat) >= min(2, len(places)):
            return step
    return 1


def found_slow(
    us: Mapping[int, float], step: int, policy: TimingPolicy = DEFAULT
) -> tuple[int, float] | None:
    """Returns ``(align, factor)`` where widths inside a step are slower than its edge, else None.

    A kernel for four channels at a time leaves the other widths to a slower one: on a CPU with AVX2 63 channels
    take 1.3 times as long as 64, and 7 times in a depthwise convolution.
    """
    inside = [w for w in us if BASE - step < w < BASE]
    for align in (1, 2, 4, 8, 16):
        if align > 1 and not any(w % align for w in inside):
            return None
        if align < step and all(us[w] <= policy.step_slower * us[BASE] for w in inside if w % align == 0):
            slow = [us[w] / us[BASE] for w in inside if w % align]
            return (
                (align, round(float(np.median(slow)), 3))
                if slow and np.median(slow) > policy.step_slower
                else None
            )
    slow = [us[w] / us[BASE] for w in inside]
    return (step, round(float(np.median(slow)), 3)) if slow else None


def widths_for_pattern(step: int) -> tuple[int, ...]:
    """Returns the edges that tell the pattern, up to twice the standard width; none where there are no steps."""
    return tuple(range(step, 2 * BASE + 1, step)) if 4 <= step <= BASE // 4 else ()


def found_pattern(
    us: Mapping[int, float], step: int, policy: TimingPolicy = DEFAULT
) -> tuple[float, ...] | None:
    """Returns the shares of a period's cost at its edges: ``(1.0,)`` for equal steps, None for irregular ones."""
    edges = np.array(widths_for_pattern(step))
    if not len(edges):
        return (1.0,)
    times = np.array([us[int(e)] for e in edges])
    for length in (1, 2, 4, 8):
        period = step * max(length, 4)
        if edges[-1] < 2 * period:
            break
        shape = _mean_shape(times, length)
        u = normalised_width(edges, step, shape)
        ends = edges % period == 0
        slope, at_zero = np.polyfit(u[ends], times[ends], 1)
        nodes = np.concatenate([[0.0], u[ends]])
        predicted = np.interp(u, nodes, np.concatenate([[max(0.0, at_zero)], times[ends]]))
        if slope > 0 and np.abs(predicted - times).max() <= policy.pattern_error * times[-1]:
            return shape
    return None


def _mean_shape(times: FloatArray, length: int) -> tuple[float, ...]:
    """Returns the typical rise inside a period, as ascending shares of the period's own rise, up to 1."""
    whole = times[: len(times) // length * length].reshape(-1, length)
    rises = [
        (row - before) / (row[-1] - before)
        for before, row in zip(whole[:-1, -1], whole[1:], strict=True)
        if row[-1] > before
    ]
    if not rises:
        return tuple(np.arange(1, length + 1) / length)
    shape = np.maximum.accumulate(np.clip(np.median(rises, axis=0), 1e-3, 1.0))
    return (*(round(float(s), 4) for s in shape[:-1]), 1.0)


def probe(
    ops: Sequence[Op], measure_us: Callable[[Op], float], policy: TimingPolicy = DEFAULT
) -> tuple[dict[tuple[object, ...], Steps], int]:
    """Finds the steps by ``kind_of`` every op, and the resolution of all.

    Convolutions are probed; where there are none, linear layers, then whatever there is. Ops that are not probed
    live in between: their widths are rounded up to the resolution, the largest step that was found, for a channel
    that saves next to nothing must not look like a choice.
    """
    kinds: dict[tuple[object, ...], Op] = {}
    for op in sorted(ops, key=lambda op: (op.reads_image, -probe_op(op, 0, BASE).macs)):
        if op.groups == 1 or op.depthwise:
            kinds.setdefault(kind_of(op), op)
    chosen = [op for op in kinds.values() if op.kind in ("conv", "conv_transpose")]
    chosen = chosen or [op for op in kinds.values() if op.kind == "linear"] or list(kinds.values())
    found: dict[tuple[object, ...], Steps] = {}
    for op in chosen:
        steps = [1, 1]
        patterns: list[tuple[float, ...] | None] = [(1.0,), (1.0,)]
        slow: list[tuple[int, float] | None] = [None, None]
        for axis in axes_of(op):
            us = {w: measure_us(probe_op(op, axis, w)) for w in widths_for_step()}
            steps[axis] = found_step(us, policy)
            slow[axis] = found_slow(us, steps[axis], policy)
            us |= {
                w: measure_us(probe_op(op, axis, w)) for w in widths_for_pattern(steps[axis]) if w not in us
            }
            patterns[axis] = found_pattern(us, steps[axis], policy)
        if op.diagonal:
            steps[1], patterns[1] = steps[0], patterns[0]  # its factor counts once
        bending = [shape if shape and len(shape) > 1 else None for shape in patterns]
        found[kind_of(op)] = Steps(
            (steps[0], steps[1]),
            (bending[0], bending[1]),
            (patterns[0] is None, patterns[1] is None),
            (slow[0], slow[1]),
        )
    resolution = max((max(s.steps) for s in found.values()), default=1)
    return found, resolution
