"""Ops that move elements: views, cuts, concatenations, padding, picking and writing by index."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from halpiee.structure.elementwise import shape_fields
from halpiee.structure.heads import heads_of
from halpiee.structure.labels import Label, Tag, compressed, moved, reshaped, varying, written_out
from halpiee.structure.moves import Move
from halpiee.structure.recorder import Call, Recorder, Spread, Timing, tensors_of
from halpiee.structure.units import CheckedUnits

__all__ = ["concat", "glu", "index", "index_put", "movement", "moves_of", "pad", "shuffle"]


SIZELESS = frozenset({"permute", "transpose", "t", "squeeze", "unsqueeze", "flip"})
"""Movements without sizes or positions of their own."""

UNMOVED = SIZELESS | {"expand"}
"""Movements that do the same to whatever is left."""

SINGLE = frozenset({"unbind", "select"})
"""Cuts that take single positions: what they tie does not hang on which."""

CUTS = SINGLE | frozenset({"slice", "split", "split_with_sizes", "narrow"})
"""Movements that take parts along one dimension."""

EVEN = frozenset({"slice", "split", "split_with_sizes"})
"""Cuts that may take equal parts."""

RESHAPES = frozenset({"view", "_unsafe_view", "_reshape_alias", "reshape"})


def movement(recorder: Recorder, call: Call) -> None:
    """Elements change places: the same op runs on the labels."""
    source = call.tensors[0]
    tag = recorder.tag(source)
    if not alone(call):
        recorder.freeze_call(call)
        return
    if call.name == "squeeze":
        squeezed(recorder, call, tag)
    if call.name not in UNMOVED:
        recorder.moves.append(noted(call, tag, len(recorder.events)))
    if call.name in CUTS:
        tag = cut(recorder, call, tag)
    outs = call.outputs
    many = not isinstance(call.out, Tensor)
    for index, out in enumerate(outs):

        def move(label: Tensor, index: int = index, shape: torch.Size = out.shape) -> Tensor:
            if call.name == "expand":
                return label.expand(call.args[1])
            result = call.func(label, *call.args[1:], **call.kwargs)
            moved_label: Tensor = result[index] if many else result
            return moved_label

        if call.name in RESHAPES or call.name == "roll":
            labels = [recorder.units.find(a) for a in tag.axes]
        if call.name in RESHAPES:
            axes = [reshaped(a, tuple(source.shape), tuple(out.shape)) for a in labels]
        elif call.name == "roll" and all(in_place(call, a) for a in labels):
            axes = labels
        elif call.name == "roll" and any(np.unique(a).size < a.size for a in labels):
            for label in labels:
                recorder.units.freeze(label, f"{call.where} of channels that go together")
            axes = labels
        else:
            axes = [moved(recorder.units, a, tuple(source.shape), move) for a in tag.axes]
        if call.name in RESHAPES:
            axes = [
                by_heads(recorder, call, axis, out.shape)
                if len(varying(axis)) > len(varying(before))
                else axis
                for axis, before in zip(axes, tag.axes, strict=True)
            ]
            for label in labels:
                rows_of_units(recorder, call, label, tuple(source.shape), tuple(out.shape))
            if not tag.parameter:
                follow(recorder, call, out, axes)
        recorder.set(out, tag.with_axes(axes))
        for axis, before in zip(axes, tag.axes, strict=True):
            if len(varying(axis)) > len(varying(before)) and not tag.parameter:
                recorder.spreads.append(Spread(axis, call.where, False, len(recorder.moves) - 1))


def alone(call: Call) -> bool:
    """Returns whether a movement has one tensor and makes another one of it."""
    return len(call.tensors) == 1 and not any(out is call.tensors[0] for out in call.outputs)


def moves_of(call: Call, at: int) -> list[Move]:
    """Returns the movement that a call is, without labels, or nothing."""
    return [noted(call, Tag(), at)] if call.name not in UNMOVED and alone(call) else []


def noted(call: Call, tag: Tag, at: int) -> Move:
    """Returns the movement as it ran, so that it can be tried on what is left of its input."""
    source = call.tensors[0]
    func, arguments, options = call.func, call.args[1:], call.kwargs
    after = tuple(call.outputs[0].shape) if call.outputs else ()

    def run(ids: Tensor) -> list[Tensor]:
        return tensors_of(func(ids, *arguments, **options))

    return Move(
        name=call.name,
        module=call.module,
        at=at,
        axes=() if call.name == "roll" and all(in_place(call, a) for a in tag.axes) else tag.axes,
        before=tuple(source.shape),
        after=after,
        run=None if call.name in RESHAPES else run,
        dim=dim_of(call) if call.name in CUTS else None,
    )


def squeezed(recorder: Recorder, call: Call, tag: Tag) -> None:
    """Freezes channels along a dimension that is dropped when one of them is left."""
    source = call.tensors[0]
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", range(source.dim()))
    dims = (
        {d % source.dim() for d in ([given] if isinstance(given, int) else given)} if source.dim() else set()
    )
    for axis in tag.axes:
        if dims.intersection(varying(axis)) and not tag.parameter:
            recorder.units.freeze(axis, f"{call.where}, which would drop a single channel")


def rows_of_units(
    recorder: Recorder, call: Call, label: Label, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """Notes a reshape that spreads channels of which several are one unit already: they stay rectangular too."""
    held = heads_of(recorder.modules.get(call.module))
    if len(varying(label)) != 1 or np.unique(label).size == label.size or (held and held[1] in after):
        return
    full = written_out(label, before, after)
    if sum(size > 1 for size in full.shape) > 1 and full.size == label.size:
        recorder.spreads.append(Spread(full, call.where, True, len(recorder.moves) - 1))


def in_place(call: Call, label: Label) -> bool:
    """Returns whether a roll turns only dimensions along which the label does not vary."""
    dims = call.args[2] if len(call.args) > 2 else call.kwargs.get("dims", ())
    return bool(dims) and all(label.shape[d] == 1 for d in dims)


def by_heads(recorder: Recorder, call: Call, label: Label, shape: torch.Size) -> Label:
    """Ties what an attention module spreads over heads: a unit is one head, in queries, keys and values.

    In modules named in ``recorder.positions`` a unit is position j of every head.
    """
    held = heads_of(recorder.modules.get(call.module))
    if held is None:
        return label
    name, heads = held
    dimensions = call.module in recorder.positions
    last = len(shape) - 1
    at = [last] if dimensions else [d for d in varying(label) if shape[d] == heads and d < last]
    if not at or label.shape[at[-1]] == 1:
        return label
    rows = np.moveaxis(recorder.units.find(label), at[-1], 0).reshape(shape[at[-1]], -1)
    if (rows == 0).any() or (dimensions and shape[-2] != heads):
        return label
    recorder.units.unite(rows[:, 1:], rows[:, :1])
    atoms = recorder.units.find(rows[:, 0])
    if not dimensions:
        recorder.attribute(call.module, name, atoms)
        recorder.grouped[call.module] = atoms
    for other, value in vars(recorder.modules[call.module]).items():
        if type(value) is not int:
            continue
        if value == heads * shape[-1] and other in HEADS_TOGETHER:
            recorder.attribute(call.module, other, atoms, mul=heads if dimensions else shape[-1])
        elif dimensions and value == shape[-1] and other in HEAD_WIDTH:
            recorder.attribute(call.module, other, atoms)
    return compressed(recorder.units.find(label))


HEAD_WIDTH = frozenset({"head_dim", "dim_head", "attention_head_size", "d_head"})
"""Attributes that hold the width of one head."""

HEADS_TOGETHER = frozenset({"output_dim", "all_head_size", "attn_dim", "inner_dim"})
"""Attributes that hold the width of all heads together."""

FOLLOWING = frozenset({"hidden_dim", "embed_dim", "d_model", "dim", "width", "hidden_size", "num_features"})
"""Attributes in which modules hold the width of their stream; that they follow it is tried, not believed."""


def follow(recorder: Recorder, call: Call, out: Tensor, axes: list[Label]) -> None:
    """Notes that an attribute follows the channels where a reshape gives their number as that attribute."""
    module = recorder.modules.get(call.module)
    sizes = [size for a in call.args[1:] for size in (a if isinstance(a, list | tuple) else [a])]
    for label in axes if module is not None else ():
        places = varying(label)
        if len(places) != 1 or out.shape[places[0]] not in sizes:
            continue
        for name, value in vars(module).items():
            if type(value) is int and name in FOLLOWING and value == out.shape[places[0]]:
                atoms = recorder.units.find(label.reshape(-1))
                if atoms.all():
                    recorder.attribute(call.module, name, atoms)


def cut(recorder: Recorder, call: Call, tag: Tag) -> Tag:
    """Handles cuts along dimensions that shrink: equal parts are tied, parts given in numbers freeze."""
    source = call.tensors[0]
    dim = dim_of(call)
    size = source.shape[dim]
    if all(out.shape[dim : dim + 1] == (size,) and out.dim() == source.dim() for out in call.outputs[:1]):
        return tag
    axes = []
    for axis in tag.axes:
        if call.name in SINGLE and (id(axis), dim) in recorder.picked:
            axes.append(axis)  # as for the other classes of a loop over classes
            continue
        label = recorder.units.find(axis)
        if call.name in SINGLE:
            recorder.picked[id(axis), dim] = axis
        if dim in varying(label):
            n_parts = len(call.outputs)
            rows: Label | None
            if call.api == "chunk" and size % n_parts == 0:
                shape = (*label.shape[:dim], n_parts, size // n_parts, *label.shape[dim + 1 :])
                rows = np.moveaxis(label.reshape(shape), dim, 0)
                recorder.units.unite(rows[1:], rows[:1])
            elif isinstance(recorder.units, CheckedUnits) and call.name in EVEN:
                pass  # compared with what the full network cuts
            elif not recorder.real and (rows := even(call, label, dim)) is not None:
                # parts worked out from the width look like parts given in numbers: which they are is tried
                recorder.units.unite(rows[1:], rows[:1])
            elif len(varying(label)) > 1 and call.name in SINGLE:
                rows = np.moveaxis(label, dim, 0)
                recorder.units.unite(rows[1:], rows[:1])
            else:
                recorder.units.freeze(label, f"{call.where} with literal bounds")
        axes.append(label)
    return replace(tag, axes=tuple(axes))


def dim_of(call: Call) -> int:
    """Returns the dimension along which an op cuts."""
    at = 1 if call.name in ("slice", "select", "narrow", "unbind") else 2
    dim: int = call.args[at] if len(call.args) > at else call.kwargs.get("dim", 0)
    return dim % call.tensors[0].dim()


def even(call: Call, label: Label, dim: int) -> Label | None:
    """Returns the atoms as ``[parts, size of a part]`` where a cut takes one or all of equal parts, or None.

    The parts lie behind one another, or, where a slice has a step, are taken in turns.
    """
    if varying(label) != (dim,):
        return None
    atoms = label.reshape(-1)
    if call.name == "slice":
        start, stop, step = bounds(call, atoms.size)
        if step > 1:
            whole = atoms.size % step == 0 and start < step and stop > atoms.size - step
            return atoms.reshape(-1, step).T if whole else None
        part = stop - start
        return atoms.reshape(-1, part) if part > 0 and atoms.size % part == 0 == start % part else None
    if call.name in ("split", "split_with_sizes") and len({out.shape[dim] for out in call.outputs}) == 1:
        return atoms.reshape(len(call.outputs), -1)
    return None


def bounds(call: Call, size: int) -> tuple[int, int, int]:
    """Returns start, stop and step of a slice."""
    start, stop, step = (call.args[i] if i < len(call.args) else None for i in (2, 3, 4))
    return slice(start, stop, step).indices(size)


def shuffle(recorder: Recorder, call: Call) -> None:
    """Channel shuffle: a view as (groups, channels a group), which must stay rectangular, turned over."""
    source, groups = call.args[:2]
    label = recorder.label(source)
    if label is not None and label.shape[1] > 1:
        shape = (label.shape[0], groups, label.shape[1] // groups, *label.shape[2:])
        recorder.spreads.append(Spread(label.reshape(shape), call.where, True, len(recorder.moves)))
    movement(recorder, call)


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
    for index, part in enumerate(parts):
        if not part.any() and (any(p.any() for p in parts)):
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
        indices = list(call.args[1])
    at = [d for d, i in enumerate(indices) if i is not None]
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


def index_put(recorder: Recorder, call: Call) -> None:
    """Writing at indexed positions: what is written lends its channels to what it is written into."""
    target, indices, values = call.args[:3]
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
