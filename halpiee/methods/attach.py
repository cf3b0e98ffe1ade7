"""What a method is attached to: the model inside its wrappers, and the optimizer that takes its steps.

``bare`` is the model inside DDP, DataParallel and torch.compile, ``rewrapped`` another model in the same wrappers.
``check_optimizer`` and ``check_holds`` refuse an optimizer that does not take the steps of all that is masked.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.sparsity.granularity import Units
from latency.errors import outside


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

    The wrapped model stays as it is.

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
                stacklevel=outside(),
            )
    elif isinstance(wrapped, DataParallel):
        inner = rewrapped(wrapped.module, inner)
        output, dim = getattr(wrapped, "output_device", None), getattr(wrapped, "dim", 0)
        result = DataParallel(inner, wrapped.device_ids or None, output, dim)
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
            "a DistributedDataParallel with delay_all_reduce_named_params cannot be built again around the compact "
            "model, whose parameters are others; give the method the bare module and wrap what shrink() returns"
        )
    taken = inspect.signature(DistributedDataParallel.__init__).parameters
    others = {"self", "module", "device_mesh", "bucket_cap_mb", "broadcast_buffers", "forward_sync_buffers"}
    given: dict[str, Any] = {n: getattr(ddp, n) for n in taken if n not in others and hasattr(ddp, n)}
    sync = "forward_sync_buffers" if "forward_sync_buffers" in taken else "broadcast_buffers"
    given[sync] = getattr(ddp, sync)
    if not getattr(ddp, "bucket_bytes_cap_default", False):
        given["bucket_cap_mb"] = ddp.bucket_bytes_cap / 2**20
    return given


def check_optimizer(optimizer: object) -> TypeGuard[Optimizer]:
    """Refuses what is no single optimizer that takes its steps itself.

    Raises:
        UsageError: several optimizers, one that wraps another, or something else; the message names the way out.
    """
    if isinstance(optimizer, list | tuple | dict):
        kinds = ", ".join(
            type(o).__name__ for o in (optimizer.values() if isinstance(optimizer, dict) else optimizer)
        )
        raise UsageError(
            f"{len(optimizer)} optimizers were given ({kinds}), and a method follows the steps of one; build one with "
            "a parameter group for each setting, or attach to one and leave the layers of the others whole: protect=…"
        )
    for name, inner in getattr(optimizer, "__dict__", {}).items():
        if isinstance(inner, Optimizer) and inner is not optimizer:
            outer, within = type(optimizer).__name__, type(inner).__name__
            if rewrites(outer):
                raise UsageError(
                    f"the optimizer {outer} wraps another one, {within}, and writes the weights itself after that "
                    "step: removed units would come back, whichever of the two a method is attached to; train with "
                    f"{within} alone"
                )
            raise UsageError(
                f"the optimizer {outer} wraps another one, {within}, which takes the steps; attach to that one: "
                f"optimizer.{name}, or train with {within} alone where {outer} writes weights after that step"
            )
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"an optimizer of type {type(optimizer).__name__} was given, which is no torch.optim.Optimizer; "
            "give one such as torch.optim.SGD(model.parameters(), lr=0.1)"
        )
    return True


WRITERS = ("lookahead", "swa", "averag", "ema", "schedulefree")
"""Words in the names of wrappers that set the weights to an average after the step of the optimizer in them."""


def rewrites(name: str) -> bool:
    """Returns whether a wrapper of this class writes weights after the step of the optimizer in it, by its name."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    joined = words.replace(" ", "").replace("_", "")
    return any(word in joined if len(word) > 3 else word in re.split(r"[ _]", words) for word in WRITERS)


def check_holds(optimizer: Optimizer, units: Units, parameters: Mapping[str, Tensor]) -> None:
    """Refuses an optimizer that lacks one of the model's masked parameters: it could not be frozen.

    Raises:
        UsageError: names the units to protect.
    """
    own = {id(p) for group in optimizer.param_groups for p in group["params"]}
    masked = [n for n in parameters if n in units.tensors]
    missing = [n for n in masked if id(parameters[n]) not in own]
    if missing:
        owners = getattr(units, "owners", lambda _: ())(missing)
        leave = f", or leave them whole: protect={few(owners)}" if owners else ""
        raise UsageError(
            f"the optimizer does not hold {missing[0]!r} (and {len(missing) - 1} more of {len(masked)} masked "
            "parameters); build it from this model's parameters(), several optimizers as one with parameter groups"
            f"{leave}"
        )


def few(names: Iterable[object]) -> str:
    """Returns names as a set to type, up to eight of them."""
    listed = sorted(map(str, names))
    return "{" + ", ".join(map(repr, listed[:8])) + (", …" if len(listed) > 8 else "") + "}"


def rebind(scheduler: Any, old: Optimizer, new: Optimizer) -> Any:
    """Points a scheduler built on ``old``, and those inside it, at ``new``, with as many groups; returns it.

    Raises:
        UsageError: the scheduler was built on another optimizer.
    """
    parts = list(getattr(scheduler, "_schedulers", []))
    if not parts and scheduler.optimizer not in (old, new):
        raise UsageError(
            "rebind was given a scheduler of another optimizer; pass the one built on this optimizer"
        )
    for part in parts:
        rebind(part, old, new)
    if hasattr(scheduler, "optimizer"):
        scheduler.optimizer = new
    return scheduler
