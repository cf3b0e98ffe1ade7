"""Units, removed as a whole: single weights, or channels coupled through the network; filters are in ``filters``.

All have the same interface for a method: named units with sizes, the element mask of every tensor that a choice of
units implies, and the reduction of an element-wise quantity to units. Layers are named in the order in which a forward
first uses them, which needs an input: ``example_input`` finds one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from halpiee.errors import StructureError, UsageError
from halpiee.inputs import called
from halpiee.sparsity.mask import chosen_names, computed_weight
from halpiee.structure.groups import Structure


@runtime_checkable
class Units(Protocol):
    """The units that a method removes and grows again."""

    @property
    def sizes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → shape of its scores and masks."""

    @property
    def left_out(self) -> Mapping[str, str]:
        """Name → reason, for what could be pruned in principle but not by masks during training."""

    @property
    def tensors(self) -> frozenset[str]:
        """Parameters and buffers whose elements belong to units."""

    @property
    def zero_is_dead(self) -> bool:
        """Whether a unit whose values are zero has zero gradients for ever, and could never be grown."""

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensor name → BoolTensor of the tensor's shape: which elements are active."""

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns unit name → the signed sum of ``element(tensor name)`` over each unit's scoring elements.

        Units whose scoring elements are all ``None`` are missing.
        """


class Weights:
    """Every weight of every conv and linear layer is a unit; biases and norms are not.

    A parameter that several layers share is one entry, under the name that ``model.named_parameters()`` gives it. The
    weights that are named in ``pinned``, or whose layers are, stay dense. ``example_input``, by default of a usual
    shape, shows in which order the layers run.

    Raises:
        StructureError: no conv or linear layer, or a weight that is computed from other tensors; a UsageError: a pinned
            name that is no weight of the model.
    """

    zero_is_dead = False

    def __init__(self, model: nn.Module, *, pinned: Collection[str] = (), example_input: Any = None) -> None:
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.left_out: dict[str, str] = {}
        self._model, self._example_input = model, example_input
        aliases = {"weight" if not path else f"{path}.weight": path for path, _ in weighted(model)}
        whole = chosen_names(
            pinned, {**aliases, **{path: path for path in aliases.values() if path}}, "weight"
        )
        names = {id(p): name for name, p in model.named_parameters()}
        for path, module in weighted(model):
            alias = f"{path}.weight" if path else "weight"
            pinned_here = alias in whole or path in whole
            parameter = module._parameters.get("weight")
            if parameter is None and not pinned_here:
                raise StructureError(computed_weight(path, module))
            if parameter is None:
                continue
            if isinstance(parameter, UninitializedParameter):
                raise StructureError(f"the weight {alias!r} has no shape yet; run the model once first")
            name = names[id(parameter)]
            if pinned_here:
                self.left_out[name] = "pinned by the caller"
            else:
                self.sizes.setdefault(name, tuple(parameter.shape))
        for name in self.left_out:
            self.sizes.pop(name, None)
        if not self.sizes:
            raise StructureError(
                "asked for the prunable weights of a model, found no conv or linear layer; "
                "pass a model that has at least one"
            )
        self.tensors = frozenset(self.sizes)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Names of the units in the order in which the forward uses them.

        Raises:
            UsageError: the model runs on none of the usual inputs.
        """
        return order_of_use(self._model, self.sizes, self._example_input)

    def owners(self, tensors: Collection[str]) -> list[str]:
        """Returns the units that own any of the given tensors."""
        return [name for name in self.sizes if name in tensors]

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the masks themselves: a unit is one element."""
        return dict(alive)

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the element-wise quantity itself."""
        values = {name: element(name) for name in self.sizes}
        return {name: value for name, value in values.items() if value is not None}


class Channels:
    """Coupled channels: a weight element is active when its output unit and its input unit both are.

    A unit's score is that of the affine parameters of the norms that it passes through, summed over all coupled layers.
    Without any, or where the quantity does not exist for them (frozen ones have no gradient), it is that of the weights
    and biases of the layers that produce the unit, as in HALP. Other parameters on channels (slopes of a PReLU, learned
    positions, LayerScale, plain scales) have no score: they are removed with the unit.

    Args:
        model: the network the structure was traced from.
        structure: its units; groups that cannot be masked in place exactly go to ``left_out``.
        protect: groups to leave whole.
        trainable_only: whether groups that cannot be masked in place exactly are left out; a plan takes them too.

    Raises:
        StructureError: nothing to mask, or another model than the traced one.
        UsageError: a protected name that is no group of the structure.
    """

    zero_is_dead = True

    def __init__(
        self,
        model: nn.Module,
        structure: Structure,
        *,
        protect: Collection[str] = (),
        trainable_only: bool = True,
    ) -> None:
        self.structure = structure
        protect = chosen_names(protect, structure.by_name, "group")
        shapes = {name: tuple(t.shape) for name, t in (*model.named_parameters(), *model.named_buffers())}
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
        self._indices: dict[tuple[str, int, torch.device], tuple[Tensor, Tensor]] = {}
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
        parameters = dict(model.named_parameters())
        learned = [s for s in structure.slots if s.tensor in parameters]
        self._norms, self._produced = (
            [(s.tensor, s.dim, torch.from_numpy(s.units)) for s in slots]
            for slots in (
                [s for s in learned if s.side == "norm" and s.kind in AFFINE],
                [s for s in learned if s.side == "out"],
            )
        )

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the groups in the order in which their layers run."""
        return tuple(self.sizes)

    def owners(self, tensors: Collection[str]) -> list[str]:
        """Returns the groups that own any of the given tensors."""
        lost = torch.zeros(self.structure.n_units, dtype=torch.bool)
        for tensor in tensors:
            for _, units in self._slots.get(tensor, ()):
                lost[units] = True
        return [name for name in self.sizes if bool(lost[self.structure.by_name[name].start])]

    def vector(self, alive: Mapping[str, Tensor]) -> Tensor:
        """Returns BoolTensor ``[n_units]`` over the whole structure; units of other groups are active."""
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

    def _on(self, name: str, dim: int, index: Tensor, device: torch.device) -> Tensor:
        """Returns an index on a device, uploaded once: an upload at each step would wait for the device."""
        uploaded = self._indices.get((name, dim, device))
        if uploaded is None or not torch.equal(uploaded[0], index):
            uploaded = self._indices[name, dim, device] = (index, index.to(device))
        return uploaded[1]

    def reduce(self, element: Callable[[str], Tensor | None]) -> dict[str, Tensor]:
        """Returns the signed sum over coupled layers, one number per unit; groups without any are missing."""
        found = torch.zeros(self.structure.n_units + 1, dtype=torch.bool)
        nowhere = torch.tensor(self.structure.n_units)
        total: Tensor | None = None
        for places in (self._norms, self._produced):
            before = found.clone()  # the weights count where no norm does
            for name, dim, units in places:
                index = torch.where(before[units], nowhere, units)
                if bool(before[units].all()) or (value := element(name)) is None:
                    continue
                wide = value.dtype == torch.float64  # synaptic flow overflows 32 bits
                per_position = value.detach().to(torch.float64 if wide else torch.float32)
                if per_position.dim() > 1:
                    per_position = per_position.sum(dim=[d for d in range(per_position.dim()) if d != dim])
                if total is None:
                    total = per_position.new_zeros(self.structure.n_units + 1)
                total.index_add_(0, self._on(name, dim, index, total.device), per_position)
                found[units] = True
        if total is None:
            return {}
        spans = {name: self.structure.by_name[name].start for name in self.sizes}
        return {
            name: total[start : start + self.sizes[name][0]].clone()
            for name, start in spans.items()
            if bool(found[start])
        }


AFFINE = frozenset({"batch_norm", "layer_norm", "group_norm"})
"""Kinds of slots that are the affine parameters of a norm; all others that lie on channels are not."""


def weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields path and module of every conv and linear layer, in the order in which the model holds them."""
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            yield path, module


SIDES = (32, 64, 224, 28, 16, 8, 1)
"""Image sides that are tried, in this order: CIFAR, TinyImageNet, ImageNet, MNIST and smaller."""


def example_input(model: nn.Module) -> Tensor:
    """Returns ones of a shape that the model accepts, batch 1, found from the widths of its layers.

    Which layer runs first is not known before a forward, so the input width of every layer is tried, in the order
    in which the model holds them. The model runs in eval mode.

    Raises:
        UsageError: none of the usual shapes runs; the caller has to give one.
    """
    shapes: dict[tuple[int, ...], Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            shapes.setdefault((1, module.in_features), module.weight)
        elif isinstance(module, nn.modules.conv._ConvNd):
            dims = module.weight.dim() - 2
            for side in SIDES:
                shapes.setdefault((1, module.in_channels, *(side,) * dims), module.weight)
    with evaluated(model):
        for shape, weight in shapes.items():
            x = torch.ones(shape, device=weight.device, dtype=weight.dtype)
            try:
                model(x)
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
                continue
            return x
    tried = ", ".join("×".join(map(str, shape)) for shape in list(shapes)[:5])
    raise UsageError(
        f"an input for {type(model).__name__} was needed and none of the usual shapes runs ({tried or 'no layer'}); "
        "pass one batch or an example input"
    )


def order_of_use(model: nn.Module, names: Collection[str], example: Any = None) -> tuple[str, ...]:
    """Returns parameter names in the order in which a forward, run once in eval mode, first uses them.

    A parameter that the forward does not use follows the one before it in the model.

    Raises:
        UsageError: no input was given and the model runs on none of the usual ones.
    """
    seen: dict[int, int] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for leaf in tree_leaves((args, kwargs or {})):
                if isinstance(leaf, nn.Parameter):
                    seen.setdefault(id(leaf), len(seen))
            return func(*args, **(kwargs or {}))

    x = example_input(model) if example is None else example
    with evaluated(model), Watch():
        called(model, x)
    places: dict[str, tuple[int, int]] = {}
    last = -1
    for at, (name, parameter) in enumerate(model.named_parameters()):
        last = seen.get(id(parameter), last)
        places[name] = (last, at)
    return tuple(sorted(names, key=lambda name: places[name]))


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and records no gradients; its modes are restored."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
