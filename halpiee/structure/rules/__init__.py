"""What each op does to the labels: one table, op name → rule; an op without a rule freezes what it touches.

A rule sets the tags of its call's outputs and returns what is known of the op's time, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from halpiee.errors import StructureError, unknown
from halpiee.structure.labels import Tag
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, LayerCall, Timing
from halpiee.structure.rules.contraction import attention, convolution, matrix_product
from halpiee.structure.rules.elementwise import concat, glu, index, index_put, pad, pointwise
from halpiee.structure.rules.movement import movement, shuffle
from halpiee.structure.rules.norm import (
    batch_norm,
    group_norm,
    layer_norm,
    reduction,
    region,
    softmax,
    spatial,
)

__all__ = [
    "RULES",
    "Kind",
    "Rule",
    "add_rule",
    "apply",
    "is_movement",
    "is_pointwise",
    "name_of",
    "takes_time",
]


Rule = Callable[[Recorder, Call], Timing | None]


Kind = Literal["pointwise", "spatial", "reduction", "softmax", "same"]
"""Rules that an op of your own can have by name; see ``add_rule``."""


def add_rule(name: str, rule: Rule | Kind) -> None:
    """Registers how a custom op treats channels, so that the trace can remove channels around it.

    An op without a rule freezes the channels it touches. torch runs the op on tensors without values during a trace, so
    a custom op needs ``register_fake``, too. An op that is defined with ``torch.Tag.pointwise`` needs no rule.

    Args:
        name: of the op as torch has it, such as ``mylib::gate``.
        rule: what the op does: ``pointwise`` (each element alone; operands are broadcast), ``spatial`` (positions of
            ``[N, C, …]`` mix within a channel, as in pooling), ``reduction`` (dimensions go, by the arguments ``dim``
            and ``keepdim``), ``softmax`` (elements along ``dim`` mix), ``same`` (a copy of the first input). Or a
            function that takes the recorder and the call, sets the tags of its outputs
            (``recorder.set(call.out, tag)``) and returns None, or a ``Timing`` where the op has a price.

    Raises:
        StructureError: the name is not ``namespace::op``, the op has another rule, or there is no such kind of rule.
    """
    if isinstance(rule, str) and rule not in KINDS:
        hint = unknown(rule, KINDS, f"known are {', '.join(KINDS)}, or give a function")
        raise StructureError(f"the rule {rule!r} was asked for {name!r}; {hint}")
    namespace, _, plain = name.partition("::")
    if not (namespace.isidentifier() and plain.isidentifier()):
        raise StructureError(f"add_rule takes the name of an op as namespace::op, found {name!r}")
    chosen = KINDS[rule] if isinstance(rule, str) else rule
    known = RULES.get(name) or (RULES.get(plain) if namespace in ("aten", "torchvision") else None)
    if known not in (None, chosen):
        raise StructureError(f"{name!r} was given a rule, and it has one already; leave out the second")
    RULES[name] = chosen


def name_of(func: Any) -> str:
    """Returns the name that a call of an op has here: ``namespace::op`` where that has a rule, else ``op``."""
    name: str = func.overloadpacket.__name__
    full = f"{func.namespace}::{name}"
    return full if full in RULES else name


def rule_of(name: str) -> Rule | None:
    """Returns the rule of an op, or None; an in-place op has that of the op that returns a new tensor."""
    return RULES.get(name) or RULES.get(name.rstrip("_"))


def apply(recorder: Recorder, call: Call) -> Timing | None:
    """Applies the rule of the op to the labels, and notes a layer that nothing goes through."""
    n_layers = len(recorder.layers)
    timing = _applied(recorder, call)
    if len(recorder.layers) > n_layers and not all(out.numel() for out in call.outputs):
        recorder.idle.append((recorder.layers[-1].outs, call.where))
    return timing


def _applied(recorder: Recorder, call: Call) -> Timing | None:
    """Applies the rule; pointwise ops share one, unknown ops freeze their inputs."""
    rule = rule_of(call.name)
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
    rule = rule_of(name)
    if rule is not None:
        return rule is pointwise
    return torch.Tag.pointwise in func.tags or name.rstrip("_") in POINTWISE


def is_movement(name: str) -> bool:
    """Returns whether an op moves elements."""
    return rule_of(name) in (movement, shuffle)


def takes_time(recorder: Recorder, call: Call) -> bool:
    """Returns whether an op that has no timed op takes time.

    Moving, copying, making, joining and reducing tensors, what works on each element alone, and what reads parameters
    only or gives whole numbers are left out: they are cheap beside the layers, or done once. Everything else counts,
    the ops without a rule above all.
    """
    if all(recorder.tag(t).parameter for t in call.tensors):
        return False
    name = call.name.strip("_")
    if not any(out.is_floating_point() for out in call.outputs) or is_pointwise(call.name, call.func):
        return False
    if name in FILLING:
        return False
    return rule_of(call.name) not in FREE


POINTWISE = frozenset(
    {
        "hardtanh",
        "hardswish",
        "hardsigmoid",
        "_prelu_kernel",
        "elu",
        "leaky_relu",
        "copy",
        "log_sigmoid_forward",
    }
)
"""Pointwise ops that torch does not mark as such."""


def same(recorder: Recorder, call: Call) -> None:
    """A copy in another dtype, layout or memory: the labels stay."""
    source = call.tensors[0]
    placed = (source.shape, source.stride(), source.storage_offset())
    found = (call.out.shape, call.out.stride(), call.out.storage_offset())
    if placed[0] != found[0] or (call.name == "as_strided" and placed != found):
        recorder.freeze_call(call)
        return
    for out in call.outputs[:1]:
        recorder.set(out, recorder.tag(call.tensors[0]))


def triangle(recorder: Recorder, call: Call) -> None:
    """Elements above or below a diagonal become 0: which ones hangs on their place."""
    source = call.tensors[0]
    if any(size > 1 for axis in recorder.tag(source).axes for size in axis.shape[-2:]):
        recorder.freeze_call(call)
        return
    recorder.set(call.out, recorder.tag(source))


def like(recorder: Recorder, call: Call) -> None:
    """A new tensor of an input's shape: it shrinks with the input."""
    tag = recorder.tag(call.tensors[0])
    recorder.set(call.out, replace(tag, zero=call.name == "zeros_like"))


def nothing(recorder: Recorder, call: Call) -> None:
    """A new tensor whose shape was given in numbers: it belongs to nothing."""
    for out in call.outputs:
        recorder.set(out, Tag(zero=call.name == "new_zeros"))


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


def words(text: str) -> list[str]:
    """Returns the op names in a text."""
    return text.split()


MOVEMENTS = words("""view _unsafe_view _reshape_alias reshape expand permute transpose t squeeze unsqueeze
select slice narrow
    split split_with_sizes unbind unfold diagonal repeat roll flip pixel_shuffle pixel_unshuffle""")
SAME = words("""clone contiguous detach alias _to_copy lift_fresh lift_fresh_copy as_strided native_dropout
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
LIKE = words("""zeros_like ones_like full_like empty_like rand_like randn_like normal_ uniform_ bernoulli_""")
NEW = words(
    """new_zeros new_ones new_full new_empty new_empty_strided sym_size sym_numel _local_scalar_dense"""
)

FILLING = frozenset({"fill", "zero", "normal", "uniform", "bernoulli", "exponential"})
"""Ops without a rule that write a tensor anew."""

FREE: tuple[Rule, ...] = (movement, shuffle, same, like, nothing, triangle, pad, concat, glu, reduction)
"""Rules of ops that move, make and sum up tensors, and of a gate."""

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
            "scaled_dot_product_attention",
        ),
        attention,
    ),
    "native_layer_norm": layer_norm,
    "_fused_rms_norm": layer_norm,
    "native_group_norm": group_norm,
    "embedding": embedding,
    "glu": glu,
    **dict.fromkeys(("tril", "triu"), triangle),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), shuffle),
    "constant_pad_nd": pad,
    **dict.fromkeys(("index_put", "_index_put_impl"), index_put),
    **dict.fromkeys(
        ("roi_align", "roi_pool", "_roi_align_forward", "grid_sampler_2d", "grid_sampler_3d"),
        region,
    ),
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

KINDS: dict[str, Rule] = {
    "pointwise": pointwise,
    "spatial": spatial,
    "reduction": reduction,
    "softmax": softmax,
    "same": same,
}
"""Kind of a rule → the rule."""
