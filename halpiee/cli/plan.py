"""``halpiee plan``: the widths that meet a latency, from a profile alone; takes seconds, needs no data and no GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from halpiee import advice, ranges
from halpiee.cli.options import Answered, Imaged, check_picture, verb
from halpiee.cli.output import ScreenTalk, answer, kept_in, say, screen
from halpiee.errors import UsageError
from halpiee.limits import (
    INT8_MULTIPLE,
    Network,
    batch_of,
    check_also,
    check_groups,
    check_prunable,
    in_int8,
    limits_of,
    offered,
    parse_also,
    parse_between,
    used_of,
    whole_groups,
)
from halpiee.options import described, option
from halpiee.ranges import parse_budget
from halpiee.shared_options import GOAL, RUNTIME, Limiting, Protecting, Seeded, Threaded
from latency.files import check_place

if TYPE_CHECKING:
    from torch import Tensor

    import latency
    from halpiee.cli.networks import Traced
    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.groups import Structure
    from halpiee.structure.plan import Selection


SCORES, SOLVER = "Scores", "Solver"
"""Headings."""


@dataclass(frozen=True, kw_only=True)
class Plan(Imaged, Protecting, Limiting, Threaded, Seeded, Answered):
    """The network that is planned, what limits it, and what is written."""

    profile: Path | None = option(None, "Made with `halpiee profile`, or by --lazy.", RUNTIME)
    lazy: bool = option(
        False,
        "Measure on this device, with --threads, what the plan needs and --profile (a new file, or an old one) "
        "does not hold yet.",
        RUNTIME,
    )
    batch: ranges.Images | None = option(None, "Images per inference.", RUNTIME, unset="as profiled")
    budget: str = field(
        metadata=described("Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).", GOAL)
    )
    most: ranges.Positive = option(1.0, "Share of its units every group keeps at most.", GOAL)
    between: tuple[str, ...] = option(
        (), "Units of one group: GROUP=16..48; may be given several times.", GOAL
    )
    weights: Path | None = option(
        None, "Score channels by the magnitude of these weights (safetensors, .pth).", SCORES
    )
    scores: Path | None = option(
        None, "Scores of your own: safetensors or JSON, group → one number per unit.", SCORES
    )
    solver: Literal["joint", "cpsat", "linear"] = option("joint", "Solver that selects the widths.", SOLVER)
    gap: ranges.Share = option(1e-3, "Largest distance from optimal, as a share of the value.", SOLVER)
    time_limit: ranges.Seconds | None = option(
        None, "Seconds, after which the best plan so far is given.", SOLVER, unset="none"
    )
    sweep: bool = option(False, "Also compute the whole curve of latencies, in one pass.")
    plot: Path | None = option(None, "Draw that curve: a new .svg or .png file.")
    out: Path | None = option(None, "Write the plan as JSON.")

    @property
    def swept(self) -> bool:
        """Whether the whole curve is computed."""
        return self.sweep or self.plot is not None

    def measuring(self, *, batch: int, threads: int) -> str:
        """Returns the command that profiles this network, without --out."""
        return advice.command(
            "profile", self.model, shape=self.shape, **self.arguments, batch=batch, threads=threads
        )


@dataclass(frozen=True)
class Problem:
    """A network to be planned."""

    given: Plan  # the options
    network: Traced  # the network, traced as it is trained
    structure: Structure  # of the network, as the profile's target runs it
    images: int  # per inference
    measured: latency.Profile | None  # the profile; None: nothing has been measured yet
    scores: dict[str, Tensor]  # of every prunable group
    said_of_scores: str  # what they are, in words
    first: tuple[str, ...]  # groups of the first layer that stay whole
    whole: frozenset[str]  # groups that --protect and --only leave whole

    @property
    def protect(self) -> set[str]:
        """Groups that stay whole."""
        return {*self.first, *self.whole}

    def offered(self, cost: LatencyCost) -> LatencyCost:
        """Returns a cost with the widths that may be chosen."""
        return offered(cost, self.given, most=self.given.most, between=parse_between(self.given.between))

    def at_batch(self, n: int) -> Structure:
        """Returns the structure at another batch."""
        from halpiee.inputs import at_batch
        from halpiee.structure.trace import trace

        if n == self.images:
            return self.structure
        return trace(self.network.model, at_batch(self.network.example, n))


def check(given: Plan) -> Path:
    """Refuses what is wrong with the options alone, before anything is loaded; returns the profile's file."""
    if given.profile is None:
        measuring = given.measuring(batch=given.batch or 1, threads=given.threads)
        raise UsageError(
            f"a plan of {given.model} was asked for without --profile; measure one with {measuring} --out FILE, or "
            "give --lazy and the --profile FILE that what is measured shall go to"
        )
    _ = given.shape
    parse_budget(given.budget)
    others = [parse_also(text) for text in given.also]
    parse_between(given.between)
    if given.out is not None:
        check_place(given.out)
    if given.plot is not None:
        check_picture(given.plot)
    if others and given.solver == "linear":
        raise UsageError(
            "--also was asked with --solver linear, which knows one limit only; leave one of the two out"
        )
    if given.weights is not None and given.scores is not None:
        raise UsageError("--weights and --scores were both asked for; one of them says which channels matter")
    return given.profile


def opened(given: Plan, file: Path) -> Problem:
    """Returns the network with its groups, scores and profile, which must fit it."""
    import latency
    from halpiee.cli.networks import traced
    from halpiee.cli.scores import scores_of
    from halpiee.deploy.target import in_terms_of
    from halpiee.selection.options import protected
    from halpiee.structure.trace import trace

    measured = latency.Profile.load(file) if file.exists() or not given.lazy else None
    images = given.batch
    if images is None:
        measuring = given.measuring(batch=1, threads=given.threads)
        images = 1 if measured is None else batch_of(measured, file, measuring)
    network = traced(
        given.model, images, given.shape, **given.arguments, weights=given.weights, seed=given.seed
    )
    structure = trace(network.model, network.example, vanish=True) if given.vanish else network.structure
    check_prunable(given.model, structure)
    if measured is not None:
        structure = in_terms_of(measured, structure)
    listing = advice.command("explain", given.model, shape=given.shape, **given.arguments)
    check_groups("--between", parse_between(given.between), structure, listing)
    if measured is not None and not given.lazy:
        threads = int(measured.environment.get("threads", 1))
        ops = [timed.op for timed in structure.ops]
        advice.check_covers(measured, file, ops, given.measuring(batch=images, threads=threads))
    scores, said = scores_of(network.model, structure, given.scores, trained=given.weights is not None)
    first = protected(structure, given.model, asked=given.protect_first)
    whole = whole_groups(structure, given, listing)
    return Problem(given, network, structure, images, measured, scores, said, tuple(first), whole)


TARGET = ("device", "backend", "dtype", "threads")
"""What of a profile's environment a plan remembers, beside the batch."""


@verb(
    "plan",
    Plan,
    examples=(
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5",
        "halpiee plan resnet20 --size 32 --profile new.jsonl --lazy --budget 0.5",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5 --out half.json",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5 --plot curve.svg",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 800us --also macs=0.4 --min-width 0.25",
    ),
)
def command(given: Plan) -> None:
    """Choose MODEL's widths for a latency: predicted time, MACs, and how far from optimal at most."""
    profile = check(given)
    from halpiee.selection.cost import LatencyCost

    problem = opened(given, profile)
    measured = problem.measured
    if given.lazy or measured is None:
        measured = _measured(problem, profile)
    cost = _limited(problem, problem.offered(LatencyCost(problem.structure, measured)), measured)
    us, share = parse_budget(given.budget)
    selection = _selected(problem, cost, us if us is not None else (share or 1.0) * cost.dense_us)
    result = outcome(problem.structure, cost, selection, model=given.model, scores=problem.scores)
    result |= {
        "batch": problem.images,
        "scores": problem.said_of_scores,
        "protected": sorted(problem.protect),
        "untimed": problem.structure.details["untimed"],
        "int8": in_int8(cost),
    }
    notes = notes_on(result, selection, given, first=problem.first)
    if given.swept:
        result["curve"] = _curve(problem, cost, selection)
    if given.out is not None:
        _save(problem, cost, selection, measured)
    written = {"plan": given.out, "curve": given.plot}
    result["notes"] = notes + [f"{what} in {path}" for what, path in written.items() if path is not None]
    answer(result, given.as_json, lambda: show(result))


def _measured(problem: Problem, file: Path) -> latency.Profile:
    """Measures what the plan needs and the profile does not hold yet."""
    from halpiee.selection.choose import select_lazily
    from halpiee.selection.options import fixed_sides
    from latency.sweeping import LazySweep

    given, structure = problem.given, problem.structure
    tables = LazySweep(
        [timed.op for timed in structure.ops],
        path=file,
        threads=given.threads,
        progress=ScreenTalk().sweeping,
        fixed=fixed_sides(structure),
    )
    with kept_in(file, f"what was measured is in {file}; the same command continues it"), tables:
        select_lazily(
            problem.scores,
            structure,
            tables,
            given.budget,
            gap=given.gap,
            protect=problem.protect,
            offer=problem.offered,
        )
        return tables.profile


def _limited(problem: Problem, cost: LatencyCost, measured: latency.Profile) -> LatencyCost:
    """Returns the cost under the limits beside the latency."""
    structure = problem.structure
    also = limits_of(problem.given.also, Network(structure, problem.at_batch, measured))
    check_also(
        also, structure, {n: (max if n in problem.protect else min)(k) for n, k in cost.candidates.items()}
    )
    return cost.limited(*also)


def _selected(problem: Problem, cost: LatencyCost, budget_us: float) -> Selection:
    from halpiee.selection.choose import choose

    given = problem.given
    return choose(
        problem.scores,
        cost,
        budget_us,
        protect=problem.protect,
        solver=given.solver,
        gap=given.gap,
        time_limit_s=given.time_limit,
        seed=given.seed,
    )


SWEEP = tuple(0.05 * i for i in range(1, 21))
"""Shares of the dense latency along the curve."""


def _curve(problem: Problem, cost: LatencyCost, selection: Selection) -> list[dict[str, float]]:
    """Returns {budget_us, latency_us, value, gap} of each share in ``SWEEP``; draws them where --plot asks for it."""
    from halpiee.selection.limits import pareto

    given, protect = problem.given, problem.protect
    points = pareto(problem.scores, cost, [share * cost.dense_us for share in SWEEP], protect=protect)
    kept_whole = sum(float(problem.scores[name].double().sum()) for name in protect if name in problem.scores)
    if given.plot is not None:
        from halpiee.report.plots import draw_curve

        draw_curve(
            given.plot,
            points,
            problem.scores,
            cost,
            protect=protect,
            chosen=(selection.latency_us, selection.counts),
            title=f"{given.model}, batch {problem.images}",
        )
    return [
        {"budget_us": p.budget_us, "latency_us": p.latency_us, "value": p.value + kept_whole, "gap": p.gap}
        for p in points
    ]


def _save(problem: Problem, cost: LatencyCost, selection: Selection, measured: latency.Profile) -> None:
    """Writes the plan to ``--out``."""
    from halpiee.structure.plan import Plan as Saved

    given, out = problem.given, problem.given.out
    assert out is not None
    within = cost.interval(selection.counts)
    bounds = {} if within is None else {"low_us": within.low_us, "high_us": within.high_us}
    arguments = {"width": given.width, "num_classes": given.classes}
    Saved.from_selection(
        problem.structure,
        selection,
        model=given.model,
        arguments={name: value for name, value in arguments.items() if value is not None},
        target={key: measured.environment.get(key) for key in TARGET} | {"batch": problem.images} | bounds,
    ).save(out)


def outcome(
    structure: Structure, cost: LatencyCost, selection: Selection, *, model: str, scores: dict[str, Tensor]
) -> dict[str, Any]:
    """Returns the figures of a plan as JSON values: times in µs, widths by layer, what each limit allows."""
    from halpiee.structure.groups import macs, parameters, widths

    counts = selection.counts
    within = cost.interval(counts)
    used: list[dict[str, Any]] = [
        {"limit": "latency", "used": selection.latency_us, "most": selection.budget_us, "measured": None}
    ]
    used += used_of(cost.also, structure, counts)
    total = sum(float(score.double().sum()) for score in scores.values())
    kept = sum(float(scores[name].double()[keep].sum()) for name, keep in selection.keep.items())
    return {
        "model": model,
        "dense_us": cost.dense_us,
        "budget_us": selection.budget_us,
        "predicted_us": selection.latency_us,
        "interval_us": None if within is None else [within.low_us, within.high_us],
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


def notes_on(result: dict[str, Any], selection: Selection, given: Plan, *, first: Sequence[str]) -> list[str]:
    """Returns the notes on a plan with some figures; ``first`` is the first group, where it is protected."""
    notes = [f"scores: {result['scores']}"]
    if result.get("int8") and given.multiple_of == 1:
        notes.append(
            f"int8: widths are multiples of {INT8_MULTIPLE}, those between are slower; --multiple-of says otherwise"
        )
    if result["untimed"]:
        notes.append(_without(result["untimed"], given.budget, parse_budget(given.budget)[1] is not None))
    if first:
        notes.append(f"first group {first[0]} stays whole; --no-protect-first frees it")
    elif given.protect_first:
        notes.append("nothing to protect: the first layer's channels are frozen, or shared with later layers")
    if selection.gap > given.gap and given.solver != "linear":
        notes.append(
            f"{given.gap:.2%} from optimal was asked and {selection.gap:.2%} is proved"
            + ("; the time limit cut the search short" if selection.path.endswith("+time") else "")
        )
    if selection.latency_us > selection.budget_us * (1 + 1e-9):
        notes.append(
            f"over budget: linear believed its own cost; it takes {selection.latency_us / selection.budget_us:.1%} of "
            "the budget; --solver joint keeps it"
        )
    return notes


def _without(unpriced: dict[str, int], budget: str, shared: bool) -> str:
    """Returns a note on the ops that the predicted times leave out."""
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
    """Prints a plan: widths, costs and notes."""
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
    if result["interval_us"] is not None:
        low, high = result["interval_us"]
        console.print(
            f"{low:.0f} … {high:.0f} µs hold 90 % of networks, by the held-out cells; what a call takes beside its "
            "ops is in no profile"
        )
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
        say(f"{len(result['interpolated'])} ops are priced between measured cells")
