"""The options that several verbs and the settings of a run take alike, each written once."""

from __future__ import annotations

from dataclasses import dataclass

from halpiee import ranges
from halpiee.options import option

__all__ = ["GOAL", "NETWORK", "RUNTIME", "Batched", "Protecting", "Scaled", "Seeded", "Threaded"]

GOAL, NETWORK, RUNTIME = "Goal", "Network", "Runtime"
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
class Seeded:
    """Where random choices begin."""

    seed: ranges.Seed = option(0, "Seed of every random choice.")
