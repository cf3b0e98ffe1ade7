"""What takes time in a network, in order, with the tail of cheap ops that a runtime may fuse behind each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from halpiee.structure.calls import Event
from halpiee.structure.groups import GroupRef, TimedOp
from halpiee.structure.recorder import Recorder
from halpiee.structure.units import Atoms
from latency.op import Op

__all__ = ["timed_ops"]

LAYERS = ("conv", "conv_transpose", "linear")
ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu")


def timed_ops(recorder: Recorder, refs: Callable[[Atoms], tuple[GroupRef, ...]]) -> tuple[TimedOp, ...]:
    """Builds the timed ops of what was recorded.

    A batch norm, an activation or an addition joins the tail of the conv or linear layer before it when
    nothing else reads what lies between; an addition joins the first of its operands that allows it, as in ONNX
    Runtime. What joins no tail is an op of its own.
    """
    events = recorder.events[: recorder.evaluated]
    readers: dict[int, list[int]] = {}
    for number, event in enumerate(events):
        for value in event.reads:
            readers.setdefault(value, []).append(number)
    for value in recorder.outputs:
        readers.setdefault(value, []).append(-1)
    tails: dict[int, list[str]] = {}
    taken: dict[int, int] = {}
    ends: dict[int, int] = {}
    for number, event in enumerate(events):
        if event.timing is not None and event.timing.kind in LAYERS:
            tails[number] = []
            ends[event.writes[0]] = number
            continue
        root = follows(event, number, readers, ends, tails)
        if root is not None and event.timing is not None:
            tails[root].append(event.timing.kind)
            taken[number] = root
            for value in event.reads:
                if ends.get(value) == root:
                    del ends[value]
            ends[event.writes[0]] = root
    found = []
    for number, event in enumerate(events):
        if event.timing is None or number in taken:
            continue
        found.append(timed_op(event, tuple(tails.get(number, ())), refs))
    return tuple(found)


def follows(
    event: Event,
    number: int,
    readers: dict[int, list[int]],
    ends: dict[int, int],
    tails: dict[int, list[str]],
) -> int | None:
    """Returns the layer whose tail an op joins, or None."""
    if event.timing is None:
        return None
    kind = event.timing.kind
    candidates = [ends[v] for v in event.reads if v in ends and readers[v] == [number]]
    if kind == "batch_norm":
        candidates = [c for c in candidates if not tails[c]]
    elif kind == "add":
        candidates = [c for c in candidates if "add" not in tails[c]]
    elif kind in ACTIVATIONS:
        candidates = [c for c in candidates if not tails[c] or tails[c][-1] not in ACTIVATIONS]
    else:
        return None
    return candidates[0] if candidates else None


def timed_op(
    event: Event,
    tail: tuple[str, ...],
    refs: Callable[[Atoms], tuple[GroupRef, ...]],
) -> TimedOp:
    """Builds one timed op."""
    timing = event.timing
    assert timing is not None
    fields: dict[str, Any] = dict(timing.fields)
    if "positions" in fields:  # a linear layer on vectors, or on sequences: one row per token
        rows = fields.pop("positions")
        batch = event.batch or rows
        fields |= {
            "batch": batch if rows % batch == 0 else rows,
            "h": rows // batch if rows % batch == 0 else 1,
        }
    op = Op(kind=timing.kind, c_in=timing.ins.size, c_out=timing.outs.size, tail=tail, **fields)
    return TimedOp(op, timing.layer or event.module, refs(timing.ins), refs(timing.outs))
