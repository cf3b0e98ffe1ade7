"""The network of a run, with its initial weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from halpiee.errors import UsageError
from halpiee.methods.rewind import draw_normal
from halpiee.training.checkpoint import load_weights
from halpiee.training.config import Settings
from halpiee.zoo import build

__all__ = ["arguments", "initial", "network"]


def network(settings: Settings, n_classes: int) -> nn.Module:
    """Returns the network with random weights of the run's seed."""
    torch.manual_seed(settings.seed)
    model = build(settings.model, **arguments(settings, n_classes))
    if settings.masks.ablation == "normal":
        draw_normal(model, settings.seed)
    return model


def arguments(settings: Settings, n_classes: int) -> dict[str, Any]:
    """Returns the arguments of the network's builder."""
    extra = {} if settings.width is None else {"width": settings.width}
    return {"num_classes": n_classes, **extra}


def initial(settings: Settings, n_classes: int) -> nn.Module:
    """Returns the network as training finds it: with the given weights, if there are any.

    Raises:
        UsageError: weights of another network.
    """
    model = network(settings, n_classes)
    if settings.weights:
        loaded = load_weights(Path(settings.weights))
        try:
            model.load_state_dict(loaded)
        except RuntimeError as error:
            raise UsageError(
                f"--weights {settings.weights} does not fit {settings.model} ({' '.join(str(error).split())[:200]}); "
                "give the weights of this very network, with its --width and classes"
            ) from error
    return model
