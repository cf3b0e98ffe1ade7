"""What becomes of a PyTorch module before it is run or exported: copies, folded norms, tensors in and out.

``copy.deepcopy`` refuses a tensor with a history of gradients, such as an activation that a model stores; ``copy_of``
takes its values.

An exported graph takes and gives tensors. Numbers, texts, flags and None among a module's inputs are constants of the
graph; None and numbers among its outputs are left out.

Networks are deployed with their batch norms folded. torch.fx follows the forward; a batch norm that reads nothing but
the output of one convolution or linear layer goes into its weights, ``w' = w·γ/√(σ² + ε)``, ``b' = (b − μ)·γ/√(σ² + ε)
+ β``. ``torch.fx.experimental.optimization`` folds too, but warns when it is imported on torch 2.11, and folds a layer
once for every norm that reads it.
"""

from __future__ import annotations

import copy
import inspect
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

from latency.errors import UsageError

T = TypeVar("T")


class Detaching(TorchFunctionMode):
    """Copies tensors that an operation has made by their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function; a deep copy of a tensor with a history gives one without."""
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copy_of(value: T, memo: dict[int, Any] | None = None) -> T:
    """Returns a deep copy of a model, an optimizer or anything that holds tensors; ``memo`` as in ``copy.deepcopy``."""
    with Detaching():
        return copy.deepcopy(value, memo)


CONSTANTS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, slice)
"""Inputs that are no tensors and that a graph can be made for."""

WITHOUT_PLACE = (bool, int, float, type(None))
"""Outputs that a graph leaves out."""


def tensors_in(example_inputs: Sequence[Any]) -> tuple[Tensor, ...]:
    """Returns the tensors among inputs, in order, those in tuples, lists and dicts included.

    Raises:
        UsageError: an input is of a kind that no graph can hold.
    """
    return tuple(value for _, value in _leaves(tuple(example_inputs), "input") if isinstance(value, Tensor))


def constants(example_inputs: Sequence[Any]) -> tuple[str, ...]:
    """Returns what among inputs is no tensor, as texts such as ``input 1 = True``: it is part of the graph."""
    found = _leaves(tuple(example_inputs), "input")
    return tuple(f"{name} = {value!r}" for name, value in found if not isinstance(value, Tensor))


def input_names(model: nn.Module, example_inputs: Sequence[Any]) -> tuple[str, ...]:
    """Returns the name of every tensor among inputs: forward's argument, with its place where it is in a container.

    ``forward(self, image, features)`` with a list of two as ``features`` gives ``image``, ``features_0``,
    ``features_1``. Of a module whose arguments cannot be told they are ``input``, or ``input_0`` ….
    """
    arguments = _arguments(model, len(example_inputs))
    found = []
    for name, value in zip(arguments, example_inputs, strict=True):
        for place, part in _leaves(value, ""):
            if isinstance(part, Tensor):
                found.append("_".join([name, *place.split()]))
    if found and all(name.startswith("input_") for name in found) and len(found) == 1:
        return ("input",)
    return tuple(found)


def _arguments(model: nn.Module, count: int) -> list[str]:
    """Returns the names of forward's first arguments; those of a ``*rest`` are numbered."""
    try:
        known = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):  # compiled code
        known = []
    found: list[str] = []
    for one in known:
        if one.kind is one.VAR_POSITIONAL:
            found += [f"{one.name}_{i}" for i in range(count - len(found))]
        elif one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD):
            found.append(one.name)
    return found[:count] if len(found) >= count else [f"input_{i}" for i in range(count)]


def output_names(result: Any) -> tuple[str, ...]:
    """Returns the name of every tensor of a module's output: the keys that lead to it, joined by ``_``.

    A tensor alone is ``output``, those of a tuple ``output_0``, ``output_1`` …: places at the top have no key.
    """
    places = [place for place, x in _outputs(result, "") if isinstance(x, Tensor)]
    if len(places) == 1 and not re.search(r"[^\d.]", places[0]):
        return ("output",)
    found, number = [], 0
    for place in places:
        if re.fullmatch(r"[\d.]+", place):
            found.append(f"output_{number}")
            number += 1
        else:
            name = "_".join(place.split("."))
            found.append(f"output_{name}" if name[0].isdigit() else name)
    return tuple(found)


def batch_of(tensors: Sequence[Tensor]) -> int | None:
    """Returns the batch: the first dimension of the first tensor that has one; None where none has."""
    return next((len(x) for x in tensors if x.dim()), None)


def is_batched(x: Tensor, batch: int | None) -> bool:
    """Returns whether a tensor has one entry for each of a batch; a scalar (a timestep) or another length has not."""
    return x.dim() > 0 and len(x) == batch


def tensors_given(value: Any) -> list[Tensor]:
    """Returns the tensors of a module's output, in order; None and numbers are left out.

    Raises:
        UsageError: the output holds something else, or no tensor at all.
    """
    found = [x for _, x in _outputs(value, "") if isinstance(x, Tensor)]
    if not found:
        raise UsageError(
            f"the model returns {type(value).__name__} without a tensor in it, which cannot be compared or exported; "
            "wrap it so that it returns a tensor, or a tuple or dict of tensors"
        )
    return found


def left_out(value: Any) -> tuple[str, ...]:
    """Returns what of a module's output a graph leaves out, as texts such as ``loss = None``."""
    return tuple(f"{name} = {x!r}" for name, x in _outputs(value, "") if not isinstance(x, Tensor))


def tensors_only(model: nn.Module, example_inputs: Sequence[Any], result: Any) -> None:
    """Makes a module's forward take and return tensors only, in place; its other example inputs become constants."""
    plain = all(isinstance(x, Tensor) for x in example_inputs)
    if plain and not left_out(result) and _usual(result):
        return
    template, inner = tuple(example_inputs), model.forward

    def forward(*given: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensors_given(inner(*filled(template, given))))

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [f"input_{i}" for i in range(len(tensors_in(template)))]
    forward.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
    model.forward = forward


def filled(example_inputs: Sequence[Any], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """Returns inputs with other tensors, one after the other, in the places of theirs."""
    left = iter(tensors)
    return tuple(_filled(part, left) for part in example_inputs)


def _usual(value: Any) -> bool:
    """Returns whether an output is made of the containers that the exporter knows."""
    if isinstance(value, Tensor):
        return True
    if type(value) is dict:
        return all(map(_usual, value.values()))
    return type(value) in (tuple, list) and all(map(_usual, value))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields every part of nested inputs with its place."""
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_complex():
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _leaves(part, f"{name} {key}")
    elif isinstance(value, CONSTANTS):
        yield name, value
    else:
        kind = f"{value.dtype} {value.layout}" if isinstance(value, Tensor) else type(value).__name__
        raise UsageError(
            f"{name} of the model is a {kind}, which no ONNX graph can take; give real, dense tensors, numbers, texts "
            "or None, or wrap the model so that it makes the rest of them"
        )


def _filled(template: Any, tensors: Iterator[Tensor]) -> Any:
    """Returns inputs with other tensors in the places of theirs."""
    if isinstance(template, Tensor):
        return next(tensors)
    if isinstance(template, Mapping):
        return {key: _filled(part, tensors) for key, part in template.items()}
    if isinstance(template, list):
        return [_filled(part, tensors) for part in template]
    if isinstance(template, tuple):
        parts = [_filled(part, tensors) for part in template]
        return type(template)(*parts) if hasattr(template, "_fields") else tuple(parts)
    return template


def _outputs(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yields every tensor of an output and what is left out of it, with its place."""
    if isinstance(value, Tensor) or (name and isinstance(value, WITHOUT_PLACE)):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        parts = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, part in parts:
            yield from _outputs(part, f"{name}.{key}" if name else str(key))
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _outputs(getattr(value, field.name), f"{name}.{field.name}" if name else field.name)
    else:
        raise UsageError(
            f"the model returns {type(value).__name__}{f' as {name}' if name else ''}, which cannot be compared or "
            "exported; wrap it so that it returns a tensor, or a tuple or dict of tensors"
        )


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

    Returns:
        A network that computes the same; where symbolic tracing cannot follow the forward, one that keeps its norms.
    """
    from torch.fx.passes.shape_prop import ShapeProp
    from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

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
        if pair is None or any(calls[id(m)] > 1 or m._forward_hooks or m._forward_pre_hooks for m in pair):
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
