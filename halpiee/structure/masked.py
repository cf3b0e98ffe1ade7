"""The same network without the removed units, in the shapes of the full one; the proof that both are equal.

Rows of removed units, their affine and the columns that read them are 0. A norm over channels sees the kept
ones only. The output equals the shrunk model's exactly, in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from halpiee.errors import MismatchError
from halpiee.structure.calls import random_like, tensors_of
from halpiee.structure.groups import Structure
from halpiee.structure.heads import unnested
from halpiee.structure.kept_norm import watch_norms
from halpiee.structure.shrink import alive_of, check_shapes, shrink
from halpiee.structure.stored import forgotten
from latency.copies import copy_of

__all__ = ["masked", "relative_error", "verify"]


def masked(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> nn.Module:
    """Returns a copy of the same shapes whose outputs are those of ``shrink(model, structure, keep)``.

    Args:
        model: the traced model.
        structure: its structure.
        keep: group name → BoolTensor ``[size]``; a missing group is kept whole.

    Raises:
        StructureError: the keep does not fit the structure, or the model is not the traced one.
    """
    alive = structure.keep_vector(keep)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    check_shapes(tensors, structure.details["shapes"])
    full = copy_of(model)
    copies = dict(full.named_parameters()) | dict(full.named_buffers())
    with torch.no_grad():
        for slot in structure.slots:
            stays = alive_of(alive, slot.units)
            if (
                stays.all()
                or slot.kind == "parameter"
                or slot.tensor.endswith((".running_mean", ".running_var"))
            ):
                continue
            index = torch.from_numpy(np.flatnonzero(~stays)).to(copies[slot.tensor].device)
            copies[slot.tensor].index_fill_(slot.dim, index, 0)
    kept: dict[str, dict[int, Tensor]] = {}
    for norm in structure.details["norms"]:
        stays = alive_of(alive, norm.units)
        if not stays.all():
            kept.setdefault(norm.module, {})[stays.size] = torch.from_numpy(np.flatnonzero(stays))
    for path, channels in kept.items():
        watch_norms(full.get_submodule(path), channels)
    unnested(full)
    forgotten(full, structure.details["stored"])
    return full


def relative_error(a: Any, b: Any) -> float:
    """Returns ‖a − b‖₂ / ‖b‖₂ over all tensors of two nested outputs, in double precision.

    It is infinite where the two differ in number, in shape, or in which elements are not finite.
    """
    left, right = tensors_of(a), tensors_of(b)
    if len(left) != len(right) or any(x.shape != y.shape for x, y in zip(left, right, strict=True)):
        return float("inf")
    difference = norm = 0.0
    for x, y in zip(left, right, strict=True):
        x, y = x.detach().double(), y.detach().double()
        finite = torch.isfinite(x) & torch.isfinite(y)
        if not torch.equal(torch.isfinite(x), torch.isfinite(y)):
            return float("inf")
        difference += float((x - y)[finite].square().sum())
        norm += float(y[finite].square().sum())
    if norm == 0:
        return 0.0 if difference == 0 else float("inf")
    return float((difference / norm) ** 0.5)


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

    Beside the comparison of an exported file with PyTorch it tells faults apart: this one is of the pruning.

    Args:
        model: the traced model; it stays as it is.
        structure: its structure.
        keep: what stays.
        example_inputs: inputs whose shapes and types the random ones take; integers are used as they are. Both
            models run where they lie.
        compact: what was made of the model, if not ``shrink`` is to be asked for it; it stays as it is.
        sizes: batch sizes to try, of tensors ``[N, …]``; none: the example's own.
        tolerance: largest relative error allowed.
        seed: seed of the random inputs.

    Returns:
        The relative error ‖masked − compact‖₂ / ‖compact‖₂ over all outputs, of the worst batch. Where the
        forward picks by values (the post-processing of a detector), a last bit may decide, so the layers before
        it are compared instead: those of which no output channel is prunable.

    Raises:
        MismatchError: the two differ by more than the tolerance.
    """
    generator = torch.Generator().manual_seed(seed)
    full = masked(model, structure, keep).eval()
    compact = (shrink(model, structure, keep) if compact is None else copy_of(compact)).eval()
    places = [x.device for x in tensors_of(example_inputs)]
    if places:
        full, compact = full.to(places[0]), compact.to(places[0])
    heads = head_names(structure) if structure.details["real"] else []
    error = 0.0
    for example in [resized(example_inputs, size) for size in sizes] or [example_inputs]:
        inputs = random_like(example, generator)
        found = relative_error(outputs(full, inputs, heads), outputs(compact, inputs, heads))
        error = max(error, found) if found == found else found
    if not error <= tolerance:
        removed = [name for name, mask in keep.items() if not bool(mask.all())]
        raise MismatchError(
            f"the compact model was to equal the masked one within {tolerance:g}, the relative error is "
            f"{error:.3g}: a fault of the pruning, not of an export; keep these groups whole one after the other "
            "to find the one at fault: "
            f"{', '.join(removed[:8])}{' …' if len(removed) > 8 else ''}",
            error,
        )
    return error


def resized(example_inputs: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    """Returns inputs of another batch size: the examples' rows again and again."""
    return tuple(
        x[torch.arange(size, device=x.device) % len(x)] if isinstance(x, Tensor) and x.dim() else x
        for x in example_inputs
    )


def head_names(structure: Structure) -> list[str]:
    """Returns the modules of the layers whose output channels all stay."""
    return [
        layer.name
        for layer in structure.layers
        if not any(structure.by_name[name].prunable for name, _ in layer.out_groups) and "#" not in layer.name
    ]


def outputs(model: nn.Module, inputs: tuple[Any, ...], heads: list[str]) -> Any:
    """Returns the model's outputs, or, where heads are given, the outputs of every call of them."""
    modules = dict(model.named_modules())
    found: list[Tensor] = []
    handles = [
        modules[name].register_forward_hook(lambda m, i, o: found.extend(t.detach() for t in tensors_of(o)))
        for name in heads
        if name in modules
    ]
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        # the fused kernel of an encoder writes 0 at padded places, where its modules write what they compute
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad():
            result = model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return found if handles else result
