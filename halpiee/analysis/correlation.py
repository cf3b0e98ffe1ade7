"""How measures of filters go together: |σ·Δσ| with loss preservation, θᵀHg with θᵀg (arXiv 2009.11839)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from halpiee.errors import UsageError

__all__ = ["correlation", "correlations", "ranks"]


def correlation(first: Tensor, second: Tensor, *, kind: Literal["pearson", "spearman"] = "pearson") -> float:
    """Returns the correlation of two measures of the same units.

    Args:
        first: ``[n]``.
        second: ``[n]``.
        kind: of the values, or of their ranks (ties share theirs).

    Returns:
        −1 … 1; NaN where one of them does not vary.

    Raises:
        UsageError: of different length, or fewer than two units.
    """
    a, b = first.detach().flatten().double().cpu(), second.detach().flatten().double().cpu()
    if len(a) != len(b) or len(a) < 2:
        raise UsageError(
            f"a correlation of {len(a)} and {len(b)} units was asked; give two measures of the same units, two at least"
        )
    if kind == "spearman":
        a, b = ranks(a), ranks(b)
    a, b = a - a.mean(), b - b.mean()
    norm = float(a.norm() * b.norm())
    return float(a @ b) / norm if norm > 0 else float("nan")


def correlations(
    first: Mapping[str, Tensor],
    second: Mapping[str, Tensor],
    *,
    kind: Literal["pearson", "spearman"] = "pearson",
) -> dict[str, float]:
    """Returns layer → correlation over its units, and ``""`` → over those of all layers.

    Layers that only one of the two measures has (a filter without a batch norm has no σ) are left out.
    """
    names = [name for name in first if name in second]
    if not names:
        raise UsageError(
            "a correlation of two measures without a common layer was asked; score the same units"
        )
    found = {
        name: correlation(first[name], second[name], kind=kind) for name in names if first[name].numel() > 1
    }
    whole = [
        torch.cat([scores[name].detach().flatten().double().cpu() for name in names])
        for scores in (first, second)
    ]
    found[""] = correlation(whole[0], whole[1], kind=kind)
    return found


def ranks(values: Tensor) -> Tensor:
    """Returns the rank of each value, the mean one for equal values."""
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    mean = ends - (counts.double() - 1) / 2
    found: Tensor = mean[inverse]
    return found
