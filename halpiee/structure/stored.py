"""Tensors that a model keeps beside its parameters and buffers: what a forward leaves on its modules, caches by width.

A copy that is cut must not go on with those of the full network. What the traced forward left behind is put back to
what was there before it; what modules keep for evaluation they make anew when they are switched to training and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from torch import Tensor, nn

__all__ = ["Stored", "forgotten", "left_behind", "snapshot"]

OWN = frozenset(vars(nn.Module()))
"""Attributes of every module: parameters, buffers, modules, hooks."""


class Held(Enum):
    """What an attribute held that has no plain value."""

    NOTHING = "nothing"
    TENSOR = "tensor"
    OTHER = "other"


@dataclass(frozen=True)
class Stored:
    """A tensor that the forward leaves on a module.

    Attributes:
        module: path of the module.
        name: the attribute; a tensor, or a dict or list with tensors.
        before: what it was: None, a plain value, nothing, the keys of a dict, the length of a list.
    """

    module: str
    name: str
    before: Any


def snapshot(model: nn.Module) -> dict[tuple[str, str], Any]:
    """Returns what the attributes of a model's modules hold: (path, name) → plain value, keys, length or kind."""
    return {
        (path, name): noted(value)
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if name not in OWN
    }


def noted(value: Any) -> Any:
    """Returns a plain value itself, the keys of a dict, the length of a list, else what kind of value it is."""
    if isinstance(value, Tensor):
        return Held.TENSOR
    if isinstance(value, dict):
        return frozenset(value)
    if isinstance(value, list):
        return len(value)
    return value if value is None or isinstance(value, bool | int | float | str) else Held.OTHER


def left_behind(model: nn.Module, before: dict[tuple[str, str], Any]) -> tuple[Stored, ...]:
    """Returns the attributes that hold tensors after a forward and did not before it."""
    found = []
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            was = before.get((path, name), Held.NOTHING)
            if name in OWN or (isinstance(was, Held) and was is not Held.NOTHING) or not holds_tensors(value):
                continue
            if noted(value) is Held.TENSOR or noted(value) != was:
                found.append(Stored(path, name, was))
    return tuple(found)


def holds_tensors(value: Any) -> bool:
    """Returns whether a value is a tensor, or a dict, list or tuple with one in it."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return any(holds_tensors(v) for v in value)
    return isinstance(value, Tensor)


def forgotten(model: nn.Module, stored: Iterable[Stored]) -> None:
    """Takes what forwards have left behind out of a copy, in place, and renews what it keeps for evaluation.

    Args:
        model: the copy.
        stored: what a forward of it leaves behind.
    """
    modules = dict(model.named_modules())
    for kept in stored:
        module = modules.get(kept.module)
        value = vars(module).get(kept.name) if module is not None else None
        if module is None or not holds_tensors(value):
            continue
        if isinstance(value, dict) and isinstance(kept.before, frozenset):
            for key in [key for key in value if key not in kept.before]:
                del value[key]
        elif isinstance(value, list) and isinstance(kept.before, int):
            del value[kept.before :]
        elif kept.before is Held.NOTHING:
            delattr(module, kept.name)
        else:
            setattr(module, kept.name, kept.before)
    if not model.training and any(
        name not in OWN and holds_tensors(value)
        for module in modules.values()
        for name, value in vars(module).items()
    ):
        modes = [(module, module.training) for module in modules.values()]
        model.train()
        model.eval()
        for module, training in modes:
            module.training = training
