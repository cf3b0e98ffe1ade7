"""What ``halpiee plan`` says of a selection: its figures, what should be known of it, and the table on the screen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from halpiee.asked import parse_budget
from halpiee.cli.output import say, screen
from halpiee.cli.plan_limits import above_bytes

if TYPE_CHECKING:
    from torch import Tensor

    from halpiee.cli.plan_limits import Limit
    from halpiee.cli.plan_problem import Plan
    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.groups import Structure
    from halpiee.structure.plan import Selection

__all__ = ["notes_on", "outcome", "show"]


def outcome(
    structure: Structure,
    cost: LatencyCost,
    selection: Selection,
    *,
    model: str,
    scores: dict[str, Tensor],
    limits: list[Limit],
) -> dict[str, Any]:
    """Returns what is said of a plan as JSON: times in µs, widths by layer, what each limit leaves.

    Args:
        structure: of the network.
        cost: predicted latency.
        selection: what was chosen.
        model: its name.
        scores: of every prunable group.
        limits: all that were kept, the latency first.
    """
    from halpiee.selection.limits import peak_bytes
    from halpiee.structure.groups import macs, parameters, widths

    counts = selection.counts
    used = []
    for name, other, most in limits:
        if name == "memory":
            # Limited is what exceeds it, op by op; said is the largest op.
            used.append({"limit": name, "used": peak_bytes(structure, counts), "most": above_bytes(other)})
        else:
            used.append({"limit": name, "used": other.total(counts), "most": most})
    total = sum(float(score.double().sum()) for score in scores.values())
    kept = sum(float(scores[name].double()[keep].sum()) for name, keep in selection.keep.items())
    return {
        "model": model,
        "dense_us": cost.dense_us,
        "budget_us": selection.budget_us,
        "predicted_us": selection.latency_us,
        "gap": selection.gap,
        "path": selection.path,
        "slack_us": selection.slack_us,
        "next_step_us": None if math.isnan(selection.next_step_us) else selection.next_step_us,
        "score_kept": kept / total if total else None,
        "limits": used,
        "macs_dense": sum(macs(structure).values()),
        "macs": sum(macs(structure, counts).values()),
        "params_dense": parameters(structure),
        "params": parameters(structure, counts),
        "groups": {g.name: [counts[g.name], g.size] for g in structure.prunable},
        "widths": widths(structure, counts),
        "widths_dense": widths(structure),
        "not_covered": list(cost.not_covered),
        "interpolated": [str(name) for name in cost.interpolated(counts)],
    }


def notes_on(result: dict[str, Any], selection: Selection, asked: Plan, *, first: Sequence[str]) -> list[str]:
    """Returns what should be known of a plan.

    Args:
        result: its figures.
        selection: what was chosen.
        asked: the options.
        first: the first group, where it is protected.
    """
    notes = [f"scores: {result['scores']}"]
    if result["untimed"]:
        notes.append(_without(result["untimed"], asked.budget, parse_budget(asked.budget)[1] is not None))
    if first:
        notes.append(f"first group {first[0]} stays whole; --no-protect-first frees it")
    elif asked.protect_first:
        notes.append("nothing to protect: the first layer shares its channels with later ones")
    if selection.gap > asked.gap and asked.solver != "linear":
        notes.append(
            f"{asked.gap:.2%} from optimal was asked and {selection.gap:.2%} is proved"
            + ("; the time limit cut the search short" if selection.path.endswith("+time") else "")
        )
    if selection.latency_us > selection.budget_us * (1 + 1e-9):
        notes.append(
            f"over budget: linear believed its own cost; it takes {selection.latency_us / selection.budget_us:.1%} of "
            "the budget; --solver joint keeps it"
        )
    return notes


def _without(unpriced: dict[str, int], budget: str, shared: bool) -> str:
    """Returns what the predicted times leave out, and what that does to the budget."""
    ops = ", ".join(f"{name} ×{n}" for name, n in unpriced.items())
    if shared:
        return (
            f"not priced: {ops}; no profile has entries for them, all times and shares here leave them out, and the "
            "share of the whole network that the plan takes is larger; `halpiee train` calibrates with whole networks"
        )
    return (
        f"warning: not priced: {ops}; no profile has entries for them, so the network takes longer than the {budget} "
        "asked by what they take, and all times and shares here leave them out; `halpiee train` calibrates with whole "
        "networks"
    )


def show(result: dict[str, Any]) -> None:
    """Prints a plan: its widths, what they cost, and what should be known of it."""
    from rich.table import Table

    dense = result["dense_us"]
    table = Table(
        title=f"{result['model']}, batch {result['batch']}: {result['predicted_us']:.0f} of {dense:.0f} µs",
        box=None,
    )
    for title in ("layer", "dense", "planned"):
        table.add_column(title, justify="left" if title == "layer" else "right")
    for layer, channels in result["widths"].items():
        table.add_row(layer, str(result["widths_dense"][layer]), str(channels))
    console = screen()
    console.print(table)
    step = result["next_step_us"]
    console.print(
        f"budget {result['budget_us']:.0f} µs, slack {result['slack_us']:.1f} µs, "
        + (f"next step {step:.1f} µs, " if step is not None else "nothing left to widen, ")
        + f"MACs {result['macs'] / result['macs_dense']:.1%} of dense, parameters "
        f"{result['params'] / result['params_dense']:.1%}, at most {result['gap']:.2%} from optimal ({result['path']})"
        + (", of its own linearised problem" if result["path"].startswith("linear") else "")
    )
    for limit in result["limits"][1:]:
        console.print(f"  also {limit['limit']}: {limit['used']:,.0f} of at most {limit['most']:,.0f}")
    for point in result.get("curve", []):
        console.print(
            f"  {point['latency_us']:9.0f} µs  {point['latency_us'] / dense:6.1%}  value {point['value']:.4g}  "
            f"gap {point['gap']:.2%}"
        )
    for note in result["notes"]:
        console.print(note)
    if result["not_covered"]:
        say(f"not timed: {', '.join(result['not_covered'])}")
    if result["interpolated"]:
        say(
            f"{len(result['interpolated'])} of {len(result['widths'])} layers are priced between measured cells"
        )
