"""How much accuracy can a cut network win back without training? Each layer is solved again from unlabelled images.

The kept channels of every convolution and linear layer should say what they said in the dense network. Layer by layer,
in the order of the forward, the weights of the compact network become the ridge solution

    W = argmin Σ_p ‖x_p W − y_p‖² + λ·(‖W − W₀‖²),

where ``x_p`` is what the *compact* network feeds the layer at position p (its earlier layers solved already), ``y_p``
what the layer gives in the *dense* network, and W₀ the weights that the cut left. λ is the one with the smallest error
on held-out images. Batch norms take the statistics of what now reaches them. Least squares per layer after pruning:
He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (2017), Eq. 5; here for every kind of layer,
towards the cut weights, and through the whole network in one pass.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from halpiee.errors import UsageError
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import kept_positions, shrink

__all__ = ["RepairedLayer", "repair"]

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""λ to choose from, as shares of the mean of the diagonal of Σ x xᵀ."""

HELD_OUT = 0.2
"""Share of the images whose positions only judge λ."""

ROWS = 16384
"""Positions a layer is solved from, at least: more where it has more unknowns a channel."""

ROWS_PER_UNKNOWN = 6

BATCH = 32
"""Images that pass through the dense network at once."""

MOST = 100.0
"""A residual is corrected through a batch norm by at most this factor: behind a tiny γ nothing can be corrected."""

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


def repair(
    model: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    batches: Iterable[Any],
    *,
    images: int = 512,
    norms: bool = True,
    residuals: bool = True,
    only: Collection[str] | None = None,
    ridges: tuple[float, ...] = RIDGES,
    seed: int = 0,
    compact: nn.Module | None = None,
    report: Callable[[RepairedLayer], None] = lambda layer: None,
) -> nn.Module:
    """Returns the compact network with its layers solved again and its batch norms estimated again; no labels.

    Memory holds the compact network's activations of all images at once, and sampled outputs of the dense network.

    Args:
        model: the dense network, with trained weights; left as it is.
        structure: of the model.
        keep: group name → BoolTensor ``[size]``; as for ``shrink``.
        batches: inputs, or (inputs, labels) of which the labels are not read; from the training images, without
            augmentation.
        images: how many of them to use at most.
        norms: whether batch norms are estimated again.
        residuals: whether a layer whose output is added to an earlier tensor also makes up for what that tensor
            has lost.
        only: weights to solve; by default all.
        ridges: λ to choose from.
        seed: of the positions that are sampled.
        compact: weights to start from, as ``shrink`` gave them, maybe trained since; by default the cut's.
        report: told of each layer.

    Raises:
        UsageError: no images, or less than five.
    """
    inputs = _inputs(batches, images)
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
    with torch.no_grad(), _plain_attention():
        plans = _plans(dense, dense_names, inputs, kept)
        if only is not None:
            plans = {n: p if n in only else _Plan(skipped="it was not asked for") for n, p in plans.items()}
        layouts = _plans(cut, cut_names, inputs, {})
        adds = _residuals(dense, dense_names, inputs) if residuals else {}
        here = _residuals(cut, cut_names, inputs) if residuals else {}
        adds = {name: add for name, add in adds.items() if name in here}
        sampler = _Sampler(dense_names, plans, shapes, adds, n, seed)
        for at in range(0, n, BATCH):
            sampler.start(min(BATCH, n - at))
            part = tuple(x[at : at + BATCH] for x in inputs)
            with sampler:
                dense(*part)
        solver = _Solver(
            cut_names, sampler, layouts, here, n, ridges, norms, dict(cut.named_buffers()), report
        )
        with solver:
            cut(*inputs)
        for name in shapes:
            if len(shapes[name]) > 1 and name not in solver.done:
                report(RepairedLayer(name, skipped="no layer is called with it as it is"))
    return cut.train(model.training)


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


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Inside, attention calls its linear layers one by one, where a function mode sees them.

    ``multi_head_attention_forward`` hands itself to a mode as one call; told that there is none, it runs its body.
    """
    before, asks = torch.backends.mha.get_fastpath_enabled(), functional.has_torch_function
    torch.backends.mha.set_fastpath_enabled(False)
    functional.has_torch_function = lambda tensors: False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        functional.has_torch_function = asks


# -- one layer call as a linear map of patches ------------------------------------------------------------------------

CONVS = {
    functional.conv1d: 1,
    functional.conv2d: 2,
    functional.conv3d: 3,
    torch.conv1d: 1,
    torch.conv2d: 2,
    torch.conv3d: 3,
}
TRANSPOSED = {
    functional.conv_transpose1d: 1,
    functional.conv_transpose2d: 2,
    functional.conv_transpose3d: 3,
    torch.conv_transpose1d: 1,
    torch.conv_transpose2d: 2,
    torch.conv_transpose3d: 3,
}


@dataclass(frozen=True)
class _Call:
    """One call of a layer: y at a position = patch of x at this position · W.

    Attributes:
        kind: ``linear``, ``conv`` or ``conv_transpose``.
        dims: spatial dimensions.
        stride: along each of them; so are the next two.
        padding: see ``stride``.
        dilation: see ``stride``.
        groups: of channels.
    """

    kind: str
    dims: int = 0
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    def patches(self, x: Tensor, weight: Tensor, out: tuple[int, ...], positions: Tensor) -> Tensor:
        """Returns ``[groups, rows, unknowns]``: what the outputs at some positions are computed from.

        Args:
            x: the input, ``[N, C, …]``, or ``[N, …, C]`` of a linear layer.
            weight: of the layer, for its kernel.
            out: spatial size of the output.
            positions: flat indices into it.
        """
        if self.kind == "linear":
            return x.reshape(len(x), -1, x.shape[-1])[:, positions].flatten(0, 1)[None]
        kernel = tuple(weight.shape[2:])
        at = torch.unravel_index(positions, out)
        rows = []
        if self.kind == "conv":
            x = functional.pad(x, [p for pad in reversed(self.padding) for p in (pad, pad)])
            for place in zip(*(a.tolist() for a in at), strict=True):
                part = x
                for d, o in enumerate(place):
                    first = o * self.stride[d]
                    last = first + (kernel[d] - 1) * self.dilation[d] + 1
                    part = part.narrow(2 + d, first, last - first)
                    part = part[(slice(None),) * (2 + d) + (slice(None, None, self.dilation[d]),)]
                rows.append(part)
        else:
            for place in zip(*(a.tolist() for a in at), strict=True):
                rows.append(self._behind(x, kernel, place))
        stacked = torch.stack(rows, 1)  # [N, P, C, *kernel]
        n, p = stacked.shape[:2]
        split = stacked.reshape(n * p, self.groups, -1)
        return split.transpose(0, 1)

    def _behind(self, x: Tensor, kernel: tuple[int, ...], place: tuple[int, ...]) -> Tensor:
        """Returns ``[N, C, *kernel]``: the inputs that each tap of a transposed convolution brings to a place."""
        part = x
        for d, o in enumerate(place):
            index, there = [], []
            for k in range(kernel[d]):
                offset = o + self.padding[d] - k * self.dilation[d]
                i, rest = divmod(offset, self.stride[d])
                inside = rest == 0 and 0 <= i < x.shape[2 + d]
                index.append(i if inside else 0)
                there.append(float(inside))
            part = part.index_select(2 + d, torch.tensor(index, device=x.device))
            shape = [1] * part.dim()
            shape[2 + d] = len(there)
            part = part * torch.tensor(there, dtype=x.dtype, device=x.device).view(shape)
        return part

    def flat(self, weight: Tensor) -> Tensor:
        """Returns the weights as ``[groups, unknowns, outputs of a group]``."""
        if self.kind == "conv_transpose":  # [C_in, C_out / groups, *kernel]
            c_in, c_out = weight.shape[0] // self.groups, weight.shape[1]
            split = weight.reshape(self.groups, c_in, c_out, -1)
            return split.transpose(2, 3).reshape(self.groups, -1, c_out)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    def shaped(self, flat: Tensor, weight: Tensor) -> Tensor:
        """Returns weights of ``flat``'s form in the layer's own."""
        if self.kind == "conv_transpose":
            c_in, c_out = weight.shape[0] // self.groups, weight.shape[1]
            return flat.reshape(self.groups, c_in, -1, c_out).transpose(2, 3).reshape(weight.shape)
        return flat.transpose(1, 2).reshape(weight.shape)


def _call_of(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[_Call, Tensor, Tensor, Any] | None:
    """Returns a layer call, its input, weight and bias; ``None`` for another function."""

    def given(i: int, name: str, default: Any) -> Any:
        return args[i] if len(args) > i else kwargs.get(name, default)

    if func in (functional.linear, torch._C._nn.linear):
        return _Call("linear"), given(0, "input", None), given(1, "weight", None), given(2, "bias", None)
    dims = CONVS.get(func) or TRANSPOSED.get(func)
    if dims is None:
        return None
    x, weight, bias = given(0, "input", None), given(1, "weight", None), given(2, "bias", None)
    stride, padding = _each(given(3, "stride", 1), dims), given(4, "padding", 0)
    if func in CONVS:
        dilation = _each(given(5, "dilation", 1), dims)
        if isinstance(padding, str):
            spans = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            if padding == "same" and any(s % 2 for s in spans):
                return None  # PyTorch pads one side more
            padding = [s // 2 for s in spans] if padding == "same" else 0
        call = _Call("conv", dims, stride, _each(padding, dims), dilation, given(6, "groups", 1))
    else:
        call = _Call(
            "conv_transpose",
            dims,
            stride,
            _each(padding, dims),
            _each(given(7, "dilation", 1), dims),
            given(6, "groups", 1),
        )
    return call, x, weight, bias


def _each(value: Any, dims: int) -> tuple[int, ...]:
    values = tuple(int(v) for v in value) if isinstance(value, tuple | list | torch.Size) else (int(value),)
    return values * dims if len(values) == 1 else values


# -- three passes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """How a layer's samples are taken.

    Attributes:
        dim: dimension of its input and output that holds the images, maybe several entries of each.
        minor: whether entries of one image lie apart (image last) and not side by side.
        rows: output channels that stay, or ``None``: all.
        skipped: why the layer is not solved, or ``None``.
    """

    dim: int = 0
    minor: bool = False
    rows: Tensor | None = None
    skipped: str | None = None

    def by_image(self, x: Tensor, images: int) -> Tensor:
        """Returns ``[images, places, C]`` of a linear layer's input or output."""
        k = x.shape[self.dim] // images
        split = x.unflatten(self.dim, (k, images) if self.minor else (images, k))
        return split.movedim(self.dim + self.minor, 0).reshape(images, -1, x.shape[-1])


def _plans(
    model: nn.Module,
    names: Mapping[int, str],
    inputs: tuple[Tensor, ...],
    kept: Mapping[str, Mapping[int, Tensor]],
) -> dict[str, _Plan]:
    """Returns how every layer is sampled, told from its inputs for one image, for another, and for both."""
    looks = []
    for first, last in ((0, 1), (1, 2), (0, 2)):
        with _Calls(names) as calls:
            model(*(x[first:last] for x in inputs))
        looks.append(calls.seen)
    return {name: _planned([look.get(name, []) for look in looks], kept.get(name, {})) for name in looks[2]}


def _planned(looks: list[list[tuple[_Call, Tensor]]], kept: Mapping[int, Tensor]) -> _Plan:
    if any(len(look) != 1 for look in looks):
        return _Plan(skipped="it is called more than once")
    call = looks[0][0][0]
    found = _layout(*(look[0][1] for look in looks), dims=1 if call.kind != "linear" else None)
    if found is None:
        return _Plan(skipped="no dimension of its input holds the images one after another")
    if call.kind != "conv_transpose":
        return _Plan(*found, kept.get(0))
    if call.groups > 1 and kept:
        return _Plan(skipped="it is a transposed convolution whose groups were cut")
    return _Plan(*found, kept.get(1))


def _layout(one: Tensor, other: Tensor, both: Tensor, *, dims: int | None) -> tuple[int, bool] | None:
    """Returns the dimension in which two images lie, and whether interleaved; ``None`` where they do not."""
    if one.dim() < 2 or one.dim() != both.dim():
        return None
    for dim in range(one.dim() - 1 if dims is None else dims):
        if both.shape[dim] != 2 * one.shape[dim] or one.shape != other.shape:
            continue
        for minor in (False, True) if dims is None else (False,):
            if minor and one.shape[dim] == 1:
                continue
            pair = torch.stack([one, other], dim + minor).flatten(dim, dim + 1)
            if pair.shape == both.shape and torch.allclose(pair, both, rtol=1e-3, atol=1e-4):
                return dim, minor
    return None


class _Calls(TorchFunctionMode):
    """Notes the calls of each weight, and their inputs."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.seen: dict[str, list[tuple[_Call, Tensor]]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = _call_of(func, args, kwargs)
        if found is not None and id(found[2]) in self._names:
            self.seen.setdefault(self._names[id(found[2])], []).append((found[0], found[1]))
        return func(*args, **kwargs)


@dataclass(frozen=True)
class _Residual:
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


class _Residuals(TorchFunctionMode):
    """Finds the additions behind layers: which earlier tensor is added to which layer's output."""

    ADDS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__)

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names, self._count = names, 0
        self._alive: list[Any] = []  # so that no id is given twice
        self._made: dict[int, int] = {}
        self._behind: dict[int, tuple[str, int, Any]] = {}
        self.found: dict[str, _Residual] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        number, self._count = self._count, self._count + 1
        if not isinstance(out, Tensor):
            return out
        self._alive.append(out)
        call = _call_of(func, args, kwargs)
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
                        self.found[name] = _Residual(made, norm)
        self._made[id(out)] = number
        return out


def _residuals(
    model: nn.Module, names: Mapping[int, str], inputs: tuple[Tensor, ...]
) -> dict[str, _Residual]:
    one = tuple(x[:1] for x in inputs)
    with _Residuals(names) as scan:
        model(*one)
    return scan.found


class _Sampler(TorchFunctionMode):
    """Keeps the dense network's outputs of every layer at sampled positions, kept channels only."""

    def __init__(
        self,
        names: Mapping[int, str],
        plans: Mapping[str, _Plan],
        shapes: Mapping[str, torch.Size],
        residuals: Mapping[str, _Residual],
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
        found = _call_of(func, args, kwargs)
        if found is None or id(found[2]) not in self._names:
            return out
        call, name = found[0], self._names[id(found[2])]
        plan = self._plans.get(name, _Plan(skipped="not seen before"))
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


def sampled(x: Tensor, call: _Call, plan: _Plan, images: int, positions: Tensor) -> Tensor:
    """Returns ``[rows, C]``: a tensor of a layer's output shape at some positions of all images."""
    flat = plan.by_image(x, images) if call.kind == "linear" else x.flatten(2).transpose(1, 2)
    return flat[:, positions.to(flat.device)].flatten(0, 1).float()


class _Solver(TorchFunctionMode):
    """Solves every layer when it is called, and goes on with its new weights."""

    def __init__(
        self,
        names: Mapping[int, str],
        sampler: _Sampler,
        layouts: Mapping[str, _Plan],
        residuals: Mapping[str, _Residual],
        images: int,
        ridges: tuple[float, ...],
        norms: bool,
        buffers: Mapping[str, Tensor],
        report: Callable[[RepairedLayer], None],
    ) -> None:
        super().__init__()
        self._names, self._sampler, self._layouts, self._images = names, sampler, layouts, images
        self._ridges, self._norms, self._report = ridges, norms, report
        self._residuals = residuals
        self._wanted = {r.made for r in residuals.values()}
        self._held: dict[int, Tensor] = {}
        self._number = 0
        fixed = {id(r.norm[0]) for r in residuals.values() if r.norm is not None}
        self._buffers = {id(b) for b in buffers.values()}
        self._fixed = fixed
        self.done: set[str] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._norms and func is functional.batch_norm:
            self._estimate(*args, **kwargs)
        found = _call_of(func, args, kwargs)
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

    def _solve(self, name: str, call: _Call, x: Tensor, weight: Tensor, bias: Tensor | None) -> RepairedLayer:
        """Gives a layer its ridge solution, unless that is worse on the held-out images."""
        if call.kind == "linear":
            x = self._layouts[name].by_image(x, self._images)
        train, judge = self._sums(name, call, x, weight)
        start = call.flat(weight).double()
        start = _with_mean(torch.cat([start, torch.zeros_like(start[:, :1])], 1), train)
        before = least = judge.error(start)
        best, chosen = start, math.inf
        for ridge in self._ridges:
            found = _ridge(train, start, ridge)
            if found is not None and (error := judge.error(found)) < least:
                best, chosen, least = found, ridge, error
        if best is not start:
            both = _ridge(train + judge, start, chosen)
            best = best if both is None else both
            weight.copy_(call.shaped(best[:, :-1].to(weight.dtype), weight))
        if bias is not None:
            bias.copy_(best[:, -1].reshape(-1).to(bias.dtype))
        whole = judge.spread
        return RepairedLayer(
            name, math.sqrt(max(0.0, before) / whole), math.sqrt(max(0.0, least) / whole), chosen
        )

    def _sums(self, name: str, call: _Call, x: Tensor, weight: Tensor) -> tuple[_Sums, _Sums]:
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
        halves = (_Sums(groups, unknowns + 1, outs, x.device), _Sums(groups, unknowns + 1, outs, x.device))
        step = max(1, CHUNK // places)
        for half, (lo, hi) in zip(halves, ((0, first), (first, n)), strict=True):
            for at in range(lo, hi, step):
                end = min(at + step, hi)
                patches = call.patches(x[at:end], weight, size, positions).float()
                rows = torch.cat([patches, torch.ones_like(patches[..., :1])], -1)
                half.add(rows, y[at * places : end * places].reshape(-1, groups, outs).transpose(0, 1))
        return halves


class _Sums:
    """What a least-squares problem is solved from: ``S = Σ x xᵀ``, ``R = Σ x yᵀ``, ``Σ y²``, in double precision.

    Args:
        groups: independent problems.
        width: unknowns, the constant last.
        outs: outputs of a group.
        device: of the tensors.
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

    def __add__(self, other: _Sums) -> _Sums:
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


def _ridge(sums: _Sums, start: Tensor, ridge: float) -> Tensor | None:
    """Returns the solution of ``(S + λ)(W − W₀) = R − S W₀``, λ not on the constant; ``None`` where there is none."""
    diagonal = sums.xx.diagonal(dim1=1, dim2=2)
    extra = (ridge * diagonal[:, :-1].mean(1)).clamp_min(1e-12)[:, None].expand_as(diagonal).clone()
    extra[:, -1] = 1e-12
    factor, failed = torch.linalg.cholesky_ex(sums.xx + torch.diag_embed(extra))
    if bool(failed.any()):
        return None
    return start + torch.cholesky_solve(sums.xy - sums.xx @ start, factor)


def _with_mean(weights: Tensor, sums: _Sums) -> Tensor:
    """Returns the weights with the constant that makes the mean error zero."""
    rows = sums.xx[:, -1, -1].clamp_min(1)[:, None]
    constant = (sums.xy[:, -1] - (sums.xx[:, -1:, :-1] @ weights[:, :-1])[:, 0]) / rows
    return torch.cat([weights[:, :-1], constant[:, None]], 1)
