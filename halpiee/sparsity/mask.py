"""Which units are active: one bool tensor per group or layer, and what masks say about each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.sparsity.names import computed_weight

if TYPE_CHECKING:
    from halpiee.sparsity.granularity import Units

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask(Mapping[str, Tensor]):
    """Active units by name; a value, never changed in place.

    Attributes:
        units: name → BoolTensor of the group's or weight's shape, on the CPU.
        skipped: batches that were left out of the scores it was chosen by, as those were not finite.
        flat: name → why the scores it was chosen by do not tell the units apart that it separates.
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
    def apply(self, model: nn.Module, units: Units | None = None) -> None:
        """Writes zeros, in place, where the mask has none; all of them, or none where it does not fit.

        Args:
            model: its parameters and buffers are looked up by name, under any of the names that share one.
            units: what the names of this mask mean; ``None``: they are parameters.

        Raises:
            UsageError: a name or shape that the model does not have; nothing was written.
        """
        tensors = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
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
        """Returns a hash that is equal exactly for equal masks: what ranks of a distributed run compare."""
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
