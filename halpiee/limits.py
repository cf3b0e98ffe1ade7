"""Limits beside the latency, as text: ``macs=0.5``, ``memory=12MB``, ``profile=batch8.jsonl:0.6``, ``GROUP=16..48``.

The limits of a plan, a training and Python are the same: text is read here, and a cost carries the result.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from halpiee.advice import contents_of
from halpiee.errors import BudgetError, ProfileError, UsageError, unknown
from halpiee.ranges import parse_budget

if TYPE_CHECKING:
    import latency
    from halpiee.selection.cost import Also, Cost
    from halpiee.shared_options import Limiting
    from halpiee.structure.groups import Structure


C = TypeVar("C", bound="Cost")

QUANTITIES = ("macs", "params", "memory", "energy", "profile")

FORMS = "macs=0.5, params=2e6, memory=12MB, energy=0.6 or profile=batch8.jsonl:0.6"

BYTES = {"": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}


@dataclass(frozen=True)
class Further:
    """A limit beside the latency, as it was typed."""

    what: str  # one of ``QUANTITIES``
    file: Path | None  # the profile of ``profile=FILE:MOST``, or of ``energy=FILE:MOST``
    most: str  # a share of the dense network, or a number with its unit

    @property
    def name(self) -> str:
        """What it is called: ``macs``, or the file of a profile."""
        if self.file is None:
            return self.what
        return str(self.file) if self.what == "profile" else f"{self.what}={self.file}"


def parse_also(text: str) -> Further:
    """Reads ``WHAT=MOST``; ``FILE=MOST`` is short for ``profile=FILE:MOST``.

    Raises:
        UsageError: it is not of that form, neither a quantity nor a profile, or no number.
    """
    what, equals, most = text.rpartition("=")
    if not equals or not what or not most:
        raise UsageError(f"the limit {text[:80]!r} was asked; give WHAT=LIMIT such as {FORMS}")
    file: str | None = None
    if what in ("profile", "energy"):
        file, _, most = most.rpartition(":")
    elif what not in QUANTITIES:
        what, file = "profile", what
    if file and not Path(file).is_file():
        raise UsageError(
            f"a limit on {file[:200]!r} was asked; that is no profile file, and the quantities are "
            f"{', '.join(QUANTITIES)}; give one of these"
        )
    if what == "profile" and not file:
        raise UsageError(f"the limit {text[:80]!r} names no profile; give profile=FILE:MOST")
    found = Further(what, Path(file) if file else None, most)
    if what == "profile":
        parse_budget(most)
    else:
        _number(found)
    return found


def _number(further: Further) -> tuple[float, str]:
    """Returns (number, unit) of a counted quantity; the unit is ``%`` or empty for a share or a plain number."""
    units = {"memory": BYTES, "energy": {"": 1.0, "mj": 1.0}}.get(further.what, {"": 1.0})
    text = further.most
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([kmg]b|mj|%)?", text, re.IGNORECASE)
    if not match or not 0 < float(match[1]) < 1e300 or (match[2] or "").lower() not in (*units, "%"):
        more = {"memory": " with kB, MB or GB", "energy": " with mJ"}.get(further.what, "")
        raise UsageError(
            f"the limit {further.what}={text[:80]} was asked; give a share up to 1, a percentage or a number{more}"
        )
    return float(match[1]), (match[2] or "").lower()


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
    """Returns the images per inference of a profile; ``measuring`` is the command, but for --out, that measures one.

    Raises:
        UsageError: it holds no cell, or several batches.
    """
    # widths are probed with single images, whatever the batch
    cells = [cell for cell in profile.cells if cell.get("role") not in ("probe", "anchor")] or profile.cells
    batches = sorted({int(cell.get("batch", 1)) for cell in cells})
    if not batches:
        raise ProfileError(f"{path} {contents_of(profile)}; `{measuring} --out {path}` continues it")
    if len(batches) != 1:
        raise UsageError(
            f"the batch of {path} was asked; it holds {', '.join(map(str, batches))}; say which with --batch, or "
            "profile one batch per file"
        )
    return batches[0]


@dataclass(frozen=True)
class Network:
    """The network that limits are read for."""

    structure: Structure
    at_batch: Callable[
        [int], Structure
    ]  # the same network traced at another batch, for a profile of that batch
    profile: latency.Profile | None = (
        None  # of the latency, whose cells may hold energies; None: not measured yet
    )


def limits_of(texts: Iterable[str], network: Network) -> tuple[Also, ...]:
    """Returns the limits of ``--also``, each with its cost; see ``parse_also``.

    Raises:
        UsageError: a limit that is no number above 0, or energy without a profile that holds it.
        ProfileError: a profile that does not price the network.
    """
    return tuple(_limit(parse_also(text), network) for text in texts)


def _limit(further: Further, network: Network) -> Also:
    import latency
    from halpiee.deploy.target import in_terms_of
    from halpiee.selection.cost import Also, LatencyCost
    from halpiee.selection.limits import energy, peak_bytes, resource

    structure, profile = network.structure, network.profile
    if further.file is not None:
        profile = latency.Profile.load(further.file)
        structure = in_terms_of(profile, network.at_batch(batch_of(profile, further.file)))
    if further.what == "profile":
        assert profile is not None
        cost = LatencyCost(structure, profile)
        us, fraction = parse_budget(further.most)
        most = us if us is not None else (fraction or 1.0) * cost.dense_us
        return Also(further.name, cost, most, share=fraction)
    number, unit = _number(further)
    share = number / 100 if unit == "%" else number if number <= 1 and unit == "" else None
    if further.what == "memory":
        most = share * peak_bytes(structure) if share is not None else number * BYTES[unit]
        return Also("memory", resource(structure, "peak_bytes", above=most), 0.0)
    if further.what == "energy":
        if profile is None:
            raise UsageError("a limit on energy was asked before anything is measured; give energy=FILE:0.6")
        counted = energy(structure, profile)
    else:
        counted = resource(structure, "macs" if further.what == "macs" else "params")
    return Also(further.name, counted, share * counted.dense if share is not None else number, share=share)


INT8_MULTIPLE = 16
"""Widths that an int8 plan offers, unless --multiple-of says otherwise.

ONNX Runtime's integer convolutions take 23 µs for 16 → 16 channels at 32×32, 30 for 12 → 12, 29 for 8 → 8 and 26 for
4 → 4 (AMD EPYC, AVX-512 VNNI): a width between two multiples is slower than the next wider one.
"""


def in_int8(cost: Cost) -> bool:
    """Whether a latency was profiled in int8."""
    return bool(getattr(cost.profile, "environment", {}).get("dtype") == "int8")


def offered(cost: C, options: Limiting, **more: Any) -> C:
    """Returns a cost with the widths that the options allow; ``more`` goes to ``Cost.restricted``.

    The structure of the cost is traced with ``vanish`` where blocks may be removed.
    """
    multiple = INT8_MULTIPLE if options.multiple_of == 1 and in_int8(cost) else options.multiple_of
    return cost.restricted(multiple=multiple, least=options.min_width, vanish=options.vanish, **more)


def whole_groups(
    structure: Structure, options: Limiting, listing: str = "halpiee explain MODEL"
) -> frozenset[str]:
    """Returns the groups that ``--protect`` and ``--only`` leave whole; the command ``listing`` lists all.

    A pattern matches a layer by its name or by the name of a module around it. A group is protected where any layer
    that writes it matches; ``only`` frees it where all of them do. A group's own name matches that group.

    Raises:
        UsageError: a pattern that matches nothing that can be pruned, or nothing that is left to cut.
    """
    writers: dict[str, set[str]] = {group.name: set() for group in structure.prunable}
    for layer in structure.layers:
        for name, _ in layer.out_groups:
            if name in writers:
                writers[name].add(layer.name)
    known = {*writers, *(layer for layers in writers.values() for layer in layers)}
    for option, patterns in (("--protect", options.protect), ("--only", options.only)):
        for pattern in patterns:
            if not any(_matches(pattern, name) for name in known):
                there = [layer.name for layer in structure.layers if _matches(pattern, layer.name)]
                why = "writes channels that can be pruned" if there else "is called that"
                hint = unknown(pattern, known, f"it has {', '.join(sorted(known)[:3])} …", most=3)
                raise UsageError(
                    f"{option} {pattern[:200]} was asked, and no layer {why}; {hint}; `{listing}` lists them all"
                )
    whole = set()
    for group, layers in writers.items():
        if any(p == group or any(_matches(p, layer) for layer in layers) for p in options.protect):
            whole.add(group)
        if options.only and group not in options.only:
            free = bool(layers) and all(any(_matches(p, layer) for p in options.only) for layer in layers)
            if not free:
                whole.add(group)
    if writers and len(whole) == len(writers):
        given = " and ".join(o for o in options.narrowed if o in ("--protect", "--only"))
        raise UsageError(
            f"{given} leave all {len(writers)} groups whole, so nothing can be cut; `{listing}` lists which layers "
            "write them"
        )
    return frozenset(whole)


def _matches(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")


def check_groups(option: str, names: Iterable[str], structure: Structure, listing: str) -> None:
    """Refuses groups named by an option that the network does not have, or that cannot be pruned.

    Raises:
        UsageError: the closest names, and ``listing``, the command that lists all.
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


def _most_bytes(cost: Cost) -> float:
    """Returns the most bytes that a limit on memory allows one op; NaN of any other cost."""
    return float(getattr(cost.profile, "above", math.nan))


def check_also(also: Iterable[Also], structure: Structure, narrowest: Mapping[str, int]) -> None:
    """Refuses limits on memory that the narrowest network allowed does not keep.

    Raises:
        BudgetError: ``.minimum`` in bytes.
    """
    from halpiee.selection.limits import peak_bytes

    for one in also:
        if one.name == "memory" and (least := peak_bytes(structure, narrowest)) > _most_bytes(one.cost):
            raise BudgetError(
                f"--also memory: at most {_most_bytes(one.cost):,.0f} bytes were asked; the largest op of the "
                f"narrowest network allowed holds {least:,.0f}; ask for at least {least / 1e3:.1f}kB, or for a smaller "
                "image or batch",
                minimum=least,
            )


def used_of(also: Iterable[Also], structure: Structure, counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """Returns {limit, used, most, measured} of each limit as JSON; of memory the largest op."""
    from halpiee.selection.limits import peak_bytes

    found = []
    for one in also:
        used, most = one.cost.total(counts), one.most
        if (
            one.name == "memory"
        ):  # its cost counts the bytes above the limit, op by op; shown is the largest op
            used, most = peak_bytes(structure, counts), _most_bytes(one.cost)
        found.append({"limit": one.name, "used": used, "most": most, "measured": one.measured})
    return found
