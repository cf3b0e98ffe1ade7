"""Norms: channels keep their labels, affine and statistics join their units.

Batch and instance norm work on each channel alone. A norm *over* channels (layer norm, and group norm with
several channels a group) changes when channels go: the pruned network normalises over the kept ones.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from halpiee.structure.calls import Call, NormCall, Timing
from halpiee.structure.elementwise import shape_fields
from halpiee.structure.labels import Tag, varying
from halpiee.structure.recorder import Recorder

__all__ = ["batch_norm", "group_norm", "layer_norm"]


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
    outs = call.outputs
    zero = isinstance(call.args[1], Tensor)
    recorder.set(outs[0], Tag(zero=zero).with_axes([] if label is None else [label]))
    for statistic in outs[1:]:
        recorder.set(statistic, Tag())
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
            over_channels(recorder, call, axis.reshape(-1))
        elif varying(axis) != (1,):
            recorder.units.freeze(axis, f"{call.where} of a weight over its channels")
    attached = [t for t in call.args[1:5] if isinstance(t, Tensor)]
    if rows:
        attach(recorder, call, rows[0].reshape(-1), attached, "batch_norm")
    for tensor in call.outputs[1:]:
        recorder.set(tensor, Tag())
    zero = tag.zero and shift is None
    recorder.set(call.outputs[0], Tag(parameter=True, zero=zero, source=tag.source).with_axes(axes))


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
    label = recorder.label(source)
    outs = call.outputs
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
            recorder.attribute(
                call.module, "normalized_shape", atoms, at=None if type(shape_of) is int else 0
            )
        over_channels(recorder, call, atoms)
    else:
        for parameter in affine:
            recorder.freeze(parameter, call.where)
    recorder.set(outs[0], Tag(zero=len(affine) > 0).with_axes([] if label is None else [label]))
    for statistic in outs[1:]:
        recorder.set(statistic, Tag())
    dim, ins = recorder.peek(source)
    if len(shape) > 1 or dim != source.dim() - 1 or not ins.size or not affine:
        return None
    fields = {
        "positions": source.numel() // shape[-1],
        "dtype": str(source.dtype).removeprefix("torch."),
    }
    return Timing("layer_norm", ins, ins, fields)


def over_channels(recorder: Recorder, call: Call, atoms: np.ndarray) -> None:
    """Notes a norm over channels; a module that norms several tensors of one width has one width for them all."""
    for norm in recorder.norms:
        if norm.module == call.module and norm.atoms.size == atoms.size:
            recorder.units.unite(norm.atoms, atoms)
    recorder.norms.append(NormCall(call.module, atoms))


def group_norm(recorder: Recorder, call: Call) -> None:
    """Group norm: a unit is one norm group; or, where groups do not align, a position across the groups."""
    source, weight, bias, _, channels, _, groups = call.args[:7]
    atoms = recorder.read(source, 1, call)
    affine = [t for t in (weight, bias) if isinstance(t, Tensor)]
    attach(recorder, call, atoms, affine, "group_norm")
    module = recorder.modules.get(call.module)
    label = recorder.label(source)
    outs = call.outputs
    recorder.set(outs[0], Tag(zero=bool(affine)).with_axes([] if label is None else [label]))
    for statistic in outs[1:]:
        recorder.set(statistic, Tag())
    if not isinstance(module, nn.GroupNorm):
        recorder.units.freeze(atoms, f"{call.where} outside a GroupNorm module")
        return
    recorder.attribute(call.module, "num_channels", atoms)
    rows = atoms.reshape(groups, channels // groups)
    if call.module in recorder.positions or groups == 1:
        recorder.units.unite(rows[1:], rows[:1])
        over_channels(recorder, call, atoms)
    else:
        recorder.units.unite(rows[:, 1:], rows[:, :1])
        recorder.grouped[call.module] = atoms
        recorder.attribute(call.module, "num_groups", atoms, div=channels // groups)
