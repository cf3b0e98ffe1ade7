"""What ``halpiee plan`` is asked, and the problem it makes of that: a network with its groups, scores and profile."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from halpiee import advice, ranges
from halpiee.asked import parse_budget
from halpiee.cli.options import Answered, Imaged, input_size
from halpiee.errors import UsageError
from halpiee.options import option, told
from halpiee.shared_options import GOAL, RUNTIME, Protecting, Seeded, Threaded
from latency._files import check_place

if TYPE_CHECKING:
    from torch import Tensor

    import latency
    from halpiee.cli.networks import Traced
    from halpiee.selection.cost import LatencyCost
    from halpiee.structure.groups import Structure

__all__ = ["Plan", "Problem", "check", "opened"]

SCORES, SOLVER = "Scores", "Solver"
"""Headings."""


@dataclass(frozen=True, kw_only=True)
class Plan(Imaged, Protecting, Threaded, Seeded, Answered):
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
        metadata=told("Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).", GOAL)
    )
    also: tuple[str, ...] = option(
        (),
        "A further limit: macs=0.5, params=2e6, memory=12MB (largest input + output of one op), or another "
        "profile of this network, at any batch or device: batch8.jsonl=0.6. May be given several times.",
        GOAL,
    )
    freeze: tuple[str, ...] = option((), "Leave this group whole; may be given several times.", GOAL)
    least: ranges.Share = option(0.0, "Share of its units every group keeps at least.", GOAL)
    most: ranges.Positive = option(1.0, "Share of its units every group keeps at most.", GOAL)
    multiple: ranges.Classes = option(1, "Widths are multiples of this many units.", GOAL)
    between: tuple[str, ...] = option(
        (), "Units of one group: GROUP=16..48; may be given several times.", GOAL
    )
    vanish: bool = option(False, "Residual blocks may be removed whole.", GOAL)
    weights: Path | None = option(None, "Score channels by the magnitude of these weights.", SCORES)
    scores: Path | None = option(
        None, "Scores of your own: safetensors or JSON, group → one number per unit.", SCORES
    )
    solver: Literal["joint", "cpsat", "linear"] = option("joint", "Solver that selects the widths.", SOLVER)
    gap: ranges.Share = option(1e-3, "How far from optimal the plan may be.", SOLVER)
    time_limit: ranges.Seconds | None = option(
        None, "Seconds, after which the best plan so far is given.", SOLVER, unset="none"
    )
    sweep: bool = option(False, "Also the whole curve of latencies from one pass.")
    plot: Path | None = option(None, "Draw that curve: a new .svg or .png file.")
    out: Path | None = option(None, "Write the plan as JSON.")

    @property
    def swept(self) -> bool:
        """Whether the whole curve is worked out."""
        return self.sweep or self.plot is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of the images."""
        return input_size(self.size)

    def measuring(self, *, batch: int, threads: int) -> str:
        """Returns the command, but for --out, that profiles this network."""
        return advice.command(
            "profile", self.model, shape=self.shape, **self.arguments, batch=batch, threads=threads
        )


@dataclass(frozen=True)
class Problem:
    """A network to be planned.

    Attributes:
        asked: the options.
        network: the network, traced as it is trained.
        structure: of the network, as the profile's target runs it.
        images: per inference.
        measured: the profile; None: nothing has been measured yet.
        scores: of every prunable group.
        said_of_scores: what they are, in words.
        first: groups of the first layer that stay whole.
    """

    asked: Plan
    network: Traced
    structure: Structure
    images: int
    measured: latency.Profile | None
    scores: dict[str, Tensor]
    said_of_scores: str
    first: tuple[str, ...]

    @property
    def protect(self) -> set[str]:
        """Groups that stay whole."""
        return {*self.first, *self.asked.freeze}

    def offered(self, cost: LatencyCost) -> LatencyCost:
        """Returns a cost with the widths that may be chosen."""
        from halpiee.cli.plan_limits import parse_between

        asked = self.asked
        between = parse_between(asked.between)
        return cost.restricted(
            multiple=asked.multiple, least=asked.least, most=asked.most, vanish=asked.vanish, between=between
        )

    def at_batch(self, n: int) -> Structure:
        """Returns the structure at another batch."""
        from halpiee.structure.trace import trace

        if n == self.images:
            return self.structure
        return trace(self.network.model, (self.network.example[0][:1].expand(n, *self.asked.shape),))


def check(asked: Plan) -> Path:
    """Refuses what is wrong with the options alone, before anything is loaded; returns the profile's file."""
    from halpiee.cli.plan_curve import check_picture
    from halpiee.cli.plan_limits import parse_also, parse_between

    if asked.profile is None:
        measuring = asked.measuring(batch=asked.batch or 1, threads=asked.threads)
        raise UsageError(
            f"a plan of {asked.model} was asked for without --profile; measure one with {measuring} --out FILE, or "
            "give --lazy and the --profile FILE that what is measured shall go to"
        )
    input_size(asked.size)
    parse_budget(asked.budget)
    others = [parse_also(text) for text in asked.also]
    parse_between(asked.between)
    if asked.out is not None:
        check_place(asked.out)
    if asked.plot is not None:
        check_picture(asked.plot)
    if others and (asked.swept or asked.solver == "linear"):
        raise UsageError(
            f"--also was asked with {'--solver linear' if asked.solver == 'linear' else '--sweep or --plot'}, which "
            "knows one limit only; leave one of the two out"
        )
    if asked.weights is not None and asked.scores is not None:
        raise UsageError("--weights and --scores were both asked for; one of them says which channels matter")
    return asked.profile


def opened(asked: Plan, file: Path) -> Problem:
    """Returns the network with its groups, scores and profile.

    Raises:
        UsageError: a group, a score or a profile that does not fit the network.
    """
    import latency
    from halpiee.cli.networks import traced
    from halpiee.cli.plan_limits import batch_of, check_groups, check_prunable, parse_between
    from halpiee.cli.plan_scores import scores_of
    from halpiee.deploy.target import in_terms_of
    from halpiee.selection.options import protected
    from halpiee.structure.trace import trace

    measured = latency.Profile.load(file) if file.exists() or not asked.lazy else None
    images = asked.batch
    if images is None:
        measuring = asked.measuring(batch=1, threads=asked.threads)
        images = 1 if measured is None else batch_of(measured, file, measuring)
    network = traced(
        asked.model, images, asked.shape, **asked.arguments, weights=asked.weights, seed=asked.seed
    )
    structure = trace(network.model, network.example, vanish=True) if asked.vanish else network.structure
    check_prunable(asked.model, structure)
    if measured is not None:
        structure = in_terms_of(measured, structure)
    listing = advice.command("explain", asked.model, shape=asked.shape, **asked.arguments)
    check_groups("--freeze", asked.freeze, structure, listing)
    check_groups("--between", parse_between(asked.between), structure, listing)
    if measured is not None and not asked.lazy:
        threads = int(measured.environment.get("threads", 1))
        ops = [timed.op for timed in structure.ops]
        advice.check_covers(measured, file, ops, asked.measuring(batch=images, threads=threads))
    scores, said = scores_of(network.model, structure, asked.scores, trained=asked.weights is not None)
    first = protected(structure, asked.model, asked=asked.protect_first)
    return Problem(asked, network, structure, images, measured, scores, said, tuple(first))
