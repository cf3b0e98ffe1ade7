"""The optimizer: whether it takes the steps of what is masked, the scheduler that follows it, momentum as a score."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.state import fresh_state
from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Momentum", "check_holds", "check_optimizer", "few", "rebind"]


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
    held = vars(optimizer) if hasattr(optimizer, "__dict__") else {}
    for name, inner in held.items():
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
"""What names of wrappers say that set the weights to an average after the step of the optimizer in them."""


def rewrites(name: str) -> bool:
    """Returns whether a wrapper of this class writes weights after the step of the optimizer in it, by its name."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name).lower()
    joined = words.replace(" ", "").replace("_", "")
    return any(word in joined if len(word) > 3 else word in re.split(r"[ _]", words) for word in WRITERS)


def check_holds(optimizer: Optimizer, units: Units, parameters: Mapping[str, Tensor]) -> None:
    """Refuses an optimizer over a part of what is masked: the rest could not be held still.

    Args:
        optimizer: attached to.
        units: what is masked.
        parameters: name → parameter of the model.

    Raises:
        UsageError: a masked parameter is not the optimizer's; the message names the units to protect.
    """
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    masked = [n for n in parameters if n in units.tensors]
    missing = [n for n in masked if id(parameters[n]) not in held]
    if missing:
        owners = getattr(units, "owners", lambda _: ())(missing)
        leave = f", or leave them whole: protect={few(owners)}" if owners else ""
        raise UsageError(
            f"the optimizer does not hold {missing[0]!r} (and {len(missing) - 1} more of {len(masked)} masked "
            "parameters); build it from this model's parameters(), several optimizers as one with parameter groups"
            f"{leave}"
        )


def few(names: object) -> str:
    """Returns names as a set to type, up to eight of them."""
    listed = sorted(str(n) for n in names)  # type: ignore[attr-defined]
    more = ", …" if len(listed) > 8 else ""
    return "{" + ", ".join(map(repr, listed[:8])) + more + "}"


def rebind(scheduler: Any, old: Optimizer, new: Optimizer) -> Any:
    """Points ``scheduler``, and the schedulers it is made of, at ``new``.

    Args:
        scheduler: a ``torch.optim.lr_scheduler`` built on ``old``.
        old: the optimizer it was built on.
        new: its replacement, with the same parameter groups in the same order.

    Returns:
        The same scheduler.

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


class Momentum:
    """``|m|`` of SGD's momentum buffer; ``|m| / (√v + 1e-8)`` of Adam's two moments. Read once.

    Args:
        optimizer: whose momentum is read.

    Raises:
        UsageError: the optimizer keeps none.
    """

    per_step = False

    def __init__(self, optimizer: Optimizer) -> None:
        keeps = {"momentum_buffer", "exp_avg"} & set(fresh_state(optimizer))
        if not keeps and not optimizer.defaults.get("momentum"):
            raise UsageError(
                f"SNFS grows by momentum, and {type(optimizer).__name__} keeps none; "
                "use SGD with momentum=0.9, or AdamW"
            )
        self._optimizer = optimizer

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score of the unit's shape; zero before the first step."""

        def momentum(name: str) -> Tensor | None:
            parameter = value(name)
            if parameter is None:
                return None
            state = self._optimizer.state.get(parameter, {})
            if "exp_avg" in state:
                return state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-8)  # type: ignore[no-any-return]
            buffer = state.get("momentum_buffer")
            return torch.zeros_like(parameter) if buffer is None else buffer

        return {name: total.abs() for name, total in units.reduce(momentum).items()}
