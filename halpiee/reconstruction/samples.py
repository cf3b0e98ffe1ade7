"""Samples the dense network: the outputs of every layer at sampled positions, kept channels only.

The layer beside a residual can correct the error of the residual. In ``norm(conv(x)) + s`` the compact network has
another ``s'``. A convolution that is solved for ``y + (s − s') · σ/γ`` yields the dense sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from halpiee.reconstruction.layer_call import Layout, call_of, sampled

MOST = 100.0
"""A residual is corrected through a batch norm by at most this factor: behind a tiny γ nothing can be corrected."""


@dataclass(frozen=True)
class Residual:
    """A tensor that is added to a layer's output, behind its batch norm where it has one."""

    made: int  # number of the function call that returns it, before that of the layer
    norm: tuple[Tensor, Tensor | None, float] | None  # running variance, weight and ε of the norm between

    def factor(self, rows: Tensor | None) -> Tensor | float:
        """Returns the change of the layer's output that changes the sum by 1: σ/γ of each kept channel."""
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
    """Returns, by weight, the tensor that is added behind a layer and exists when the layer is called."""
    one, scan = tuple(x[:1] for x in inputs), _Scan(names)
    with scan:
        model(*one)
    return scan.found


ROWS = 16384
"""Positions a layer is solved from, at least: more where it has more unknowns a channel."""

ROWS_PER_UNKNOWN = 6


class Sampler(TorchFunctionMode):
    """Keeps the dense network's outputs of every layer at sampled positions, kept channels only."""

    def __init__(
        self,
        names: Mapping[int, str],
        plans: Mapping[str, Layout],
        shapes: Mapping[str, torch.Size],
        residuals: Mapping[str, Residual],
        images: int,
        seed: int,
    ) -> None:
        super().__init__()
        self._names, self._plans, self._shapes, self._images = names, plans, shapes, images
        self._residuals = residuals
        self._wanted = {r.made for r in residuals.values()}
        self._generator = torch.Generator().manual_seed(seed)
        self._parts: dict[str, list[Tensor]] = {}
        self._other: dict[str, list[Tensor]] = {}
        self._noted: dict[int, Tensor] = {}
        self._number = 0
        self.count = 0  # images of this pass
        self.positions: dict[str, tuple[Tensor, tuple[int, ...]]] = {}

    def reason(self, name: str) -> str | None:
        """Returns why there are no samples of a layer, or ``None``."""
        if name in self.positions:
            return None
        return self._plans[name].skipped if name in self._plans else "the dense network does not call it"

    def targets(self, name: str) -> Tensor:
        """Returns ``[rows, C_out]`` of all images, and forgets them."""
        return torch.cat(self._parts.pop(name))

    def correction(self, name: str) -> tuple[Tensor, Tensor | float] | None:
        """Returns the residual behind a layer, ``[rows, C_out]`` of all images, and its factor."""
        if name not in self._other:
            return None
        return torch.cat(self._other.pop(name)), self._residuals[name].factor(self._plans[name].rows)

    def start(self, count: int) -> None:
        """Begins a pass of ``count`` images."""
        self.count, self._number = count, 0
        self._noted.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._number in self._wanted:
            self._noted[self._number] = out
        self._number += 1
        found = call_of(func, args, kwargs)
        if found is None or id(found[2]) not in self._names:
            return out
        call, name = found[0], self._names[id(found[2])]
        plan = self._plans.get(name, Layout(skipped="not seen before"))
        if plan.skipped:
            return out
        if call.kind == "linear":
            flat, size = plan.by_image(out, self.count), ()
        else:
            flat, size = out.flatten(2).transpose(1, 2), tuple(out.shape[2:])
        if name not in self.positions:
            places, share = flat.shape[1], len(flat) / self.count
            shape = self._shapes[name]
            a_group = shape[0] // call.groups if call.kind == "conv_transpose" else shape[1]
            unknowns = a_group * math.prod(shape[2:])
            wanted = math.ceil(max(ROWS, ROWS_PER_UNKNOWN * unknowns) / (self._images * share))
            order = torch.randperm(places, generator=self._generator)[: min(places, wanted)]
            self.positions[name] = (order.sort().values, size)
        part = flat[:, self.positions[name][0].to(flat.device)].flatten(0, 1)
        if plan.rows is not None:
            part = part[:, plan.rows.to(part.device)]
        self._parts.setdefault(name, []).append(part.float())
        residual = self._residuals.get(name)
        if residual is not None and residual.made in self._noted:
            other = sampled(self._noted[residual.made], call, plan, self.count, self.positions[name][0])
            if plan.rows is not None:
                other = other[:, plan.rows.to(other.device)]
            self._other.setdefault(name, []).append(other)
        return out
