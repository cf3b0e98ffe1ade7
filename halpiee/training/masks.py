"""What a run to a sparsity is asked for: how much, where, by whose scores, and when."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.errors import UsageError

__all__ = ["Masks"]


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What a method that trains to a sparsity is asked for; ``None``: its paper's own, fitted to the training.

    Attributes:
        sparsity: share that is removed.
        units: of what: ``weights``, or ``filters`` (IEE); ``None``: the method's own.
        distribution: how it is spread: ``uniform``, ``erk``, ``global`` or ``nm``.
        nm: N and M of ``nm``, as ``2:4``.
        mask: run, or file, whose final mask is taken over instead of a sparsity; ``static`` only.
        criterion: whose scores, by name.
        rounds: how often survivors are scored again.
        interval: steps between two updates.
        fraction: share exchanged by the first update.
        initial: sparsity that GraNet starts from.
        regrow: share of a layer's filters that each round exchanges.
        at: steps before one-shot pruning.
        init: how the first units are chosen: ``random``, by one solve on ``random-scores`` (IEE), or the largest of
            the weights (``magnitude``); ``None``: random from scratch, by magnitude (IEE: by its scores) where weights
            are given.
        first: share of the training where a gradual method begins.
        last: share where updates end.
        rewind: step of the dense training whose weights are taken (``ltr``).
        restart: whether the schedule of the learning rate begins anew after pruning.
        ablation: ``shuffle`` the mask within each layer, ``reinit`` the weights under it, or draw the first weights
            of every layer from N(0, 1) (``normal``).
    """

    sparsity: ranges.Between | None = None
    units: Literal["weights", "filters"] | None = None
    distribution: Literal["uniform", "erk", "global", "nm"] | None = None
    nm: str = "2:4"
    mask: str | None = None
    criterion: str | None = None
    rounds: Annotated[int, Meta(ge=1, le=10**4)] | None = None
    interval: ranges.Steps | None = None
    fraction: ranges.Share | None = None
    initial: ranges.Share = 0.0
    regrow: ranges.Share = 0.0
    at: ranges.StepsOrNone = 0
    init: Literal["random", "magnitude", "random-scores"] | None = None
    first: ranges.Share | None = None
    last: ranges.Share | None = None
    rewind: ranges.StepsOrNone | None = None
    restart: bool = False
    ablation: Literal["shuffle", "reinit", "normal"] | None = None

    def __post_init__(self) -> None:
        ranges.check(self)
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", self.nm)
        if not match or not 0 < int(match[1]) <= int(match[2]):
            raise UsageError(f"the pattern {self.nm[:40]!r} was asked; give N:M with 0 < N <= M, such as 2:4")
        if self.mask is not None and (self.sparsity is not None or self.distribution is not None):
            raise UsageError(
                f"--mask {self.mask} and a sparsity were asked; a mask says itself how much is kept: leave one out"
            )
        if self.ablation == "shuffle" and self.distribution == "nm":
            raise UsageError(
                f"--ablation shuffle was asked of {self.nm}, whose runs a shuffled mask would not keep; "
                "give --distribution global, erk or uniform"
            )

    @property
    def n_of_m(self) -> tuple[int, int]:
        """N and M."""
        n, m = self.nm.split(":")
        return int(n), int(m)

    @property
    def asked(self) -> bool:
        """Whether a sparsity is asked for: as a number, as a pattern, or by a mask."""
        return self.sparsity is not None or self.distribution == "nm" or self.mask is not None
