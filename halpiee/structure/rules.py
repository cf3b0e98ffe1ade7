"""What each op does to the labels: one table, op name → rule; an op without a rule freezes what it touches.

A rule sets the tags of its call's outputs and returns what is known of the op's time, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halpiee.structure.contractions import attention, convolution, matrix_product
from halpiee.structure.elementwise import pointwise, shape_fields
from halpiee.structure.labels import Tag, compressed, moved, varying
from halpiee.structure.norms import batch_norm, group_norm, layer_norm
from halpiee.structure.recorder import Call, LayerCall, Recorder, Timing

__all__ = ["RULES", "apply", "is_pointwise"]

Rule = Callable[[Recorder, Call], Timing | None]


def apply(recorder: Recorder, call: Call) -> Timing | None:
    """Applies the rule of the op to the labels; pointwise ops share one, unknown ops freeze their inputs."""
    rule = RULES.get(call.name) or RULES.get(call.name.rstrip("_"))
    if rule is not None:
        return rule(recorder, call)
    if not call.tensors:
        return None
    if is_pointwise(call.name, call.func):
        return pointwise(recorder, call)
    recorder.freeze_call(call)
    return None


def is_pointwise(name: str, func: Any) -> bool:
    """Returns whether an op without a rule of its own works on each element alone."""
    if name in RULES or name.rstrip("_") in RULES:
        return False
    return torch.Tag.pointwise in func.tags or name.rstrip("_") in POINTWISE


POINTWISE = frozenset(
    {"hardswish", "hardsigmoid", "_prelu_kernel", "elu", "leaky_relu", "copy", "log_sigmoid_forward"}
)
"""Pointwise ops that torch does not mark as such."""


def same(recorder: Recorder, call: Call) -> None:
    """A copy in another dtype, layout or memory: the labels stay."""
    if call.out.shape != call.tensors[0].shape:
        recorder.freeze_call(call)
        return
    for out in call.outputs[:1]:
        recorder.set(out, recorder.tag(call.tensors[0]))


def like(recorder: Recorder, call: Call) -> None:
    """A new tensor of an input's shape: it shrinks with it."""
    tag = recorder.tag(call.tensors[0])
    recorder.set(call.out, Tag(tag.axes, tag.parameter, zero=call.name == "zeros_like"))


def nothing(recorder: Recorder, call: Call) -> None:
    """A new tensor whose shape was given in numbers: it belongs to nothing."""
    for out in call.outputs:
        recorder.set(out, Tag())


SIZELESS = frozenset({"permute", "transpose", "t", "squeeze", "unsqueeze", "flip"})
"""Movements without sizes or positions of their own."""

COMPUTED = frozenset({"flatten", "linear", "batch_norm", "instance_norm", "expand_as", "view_as", "conv2d"})
"""Functions that work their sizes out from their input."""


def movement(recorder: Recorder, call: Call) -> None:
    """Elements change places: the same op runs on the labels."""
    source = call.tensors[0]
    tag = recorder.tag(source)
    if len(call.tensors) > 1:
        recorder.freeze_call(call)
        return
    if tag.axes and not tag.parameter and call.name not in SIZELESS and call.api not in COMPUTED:
        recorder.literal = True
    if call.name in ("split", "split_with_sizes", "chunk", "unbind", "select", "slice", "narrow"):
        tag = cut(recorder, call, tag)
    outs = call.outputs
    many = not isinstance(call.out, Tensor)
    for index, out in enumerate(outs):

        def move(label: Tensor, index: int = index, shape: torch.Size = out.shape) -> Tensor:
            if call.name in ("view", "_unsafe_view", "_reshape_alias", "reshape"):
                return label.reshape(shape)
            if call.name == "expand":
                return label.expand(call.args[1])
            result = call.func(label, *call.args[1:], **call.kwargs)
            moved_label: Tensor = result[index] if many else result
            return moved_label

        axes = [moved(recorder.units.find(a), tuple(source.shape), move) for a in tag.axes]
        recorder.set(out, Tag(tag.axes, tag.parameter, tag.zero).with_axes(axes))
        for axis, before in zip(axes, tag.axes, strict=True):
            if len(varying(axis)) > len(varying(before)) and not tag.parameter:
                recorder.spreads.append((axis, call.where))


def shuffle(recorder: Recorder, call: Call) -> None:
    """Channel shuffle: a view as (groups, channels a group), which must stay rectangular, turned over."""
    source, groups = call.args[:2]
    label = recorder.label(source)
    if label is not None and label.shape[1] > 1:
        shape = (label.shape[0], groups, label.shape[1] // groups, *label.shape[2:])
        recorder.spreads.append((compressed(label.reshape(shape)), call.where))
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


def cut(recorder: Recorder, call: Call, tag: Tag) -> Tag:
    """Handles cuts along dimensions that shrink: equal parts are tied, parts given in numbers freeze."""
    source = call.tensors[0]
    default = 1 if call.name in ("slice", "select", "narrow") else 2
    dim = call.kwargs.get("dim", 0)
    if call.name in ("slice", "select", "narrow") or call.name == "unbind":
        dim = call.args[1] if len(call.args) > 1 else dim
    else:
        dim = call.args[default] if len(call.args) > default else dim
    dim %= source.dim()
    size = source.shape[dim]
    if all(out.shape[dim : dim + 1] == (size,) and out.dim() == source.dim() for out in call.outputs[:1]):
        return tag
    axes = []
    for axis in tag.axes:
        label = recorder.units.find(axis)
        if dim in varying(label):
            equal = call.api in ("chunk", "tensor_split", "hsplit") and not tag.parameter
            parts = len(call.outputs)
            if equal and size % parts == 0:
                shape = (*label.shape[:dim], parts, size // parts, *label.shape[dim + 1 :])
                rows = np.moveaxis(label.reshape(shape), dim, 0)
                recorder.units.unite(rows[1:], rows[:1])
            elif len(varying(label)) > 1 and call.name in ("unbind", "select"):
                rows = np.moveaxis(label, dim, 0)
                recorder.units.unite(rows[1:], rows[:1])
            else:
                recorder.units.freeze(label, f"{call.where} with literal bounds")
        axes.append(label)
    return Tag(tuple(axes), tag.parameter, tag.zero)


def concat(recorder: Recorder, call: Call) -> Timing | None:
    """Tensors behind one another (``cat``) or on top of one another (``stack``)."""
    sources = call.args[0]
    out: Tensor = call.out
    dim = (call.args[1] if len(call.args) > 1 else call.kwargs.get("dim", 0)) % out.dim()
    tags = [recorder.tag(s) for s in sources]
    if not any(t.axes for t in tags):
        recorder.set(out, Tag(parameter=all(t.parameter for t in tags)))
    parts = []
    for source, tag in zip(sources, tags, strict=True):
        if call.name == "cat" and source.dim() != out.dim():
            continue  # the legacy empty tensor
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


def spatial(recorder: Recorder, call: Call) -> Timing | None:
    """Pooling and resizing: positions mix within a channel."""
    source, out = call.tensors[0], call.outputs[0]
    tag = recorder.tag(source)
    label = recorder.label(source)
    n_positions = next((int(c) for c in "123" if f"{c}d" in call.name), source.dim() - 2)
    dims = range(source.dim() - n_positions, source.dim())
    if label is not None and any(label.shape[d] > 1 for d in dims):
        recorder.freeze_call(call)
        return None
    for tensor in call.outputs:
        recorder.set(tensor, tag)
    kind, fields = pooling(call, source, out, n_positions)
    dim, atoms = recorder.peek(source)
    if kind is None or source.dim() != n_positions + 2 or not atoms.size:
        return None
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
    if "upsample" in call.name:
        return "upsample", {
            "stride": tuple(o // s or 1 for o, s in zip(out.shape[-n:], source.shape[-n:], strict=True))
        }
    return None, {}


EXACT_SUMS = frozenset({"sum"})
"""Reductions whose value does not change when elements that are 0 go."""


def reduction(recorder: Recorder, call: Call) -> Timing | None:
    """Reductions: over positions the channels stay; over channels only a sum of zeros may lose some."""
    source = call.tensors[0]
    tag = recorder.tag(source)
    dims = reduced_dims(call, source)
    keepdim = all(out.dim() == source.dim() for out in call.outputs[:1])
    axes = []
    for axis in tag.axes:
        label = recorder.units.find(axis)
        if any(label.shape[d] > 1 for d in dims):
            if not (call.name in EXACT_SUMS and tag.zero and not tag.parameter):
                recorder.units.freeze(label, f"{call.where} over channels")
            continue
        axes.append(label if keepdim else label.squeeze(tuple(dims)) if dims else label)
    zero = tag.zero and call.name in ("sum", "mean", "amax", "amin", "max", "min", "linalg_vector_norm")
    for out in call.outputs:
        recorder.set(out, Tag(parameter=tag.parameter, zero=zero).with_axes(axes))
    spatial_dims = list(range(2, source.dim()))
    if call.name == "mean" and spatial_dims and sorted(dims) == spatial_dims:
        dim, atoms = recorder.peek(source)
        return Timing("global_avg_pool", atoms, atoms, shape_fields(source, dim)) if atoms.size else None
    return None


def reduced_dims(call: Call, source: Tensor) -> list[int]:
    """Returns the dimensions an op reduces."""
    index = 2 if call.name == "linalg_vector_norm" else 1
    dims = call.args[index] if len(call.args) > index else call.kwargs.get("dim")
    if isinstance(dims, bool) or dims is None or dims == []:
        return list(range(source.dim()))
    return sorted(d % source.dim() for d in ([dims] if isinstance(dims, int) else dims))


def softmax(recorder: Recorder, call: Call) -> None:
    """Softmax and other ops that mix along one dimension and keep the shape."""
    source = call.tensors[0]
    tag = recorder.tag(source)
    dims = reduced_dims(call, source)
    for axis in tag.axes:
        if any(recorder.units.find(axis).shape[d] > 1 for d in dims):
            recorder.units.freeze(axis, f"{call.where} over channels")
    for out in call.outputs:
        recorder.set(out, Tag(tag.axes, tag.parameter))


def embedding(recorder: Recorder, call: Call) -> None:
    """A table of vectors: its columns are what it produces."""
    table, indices = call.args[:2]
    recorder.freeze(indices, call.where)
    atoms = recorder.axis(table, 1)
    if not recorder.tag(table).parameter:
        recorder.freeze_call(call)
        return
    rows = recorder.axis(table, 0)
    recorder.units.freeze(rows, "rows of an embedding")
    owner = recorder.owner(table, call)
    recorder.serve(atoms, "out", "embedding")
    if isinstance(recorder.modules.get(owner), nn.Embedding):
        recorder.attribute(owner, "embedding_dim", atoms)
    recorder.layers.append(
        LayerCall(recorder.call_name(owner), "embedding", np.zeros(0, dtype=np.int64), atoms)
    )
    shape = [1] * call.out.dim()
    shape[-1] = atoms.size
    recorder.set(call.out, Tag(zero=True).with_axes([atoms.reshape(shape)]))


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
    recorder.set(call.out, Tag(parameter=tag.parameter, zero=tag.zero).with_axes(axes))


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
    recorder.set(out, Tag(zero=recorder.tag(values).zero).with_axes([lent]))


def region(recorder: Recorder, call: Call) -> None:
    """Pooling of regions: each channel alone, at places that other tensors give."""
    source = call.args[0]
    for other in call.tensors[1:]:
        recorder.freeze(other, call.where)
    label = recorder.label(source)
    if label is None or any(size > 1 for d, size in enumerate(label.shape) if d != 1):
        recorder.freeze_call(call)
        return
    for out in call.outputs:
        recorder.set(out, Tag(zero=recorder.tag(source).zero).with_axes([label]))


def words(text: str) -> list[str]:
    """Returns the op names in a text."""
    return text.split()


MOVEMENTS = words("""view _unsafe_view _reshape_alias reshape expand permute transpose t squeeze unsqueeze
select slice narrow
    split split_with_sizes unbind unfold diagonal repeat roll flip pixel_shuffle pixel_unshuffle""")
SAME = words("""clone contiguous detach alias _to_copy lift_fresh lift_fresh_copy as_strided tril triu
native_dropout
    bernoulli""")
REDUCTIONS = words(
    """sum mean amax amin max min var std linalg_vector_norm logsumexp prod any all argmax argmin"""
)
MIXERS = words("""_softmax _log_softmax cumsum cumprod sort""")
SPATIAL = words("""max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d""")
LIKE = words("""zeros_like ones_like full_like empty_like rand_like randn_like""")
NEW = words(
    """new_zeros new_ones new_full new_empty new_empty_strided sym_size sym_numel _local_scalar_dense"""
)

RULES: dict[str, Rule] = {
    "convolution": convolution,
    "_convolution": convolution,
    **dict.fromkeys(
        ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "mv", "addmv", "dot"), matrix_product
    ),
    **dict.fromkeys(
        (
            "native_batch_norm",
            "_native_batch_norm_legit",
            "_native_batch_norm_legit_no_training",
            "cudnn_batch_norm",
            "batch_norm",
        ),
        batch_norm,
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_attention_math",
        ),
        attention,
    ),
    "native_layer_norm": layer_norm,
    "native_group_norm": group_norm,
    "embedding": embedding,
    "glu": glu,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), shuffle),
    "constant_pad_nd": pad,
    **dict.fromkeys(("index_put", "_index_put_impl"), index_put),
    **dict.fromkeys(("roi_align", "roi_pool", "_roi_align_forward"), region),
    **dict.fromkeys(("cat", "stack"), concat),
    **dict.fromkeys(("index", "index_select"), index),
    **dict.fromkeys(MOVEMENTS, movement),
    **dict.fromkeys(SAME, same),
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(MIXERS, softmax),
    **dict.fromkeys(SPATIAL, spatial),
    **dict.fromkeys(LIKE, like),
    **dict.fromkeys(NEW, nothing),
}
"""Op name → rule. An op is added here, in one line, once its rule is known to be right."""
