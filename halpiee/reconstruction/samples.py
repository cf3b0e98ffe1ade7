"""What does the dense network say? The outputs of every layer at sampled positions, kept channels only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from halpiee.reconstruction.layer_call import call_of
from halpiee.reconstruction.layout import Layout, sampled
from halpiee.reconstruction.residual import Residual

__all__ = ["Sampler"]

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
        self._held: dict[int, Tensor] = {}
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

    def correction(self, name: str) -> tuple[Tensor, Tensor | float, Tensor | None] | None:
        """Returns what is added behind a layer, ``[rows, C_out]`` of all images, its factor, and the rows that stay."""
        if name not in self._other:
            return None
        rows = self._plans[name].rows
        return torch.cat(self._other.pop(name)), self._residuals[name].factor(rows), rows

    def start(self, count: int) -> None:
        """Begins a pass of so many images."""
        self.count, self._number = count, 0
        self._held.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._number in self._wanted:
            self._held[self._number] = out
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
        if residual is not None and residual.made in self._held:
            other = sampled(self._held[residual.made], call, plan, self.count, self.positions[name][0])
            if plan.rows is not None:
                other = other[:, plan.rows.to(other.device)]
            self._other.setdefault(name, []).append(other)
        return out
