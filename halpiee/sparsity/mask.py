"""Which units are active: one bool tensor per group or layer, and what masks say about each other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Mask"]


@dataclass(frozen=True)
class Mask(Mapping[str, Tensor]):
    """Active units by name; a value, never changed in place.

    Attributes:
        units: name → BoolTensor of the group's or weight's shape, on the CPU.
    """

    units: dict[str, Tensor]

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

    def digest(self) -> str:
        """Returns a hash that is equal exactly for equal masks: what ranks of a distributed run compare."""
        sha = hashlib.sha256()
        for name in sorted(self.units):
            sha.update(name.encode())
            sha.update(self.units[name].cpu().numpy().tobytes())
        return sha.hexdigest()
