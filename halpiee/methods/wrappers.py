"""The model inside its wrappers, and another one in the same wrappers."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from halpiee.errors import UsageError

__all__ = ["bare", "rewrapped"]


def bare(model: nn.Module) -> nn.Module:
    """Returns the model inside DDP, DataParallel and torch.compile wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, DistributedDataParallel | DataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def rewrapped(wrapped: nn.Module, inner: nn.Module) -> nn.Module:
    """Returns ``inner`` in the wrappers of another model: DDP, DataParallel, torch.compile, with the same settings.

    DDP sends rank 0's parameters and buffers to all ranks when it is built, so every rank must call this.

    Args:
        wrapped: a model in its wrappers; it stays as it is.
        inner: what takes the place of the innermost module.

    Raises:
        UsageError: a DDP whose gradients are reduced late by parameters' names.
    """
    compiled = getattr(wrapped, "_orig_mod", None)
    if isinstance(compiled, nn.Module):
        return type(wrapped)(rewrapped(compiled, inner), wrapped.dynamo_ctx)
    if isinstance(wrapped, DistributedDataParallel):
        inner = rewrapped(wrapped.module, inner)
        result: nn.Module = DistributedDataParallel(inner, **settings_of(wrapped))
        hooks = getattr(wrapped, "_comm_hooks", [])
        if hooks:
            named = ", ".join(getattr(hook, "__name__", repr(hook)) for hook, _ in hooks)
            warnings.warn(
                f"the compact model is in a new DistributedDataParallel without the communication hook {named}, whose "
                "state is that of the full model's gradients; register one with a new state",
                stacklevel=2,
            )
    elif isinstance(wrapped, DataParallel):
        inner = rewrapped(wrapped.module, inner)
        result = DataParallel(
            inner,
            wrapped.device_ids or None,
            getattr(wrapped, "output_device", None),
            getattr(wrapped, "dim", 0),
        )
    else:
        return inner
    result.training = wrapped.training
    return result


def settings_of(ddp: DistributedDataParallel) -> dict[str, Any]:
    """Returns the arguments that a DDP was built with, under the names that this version of torch has for them.

    Raises:
        UsageError: it holds parameters of the model it wraps.
    """
    if getattr(ddp, "_delay_all_reduce_params", None):
        raise UsageError(
            "a DistributedDataParallel with delay_all_reduce_named_params was to be built anew around the compact "
            "model, whose parameters are others; give the method the bare module and wrap what shrink() returns"
        )
    taken = inspect.signature(DistributedDataParallel.__init__).parameters
    given: dict[str, Any] = {
        name: getattr(ddp, name)
        for name in (
            "device_ids",
            "output_device",
            "dim",
            "process_group",
            "find_unused_parameters",
            "gradient_as_bucket_view",
            "static_graph",
            "mixed_precision",
            "skip_all_reduce_unused_params",
            "batched_grad_copy",
        )
        if name in taken and hasattr(ddp, name)
    }
    sync = "forward_sync_buffers" if "forward_sync_buffers" in taken else "broadcast_buffers"
    given[sync] = getattr(ddp, sync)
    if not getattr(ddp, "bucket_bytes_cap_default", False):
        given["bucket_cap_mb"] = ddp.bucket_bytes_cap / 2**20
    return given
