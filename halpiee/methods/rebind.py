"""Hands a learning-rate scheduler from one optimizer to the one that took its place."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from halpiee.errors import UsageError

__all__ = ["rebind"]


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
