"""Compares two networks' outputs, and proves that an exported graph computes what the network does.

One measure everywhere: the relative L2 error ‖a − b‖₂ / ‖b‖₂ over all outputs of a batch, b the reference;
the worst batch counts. In float32, PyTorch itself is within 1.2e-6 of float64, so 1e-5 tells a fault from
rounding. PyTorch against the exported file shows a fault of the export; masked against compact, a fault of the
pruning, is compared before (``halpiee.structure.verify``).

A graph is proved with a free batch, else with the batch of its inputs. A network that keeps what it made for one batch
(anchors, a grid, a state) has that batch in its graph, or computes something else for others. Its graph is made once
more for the batch of its example inputs, and compared on that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halpiee.errors import HalpieeError, MismatchError, UsageError, said
from halpiee.structure.surroundings import random_states
from halpiee.structure.verification import redraw, relative_l2, silent
from latency.backends.onnxruntime.model import fixed_batch
from latency.backends.torch.modules import batch_of, copy_of, filled, is_batched, tensors_given, tensors_in

if TYPE_CHECKING:
    import onnx


Arrays = list[NDArray[Any]]

ROUNDING = 1e-6
"""Relative L2 difference below which outputs are the same: of the size of float32's rounding."""

OWN = 10
"""How much more than its own rounding in float32 the file of a network may differ that float32 does not determine."""


@dataclass(frozen=True)
class Comparison:
    """How far two networks are apart on some batches.

    Attributes:
        rel_l2: ‖a − b‖₂ / ‖b‖₂ over all outputs of a batch, the worst batch; NaN if an output is not finite.
        max_abs_error: largest |a − b| of all.
        top1_agreement: share of rows (of the first output) whose largest entry is the same one.
        batch_sizes: sizes of the batches, in order.
        tells: whether the reference gives other outputs for other inputs; where it does not (a head whose weights
            are all zero), equal outputs prove nothing.
        rounding: the error of the reference in float32 against float64, where that alone is more than is allowed: the
            rest is then of the same network with other weights.
    """

    rel_l2: float
    max_abs_error: float
    top1_agreement: float
    batch_sizes: tuple[int, ...]
    tells: bool = True
    rounding: float | None = None

    def within(self, tolerance: float) -> bool:
        """Whether the relative error is at most the tolerance; a NaN is not."""
        return self.rel_l2 <= tolerance


def compare(
    checked: Callable[[tuple[Tensor, ...]], Arrays],
    trusted: Callable[[tuple[Tensor, ...]], Arrays],
    batches: Iterable[tuple[Tensor, ...]],
) -> Comparison:
    """Runs both networks on every batch and returns how far they are apart."""
    worst, largest, same, rows = 0.0, 0.0, 0, 0
    sizes = []
    trusted_rows: list[NDArray[Any]] = []
    for inputs in batches:
        a, b = checked(inputs), trusted(inputs)
        error = relative_l2(a, b)
        worst = max(worst, error) if error == error else float("nan")
        for x, y in zip(a, b, strict=True):
            largest = max(largest, float(np.abs(x.astype(np.float64) - y).max(initial=0.0)))
        size = batch_of(tensors_in(inputs)) or 1
        top = [
            np.argmax(x[0].reshape(len(x[0]) if x[0].ndim else 1, -1), axis=1) for x in (a, b) if x[0].size
        ]
        if top:
            same, rows = same + int((top[0] == top[1]).sum()), rows + len(top[0])
        sizes.append(size)
        trusted_rows += _rows(b, size)
        if worst != worst:
            break
    return Comparison(worst, largest, same / max(rows, 1), tuple(sizes), _vary(trusted_rows))


def _rows(arrays: Arrays, size: int) -> list[NDArray[Any]]:
    """Returns the outputs of every input of a batch, all arrays with a row for each together; else of the batch."""
    batched = [x.reshape(size, -1).astype(np.float64) for x in arrays if x.ndim and len(x) == size]
    if not batched:
        return [np.concatenate([x.reshape(-1).astype(np.float64) for x in arrays])]
    return list(np.concatenate(batched, axis=1))


def _vary(rows: list[NDArray[Any]]) -> bool:
    """Returns whether rows differ by more than float32 rounds; of a single one, whether it is not zero."""
    if len({len(row) for row in rows}) != 1:
        return True
    table = np.stack(rows)
    norm = float(np.linalg.norm(table))
    if len(rows) == 1:
        return norm > 0
    return not float(np.linalg.norm(table - table.mean(axis=0))) <= ROUNDING * norm


def random_batches(
    example_inputs: tuple[Any, ...],
    sizes: Sequence[int],
    *,
    seed: int = 0,
    batched: Sequence[bool] | None = None,
    wider: bool = False,
) -> list[tuple[Any, ...]]:
    """Returns one batch of each size: standard normal where the example is floating, else within its range.

    Scalars are drawn between zero and the example's; what is no tensor is as it was.

    Args:
        example_inputs: give shapes (all but the first dimension) and dtypes.
        sizes: batch sizes, each ≥ 1.
        seed: of the batches' own generator.
        batched: for every tensor, whether its first dimension is the batch; by default of all but scalars.
        wider: whether integers that are all the same are drawn between 0 and it, at least 1: token numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = tensors_in(example_inputs)
    free = [x.dim() > 0 for x in tensors] if batched is None else batched
    return [
        filled(
            example_inputs,
            [_drawn(x, size if f else None, generator, wider) for x, f in zip(tensors, free, strict=True)],
        )
        for size in sizes
    ]


def _drawn(example: Tensor, size: int | None, generator: torch.Generator, wider: bool) -> Tensor:
    """Returns a random tensor like an example, with so many entries if a size is given."""
    shape = example.shape if size is None else (size, *example.shape[1:])
    if example.is_floating_point():
        if not example.dim():
            return example * torch.rand((), generator=generator).to(example.dtype)
        return torch.randn(shape, generator=generator)
    low, high = (int(example.min()), int(example.max())) if example.numel() else (0, 0)
    if not example.dim() or (wider and low == high):
        low, high = min(low, 0), max(high, int(bool(example.dim())))
    return torch.randint(low, high + 1, shape, generator=generator).to(example.dtype)


def reference(model: nn.Module) -> nn.Module:
    """Returns a copy of a model to compare with: on the CPU, float32, eval mode; the model is left alone."""
    return copy_of(model).cpu().float().eval()


def outputs(model: nn.Module, inputs: tuple[Any, ...]) -> Arrays:
    """Returns every output tensor of a model as an array, in order."""
    with torch.no_grad():
        found = [x.detach() for x in tensors_given(model(*inputs))]
    return [(x.float() if x.is_floating_point() else x).numpy() for x in found]


def settle(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Gives the batch norms of a model whose weights were redrawn the statistics of its own activations, in place.

    With those of other weights activations grow or vanish from layer to layer, and rounding with them: an SSDlite so
    redrawn was 2.3e-4 from itself in float64, and its export was refused for that.
    """
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        with torch.no_grad():
            model(*random_batches(inputs, (8,))[0])
    except Exception:  # another batch than it takes: the statistics stay as they are
        pass
    for module, training in modes.items():
        module.training = training
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


Build = Callable[[nn.Module, bool], tuple["onnx.ModelProto", int]]
"""Makes a graph of a network, with a free batch or with that of the examples; and counts its lone batch norms."""

Run = Callable[["onnx.ModelProto"], Callable[[tuple[Any, ...]], Arrays]]
"""Makes what runs a graph: inputs → outputs."""


@dataclass(frozen=True)
class Proved:
    """A graph, and how far it is from its network."""

    graph: onnx.ModelProto
    comparison: Comparison
    lone_norms: int
    batch: int | None


def proved(
    build: Build,
    run: Run,
    trusted: nn.Module,
    inputs: tuple[Any, ...],
    sizes: Sequence[int],
    allowed: float,
    seed: int,
    *,
    also: Sequence[tuple[Any, ...]] = (),
) -> Proved:
    """Returns a network's graph with a comparison, which is within what is allowed if there is a graph with such.

    ``build`` makes a graph, ``run`` runs it; they are compared on random batches of ``sizes`` (of a graph with a batch
    of its own, as many of that), and on inputs of the other heights and widths in ``also``.

    Raises:
        UsageError: the network cannot be exported, or its graph cannot be run.
        MismatchError: its outputs are the same for every input, whatever the weights.
    """
    found: Proved | None = None
    failure: Exception | None = None
    for free in (True, False):
        try:
            graph, lone = build(trusted, free)
            batch = fixed_batch(graph)
            taken = tuple(sizes) if batch is None else (batch,) * len(sizes)
            pair = _Pair(build, run, inputs, taken, free, seed, tuple(also))
            comparison = pair.compared(run(graph), trusted)
            if not comparison.tells and comparison.within(allowed):
                comparison = pair.told_apart(graph, trusted)
            elif not comparison.within(allowed):
                comparison = pair.rounded(comparison, trusted, allowed)
        except (
            Exception
        ) as error:  # the exporter, the runtime and the network at other batches raise what they raise
            failure = failure or error
            continue
        this = Proved(graph, comparison, lone, batch)
        if comparison.within(allowed):
            return this
        found = found or this
        if batch is not None:
            break
    if found is not None:
        return found
    assert failure is not None
    if isinstance(failure, HalpieeError):
        raise failure
    raise UsageError(
        f"{type(trusted).__name__} was exported, and the graph was to be compared with it, which raised "
        f"{type(failure).__name__}: {said(failure)}; rewrite what it names, or export a "
        "part of the network"
    ) from failure


@dataclass(frozen=True)
class _Pair:
    """A network and its graph side by side."""

    build: Build
    run: Run
    inputs: tuple[Any, ...]
    sizes: tuple[int, ...]
    free: bool
    seed: int
    also: tuple[tuple[Any, ...], ...] = ()

    def compared(
        self, checked: Callable[[tuple[Any, ...]], Arrays], network: nn.Module, *, wider: bool = False
    ) -> Comparison:
        """Returns how far what runs something is from the network, on random batches."""
        tensors = tensors_in(self.inputs)
        batched = [is_batched(x, batch_of(tensors)) for x in tensors]
        how: dict[str, Any] = {"seed": self.seed, "batched": batched, "wider": wider}
        trusted = lambda x: outputs(network, x)  # noqa: E731
        found = compare(checked, trusted, random_batches(self.inputs, self.sizes, **how))
        # outputs of other sizes do not say whether those of one size hang on the input
        for inputs in self.also:
            one = compare(checked, trusted, random_batches(inputs, self.sizes[:2], **how))
            worse = not one.within(found.rel_l2)
            found = replace(
                found,
                rel_l2=one.rel_l2 if worse else found.rel_l2,
                max_abs_error=max(found.max_abs_error, one.max_abs_error),
            )
        return found

    def told_apart(self, graph: onnx.ModelProto, trusted: nn.Module) -> Comparison:
        """Compares them where outputs differ: for other integers, or with weights that let something through."""
        try:
            result = self.compared(self.run(graph), trusted, wider=True)
        except Exception:  # integers that the network does not take
            pass
        else:
            if result.tells:
                return result
        for names in (silent(trusted), [name for name, _ in trusted.named_parameters()]):
            result = self._redrawn(trusted, names)
            if result.tells:
                return result
        raise MismatchError(
            f"{type(trusted).__name__} was to be exported and gives the same outputs for every input, with other "
            "weights too, so that equal outputs of the file would prove nothing; export a network whose outputs hang "
            "on its inputs"
        )

    def rounded(self, found: Comparison, trusted: nn.Module, allowed: float) -> Comparison:
        """Returns the comparison with other weights where rounding alone is more than is allowed; else what was found.

        What runs such a network in float32 rounds elsewhere than PyTorch, and its outputs say nothing of the graph.
        """
        double = copy_of(trusted).double()

        def precise(inputs: tuple[Any, ...]) -> Arrays:
            cast = [x.double() if x.is_floating_point() else x for x in tensors_in(inputs)]
            return outputs(double, filled(inputs, cast))

        try:
            own = self.compared(precise, trusted).rel_l2
        except Exception:  # a network that takes no float64
            return found
        if own <= allowed or not found.within(OWN * own):
            return found
        result = self._redrawn(trusted, [name for name, _ in trusted.named_parameters()])
        return replace(result, rounding=own) if result.tells and result.within(allowed) else found

    def _redrawn(self, trusted: nn.Module, names: Collection[str]) -> Comparison:
        """Returns how far a network with some parameters drawn anew is from its graph."""
        other = copy_of(trusted)
        redraw(other, names, self.seed)
        settle(other, self.inputs)
        return self.compared(self.run(self.build(other, self.free)[0]), other)


def written_shapes(names: Sequence[str], tensors: Sequence[Tensor]) -> str:
    """Returns what a file says of its inputs: ``image=3x128x128 depth=1x128x128``, without the batch."""
    sizes = ["x".join(map(str, x.shape[1:])) or "1" for x in tensors]
    return " ".join(f"{name}={size}" for name, size in zip(names, sizes, strict=True))


OTHERS: tuple[Callable[[int, int], tuple[int, int]], ...] = (
    lambda h, w: (h + 64, w + 32),
    lambda h, w: (h + 32, w + 96),
    lambda h, w: (2 * h, 3 * w),
    lambda h, w: (2 * h, 2 * w),
    lambda h, w: (h // 2, w),
)
"""Sizes beside that of the examples, height and width apart, that a network is tried on: multiples of 32 first."""


def other_sizes(model: nn.Module, inputs: tuple[Any, ...], most: int = 2) -> list[tuple[Any, ...]]:
    """Returns example inputs of other heights and widths on which a network runs, all images by one factor.

    Raises:
        UsageError: it runs on none, or there is no image among the inputs.
    """
    tensors = tensors_in(inputs)
    images = [x for x in tensors if x.dim() == 4]
    if not images:
        raise UsageError(
            "a free height and width was asked of a network without an input [N, C, H, W]; leave it out"
        )
    h, w = images[0].shape[2:]
    found: list[tuple[Any, ...]] = []
    why = ""
    for size in (one(h, w) for one in OTHERS):
        drawn = [
            x
            if x.dim() != 4
            else torch.randn(*x.shape[:2], x.shape[2] * size[0] // h, x.shape[3] * size[1] // w)
            for x in tensors
        ]
        candidate = filled(inputs, drawn)
        try:
            with torch.no_grad(), random_states():
                model(*candidate)
        except Exception as error:  # whatever the model raises
            why = why or f"{'×'.join(map(str, size))}: {said(error, 160)}"
            continue
        found.append(candidate)
        if len(found) == most:
            break
    if not found:
        raise UsageError(
            f"a free height and width was asked of {type(model).__name__}, which runs on {h}×{w} and on no other size "
            f"that was tried ({why}); leave it out, and export one file for each size"
        )
    return found


def image_size(inputs: tuple[Any, ...]) -> tuple[int, int]:
    """Returns height and width of the first image among inputs."""
    first = next(x for x in tensors_in(inputs) if x.dim() == 4)
    return int(first.shape[2]), int(first.shape[3])
