"""Filters as units: one output channel of one convolution, and the batch norm behind it.

Filters are not coupled: each convolution is ranked and pruned by itself, as filter pruning does (Li et al. 2017;
Lubana & Dick 2021). What becomes of the channels of the network follows from it: a channel is gone when all filters
that write to it are, see ``Filters.channels``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from halpiee.errors import StructureError
from halpiee.inputs import called, ordered
from halpiee.sparsity.granularity import evaluated, order_of_use
from halpiee.sparsity.granularity import example_input as _example_input
from halpiee.sparsity.mask import chosen_names, computed_weight
from halpiee.structure.groups import Structure

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = nn.modules.batchnorm._BatchNorm


class Filters:
    """Every output filter of every convolution is a unit, named by its convolution's module path.

    Scores are those of the convolution's weight, and of a gate on the whole filter (``gate``) those of the norm behind
    it, whose path ``norms`` holds. A weight that several convolutions share is one set of filters, under the first
    path; biases and norms of the others belong to it. A norm belongs to a filter when its input *is* the convolution's
    output, as one forward pass shows on ``example_input``, by default of a usual shape; a norm behind a sum is not
    changed. A depthwise filter is no unit: it is removed, with its norm, when all filters that write its channel are;
    without a ``structure`` the model is traced for it.

    Convolutions in ``pinned`` stay whole (residual networks protect the first). ``norm_follows`` says whether γ, β and
    the statistics are removed with the filter, and depthwise filters behind it, which makes its removal exact. With
    ``False`` only the filter is zeroed: γ and β keep its gradient from vanishing, so that it can be grown again.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Any = None,
        *,
        structure: Structure | None = None,
        pinned: Collection[str] = (),
        norm_follows: bool = True,
    ) -> None:
        convs = {path: m for path, m in model.named_modules() if isinstance(m, CONVS)}
        pinned = chosen_names(pinned, convs, "convolution")
        for path, m in convs.items():
            if path not in pinned and m._parameters.get("weight") is None:
                raise StructureError(computed_weight(path, m))
        self._model, self._example_input = model, example_input
        first: dict[int, str] = {}
        kernels = {path: m._parameters.get("weight") for path, m in convs.items()}
        self._first_of = {  # path → the first path of the same weight
            path: first.setdefault(id(m if kernels[path] is None else kernels[path]), path)
            for path, m in convs.items()
        }
        whole = {self._first_of[path] for path in pinned}
        pinned = frozenset(path for path, own in self._first_of.items() if own in whole)
        names = {id(p): name for name, p in model.named_parameters()}
        self._kernels = {path: names[id(kernel)] for path, kernel in kernels.items() if kernel is not None}
        self._depthwise = {
            path for path, m in convs.items() if 1 < m.groups == m.in_channels == m.out_channels
        }
        self.sizes: dict[str, tuple[int, ...]] = {
            path: (m.weight.shape[0],)
            for path, m in convs.items()
            if path not in pinned and path not in self._depthwise and self._first_of[path] == path
        }
        depthwise = dict.fromkeys(
            sorted(self._depthwise), "depthwise: goes with the filters that write its channels"
        )
        self.left_out: dict[str, str] = depthwise | dict.fromkeys(sorted(pinned), "pinned by the caller")
        if not self.sizes:
            raise StructureError(
                "asked for the filters of a model, found no convolution that may be pruned; "
                "pass a model that has at least one"
            )
        self.zero_is_dead = norm_follows
        self.norms = _norms_behind(model, convs, example_input)
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._writers: dict[str, tuple[dict[str, Tensor], Tensor]] = {}
        if norm_follows and self._depthwise - pinned:
            if structure is None:
                from halpiee.structure.trace import trace

                structure = trace(
                    model, ordered(model, _example_input(model) if example_input is None else example_input)
                )
            self._writers = self._writers_of(structure, self._depthwise - pinned)
        self._members: dict[str, list[str]] = {}
        for path in (*self.sizes, *self._writers):
            members = [self._kernels[path]]
            for same in (p for p, own in self._first_of.items() if own == path):
                members.append(_join(same, "bias"))
                if norm_follows and same in self.norms:
                    leaves = ("weight", "bias", "running_mean", "running_var")
                    members += [_join(self.norms[same], leaf) for leaf in leaves]
            self._members[path] = [name for name in members if name in named]
        self._shapes = {name: tuple(named[name].shape) for names in self._members.values() for name in names}
        self.tensors = frozenset(self._shapes)

    def owners(self, tensors: Collection[str]) -> list[str]:
        """Returns the convolutions that own any of the given tensors."""
        return [path for path in self.sizes if set(self._members[path]) & set(tensors)]

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the element masks: a filter's weights, its bias and its norm's entries share its fate."""
        masks = {}
        for path, members in self._members.items():
            keep = self._written(path, alive) if path in self._writers else alive[path].cpu()
            for name in members:
                shape = self._shapes[name]
                masks[name] = keep.view(-1, *(1,) * (len(shape) - 1)).expand(shape).clone()
        return masks

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the signed sum over each filter's weights (the bias is not scored)."""
        total = {}
        for path in self.sizes:
            value = element(self._kernels[path])
            if value is not None:
                total[path] = value.detach().flatten(1).sum(1)
        return total

    def owner(self, path: str) -> str:
        """Returns the path under which a convolution's filters are named: the first that holds its weight."""
        return self._first_of.get(path, path)

    def gate(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the signed sum over γ and β of the batch norm behind each filter, which a gate would multiply.

        A norm in training mode undoes any scale of the convolution, so Σ θ·g over the filter's weights is zero
        there. Where β stays when the filter goes (``norm_follows=False``), it is left out. A filter without a norm,
        or with one that the quantity does not exist for, is summed over its weights.
        """
        total = self.reduce(element)
        leaves = ("weight", "bias") if self.zero_is_dead else ("weight",)
        gates: dict[str, Tensor] = {}
        for path, norm in self.norms.items():
            own = self._first_of[path]
            for value in (element(_join(norm, leaf)) for leaf in leaves):
                if value is not None and own in self.sizes:
                    gates[own] = value.detach() + gates.get(own, torch.zeros_like(value))
        return {**total, **gates}

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names of the units in the order in which the forward uses their weights.

        Raises:
            UsageError: the model runs on none of the usual inputs.
        """
        weights = {self._kernels[path]: path for path in self.sizes}
        return tuple(weights[n] for n in order_of_use(self._model, weights, self._example_input))

    def scales(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the quantity of the batch norm's scale γ behind each filter, where there is one."""
        found = {path: element(_join(norm, "weight")) for path, norm in self.norms.items()}
        return {
            path: value.detach() for path, value in found.items() if value is not None and path in self.sizes
        }

    def _writers_of(
        self, structure: Structure, depthwise: Collection[str]
    ) -> dict[str, tuple[dict[str, Tensor], Tensor]]:
        """Returns depthwise convolution → (filters that write its channels: path → unit ids; its own unit ids)."""
        wanted = {_join(path, "weight"): path for path in depthwise}
        own = {wanted[s.tensor]: s.units for s in structure.slots if s.tensor in wanted and s.side == "out"}
        found = {}
        for path, units in own.items():
            others = {
                slot.tensor.removesuffix("weight").removesuffix("."): torch.from_numpy(slot.units)
                for slot in structure.slots
                if slot.side == "out" and slot.dim == 0 and slot.tensor.endswith("weight")
                if np.isin(slot.units, units).any()
            }
            writers = {p: u for p, u in others.items() if p not in self._depthwise}
            found[path] = writers, torch.from_numpy(units)
        return found

    def _written(self, path: str, alive: Mapping[str, Tensor]) -> Tensor:
        """Returns BoolTensor ``[channels]``: which channels of a depthwise convolution any kept filter writes to."""
        writers, own = self._writers[path]
        if not writers:
            return torch.ones(len(own), dtype=torch.bool)
        live = [units[alive[p].cpu()] if p in alive else units for p, units in writers.items()]
        return torch.isin(own, torch.cat(live))

    def channels(
        self, structure: Structure, alive: Mapping[str, Tensor], *, silent: bool = False
    ) -> dict[str, Tensor]:
        """Returns the channels that remain, in the form that ``halpiee.shrink`` takes.

        A channel goes when every layer that writes to it is a convolution whose filter there is gone; each group
        keeps one at least. ``silent``: only where its readers read zeros in the masked model, so that it is exact.
        """
        kept = np.zeros(structure.n_units, dtype=bool)
        made = np.zeros(structure.n_units, dtype=bool)
        for slot in structure.slots:
            path = self.owner(slot.tensor.removesuffix("weight").removesuffix("bias").removesuffix("."))
            if slot.side != "out" or path in self._depthwise:
                continue
            made[slot.units] = True
            keep = alive[path].cpu().numpy() if path in alive else np.ones(len(slot.units), dtype=bool)
            kept[slot.units[keep]] = True
        if silent:
            kept |= self._heard(structure)
        keeps = {}
        for group in structure.prunable:
            units = slice(group.start, group.start + group.size)
            keep = kept[units] | ~made[units]
            keep[0] |= not keep.any()
            if not keep.all():
                keeps[group.name] = torch.from_numpy(keep.copy())
        return keeps

    def _heard(self, structure: Structure) -> NDArray[np.bool_]:
        """Returns BoolArray ``[n_units]``: of which channels any layer reads another value than 0, in one forward."""
        heard = np.zeros(structure.n_units, dtype=bool)

        named = {f"{path}.weight": module for path, module in self._model.named_modules()}
        read = {named.get(slot.tensor): slot.units for slot in structure.slots if slot.side == "in"}

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            units = read.get(module)
            if units is None or not isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
                return
            x = args[0].detach().movedim(-1 if isinstance(module, nn.Linear) else 1, 0)
            if len(x) == len(units):
                heard[units[x.flatten(1).any(1).cpu().numpy()]] = True

        _watched(self._model, self._example_input, before, lambda module, args, output: None)
        return heard


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _norms_behind(model: nn.Module, convs: Mapping[str, nn.Module], x: Any) -> dict[str, str]:
    """Returns convolution → the batch norm whose input is that convolution's output."""
    norms = {path: m for path, m in model.named_modules() if isinstance(m, NORMS)}
    if not norms:
        return {}
    paths = {module: path for path, module in (*convs.items(), *norms.items())}
    made: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept, so that its id is not used again
    behind: dict[str, str] = {}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(module, CONVS) and module in paths:
            made[id(output)] = (paths[module], output)

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if isinstance(module, NORMS) and module in paths and args and id(args[0]) in made:
            behind[made[id(args[0])][0]] = paths[module]

    _watched(model, x, before, after)
    return behind


def _watched(model: nn.Module, x: Any, before: Callable[..., None], after: Callable[..., None]) -> None:
    """Runs a model once, evaluated, with hooks before and behind the forward of every module."""
    hooks = nn.modules.module
    handles = hooks.register_module_forward_pre_hook(before), hooks.register_module_forward_hook(after)
    try:
        with evaluated(model):
            called(model, _example_input(model) if x is None else x)
    finally:
        for handle in handles:
            handle.remove()
