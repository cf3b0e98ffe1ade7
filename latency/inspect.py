"""What is in a profile, and how far can it be trusted? Coverage, spread, contention, age and environment, as data.

``draw`` shows it: staircases and heat maps, where latency steps and which cells were measured.
"""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latency.files import write
from latency.op import Op, in_words
from latency.profiles import Profile
from latency.table import Table

STEADY = 0.03
"""Largest share by which an unchanging kernel may vary within a profile of a GPU."""

ALLOWED = 0.05
"""Largest 95th percentile of the held-out cells' errors at which a profile is trusted."""


@dataclass(frozen=True)
class OpCoverage:
    """One table."""

    op: str  # in words
    c_in: int  # widest C_in
    c_out: int  # widest C_out
    cells: int  # measured cells the table is made of
    edges: int  # cells at the crossings of all edges, for which the table answers
    steps: tuple[int, int]  # steps of both axes
    dense_us: float  # time at the widest
    holdout: int  # held-out cells
    holdout_median: float  # median of their errors, relative, without sign; NaN without any
    holdout_worst: float  # the largest of these errors
    contended: float  # share of the cells that found no quiet moment


@dataclass(frozen=True)
class Inspection:
    """A whole profile."""

    environment: dict[str, Any]  # circumstances of the measurements
    roles: dict[str, int]  # number of cells by role
    ops: tuple[OpCoverage, ...]  # its tables
    spread_median: float  # median half-width of the cells' 95 % intervals, relative
    spread_p95: float  # 95th percentile of these
    contention_median: float  # median share of the time that went to others; NaN where it was not measured
    contention_worst: float  # the largest
    holdout_median: float  # median error of all held-out cells, relative, weighted by nothing
    holdout_p95: float  # 95th percentile of these errors, each weighted by the time of its cell
    holdout_p95_cells: float  # the same, every cell counting alike, however short
    oldest_days: float  # age of the oldest cell
    newest_days: float  # age of the newest cell
    # of a GPU's kernel that never changes, how much slower its slowest twentieth was than its fastest; NaN where none
    # was timed
    clock_spread: float = float("nan")
    throttled: tuple[str, ...] = ()  # what throttled the GPU's clock: `power`, `heat`, `hardware`

    def as_dict(self) -> dict[str, Any]:
        """Returns it as plain data."""
        return asdict(self)

    @property
    def holdout_warning(self) -> str | None:
        """A warning where held-out cells contradict the tables, else None."""
        if not self.holdout_p95 > ALLOWED:
            return None
        return f"holdout: one cell in twenty is off by {self.holdout_p95:.0%} or more; measure more cells"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust it, one sentence each."""
        found = []
        if self.spread_p95 > 0.1:
            found.append(f"spread: one cell in twenty is uncertain by {self.spread_p95:.0%}; measure again")
        if self.contention_median > 0.1:
            found.append(
                f"contention: {self.contention_median:.0%} of the time went to others; stop other work, measure again"
            )
        if self.holdout_warning is not None:
            found.append(self.holdout_warning)
        if self.clock_spread > STEADY or self.throttled:
            why = f", throttled by {' and '.join(self.throttled)}" if self.throttled else ""
            moved = f" by {self.clock_spread:.0%}" if self.clock_spread > STEADY else ""
            found.append(
                f"clock: the GPU's speed moved{moved}{why}; lock its clock (nvidia-smi -lgc) and measure again"
            )
        if self.newest_days > 180:
            found.append(
                f"age: nothing is younger than {self.newest_days:.0f} days; measure a few cells again"
            )
        return tuple(found)


def held_out(profile: Profile) -> tuple[float, ...]:
    """Returns the relative errors, with their sign, of the tables at the cells that were held out of them."""
    swept, holdouts = _by_table(profile, "sweep"), _by_table(profile, "holdout")
    return tuple(
        error
        for key, cells in swept.items()
        if key in holdouts
        for _, error in _judged(profile.table(Op.from_key(cells[0])), holdouts[key])
    )


def _by_table(profile: Profile, role: str) -> dict[str, list[Mapping[str, Any]]]:
    """Returns the cells of a role, by the names of their tables, in order of appearance."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for cell in profile.cells:
        if cell.get("role", "sweep") == role:
            found.setdefault(Op.from_key(cell).table_key(), []).append(cell)
    return found


def _judged(table: Table, holdouts: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], float]]:
    """Returns the held-out cells that judge a table, each with its relative error.

    Of a sweep that goes on the table may be narrower yet; what was measured for it later on no longer judges it.
    """
    within = [c for c in holdouts if c["c_in"] <= table.op.c_in and c["c_out"] <= table.op.c_out]
    judges = [c for c in within if not bool(table.measured(c["c_in"], c["c_out"]))]
    return [(c, float(table.lookup(c["c_in"], c["c_out"])) / c["us"] - 1.0) for c in judges]


def inspect(profile: Profile, *, now: float | None = None) -> Inspection:
    """Sums up a profile as of ``now``, in seconds since the epoch."""
    swept, holdouts = _by_table(profile, "sweep"), _by_table(profile, "holdout")
    errors: list[float] = []
    weights: list[float] = []
    ops = []
    for key, cells in swept.items():
        table = profile.table(Op.from_key(cells[0]))
        judged = _judged(table, holdouts.get(key, []))
        mine = [abs(error) for _, error in judged]
        errors += mine
        weights += [float(c["us"]) for c, _ in judged]
        widest = table.op
        contended = sum("disturbed" in str(c.get("method", "")) for c in cells) / len(cells)
        ops.append(
            OpCoverage(
                op=in_words(widest),
                c_in=widest.c_in,
                c_out=widest.c_out,
                cells=len(cells),
                edges=_edges(widest, table.steps),
                steps=table.steps,
                dense_us=float(table.lookup(widest.c_in, widest.c_out)),
                holdout=len(mine),
                holdout_median=float(np.median(mine)) if mine else float("nan"),
                holdout_worst=max(mine, default=float("nan")),
                contended=contended,
            )
        )
    spread = [
        (c["ci_hi"] - c["ci_lo"]) / (2.0 * c["us"])
        for c in profile.cells
        if c.get("role", "sweep") == "sweep" and "ci_hi" in c and c["us"] > 0
    ]
    # The wall clock cannot tell it; older profiles of several threads or of a GPU say 0 for that.
    unmeasured = int(profile.environment.get("threads", 1)) > 1 or "cuda" in profile.environment
    contention = [
        float(c["contention"]) for c in profile.cells if c.get("contention") is not None and not unmeasured
    ]
    kernel = [float(c["reference_us"]) for c in profile.cells if "reference_us" in c]
    times = [float(c["time"]) for c in profile.cells if isinstance(c.get("time"), int | float)]
    now = time.time() if now is None else now
    return Inspection(
        environment=dict(profile.environment),
        roles=dict(Counter(str(c.get("role", "sweep")) for c in profile.cells)),
        ops=tuple(ops),
        spread_median=_quantile(spread, 0.5),
        spread_p95=_quantile(spread, 0.95),
        contention_median=_quantile(contention, 0.5),
        contention_worst=max(contention, default=float("nan")),
        holdout_median=_quantile(errors, 0.5),
        holdout_p95=_weighted_quantile(errors, weights, 0.95),
        holdout_p95_cells=_quantile(errors, 0.95),
        oldest_days=(now - min(times)) / 86400.0 if times else float("nan"),
        newest_days=(now - max(times)) / 86400.0 if times else float("nan"),
        clock_spread=_quantile(kernel, 0.95) / _quantile(kernel, 0.05) - 1.0 if kernel else float("nan"),
        throttled=tuple(sorted({str(why) for c in profile.cells for why in c.get("throttled", ())})),
    )


def _edges(op: Op, steps: tuple[int, int]) -> int:
    ins, outs = (-(-width // max(1, step)) for width, step in zip((op.c_in, op.c_out), steps, strict=True))
    if op.reads_image:
        return outs
    return ins if op.diagonal else ins * outs


def _quantile(values: list[float], q: float) -> float:
    return float(np.quantile(values, q)) if values else float("nan")


def _weighted_quantile(values: list[float], weights: list[float], q: float) -> float:
    """Returns the value below which lies a share ``q`` of the weight."""
    if not values:
        return float("nan")
    order = np.argsort(values)
    below = np.cumsum(np.array(weights)[order])
    return float(np.array(values)[order][np.searchsorted(below, q * below[-1])])


INK, RULE, STAIR, DOT = "#1f2933", "#e2e6eb", "#0b7a75", "#c0267e"

EDGES: dict[str, Any] = {"color": STAIR, "linewidth": 1.2, "label": "time at the right edge of each step"}
BETWEEN: dict[str, Any] = {
    "color": STAIR, "linewidth": 0.9, "alpha": 0.45, "label": "widths between, where slower than the edge"
}  # fmt: skip
CELLS: dict[str, Any] = {"color": DOT, "label": "measured cell"}
"""The marks, as they are drawn and as the legend names them."""


def draw(profile: Profile, path: str | Path, *, tables: int | None = None) -> int:
    """Draws one row per table: latency over each side with the other at its widest, and over both.

    Left and middle: the staircase over C_out and over C_in, the other side at its widest; dots are measured cells.
    Right: µs over both sides, log-coloured. Ops with one line only (depthwise, pools, adds) have one staircase.

    Args:
        profile: the profile.
        path: ending in .svg or .png.
        tables: so many, the slowest first; all by default.

    Returns:
        How many were drawn.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = [profile.table(Op.from_key(cells[0])) for cells in _by_table(profile, "sweep").values()]
    chosen = sorted(found, key=lambda t: float(t.lookup(t.op.c_in, t.op.c_out)), reverse=True)[:tables]
    figure, axes = pyplot.subplots(len(chosen), 3, figsize=(11, 2.7 * len(chosen) + 0.5), squeeze=False)
    figure.set_layout_engine("constrained", h_pad=0.14)  # the title of a row keeps away from the row above
    _legend(figure)
    for row, table in zip(axes, chosen, strict=True):
        _row(row, table)
    kind, content = Path(path).suffix[1:], io.BytesIO()
    figure.savefig(content, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
    write(path, content.getvalue())
    pyplot.close(figure)
    return len(chosen)


def _legend(figure: Any) -> None:
    """Draws the legend above the picture."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], **EDGES), Line2D([], [], **BETWEEN)]
    marks.append(Line2D([], [], linestyle="", marker="o", markersize=3, **CELLS))
    figure.legend(handles=marks, loc="outside upper left", ncols=3, fontsize=8, frameon=False)


def _row(axes: Any, table: Table) -> None:
    from matplotlib.colors import LogNorm

    wide = table.op
    ins, outs = np.arange(1, wide.c_in + 1), np.arange(1, wide.c_out + 1)
    axes[0].set_title(in_words(wide).replace("batch_norm", "bn"), loc="left", fontsize=9, color=INK)
    if table.diagonal:
        step = wide.c_in // wide.groups if wide.groups > 1 and not wide.depthwise else 1
        both = np.arange(step, wide.c_in + 1, step)
        other = np.round(both * wide.c_out / wide.c_in).astype(int)
        _stairs(axes[0], both, table.lookup(both, other), table.measured(both, other), table.steps[0])
        axes[0].set_xlabel("channels", fontsize=8)
        for empty in axes[1:]:
            empty.set_axis_off()
        return
    _stairs(axes[0], outs, table.lookup(wide.c_in, outs), table.measured(wide.c_in, outs), table.steps[1])
    axes[0].set_xlabel(f"C_out, C_in = {wide.c_in}", fontsize=8)
    if wide.reads_image:
        for empty in axes[1:]:
            empty.set_axis_off()
        return
    _stairs(axes[1], ins, table.lookup(ins, wide.c_out), table.measured(ins, wide.c_out), table.steps[0])
    axes[1].set_xlabel(f"C_in, C_out = {wide.c_out}", fontsize=8)
    grid = np.maximum(table.lookup(ins[:, None], outs[None]), 1e-3)
    image = axes[2].pcolormesh(
        outs, ins, grid, norm=LogNorm(), cmap="viridis", shading="nearest", rasterized=True
    )
    rows, columns = np.nonzero(table.measured(ins[:, None], outs[None]))
    axes[2].plot(outs[columns], ins[rows], "o", markersize=2.5, clip_on=False, **CELLS)
    axes[2].set_xlabel("C_out", fontsize=8)
    axes[2].set_ylabel("C_in", fontsize=8)
    axes[2].tick_params(labelsize=7)
    bar = axes[2].figure.colorbar(image, ax=axes[2])
    bar.set_label("µs", fontsize=8)
    bar.ax.tick_params(which="both", labelsize=7)
    for axis in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
        axis("{x:g}")


def _stairs(axes: Any, widths: Any, us: Any, measured: Any, step: int) -> None:
    """Draws µs over widths: a strong line over the edges of the steps, a faint one where others are slower."""
    edge = np.minimum(-(-widths // step) * step, widths[-1])
    at_edge = us[np.searchsorted(widths, edge)]
    if np.any(us > at_edge):
        axes.step(widths, us, where="mid", **BETWEEN)
    axes.step(widths, at_edge, where="mid", **EDGES)
    axes.plot(widths[measured], us[measured], "o", markersize=3, clip_on=False, **CELLS)
    axes.set_ylim(0, 1.05 * float(us.max()))
    axes.set_ylabel("µs", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color=RULE, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
