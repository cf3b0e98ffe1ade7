"""What a method that trains to a sparsity is asked for: its goal, its options, and the pattern N:M."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.errors import UsageError
from halpiee.options import option
from halpiee.shared_options import GOAL, METHOD


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What a method that trains to a sparsity is asked for; ``None``: its paper's own, fitted to the training."""

    sparsity: ranges.Between | None = option(
        None, "Share of weights or filters to remove (0.9); instead of --budget.", GOAL
    )
    units: Literal["weights", "filters"] | None = option(
        None, "What a sparsity removes.", GOAL, unset="the method's own"
    )
    distribution: Literal["uniform", "erk", "global", "nm"] | None = option(
        None, "How a sparsity is spread over the layers.", GOAL, unset="the paper's"
    )
    nm: str = option("2:4", "Pattern of --distribution nm: N of M input weights stay.", GOAL)
    mask: str | None = option(
        None,
        "Final mask of another run (its folder or mask.safetensors), trained anew by --method static.",
        GOAL,
    )
    criterion: str | None = option(
        None,
        "Importance score that chooses the units: magnitude, l1, grasp, inverted-snip …",
        METHOD,
        unset="the method's own",
    )
    rounds: Annotated[int, Meta(ge=1, le=10**4)] | None = option(
        None,
        "Rounds of pruning, survivors scored again (filter: 1, 5, 25; lrr: trainings; repair: 4; early: 1).",
        METHOD,
        unset="the method's own",
    )
    value: Literal["scores", "measured"] = option(
        "scores",
        "What a width is worth: the sum of its units' scores, or measured: the loss of forward passes with each group "
        "cut to several widths (halp, repair, early).",
        METHOD,
    )
    regrow: ranges.Share = option(
        0.0, "Share of a layer's filters that each round exchanges.", METHOD, bare=0.3
    )
    interval: ranges.Steps | None = option(
        None, "Steps between two mask updates.", METHOD, unset="the paper's, or less"
    )
    fraction: ranges.Share | None = option(
        None, "Share exchanged by the first update (SET, RigL, SNFS, GraNet).", METHOD, unset="the paper's"
    )
    initial: ranges.Share = option(0.0, "Sparsity that GraNet starts from.", METHOD)
    regrow_until: Literal["end", "pruning"] | None = option(
        None,
        "GraNet regrows to the end of the training, or while it prunes (Algorithm 1).",
        METHOD,
        unset="end",
    )
    first: ranges.Share | None = option(
        None, "Share of the training where GMP and GraNet begin to prune.", METHOD, unset="the paper's"
    )
    last: ranges.Share | None = option(
        None,
        "Share of the training where GMP and GraNet have pruned, and SET, RigL and SNFS update last.",
        METHOD,
        unset="the paper's",
    )
    at: ranges.StepsOrNone = option(0, "Steps before one-shot pruning.", METHOD)
    rewind: ranges.StepsOrNone | None = option(
        None, "Step of the dense training whose weights ltr takes.", METHOD, unset="1.6% of the training"
    )
    cut_at: ranges.Below | None = option(
        None,
        "Share of the training that early trains the whole network before it cuts.",
        METHOD,
        unset="0.25; with --weights 0",
    )
    repair: bool | None = option(
        None,
        "Solve the layers again after the cut of early, or after every prune of channels by halp and iee.",
        METHOD,
        unset="of early yes, of halp and iee no",
    )
    widths: Literal["scores", "uniform"] = option(
        "scores",
        "Widths of a cut: those that keep the most score, or the widest uniform ones (repair, early).",
        METHOD,
    )
    restart: bool = option(
        False, "Begin the schedule of the learning rate anew after pruning (--at, ltr).", METHOD
    )
    init: Literal["random", "magnitude", "random-scores"] | None = option(
        None,
        "How the first units are chosen; random-scores: by one solve (iee).",
        METHOD,
        unset="random; with --weights by magnitude, iee by its scores",
    )
    ablation: Literal["shuffle", "reinit", "normal"] | None = option(
        None,
        "Shuffle the mask within each layer; draw the weights under it anew; or draw the first weights from "
        "N(0, 1).",
        METHOD,
    )

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
        """Whether a sparsity is requested: as a number, as a pattern, or by a mask."""
        return self.sparsity is not None or self.distribution == "nm" or self.mask is not None
