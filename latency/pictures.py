"""Staircases and heat maps of a profile: where latency steps, and which cells were measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from latency._files import write
from latency.inspect import inspect
from latency.op import Op
from latency.profiles import Profile

__all__ = ["draw"]

INK, RULE, STAIR, DOT = "#1f2933", "#e2e6eb", "#0b7a75", "#c0267e"

EDGES: dict[str, Any] = {"color": STAIR, "linewidth": 1.2, "label": "time at the right edge of each step"}
BETWEEN: dict[str, Any] = {
    "color": STAIR, "linewidth": 0.9, "alpha": 0.45, "label": "widths between, where slower than the edge"
}  # fmt: skip
CELLS: dict[str, Any] = {"color": DOT, "label": "measured cell"}
"""The marks, as they are drawn and as the legend names them."""


def draw(profile: Profile, path: str | Path, *, tables: int | None = None) -> int:
    """Draws one row per table into a picture: latency over either side with the other whole, and over both.

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

    found: dict[str, Op] = {}
    for cell in profile.cells:
        if cell.get("role", "sweep") == "sweep":
            found.setdefault(Op.from_key(cell).table_key(), Op.from_key(cell))
    words = {key: op.op for key, op in zip(found, inspect(profile).ops, strict=True)}

    def dense_us(key: str) -> float:
        table = profile.table(found[key])
        return float(table.lookup(table.op.c_in, table.op.c_out))

    chosen = sorted(found, key=dense_us, reverse=True)[:tables]
    figure, axes = pyplot.subplots(len(chosen), 3, figsize=(11, 2.7 * len(chosen) + 0.5), squeeze=False)
    figure.set_layout_engine("constrained", h_pad=0.14)  # the title of a row keeps away from the row above
    _legend(figure)
    for row, key in zip(axes, chosen, strict=True):
        _row(row, profile, found[key], words[key])
    kind, content = Path(path).suffix[1:], io.BytesIO()
    figure.savefig(content, format=kind, dpi=100, metadata={"Date": None} if kind == "svg" else None)
    write(path, content.getvalue())
    pyplot.close(figure)
    return len(chosen)


def _legend(figure: Any) -> None:
    """Says above the picture what its lines and dots are."""
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], **EDGES), Line2D([], [], **BETWEEN)]
    marks.append(Line2D([], [], linestyle="", marker="o", markersize=3, **CELLS))
    figure.legend(handles=marks, loc="outside upper left", ncols=3, fontsize=8, frameon=False)


def _row(axes: Any, profile: Profile, op: Op, title: str) -> None:
    from matplotlib.colors import LogNorm

    table = profile.table(op)
    wide = table.op
    ins, outs = np.arange(1, wide.c_in + 1), np.arange(1, wide.c_out + 1)
    axes[0].set_title(title.replace("batch_norm", "bn"), loc="left", fontsize=9, color=INK)
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
