"""Which units are active: one bool tensor per group or layer; overlap and digest of masks.

Here, too: the check of names that a user gives, and the message for a weight that cannot be masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from halpiee.errors import UsageError, unknown
from halpiee.structure.modules import computing_hook


class Spelled(Protocol):
    """Maps a mask of units to masks of tensors, as ``halpiee.sparsity.Units`` do."""

    def masks(self, alive: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns tensor name → BoolTensor of the tensor's shape: which elements are active."""


@dataclass(frozen=True)
class Mask(Mapping[str, Tensor]):
    """Active units by name (BoolTensors of the group's or weight's shape, on the CPU); a value, never changed in place.

    ``skipped`` counts the batches that were left out of the scores it was chosen by, as those were not finite; ``flat``
    says why scores do not rank the units that it separates, by name.
    """

    units: dict[str, Tensor]
    skipped: int = field(default=0, compare=False)
    flat: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __getitem__(self, name: str) -> Tensor:
        return self.units[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    @classmethod
    def of(cls, keep: Mapping[str, Tensor]) -> Mask:
        """Returns the units that a selection keeps as a mask; returns a mask unchanged."""
        return keep if isinstance(keep, Mask) else cls(dict(keep))

    @classmethod
    def full(cls, sizes: Mapping[str, tuple[int, ...]], value: bool = True) -> Mask:
        """Returns a mask with every unit active (or none)."""
        return cls({name: torch.full(size, value, dtype=torch.bool) for name, size in sizes.items()})

    def __invert__(self) -> Mask:
        return Mask({name: ~mask for name, mask in self.units.items()})

    def __and__(self, other: Mask) -> Mask:
        return Mask({name: mask & other[name] for name, mask in self.units.items()})

    def __or__(self, other: Mask) -> Mask:
        return Mask({name: mask | other[name] for name, mask in self.units.items()})

    @property
    def counts(self) -> dict[str, int]:
        """Active units per name."""
        return {name: int(mask.sum()) for name, mask in self.units.items()}

    @property
    def density(self) -> float:
        """Share of all units that is active."""
        total = sum(mask.numel() for mask in self.units.values())
        return sum(self.counts.values()) / max(total, 1)

    def iou(self, other: Mask) -> float:
        """Returns |A ∩ B| / |A ∪ B| over all names; 1 for two empty masks."""
        both = sum(int((mask & other[name]).sum()) for name, mask in self.units.items())
        either = sum(int((mask | other[name]).sum()) for name, mask in self.units.items())
        return both / either if either else 1.0

    def shuffled(self, seed: int = 0) -> Mask:
        """Returns a mask with the same counts in every layer at other places: an ablation of Frankle et al. 2021."""
        generator = torch.Generator().manual_seed(seed)
        return Mask(
            {
                name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].reshape(mask.shape)
                for name, mask in self.units.items()
            }
        )

    @torch.no_grad()
    def apply(self, model: nn.Module, units: Spelled | None = None) -> None:
        """Zeroes inactive values in place; changes nothing if the mask does not fit the model.

        Args:
            model: its parameters and buffers are looked up by name, under any of the names that share one.
            units: what the names of this mask mean; ``None``: they are parameters.

        Raises:
            UsageError: a name or shape that the model does not have; nothing was written.
        """
        tensors = dict[str, Tensor](model.named_parameters(remove_duplicate=False))
        tensors |= model.named_buffers(remove_duplicate=False)
        masks = self.units if units is None else units.masks(self)
        for name, mask in masks.items():
            if name not in tensors or tensors[name].shape != mask.shape:
                found = f"has {tuple(tensors[name].shape)}" if name in tensors else "has no such parameter"
                computed = _computed(model, name) if name not in tensors else None
                raise UsageError(
                    computed
                    or f"a mask of shape {tuple(mask.shape)} was applied to {name!r}, the model {found}; "
                    "apply it to the model it was made for, and masks of filters or channels with their units"
                )
        for name, mask in masks.items():
            tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)

    def digest(self) -> str:
        """Returns a hash that is equal exactly for equal masks; ranks of a distributed run compare it."""
        sha = hashlib.sha256()
        for name in sorted(self.units):
            sha.update(name.encode())
            sha.update(self.units[name].cpu().numpy().tobytes())
        return sha.hexdigest()


def _computed(model: nn.Module, name: str) -> str | None:
    """Returns the message of a weight that is computed from other tensors, ``None`` where it is not one."""
    path, _, leaf = name.rpartition(".")
    module = dict(model.named_modules()).get(path)
    if leaf != "weight" or module is None or not isinstance(getattr(module, leaf, None), Tensor):
        return None
    return computed_weight(path, module)


def chosen_names(given: Collection[str], known: Collection[str], kind: str) -> frozenset[str]:
    """Returns the names of a ``kind`` (group, weight) that a user gives, or the one name.

    Raises:
        UsageError: a name that does not exist; the message has the closest one.
    """
    names = frozenset({given} if isinstance(given, str) else given)
    for name in sorted(names):
        if name not in known:
            hint = unknown(name, known, f"the first is {next(iter(known), None)!r}")
            raise UsageError(
                f"the {kind} {name!r} was asked to stay whole, the model has none of that name; {hint}"
            )
    return names


def computed_weight(path: str, module: nn.Module) -> str:
    """Returns the message that a layer's weight is computed from other tensors, and how to make it a parameter."""
    name = f"{path}.weight" if path else "weight"
    how, undo = computing_hook(module) or ("no parameter", "")
    if parametrize.is_parametrized(module, "weight"):
        how = type(module.parametrizations["weight"][0]).__name__.lstrip("_")  # type: ignore[index]
        undo = "torch.nn.utils.parametrize.remove_parametrizations"
    first = f"call {undo}(module, 'weight') first" if undo else "make it an nn.Parameter"
    return (
        f"{name!r} was to be masked, and it is computed from other tensors before each forward ({how}); "
        f"{first}, or leave it whole: protect={{{name!r}}} of a method, "
        f"units=halpiee.sparsity.Weights(model, pinned={{{name!r}}}) elsewhere"
    )
