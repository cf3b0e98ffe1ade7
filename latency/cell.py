"""The door of a profile's lines: what a cell and an environment may state.

Fields that are not named here are kept as they are: backends state more, and a reader of today must not refuse
tomorrow's.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Annotated, Any, Required, TypedDict

from msgspec import Meta

from latency.errors import ProfileError

__all__ = ["MOST_CHANNELS", "Cell", "Environment", "check_time", "contradiction"]

MOST_CHANNELS = 2**20
"""Channels of one side; a table holds numbers for every width up to the widest."""

Width = Annotated[int, Meta(ge=1, le=MOST_CHANNELS)]
Side = Annotated[int, Meta(ge=1, le=2**24)]
Dims = Annotated[list[Annotated[int, Meta(ge=0, le=2**16)]], Meta(max_length=3)]
Text = Annotated[str, Meta(max_length=4096)]
Id = Annotated[str, Meta(pattern=r"\A[ -~]{0,64}\Z")]
Number = Annotated[float, Meta(ge=-1e15, le=1e15)]
Us = Annotated[float, Meta(gt=0, le=1e12)]
"""A time in µs: longer than nothing, shorter than twelve days."""

Slow = tuple[Annotated[int, Meta(ge=1, le=2**16)], Annotated[float, Meta(gt=0, le=1e6)]]
Pattern = Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=1, max_length=256)]


class Cell(TypedDict, total=False):
    """One measurement: the op's key, and its value."""

    op: Required[Text]
    c_in: Required[Width]
    c_out: Required[Width]
    us: Required[Us]
    kernel: Dims
    stride: Dims
    pad: Dims
    dilation: Dims
    groups: Width
    d: Side
    h: Side
    w: Side
    batch: Side
    tail: Annotated[list[Text], Meta(max_length=64)]
    dtype: Text
    layout: Text
    cache: Text
    ci_lo: Number
    ci_hi: Number
    n: Annotated[int, Meta(ge=0, le=2**40)]
    method: Text | None
    contention: Number
    slowdown: Number | None
    time: Number | Text | None
    env: Id
    role: Text
    steps: tuple[Width, Width] | None
    pattern: tuple[Pattern | None, Pattern | None] | None
    slow: tuple[Slow | None, Slow | None] | None
    image: bool


class Environment(TypedDict, total=False):
    """Circumstances of all cells of a profile."""

    id: Id
    backend: Text
    device: Text
    dtype: Text
    layout: Text | None
    threads: Annotated[int, Meta(ge=1, le=4096)]
    cpu_flags: list[Text]
    cpu_caches: dict[Text, Text]
    not_measured: list[Text]
    anchor_us: Us
    tf32: bool | None


def check_time(cell: Mapping[str, Any], what: str) -> None:
    """Refuses a cell whose time is not a finite number of µs above 0.

    Args:
        cell: with its widths and ``us``.
        what: the op, in words.

    Raises:
        ProfileError: the message has the op, the widths and the time.
    """
    us = cell.get("us")
    if isinstance(us, bool) or not isinstance(us, numbers.Real) or not 0 < float(us) < math.inf:
        raise ProfileError(
            f"the cell of {what} at {cell['c_in']} → {cell['c_out']} has the time {us!r} µs; "
            "measure it again: remove its line from the profile and resume the sweep"
        )


def contradiction(cell: dict[str, Any]) -> str | None:
    """Returns why the fields of a cell do not go together, or None."""
    groups = cell.get("groups", 1)
    if cell["c_in"] % groups or (cell["op"].startswith("conv") and cell["c_out"] % groups):
        return f"{cell['c_in']} and {cell['c_out']} channels in {groups} groups"
    for shares in cell.get("pattern") or ():
        if shares and (sorted(set(shares)) != shares or not math.isclose(shares[-1], 1, rel_tol=1e-6)):
            return f"the pattern {shares[:8]}, whose shares do not ascend to 1"
    for name in ("stride", "pad", "dilation"):
        if cell.get(name) and len(cell[name]) != len(cell.get("kernel") or cell[name]):
            return f"{name} {cell[name]} of the kernel {cell['kernel']}"
    if 0 in (cell.get("stride") or ()):
        return f"stride {cell['stride']}"
    if "ci_hi" in cell and "ci_lo" not in cell:
        return "an upper end of its interval and no lower one"
    return None
