"""What a plan records of units that training chose."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Selected"]


@dataclass(frozen=True)
class Selected:
    """Units and, where they were solved for, their latency.

    Attributes:
        keep: group → which units stay; a group that is not named is whole.
        latency_us: as predicted; NaN where none was.
        gap: certified relative gap of the last solve.
    """

    keep: Mapping[str, Tensor]
    latency_us: float = math.nan
    gap: float | None = None
