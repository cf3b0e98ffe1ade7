"""Norms, and ops that combine elements: pooling and resizing within a channel, reductions, softmax.

A norm keeps the labels of its channels, and its affine and statistics join their units. Batch and instance norm work
on each channel alone. A norm *over* channels (layer norm, and group norm with several channels a group) changes when
channels are removed: the pruned network normalises over the kept ones.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from halpiee.structure.labels import Label, Tag, no_atoms, together, varying
from halpiee.structure.modules import heads_of
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Average, Call, Norm, Timing
from halpiee.structure.rules.elementwise import dtype_of, shape_fields
from halpiee.structure.rules.movement import FOLLOWING, follow_width


def batch_norm(recorder: Recorder, call: Call) -> Timing | None:
    """Batch norm (and instance norm, which runs as one): per channel along dimension 1."""
    source = call.args[0]
    if recorder.tag(source).parameter:
        of_weight(recorder, call)
        return None
    atoms = recorder.read(source, 1, call)
    attached = [t for t in call.args[1:5] if isinstance(t, Tensor)]
    attach(recorder, call, atoms, attached, "batch_norm")
    module = recorder.modules.get(call.module)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        # Instance norm runs as batch norm over [1, N·C]: the first C positions are the channels.
        recorder.attribute(call.module, "num_features", atoms[: module.num_features])
    label = recorder.label(source)
    recorder.result(call, Tag(zero=isinstance(call.args[1], Tensor)).with_axes([label]))
    dim, ins = recorder.peek(source)
    return Timing("batch_norm", ins, ins, shape_fields(source, dim)) if ins.size else None


def of_weight(recorder: Recorder, call: Call) -> None:
    """Weight standardisation written as a batch norm of ``[1, rows, inputs]``: each row over the kept inputs."""
    source, _, shift = call.args[:3]
    tag = recorder.tag(source)
    axes = [recorder.units.find(axis) for axis in tag.axes]
    rows = [axis for axis in axes if varying(axis) == (1,)]
    over_itself = source.shape[0] == 1 and call.args[5] and call.args[3] is None
    for axis in axes:
        if recorder.within_kernel(axis.reshape(-1)):
            continue
        if varying(axis) == (2,) and axis.all() and source.dim() == 3 and over_itself:
            over_channels(recorder, call, axis.reshape(-1), 2)
        elif varying(axis) != (1,):
            recorder.units.freeze(axis, f"{call.where} of a weight over its channels")
    attached = [t for t in call.args[1:5] if isinstance(t, Tensor)]
    if rows:
        attach(recorder, call, rows[0].reshape(-1), attached, "batch_norm")
    zero = tag.zero and shift is None
    recorder.result(call, Tag(parameter=True, zero=zero, source=tag.source).with_axes(axes))


def attach(recorder: Recorder, call: Call, atoms: np.ndarray, parameters: list[Tensor], kind: str) -> None:
    """Unites parameters of one number per channel with the channels."""
    for parameter in parameters:
        axis = recorder.axis(parameter, 0)
        recorder.units.unite(atoms, axis)
        recorder.serve(axis, "norm", kind)
        recorder.units.freeze(axis[atoms == 0], f"{call.where} of constant channels")
        recorder.units.freeze(atoms[axis == 0], f"{call.where} with a constant of the same width")


def layer_norm(recorder: Recorder, call: Call) -> Timing | None:
    """Layer norm over the last dimensions; its statistics are those of the kept channels."""
    source, shape = call.args[:2]
    if recorder.tag(source).parameter:
        recorder.freeze_call(call, f"{call.where} of a parameter")
        return None
    label = recorder.label(source)
    first = source.dim() - len(shape)
    over = [d for d in range(first, source.dim()) if label is not None and label.shape[d] > 1]
    affine = [t for t in call.args[2:4] if isinstance(t, Tensor)]
    module = recorder.modules.get(call.module)
    if label is not None and over and (over != [source.dim() - 1] or len(shape) > 1):
        recorder.freeze_call(call, f"{call.where} over several dimensions")
        return None
    if label is not None and over:
        atoms = recorder.read(source, -1, call)
        attach(recorder, call, atoms, affine, "layer_norm")
        shape_of = vars(module).get("normalized_shape") if module is not None else None
        if isinstance(shape_of, tuple | list) or type(shape_of) is int:
            at = None if type(shape_of) is int else 0
            recorder.attribute(call.module, "normalized_shape", atoms, at=at)
        over_channels(recorder, call, atoms, -1)
    else:
        for parameter in affine:
            recorder.freeze(parameter, call.where)
    recorder.result(call, Tag(zero=len(affine) > 0).with_axes([label]))
    dim, ins = recorder.peek(source)
    if len(shape) > 1 or dim != source.dim() - 1 or not ins.size or not affine:
        return None
    fields = {"positions": source.numel() // shape[-1], "dtype": dtype_of(source)}
    return Timing("layer_norm", ins, ins, fields)


def over_channels(recorder: Recorder, call: Call, atoms: np.ndarray, dim: int) -> None:
    """Notes a norm over channels, which a masked network computes over the kept ones.

    Where a module is called several times, the norm of one place in its forward has one width for all its inputs.
    """
    if recorder.norm_call is None:
        recorder.units.freeze(atoms, f"{call.where} over channels")
        return
    module, number, _ = recorder.norm_call
    for norm in recorder.norms:
        if (norm.module, norm.number) == (module, number):
            if norm.units.size == atoms.size and norm.dim == dim:
                recorder.units.unite(norm.units, atoms)
            else:
                both = together([norm.units, atoms])
                recorder.units.freeze(both, f"{call.where} over channels of another number elsewhere")
    if (module, number) in recorder.other_norms:
        recorder.units.freeze(atoms, f"{call.where} over channels, and over others elsewhere")
    follow_width(recorder, call, atoms, FOLLOWING)
    recorder.norms.append(Norm(module, number, dim, atoms))


def group_norm(recorder: Recorder, call: Call) -> None:
    """Group norm: a unit is one norm group; or, where groups do not align, a position across the groups."""
    source, weight, bias, _, channels, _, groups = call.args[:7]
    atoms = recorder.read(source, 1, call)
    affine = [t for t in (weight, bias) if isinstance(t, Tensor)]
    attach(recorder, call, atoms, affine, "group_norm")
    recorder.result(call, Tag(zero=bool(affine)).with_axes([recorder.label(source)]))
    module = recorder.modules.get(call.module)
    if not isinstance(module, nn.GroupNorm):
        recorder.units.freeze(atoms, f"{call.where} outside a GroupNorm module")
        return
    if module.num_channels == channels:
        recorder.attribute(call.module, "num_channels", atoms)
    rows = atoms.reshape(groups, channels // groups)
    if call.module in recorder.positions or groups == 1:
        recorder.units.unite(rows[1:], rows[:1])
        over_channels(recorder, call, atoms, 1)
    else:
        recorder.units.unite(rows[:, 1:], rows[:, :1])
        recorder.grouped[call.module] = atoms
        recorder.attribute(call.module, "num_groups", rows[:, 0])


def spatial(recorder: Recorder, call: Call) -> Timing | None:
    """Pooling and resizing: positions mix within a channel."""
    source, out = call.tensors[0], call.outputs[0]
    tag = recorder.tag(source)
    n_positions = next((int(c) for c in "123" if f"{c}d" in call.name), source.dim() - 2)
    axes = [recorder.units.find(axis) for axis in tag.axes]
    mixed = [axis for axis in axes if any(size > 1 for size in axis.shape[source.dim() - n_positions :])]
    if mixed and not tag.parameter:
        recorder.freeze_call(call)
        return None
    for axis in mixed:  # a parameter with positions of its own
        recorder.units.freeze(axis, call.where)
    channels = tag.with_axes(axis for axis in axes if all(axis is not other for other in mixed))
    for tensor in call.outputs:
        recorder.set(tensor, channels)
    kind, fields = pooling(call, source, out, n_positions)
    dim, atoms = recorder.peek(source)
    if kind is None or source.dim() != n_positions + 2 or not atoms.size:
        return None
    if len(fields.get("kernel", ())) == 3:
        fields |= dict(zip("dhw", source.shape[2:], strict=True))
    return Timing(kind, atoms, atoms, shape_fields(source, dim) | fields)


def pooling(call: Call, source: Tensor, out: Tensor, n: int) -> tuple[str | None, dict[str, Any]]:
    """Returns the kind of timed op a pooling or resizing op is, and its fields."""

    def numbers(index: int, default: Any) -> tuple[int, ...]:
        value = call.args[index] if len(call.args) > index else default
        value = [value] if isinstance(value, int) else list(value or default)
        return tuple(value * n if len(value) == 1 else value)

    if call.name.startswith(("max_pool", "avg_pool")):
        kernel = numbers(1, [1])
        fields = {"kernel": kernel, "stride": numbers(2, kernel) or kernel, "padding": numbers(3, [0])}
        fields["dilation"] = numbers(4, [1]) if call.name.startswith("max") else (1,) * n
        return ("max_pool" if call.name.startswith("max") else "avg_pool"), fields
    if "adaptive" in call.name:
        sizes, targets = source.shape[-n:], out.shape[-n:]
        if all(t == 1 for t in targets) and "avg" in call.name:
            return "global_avg_pool", {}
        stride = tuple(s // t for s, t in zip(sizes, targets, strict=True))
        kernel = tuple(s - (t - 1) * k for s, t, k in zip(sizes, targets, stride, strict=True))
        fields = {"kernel": kernel, "stride": stride, "padding": (0,) * n, "dilation": (1,) * n}
        return ("avg_pool" if "avg" in call.name else "max_pool"), fields
    if "upsample" in call.name and n < 3:
        return "upsample", {
            "stride": tuple(o // s or 1 for o, s in zip(out.shape[-n:], source.shape[-n:], strict=True))
        }
    return None, {}


def region(recorder: Recorder, call: Call) -> None:
    """Pooling of regions: each channel alone, at positions that other tensors hold."""
    source = call.args[0]
    for other in call.tensors[1:]:
        recorder.freeze(other, call.where)
    label = recorder.label(source)
    if label is None or any(size > 1 for d, size in enumerate(label.shape) if d != 1):
        recorder.freeze_call(call)
        return
    for out in call.outputs:
        recorder.set(out, Tag(zero=recorder.tag(source).zero).with_axes([label]))


def reduction(recorder: Recorder, call: Call) -> Timing | None:
    """Reductions: over positions the channels stay; over channels only a sum of zeros may lose some."""
    source = call.tensors[0]
    tag = recorder.tag(source)
    dims = reduced_dims(call, source)
    keepdim = all(out.dim() == source.dim() for out in call.outputs[:1])
    axes, frozen, averaged = [], [], []
    summed = False
    for axis in tag.axes:
        label = recorder.units.find(axis)
        if all(label.shape[d] == 1 for d in dims):
            axes.append(label if keepdim or not dims else label.squeeze(tuple(dims)))
        elif root_mean_square(recorder, call, label, dims):
            continue
        elif is_sum(call) and tag.zero and not tag.parameter:
            summed = True  # a sum does not change when elements that are 0 are removed
        elif averages(recorder, call, label, dims):
            averaged.append((label, f"{call.where} over channels"))
        else:
            frozen.append(label)
    zero = tag.zero and call.name in OF_ZEROS and (tag.parameter or not averaged)
    for out in call.outputs:
        recorder.set(out, replace(tag, zero=zero).with_axes(axes))
    if summed:
        recorder.summed.add(recorder.value(call.outputs[0]))
    for out in call.outputs if averaged else ():
        recorder.averages[recorder.value(out)] = Average(tuple(averaged), weight=tag.parameter)
    for label in frozen:
        reason = f"{call.where} over channels"
        if heads_of(recorder.modules.get(call.module)) is None:
            recorder.units.freeze(label, reason)
        else:  # attention weights averaged over heads, which most callers throw away
            recorder.unread.append(([recorder.value(out) for out in call.outputs], label, reason))
    spatial_dims = list(range(2, source.dim()))
    if call.name == "mean" and spatial_dims and sorted(dims) == spatial_dims:
        dim, atoms = recorder.peek(source)
        return Timing("global_avg_pool", atoms, atoms, shape_fields(source, dim)) if atoms.size else None
    return None


def is_sum(call: Call) -> bool:
    """Returns whether a reduction is a sum of magnitudes or of the elements themselves."""
    order = call.args[1] if len(call.args) > 1 else call.kwargs.get("ord", 2)
    return call.name == "sum" or (call.name == "linalg_vector_norm" and order > 0)


def averages(recorder: Recorder, call: Call, label: Label, dims: list[int]) -> bool:
    """Returns whether a reduction is an average of whole channels that a masked network can restrict; notes it."""
    at, source, running = varying(label), call.tensors[0], recorder.norm_call
    if (
        call.name not in AVERAGES
        or running is None
        or running[2] is not source
        or (recorder.tag(source).parameter and recorder.within_kernel(label.reshape(-1)))
    ):
        return False
    if len(at) != 1 or at[0] not in dims or not label.all() or heads_of(recorder.modules.get(call.module)):
        return False
    recorder.units.changes += 1  # an average that feeds no output does not count
    if recorder.tag(source).parameter and call.name.endswith("mean"):
        recorder.centred.add(recorder.tag(source).source)
    over_channels(recorder, call, label.reshape(-1), -1 if at[0] == label.ndim - 1 else at[0])
    return True


AVERAGES = frozenset({"mean", "var", "std", "var_mean", "std_mean", "linalg_vector_norm"})
"""Reductions that norms written by hand are made of."""

OF_ZEROS = AVERAGES | {"sum", "amax", "amin", "max", "min"}
"""Reductions that are 0 over zeros."""


def follow_averages(recorder: Recorder, call: Call, *, elementwise: bool) -> None:
    """Follows averages over channels to where they normalise channels; where they do something else, those stay.

    They normalise where they are subtracted from channels, or divide them. What a gate or an output makes of an average
    means something else when channels are removed. ``elementwise`` says whether the op keeps what each element is.
    """
    found = [recorder.averages.get(value) for value in call.reads]
    known = [average for average in found if average is not None]
    if not known:
        return
    name, exponent = call.name.rstrip("_"), call.args[1] if len(call.args) > 1 else None
    over = tuple({id(label): (label, why) for average in known for label, why in average.over}.values())
    others = [t for t, average in zip(call.tensors, found, strict=True) if average is None]
    inverse = any(average.inverse for average in known)
    weight = any(average.weight for average in known)

    def channels(tensor: Tensor) -> bool:
        """Whether a tensor has the channels: of a weight its inputs, else any but a parameter's."""
        tag, find = recorder.tag(tensor), recorder.units.find
        if not weight:
            return bool(tag.axes) and not tag.parameter
        return any(np.isin(find(axis), find(label)).any() for axis in tag.axes for label, _ in over)

    if elementwise and not any(map(channels, others)):
        inverse |= name in ("rsqrt", "reciprocal") or (name == "div" and found[0] is None)
        inverse |= name == "pow" and isinstance(exponent, int | float) and exponent < 0
        for out in call.outputs:
            recorder.averages[recorder.value(out)] = Average(over, inverse, weight)
        return
    divides = name == "div" and found[0] is None
    if name not in ("sub", "rsub") and not divides and not (name == "mul" and inverse):
        freeze_averaged(recorder, over)


def freeze_averaged(recorder: Recorder, over: tuple[tuple[Label, str], ...]) -> None:
    """Freezes channels of which an average is used that is no norm's."""
    for label, reason in over:
        recorder.units.freeze(recorder.units.find(label), reason)


def root_mean_square(recorder: Recorder, call: Call, label: Label, dims: list[int]) -> bool:
    """Returns whether a mean is that of the squares in an RMS norm over the channels, and notes the norm.

    torch runs its function so, as squares, mean, root and product, where it has no kernel for the whole.
    """
    module = recorder.modules.get(call.module)
    if call.api != "rms_norm" or call.name != "mean":
        return False
    last = label.ndim - 1
    if dims != [last] or varying(label) != (last,) or not label.all():
        return False
    atoms = label.reshape(-1)
    if isinstance(vars(module).get("normalized_shape") if module is not None else None, tuple | list):
        recorder.attribute(call.module, "normalized_shape", atoms, at=0)
    over_channels(recorder, call, atoms, -1)
    return True


def reduced_dims(call: Call, source: Tensor) -> list[int]:
    """Returns the dimensions an op reduces."""
    index = 2 if call.name == "linalg_vector_norm" else 1
    dims = call.args[index] if len(call.args) > index else call.kwargs.get("dim")
    if isinstance(dims, bool) or dims is None or dims == []:
        return list(range(source.dim()))
    return sorted(d % source.dim() for d in ([dims] if isinstance(dims, int) else dims))


def softmax(recorder: Recorder, call: Call) -> Timing | None:
    """Softmax and other ops that mix along one dimension and keep the shape.

    A softmax along the last dimension of ``[N, heads, L, S]`` has a price.
    """
    source = call.tensors[0]
    tag = recorder.tag(source)
    dims = reduced_dims(call, source)
    for axis in tag.axes:
        if any(recorder.units.find(axis).shape[d] > 1 for d in dims):
            recorder.units.freeze(axis, f"{call.where} over channels")
    for out in call.outputs:
        recorder.set(out, replace(tag, zero=False))
    if call.name != "_softmax" or source.dim() != 4 or dims != [3]:
        return None
    heads = source.shape[1]
    label = recorder.label(source)
    alone = label is not None and label.size == label.shape[1] == heads
    atoms = label.reshape(-1) if alone and label is not None else no_atoms(heads)
    return Timing("softmax", atoms, atoms, shape_fields(source, 1))
