"""``halpiee plan``: widths that meet a latency, from a profile alone; no data, no GPU, seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from halpiee.asked import parse_budget
from halpiee.cli.options import verb
from halpiee.cli.output import ScreenTalk, answer, kept_in
from halpiee.cli.plan_problem import Plan, Problem, check, opened

if TYPE_CHECKING:
    import latency
    from halpiee.cli.plan_limits import Limit
    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.plan import Selection

__all__ = ["command"]

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
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 800us --also macs=0.4 --least 0.25",
    ),
)
def command(asked: Plan) -> None:
    """Choose MODEL's widths for a latency: predicted time, MACs, and how far from optimal at most."""
    profile = check(asked)
    from halpiee.cli.plan_curve import solve_curve
    from halpiee.cli.plan_output import notes_on, outcome, show
    from halpiee.selection.cost import LatencyCost

    problem = opened(asked, profile)
    measured = problem.measured
    if asked.lazy or measured is None:
        measured = _measured(problem, profile)
    cost = problem.offered(LatencyCost(problem.structure, measured))
    us, share = parse_budget(asked.budget)
    limits: list[Limit] = [("latency", cost, us if us is not None else (share or 1.0) * cost.dense_us)]
    limits += _limits(problem, cost)
    selection = _selected(problem, cost, limits)
    result = outcome(
        problem.structure, cost, selection, model=asked.model, scores=problem.scores, limits=limits
    )
    result |= {
        "batch": problem.images,
        "scores": problem.said_of_scores,
        "protected": sorted(problem.protect),
        "untimed": problem.structure.details["untimed"],
    }
    notes = notes_on(result, selection, asked, first=problem.first)
    if asked.swept:
        title = f"{asked.model}, batch {problem.images}"
        result["curve"] = solve_curve(
            problem.scores, cost, selection, problem.protect, asked.plot, title=title
        )
    if asked.out is not None:
        _save(problem, selection, measured, asked.out)
    written = {"plan": asked.out, "curve": asked.plot}
    result["notes"] = notes + [f"{what} in {path}" for what, path in written.items() if path is not None]
    answer(result, asked.as_json, lambda: show(result))


def _measured(problem: Problem, file: Path) -> latency.Profile:
    """Measures what the plan needs and the profile does not hold yet."""
    from halpiee.selection.options import fixed_sides
    from halpiee.selection.select import select_lazily
    from latency.sweeping.lazy import LazySweep

    asked, structure = problem.asked, problem.structure
    tables = LazySweep(
        [timed.op for timed in structure.ops],
        path=file,
        threads=asked.threads,
        progress=ScreenTalk().sweeping,
        fixed=fixed_sides(structure),
    )
    with kept_in(file, f"what was measured is in {file}; the same command continues it"), tables:
        select_lazily(
            problem.scores,
            structure,
            tables,
            asked.budget,
            gap=asked.gap,
            protect=problem.protect,
            offer=problem.offered,
        )
        return tables.profile


def _limits(problem: Problem, cost: LatencyCost) -> list[Limit]:
    """Returns the limits beside the latency."""
    from halpiee.cli.plan_limits import above_bytes, check_memory, parse_also, read_limit

    structure = problem.structure
    also = [parse_also(text) for text in problem.asked.also]
    limits = [read_limit(what, most, structure, problem.at_batch) for what, most in also]
    narrowest = {n: max(k) if n in problem.protect else min(k) for n, k in cost.candidates.items()}
    for name, other, _ in limits:
        if name == "memory":
            check_memory(structure, narrowest, above_bytes(other))
    return limits


def _selected(problem: Problem, cost: LatencyCost, limits: list[Limit]) -> Selection:
    from halpiee.cli.plan_limits import spoken
    from halpiee.selection.limits import select_within
    from halpiee.selection.select import choose

    asked = problem.asked
    how: dict[str, Any] = {"gap": asked.gap, "protect": problem.protect, "time_limit_s": asked.time_limit}
    if len(limits) == 1:
        return choose(problem.scores, cost, limits[0][2], solver=asked.solver, **how)
    return select_within(
        problem.scores,
        [limit[1:] for limit in limits],
        seed=asked.seed,
        names=[spoken(name, other) for name, other, _ in limits],
        **how,
    )


def _save(problem: Problem, selection: Selection, measured: latency.Profile, out: Path) -> None:
    from halpiee.structure.plan import Plan as Saved

    asked = problem.asked
    arguments = {"width": asked.width, "num_classes": asked.classes}
    Saved.from_selection(
        problem.structure,
        selection,
        model=asked.model,
        arguments={name: value for name, value in arguments.items() if value is not None},
        target={key: measured.environment.get(key) for key in TARGET} | {"batch": problem.images},
    ).save(out)
