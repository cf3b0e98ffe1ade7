"""``halpiee plan``: widths that meet a latency, from a profile alone; no data, no GPU, seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from halpiee.cli.common import answer, examples, input_size, json_option, say
from halpiee.errors import OutputInUseError

__all__ = ["command"]


@click.command(
    "plan",
    epilog=examples(
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5 --out half.json",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5 --sweep",
    ),
)
@click.argument("model")
@click.option(
    "--profile", type=click.Path(path_type=Path), required=True, help="Made with `halpiee profile`."
)
@click.option(
    "--budget", required=True, help="Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us)."
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Score channels by the magnitude of these weights."
)
@click.option("--batch", default=1, show_default=True, help="Images per inference, as profiled.")
@click.option("--size", default="224", show_default=True, help="Image size: 224, 3x224x224.")
@click.option("--width", type=float, help="Width multiplier of a zoo network.")
@click.option("--classes", default=None, type=int, help="Classes of the network, if not its own default.")
@click.option("--solver", default="joint", show_default=True, type=click.Choice(["joint", "cpsat", "linear"]))
@click.option("--sweep", is_flag=True, help="Also the whole curve of latencies from one pass.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan as JSON.")
@click.option("--seed", default=0, show_default=True)
@json_option
def command(
    model: str,
    profile: Path,
    budget: str,
    weights: Path | None,
    batch: int,
    size: str,
    width: float | None,
    classes: int | None,
    solver: Literal["joint", "cpsat", "linear"],
    sweep: bool,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Choose MODEL's widths for a latency: predicted time, MACs, and how far from optimal at most."""
    from halpiee.training.settings import parse_budget

    shape = input_size(size)
    us, fraction = parse_budget(budget)
    if out is not None and out.exists():
        raise OutputInUseError(f"--out {out} exists; choose another name, nothing is overwritten")
    import latency
    from halpiee.cli.loading import traced
    from halpiee.saliency import Magnitude
    from halpiee.selection.choose import select
    from halpiee.selection.cost import LatencyCost
    from halpiee.selection.pareto import pareto
    from halpiee.sparsity.granularity import Channels
    from halpiee.structure.plan import Plan
    from halpiee.structure.size import macs, widths

    measured = latency.Profile.load(profile)
    network = traced(model, batch, shape, width=width, classes=classes, weights=weights, seed=seed)
    structure = network.structure
    cost = LatencyCost(structure, measured)
    parameters = dict(network.model.named_parameters())
    units = Channels(network.model, structure, trainable_only=False)
    scores = Magnitude()(units, parameters.get, lambda _: None)
    budget_us = us if us is not None else (fraction or 1.0) * cost.dense_us
    selection = select(scores, cost, budget_us, solver=solver)
    total = {
        key: sum(macs(structure, counts).values()) for key, counts in (("d", {}), ("p", selection.counts))
    }
    result: dict[str, Any] = {
        "model": model,
        "dense_us": cost.dense_us,
        "budget_us": budget_us,
        "predicted_us": selection.latency_us,
        "gap": selection.gap,
        "slack_us": selection.slack_us,
        "next_step_us": selection.next_step_us,
        "macs_dense": total["d"],
        "macs": total["p"],
        "widths": widths(structure, selection.counts),
        "widths_dense": widths(structure),
        "not_covered": list(cost.not_covered),
        "interpolated": [str(name) for name in cost.interpolated(selection.counts)],
    }
    if sweep:
        fractions = [0.1 * i for i in range(2, 10)]
        result["curve"] = [
            {"budget_us": p.budget_us, "latency_us": p.latency_us, "value": p.value, "gap": p.gap}
            for p in pareto(scores, cost, [f * cost.dense_us for f in fractions])
        ]
    if out is not None:
        Plan.from_selection(structure, selection).save(out)

    def show() -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title=f"{model}: {selection.latency_us:.0f} of {cost.dense_us:.0f} µs", box=None)
        for title in ("layer", "dense", "planned"):
            table.add_column(title, justify="left" if title == "layer" else "right")
        for layer, channels in result["widths"].items():
            table.add_row(layer, str(result["widths_dense"][layer]), str(channels))
        console = Console()
        console.print(table)
        console.print(
            f"budget {budget_us:.0f} µs, slack {selection.slack_us:.1f} µs, next step {selection.next_step_us:.1f} µs, "
            f"MACs {total['p'] / total['d']:.1%} of dense, at most {selection.gap:.2%} from optimal"
        )
        for point in result.get("curve", []):
            console.print(
                f"  {point['latency_us']:9.0f} µs  value {point['value']:.4g}  gap {point['gap']:.2%}"
            )
        if cost.not_covered:
            say(f"not timed: {', '.join(cost.not_covered)}")

    answer(result, as_json, show)
