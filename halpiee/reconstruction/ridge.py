"""Ridge regression towards given weights, from sums over rows: ``argmin Σ ‖x W − y‖² + λ ‖W − W₀‖²``.

The last unknown is a constant, on which λ does not act.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

__all__ = ["Sums", "ridge_solution", "with_mean"]


class Sums:
    """What a least-squares problem is solved from: ``S = Σ x xᵀ``, ``R = Σ x yᵀ``, ``Σ y²``, in double precision.

    Args:
        groups: independent problems.
        width: unknowns, the constant last.
        outs: outputs of a group.
        device: of the tensors.
    """

    def __init__(self, groups: int, width: int, outs: int, device: torch.device) -> None:
        kind: dict[str, Any] = {"dtype": torch.float64, "device": device}
        self.xx = torch.zeros(groups, width, width, **kind)
        self.xy = torch.zeros(groups, width, outs, **kind)
        self.yy = torch.zeros(groups, outs, **kind)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows ``x [groups, rows, width]`` and ``y [groups, rows, outs]``."""
        self.xx += (x.transpose(1, 2) @ x).double()
        self.xy += (x.transpose(1, 2) @ y).double()
        self.yy += y.square().sum(1).double()

    def __add__(self, other: Sums) -> Sums:
        both = copy.copy(self)
        both.xx, both.xy, both.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return both

    def error(self, weights: Tensor) -> float:
        """Returns ``Σ ‖x W − y‖²``."""
        return float((weights * (self.xx @ weights - 2 * self.xy)).sum() + self.yy.sum())

    @property
    def spread(self) -> float:
        """``Σ ‖y − mean‖²``."""
        rows = self.xx[:, -1, -1].clamp_min(1)[:, None]
        return max(1e-30, float((self.yy - self.xy[:, -1].square() / rows).sum()))


def ridge_solution(sums: Sums, start: Tensor, ridge: float) -> Tensor | None:
    """Returns the solution of ``(S + λ)(W − W₀) = R − S W₀``, λ not on the constant; ``None`` where there is none."""
    diagonal = sums.xx.diagonal(dim1=1, dim2=2)
    extra = (ridge * diagonal[:, :-1].mean(1)).clamp_min(1e-12)[:, None].expand_as(diagonal).clone()
    extra[:, -1] = 1e-12
    factor, failed = torch.linalg.cholesky_ex(sums.xx + torch.diag_embed(extra))
    if bool(failed.any()):
        return None
    return start + torch.cholesky_solve(sums.xy - sums.xx @ start, factor)


def with_mean(weights: Tensor, sums: Sums) -> Tensor:
    """Returns the weights with the constant that makes the mean error zero."""
    rows = sums.xx[:, -1, -1].clamp_min(1)[:, None]
    constant = (sums.xy[:, -1] - (sums.xx[:, -1:, :-1] @ weights[:, :-1])[:, 0]) / rows
    return torch.cat([weights[:, :-1], constant[:, None]], 1)
