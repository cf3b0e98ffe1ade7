"""What is added to a layer's output? A residual that lost something can be made up for by the layer beside it.

In ``norm(conv(x)) + s`` the compact network has another ``s``. The convolution whose target is ``y + (s − s') · σ/γ``
gives the dense sum, not only the dense branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from halpiee.reconstruction.layer_call import call_of

__all__ = ["Residual", "residuals_of"]

MOST = 100.0
"""A residual is corrected through a batch norm by at most this factor: behind a tiny γ nothing can be corrected."""


@dataclass(frozen=True)
class Residual:
    """What is added to a layer's output, behind its batch norm where it has one.

    Attributes:
        made: number of the function call that gives it; before that of the layer.
        norm: running variance, weight and ε of the batch norm between, or ``None``.
    """

    made: int
    norm: tuple[Tensor, Tensor | None, float] | None

    def factor(self, rows: Tensor | None) -> Tensor | float:
        """Returns what one more in the sum is in the layer's output: σ/γ of each kept channel."""
        if self.norm is None:
            return 1.0
        var, weight, eps = self.norm
        found = (var + eps).sqrt() / (1 if weight is None else torch.where(weight.abs() < 1e-6, 1e-6, weight))
        found = found if rows is None else found[rows.to(found.device)]
        return found.clamp(-MOST, MOST)


class _Scan(TorchFunctionMode):
    """Finds the additions behind layers: which earlier tensor is added to which layer's output."""

    ADDS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names, self._count = names, 0
        self._alive: list[Any] = []  # so that no id is given twice
        self._made: dict[int, int] = {}
        self._behind: dict[int, tuple[str, int, Any]] = {}
        self.found: dict[str, Residual] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        number, self._count = self._count, self._count + 1
        if not isinstance(out, Tensor):
            return out
        self._alive.append(out)
        call = call_of(func, args, kwargs)
        if call is not None and id(call[2]) in self._names:
            self._behind[id(out)] = (self._names[id(call[2])], number, None)
        elif func is functional.batch_norm and id(args[0]) in self._behind:
            name, at, norm = self._behind[id(args[0])]
            given = dict(zip(("input", "running_mean", "running_var", "weight"), args, strict=False)) | kwargs
            if norm is None and given.get("running_var") is not None:
                eps = args[7] if len(args) > 7 else kwargs.get("eps", 1e-5)
                self._behind[id(out)] = (name, at, (given["running_var"], given.get("weight"), eps))
        elif func in self.ADDS and len(args) == 2 and all(isinstance(a, Tensor) for a in args):
            for one, other in (args, args[::-1]):
                made = self._made.get(id(other))
                if id(one) in self._behind and made is not None and one.shape == other.shape:
                    name, at, norm = self._behind[id(one)]
                    if made < at and name not in self.found:
                        self.found[name] = Residual(made, norm)
        self._made[id(out)] = number
        return out


def residuals_of(
    model: nn.Module, names: Mapping[int, str], inputs: tuple[Tensor, ...]
) -> dict[str, Residual]:
    """Returns, by weight, what is added behind a layer and is there when the layer is called."""
    one = tuple(x[:1] for x in inputs)
    scan = _Scan(names)
    with scan:
        model(*one)
    return scan.found
