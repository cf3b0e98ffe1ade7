"""Ops that move elements: views, permutations, cuts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from halpiee.structure.labels import (
    CheckedUnits,
    Label,
    Tag,
    compressed,
    moved,
    reshaped,
    together,
    varying,
    written_out,
)
from halpiee.structure.modules import HEAD_WIDTH, HEADS, SHARED_HEADS, attributes_of
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import RESHAPES, Attribute, Call, Move, Spread, tensors_of

UNMOVED = frozenset({"permute", "transpose", "t", "squeeze", "unsqueeze", "flip", "expand"})
"""Movements that do the same whichever channels are left."""

SINGLE = frozenset({"unbind", "select"})
"""Cuts that take single positions: they tie the same atoms at each."""

CUTS = SINGLE | frozenset({"slice", "split", "split_with_sizes", "narrow"})
"""Movements that take parts along one dimension."""

EVEN = frozenset({"slice", "split", "split_with_sizes"})
"""Cuts that may take equal parts."""


def movement(recorder: Recorder, call: Call) -> None:
    """Elements change places: the same op runs on the labels."""
    source = call.tensors[0]
    tag = recorder.tag(source)
    if not alone(call):
        recorder.freeze_call(call)
        return
    if call.name == "squeeze":
        squeezed(recorder, call, tag)
    if not unmoved(call):
        recorder.moves.append(move_of(call, tag, len(recorder.events)))
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

        labels = [recorder.units.find(a) for a in tag.axes] if call.name in (*RESHAPES, "roll") else []
        if call.name in RESHAPES:
            axes = [reshaped(a, source.shape, out.shape) for a in labels]
            axes = [
                by_heads(recorder, call, axis, out.shape)
                if len(varying(axis)) > len(varying(before))
                else axis
                for axis, before in zip(axes, tag.axes, strict=True)
            ]
            for label in labels:
                if not tag.parameter or len(varying(reshaped(label, source.shape, out.shape))) > 1:
                    rows_of_units(recorder, call, label, source.shape, out.shape)
            if not tag.parameter:
                follow(recorder, call, out, axes)
        elif call.name == "roll" and all(in_place(call, a) for a in labels):
            axes = labels
        elif call.name == "roll" and any(np.unique(a).size < a.size for a in labels):
            recorder.units.freeze(together(labels), f"{call.where} of channels that go together")
            axes = labels
        else:
            axes = [moved(recorder.units, a, tuple(source.shape), move) for a in tag.axes]
        recorder.set(out, tag.with_axes(axes))
        if call.name in ("repeat", "expand") and out.dim() == source.dim() and source.shape[0] == 1:
            recorder.alike.add(recorder.value(out))
        for axis, before in zip(axes, tag.axes, strict=True):
            if len(varying(axis)) > len(varying(before)) and not tag.parameter:
                recorder.spreads.append(Spread(axis, call.where, False, len(recorder.moves) - 1))


def alone(call: Call) -> bool:
    """Returns whether a movement maps one tensor to one tensor."""
    return len(call.tensors) == 1 and not any(out is call.tensors[0] for out in call.outputs)


def moves_of(call: Call, at: int) -> list[Move]:
    """Returns the movement that a call is, without labels, or nothing."""
    return [move_of(call, Tag(), at)] if alone(call) and not unmoved(call) else []


def unmoved(call: Call) -> bool:
    """Returns whether a movement does the same whichever channels are left; such is a repeat that only expands."""
    if call.name != "repeat":
        return call.name in UNMOVED
    source, out = call.tensors[0], call.outputs[0]
    before = (1,) * (out.dim() - source.dim()) + tuple(source.shape)
    return all(size in (1, repeated) for size, repeated in zip(before, out.shape, strict=True))


def move_of(call: Call, tag: Tag, at: int) -> Move:
    """Returns the movement as it ran, so that it can be run on the remaining elements of its input."""
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
    """Freezes channels along a dimension that would be dropped if one channel remained."""
    source = call.tensors[0]
    given = call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", range(source.dim()))
    dims = (
        {d % source.dim() for d in ([given] if isinstance(given, int) else given)} if source.dim() else set()
    )
    for axis in tag.axes:
        if dims.intersection(varying(axis)) and not tag.parameter:
            recorder.units.freeze(axis, f"{call.where}, which would drop a single channel")


def rows_of_units(
    recorder: Recorder, call: Call, label: Label, before: torch.Size, after: torch.Size
) -> None:
    """Notes a reshape that spreads channels of which several are one unit already: they must stay rectangular too."""
    module = recorder.modules.get(call.module)
    by_heads = set(attributes_of(module, HEADS | SHARED_HEADS).values()).intersection(after) or (
        after[-1:] and after[-1] in attributes_of(module, HEAD_WIDTH).values()
    )
    if len(varying(label)) != 1 or np.unique(label).size == label.size or by_heads:
        return
    full = written_out(label, before, after)
    if sum(size > 1 for size in full.shape) > 1 and full.size == label.size:
        recorder.spreads.append(Spread(full, call.where, True, len(recorder.moves) - 1))


def in_place(call: Call, label: Label) -> bool:
    """Returns whether a roll moves only along dimensions where the label does not vary."""
    dims = call.args[2] if len(call.args) > 2 else call.kwargs.get("dims", ())
    return bool(dims) and all(label.shape[d] == 1 for d in dims)


def by_heads(recorder: Recorder, call: Call, label: Label, shape: torch.Size) -> Label:
    """Ties the channels that an attention module spreads over heads: a unit is one head of queries, keys and values.

    In modules named in ``recorder.positions`` a unit is position j of every head.
    """
    module = recorder.modules.get(call.module)
    counts, widths = attributes_of(module, HEADS | SHARED_HEADS), attributes_of(module, HEAD_WIDTH)
    dimensions = call.module in recorder.positions
    last = len(shape) - 1
    if dimensions:
        at = [last] if shape[-2] in counts.values() or shape[-1] in widths.values() else []
    else:
        at = [d for d in varying(label) if shape[d] in counts.values() and d < last]
        at = at or [last - 1] * (shape[-1] in widths.values())
    if not at or label.shape[at[-1]] == 1:
        return label
    heads = shape[-2] if dimensions else shape[at[-1]]
    rows = np.moveaxis(recorder.units.find(label), at[-1], 0).reshape(shape[at[-1]], -1)
    if (rows == 0).any():
        return label
    recorder.units.unite(rows[:, 1:], rows[:, :1])
    atoms = recorder.units.find(rows[:, 0])
    if not dimensions:
        for name, count in counts.items():
            if count == heads:
                recorder.attribute(call.module, name, atoms)
        recorder.grouped[call.module] = atoms
    for other, value in attributes_of(module, HEADS_TOGETHER | HEAD_WIDTH).items():
        if value == heads * shape[-1] and other in HEADS_TOGETHER:
            recorder.attribute(call.module, other, atoms, mul=heads if dimensions else shape[-1])
        elif dimensions and value == shape[-1] and other in HEAD_WIDTH:
            recorder.attribute(call.module, other, atoms)
    return compressed(recorder.units.find(label))


HEADS_TOGETHER = frozenset({"output_dim", "all_head_size", "attn_dim", "inner_dim"})
"""Attributes that hold the width of all heads together."""

PART = frozenset({"c"})
"""Attributes in which modules hold the width of one of equal parts of their stream."""

FOLLOWING = PART | {"channels", "d", "d_model", "dim", "embed_dim", "features", "hidden_dim", "hidden_size"}
FOLLOWING |= {"n_embd", "num_features", "width"}
"""Attributes in which modules hold the width of their stream; a trial verifies that they follow it."""


def follow(recorder: Recorder, call: Call, out: Tensor, axes: list[Label]) -> None:
    """Notes that an attribute follows the channels where a reshape takes their number from it."""
    module = recorder.modules.get(call.module)
    sizes = [size for a in call.args[1:] for size in (a if isinstance(a, list | tuple) else [a])]
    for label in axes if module is not None else ():
        places = varying(label)
        if len(places) != 1 or sizes[places[0] : places[0] + 1] != [out.shape[places[0]]]:
            continue
        follow_width(recorder, call, recorder.units.find(label.reshape(-1)), FOLLOWING)


def follow_width(recorder: Recorder, call: Call, atoms: Label, names: frozenset[str]) -> None:
    """Notes that attributes of such names follow the channels whose number they hold; a trial says if they do."""
    for name, value in attributes_of(recorder.modules.get(call.module), names).items():
        if value == atoms.size and atoms.all():
            recorder.attributes.append(Attribute(call.module, name, atoms))


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
                if len(varying(rows[0])) == 1:  # Ultralytics' blocks split by such a number when they export
                    follow_width(recorder, call, recorder.units.find(rows[0].reshape(-1)), PART)
            elif isinstance(recorder.units, CheckedUnits) and call.name in EVEN:
                pass  # compared with what the full network cuts
            elif not recorder.real and (rows := even(call, label, dim)) is not None:
                # equal parts may be computed from the width or written as numbers: a trial decides
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
    """Channel shuffle: a view as (groups, channels a group), which must stay rectangular, transposed."""
    source, groups = call.args[:2]
    label = recorder.label(source)
    if label is not None and label.shape[1] > 1:
        shape = (label.shape[0], groups, label.shape[1] // groups, *label.shape[2:])
        recorder.spreads.append(Spread(label.reshape(shape), call.where, True, len(recorder.moves)))
    movement(recorder, call)
