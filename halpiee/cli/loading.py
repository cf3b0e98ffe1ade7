"""A model named on the command line, built and traced."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
        StructureError: it does not run on one image of that shape.
    """
    import torch

    from halpiee.errors import StructureError
    from halpiee.structure.trace import trace
    from halpiee.training.checkpoint import load_weights
    from halpiee.zoo import build

    torch.manual_seed(seed)
    options: dict[str, Any] = {}
    if width is not None:
        options["width"] = width
    if classes is not None:
        options["num_classes"] = classes
    network = build(model, **options).eval()
    if weights is not None:
        network.load_state_dict(load_weights(weights))
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
