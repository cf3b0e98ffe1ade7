"""Limits beside the latency, as text: ``macs=0.5``, ``memory=12MB``, ``batch8.jsonl=0.6``, ``GROUP=16..48``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from halpiee.advice import held
from halpiee.asked import parse_budget
from halpiee.errors import BudgetError, ProfileError, UsageError, unknown

if TYPE_CHECKING:
    import latency
    from halpiee.selection.cost import Cost
    from halpiee.structure.groups import Structure

__all__ = [
    "Limit",
    "above_bytes",
    "batch_of",
    "check_groups",
    "check_memory",
    "check_prunable",
    "limit_name",
    "parse_also",
    "parse_between",
    "read_limit",
]


Limit = tuple[str, "Cost", float]
"""A name, what is limited, and the most of it."""

QUANTITIES = ("macs", "params", "memory")

BYTES = {"": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}


def parse_also(text: str) -> tuple[str, str]:
    """Returns (what, how much) of ``WHAT=LIMIT``.

    Raises:
        UsageError: it is not of that form, or neither a quantity nor a profile.
    """
    what, equals, most = text.rpartition("=")
    if not equals or not what or not most:
        raise UsageError(
            f"the limit {text!r} was asked; give WHAT=LIMIT such as macs=0.5, params=2e6, memory=12MB or "
            "batch8.jsonl=0.6"
        )
    if what not in QUANTITIES and not Path(what).is_file():
        raise UsageError(
            f"a limit on {what!r} was asked; that is no profile file, and the quantities are "
            f"{', '.join(QUANTITIES)}; give one of these"
        )
    return what, most


def parse_between(texts: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Returns group → (fewest, most) units of ``GROUP=FEWEST..MOST``.

    Raises:
        UsageError: one is not of that form.
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r"(.+)=(\d+)\.\.(\d+)", text)
        if not match or int(match[2]) > int(match[3]):
            raise UsageError(
                f"--between {text!r} was asked; give GROUP=FEWEST..MOST such as layer1.0.conv1=16..48"
            )
        found[match[1]] = (int(match[2]), int(match[3]))
    return found


def batch_of(profile: latency.Profile, path: Path, measuring: str = "halpiee profile MODEL …") -> int:
    """Returns the images per inference that a profile was measured at.

    Args:
        profile: the profile.
        path: its file.
        measuring: the command, but for --out, that measures one.

    Raises:
        UsageError: it holds no cell, or several batches.
    """
    # widths are probed with single images, whatever the batch
    cells = [cell for cell in profile.cells if cell.get("role") not in ("probe", "anchor")] or profile.cells
    batches = sorted({int(cell.get("batch", 1)) for cell in cells})
    if not batches:
        raise ProfileError(f"{path} {held(profile)}; `{measuring} --out {path}` continues it")
    if len(batches) != 1:
        raise UsageError(
            f"the batch of {path} was asked; it holds {', '.join(map(str, batches))}; say which with --batch, or "
            "profile one batch per file"
        )
    return batches[0]


def read_limit(what: str, most: str, structure: Structure, at_batch: Callable[[int], Structure]) -> Limit:
    """Returns a limit beside the budget.

    Args:
        what: ``macs``, ``params``, ``memory`` or a profile file.
        most: a share of the dense network, a time for a profile, a number (``memory``: with kB, MB or GB).
        structure: the network as planned.
        at_batch: the same network traced at another batch, for a profile of one.

    Raises:
        UsageError: a limit that is no number above 0.
    """
    if what not in QUANTITIES:
        import latency
        from halpiee.deploy.target import in_terms_of
        from halpiee.selection.cost import LatencyCost

        us, fraction = parse_budget(most)
        profile = latency.Profile.load(Path(what))
        cost = LatencyCost(in_terms_of(profile, at_batch(batch_of(profile, Path(what)))), profile)
        return what, cost, us if us is not None else (fraction or 1.0) * cost.dense_us
    from halpiee.selection.limits import peak_bytes, resource

    units: Mapping[str, float] = BYTES if what == "memory" else {"": 1.0}
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmg]b|%)?", most, re.IGNORECASE)
    if not match or float(match[1]) <= 0 or (match[2] or "").lower() not in (*units, "%"):
        raise UsageError(
            f"the limit {what}={most} was asked; give a share up to 1, a percentage or a number"
            + (" with kB, MB or GB" if what == "memory" else "")
        )
    number, unit = float(match[1]), (match[2] or "").lower()
    share = number / 100 if unit == "%" else number if number <= 1 and unit == "" else None
    if what == "memory":
        most_bytes = share * peak_bytes(structure) if share is not None else number * BYTES[unit]
        return what, resource(structure, "peak_bytes", above=most_bytes), 0.0
    counted = resource(structure, "macs" if what == "macs" else "params")
    return what, counted, share * counted.dense if share is not None else number


def check_groups(option: str, names: Iterable[str], structure: Structure, listing: str) -> None:
    """Refuses groups that the network does not have, or that cannot be pruned.

    Args:
        option: that named them.
        names: the groups.
        structure: of the network.
        listing: the command that lists them.

    Raises:
        UsageError: the closest names, and that command.
    """
    known = [group.name for group in structure.prunable]
    for name in names:
        if name not in known:
            there = structure.by_name.get(name)
            why = "cannot be pruned anyway" if there is not None else "the network does not have"
            hint = unknown(name, known, f"it has {', '.join(known[:3])} …", most=3)
            raise UsageError(
                f"{option} {name} was asked, a group that {why}; {hint}; `{listing}` lists them all"
            )


def check_prunable(model: str, structure: Structure) -> None:
    """Refuses a network of which nothing can go.

    Raises:
        UsageError: the most frequent reasons, and the command that says where.
    """
    if structure.nothing_prunable is not None:
        raise UsageError(
            f"a plan of {model} was asked; {structure.nothing_prunable}; `halpiee explain {model}` says where"
        )


def check_memory(structure: Structure, narrowest: Mapping[str, int], most_bytes: float) -> None:
    """Refuses a limit on memory below what the narrowest network allowed needs.

    Raises:
        BudgetError: ``.minimum`` in bytes.
    """
    from halpiee.selection.limits import peak_bytes

    least = peak_bytes(structure, narrowest)
    if least > most_bytes:
        raise BudgetError(
            f"--also memory: at most {most_bytes:,.0f} bytes were asked; the largest op of the narrowest network "
            f"allowed holds {least:,.0f}; ask for at least {least / 1e3:.1f}kB, or for a smaller image or batch",
            minimum=least,
        )


def above_bytes(cost: Cost) -> float:
    """Returns the most bytes that a limit on memory allows one op; NaN of any other cost."""
    return float(getattr(cost.profile, "above", math.nan))


def limit_name(name: str, cost: Cost) -> str:
    """Returns what a limit is called when it is too small."""
    return f"bytes above --also memory={above_bytes(cost):.0f}" if name == "memory" else f"--also {name}"
