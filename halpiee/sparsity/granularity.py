"""What lives or dies together: single weights, filters, or channels coupled through the network.

All give the same view to a method: named units with sizes, the element mask of every tensor that a choice of
units implies, and the reduction of an element-wise quantity to units.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from halpiee.errors import StructureError
from halpiee.sparsity.filters import Filters
from halpiee.structure.groups import Structure

__all__ = ["Channels", "Filters", "Units", "Weights"]


class Units(Protocol):
    """What a method removes and brings back."""

    @property
    def sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of its scores and masks."""
        ...

    @property
    def left_out(self) -> Mapping[str, str]:
        """Name → reason, for what could be pruned in principle but not by masks during training."""
        ...

    @property
    def tensors(self) -> frozenset[str]:
        """Parameters and buffers whose elements belong to units."""
        ...

    @property
    def zero_is_dead(self) -> bool:
        """Whether a unit whose values are zero has zero gradients for ever, and could never be grown."""
        ...

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensor name → BoolTensor of the tensor's shape: which elements are active."""
        ...

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns unit name → the signed sum of ``element(tensor name)`` over each unit's scoring elements."""
        ...


class Weights:
    """Every weight of every conv and linear layer is a unit; biases and norms are left alone.

    Args:
        model: the network; parameters of conv and linear modules named ``weight`` are taken.
        pinned: names of weights that stay dense.
    """

    zero_is_dead = False

    def __init__(self, model: nn.Module, *, pinned: frozenset[str] = frozenset()) -> None:
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.left_out: dict[str, str] = {}
        for path, module in model.named_modules():
            if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
                name = f"{path}.weight" if path else "weight"
                if name in pinned:
                    self.left_out[name] = "pinned by the caller"
                else:
                    self.sizes[name] = tuple(module.weight.shape)
        if not self.sizes:
            raise StructureError(
                "asked for the prunable weights of a model, found no conv or linear layer; "
                "pass a model that has at least one"
            )
        self.tensors = frozenset(self.sizes)

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the alive masks themselves: a unit is one element."""
        return dict(alive)

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the element-wise quantity itself."""
        values = {name: element(name) for name in self.sizes}
        return {name: value for name, value in values.items() if value is not None}


class Channels:
    """Coupled channels: a weight element is active when its output unit and its input unit both are.

    Scores live on the affine parameters of the norms a unit passes through, summed over all coupled layers; a
    unit without any is scored on the weights (and bias) of the layers that produce it, as HALP does.

    Args:
        model: the network the structure was traced from.
        structure: its units; groups that cannot be masked in place exactly go to ``left_out``.
        protect: groups to leave whole.
        trainable_only: whether groups that cannot be masked in place exactly are left out; a plan takes them too.
    """

    zero_is_dead = True

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        *,
        protect: frozenset[str] = frozenset(),
        trainable_only: bool = True,
    ) -> None:
        self.structure = structure
        shapes = {name: tuple(t.shape) for name, t in _tensors(model).items()}
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.left_out: dict[str, str] = {}
        for group in structure.prunable:
            if group.name in protect:
                self.left_out[group.name] = "protected by the caller"
            elif trainable_only and not group.trainable:
                self.left_out[group.name] = group.untrainable_reason or "cannot be masked in place exactly"
            else:
                self.sizes[group.name] = (group.size,)
        if not self.sizes:
            raise StructureError(
                "asked for channels that training can mask, found none; "
                "`halpiee explain` names what is frozen and why"
            )
        for slot in structure.slots:
            if shapes.get(slot.tensor, (None,) * 9)[slot.dim] != len(slot.units):
                raise StructureError(
                    f"the structure expects {len(slot.units)} positions along dimension {slot.dim} of "
                    f"{slot.tensor!r}, the model has shape {shapes.get(slot.tensor)}; trace this model again"
                )
        masked = {structure.by_name[name] for name in self.sizes}
        self._free = torch.zeros(structure.n_units, dtype=torch.bool)
        for group in masked:
            self._free[group.start : group.start + group.size] = True
        self._slots: dict[str, list[tuple[int, Tensor]]] = {}
        for slot in structure.slots:
            index = torch.from_numpy(slot.units)
            if bool(self._free[index].any()):
                self._slots.setdefault(slot.tensor, []).append((slot.dim, index))
        self._shapes = {name: shapes[name] for name in self._slots}
        self.tensors = frozenset(self._slots)
        self._scoring = self._scoring_slots(model)

    def _scoring_slots(self, model: nn.Module) -> list[tuple[str, int, Tensor]]:
        """Returns (tensor, dim, unit index) whose elements carry the score of each unit."""
        parameters = dict(model.named_parameters())
        norms = [s for s in self.structure.slots if s.side == "norm" and s.tensor in parameters]
        covered = torch.zeros(self.structure.n_units, dtype=torch.bool)
        for slot in norms:
            covered[torch.from_numpy(slot.units)] = True
        scoring = [(s.tensor, s.dim, torch.from_numpy(s.units)) for s in norms]
        nowhere = torch.tensor(self.structure.n_units)
        for slot in self.structure.slots:
            index = torch.from_numpy(slot.units)
            if slot.side == "out" and slot.tensor in parameters and not bool(covered[index].all()):
                scoring.append((slot.tensor, slot.dim, torch.where(covered[index], nowhere, index)))
        return scoring

    def vector(self, alive: Mapping[str, Tensor]) -> Tensor:
        """Returns BoolTensor ``[n_units]`` over the whole structure; what is not named is active."""
        vector = torch.ones(self.structure.n_units, dtype=torch.bool)
        for name, mask in alive.items():
            group = self.structure.by_name[name]
            vector[group.start : group.start + group.size] = mask.cpu()
        return vector

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the element masks: an element is active when all units it belongs to are."""
        vector = self.vector(alive)
        masks = {}
        for name, slots in self._slots.items():
            shape = self._shapes[name]
            mask = torch.ones(shape, dtype=torch.bool)
            for dim, index in slots:
                view = [1] * len(shape)
                view[dim] = -1
                mask &= vector[index].view(view)
            masks[name] = mask
        return masks

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the signed sum over coupled layers, one number per unit."""
        total: Tensor | None = None
        for name, dim, index in self._scoring:
            value = element(name)
            if value is None:
                continue
            wide = value.dtype == torch.float64  # synaptic flow overflows 32 bits
            per_position = value.detach().to(torch.float64 if wide else torch.float32)
            if per_position.dim() > 1:
                per_position = per_position.sum(dim=[d for d in range(per_position.dim()) if d != dim])
            if total is None:
                total = per_position.new_zeros(self.structure.n_units + 1)
            total.index_add_(0, index.to(total.device), per_position)
        if total is None:
            return {}
        return {
            name: total[self.structure.by_name[name].start :][: size[0]].clone()
            for name, size in self.sizes.items()
        }


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
