"""``halpiee plan``: widths that meet a latency, from a profile alone; no data, no GPU, seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from halpiee import advice, ranges
from halpiee.cli.options import SIZES, Ranged, examples, input_size, json_option
from halpiee.cli.output import ScreenTalk, answer, kept_in
from halpiee.errors import UsageError
from latency._files import check_place

if TYPE_CHECKING:
    from halpiee.cli.plan_limits import Limit
    from halpiee.selection.choose import Selection
    from halpiee.selection.cost import LatencyCost
    from halpiee.selection.limits import LimitedSelection
    from halpiee.structure.groups import Structure

__all__ = ["command"]

TARGET = ("device", "backend", "dtype", "threads")
"""What of a profile's environment a plan remembers, beside the batch."""


@click.command(
    "plan",
    epilog=examples(
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5",
        "halpiee plan resnet20 --size 32 --profile new.jsonl --lazy --budget 0.5",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5 --out half.json",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 0.5 --plot curve.svg",
        "halpiee plan resnet20 --size 32 --profile resnet20.jsonl --budget 800us --also macs=0.4 --least 0.25",
    ),
)
@click.argument("model")
@click.option("--profile", type=click.Path(path_type=Path), help="Made with `halpiee profile`, or by --lazy.")
@click.option(
    "--lazy",
    is_flag=True,
    help="Measure on this device what the plan needs and --profile (a new file, or an old one) does not hold yet.",
)
@click.option(
    "--threads",
    default=1,
    type=Ranged(ranges.Threads),
    show_default=True,
    help="Threads of the runtime, with --lazy.",
)
@click.option(
    "--budget", required=True, help="Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us)."
)
@click.option(
    "--also",
    multiple=True,
    help="A further limit: macs=0.5, params=2e6, memory=12MB (largest input + output of one op), or another "
    "profile of this network, at any batch or device: batch8.jsonl=0.6. May be given several times.",
)
@click.option(
    "--weights", type=click.Path(path_type=Path), help="Score channels by the magnitude of these weights."
)
@click.option(
    "--scores",
    "scores_file",
    type=click.Path(path_type=Path),
    help="Scores of your own: safetensors or JSON, group → one number per unit.",
)
@click.option(
    "--protect-first/--no-protect-first",
    "protect_first",
    default=None,
    help="Leave the first layer whole. Default: on for resnet50 and mobilenet_v1, as in the papers; nothing to "
    "protect where the first layer shares a residual stream.",
)
@click.option("--freeze", multiple=True, help="Leave this group whole; may be given several times.")
@click.option(
    "--least",
    default=0.0,
    type=Ranged(ranges.Share),
    show_default=True,
    help="Share of its units every group keeps at least.",
)
@click.option(
    "--most",
    default=1.0,
    type=Ranged(ranges.Positive),
    show_default=True,
    help="Share of its units every group keeps at most.",
)
@click.option(
    "--multiple",
    default=1,
    type=Ranged(ranges.Classes),
    show_default=True,
    help="Widths are multiples of this many units.",
)
@click.option(
    "--between", multiple=True, help="Units of one group: GROUP=16..48; may be given several times."
)
@click.option("--vanish", is_flag=True, help="Residual blocks may be removed whole.")
@click.option("--batch", type=Ranged(ranges.Images), help="Images per inference; default: as profiled.")
@click.option("--size", default="224", show_default=True, help=f"Image size: {SIZES}.")
@click.option("--width", type=Ranged(ranges.Width), help="Width multiplier of a zoo network.")
@click.option(
    "--classes", type=Ranged(ranges.Classes), help="Classes of the network, if not its own default."
)
@click.option("--solver", default="joint", show_default=True, type=click.Choice(["joint", "cpsat", "linear"]))
@click.option(
    "--gap",
    default=1e-3,
    type=Ranged(ranges.Share),
    show_default=True,
    help="How far from optimal the plan may be.",
)
@click.option(
    "--time-limit", type=Ranged(ranges.Seconds), help="Seconds, after which the best plan so far is given."
)
@click.option("--sweep", is_flag=True, help="Also the whole curve of latencies from one pass.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw that curve: a new .svg or .png file.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the plan as JSON.")
@click.option("--seed", default=0, type=Ranged(ranges.Seed), show_default=True)
@json_option
def command(
    model: str,
    profile: Path | None,
    lazy: bool,
    threads: int,
    budget: str,
    also: tuple[str, ...],
    weights: Path | None,
    scores_file: Path | None,
    protect_first: bool | None,
    freeze: tuple[str, ...],
    least: float,
    most: float,
    multiple: int,
    between: tuple[str, ...],
    vanish: bool,
    batch: int | None,
    size: str,
    width: float | None,
    classes: int | None,
    solver: Literal["joint", "cpsat", "linear"],
    gap: float,
    time_limit: float | None,
    sweep: bool,
    plot: Path | None,
    out: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Choose MODEL's widths for a latency: predicted time, MACs, and how far from optimal at most."""
    from halpiee.cli.plan_curve import check_picture, solve_curve
    from halpiee.cli.plan_limits import (
        above_bytes,
        batch_of,
        check_groups,
        check_memory,
        check_profile,
        parse_also,
        parse_between,
        read_limit,
        spoken,
    )
    from halpiee.cli.plan_output import notes_on, outcome, show
    from halpiee.training.settings import parse_budget

    shape = input_size(size)
    built: dict[str, Any] = {"shape": shape, "width": width, "classes": classes}
    measuring = advice.command("profile", model, **built, batch=batch or 1, threads=threads)
    if profile is None:
        raise UsageError(
            f"a plan of {model} was asked for without --profile; measure one with {measuring} --out FILE, or give "
            "--lazy and the --profile FILE that what is measured shall go to"
        )
    us, fraction = parse_budget(budget)
    others, ranges = [parse_also(text) for text in also], parse_between(between)
    if out is not None:
        check_place(out)
    if plot is not None:
        check_picture(plot)
        sweep = True
    if others and (sweep or solver == "linear"):
        raise UsageError(
            f"--also was asked with {'--solver linear' if solver == 'linear' else '--sweep or --plot'}, which knows "
            "one limit only; leave one of the two out"
        )
    if weights is not None and scores_file is not None:
        raise UsageError("--weights and --scores were both asked for; one of them says which channels matter")
    import latency
    from halpiee.cli.networks import traced
    from halpiee.cli.plan_scores import scores_of
    from halpiee.deploy.target import in_terms_of
    from halpiee.selection.choose import choose
    from halpiee.selection.cost import LatencyCost
    from halpiee.selection.limits import select_within
    from halpiee.selection.protect import protected
    from halpiee.structure.plan import Plan
    from halpiee.structure.trace import trace

    measured = latency.Profile.load(profile) if profile.exists() or not lazy else None
    images = batch if batch is not None else 1 if measured is None else batch_of(measured, profile, measuring)
    options: dict[str, Any] = {"width": width, "classes": classes, "weights": weights, "seed": seed}
    network = traced(model, images, shape, **options)
    structure = trace(network.model, network.example, vanish=True) if vanish else network.structure
    if measured is not None:
        structure = in_terms_of(measured, structure)

    def at_batch(n: int) -> Structure:
        return structure if n == images else trace(network.model, (network.example[0][:1].expand(n, *shape),))

    def offered(cost: LatencyCost) -> LatencyCost:
        return cost.restricted(multiple=multiple, least=least, most=most, vanish=vanish, between=ranges)

    listing = advice.command("explain", model, **built)
    check_groups("--freeze", freeze, structure, listing)
    check_groups("--between", ranges, structure, listing)
    if measured is not None and not lazy:
        measuring = advice.command(
            "profile", model, **built, batch=images, threads=int(measured.environment.get("threads", 1))
        )
        check_profile(measured, profile, structure, measuring)
    scores, what = scores_of(network.model, structure, scores_file, trained=weights is not None)
    first = protected(structure, model, asked=protect_first)
    protect = {*first, *freeze}
    if lazy or measured is None:
        from halpiee.selection.fixed import fixed_sides
        from halpiee.selection.lazily import select_lazily
        from latency.lazy import LazySweep

        tables = LazySweep(
            [timed.op for timed in structure.ops],
            path=profile,
            threads=threads,
            progress=ScreenTalk().sweeping,
            fixed=fixed_sides(structure),
        )
        going = f"what was measured is in {profile}; the same command continues it"
        with kept_in(profile, going), tables:
            select_lazily(
                scores,
                structure,
                tables,
                budget_us=us,
                fraction=fraction,
                gap=gap,
                protect=protect,
                offer=offered,
            )
            measured = tables.profile
    cost = offered(LatencyCost(structure, measured))
    budget_us = us if us is not None else (fraction or 1.0) * cost.dense_us
    limits: list[Limit] = [("latency", cost, budget_us)]
    limits += [read_limit(what, most, structure, at_batch) for what, most in others]
    narrowest = {n: max(k) if n in protect else min(k) for n, k in cost.candidates.items()}
    for name, other, _ in limits:
        if name == "memory":
            check_memory(structure, narrowest, above_bytes(other))
    selection: Selection | LimitedSelection
    if others:
        selection = select_within(
            scores,
            [limit[1:] for limit in limits],
            gap=gap,
            protect=protect,
            time_limit_s=time_limit,
            seed=seed,
            names=[spoken(name, other) for name, other, _ in limits],
        )
    else:
        selection = choose(
            scores, cost, budget_us, solver=solver, gap=gap, protect=protect, time_limit_s=time_limit
        )
    result = outcome(structure, cost, selection, model=model, scores=scores, limits=limits)
    result |= {
        "batch": images,
        "scores": what,
        "protected": sorted(protect),
        "untimed": structure.details["untimed"],
    }
    notes = notes_on(
        result,
        selection,
        asked=budget,
        shared=fraction is not None,
        gap=gap,
        solver=solver,
        first=first,
        protect_first=protect_first,
    )
    if sweep:
        result["curve"] = solve_curve(
            scores, cost, selection, protect, plot, title=f"{model}, batch {images}"
        )
    if out is not None:
        arguments = {"width": width, "num_classes": classes}
        Plan.from_selection(
            structure,
            selection,
            model=model,
            arguments={name: value for name, value in arguments.items() if value is not None},
            target={key: measured.environment.get(key) for key in TARGET} | {"batch": images},
        ).save(out)
    notes += [f"plan in {out}"] * (out is not None) + [f"curve in {plot}"] * (plot is not None)
    result["notes"] = notes
    answer(result, as_json, lambda: show(result))
