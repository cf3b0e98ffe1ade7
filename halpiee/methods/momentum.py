"""Momentum importance: ``|m|`` of the optimizer's own momentum, what SNFS grows by (arXiv 1907.04840)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from halpiee.errors import UsageError
from halpiee.methods.guard import fresh_state
from halpiee.saliency.criterion import Look
from halpiee.sparsity.granularity import Units

__all__ = ["Momentum"]


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
