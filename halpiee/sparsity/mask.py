"""Which units are active: one bool tensor per group or layer, and what masks say about each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from halpiee.errors import UsageError

if TYPE_CHECKING:
    from halpiee.sparsity.granularity import Units

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask(Mapping[str, Tensor]):
    """Active units by name; a value, never changed in place.

    Attributes:
        units: name → BoolTensor of the group's or weight's shape, on the CPU.
        skipped: batches that were left out of the scores it was chosen by, as those were not finite.
    """

    units: dict[str, Tensor]
    skipped: int = field(default=0, compare=False)

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
        """Writes zeros, in place, where the mask has none.

        Args:
            model: its parameters and buffers are looked up by name.
            units: what the names of this mask mean; ``None``: they are parameters.

        Raises:
            UsageError: a name or shape that the model does not have.
        """
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        for name, mask in (self.units if units is None else units.masks(self)).items():
            if name not in tensors or tensors[name].shape != mask.shape:
                found = tuple(tensors[name].shape) if name in tensors else "no such parameter"
                raise UsageError(
                    f"a mask of shape {tuple(mask.shape)} was applied to {name!r}, the model has {found}; "
                    "apply it to the model it was made for, and masks of filters or channels with their units"
                )
            tensors[name].masked_fill_(~mask.to(tensors[name].device), 0)

    def digest(self) -> str:
        """Returns a hash that is equal exactly for equal masks: what ranks of a distributed run compare."""
        sha = hashlib.sha256()
        for name in sorted(self.units):
            sha.update(name.encode())
            sha.update(self.units[name].cpu().numpy().tobytes())
        return sha.hexdigest()
