"""Takes units out of a model, exactly: the compact network, and the masked one that computes the same at full size.

Only copies are made; the model, its gradients and its optimizer stay as they are. In the masked network the rows of
removed units, their affine and the columns that read them are 0, and a norm over channels sees the kept ones only. Its
output equals the compact one's exactly, in exact arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from halpiee.errors import StructureError, need
from halpiee.structure.groups import Structure
from halpiee.structure.labels import Atoms
from halpiee.structure.modules import adapted, emptied, unnested, watch_norms
from halpiee.structure.state import Stored, restore
from latency.backends.torch.modules import copy_of

Kept = dict[str, dict[int, Tensor]]
"""Tensor name → dimension → int64 indices of the positions that stay."""

Number = tuple[str, str, int | None, int]
"""A number that a module holds: module path, attribute, index into it or None, value."""


def keep_first(structure: Structure, counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Returns the keep of the first units of every group in ``counts``: the latency does not depend on which."""
    return {g.name: torch.arange(g.size) < counts[g.name] for g in structure.prunable if g.name in counts}


@overload
def shrink(
    model: nn.Module, structure: Structure, keep: Mapping[str, Tensor], optimizer: None = None
) -> nn.Module: ...
@overload
def shrink(
    model: nn.Module, structure: Structure, keep: Mapping[str, Tensor], optimizer: Optimizer
) -> tuple[nn.Module, Optimizer]: ...
def shrink(
    model: nn.Module, structure: Structure, keep: Mapping[str, Tensor], optimizer: Optimizer | None = None
) -> nn.Module | tuple[nn.Module, Optimizer]:
    """Returns the model without the removed units.

    Args:
        model: the traced model, or another one of the same shapes.
        structure: its structure.
        keep: group name → BoolTensor ``[size]``; a missing group is kept whole.
        optimizer: an optimizer over the model's parameters; it comes back as a new one of the same class over
            the new parameters, every state tensor of a parameter's shape sliced alike.

    Returns:
        The new model, and the new optimizer where one was given.

    Raises:
        StructureError: the keep does not fit the structure, the model is not the traced one, or the optimizer
            has state that cannot be sliced.
    """
    need_both(model, structure)
    cut, details = cut_for(structure, keep), structure.details
    if optimizer is not None:
        need(optimizer, Optimizer, "an optimizer", "give the one that trains the model")
        own = {id(p) for p in model.parameters()}
        if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
            raise StructureError(
                f"the {type(optimizer).__name__} that was given trains no parameter of this model; give the one over "
                "its model.parameters(), or shrink without and make a new one"
            )
    return apply_kept(model, cut.kept, cut.attributes, details["shapes"], optimizer, details["stored"])


def need_both(model: object, structure: object) -> None:
    """Refuses what is no model or no structure."""
    need(model, nn.Module, "a model", "give the network itself, with its weights loaded")
    need(structure, Structure, "a structure", "give what halpiee.trace(model, inputs) returns")


def alive_of(alive: NDArray[np.bool_], units: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns whether the unit of each position stays; positions of no unit (−1) always do."""
    return np.where(units < 0, True, alive[units] if alive.size else True)


def kept_positions(structure: Structure, alive: NDArray[np.bool_]) -> Kept:
    """Returns the positions that stay, for every tensor dimension that loses some."""
    return kept_in(((slot.tensor, slot.dim, slot.units) for slot in structure.slots), alive)


def kept_in(slots: Iterable[tuple[str, int, NDArray[np.int64]]], alive: NDArray[np.bool_]) -> Kept:
    """Returns the positions that stay, given the unit of each position as (tensor, dimension, units)."""
    kept: Kept = {}
    for tensor, dim, units in slots:
        stays = alive_of(alive, units)
        if not stays.all():
            kept.setdefault(tensor, {})[dim] = torch.from_numpy(np.flatnonzero(stays))
    return kept


def apply_kept(
    model: nn.Module,
    kept: Kept,
    attributes: Iterable[Number],
    shapes: Mapping[str, tuple[int, ...]],
    optimizer: Optimizer | None = None,
    stored: Iterable[Stored] = (),
) -> nn.Module | tuple[nn.Module, Optimizer]:
    """Copies a dense model, of these shapes, with its tensors sliced, its numbers set and nothing stored on modules."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    check_shapes(tensors, shapes)
    if optimizer is not None:
        check_state(optimizer, {id(t): name for name, t in tensors.items() if name in kept})
    memo: dict[int, Any] = {id(tensors[name]): sliced(tensors[name], dims) for name, dims in kept.items()}
    state_memo = dict(memo)
    for parameter, state in optimizer.state.items() if optimizer is not None else ():
        dims = next((d for n, d in kept.items() if tensors[n] is parameter), {})
        for value in state.values():
            if isinstance(value, Tensor) and dims and value.shape == parameter.shape:
                state_memo[id(value)] = sliced(value, dims)
    compact = copy_of(model, memo)
    modules = dict(compact.named_modules())
    for path, name, at, value in attributes:
        if path in modules:
            set_number(modules[path], name, at, value)
    emptied(compact)
    adapted(compact)
    restore(compact, stored)
    if optimizer is None:
        return compact
    return compact, copied_optimizer(optimizer, model, compact, state_memo)


def check_shapes(tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses a model that is not the traced one, naming the first layer that differs."""
    for name, shape in shapes.items():
        layer = name.rpartition(".")[0] or name
        if name not in tensors:
            raise StructureError(
                f"the structure names {name!r}, which this model does not have (layer {layer!r}); "
                "use the model that was traced, or trace this one"
            )
        if tuple(tensors[name].shape) != tuple(shape):
            raise StructureError(
                f"the layer {layer!r} does not fit: {name!r} was {list(shape)} when traced and is "
                f"{list(tensors[name].shape)} here; use the model that was traced, or trace this one"
            )


def sliced(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """Returns a new tensor of the given positions; a parameter stays one, and its gradient is cut alike."""
    with torch.no_grad():
        data = tensor.detach()
        for dim, index in dims.items():
            data = data.index_select(dim, index.to(tensor.device))
        last = torch.channels_last
        if data.dim() == 4 and tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous():
            data = data.contiguous(memory_format=last)
        if not isinstance(tensor, nn.Parameter):
            return data
        result = nn.Parameter(data, requires_grad=tensor.requires_grad)
        if tensor.grad is not None:
            result.grad = sliced(tensor.grad, dims)
        return result


def holds_number(module: nn.Module, name: str, at: int | None) -> bool:
    """Whether an attribute of a module, or its item at an index, is a whole number."""
    found = getattr(module, name, None)
    if at is not None:
        if not isinstance(found, tuple | list) or at >= len(found):
            return False
        found = found[at]
    return isinstance(found, int) and not isinstance(found, bool)


def set_number(module: nn.Module, name: str, at: int | None, value: int) -> None:
    """Sets a number that a module holds, or one item of a tuple it holds."""
    if at is None:
        setattr(module, name, value)
    else:
        numbers = list(getattr(module, name))
        numbers[at] = value
        setattr(module, name, tuple(numbers))


def check_state(optimizer: Optimizer, names: Mapping[int, str]) -> None:
    """Refuses optimizer state that has neither its parameter's shape nor one element."""
    for parameter, state in optimizer.state.items():
        name = names.get(id(parameter))
        if name is None:
            continue
        for key, value in state.items():
            if isinstance(value, Tensor) and value.shape != parameter.shape and value.numel() != 1:
                raise StructureError(
                    f"{type(optimizer).__name__} keeps {key!r} of shape {list(value.shape)} for {name!r} of "
                    f"shape {list(parameter.shape)}, which cannot be sliced with it; shrink without the "
                    "optimizer and create a new one, or train with an optimizer whose state has the "
                    "parameter's shape"
                )


def copied_optimizer(
    optimizer: Optimizer, model: nn.Module, compact: nn.Module, memo: dict[int, Any]
) -> Optimizer:
    """Returns an optimizer of the same class over the compact model, groups, order and settings as they were.

    Parameters that are not the model's stay the same objects. Hooks are not copied: they belong to the old one.
    """
    memo = dict(memo)
    for old, new in zip(model.parameters(), compact.parameters(), strict=True):
        memo[id(old)] = new
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            memo.setdefault(id(parameter), parameter)
    copied = copy_of(optimizer, memo)
    for name, value in vars(optimizer).items():
        if name not in vars(copied):
            setattr(copied, name, value)
    return copied


def masked(model: nn.Module, structure: Structure, keep: Mapping[str, Tensor]) -> nn.Module:
    """Returns a copy of the same shapes whose outputs are those of ``shrink(model, structure, keep)``.

    Args:
        model: the traced model.
        structure: its structure.
        keep: group name → BoolTensor ``[size]``; a missing group is kept whole.

    Raises:
        StructureError: the keep does not fit the structure, or the model is not the traced one.
    """
    need_both(model, structure)
    alive = structure.keep_vector(keep)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    check_shapes(tensors, structure.details["shapes"])
    full = copy_of(model)
    copies = dict(full.named_parameters()) | dict(full.named_buffers())
    with torch.no_grad():
        for slot in structure.slots:
            stays = alive_of(alive, slot.units)
            statistic = slot.tensor.endswith((".running_mean", ".running_var"))
            if stays.all() or slot.kind == "parameter" or statistic:
                continue
            index = torch.from_numpy(np.flatnonzero(~stays)).to(copies[slot.tensor].device)
            copies[slot.tensor].index_fill_(slot.dim, index, 0)
    kept: dict[str, dict[int, tuple[int, Tensor]]] = {}
    for norm in structure.details["norms"]:
        stays = alive_of(alive, norm.units)
        if not stays.all():
            channels = norm.dim, torch.from_numpy(np.flatnonzero(stays))
            kept.setdefault(norm.module, {})[norm.number] = channels
    for path, seen in kept.items():
        watch_norms(full.get_submodule(path), seen)
    unnested(full)
    restore(full, structure.details["stored"])
    return full


@dataclass(frozen=True)
class Cut:
    """A keep, as positions of tensors and as numbers of modules."""

    n_units: int  # number of units of the structure; unit u is atom u + 1
    alive: NDArray[np.bool_]  # which units stay
    # tensor name → dimension → unit of each position that stays, −1 for none
    units: dict[str, dict[int, Atoms]]
    kept: Kept
    attributes: list[Number]


def cut_for(structure: Structure, keep: Mapping[str, Tensor]) -> Cut:
    """Returns the cut that a keep means."""
    alive = structure.keep_vector(keep)
    units: dict[str, dict[int, Atoms]] = {}
    for slot in structure.slots:
        units.setdefault(slot.tensor, {})[slot.dim] = slot.units[alive_of(alive, slot.units)]
    numbers = [
        (a.module, a.name, a.at, int(alive_of(alive, a.units).sum()) * a.mul // a.div)
        for a in structure.details["attributes"]
    ]
    return Cut(structure.n_units, alive, units, kept_positions(structure, alive), numbers)
