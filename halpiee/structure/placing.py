"""Ops that put tensors beside each other, or into each other: concatenations, padding, picking and writing by index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from halpiee.structure.calls import Call, Timing
from halpiee.structure.elementwise import shape_fields
from halpiee.structure.labels import Tag, compressed, varying
from halpiee.structure.recorder import Recorder

__all__ = ["concat", "glu", "index", "index_put", "pad"]


def glu(recorder: Recorder, call: Call) -> None:
    """Gated linear unit: a value and its gate go together."""
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
        label = recorder.units.find(tag.axes[0]) if tag.axes else np.zeros([1] * len(shape), dtype=np.int64)
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
        if any(labelled) and not labelled[index]:
            # Constants beside channels keep their place.
            parts[index] = np.broadcast_to(recorder.units.fresh(1).reshape([1] * part.ndim), part.shape)
            recorder.units.freeze(parts[index], f"constant channels at {call.where}")
            if wide:
                for other in parts:
                    recorder.units.freeze(other, f"constant channels at {call.where}")
    if wide and not any(
        p.shape[dim] > 1 and t.axes and dim in varying(t.axes[0]) for p, t in zip(parts, tags, strict=False)
    ):
        for part in parts[1:]:  # behind one another along positions: the channels are the same ones
            if [s for d, s in enumerate(part.shape) if d != dim] == [
                s for d, s in enumerate(parts[0].shape) if d != dim
            ]:
                recorder.units.unite(part.take([0], axis=dim), parts[0].take([0], axis=dim))
        parts = [recorder.units.find(np.ascontiguousarray(p)) for p in parts]
    target = [max(p.shape[d] for p in parts) for d in range(out.dim())]
    full = []
    for part in parts:
        target[dim] = part.shape[dim]
        full.append(np.broadcast_to(part, target))
    label = compressed(np.concatenate(full, axis=dim))
    zero = all(t.zero for t in tags)
    recorder.set(out, Tag(zero=zero).with_axes([label]))
    if call.name == "cat" and dim == 1 and out.dim() > 2:
        dim_out, outs = recorder.peek(out)
        return (
            Timing("concat", outs, outs, shape_fields(out, dim_out)) if outs.size and dim_out == dim else None
        )
    return None


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
    dropped = [d for d in range(source.dim()) if d in at]
    n_new = call.out.dim() - (source.dim() - len(dropped))
    together = at == list(range(at[0], at[-1] + 1))
    for axis in tag.axes:
        label = recorder.units.find(axis)
        if any(label.shape[d] > 1 for d in at):
            recorder.units.freeze(label, call.where)
            continue
        rest = label.squeeze(tuple(dropped))
        axes.append(
            rest.reshape(rest.shape[: (p := at[0] if together else 0)] + (1,) * n_new + rest.shape[p:])
        )
    recorder.set(call.out, tag.with_axes(axes))


def by_dimension(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Returns one index a dimension: a mask over several counts for each of them."""
    masks = (torch.bool, torch.uint8)
    return [i for i in indices for _ in range(i.dim() if i is not None and i.dtype in masks else 1)]


def index_put(recorder: Recorder, call: Call) -> None:
    """Writing at indexed positions: what is written lends its channels to what it is written into."""
    target, indices, values = call.args[0], by_dimension(call.args[1]), call.args[2]
    out = call.outputs[0]
    for picked in (i for i in indices if isinstance(i, Tensor)):
        recorder.freeze(picked, call.where)
    label, mine = recorder.label(values), recorder.label(target)
    at = [d for d, i in enumerate(indices) if i is not None]
    own_dims = target.dim() - len(at)
    plain = (
        label is not None
        and not recorder.tag(target).parameter
        and not recorder.tag(values).parameter
        and at == list(range(len(at)))
        and not any(size > 1 for size in label.shape[: max(0, label.ndim - own_dims)])
        and (mine is None or not any(mine.shape[d] > 1 for d in at))
    )
    if not plain or label is None:
        recorder.freeze_call(call)
        return
    lent = (
        label.reshape((1,) * (target.dim() - label.ndim) + label.shape)
        if label.ndim <= target.dim()
        else None
    )
    if lent is None:
        recorder.freeze_call(call)
        return
    if mine is not None:
        recorder.units.unite(mine, lent)
    zero = recorder.tag(values).zero and recorder.tag(target).zero
    recorder.set(out, Tag(zero=zero).with_axes([lent]))
