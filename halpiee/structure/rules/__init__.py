"""What each op does to the labels: one table, op name → rule; an op without a rule freezes what it touches.

A rule sets the tags of its call's outputs and returns what is known of the op's time, or None.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from halpiee.errors import StructureError, unknown
from halpiee.structure.labels import Tag, no_atoms
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import Call, LayerCall, Timing
from halpiee.structure.rules.contraction import attention, convolution, matrix_product
from halpiee.structure.rules.elementwise import concat, glu, index, index_put, pad, pointwise
from halpiee.structure.rules.movement import movement, shuffle
from halpiee.structure.rules.norm import (
    batch_norm,
    follow_averages,
    group_norm,
    layer_norm,
    reduction,
    region,
    softmax,
    spatial,
)

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
    """Applies the rule of the op to the labels, and notes a layer whose output is empty.

    Pointwise ops share one rule; an op without any freezes its inputs.
    """
    rule, n_layers = rule_of(call.name), len(recorder.layers)
    timing = None
    if rule is not None:
        timing = rule(recorder, call)
    elif call.tensors and is_pointwise(call.name, call.func):
        timing = pointwise(recorder, call)
    elif call.tensors:
        recorder.freeze_call(call)
    if recorder.averages:
        elementwise = is_movement(call.name) or rule is same or is_pointwise(call.name, call.func)
        follow_averages(recorder, call, elementwise=elementwise)
    if len(recorder.layers) > n_layers and not all(out.numel() for out in call.outputs):
        recorder.idle.append((recorder.layers[-1].outs, call.where))
    return timing


def is_pointwise(name: str, func: Any) -> bool:
    """Returns whether an op without a rule of its own works on each element alone."""
    rule = rule_of(name)
    if rule is not None:
        return rule is pointwise
    return torch.Tag.pointwise in func.tags


def is_movement(name: str) -> bool:
    """Returns whether an op moves elements."""
    return rule_of(name) in (movement, shuffle)


def takes_time(recorder: Recorder, call: Call) -> bool:
    """Returns whether an op that has no timed op takes time.

    Not counted, as cheap beside the layers or done once: ops that move, copy, make, join and reduce tensors, pointwise
    ops, and ops that read parameters only or return whole numbers. All others count, those without a rule above all.
    """
    if all(recorder.tag(t).parameter for t in call.tensors):
        return False
    name = call.name.strip("_")
    numbers = any(out.is_floating_point() or out.is_complex() for out in call.outputs)
    if not numbers or is_pointwise(call.name, call.func):
        return False
    if name in FILLING:
        return False
    return rule_of(call.name) not in FREE


def same(recorder: Recorder, call: Call) -> None:
    """A copy in another dtype, layout or memory: the labels stay."""
    source = call.tensors[0]
    placed, found = ((x.shape, x.stride(), x.storage_offset()) for x in (source, call.out))
    if placed[0] != found[0] or (call.name == "as_strided" and placed != found):
        recorder.freeze_call(call)
        return
    recorder.set(call.outputs[0], recorder.tag(source))
    if recorder.value(source) in recorder.alike:
        recorder.alike.add(recorder.value(call.outputs[0]))


def triangle(recorder: Recorder, call: Call) -> None:
    """Elements above or below a diagonal become 0: their place decides which."""
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
    """A table of vectors: its columns are its output channels."""
    table, indices = call.args[:2]
    recorder.freeze(indices, call.where)
    if not recorder.tag(table).parameter:
        recorder.freeze_call(call)
        return
    atoms, owner = recorder.axis(table, 1), recorder.owner(table, call)
    recorder.units.freeze(recorder.axis(table, 0), "rows of an embedding")
    recorder.serve(atoms, "out", "embedding")
    if isinstance(recorder.modules.get(owner), nn.Embedding):
        recorder.attribute(owner, "embedding_dim", atoms)
    recorder.layers.append(LayerCall(recorder.call_name(owner), "embedding", no_atoms(), atoms))
    shape = (1,) * (call.out.dim() - 1)
    recorder.set(call.out, Tag(zero=True).with_axes([atoms.reshape(*shape, atoms.size)]))


FILLING = frozenset({"fill", "zero", "normal", "uniform", "bernoulli", "exponential"})
"""Ops without a rule that write a tensor anew."""

FREE: tuple[Rule, ...] = (movement, shuffle, same, like, nothing, triangle, pad, concat, glu, reduction)
"""Rules of ops that move, make and sum up tensors, and of a gate."""

OPS: dict[Rule, str] = {
    convolution: "convolution _convolution",
    matrix_product: "mm addmm bmm baddbmm linear matmul mv addmv dot",
    batch_norm: """native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training cudnn_batch_norm
        batch_norm""",
    attention: """scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
        _scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math""",
    layer_norm: "native_layer_norm _fused_rms_norm",
    group_norm: "native_group_norm",
    embedding: "embedding",
    glu: "glu",
    pointwise: "hardtanh hardswish hardsigmoid _prelu_kernel elu leaky_relu copy log_sigmoid_forward",
    triangle: "tril triu",
    shuffle: "channel_shuffle native_channel_shuffle",
    pad: "constant_pad_nd",
    index_put: "index_put _index_put_impl",
    region: "roi_align roi_pool _roi_align_forward grid_sampler_2d grid_sampler_3d",
    concat: "cat stack",
    index: "index index_select",
    movement: """view _unsafe_view _reshape_alias reshape expand permute transpose t squeeze unsqueeze select slice
        narrow split split_with_sizes unbind unfold diagonal repeat roll flip pixel_shuffle pixel_unshuffle""",
    same: "zero clone contiguous detach alias _to_copy lift_fresh lift_fresh_copy as_strided native_dropout bernoulli",
    reduction: """sum mean amax amin max min var std var_mean std_mean linalg_vector_norm logsumexp prod any
        all argmax argmin""",
    softmax: "_softmax _log_softmax cumsum cumprod sort",
    spatial: """max_pool2d_with_indices max_pool3d_with_indices avg_pool1d avg_pool2d avg_pool3d
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d
        upsample_nearest2d upsample_nearest3d upsample_bilinear2d upsample_linear1d upsample_bicubic2d
        upsample_trilinear3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_bilinear2d_aa
        _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
        replication_pad2d replication_pad3d circular_pad1d circular_pad2d circular_pad3d""",
    like: "zeros_like ones_like full_like empty_like rand_like randn_like normal_ uniform_ bernoulli_",
    nothing: "new_zeros new_ones new_full new_empty new_empty_strided sym_size sym_numel _local_scalar_dense",
}
"""Rule → the ops that it is known to be right for."""

RULES: dict[str, Rule] = {name: rule for rule, names in OPS.items() for name in names.split()}
"""Op name → rule."""

KINDS: dict[str, Rule] = {
    "pointwise": pointwise,
    "spatial": spatial,
    "reduction": reduction,
    "softmax": softmax,
    "same": same,
}
"""Kind of a rule → the rule."""
