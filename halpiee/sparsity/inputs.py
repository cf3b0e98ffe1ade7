"""An input for a network that came without one, and the order in which a forward on it uses the parameters."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from halpiee.errors import UsageError

__all__ = ["example_input", "order_of_use"]

SIDES = (32, 64, 224, 28, 16, 8, 1)
"""Image sides that are tried, in this order: CIFAR, TinyImageNet, ImageNet, MNIST and smaller."""


def example_input(model: nn.Module) -> Tensor:
    """Returns ones of a shape that the model accepts, batch 1, found from the widths of its layers.

    Which layer runs first is not known before a forward, so the input width of every layer is tried, in the order
    in which the model holds them.

    Args:
        model: the network; it is run in eval mode and left as it was.

    Raises:
        UsageError: none of the usual shapes runs; the caller has to give one.
    """
    shapes: dict[tuple[int, ...], Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            shapes.setdefault((1, module.in_features), module.weight)
        elif isinstance(module, nn.modules.conv._ConvNd):
            dims = module.weight.dim() - 2
            for side in SIDES:
                shapes.setdefault((1, module.in_channels, *(side,) * dims), module.weight)
    with evaluated(model):
        for shape, weight in shapes.items():
            x = torch.ones(shape, device=weight.device, dtype=weight.dtype)
            try:
                model(x)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                continue
            return x
    tried = ", ".join("×".join(map(str, shape)) for shape in list(shapes)[:5])
    raise UsageError(
        f"an input for {type(model).__name__} was needed and none of the usual shapes runs ({tried or 'no layer'}); "
        "pass one batch or an example input"
    )


def order_of_use(model: nn.Module, names: Collection[str], example: Tensor | None = None) -> tuple[str, ...]:
    """Returns parameter names in the order in which a forward first uses them.

    A parameter that the forward does not use follows the one that stands before it in the model.

    Args:
        model: the network; it is run once in eval mode and left as it was.
        names: of its parameters.
        example: an input; by default a usual one that the model accepts.

    Raises:
        UsageError: no input was given and the model runs on none of the usual ones.
    """
    seen: dict[int, int] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, nn.Parameter):
                    seen.setdefault(id(leaf), len(seen))
            return func(*args, **(kwargs or {}))

    x = example_input(model) if example is None else example
    with evaluated(model), Watch():
        model(x)
    places: dict[str, tuple[int, int]] = {}
    last = -1
    for at, (name, parameter) in enumerate(model.named_parameters()):
        last = seen.get(id(parameter), last)
        places[name] = (last, at)
    return tuple(sorted(names, key=lambda name: places[name]))


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and records no gradients; its modes are given back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
