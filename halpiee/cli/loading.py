"""A model named on the command line, built and traced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from halpiee.structure.groups import Structure

__all__ = ["Traced", "traced"]


@dataclass(frozen=True)
class Traced:
    """A model with its structure."""

    model: nn.Module
    example: tuple[Tensor, ...]
    structure: Structure


def traced(
    model: str,
    batch: int,
    shape: tuple[int, ...],
    *,
    width: float | None = None,
    classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Traced:
    """Builds and traces a MODEL string at a batch of images of ``shape`` (channels, height, width).

    Raises:
        UsageError: no such network, or weights that do not fit it.
        StructureError: it does not run on one image of that shape.
    """
    import torch

    from halpiee.cli.subjects import from_model
    from halpiee.errors import StructureError
    from halpiee.structure.trace import trace

    network = from_model(model, shape, width=width, classes=classes, weights=weights, seed=seed).model
    example = (torch.randn(batch, *shape),)
    try:
        structure = trace(network, example)
    except StructureError as error:
        said, end, _ = str(error).partition("; check the inputs' shapes")
        if not end or "positional argument" in said:
            raise
        raise StructureError(
            f"{model} was to take images of --size {'x'.join(map(str, shape))}: {said}; give the size that it takes "
            "with --size"
        ) from error
    return Traced(network, example, structure)
