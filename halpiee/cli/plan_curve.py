"""The whole curve and its picture: which share of the scores each latency keeps, and how little more could be kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from halpiee.errors import BudgetError
from latency._files import check_place, write

if TYPE_CHECKING:
    from torch import Tensor

    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.plan import Selection

__all__ = ["check_picture", "draw_curve", "solve_curve"]

SWEEP = tuple(0.05 * i for i in range(1, 21))
"""Shares of the dense latency along the curve."""


def check_picture(path: Path) -> None:
    """Refuses a file that exists or is no picture, before anything is worked out.

    Raises:
        click.BadParameter: another ending than .svg or .png.
        OutputInUseError: the file exists.
        WriteError: it cannot be written.
    """
    if path.suffix not in (".svg", ".png"):
        raise click.BadParameter(f"--plot {path} is no picture; end the name in .svg or .png")
    check_place(path)


def solve_curve(
    scores: dict[str, Tensor],
    cost: LatencyCost,
    selection: Selection,
    protect: set[str],
    plot: Path | None,
    *,
    title: str,
) -> list[dict[str, float]]:
    """Solves the whole curve, and draws it beside networks whose groups all keep the same share.

    Args:
        scores: of every prunable group.
        cost: predicted latency.
        selection: the plan, which is drawn too.
        protect: groups that stay whole.
        plot: a new picture, or None.
        title: above it.

    Returns:
        A point for each share in ``SWEEP``: budget_us, latency_us, value, gap.
    """
    from halpiee.selection.limits import pareto
    from halpiee.selection.select import uniform

    points = pareto(scores, cost, [share * cost.dense_us for share in SWEEP], protect=protect)
    free = {name: score.double().sort(descending=True).values.cumsum(0) for name, score in scores.items()}
    fixed = sum(float(free[name][-1]) for name in protect if name in free)
    if plot is not None:

        def worth(counts: dict[str, int]) -> float:
            return sum(float(free[name][k - 1]) for name, k in counts.items() if k > 0)

        same = []
        for point in points:
            try:
                counts = uniform(cost, point.budget_us, protect=protect)
            except BudgetError:
                continue
            same.append((cost.total_us(counts), worth(counts)))
        draw_curve(
            plot,
            points,
            title=title,
            dense_us=cost.dense_us,
            total=worth({name: len(score) for name, score in free.items()}),
            fixed=fixed,
            chosen=(selection.latency_us, worth(selection.counts)),
            uniform=same,
        )
    return [
        {"budget_us": p.budget_us, "latency_us": p.latency_us, "value": p.value + fixed, "gap": p.gap}
        for p in points
    ]


def draw_curve(
    path: Path,
    points: Sequence[Selection],
    *,
    title: str,
    dense_us: float,
    total: float,
    fixed: float,
    chosen: tuple[float, float],
    uniform: Sequence[tuple[float, float]] = (),
) -> None:
    """Draws a curve of selections into a file.

    Args:
        path: ending in .svg or .png.
        points: the selections, by latency.
        title: above the picture.
        dense_us: latency of the whole network.
        total: all scores together.
        fixed: scores of the groups that stay whole, which the points do not count.
        chosen: latency and value of the plan.
        uniform: latency and value of networks whose groups all keep the same share.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    unit, scale = ("ms", 1e-3) if dense_us >= 2000 else ("µs", 1.0)
    figure, axes = pyplot.subplots(figsize=(7.2, 4.4), layout="constrained")
    budgets = [p.budget_us * scale for p in points]
    axes.fill_between(
        budgets,
        [(p.value + fixed) / total for p in points],
        [(p.upper_bound + fixed) / total for p in points],
        color="#c2410c",
        alpha=0.35,
        linewidth=0,
        label=f"what could be missed (at most {max(p.gap for p in points):.2%})",
    )
    axes.plot(
        [p.latency_us * scale for p in points],
        [(p.value + fixed) / total for p in points],
        color="#0b7a75",
        marker="o",
        markersize=3.5,
        linewidth=1.8,
        label="joint selection",
    )
    if uniform:
        axes.plot(
            [us * scale for us, _ in uniform],
            [value / total for _, value in uniform],
            color="#8694a5",
            marker="s",
            markersize=3,
            linewidth=1.2,
            linestyle="--",
            label="same share of every group",
        )
    axes.plot(
        [chosen[0] * scale],
        [chosen[1] / total],
        "D",
        color="#c0267e",
        markersize=8,
        zorder=5,
        label="this plan",
    )
    axes.set_xlabel(f"predicted latency ({unit})")
    axes.set_ylabel("share of all scores kept")
    axes.set_xlim(0, dense_us * scale * 1.03)
    axes.set_ylim(0, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color="#e2e6eb", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    whole = dense_us * scale

    def share_of(x: Any) -> Any:
        return x / whole

    def latency_of(share: Any) -> Any:
        return share * whole

    shares = axes.secondary_xaxis("top", functions=(share_of, latency_of))
    shares.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    shares.spines["top"].set_visible(False)
    shares.set_xlabel("share of the dense latency")
    axes.legend(loc="lower right", frameon=False)
    figure.suptitle(title, fontsize=11)
    kind, content = path.suffix[1:], io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    write(path, content.getvalue())
    pyplot.close(figure)
