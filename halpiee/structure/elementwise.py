"""Pointwise ops: operands that vary alike are united; what does not shrink with the others freezes them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from halpiee.structure.calls import Call, Timing
from halpiee.structure.labels import Label, Tag, varying
from halpiee.structure.recorder import Recorder

__all__ = ["ACTIVATIONS", "numbers_of", "pointwise", "shape_fields"]

ACTIVATIONS = {
    "relu": "relu",
    "silu": "silu",
    "hardswish": "hardswish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "hardsigmoid",
    "gelu": "gelu",
}
"""Pointwise ops that are timed as activations; ``hardtanh`` and ``clamp`` from 0 to 6 are ``relu6``."""


def pointwise(recorder: Recorder, call: Call) -> Timing | None:
    """Unites the labels of all operands position by position, after broadcasting."""
    operands = call.tensors
    out = call.outputs[0]
    tags = [recorder.tag(t) for t in operands]
    zero = stays_zero(recorder, call, operands, tags)
    if all(t.parameter for t in tags):
        axes = united_parameters(recorder, operands, tags, out.dim())
        source = next((t.source for t in tags if t.source), "")
        result = Tag(tuple(axes), parameter=True, zero=zero, source=source)
    else:
        label = united_activations(recorder, call, operands, tags, out.dim())
        label = with_parameters(recorder, call, operands, tags, label, out.dim())
        source = next((t.source for t in tags if t.source), "") if label is None else ""
        result = Tag(zero=zero, source=source).with_axes([] if label is None else [label])
        if label is not None:
            unmatched(recorder, call, operands, tags, label, out.dim())
    if out is operands[0] and not tags[0].axes and result.axes:
        recorder.units.freeze(result.axes[0], f"{call.where} writes into a constant tensor")
    for tensor in call.outputs:
        recorder.set(tensor, result)
    numbers = numbers_of(call.args)
    label_now = np.concatenate([np.zeros(0, dtype=np.int64), *(a.reshape(-1) for t in tags for a in t.axes)])
    recorder.scalars.append((call.where, numbers, label_now))
    return timing(recorder, call, operands, out)


def numbers_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the plain numbers among an op's arguments."""
    return tuple(a for a in args if isinstance(a, int | float))


def aligned(label: Label, dims: int) -> Label:
    """Returns a label with leading dimensions added, as broadcasting does."""
    return label.reshape((1,) * (dims - label.ndim) + label.shape)


def united_parameters(recorder: Recorder, operands: list[Tensor], tags: list[Tag], dims: int) -> list[Label]:
    """Unites parameter dimensions that lie on each other."""
    found: dict[tuple[int, ...], Label] = {}
    for tag in tags:
        for axis in (aligned(a, dims) for a in tag.axes):
            first = found.setdefault(varying(axis), axis)
            recorder.units.unite(first, axis)
    return list(found.values())


def united_activations(
    recorder: Recorder, call: Call, operands: list[Tensor], tags: list[Tag], dims: int
) -> Label | None:
    """Unites the labels of the operands that are activations."""
    label: Label | None = None
    frozen: set[int] | None = None
    for tag in tags:
        if tag.parameter or not tag.axes:
            continue
        other = aligned(recorder.units.find(tag.axes[0]), dims)
        if label is None:
            label = other
            continue
        label = recorder.units.find(label)
        mine, its = varying(label), varying(other)
        if mine != its and not (mine and its):
            single, wide = (other, label) if mine else (label, other)
            if frozen is None:
                frozen = recorder.units.frozen()
            if int(single.reshape(-1)[0]) in frozen and narrow_at(
                operands, tags, single, varying(wide), dims
            ):
                label = wide
                continue
        elif mine != its:
            recorder.units.freeze(label, f"{call.where} of channels that lie across each other")
            recorder.units.freeze(other, f"{call.where} of channels that lie across each other")
        recorder.units.unite(label, other)
        label = label if len(mine) >= len(its) else other
    return label


def narrow_at(operands: list[Tensor], tags: list[Tag], single: Label, at: tuple[int, ...], dims: int) -> bool:
    """Returns whether the operand whose label does not vary is broadcast along the dimensions ``at``."""
    for tensor, tag in zip(operands, tags, strict=True):
        if tag.axes and not tag.parameter and aligned(tag.axes[0], dims).size == 1:
            shape = (1,) * (dims - tensor.dim()) + tuple(tensor.shape)
            if any(shape[d] > 1 for d in at):
                return False
    return True


def with_parameters(
    recorder: Recorder, call: Call, operands: list[Tensor], tags: list[Tag], label: Label | None, dims: int
) -> Label | None:
    """Unites parameter dimensions with the channels they lie on; the others stay as they are."""
    for tag in tags:
        if not tag.parameter:
            continue
        for axis in (aligned(a, dims) for a in tag.axes):
            if label is not None and varying(axis) == varying(label):
                recorder.units.unite(label, axis)
                recorder.serve(axis.reshape(-1), "norm", "parameter")
            else:
                recorder.units.freeze(axis, f"{call.where} beside channels")
    return label


def unmatched(
    recorder: Recorder, call: Call, operands: list[Tensor], tags: list[Tag], label: Label, dims: int
) -> None:
    """Freezes the result where an operand is as wide as the channels and does not shrink with them."""
    at = varying(label)
    for tensor, tag in zip(operands, tags, strict=True):
        shape = (1,) * (dims - tensor.dim()) + tuple(tensor.shape)
        covered = {d for axis in tag.axes for d in varying(aligned(axis, dims))}
        if tag.axes and not covered and not tag.parameter:
            continue  # one atom for the whole operand: united with all, or frozen and broadcast
        if any(shape[d] > 1 and d not in covered for d in at):
            recorder.units.freeze(label, f"{call.where} with a constant of the same width")


MULTIPLICATIVE = frozenset({"mul"})
ADDITIVE = frozenset({"add", "sub", "rsub"})


def stays_zero(recorder: Recorder, call: Call, operands: list[Tensor], tags: list[Tag]) -> bool:
    """Returns whether the result is 0 wherever the labelled operands are; freezes where it is not finite."""
    name = call.name.rstrip("_")
    if all(t.parameter for t in tags):
        if name in ADDITIVE and len({t.source for t in tags}) > 1:
            return False  # only the weight's own rows and columns become 0
    else:
        tags = [replace(t, zero=t.zero and not t.parameter) for t in tags]
    if name in MULTIPLICATIVE:
        return any(t.zero for t in tags)
    if name in ADDITIVE and len(operands) == 2:
        return all(t.zero for t in tags)
    if name == "div" and operands and operands[0] is call.args[0]:
        if len(tags) == 2 and tags[1].axes and not tags[1].parameter and tags[1].zero:
            recorder.freeze(operands[1], f"{call.where} by channels that may be 0")
        return tags[0].zero
    if len(operands) == 1 and call.args and operands[0] is call.args[0] and tags[0].zero:
        functional = call.func
        if call.name.endswith("_"):
            functional = getattr(torch.ops.aten, name, None)
        if functional is None:
            return False
        with _disable_current_modes():
            origin = torch.zeros((), dtype=operands[0].dtype)
            try:
                value = functional(origin, *call.args[1:], **call.kwargs)
            except (RuntimeError, TypeError, NotImplementedError):
                return False
            if not bool(torch.isfinite(value).all()):
                recorder.freeze(operands[0], f"{call.where} is not finite at 0")
            return not bool(value.any())
    return False


def timing(recorder: Recorder, call: Call, operands: list[Tensor], out: Tensor) -> Timing | None:
    """Returns the timed op of an activation, an addition or a multiplication of feature maps."""
    name = call.name.rstrip("_")
    kind = ACTIVATIONS.get(name)
    if name in ("hardtanh", "clamp", "relu6") and tuple(call.args[1:3]) in ((0, 6), (0.0, 6.0), ()):
        kind = "relu6"
    if name in ("add", "mul") and len(operands) == 2 and not any(recorder.tag(t).parameter for t in operands):
        kind = name
    if kind is None or out.dim() < 2 or not recorder.tag(out).axes:
        return None
    dim, outs = recorder.peek(out)
    return Timing(kind, outs, outs, shape_fields(out, dim)) if outs.size else None


def shape_fields(out: Tensor, dim: int) -> dict[str, object]:
    """Returns the fields of a timed op from the shape of what it works on, its channels along ``dim``.

    Of three or more dimensions of positions all but the last are one: such an op reads every position alike.
    """
    places = [size for d, size in enumerate(out.shape) if d not in (0, dim)]
    return {
        "batch": out.shape[0],
        "h": math.prod(places[:-1]) if len(places) > 1 else (places[0] if places else 1),
        "w": places[-1] if len(places) > 1 else 1,
        "dtype": str(out.dtype).removeprefix("torch."),
    }
