"""What a run is: frozen settings whose hash names it. The same settings resume, others never overwrite.

Every option of ``halpiee train`` is a field here, with its type, range, default and help text (``halpiee.options``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.data.loading import Loading
from halpiee.errors import UsageError
from halpiee.inputs import INPUTS, parse_inputs
from halpiee.methods.registry import METHODS, Entry
from halpiee.options import described, fitted, option, options_of, parts_of
from halpiee.ranges import parse_budget
from halpiee.shared_options import (
    EARLY,
    GOAL,
    LATE,
    METHOD,
    NETWORK,
    RUNTIME,
    Batched,
    Cycle,
    Limiting,
    Protecting,
    Scaled,
    Scheduling,
    Seeded,
    Threaded,
)


@dataclass(frozen=True, kw_only=True)
class Masks:
    """What a method that trains to a sparsity is asked for; ``None``: its paper's own, fitted to the training."""

    sparsity: ranges.Between | None = option(
        None, "Share of weights or filters to remove (0.9); instead of --budget.", GOAL
    )
    units: Literal["weights", "filters"] | None = option(
        None, "What a sparsity removes.", GOAL, unset="the method's own"
    )
    distribution: Literal["uniform", "erk", "global", "nm"] | None = option(
        None, "How a sparsity is spread over the layers.", GOAL, unset="the paper's"
    )
    nm: str = option("2:4", "Pattern of --distribution nm: N of M input weights stay.", GOAL)
    mask: str | None = option(
        None,
        "Final mask of another run (its folder or mask.safetensors), trained anew by --method static.",
        GOAL,
    )
    criterion: str | None = option(
        None,
        "Importance score that chooses the units: magnitude, l1, grasp, inverted-snip …",
        METHOD,
        unset="the method's own",
    )
    rounds: Annotated[int, Meta(ge=1, le=10**4)] | None = option(
        None,
        "Rounds of pruning, survivors scored again (filter: 1, 5, 25; lrr: trainings; repair: 4; early: 1).",
        METHOD,
        unset="the method's own",
    )
    value: Literal["scores", "measured"] = option(
        "scores",
        "What a width is worth: the sum of its units' scores, or measured: the loss of forward passes with each group "
        "cut to several widths (halp, repair, early).",
        METHOD,
    )
    regrow: ranges.Share = option(
        0.0, "Share of a layer's filters that each round exchanges.", METHOD, bare=0.3
    )
    interval: ranges.Steps | None = option(
        None, "Steps between two mask updates.", METHOD, unset="the paper's, or less"
    )
    fraction: ranges.Share | None = option(
        None, "Share exchanged by the first update (SET, RigL, SNFS, GraNet).", METHOD, unset="the paper's"
    )
    initial: ranges.Share = option(0.0, "Sparsity that GraNet starts from.", METHOD)
    regrow_until: Literal["end", "pruning"] | None = option(
        None,
        "GraNet regrows to the end of the training, or while it prunes (Algorithm 1).",
        METHOD,
        unset="end",
    )
    first: ranges.Share | None = option(
        None, "Share of the training where GMP and GraNet begin to prune.", METHOD, unset="the paper's"
    )
    last: ranges.Share | None = option(
        None,
        "Share of the training where GMP and GraNet have pruned, and SET, RigL and SNFS update last.",
        METHOD,
        unset="the paper's",
    )
    at: ranges.StepsOrNone = option(0, "Steps before one-shot pruning.", METHOD)
    rewind: ranges.StepsOrNone | None = option(
        None, "Step of the dense training whose weights ltr takes.", METHOD, unset="1.6% of the training"
    )
    cut_at: ranges.Below | None = option(
        None,
        "Share of the training that early trains the whole network before it cuts.",
        METHOD,
        unset="0.25; with --weights 0",
    )
    repair: bool | None = option(
        None,
        "Solve the layers again after the cut of early, or after every prune of channels by halp and iee.",
        METHOD,
        unset="of early yes, of halp and iee no",
    )
    widths: Literal["scores", "uniform", "scaled"] = option(
        "scores",
        "Widths of a cut: those that keep the most score, the widest uniform ones, or those of --method scaled, with "
        "fewer blocks (repair, early).",
        METHOD,
    )
    restart: bool = option(
        False, "Begin the schedule of the learning rate anew after pruning (--at, ltr).", METHOD
    )
    init: Literal["random", "magnitude", "random-scores"] | None = option(
        None,
        "How the first units are chosen; random-scores: by one solve (iee).",
        METHOD,
        unset="random; with --weights by magnitude, iee by its scores",
    )
    ablation: Literal["shuffle", "reinit", "normal"] | None = option(
        None,
        "Shuffle the mask within each layer; draw the weights under it anew; or draw the first weights from "
        "N(0, 1).",
        METHOD,
    )

    def __post_init__(self) -> None:
        ranges.check(self)
        match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", self.nm)
        if not match or not 0 < int(match[1]) <= int(match[2]):
            raise UsageError(f"the pattern {self.nm[:40]!r} was asked; give N:M with 0 < N <= M, such as 2:4")
        if self.mask is not None and (self.sparsity is not None or self.distribution is not None):
            raise UsageError(
                f"--mask {self.mask} and a sparsity were asked; a mask says itself how much is kept: leave one out"
            )
        if self.ablation == "shuffle" and self.distribution == "nm":
            raise UsageError(
                f"--ablation shuffle was asked of {self.nm}, whose runs a shuffled mask would not keep; "
                "give --distribution global, erk or uniform"
            )

    @property
    def n_of_m(self) -> tuple[int, int]:
        """N and M."""
        n, m = self.nm.split(":")
        return int(n), int(m)

    @property
    def asked(self) -> bool:
        """Whether a sparsity is requested: as a number, as a pattern, or by a mask."""
        return self.sparsity is not None or self.distribution == "nm" or self.mask is not None


RUN = "Run"
"""A heading."""

ONCE = "snip grasp synflow magnitude random"
SCORED = f"iee halp gmp filter repair early lrr ltr lth {ONCE}"
ONLY = {
    "criterion": (SCORED, f"its paper has its own; one is taken by {SCORED.replace(' ', ', ')}"),
    "rounds": (f"halp filter repair early lrr ltr lth {ONCE}", "it has no rounds (iee: --cycles)"),
    "regrow": ("filter", "only filter exchanges filters"),
    "initial": ("granet", "only granet starts from a sparsity"),
    "regrow_until": ("granet", "only granet regrows while it prunes"),
    "at": (ONCE, "it is of one-shot pruning: snip, grasp, synflow, magnitude or random"),
    "value": ("halp repair early", "widths are measured by halp, repair and early"),
    "widths": ("repair early", "it is of the cuts: repair and early"),
    "rewind": ("ltr", "only ltr takes weights of a step (lth is step 0, lrr the last one)"),
    "cut_at": ("early", "only early trains a whole network and cuts it once"),
    "repair": ("early halp iee", "only early, halp and iee solve layers again by choice"),
}
"""Option → methods that take it, as those of other packages do that have one of its name; what the others say."""

AUTO = "auto"
"""The method that is found best for what is given: docs/decisions/0121-defaults-that-won.md."""


@dataclass(frozen=True, kw_only=True)
class Settings(Scheduling, Scaled, Protecting, Limiting, Batched, Threaded, Seeded):
    """One training to a budget."""

    model: str = field(
        metadata=described("A zoo, torchvision or timm name, or package.module:function.", argument=True)
    )
    data: str = field(
        metadata=described(
            "Folder of Parquet files, tars or classes of images (a task says more), cifar10, cifar100, digits, "
            "hf:NAME, or package.module:function.",
            RUN,
        )
    )
    task: str = option(
        "classification",
        "What is learnt: classification, segmentation, detection, or package.module:Task.",
        RUN,
    )
    weights: str | None = option(
        None,
        "Weights that the training starts from: a safetensors file, a state dict (.pth), or the name of weights of "
        "torchvision or timm that a cache on this machine has.",
        RUN,
        unset="none",
    )
    from_run: str | None = option(
        None,
        "Finished run whose pruned network to train further; MODEL, --data and their options come from that run.",
        RUN,
    )
    reset_head: bool = option(
        False,
        "Draw the head anew if --weights were trained for other classes; ignore weights that the network lacks.",
        RUN,
    )
    loading: Loading = field(default_factory=Loading)
    baseline: bool = option(True, "Also train a dense network, to compare with.", RUN)
    track: Literal["auto", "none", "tensorboard", "wandb", "mlflow"] = option(
        "auto",
        "Tracker of the figures of every epoch, beside metrics.jsonl; auto: TensorBoard where installed.",
        RUN,
    )
    cost_reference: str | None = option(
        None,
        "State the training cost in dense trainings of a table: epochs=90.",
        RUN,
        unset="of as many epochs",
    )
    pretraining: Annotated[int, Meta(ge=0, le=10**6)] = option(
        0, "Dense epochs before the given --weights that --cost-reference charges.", RUN
    )
    device: str = option("auto", "Device of the training: auto, cpu, cuda or cuda:1.", RUN)
    size: ranges.Side | None = option(
        None, "Pixels of a side to bring the images to.", NETWORK, unset="as they are"
    )
    inputs: tuple[str, ...] = option((), INPUTS, NETWORK, typed="--input")
    norm_init: Literal["ones", "uniform"] = option(
        "ones",
        "Scales that batch norms start from: 1, or drawn from U(0, 1) as arXiv 2009.08576 has it.",
        NETWORK,
    )
    budget: str | None = option(
        None, "Share of the dense latency (0.5, 50%) or a time (12.5ms, 800us).", GOAL
    )
    masks: Masks = field(default_factory=Masks)
    method: str = option(
        AUTO,
        "How the budget is met; `halpiee methods` lists them. auto: early for given weights, scaled for a latency from "
        "scratch, iee for a sparsity.",
        METHOD,
    )
    images: ranges.Solved = option(
        512, "Training images that repair and early solve layers from; no labels are read.", METHOD
    )
    cycle: Cycle = field(default_factory=Cycle)
    profile: str | None = option(
        None, "A profile measured before.", RUNTIME, unset="one is measured into the run's folder"
    )
    backend: str = option(
        "onnxruntime",
        "Runtime to profile and time, listed by `halpiee doctor`; with --profile, the runtime of that profile.",
        RUNTIME,
    )
    calibration_nets: Annotated[int, Meta(ge=0, le=1000)] = option(
        4,
        "Random shrunk networks to measure, which fit sums of ops to whole networks.",
        RUNTIME,
        on_command_line=False,
    )
    lowered: tuple[str, ...] = ()
    """What was lowered on --resume, in sentences: the run is then no longer the one that was typed."""
    rounds: Annotated[int, Meta(ge=3, le=10**5)] = 30
    """Interleaved rounds of the closing measurement; the option of this name is that of ``masks``."""

    def __post_init__(self) -> None:
        ranges.check(self)
        parse_inputs(self.inputs)
        if self.method == AUTO:
            found = "iee" if self.budget is None else "early" if self.weights else "scaled"
            object.__setattr__(self, "method", found)
        if self.cycle.end is None:
            end = EARLY if self.method == "iee" and self.budget is not None else LATE
            object.__setattr__(self, "cycle", replace(self.cycle, end=end))
        self._check_goal()
        if self.cost_reference is not None:
            from halpiee.analysis.flops import CostReference  # numpy is not for --help

            CostReference.parse(self.cost_reference)
        elif self.pretraining:
            raise UsageError(
                f"--pretraining {self.pretraining} was given without --cost-reference, which charges it; add "
                "--cost-reference epochs=90"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", self.device):
            raise UsageError(
                f"--device {self.device[:40]} was asked; give auto, cpu, cuda or one of them as cuda:1"
            )

    def _check_goal(self) -> None:
        """Refuses a method without the limit it needs, or with two."""
        method = METHODS[self.method]
        budget, sparse = self.budget is not None, self.masks.asked
        if self.from_run is not None:
            _refuse(
                (
                    budget or sparse or self.weights is not None,
                    f"--from-run {self.from_run} trains a pruned network on, and a budget, a sparsity or --weights "
                    "were given; leave them out, or prune anew without --from-run",
                )
            )
            return
        if self.budget is not None:
            parse_budget(self.budget)
        limits = ["--budget 0.5"] * method.latency + ["--sparsity 0.9"] * (method.sparsity is not None)
        first = f"--{'' if self.protect_first else 'no-'}protect-first"
        _refuse(
            (
                budget and sparse,
                f"--budget {self.budget} and a sparsity were asked; a run meets one of them: leave one out",
            ),
            (not (budget or sparse), f"--method {self.method} needs a limit; give {' or '.join(limits)}"),
            (
                budget and not method.latency,
                f"--method {self.method} was asked to meet a latency, and removes {', '.join(method.units)}, which no "
                "latency is known for; give --sparsity, or --method iee",
            ),
            (
                sparse and method.sparsity is None,
                f"--method {self.method} meets a latency; give --budget instead of a sparsity",
            ),
            (
                method.pretrained and self.weights is None,
                f"--method {self.method} prunes a trained network; give its --weights, such as dense.safetensors of "
                "a run",
            ),
            (
                bool(self.narrowed) and not budget,
                f"{(*self.narrowed, '')[0]} was given to a run to a sparsity; it says what a latency may cut: give "
                "--budget, or leave it out",
            ),
            (
                self.vanish and method.kind in ("cut", "narrow"),
                f"--vanish was given to --method {self.method}, which leaves a unit of every group; give --method iee "
                "or halp",
            ),
            (
                self.protect_first is not None and not budget,
                f"{first} was given to a run to a sparsity; it says which channels a latency leaves whole: give "
                "--budget, or leave it out",
            ),
        )
        self._check_options(method)

    def _check_options(self, method: Entry) -> None:
        """Refuses an option that the method would silently leave out."""
        m, kind, name = self.masks, method.kind, self.method
        given = f"was given to --method {name}"
        self.check_schedule()
        _refuse(
            (
                m.mask is not None and name != "static",
                f"--mask {given}, which chooses its own; give --method static",
            ),
            (
                (m.units == "filters" and name not in ("iee", "filter"))
                or (m.units == "weights" and method.sparsity == "filters"),
                f"--units {m.units} {given}, which removes {', '.join(method.units)}; filters are of iee and filter",
            ),
            (
                kind == "rewind" and self.weights is not None and name != "lrr",
                f"--method {name} rewinds to a step of a dense training that it watches, and --weights "
                f"{self.weights} are already trained; leave --weights out, or use --method lrr",
            ),
            (
                m.ablation in ("shuffle", "reinit") and kind not in ("once", "rewind") and m.mask is None,
                f"--ablation {m.ablation} {given}, which has no one mask to train; train its final one anew: "
                f"--method static --mask RUN --ablation {m.ablation}",
            ),
            (
                self.distill == "dense" and not (self.baseline or self.weights),
                "--distill dense matches the dense network, and --no-baseline trains none; leave one out, give "
                "--weights, or --distill a file of weights",
            ),
            (
                m.restart and not (m.at or name == "ltr"),
                "--restart begins the schedule anew after a pruning at a later step; give --at STEP or --method ltr",
            ),
            (
                m.widths == "scaled" and (m.rounds or 1) > 1,
                f"--widths scaled and --rounds {m.rounds} were asked; a later round may want a block that an earlier "
                "one has removed: leave --rounds out",
            ),
            (
                bool(m.repair) and name == "iee" and self.budget is None,
                f"--repair {given} without --budget; layers are solved again where channels are cut: give a latency",
            ),
            (m.init == "random-scores" and name != "iee", f"--init random-scores {given}; it is IEE's own"),
            (
                m.init == "magnitude" and name == "iee",
                f"--init magnitude {given}, which starts from given --weights by its own scores, else at random; give "
                "--init random, --init random-scores or --weights",
            ),
        )
        for key, (takers, why) in ONLY.items():
            taken = name in takers.split() or hasattr(method.options, key)
            if not taken and (value := getattr(m, key)) != getattr(Masks, key):
                typed = {True: key, False: f"no-{key}"}.get(value, f"{key.replace('_', '-')} {value}")
                raise UsageError(f"--{typed} {given}; {why}")

    @property
    def distribution(self) -> Literal["uniform", "erk", "global", "nm"]:
        """How a sparsity is spread: as asked, else as the paper has it; filters, which have no ERK, over all layers."""
        own = "global" if self.masks.units == "filters" else METHODS[self.method].distribution
        return self.masks.distribution or own

    def cycle_steps(self, total_steps: int) -> tuple[int, int, int]:
        """Returns the steps (h, j, q) of IEE's cycle; given weights are scored for h steps before the first one."""
        return self.cycle.steps(total_steps, scored=self.weights is not None and self.masks.init is None)

    @property
    def goal(self) -> str:
        """What is to be met, in words: the budget as it was given, or the sparsity."""
        if self.budget is not None:
            return self.budget
        if self.from_run is not None:
            return f"the network of {self.from_run}"
        if self.masks.mask is not None:
            return f"the mask of {self.masks.mask}"
        kind = self.distribution
        if kind == "nm":
            return f"{self.masks.nm} weights"
        what = self.masks.units or METHODS[self.method].sparsity
        if what == "width":
            return f"{1 - (self.masks.sparsity or 0):.4g} of the parameters, uniformly narrower"
        return f"{100 * (self.masks.sparsity or 0):.4g}% of {what} removed, {kind}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "settings") -> Settings:
        """Builds settings from their JSON values; a seal among them is left out.

        What is not there has its default; ``where`` they were read from is for messages.

        Raises:
            UsageError: a key that settings do not have, one that is missing, or a value of another type or range.
        """
        parts = parts_of(cls)
        plain = {key: value for key, value in values.items() if key not in (*parts, "seal")}
        made: dict[str, Any] = {}
        for name, kind in parts.items():
            part = values.get(name, {})
            if not isinstance(part, Mapping):
                raise UsageError(f"{where} hold {name!r}: {str(part)[:80]!r}; it takes options by name")
            made[name] = kind(**fitted(kind, part, where=where))
        found = fitted(cls, plain, where=where)
        for name in ("model", "data"):
            if name not in found:
                raise UsageError(f"{where} hold no {name!r}; name one")
        return cls(**found, **made)

    @property
    def digest(self) -> str:
        """The run's name: a hash of all settings."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:12]


def _refuse(*rules: tuple[bool, str]) -> None:
    """Raises the message of the first rule that is broken: (whether it is, what to say)."""
    for broken, message in rules:
        if broken:
            raise UsageError(message)


OPTIONS = options_of(Settings)
"""The options of a training by name."""
