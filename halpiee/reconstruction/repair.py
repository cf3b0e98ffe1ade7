"""Solves the layers of a cut network again from unlabelled images, which recovers accuracy without training.

The kept channels of every convolution and linear layer should equal those of the dense network. Layer by layer, in the
order of the forward, the weights of the compact network become the ridge solution

    W = argmin Σ_p ‖x_p W − y_p‖² + λ·(‖W − W₀‖²),

where ``x_p`` is the layer's input at position p in the *compact* network (its earlier layers solved already), ``y_p``
its output in the *dense* network, and W₀ the weights that the cut left. The last unknown is a constant, on which λ does
not act; λ is the one with the smallest error on held-out images. Batch norms take the statistics of their new inputs.
Every layer is solved when the pass through the compact network calls it, and runs with its new weights. Least squares
per layer after pruning: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), Eq. 5; here for
every kind of layer, towards the cut weights, with corrected residuals, and through the whole network in one pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from halpiee.errors import UsageError
from halpiee.reconstruction.layer_call import LayerCall, Layout, call_of, layouts_of, plain_attention, sampled
from halpiee.reconstruction.samples import Residual, Sampler, residuals_of
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import kept_positions, shrink


class Sums:
    """The sums of least-squares problems, one a group: ``S = Σ x xᵀ``, ``R = Σ x yᵀ``, ``Σ y²``, in double precision.

    ``width`` counts the unknowns of a problem, the constant last; ``outs`` its outputs.
    """

    def __init__(self, groups: int, width: int, outs: int, device: torch.device) -> None:
        kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.xx = torch.zeros(groups, width, width, **kind)
        self.xy = torch.zeros(groups, width, outs, **kind)
        self.yy = torch.zeros(groups, outs, **kind)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows ``x [groups, rows, width]`` and ``y [groups, rows, outs]``."""
        self.xx += (x.transpose(1, 2) @ x).double()
        self.xy += (x.transpose(1, 2) @ y).double()
        self.yy += y.square().sum(1).double()

    def __add__(self, other: Sums) -> Sums:
        both = copy.copy(self)
        both.xx, both.xy, both.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return both

    def error(self, weights: Tensor) -> float:
        """Returns ``Σ ‖x W − y‖²``."""
        return float((weights * (self.xx @ weights - 2 * self.xy)).sum() + self.yy.sum())

    @property
    def spread(self) -> float:
        """``Σ ‖y − mean‖²``."""
        rows = self.xx[:, -1, -1].clamp_min(1)[:, None]
        return max(1e-30, float((self.yy - self.xy[:, -1].square() / rows).sum()))


def ridge_solution(sums: Sums, start: Tensor, ridge: float) -> Tensor | None:
    """Returns the solution of ``(S + λ)(W − W₀) = R − S W₀``, λ not on the constant; ``None`` where there is none."""
    diagonal = sums.xx.diagonal(dim1=1, dim2=2)
    extra = (ridge * diagonal[:, :-1].mean(1)).clamp_min(1e-12)[:, None].expand_as(diagonal).clone()
    extra[:, -1] = 1e-12
    factor, failed = torch.linalg.cholesky_ex(sums.xx + torch.diag_embed(extra))
    if bool(failed.any()):
        return None
    return start + torch.cholesky_solve(sums.xy - sums.xx @ start, factor)


def with_mean(weights: Tensor, sums: Sums) -> Tensor:
    """Returns the weights with the constant that makes the mean error zero."""
    rows = sums.xx[:, -1, -1].clamp_min(1)[:, None]
    constant = (sums.xy[:, -1] - (sums.xx[:, -1:, :-1] @ weights[:, :-1])[:, 0]) / rows
    return torch.cat([weights[:, :-1], constant[:, None]], 1)


RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ to choose from, as shares of the mean of the diagonal of Σ x xᵀ."""

HELD_OUT = 0.2
"""Share of the images whose positions only judge λ."""

CHUNK = 4096
"""Rows whose products are summed in single precision before they are added in double precision."""


@dataclass(frozen=True)
class RepairedLayer:
    """The outcome of solving one layer again."""

    name: str  # of the weight
    before: float = math.nan  # ‖cut − dense‖₂ / ‖dense‖₂ of its outputs on held-out images, means taken out
    after: float = math.nan  # the same with the new weights
    ridge: float = math.nan  # λ that was chosen, as a share of the mean of the diagonal of Σ x xᵀ
    skipped: str | None = None  # why the weights stayed, or ``None``


@dataclass(frozen=True)
class Settings:
    """How layers are solved."""

    images: int = 512  # how many images to use at most
    norms: bool = True  # whether batch norms are estimated again
    # whether a layer whose output is added to an earlier tensor also makes up for what that has lost
    residuals: bool = True
    only: Collection[str] | None = None  # weights to solve; ``None``: all
    ridges: tuple[float, ...] = RIDGES  # λ to choose from, as shares of the mean of the diagonal of Σ x xᵀ
    seed: int = 0  # of the positions that are sampled


class Solver(TorchFunctionMode):
    """Solves every layer of a compact network when it is called, and runs it with its new weights.

    ``sampler`` holds the outputs of the dense network, ``layouts`` where the images lie in the inputs of the compact
    one's layers, ``residuals`` the tensors that are added behind these; ``report`` is called with each solved layer.
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
        self._noted: dict[int, Tensor] = {}
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
            self._noted[self._number] = out
        self._number += 1
        return out

    def _estimate(self, x: Tensor, mean: Tensor | None, var: Tensor | None, *_: Any, **__: Any) -> None:
        """Gives a batch norm the statistics of its input."""
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
        positions, size = self._sampler.positions[name]
        correction = self._sampler.correction(name)
        if correction is not None and (made := self._residuals[name].made) in self._noted:
            dense, factor = correction
            present = sampled(self._noted.pop(made), call, self._layouts[name], self._images, positions)
            y = y + factor * (dense - present)
        groups, unknowns, outs = call.flat(weight).shape
        n, places = len(x), len(positions)
        first = n - max(1, round(HELD_OUT * n))
        halves = Sums(groups, unknowns + 1, outs, x.device), Sums(groups, unknowns + 1, outs, x.device)
        step = max(1, CHUNK // places)
        for half, (lo, hi) in zip(halves, ((0, first), (first, n)), strict=True):
            for at in range(lo, hi, step):
                end = min(at + step, hi)
                patches = call.patches(x[at:end], weight, size, positions).float()
                rows = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)
                half.add(rows, y[at * places : end * places].reshape(-1, groups, outs).transpose(0, 1))
        return halves


BATCH = 32
"""Images that pass through the dense network at once."""


def repair(
    model: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    batches: Iterable[Any],
    *,
    settings: Settings | None = None,
    compact: nn.Module | None = None,
    report: Callable[[RepairedLayer], None] = lambda layer: None,
) -> nn.Module:
    """Returns the compact network with its layers solved again and its batch norms estimated again; no labels.

    Memory holds the compact network's activations of all images at once, and sampled outputs of the dense network.

    Args:
        model: the dense network, with trained weights; it is not changed.
        structure: of the model.
        keep: group name → BoolTensor ``[size]``; as for ``shrink``.
        batches: inputs, or (inputs, labels) of which the labels are not read; from the training images, without
            augmentation.
        settings: how layers are solved; by default ``Settings()``.
        compact: weights to start from, as ``shrink`` gave them, maybe trained since; by default the cut's.
        report: called with each layer.

    Raises:
        UsageError: no images, or less than five.
    """
    s = settings or Settings()
    inputs = _inputs(batches, s.images)
    cut = copy.deepcopy(compact) if compact is not None else shrink(model, structure, keep)
    assert isinstance(cut, nn.Module)
    dense = copy.deepcopy(model).eval()
    cut.eval()
    alive = structure.keep_vector(keep)
    kept = kept_positions(structure, alive)
    dense_names = {id(p): n for n, p in dense.named_parameters()}
    cut_names = {id(p): n for n, p in cut.named_parameters()}
    shapes = {n: p.shape for n, p in cut.named_parameters()}
    n = len(inputs[0])
    with torch.no_grad(), plain_attention():
        plans = layouts_of(dense, dense_names, inputs, kept)
        if s.only is not None:
            plans = {
                n: p if n in s.only else Layout(skipped="it was not asked for") for n, p in plans.items()
            }
        layouts = layouts_of(cut, cut_names, inputs, {})
        adds = residuals_of(dense, dense_names, inputs) if s.residuals else {}
        here = residuals_of(cut, cut_names, inputs) if s.residuals else {}
        adds = {name: add for name, add in adds.items() if name in here}
        sampler = Sampler(dense_names, plans, shapes, adds, n, s.seed)
        for at in range(0, n, BATCH):
            sampler.start(min(BATCH, n - at))
            part = tuple(x[at : at + BATCH] for x in inputs)
            with sampler:
                dense(*part)
        solver = Solver(cut, sampler, layouts, here, n, s, report)
        with solver:
            cut(*inputs)
        for name in shapes:
            if len(shapes[name]) > 1 and name not in solver.done:
                report(RepairedLayer(name, skipped="no layer is called with it as it is"))
    return cut.train(model.training)


def spread_out(
    model: nn.Module, structure: Structure, keep: Mapping[str, Tensor], compact: nn.Module
) -> None:
    """Copies weights and statistics of a compact network to the units of the whole one that it was cut from."""
    kept = kept_positions(structure, structure.keep_vector(keep))
    whole = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, found in (dict(compact.named_parameters()) | dict(compact.named_buffers())).items():
            shape = whole[name].shape
            places = [
                kept.get(name, {}).get(d, torch.arange(n)).to(found.device) for d, n in enumerate(shape)
            ]
            grid = tuple(
                p.view([-1 if i == d else 1 for i in range(len(shape))]) for d, p in enumerate(places)
            )
            whole[name][grid] = found.to(whole[name].dtype)


def _inputs(batches: Iterable[Any], images: int) -> tuple[Tensor, ...]:
    """Returns the first images of all batches, one tensor for each input of the network."""
    parts: list[tuple[Tensor, ...]] = []
    have = 0
    for batch in batches:
        x = batch[0] if isinstance(batch, tuple | list) else batch
        x = tuple(x) if isinstance(x, tuple | list) else (x,)
        parts.append(tuple(t[: images - have] for t in x))
        have += len(parts[-1][0])
        if have >= images:
            break
    if have < 5:
        raise UsageError(
            f"repair was given {have} images; it solves layers from activations: give at least 5, better 512, of the "
            "training images as batches=[inputs, …]"
        )
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))
