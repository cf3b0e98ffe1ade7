"""Copies of a model that keeps tensors of its forward, which ``copy.deepcopy`` refuses.

A model that stores an activation (``self.features = x``, a hook that collects outputs) holds a tensor with a history
of gradients, and torch copies no such tensor. In the copy its values are there without the history.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["copy_of"]

T = TypeVar("T")


class Detaching(TorchFunctionMode):
    """Copies tensors that an operation has made by their values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the function; a deep copy of a tensor with a history gives one without."""
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def copy_of(value: T, memo: dict[int, Any] | None = None) -> T:
    """Returns a deep copy of a model, an optimizer or anything that holds tensors.

    Args:
        value: what to copy.
        memo: ``id`` → what stands for that object in the copy, as in ``copy.deepcopy``.
    """
    with Detaching():
        return copy.deepcopy(value, memo)
