"""A PyTorch network with its batch norms folded into the layers before them: the form in which networks are deployed.

torch.fx follows the forward. A batch norm that reads nothing but the output of one convolution or linear layer goes
into that layer's weights, ``w' = w·γ/√(σ² + ε)``, ``b' = (b − μ)·γ/√(σ² + ε) + β``; every other one stays as it is.
``torch.fx.experimental.optimization`` has a function for this, whose module warns when it is imported on torch 2.11,
and which folds a layer once for every norm that reads it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from latency.copies import copy_of

__all__ = ["folded"]

DIMENSIONS: dict[tuple[type[nn.Module], type[nn.Module]], int] = {
    (nn.Conv1d, nn.BatchNorm1d): 3,
    (nn.Conv2d, nn.BatchNorm2d): 4,
    (nn.Conv3d, nn.BatchNorm3d): 5,
    (nn.Linear, nn.BatchNorm1d): 2,
}
"""Dimensions of the tensor between a layer and its norm where the layer's units are what the norm scales: a
``BatchNorm1d`` behind a linear layer over a sequence scales positions."""


def folded(model: nn.Module, example_inputs: tuple[Any, ...]) -> nn.Module:
    """Returns a copy in evaluation mode with the batch norms in the weights of the layers before them.

    Args:
        model: the network; it stays as it is, its mode too.
        example_inputs: what its forward reads; one forward runs on them.

    Returns:
        A network that computes the same; where symbolic tracing cannot follow the forward, one that keeps its norms.
    """
    model = copy_of(model).eval()
    place = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        traced = fx.symbolic_trace(model)
        with torch.no_grad():
            ShapeProp(traced).propagate(
                *(x.to(place) if isinstance(x, Tensor) else x for x in example_inputs)
            )
    except Exception:  # a forward that symbolic tracing does not follow keeps its norms
        return model
    modules = dict(traced.named_modules(remove_duplicate=False))
    read = {str(n.target).rpartition(".")[0] for n in traced.graph.nodes if n.op == "get_attr"}
    calls = Counter(id(modules[str(n.target)]) for n in traced.graph.nodes if n.op == "call_module")
    for node in traced.graph.nodes:
        pair = _pair(node, modules)
        if pair is None or any(calls[id(m)] > 1 or _has_hooks(m) for m in pair):
            continue
        layer, norm = pair
        before = node.args[0]
        shape = getattr(before.meta.get("tensor_meta"), "shape", ())
        if len(shape) != DIMENSIONS[type(layer), type(norm)] or len(before.users) > 1:
            continue
        if str(before.target) in read:  # the forward reads its weights elsewhere too
            continue
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        traced.set_submodule(str(before.target), fuse(layer, norm))
        node.replace_all_uses_with(before)
        traced.graph.erase_node(node)
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced


def _pair(node: fx.Node, modules: dict[str, nn.Module]) -> tuple[Any, Any] | None:
    """Returns the layer and the batch norm of a node that is a norm behind a layer; None for any other node."""
    before = node.args[0] if node.args else None
    if node.op != "call_module" or not isinstance(before, fx.Node) or before.op != "call_module":
        return None
    layer, norm = modules[str(before.target)], modules[str(node.target)]
    if (type(layer), type(norm)) not in DIMENSIONS or not getattr(norm, "track_running_stats", False):
        return None
    return layer, norm


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
