"""The options that several verbs, the settings of a run or the Python classes take alike, each written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from halpiee import ranges
from halpiee.options import option

__all__ = [
    "GOAL",
    "IEE",
    "NETWORK",
    "RUNTIME",
    "Batched",
    "Limiting",
    "Protecting",
    "Scaled",
    "Seeded",
    "Switches",
    "Threaded",
]

GOAL, NETWORK, RUNTIME, IEE = "Goal", "Network", "Runtime", "IEE: prune, improve, explore, grow"
"""Headings."""


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """How wide a network of the zoo is built."""

    width: ranges.Width | None = option(
        None, "Width multiplier of a zoo network.", NETWORK, unset="the network's own"
    )


@dataclass(frozen=True, kw_only=True)
class Batched:
    """How many images one inference takes."""

    batch: ranges.Images = option(1, "Images per inference.", RUNTIME)


@dataclass(frozen=True, kw_only=True)
class Threaded:
    """How many threads the runtime has."""

    threads: ranges.Threads = option(1, "Threads of the runtime.", RUNTIME)


@dataclass(frozen=True, kw_only=True)
class Protecting:
    """Whether a latency leaves the first layer whole."""

    protect_first: bool | None = option(
        None,
        "Leave the first layer whole within --budget; nothing to protect where it shares a residual stream.",
        GOAL,
        unset="on for resnet50 and mobilenet_v1, as in the papers",
    )


@dataclass(frozen=True, kw_only=True)
class Limiting:
    """What a latency is limited by beside itself, and which channels it may take."""

    also: tuple[str, ...] = option(
        (),
        "A further limit: macs=0.5, params=2e6, memory=12MB (largest input + output of one op), energy=0.6 (the "
        "energy_mj of the profile's cells), or another profile of this network, at any batch or device: "
        "profile=batch8.jsonl:0.6. May be given several times.",
        GOAL,
    )
    protect: tuple[str, ...] = option(
        (),
        "Leave the layers that match whole: a name or pattern such as head or 'layer4.*'; may be given several times.",
        GOAL,
    )
    only: tuple[str, ...] = option(
        (),
        "Cut only channels that the layers that match write alone, such as backbone; may be given several times.",
        GOAL,
    )
    vanish: bool = option(False, "Residual blocks may be removed whole.", GOAL)
    min_width: ranges.Fewest = option(
        0.0, "Fewest units that every group keeps: a number, or below 1 a share of its units.", GOAL
    )
    multiple_of: ranges.Classes = option(1, "Widths are multiples of this many units.", GOAL)

    @property
    def narrowed(self) -> tuple[str, ...]:
        """The options of these that were given, as they are typed."""
        names = ("also", "protect", "only", "vanish", "min_width", "multiple_of")
        usual = {"min_width": 0.0, "multiple_of": 1, "vanish": False}
        given = [name for name in names if getattr(self, name) != usual.get(name, ())]
        return tuple("--" + name.replace("_", "-") for name in given)


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Where random choices begin."""

    seed: ranges.Seed = option(0, "Seed of every random choice.")


@dataclass(frozen=True, kw_only=True)
class Switches:
    """How IEE exchanges units: what its paper's Table 4 turns on and off."""

    omega: ranges.Between = option(
        0.3, "Exploration budget of the first cycle, as a share of the budget.", IEE
    )
    decay: Literal["exponential", "cosine"] = option(
        "exponential",
        "Decay of the exploration budget: to 1 % of the budget or one step of the coarsest group, or as a cosine to 0.",
        IEE,
    )
    end: ranges.Positive = option(0.75, "Share of the training after which updates have ended.", IEE)
    explore_init: Literal["model", "zero"] | None = option(
        None,
        "Values that units start from which were never active: the network's initial ones, or zero.",
        IEE,
        unset="weights: zero; channels: model",
    )
    spread: Literal["erk", "uniform"] = option(
        "erk", "How the first weights of a global budget are spread over the layers.", IEE
    )
    grow_by: Literal["score", "random"] = option(
        "score", "Grow the units with the highest scores, or random ones.", IEE
    )
    grow_values: Literal["last", "zero"] = option(
        "last", "Values of grown units: as exploration left them, or zero.", IEE
    )
    freeze: bool = option(True, "Freeze active units during exploration.", IEE)
    explore_norm: Literal["batch", "running"] = option(
        "batch",
        "Statistics that batch norms use during exploration: of the batch, or the running ones.",
        IEE,
    )
    solver: Literal["joint", "cpsat", "linear"] | None = option(
        None, "Solver that selects the units of a latency.", GOAL, unset="joint; of halp linear"
    )
