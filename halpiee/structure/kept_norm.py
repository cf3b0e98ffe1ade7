"""Norms of a masked model: while a module runs, its norms over channels see the kept channels only.

The module stays as it is: its class, attributes, parameters and the signature of its forward. Two hooks around its
forward put a function mode into place that computes each norm over the kept channels, wherever in the forward it is
called and whatever the forward does before and after it. Hooks also keep ``nn.TransformerEncoderLayer`` off its fused
kernel, which does not call its norms.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["KeptChannels", "watch_norms"]

LAYER = ("input", "normalized_shape", "weight", "bias", "eps")
RMS = ("input", "normalized_shape", "weight", "eps")
BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
GROUP = ("input", "num_groups", "weight", "bias", "eps")

NORMS: dict[Any, tuple[Any, tuple[str, ...]]] = {
    F.layer_norm: (F.layer_norm, LAYER),
    torch.layer_norm: (F.layer_norm, LAYER),
    F.rms_norm: (F.rms_norm, RMS),
    torch.rms_norm: (F.rms_norm, RMS),
    F.group_norm: (F.group_norm, GROUP),
    torch.group_norm: (F.group_norm, GROUP),
    F.batch_norm: (F.batch_norm, BATCH),
    torch.batch_norm: (F.batch_norm, BATCH),
}
"""Function that a forward may call → the same of ``torch.nn.functional``, and its arguments in order."""

IN_A_GRAPH: dict[Any, Any] = {
    F.layer_norm: torch.ops.aten.layer_norm.default,
    F.rms_norm: torch.ops.aten.rms_norm.default,
    F.group_norm: torch.ops.aten.group_norm.default,
}
"""What a compiled graph calls instead: a backend that runs the graph as Python, with the mode of the outermost module
still in place, would have its norms computed over the kept channels a second time."""


class KeptChannels(TorchFunctionMode):
    """Computes norms over the kept channels; the other channels come out as 0.

    Args:
        kept: number of channels of a norm → int64 indices of those that it sees.

    Attributes:
        inside: how many of the modules in the hooked one are running; their norms are their own.
    """

    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept = kept
        self.inside = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function, a norm over as many channels on its kept ones."""
        kwargs = kwargs or {}
        if func not in NORMS:
            return func(*args, **kwargs)
        function, names = NORMS[func]
        given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        kept = None if self.inside else self.seen(given)
        if torch.compiler.is_compiling():
            function = IN_A_GRAPH[function]
            if kept is None:
                return function(**given)
        elif kept is None:
            return func(*args, **kwargs)
        x: Tensor = given.pop("input")
        if kept.numel() == 0:
            return torch.zeros_like(x)
        for name in ("weight", "bias"):
            if given.get(name) is not None and "training" not in given:
                given[name] = given[name].index_select(0, kept.to(given[name].device))
        dim = x.dim() - 1
        if "num_groups" in given:
            dim = 1
        elif "normalized_shape" in given:
            given["normalized_shape"] = (kept.numel(),)
        kept = kept.to(x.device)
        y = function(x.index_select(dim, kept), **given)
        return torch.zeros_like(x, dtype=y.dtype).index_copy(dim, kept, y)

    def seen(self, given: dict[str, Any]) -> Tensor | None:
        """Returns the channels that a norm with these arguments sees, or None where it is not one of the masked."""
        x = given["input"]
        if "num_groups" in given:
            return self.kept.get(x.shape[1])
        if "normalized_shape" not in given:  # of a weight: each of its rows over its inputs
            of_itself = given.get("training") and given.get("running_mean") is None
            return self.kept.get(x.shape[2]) if of_itself and x.dim() == 3 and x.shape[0] == 1 else None
        return self.kept.get(x.shape[-1]) if len(given["normalized_shape"]) == 1 else None

    def enter(self, module: nn.Module, args: Any) -> None:
        """Begins, before the forward of a module."""
        self.__enter__()  # type: ignore[no-untyped-call]

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Ends, after the forward of a module, or where it fails."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def pause(self, module: nn.Module, args: Any) -> None:
        """Leaves norms alone, before the forward of a module in the hooked one."""
        self.inside += 1

    def resume(self, module: nn.Module, args: Any, output: Any) -> None:
        """Goes on, after the forward of a module in the hooked one, or where it fails."""
        self.inside -= 1


def watch_norms(module: nn.Module, kept: dict[int, Tensor]) -> None:
    """Hooks a module so that its own norms over channels, not those of modules in it, see the kept channels only.

    Args:
        module: whose forward calls the norms.
        kept: number of channels of a norm → int64 indices of those that stay.
    """
    mode = KeptChannels(kept)
    for inner in module.modules():
        inner.register_forward_pre_hook(mode.enter if inner is module else mode.pause)
        inner.register_forward_hook(mode.leave if inner is module else mode.resume, always_call=True)
