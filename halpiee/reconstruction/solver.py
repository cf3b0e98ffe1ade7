"""The pass through the compact network: every layer is solved when it is called, and goes on with its new weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from halpiee.reconstruction.layer_call import LayerCall, call_of
from halpiee.reconstruction.layout import Layout, sampled
from halpiee.reconstruction.residual import Residual
from halpiee.reconstruction.ridge import Sums, ridge_solution, with_mean
from halpiee.reconstruction.samples import Sampler

__all__ = ["RepairedLayer", "Settings", "Solver"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ to choose from, as shares of the mean of the diagonal of Σ x xᵀ."""

HELD_OUT = 0.2
"""Share of the images whose positions only judge λ."""

CHUNK = 4096
"""Rows whose products are summed in single precision before they are added in double precision."""


@dataclass(frozen=True)
class RepairedLayer:
    """What solving one layer again gave.

    Attributes:
        name: of the weight.
        before: ‖cut − dense‖₂ / ‖dense‖₂ of its outputs on held-out images, means taken out.
        after: the same with the new weights.
        ridge: λ that was chosen, as a share of the mean of the diagonal of Σ x xᵀ.
        skipped: why the weights stayed, or ``None``.
    """

    name: str
    before: float = math.nan
    after: float = math.nan
    ridge: float = math.nan
    skipped: str | None = None


@dataclass(frozen=True)
class Settings:
    """How layers are solved.

    Attributes:
        images: how many images to use at most.
        norms: whether batch norms are estimated again.
        residuals: whether a layer whose output is added to an earlier tensor also makes up for what that has lost.
        only: weights to solve; ``None``: all.
        ridges: λ to choose from, as shares of the mean of the diagonal of Σ x xᵀ.
        seed: of the positions that are sampled.
    """

    images: int = 512
    norms: bool = True
    residuals: bool = True
    only: Collection[str] | None = None
    ridges: tuple[float, ...] = RIDGES
    seed: int = 0


class Solver(TorchFunctionMode):
    """Solves every layer when it is called, and goes on with its new weights.

    Args:
        compact: the network whose layers are solved.
        sampler: what the dense network gave.
        layouts: where the images lie in the compact network's inputs.
        residuals: what is added behind its layers.
        images: how many pass through it.
        settings: how layers are solved.
        report: told of each layer.
    """

    def __init__(
        self,
        compact: nn.Module,
        sampler: Sampler,
        layouts: Mapping[str, Layout],
        residuals: Mapping[str, Residual],
        images: int,
        settings: Settings,
        report: Callable[[RepairedLayer], None],
    ) -> None:
        super().__init__()
        self._names = {id(p): n for n, p in compact.named_parameters()}
        self._sampler, self._layouts, self._images = sampler, layouts, images
        self._ridges, self._norms, self._report = settings.ridges, settings.norms, report
        self._residuals = residuals
        self._wanted = {r.made for r in residuals.values()}
        self._held: dict[int, Tensor] = {}
        self._number = 0
        self._buffers = {id(b) for b in compact.buffers()}
        self._fixed = {id(r.norm[0]) for r in residuals.values() if r.norm is not None}
        self.done: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._norms and func is functional.batch_norm:
            self._estimate(*args, **kwargs)
        found = call_of(func, args, kwargs)
        if found is not None and id(found[2]) in self._names:
            name = self._names[id(found[2])]
            if name not in self.done:
                reason = self._layouts[name].skipped or self._sampler.reason(name)
                self._report(RepairedLayer(name, skipped=reason) if reason else self._solve(name, *found))
            self.done.add(name)
        out = func(*args, **kwargs)
        if self._number in self._wanted:
            self._held[self._number] = out
        self._number += 1
        return out

    def _estimate(self, x: Tensor, mean: Tensor | None, var: Tensor | None, *_: Any, **__: Any) -> None:
        """Gives a batch norm the statistics of all that reaches it."""
        if mean is None or var is None or id(mean) not in self._buffers or id(var) in self._fixed:
            return
        dims = [d for d in range(x.dim()) if d != 1]
        mean.copy_(x.mean(dims))
        var.copy_(x.var(dims, correction=0))

    def _solve(
        self, name: str, call: LayerCall, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> RepairedLayer:
        """Gives a layer its ridge solution, unless that is worse on the held-out images."""
        if call.kind == "linear":
            x = self._layouts[name].by_image(x, self._images)
        train, judge = self._sums(name, call, x, weight)
        start = call.flat(weight).double()
        start = with_mean(torch.cat([start, torch.zeros_like(start[:, :1])], 1), train)
        before = least = judge.error(start)
        best, chosen = start, math.inf
        for ridge in self._ridges:
            found = ridge_solution(train, start, ridge)
            if found is not None and (error := judge.error(found)) < least:
                best, chosen, least = found, ridge, error
        if best is not start:
            both = ridge_solution(train + judge, start, chosen)
            best = best if both is None else both
            weight.copy_(call.shaped(best[:, :-1].to(weight.dtype), weight))
        if bias is not None:
            bias.copy_(best[:, -1].reshape(-1).to(bias.dtype))
        whole = judge.spread
        return RepairedLayer(
            name, math.sqrt(max(0.0, before) / whole), math.sqrt(max(0.0, least) / whole), chosen
        )

    def _sums(self, name: str, call: LayerCall, x: Tensor, weight: Tensor) -> tuple[Sums, Sums]:
        """Returns the sums of the images to solve from, and of those that judge."""
        y = self._sampler.targets(name)
        correction = self._sampler.correction(name)
        if correction is not None and (made := self._residuals[name].made) in self._held:
            should, factor, _ = correction
            now = sampled(
                self._held.pop(made),
                call,
                self._layouts[name],
                self._images,
                self._sampler.positions[name][0],
            )
            y = y + factor * (should - now)
        positions, size = self._sampler.positions[name]
        groups, unknowns, outs = call.flat(weight).shape
        n, places = len(x), len(positions)
        first = n - max(1, round(HELD_OUT * n))
        halves = (Sums(groups, unknowns + 1, outs, x.device), Sums(groups, unknowns + 1, outs, x.device))
        step = max(1, CHUNK // places)
        for half, (lo, hi) in zip(halves, ((0, first), (first, n)), strict=True):
            for at in range(lo, hi, step):
                end = min(at + step, hi)
                patches = call.patches(x[at:end], weight, size, positions).float()
                rows = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)
                half.add(rows, y[at * places : end * places].reshape(-1, groups, outs).transpose(0, 1))
        return halves
