"""Do two profiles of one device tell the same? Cells measured in both that differ are named before they are joined."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from latency.op import Op, in_words
from latency.profiles import Profile, cell_key

__all__ = ["Conflict", "conflicts"]

APART = 0.05
"""Times of one cell that differ by more than this share of the faster conflict."""


@dataclass(frozen=True)
class Conflict:
    """One cell that was measured twice, with different results.

    Attributes:
        op: in words.
        c_in: its input channels.
        c_out: its output channels.
        us: the times, in the order of the profiles.
    """

    op: str
    c_in: int
    c_out: int
    us: tuple[float, ...]

    def __str__(self) -> str:
        times = " and ".join(f"{us:.1f}" for us in self.us)
        return f"{self.op} {self.c_in}→{self.c_out}: {times} µs"


def conflicts(profiles: Iterable[Profile]) -> list[Conflict]:
    """Returns the cells of the tables that profiles do not agree on, the furthest apart first."""
    times: dict[str, list[float]] = {}
    cells = {}
    for profile in profiles:
        for cell in profile.cells:
            if cell.get("role", "sweep") == "sweep":
                times.setdefault(cell_key(cell), []).append(float(cell["us"]))
                cells[cell_key(cell)] = cell
    found = []
    for key, us in times.items():
        if len(us) > 1 and max(us) > (1 + APART) * min(us):
            op = Op.from_key(cells[key])
            found.append(Conflict(in_words(op), op.c_in, op.c_out, tuple(us)))
    return sorted(found, key=lambda one: -max(one.us) / max(min(one.us), 1e-9))
