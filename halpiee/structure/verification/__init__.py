"""Proves that a cut is exact: compares compact and masked network on inputs and weights that reveal a fault.

Two runs from one seed draw the same noise as long as they draw the same shapes. Where a network draws noise for
channels of which the other has fewer, each draw is made once, without the dimensions in which the two differ, and
expanded.

Equal outputs prove nothing where the outputs depend on no input. A head that begins at zero (torchvision's ViT), a
branch whose last norm does (``zero_init_residual``) or is scaled by 1e-6 (LayerScale) lets nothing through. Such
weights are drawn anew, on both sides alike, and the networks are compared once more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from halpiee.errors import MismatchError
from halpiee.structure.groups import Structure
from halpiee.structure.records import random_like, tensors_of, with_tensors
from halpiee.structure.shrink import kept_positions, masked, shrink, sliced
from halpiee.structure.surroundings import random_states
from latency.backends.torch.modules import copy_of

ROUNDING = 1e-6
"""Relative L2 difference below which the outputs of two inputs are the same: of the size of float32's rounding."""


def relative_l2(a: Sequence[NDArray[Any]], b: Sequence[NDArray[Any]]) -> float:
    """Returns ‖a − b‖₂ / ‖b‖₂ over all arrays together, summed in float64; 0/0 is 0, b is the reference.

    Raises:
        MismatchError: the numbers of arrays or their shapes differ.
    """
    shapes = [[x.shape for x in arrays] for arrays in (a, b)]
    if shapes[0] != shapes[1]:
        raise MismatchError(
            f"outputs of the shapes {shapes[0]} were compared with {shapes[1]}; "
            "both networks must give the same"
        )
    error = sum(float(np.square(x.astype(np.float64) - y).sum()) for x, y in zip(a, b, strict=True))
    norm = sum(float(np.square(y.astype(np.float64)).sum()) for y in b)
    if error == 0:
        return 0.0
    return float(np.sqrt(error) / np.sqrt(norm)) if norm else float("inf")


def relative_error(a: Any, b: Any) -> float:
    """Returns ``relative_l2`` over all tensors of two nested outputs, elements that are not finite left out.

    It is infinite where the two differ in number, in shape, or in which elements are not finite.
    """
    left, right = ([x.detach().double().cpu().numpy() for x in tensors_of(value)] for value in (a, b))
    if [x.shape for x in left] != [y.shape for y in right]:
        return float("inf")
    finite = [np.isfinite(x) for x in left]
    if any(not np.array_equal(known, np.isfinite(y)) for known, y in zip(finite, right, strict=True)):
        return float("inf")
    return relative_l2(*([x[known] for x, known in zip(side, finite, strict=True)] for side in (left, right)))


def verify(
    model: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    example_inputs: tuple[Any, ...],
    *,
    compact: nn.Module | None = None,
    sizes: Sequence[int] = (),
    tolerance: float = 1e-5,
    seed: int = 0,
) -> float:
    """Runs the masked and the compact model on random inputs and refuses a difference.

    A difference here is a fault of the pruning; one between an exported file and PyTorch is a fault of the export.

    Args:
        model: the traced model; it stays as it is.
        structure: its structure.
        keep: what stays.
        example_inputs: inputs whose shapes, types and device the random ones have; integers are used as they are.
        compact: the pruned model, by default that of ``shrink``; it stays as it is.
        sizes: batch sizes to try, of tensors ``[N, …]``; none: the example's own.
        tolerance: largest relative error allowed.
        seed: seed of the random inputs, and of the noise that the models draw.

    Returns:
        The relative error ‖masked − compact‖₂ / ‖compact‖₂ over all outputs, of the worst batch. Where the
        forward selects by values (the post-processing of a detector), rounding may decide, so the outputs of the
        layers before it are compared instead: those without a prunable output channel. Where weights hide the network
        (``silent``), both are compared once more with others in their place.

    Raises:
        MismatchError: the two differ by more than the tolerance, or their outputs are the same for every input and
            all weights, so that equal outputs prove nothing.
    """
    examples = [resized(example_inputs, size) for size in sizes] or [example_inputs]
    heads = []  # layers whose output channels are all kept, compared where the forward selects by values
    if structure.details["real"]:
        groups = {layer.name: layer.out_groups for layer in structure.layers if "#" not in layer.name}
        heads = [n for n, refs in groups.items() if not any(structure.by_name[g].prunable for g, _ in refs)]
    given = compact is not None
    compact = shrink(model, structure, keep) if compact is None else copy_of(compact)
    pair = Pair(masked(model, structure, keep), compact, heads, seed)
    error = pair.error(examples)
    refuse(error, tolerance, keep)
    blind = not pair.distinguishes(example_inputs) and not moved_by_the_cut(
        model, structure, keep, example_inputs, pair
    )
    hiding = silent(model)
    every = [name for name, _ in model.named_parameters()] if blind else []
    for names in filter(None, (hiding, every)):
        other = copy_of(model)
        values = redraw(other, names, seed)
        if given:
            copy_into(compact, values, structure, keep)
        else:
            compact = shrink(other, structure, keep)
        pair = Pair(masked(other, structure, keep), compact, heads, seed)
        again = pair.error(examples)
        refuse(again, tolerance, keep)
        error = max(error, again)
        if not blind or pair.distinguishes(example_inputs):
            return error
    if blind:
        raise MismatchError(
            "the compact model was to be compared with the masked one, but the outputs are the same for every input, "
            "with other weights too: equal outputs prove nothing; return what hangs on the inputs, or give example "
            "inputs that the network does not ignore"
        )
    return error


def moved_by_the_cut(
    model: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    example_inputs: tuple[Any, ...],
    pair: Pair,
) -> bool:
    """Returns whether the outputs depend on the weights that are cut, though on no input (a class token read alone)."""
    kept = kept_positions(structure, structure.keep_vector(keep))
    other = copy_of(model)
    redraw(other, [*kept], pair.seed)
    drawn = Pair(masked(other, structure, keep), pair.compact, pair.heads, pair.seed)
    found = drawn_alike(
        lambda: outputs(drawn.placed(example_inputs).full, example_inputs, pair.heads),
        lambda: outputs(pair.placed(example_inputs).full, example_inputs, pair.heads),
        seed=pair.seed,
    )
    return not relative_error(*found) <= ROUNDING


@dataclass
class Pair:
    """The masked and the compact model, run side by side."""

    full: nn.Module  # the masked model
    compact: nn.Module  # the compact one
    heads: list[str]  # modules whose outputs are compared; none: the models' own
    seed: int  # of the inputs and of the models' noise

    def error(self, examples: Sequence[tuple[Any, ...]]) -> float:
        """Returns the largest relative error on random inputs of the same shapes."""
        generator = torch.Generator().manual_seed(self.seed)
        worst = 0.0
        self.placed(examples[0])
        for example in examples:
            inputs = random_like(example, generator)
            found = relative_error(
                *drawn_alike(
                    lambda x=inputs: outputs(self.full, x, self.heads),  # type: ignore[misc]
                    lambda x=inputs: outputs(self.compact, x, self.heads),  # type: ignore[misc]
                    seed=self.seed,
                )
            )
            worst = max(worst, found) if found == found else found
        return worst

    def distinguishes(self, example: tuple[Any, ...]) -> bool:
        """Returns whether the outputs depend on the inputs; integers are permuted where the model takes it."""
        self.placed(example)
        generator = torch.Generator().manual_seed(self.seed + 1)
        one, other = random_like(example, generator), random_like(example, generator)

        def differ(other: Any) -> bool:
            both = (partial(outputs, self.full, x, self.heads) for x in (one, other))
            return not relative_error(*drawn_alike(*both, seed=self.seed)) <= ROUNDING

        try:
            return differ(with_tensors(other, rolled))
        except Exception:  # integers may have an order, as offsets and lengths do
            return differ(other)

    def placed(self, example: tuple[Any, ...]) -> Pair:
        """Returns the pair, in eval mode and on the example's device."""
        places = [x.device for x in tensors_of(example)]
        for model in (self.full.eval(), self.compact.eval()):
            if places:
                model.to(places[0])
        return self


def rolled(x: Tensor) -> Tensor:
    """Returns a tensor of integers with its elements moved on by one place, any other as it is."""
    return x if x.is_floating_point() or not x.dim() else x.flatten().roll(1).view_as(x)


def copy_into(
    compact: nn.Module, values: Mapping[str, Tensor], structure: Structure, keep: Mapping[str, Tensor]
) -> None:
    """Copies the kept parts of a model's parameters into its compact one; a MismatchError where it names others."""
    kept = kept_positions(structure, structure.keep_vector(keep))
    own = dict(compact.named_parameters())
    for name, value in values.items():
        left = sliced(value, kept.get(name, {}))
        if name not in own or own[name].shape != left.shape:
            raise MismatchError(
                f"the weights of {name!r} let nothing of the network through to its outputs, which then prove nothing, "
                "and the compact model that was given has no such parameter to draw anew; train the network or "
                "draw these weights before it is cut"
            )
        with torch.no_grad():
            own[name].copy_(left)


def refuse(error: float, tolerance: float, keep: Mapping[str, Tensor]) -> None:
    """Refuses an error above the tolerance."""
    if not error <= tolerance:
        removed = [name for name, mask in keep.items() if not bool(mask.all())]
        raise MismatchError(
            f"the compact model was to equal the masked one within {tolerance:g}, the relative error is "
            f"{error:.3g}: a fault of the pruning, not of an export; keep these groups whole one after the other "
            "to find the one at fault: "
            f"{', '.join(removed[:8])}{' …' if len(removed) > 8 else ''}",
            error,
        )


def resized(example_inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Returns inputs of another batch size: the examples' rows again and again."""
    return tuple(
        x[torch.arange(size, device=x.device) % len(x)] if isinstance(x, Tensor) and x.dim() else x
        for x in example_inputs
    )


def outputs(model: nn.Module, inputs: tuple[Any, ...], heads: list[str]) -> Any:
    """Returns the model's outputs; where heads are given, the outputs of every call of a head."""
    modules = dict(model.named_modules())
    found: list[Tensor] = []
    handles = [
        modules[name].register_forward_hook(lambda m, i, o: found.extend(t.detach() for t in tensors_of(o)))
        for name in heads
        if name in modules
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # the fused kernel of an encoder writes 0 at padded positions, its modules do not
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            result = model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return found if handles else result


LIKE = frozenset({"rand_like", "randn_like", "randint_like", "bernoulli"})
"""Ops that draw a tensor of another one's shape."""


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes of random draws, or draws in the shapes that two networks share, and expands.

    ``shared`` holds for every draw its shape with 1 where the two networks differ, or None where they draw alike.
    """

    def __init__(self, seed: int, shared: list[tuple[int, ...] | None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed, self.shared = seed, shared
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op; one that draws returns the shared values."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        place = len(self.shapes)
        shape = self.shared[place] if self.shared is not None and place < len(self.shared) else None
        if self.shared is not None:
            torch.manual_seed(self.seed + place)
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensor = out if isinstance(out, Tensor) else None
        self.shapes.append(() if tensor is None else tuple(tensor.shape))
        if tensor is None or shape is None or len(shape) != tensor.dim():
            return out
        torch.manual_seed(self.seed + place)
        if name.endswith("_") or name in LIKE:
            small = args[0]
            for dim, size in enumerate(shape):
                small = small if small.shape[dim] == size else small.narrow(dim, 0, 1)
            small = func(small.clone(), *args[1:], **kwargs)
        else:
            sizes = [list(shape) if isinstance(a, list | tuple) else a for a in args]
            small = func(*sizes, **kwargs)
        return tensor.copy_(small.expand_as(tensor))


def drawn_alike(one: Callable[[], Any], other: Callable[[], Any], *, seed: int) -> tuple[Any, Any]:
    """Returns the outputs of two networks, run from one random state of torch, NumPy and Python; it is restored."""
    with random_states():
        noted = [Draws(seed), Draws(seed)]
        found = run(one, noted[0]), run(other, noted[1])
        if noted[0].shapes == noted[1].shapes or len(noted[0].shapes) != len(noted[1].shapes):
            return found
        pairs = zip(noted[0].shapes, noted[1].shapes, strict=True)
        shared = [
            tuple(m if m == n else 1 for m, n in zip(a, b, strict=True)) if len(a) == len(b) else None
            for a, b in pairs
        ]
        return run(one, Draws(seed, [*shared])), run(other, Draws(seed, [*shared]))


def run(network: Callable[[], Any], draws: Draws) -> Any:
    """Runs a network from the seed."""
    torch.manual_seed(draws.seed)
    random.seed(draws.seed)
    np.random.seed(draws.seed % 2**32)
    with draws:
        return network()


SILENT = 1e-4
"""Largest weight of a parameter that lets next to nothing through: LayerScale begins at 1e-4 … 1e-6."""


def silent(model: nn.Module) -> list[str]:
    """Returns the names of the parameters, other than biases, that let next to nothing through."""
    return [
        name
        for name, p in model.named_parameters()
        if p.is_floating_point()
        and p.numel()
        and not name.endswith("bias")
        and float(p.detach().abs().max()) <= SILENT
    ]


def redraw(model: nn.Module, names: Collection[str], seed: int) -> dict[str, Tensor]:
    """Draws parameters anew, in place: 0.5 … 1.5 for a scale, normal of the size √(1 / inputs) for a weight.

    Returns name → new value.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name not in names or not p.is_floating_point():
                continue
            if p.dim() < 2 or p.numel() == max(p.shape):
                value = torch.rand(p.shape, generator=generator) + 0.5
            else:
                value = torch.randn(p.shape, generator=generator) * (p.shape[0] / p.numel()) ** 0.5
            p.copy_(value)
            drawn[name] = p.detach().clone()
    return drawn
