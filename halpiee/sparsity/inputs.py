"""An input for a network that came without one: the smallest usual image that its forward accepts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError

__all__ = ["example_input"]

SIDES = (32, 64, 224, 28, 16, 8, 1)
"""Image sides that are tried, in this order: CIFAR, TinyImageNet, ImageNet, MNIST and smaller."""


def example_input(model: nn.Module) -> Tensor:
    """Returns ones of a shape that the model accepts, batch 1, found from its first layer.

    Args:
        model: the network; it is run in eval mode and left as it was.

    Raises:
        UsageError: none of the usual shapes runs; the caller has to give one.
    """
    first = next(
        (m for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd | nn.Linear)),
        None,
    )
    shapes: list[tuple[int, ...]] = []
    if isinstance(first, nn.Linear):
        shapes = [(1, first.in_features)]
    elif first is not None:
        dims = first.weight.dim() - 2
        shapes = [(1, first.in_channels, *(side,) * dims) for side in SIDES]
    weight = torch.empty(0) if first is None else first.weight
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for shape in shapes:
            x = torch.ones(shape, device=weight.device, dtype=weight.dtype)
            try:
                with torch.no_grad():
                    model(x)
            except (RuntimeError, ValueError):
                continue
            return x
    finally:
        for module, training in modes.items():
            module.training = training
    raise UsageError(
        f"an input for {type(model).__name__} was needed and none of the usual shapes runs ({shapes or 'no layer'}); "
        "pass one batch or an example input"
    )
