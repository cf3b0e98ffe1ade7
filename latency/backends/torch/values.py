"""What goes into a module and comes out of it, as the tensors that an exported graph has on its two sides.

A graph takes tensors and gives tensors. Numbers, texts, flags and None among a module's inputs are constants of the
graph; None and numbers among its outputs have no place in it and are left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latency.errors import UsageError

__all__ = [
    "batch_of",
    "constants",
    "filled",
    "is_batched",
    "left_out",
    "tensors_given",
    "tensors_in",
    "tensors_only",
]

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
    """Returns what among inputs is no tensor, as texts such as ``input 1 = True``: it is part of the graph.

    Raises:
        UsageError: an input is of a kind that no graph can hold.
    """
    found = _leaves(tuple(example_inputs), "input")
    return tuple(f"{name} = {value!r}" for name, value in found if not isinstance(value, Tensor))


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
    """Lets a module's forward take and give nothing but tensors, in place; one that does already stays as it is.

    Args:
        model: the module.
        example_inputs: its inputs; what is no tensor among them is what forward is called with from now on.
        result: what it returned for them.
    """
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
