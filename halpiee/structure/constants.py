"""**Constants.** What depends on no input, parameter or buffer is computed with its values, on real tensors.

A detector makes its anchors of strides, a tensor that it holds beside its buffers, and reads them in Python. Such a
number is the same for other inputs and for a smaller network.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from halpiee.structure.records import memory_of, tensors_of

__all__ = ["ConstantError", "Constants"]


class ConstantError(Exception):
    """A forward writes a tensor without values into a constant, or writes into a constant that is not its own."""


class Constants:
    """The constants of one forward."""

    def __init__(self) -> None:
        self._made: list[Tensor] = []
        self._memories: set[int | None] = set()

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any] | None:
        """Returns the outcome of an op on constants alone, in a tuple; None for all others.

        Raises:
            ConstantError: the op writes into a constant whose values would be lost.
        """
        if not kwargs and not (args and (isinstance(args[0], list | tuple) or is_constant(args[0]))):
            return None
        # a function that counts as one op; a literal, whose value fake tensors know themselves
        if not isinstance(func, torch._ops.OpOverload) or func is torch.ops.aten.lift_fresh.default:
            return None
        read = tensors_of([args, kwargs])
        alone = all(map(is_constant, read))
        changed = written(func, args, kwargs) if func._schema.is_mutable else []
        if any(not (alone and memory_of(x) in self._memories) for x in changed if is_constant(x)):
            raise ConstantError(str(func))
        if not read or not alone or torch.Tag.nondeterministic_seeded in func.tags:
            return None
        with _disable_current_modes():
            out = func(*args, **kwargs)
        known = self._memories.union(memory_of(x) for x in read)
        for made in filter(is_constant, tensors_of(out)):
            if memory_of(made) not in known:
                self._made.append(made)  # its memory is not given to another while the forward runs
                self._memories.add(memory_of(made))
        return (out,)


def is_constant(value: Any) -> bool:
    """Returns whether a value is an ordinary tensor with values."""
    return type(value) in (Tensor, nn.Parameter) and not value.is_meta and value.layout is torch.strided


def written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """Returns the tensors that an op writes into."""
    given = {a.name: value for a, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    into = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return tensors_of([value for name, value in given.items() if name in into])
