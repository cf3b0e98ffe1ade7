"""What may not move does not move, bit for bit: values, optimizer state and running statistics.

Zero gradients are not enough: momentum and weight decay move a weight without any gradient, and batch norms change
their statistics in forward. So what an update mask leaves out is remembered when a phase starts and put back after
every optimizer step.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halpiee.errors import UsageError

__all__ = ["Guard", "fresh_state", "shaped_state"]


def shaped_state(optimizer: Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the optimizer's state tensors of the parameter's shape, by key."""
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and key != "step" and value.shape == parameter.shape:
            yield key, value


def fresh_state(optimizer: Optimizer) -> dict[str, float]:
    """Returns the value each state tensor of this optimizer starts from, found on a throw-away parameter.

    Args:
        optimizer: its class and defaults are tried out on one 2×3 parameter with zero gradients; it is not touched.

    Returns:
        State key → initial value, for state of the parameter's shape; scalars are left out.

    Raises:
        UsageError: the optimizer keeps state of another shape, which cannot be masked.
    """
    first = next((p for group in optimizer.param_groups for p in group["params"]), None)
    if first is None:
        raise UsageError("the optimizer has no parameters; build it with model.parameters()")
    # Zeros: weight decay would find its way from ones into a momentum that starts at nothing.
    probe = torch.nn.Parameter(torch.zeros(2, 3, device=first.device, dtype=first.dtype))
    probe.grad = torch.zeros_like(probe)
    name = type(optimizer).__name__
    try:
        accepted = inspect.signature(type(optimizer)).parameters
        options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
        copy = type(optimizer)([probe], **options)
        copy.step()
    except TypeError as error:
        raise UsageError(
            f"{name} cannot be masked: a step of it on one matrix failed ({error}); "
            "use an optimizer that steps without a closure, such as SGD or AdamW"
        ) from error
    fresh = {}
    for key, value in copy.state[probe].items():
        if not isinstance(value, Tensor) or value.numel() == 1 or key == "step":
            continue
        if value.shape != probe.shape:
            raise UsageError(
                f"{name} keeps state {key!r} of shape {tuple(value.shape)} for a parameter of shape (2, 3); "
                "only state of the parameter's shape can be masked: use SGD, AdamW or another elementwise optimizer"
            )
        fresh[key] = float(value.flatten()[0])
    return fresh


class Guard:
    """Remembers and restores everything outside an update mask.

    Args:
        tensors: name → parameter or buffer of the model.
        optimizer: whose state of a parameter's shape is held still with it.
    """

    def __init__(self, tensors: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self._tensors = dict(tensors)
        self._optimizer = optimizer
        self._fresh = fresh_state(optimizer)
        self._free: dict[str, Tensor | None] = {}
        self._values_only = False
        self._values: dict[str, Tensor] = {}
        self._state: dict[tuple[str, str], Tensor] = {}

    def hold(self, free: Mapping[str, Tensor | None], *, values_only: bool = False) -> None:
        """Starts to hold; forgets what was held before.

        Args:
            free: tensor name → BoolTensor of its shape, True where it may move; ``None``: nothing of it may.
                Tensors that are not named move freely.
            values_only: whether optimizer state moves freely all the same.
        """
        self._values_only = values_only
        self._free = {
            name: None if mask is None else mask.to(self._tensors[name].device) for name, mask in free.items()
        }
        self._values = {name: self._tensors[name].detach().clone() for name in free}
        self._state = {
            (name, key): value.detach().clone()
            for name in (() if values_only else free)
            for key, value in shaped_state(self._optimizer, self._tensors[name])
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Puts every held element back to its remembered value."""
        for name, free in self._free.items():
            tensor = self._tensors[name]
            _put_back(tensor, self._values[name], free)
            if self._values_only:
                continue
            for key, value in shaped_state(self._optimizer, tensor):
                held = self._state.get((name, key))
                if held is None:  # state that the first step has just made
                    held = torch.full_like(value, self._fresh.get(key, 0.0))
                    self._state[name, key] = held
                _put_back(value, held, free)

    @torch.no_grad()
    def moved(self) -> list[str]:
        """Returns the names of the tensors of which a held element is not what is remembered of it."""
        found = []
        for name, free in self._free.items():
            now, held = self._tensors[name].detach(), self._values[name]
            other = (now != held.to(now.device)) & ~(now.isnan() & held.to(now.device).isnan())
            if bool((other if free is None else other & ~free.to(now.device)).any()):
                found.append(name)
        return found

    @torch.no_grad()
    def forget_state(self, elements: Mapping[str, Tensor]) -> None:
        """Resets optimizer state where ``elements`` is True: momentum of what was dropped is gone."""
        for name, mask in elements.items():
            for key, value in shaped_state(self._optimizer, self._tensors[name]):
                value.masked_fill_(mask.to(value.device), self._fresh.get(key, 0.0))


def _put_back(tensor: Tensor, held: Tensor, free: Any) -> None:
    data = tensor.detach()
    if free is None:
        data.copy_(held)
    else:
        torch.where(free, data, held, out=data)
