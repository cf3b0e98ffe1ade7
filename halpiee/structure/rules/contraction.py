"""Ops that contract channels: convolutions, matrix products with a weight, products of two activations."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from halpiee.structure.labels import Atoms, Label, Tag, along, compressed, no_atoms, together
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, LayerCall, Timing
from halpiee.structure.rules.elementwise import dtype_of

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def convolution(recorder: Recorder, call: Call) -> Timing | None:
    """Convolution: reads the input's channels; its output channels are the rows of its weight.

    A depthwise convolution passes channels through; the unit of a grouped one is one group, or, by name in
    ``recorder.positions``, position j of every group.
    """
    x, weight, bias, stride, padding, dilation, transposed, _, groups = call.args[:9]
    computed = recorder.computed_by(weight)
    if (not recorder.tag(weight).parameter and computed is None) or recorder.tag(x).parameter:
        recorder.freeze_call(call, f"{call.where} with a weight that is no parameter")
        return None
    kind = "conv_transpose" if transposed else "conv"
    dims = Dims(1, *((0, 1) if transposed else (1, 0)), 1)
    name, ins, outs = layer(recorder, call, kind, (x, weight, bias), dims, groups)
    spatial = x.shape[2:]
    fields: dict[str, Any] = {
        "batch": x.shape[0],
        "d": spatial[0] if len(spatial) == 3 else 1,
        "h": spatial[-2] if len(spatial) > 1 else spatial[0],
        "w": spatial[-1] if len(spatial) > 1 else 1,
        "kernel": tuple(weight.shape[2:]),
        "stride": wide(stride, len(spatial)),
        "padding": wide(padding, len(spatial)),
        "dilation": wide(dilation, len(spatial)),
        "groups": groups,
        "dtype": dtype_of(x),
    }
    positions = x if transposed else call.out
    recorder.output_positions[name] = positions.shape[0] * math.prod(positions.shape[2:])
    return Timing(kind, ins, outs, fields, layer=name)


class Dims(NamedTuple):
    """Dimensions of a layer."""

    x: int  # of the input that is contracted
    inner: int  # of the weight that is contracted with it
    rows: int  # of the weight, for the output channels
    out: int  # of the output that holds them


def layer(
    recorder: Recorder,
    call: Call,
    kind: str,
    operands: tuple[Tensor, Tensor, Tensor | None],
    dims: Dims,
    groups: int = 1,
) -> tuple[str, Atoms, Atoms]:
    """Records a layer of an input, a weight and a bias; returns its name, input atoms and output atoms."""
    x, weight, bias = operands
    computed, owner = recorder.computed_by(weight), recorder.owner(weight, call)
    name, module = recorder.call_name(owner), recorder.modules.get(owner)
    if computed is None and not recorder.tag(weight).zero:
        recorder.freeze(weight, f"{call.where} with a weight that is a sum of parameters")
    if recorder.tag(weight).source in recorder.centred and not recorder.tag(x).zero:
        recorder.freeze(x, f"{call.where} of channels that are not 0 when removed, with a centred weight")
    passing = across(recorder, call, x, dims.x, weight)
    if passing is not None:
        recorder.passing[name] = passing.reshape(-1)
    ins = recorder.read(x, dims.x, call) if passing is None else no_atoms(x.shape[dims.x])
    c_out = call.out.shape[dims.out]
    if computed is not None:  # by an op without a rule
        outs, reason = recorder.units.fresh(c_out), f"{call.where} with a weight that {computed} computes"
        recorder.units.freeze(together([ins, outs]), reason)
        recorder.freeze(x, reason)
    elif groups > 1:
        outs = grouped(recorder, call, kind, ins, weight, groups, c_out)
    else:
        columns, outs = recorder.axis(weight, dims.inner), recorder.axis(weight, dims.rows)
        join(recorder, call, ins, columns)
        recorder.serve(columns, "in", kind)
        recorder.serve(outs, "out", kind)
        if isinstance(module, nn.Linear if kind == "linear" else CONVS):
            width = "features" if kind == "linear" else "channels"
            recorder.attribute(owner, f"in_{width}", columns)
            recorder.attribute(owner, f"out_{width}", outs)
    outs = with_bias(recorder, call, bias, outs, kind)
    shape = [1] * call.out.dim()
    shape[dims.out] = c_out
    label = passing if passing is not None else outs.reshape(shape) if c_out > 1 else None
    zero = passing is None or (bias is None and recorder.tag(x).zero)
    recorder.set(call.out, Tag(zero=zero).with_axes([label]))
    recorder.layers.append(LayerCall(name, kind, ins, outs))
    return name, ins, outs


def across(recorder: Recorder, call: Call, x: Tensor, dim: int, weight: Tensor) -> Label | None:
    """Returns the label of an input whose channels do not lie along the dimension that a layer contracts, else None.

    Heads in the batch, or channels beside mixed tokens: the layer does the same to each, and its weight is frozen.
    """
    label = recorder.label(x)
    dim %= x.dim()
    if label is None or label.size == 1 or label.shape[dim] > 1:
        return None
    if any(size > 1 for d, size in enumerate(label.shape) if call.name.endswith("convolution") and d > 0):
        return None
    if weight.dim() == x.dim() and not call.name.endswith("convolution"):
        shared = [d for d in range(x.dim() - 2) if label.shape[d] > 1 and weight.shape[d] > 1]
        if shared:
            return None
    frozen = recorder.units.frozen()
    if all(root in frozen for root in np.unique(recorder.units.find(label)).tolist()):
        return None  # two inputs in one batch: these units are frozen, so the layer's own need not be
    recorder.freeze(weight, f"{call.where} on each channel or head alike")
    return label


def wide(values: Any, n: int) -> tuple[int, ...]:
    """Returns one number per spatial dimension."""
    numbers: tuple[int, ...] = tuple(values)
    return numbers * n if len(numbers) == 1 else numbers


def join(recorder: Recorder, call: Call, ins: Atoms, columns: Atoms) -> None:
    """Unites the channels that a layer reads with the columns of its weight; unmatched ones are frozen."""
    recorder.units.unite(ins, columns)
    recorder.units.freeze(columns[ins == 0], f"{call.where} reads channels that belong to no layer")
    recorder.units.freeze(ins[columns == 0], f"{call.where} with a weight that does not shrink")


def with_bias(recorder: Recorder, call: Call, bias: Tensor | None, outs: Atoms, kind: str) -> Atoms:
    """Unites a bias with the rows; a layer of one channel gets a frozen unit."""
    if isinstance(bias, Tensor):
        axis = recorder.axis(bias, 0)
        if recorder.tag(bias).parameter:
            recorder.units.unite(outs, axis)
            recorder.serve(axis, "out", kind)
        else:
            recorder.freeze(bias, call.where)
            recorder.units.freeze(outs, f"{call.where} with a computed bias")
    if not outs.all():
        outs, fresh = outs.copy(), recorder.units.fresh(int((outs == 0).sum()))
        reason = "a single channel" if outs.size == 1 else f"{call.where} with a computed weight"
        recorder.units.freeze(fresh, reason)
        outs[outs == 0] = fresh
    return outs


def grouped(
    recorder: Recorder, call: Call, kind: str, ins: Atoms, weight: Tensor, groups: int, c_out: int
) -> Atoms:
    """Returns the output atoms of a grouped convolution, tied to its input's."""
    units, owner, c_in = recorder.units, recorder.owner(weight, call), ins.size
    module = recorder.modules.get(owner)
    per_in, per_out = c_in // groups, c_out // groups
    transposed = kind == "conv_transpose"
    rows = recorder.axis(weight, 0)  # c_out of them, c_in where transposed
    inner = recorder.axis(weight, 1)  # c_in / groups of them, c_out / groups where transposed
    recorder.serve(rows, "in" if transposed and per_in > 1 else "out", kind)
    per_row = per_in if transposed else per_out
    both = together([ins, rows])
    if per_in == per_out == 1 and recorder.value(weight) in recorder.alike:
        return ins  # one filter for all channels
    if (ins == 0).any():
        units.freeze(both, f"{call.where} reads channels that belong to no layer")
    if owner in recorder.positions and not transposed:
        for by_group in (ins.reshape(groups, per_in), rows.reshape(groups, per_out)):
            units.unite(by_group[1:], by_group[:1])
        units.unite(ins[:per_in], inner)
        recorder.serve(inner, "in", kind)
        if isinstance(module, CONVS):
            recorder.attribute(owner, "in_channels", ins)
            recorder.attribute(owner, "out_channels", rows)
        return rows
    first = ins.reshape(groups, per_in)[:, :1]
    units.unite(ins.reshape(groups, per_in), first)
    units.unite(rows.reshape(groups, per_row), first)
    if per_in > 1:
        recorder.grouped[owner] = ins
    if isinstance(module, CONVS):
        recorder.attribute(owner, "groups", rows, div=per_row)
        recorder.attribute(owner, "in_channels", rows, mul=per_in, div=per_row)
        recorder.attribute(owner, "out_channels", rows, mul=per_out, div=per_row)
    return np.repeat(first[:, 0], per_out) if transposed else rows


def matrix_product(recorder: Recorder, call: Call) -> Timing | None:
    """A product with a weight is a linear layer; one of two activations ties the contracted channels."""
    bias, a, b, scaled = operands(call)
    if a.dim() < 2 or b.dim() < 2 or scaled:
        recorder.freeze_call(call)
        return None
    a_weight, b_weight = recorder.tag(a).parameter, recorder.tag(b).parameter
    if not a_weight and not b_weight and b.dim() == 2 and recorder.computed_by(b) is not None:
        return linear(recorder, call, a, b, bias, Dims(-1, -1, 0, call.out.dim() - 1))
    if a_weight and b_weight and call.name != "bmm" and recorder.tag(a).source not in recorder.learned:
        recorder.freeze(a, f"{call.where} of a buffer")  # a table of numbers that a layer reads as its input
        recorder.set(a, Tag())
        a_weight = False
    if a_weight and b_weight:
        recorder.freeze_call(call)
        recorder.set(call.out, Tag(parameter=True, source=recorder.tag(a).source))
        return None
    if call.name == "linear":
        return linear(recorder, call, a, b, bias, Dims(-1, 1, 0, call.out.dim() - 1))
    if b_weight and b.dim() == a.dim():
        return linear(recorder, call, a, b, bias, Dims(-1, -2, -1, call.out.dim() - 1))
    if a_weight and b.dim() == a.dim():
        return linear(recorder, call, b, a, bias, Dims(-2, -1, -2, call.out.dim() - 2))
    two_activations(recorder, call, a, b, bias)
    return product_timing(recorder, a, b)


def operands(call: Call) -> tuple[Tensor | None, Tensor, Tensor, bool]:
    """Returns bias, left and right of a matrix product, and whether it scales by other than 1."""
    args = call.args
    if call.name in ("addmm", "baddbmm", "addmv"):
        scaled = any(call.kwargs.get(k, 1) != 1 for k in ("alpha", "beta"))
        return args[0], args[1], args[2], scaled
    if call.name == "linear":
        return (args[2] if len(args) > 2 else None), args[0], args[1], False
    return None, args[0], args[1], False


def linear(
    recorder: Recorder, call: Call, x: Tensor, weight: Tensor, bias: Tensor | None, dims: Dims
) -> Timing:
    """A linear layer: contracts one dimension of x with one of the weight."""
    name, ins, outs = layer(recorder, call, "linear", (x, weight, bias), dims)
    positions = call.out.numel() // max(1, outs.size)
    recorder.output_positions[name] = positions
    fields = {"positions": positions, "dtype": dtype_of(x)}
    return Timing("linear", ins, outs, fields, layer=name)


def two_activations(recorder: Recorder, call: Call, a: Tensor, b: Tensor, bias: Tensor | None) -> None:
    """A batched product: contracted channels are tied, those of one operand and of the batch pass through."""
    units = recorder.units
    recorder.set(call.out, Tag())
    if bias is not None:
        recorder.freeze(bias, call.where)
    passed: list[tuple[Label, Tensor, Tensor]] = []
    contracted: list[Atoms | None] = []
    for tensor, other, inner in ((a, b, a.dim() - 1), (b, a, b.dim() - 2)):
        label = recorder.label(tensor)
        if label is None or recorder.tag(tensor).parameter or a.dim() != b.dim():
            recorder.freeze(tensor, call.where)
            contracted.append(None)
            continue
        if label.shape[inner] > 1:
            # position j of every head, so that the summed channels stay rectangular
            reason = f"{call.where} over partly constant channels"
            contracted.append(along(units, label, inner, tensor.shape[inner], reason))
        else:
            contracted.append(None)
            passed.append((label, tensor, other))
    if contracted[0] is not None and contracted[1] is not None:
        units.unite(contracted[0], contracted[1])
        if not (recorder.tag(a).zero or recorder.tag(b).zero):
            for tensor in (a, b):
                recorder.freeze(tensor, f"{call.where} of channels that are not 0 when removed")
    else:
        units.freeze(together(side for side in contracted if side is not None), f"{call.where} over channels")
    zero = any(recorder.tag(tensor).zero for _, tensor, _ in passed)
    if len(passed) == 2:
        joined = batched_alike(recorder, passed[0][0], passed[1][0], call.where)
        if joined is None:
            for label, _, _ in passed:
                units.freeze(label, f"{call.where} of two tensors with channels")
        else:
            recorder.set(call.out, Tag(zero=zero).with_axes([joined]))
    elif passed:
        label, _, other = passed[0]
        if any(size > 1 and other.shape[d] > 1 for d, size in enumerate(label.shape[:-2])):
            recorder.batched.append((label, len(label.shape) - 2, f"{call.where} with a tensor as wide"))
        recorder.set(call.out, Tag(zero=zero).with_axes([label]))


def batched_alike(recorder: Recorder, a: Label, b: Label, where: str) -> Label | None:
    """Returns the label of a product of two tensors whose channels lie along the batch (heads), or None.

    An operand that all heads share is frozen; heads may be removed.
    """
    alone, other = (a, b) if a.shape[-2:] == (1, 1) and a.size > 1 else (b, a)
    if alone.shape[-2:] != (1, 1):
        return None
    if all(size == 1 for size in other.shape[:-2]):
        recorder.units.freeze(other, f"{where}, whose heads share one operand")
        return alone
    if alone.shape[:-2] != other.shape[:-2]:
        return None
    recorder.units.unite(alone, other)
    return compressed(recorder.units.find(other))


def attention(recorder: Recorder, call: Call) -> Timing:
    """Fused attention; its timing counts whole heads where the queries' units are heads, else channels of values."""
    query, key, value = call.args[:3]
    couple_attention(recorder, call)
    heads = query.shape[-3] if query.dim() > 2 else 1
    length, width = query.shape[-2:]
    fields = {
        "batch": query.numel() // (heads * length * width),
        "h": length,
        "w": key.shape[-2],
        "dtype": dtype_of(query),
    }
    q = recorder.label(query)
    if q is not None and q.size == heads > 1 and q.shape[-2:] == (1, 1):
        atoms, fields["groups"] = np.repeat(q.reshape(-1), width), heads
    else:
        atoms, fields["kernel"] = of_all_heads(recorder.label(value), width, heads), (heads,)
    return Timing("attention", atoms, atoms, fields)


def of_all_heads(label: Label | None, width: int, heads: int) -> Atoms:
    """Returns the atoms of all heads where position j of each is one unit; none where a label does not say so."""
    if label is None or not label.size == label.shape[-1] == width:
        return no_atoms(heads * width)
    return np.tile(label.reshape(-1), heads)


def product_timing(recorder: Recorder, a: Tensor, b: Tensor) -> Timing:
    """Returns the timing of a product ``[…, L, K] · […, K, S]``: channels are K of all heads, which lie in the batch.

    Units are heads, or else position j of all heads.
    """
    length, inner = a.shape[-2:]
    rows = math.prod(a.shape[:-2])
    fields: dict[str, Any] = {"h": length, "w": b.shape[-1], "dtype": dtype_of(a)}
    labels = [
        x for x in map(recorder.label, (a, b)) if x is not None and x.size > 1 and x.shape[-2:] == (1, 1)
    ]
    own = recorder.units.find(labels[0]).reshape(-1) if labels else no_atoms()
    heads = np.unique(own).size
    if heads > 1 and rows % heads == 0 and (own.reshape(-1, heads) == own[:heads]).all():
        atoms = np.repeat(own[:heads], inner)
        return Timing("product", atoms, atoms, fields | {"batch": rows // heads, "groups": heads})
    atoms = of_all_heads(recorder.label(a), inner, rows)
    return Timing("product", atoms, atoms, fields | {"kernel": (rows,)})


def couple_attention(recorder: Recorder, call: Call) -> None:
    """Fused attention: queries and keys are tied where they are contracted, the values' channels pass through.

    Its scale follows the width of a head unless it is given, so without one queries and keys are frozen. Whole heads,
    which lie along the batch, may be removed: with the head of keys and values that they read (Ainslie et al. 2023), or
    alone where all heads share one (Shazeer 2019), which is then frozen.
    """
    query, key, value = call.args[:3]
    units = recorder.units
    q = recorder.label(query)
    k, v = (by_query_heads(recorder.label(tensor), tensor, query) for tensor in (key, value))
    if q is not None and q.shape[-2:] == (1, 1) and q.size > 1:
        shared = [label for label in (k, v) if label is None or all(size == 1 for size in label.shape[:-2])]
        if len(shared) == 2:
            for tensor in (key, value):
                recorder.freeze(tensor, f"{call.where}, whose heads share their keys and values")
            set_by_heads(recorder, call, q, zero=False)
            return
        if k is not None and v is not None and q.shape == k.shape == v.shape:
            units.unite(q, k)
            units.unite(q, v)
            set_by_heads(recorder, call, compressed(units.find(q)), zero=recorder.tag(value).zero)
            return
    sides = []
    for tensor, label in ((query, q), (key, k)):
        if label is not None and label.shape[-1] > 1:
            atoms = along(units, label, -1, tensor.shape[-1], f"{call.where} over partly constant channels")
            if call.kwargs.get("scale") is None:
                units.freeze(atoms, f"{call.where}, whose scale follows the width of a head")
            sides.append(atoms)
        else:
            recorder.freeze(tensor, call.where)
    if len(sides) == 2:
        units.unite(sides[0], sides[1])
    else:
        for atoms in sides:
            units.freeze(atoms, call.where)
    for tensor in call.tensors[3:]:
        recorder.freeze(tensor, call.where)
    own = v is not None and v.shape[-2] == 1
    recorder.result(call, Tag(zero=recorder.tag(value).zero).with_axes([v]) if own else Tag())
    if v is not None and v.shape[-2] > 1:
        units.freeze(v, call.where)
    elif v is not None and any(size > 1 for size in v.shape[:-2]):
        recorder.batched.append((v, v.ndim - 2, f"{call.where} with queries as wide"))


def by_query_heads(label: Label | None, tensor: Tensor, query: Tensor) -> Label | None:
    """Returns the label of keys or values ``[…, heads, L, width]`` as the heads of the queries read them.

    They have as many heads as the queries, a divisor of it, or one.
    """
    if label is None:
        return None
    label = label.reshape((1,) * (query.dim() - label.ndim) + label.shape)
    if label.ndim > 2 and label.shape[-3] > 1:
        label = np.repeat(label, query.shape[-3] // tensor.shape[-3], axis=-3)
    return label


def set_by_heads(recorder: Recorder, call: Call, label: Label, *, zero: bool) -> None:
    """Sets the labels of the outputs of fused attention by heads; a constant mask of each head freezes them."""
    recorder.result(call, Tag(zero=zero).with_axes([label]))
    for mask in call.tensors[3:]:
        shape = (1,) * (label.ndim - mask.dim()) + tuple(mask.shape)
        wide = any(size > 1 and shape[d] > 1 for d, size in enumerate(label.shape))
        for axis in recorder.tag(mask).axes:
            own = axis.reshape((1,) * (label.ndim - axis.ndim) + axis.shape)
            if wide and recorder.tag(mask).parameter and own.shape == label.shape:
                recorder.units.unite(label, own)  # a learned bias of each head is part of its unit
                recorder.serve(axis.reshape(-1), "norm", "parameter")
                wide = False
            else:
                recorder.units.freeze(axis, call.where)
        if wide:
            recorder.units.freeze(label, f"{call.where} with a mask of its own for each head")
