"""Ops on single elements, and ops that put tensors beside each other or into each other.

Operands of a pointwise op that vary alike are united; what does not shrink with the others freezes them.
Concatenations, padding, and picking and writing by index keep each element's label at its new place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from halpiee.structure.labels import Label, Tag, compressed, no_atoms, together, varying
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, Timing

ACTIVATIONS = ("relu", "relu6", "silu", "hardswish", "sigmoid", "hardsigmoid", "gelu")
"""Pointwise ops that are timed as activations; ``hardtanh`` and ``clamp`` from 0 to 6 are ``relu6``."""


class Operand(NamedTuple):
    """An operand, its shape and labels with leading dimensions added, as broadcasting does."""

    tag: Tag
    shape: tuple[int, ...]
    axes: list[Label]


def pointwise(recorder: Recorder, call: Call) -> Timing | None:
    """Unites the labels of all operands position by position, after broadcasting."""
    out, dims = call.outputs[0], call.outputs[0].dim()
    tags = [recorder.tag(t) for t in call.tensors]
    operands = [
        Operand(tag, (1,) * (dims - t.dim()) + of_values(t), [aligned(a, dims) for a in tag.axes])
        for t, tag in zip(call.tensors, tags, strict=True)
    ]
    zero = stays_zero(recorder, call, call.tensors, tags)
    source = next((tag.source for tag in tags if tag.source), "")
    if all(tag.parameter for tag in tags):
        found: dict[tuple[int, ...], Label] = {}
        for axis in (axis for operand in operands for axis in operand.axes):
            recorder.units.unite(found.setdefault(varying(axis), axis), axis)
        result = Tag(tuple(found.values()), parameter=True, zero=zero, source=source)
    else:
        label = united_activations(recorder, call, operands)
        result = Tag(zero=zero, source=source if label is None else "").with_axes([label])
        unite_others(recorder, call, operands, label)
    if out is call.tensors[0] and not tags[0].axes and result.axes:
        recorder.units.freeze(result.axes[0], f"{call.where} writes into a constant tensor")
    for tensor in call.outputs:
        recorder.set(tensor, result)
    touched = together(axis for tag in tags for axis in tag.axes)
    recorder.scalars.append((call.where, numbers_of(call.args), touched))
    return timing(recorder, call, call.tensors, out)


def of_values(tensor: Tensor) -> tuple[int, ...]:
    """Returns the shape of a tensor with 1 along the dimensions over which it was only expanded."""
    strides = tensor.stride() if tensor.layout is torch.strided else (1,) * tensor.dim()
    return tuple(size if stride else 1 for size, stride in zip(tensor.shape, strides, strict=True))


def numbers_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Returns the plain numbers among an op's arguments."""
    return tuple(a for a in args if isinstance(a, int | float))


def aligned(label: Label, dims: int) -> Label:
    """Returns a label with leading dimensions added, as broadcasting does."""
    return label.reshape((1,) * (dims - label.ndim) + label.shape)


def united_activations(recorder: Recorder, call: Call, operands: list[Operand]) -> Label | None:
    """Unites the labels of the operands that are activations."""
    activations = [o for o in operands if o.axes and not o.tag.parameter]
    label: Label | None = None
    frozen: set[int] | None = None
    for other in (recorder.units.find(o.axes[0]) for o in activations):
        if label is None:
            label = other
            continue
        label = recorder.units.find(label)
        mine, its = varying(label), varying(other)
        if mine != its and not (mine and its):
            single, wide = (other, label) if mine else (label, other)
            frozen = recorder.units.frozen() if frozen is None else frozen
            at = varying(wide)
            broadcast = not any(o.axes[0].size == 1 and any(o.shape[d] > 1 for d in at) for o in activations)
            if int(single.reshape(-1)[0]) in frozen and broadcast:
                label = wide
                continue
        elif mine != its:
            recorder.units.freeze(label, f"{call.where} of channels that lie across each other")
            recorder.units.freeze(other, f"{call.where} of channels that lie across each other")
        recorder.units.unite(label, other)
        label = label if len(mine) >= len(its) else other
    return label


def unite_others(recorder: Recorder, call: Call, operands: list[Operand], label: Label | None) -> None:
    """Unites parameters with the channels that they lie on; freezes others, and channels beside constants as wide."""
    for axis in (axis for operand in operands if operand.tag.parameter for axis in operand.axes):
        if label is not None and varying(axis) == varying(label):
            recorder.units.unite(label, axis)
            recorder.serve(axis.reshape(-1), "norm", "layer_norm" if call.api == "rms_norm" else "parameter")
        else:
            recorder.units.freeze(axis, f"{call.where} beside channels")
    for tag, shape, axes in operands if label is not None else ():
        covered = {d for axis in axes for d in varying(axis)}
        if axes and not covered and not tag.parameter:
            continue  # one atom for the whole operand: united with all, or frozen and broadcast
        if label is not None and any(shape[d] > 1 and d not in covered for d in varying(label)):
            recorder.units.freeze(label, f"{call.where} with a constant of the same width")


ADDITIVE = frozenset({"add", "sub", "rsub"})


def stays_zero(recorder: Recorder, call: Call, operands: list[Tensor], tags: list[Tag]) -> bool:
    """Returns whether the result is 0 wherever the labelled operands are; freezes where it is not finite."""
    name = call.name.rstrip("_")
    if all(t.parameter for t in tags):
        if name in ADDITIVE and len({t.source for t in tags}) > 1:
            return False  # only the weight's own rows and columns become 0
    else:
        tags = [replace(t, zero=t.zero and not t.parameter) for t in tags]
    if name == "mul":
        return any(t.zero for t in tags)
    if name in ADDITIVE and len(operands) == 2:
        return all(t.zero for t in tags)
    if name == "div" and operands and operands[0] is call.args[0]:
        if len(tags) == 2 and tags[1].axes and not tags[1].parameter and tags[1].zero:
            recorder.freeze(operands[1], f"{call.where} by channels that may be 0")
        return tags[0].zero
    if len(operands) == 1 and call.args and operands[0] is call.args[0] and tags[0].zero:
        functional = getattr(torch.ops.aten, name, None) if call.name.endswith("_") else call.func
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
    kind = name if name in ACTIVATIONS else None
    if name in ("hardtanh", "clamp", "relu6") and tuple(call.args[1:3]) in ((0, 6), (0.0, 6.0), ()):
        kind = "relu6"
    if name in ("add", "mul") and len(operands) == 2 and not any(recorder.tag(t).parameter for t in operands):
        kind = name
    if kind is None or out.dim() < 2 or not recorder.tag(out).axes:
        return None
    dim, outs = recorder.peek(out)
    return Timing(kind, outs, outs, shape_fields(out, dim)) if outs.size else None


def shape_fields(out: Tensor, dim: int) -> dict[str, object]:
    """Returns the fields of a timed op from the shape of its output, whose channels lie along ``dim``.

    Of three or more dimensions of positions all but the last are one: such an op reads every position alike.
    """
    places = [size for d, size in enumerate(out.shape) if d not in (0, dim)]
    *h, w = places if len(places) > 1 else [*places, 1]
    return {"batch": out.shape[0], "h": math.prod(h), "w": w, "dtype": dtype_of(out)}


def dtype_of(tensor: Tensor) -> str:
    """Returns the name of a tensor's type, as timed ops have it."""
    return str(tensor.dtype).removeprefix("torch.")


def glu(recorder: Recorder, call: Call) -> None:
    """Gated linear unit: a value and its gate are one unit."""
    source = call.args[0]
    dim = (call.args[1] if len(call.args) > 1 else -1) % source.dim()
    label = recorder.label(source)
    if label is None or recorder.tag(source).parameter or label.shape[dim] == 1:
        recorder.freeze_call(call)
        return
    values, gates = np.split(label, 2, axis=dim)
    recorder.units.unite(values, gates)
    recorder.set(call.out, Tag(zero=recorder.tag(source).zero).with_axes([compressed(values)]))


def concat(recorder: Recorder, call: Call) -> Timing | None:
    """Tensors behind one another (``cat``) or on top of one another (``stack``)."""
    sources = call.args[0]
    out: Tensor = call.out
    dim = (call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)) % out.dim()
    tags = [recorder.tag(s) for s in sources]
    if not any(t.axes for t in tags):
        recorder.set(out, Tag(parameter=all(t.parameter for t in tags), source=tags[0].source))
    parts = []
    for source, tag in zip(sources, tags, strict=True):
        if call.name == "cat" and (source.dim() != out.dim() or not source.shape[dim]):
            continue  # nothing of it is in the result
        for extra in tag.axes[1:]:
            recorder.units.freeze(extra, call.where)
        shape = list(source.shape)
        label = recorder.units.find(tag.axes[0]) if tag.axes else no_atoms(1).reshape([1] * len(shape))
        if call.name == "stack":
            shape.insert(dim, 1)
            label = np.expand_dims(label, dim)
        target = list(label.shape)
        target[dim] = shape[dim]
        parts.append(np.broadcast_to(label, target))
    if not parts:  # nothing was found, as where a detector sees no object
        recorder.set(out, Tag())
        return None
    wide = any(d != dim and size > 1 for p in parts for d, size in enumerate(p.shape))
    labelled = [bool(part.any()) for part in parts]
    for index, part in enumerate(parts):
        if any(labelled) and not labelled[index]:  # constants beside channels keep their place
            parts[index] = np.broadcast_to(recorder.units.fresh(1).reshape([1] * part.ndim), part.shape)
            for other in parts if wide else [parts[index]]:
                recorder.units.freeze(other, f"constant channels at {call.where}")
    pairs = zip(parts, tags, strict=False)
    if wide and not any(p.shape[dim] > 1 and t.axes and dim in varying(t.axes[0]) for p, t in pairs):
        firsts = [part.take([0], axis=dim) for part in parts]
        for first in firsts[1:]:  # behind one another along positions: the channels are the same ones
            if first.shape == firsts[0].shape:
                recorder.units.unite(first, firsts[0])
        parts = [recorder.units.find(np.ascontiguousarray(p)) for p in parts]
    target = [max(p.shape[d] for p in parts) for d in range(out.dim())]
    full = []
    for part in parts:
        target[dim] = part.shape[dim]
        full.append(np.broadcast_to(part, target))
    label = compressed(np.concatenate(full, axis=dim))
    recorder.set(out, Tag(zero=all(t.zero for t in tags)).with_axes([label]))
    at, outs = recorder.peek(out)
    if call.name != "cat" or not at == dim == 1 or out.dim() < 3 or not outs.size:
        return None
    return Timing("concat", outs, outs, shape_fields(out, dim))


def pad(recorder: Recorder, call: Call) -> None:
    """Padding with a constant: along positions it joins the channel, along channels it keeps its place."""
    source, widths = call.args[0], call.args[1]
    tag = recorder.tag(source)
    label = recorder.label(source)
    if label is None or tag.parameter:
        recorder.freeze_call(call)
        return
    mark = recorder.units.fresh(1)
    value = call.args[2] if len(call.args) > 2 else call.kwargs.get("value", 0)
    result = label
    for index in range(len(widths) // 2):
        dim = source.dim() - 1 - index
        before, after = widths[2 * index : 2 * index + 2]
        if result.shape[dim] > 1 and (before or after):
            recorder.units.freeze(mark, f"padded channels at {call.where}")
            if before < 0 or after < 0:
                recorder.freeze_call(call)
                return
            spans = [(0, 0)] * result.ndim
            spans[dim] = (before, after)
            result = np.pad(result, spans, constant_values=int(mark[0]))
    recorder.set(call.out, Tag(zero=tag.zero and not value).with_axes([compressed(result)]))


def index(recorder: Recorder, call: Call) -> None:
    """Picking by index tensors: along positions the channels stay, along channels it freezes."""
    source = call.args[0]
    if call.name == "index_select":
        indices = [None] * (call.args[1] % source.dim()) + [call.args[2]]
    else:
        indices = by_dimension(call.args[1])
    at = [d for d, i in enumerate(indices) if i is not None]
    if not at:  # a single truth value picks all or nothing
        recorder.freeze_call(call)
        return
    tag = recorder.tag(source)
    for picked in (i for i in indices if i is not None):
        recorder.freeze(picked, call.where)
    axes = []
    n_new = call.out.dim() - (source.dim() - len(at))
    place = at[0] if at == list(range(at[0], at[-1] + 1)) else 0  # of the new dimensions
    for axis in tag.axes:
        label = recorder.units.find(axis)
        if any(label.shape[d] > 1 for d in at):
            recorder.units.freeze(label, call.where)
            continue
        rest = label.squeeze(tuple(at))
        axes.append(rest.reshape(rest.shape[:place] + (1,) * n_new + rest.shape[place:]))
    recorder.set(call.out, tag.with_axes(axes))


def by_dimension(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns one index a dimension: a mask over several dimensions stands for each of them."""
    masks = (torch.bool, torch.uint8)
    return [i for i in indices for _ in range(i.dim() if i is not None and i.dtype in masks else 1)]


def index_put(recorder: Recorder, call: Call) -> None:
    """Writing at indexed positions: the target takes the channels of the written values."""
    target, indices, values = call.args[0], by_dimension(call.args[1]), call.args[2]
    for picked in (i for i in indices if isinstance(i, Tensor)):
        recorder.freeze(picked, call.where)
    label, mine = recorder.label(values), recorder.label(target)
    at = [d for d, i in enumerate(indices) if i is not None]
    own_dims = target.dim() - len(at)
    if (
        label is None
        or label.ndim > target.dim()
        or recorder.tag(target).parameter
        or recorder.tag(values).parameter
        or at != list(range(len(at)))
        or any(size > 1 for size in label.shape[: max(0, label.ndim - own_dims)])
        or (mine is not None and any(mine.shape[d] > 1 for d in at))
    ):
        recorder.freeze_call(call)
        return
    label = aligned(label, target.dim())
    if mine is not None:
        recorder.units.unite(mine, label)
    zero = recorder.tag(values).zero and recorder.tag(target).zero
    recorder.set(call.outputs[0], Tag(zero=zero).with_axes([label]))
