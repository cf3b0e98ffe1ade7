"""What a run is: frozen settings whose hash names it. The same settings resume, others never overwrite.

Every option of ``halpiee train`` is a field here, with its type, range, default and help text (``halpiee.options``).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.data.options import Loading
from halpiee.errors import UsageError
from halpiee.methods.registry import METHODS, Entry
from halpiee.options import described, fitted, option, options_of, parts_of
from halpiee.ranges import parse_budget
from halpiee.shared_options import (
    GOAL,
    IEE,
    NETWORK,
    RUNTIME,
    Batched,
    Limiting,
    Protecting,
    Scaled,
    Seeded,
    Switches,
    Threaded,
)

__all__ = ["OPTIONS", "Cycle", "Masks", "Settings", "parse_budget"]

RUN, METHOD, SCHEDULE, SPEED = "Run", "Method", "Schedule, dense and pruned", "Speed of the training"
"""Headings."""


AUTO = "auto"
"""The method that is found best for what is given: docs/decisions/0121-defaults-that-won.md."""


@dataclass(frozen=True, kw_only=True)
class Cycle(Switches):
    """How IEE exchanges units, its lengths beside its switches; see ``halpiee.IEE``."""

    cycles: ranges.Epochs = option(8, "Prune-and-grow cycles, where --h, --j and --q are left out.", IEE)
    h: ranges.Steps | None = option(None, "Steps before a prune.", IEE, unset="what --cycles leaves")
    j: ranges.StepsOrNone | None = option(
        None, "Steps between a prune and exploration.", IEE, unset="what --cycles leaves"
    )
    q: ranges.Steps | None = option(None, "Steps of exploration.", IEE, unset="what --cycles leaves")

    def __post_init__(self) -> None:
        ranges.check(self)

    def steps(self, total_steps: int) -> tuple[int, int, int]:
        """Returns (h, j, q); open ones share what ``cycles`` cycles leave within the first ``end`` of training.

        Raises:
            UsageError: not even one step each is left.
        """
        given = [n for n in (self.h, self.j, self.q) if n is not None]
        room = int(self.end * total_steps) // max(self.cycles, 1) - sum(given)
        share = room // max(3 - len(given), 1)
        h, j, q = (share if n is None else n for n in (self.h, self.j, self.q))
        if min(h, q) < 1 or j < 0:
            raise UsageError(
                f"{self.cycles} cycles were asked of {total_steps} steps with updates ending at {self.end:.0%}; "
                f"that leaves {room} steps for h, j and q: train more epochs, or ask for fewer --cycles"
            )
        return h, j, q


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
    repair: bool = option(True, "Solve the layers again after the cut of --method early.", METHOD)
    widths: Literal["scores", "uniform"] = option(
        "scores",
        "Widths of a cut: those that keep the most score, or the widest uniform ones (repair, early).",
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
        """Whether a sparsity is asked for: as a number, as a pattern, or by a mask."""
        return self.sparsity is not None or self.distribution == "nm" or self.mask is not None


@dataclass(frozen=True, kw_only=True)
class Settings(Scaled, Protecting, Limiting, Batched, Threaded, Seeded):
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
        "Finished run whose pruned network is trained on; MODEL, --data and their options are its own.",
        RUN,
    )
    reset_head: bool = option(
        False,
        "Draw the head anew where --weights have one of other classes; leave out what the network lacks.",
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
        "Runtime that is profiled and timed, `halpiee doctor` lists them; --profile says its own.",
        RUNTIME,
    )
    calibration_nets: Annotated[int, Meta(ge=0, le=1000)] = option(
        4,
        "Random shrunk networks that are measured to fit sums of ops to whole networks.",
        RUNTIME,
        on_command_line=False,
    )
    rounds: Annotated[int, Meta(ge=3, le=10**5)] = 30
    """Interleaved rounds of the closing measurement; the option of this name is that of ``masks``."""
    epochs: ranges.Epochs = option(
        20, "Passes over the training data, of the dense and the pruned network alike.", SCHEDULE
    )
    batch_size: ranges.Images = option(64, "Images per training step, of all processes together.", SCHEDULE)
    lr: ranges.Rate = option(0.1, "Peak learning rate.", SCHEDULE)
    warmup: ranges.Below = option(0.05, "Share of the training in which the rate rises linearly.", SCHEDULE)
    drops: tuple[ranges.Between, ...] = option(
        (),
        "Shares of the training at which the rate drops: 0.5,0.75.",
        SCHEDULE,
        unset="half a cosine to zero",
    )
    drop: ranges.Between = option(0.1, "Factor of each drop.", SCHEDULE)
    momentum: ranges.Below = option(0.9, "Momentum of SGD.", SCHEDULE)
    nesterov: bool = option(True, "Whether the momentum is Nesterov's.", SCHEDULE)
    weight_decay: ranges.Decay = option(5e-4, "Weight decay; norms and biases have none.", SCHEDULE)
    label_smoothing: ranges.Below = option(0.0, "Label smoothing of the cross-entropy.", SCHEDULE)
    distill: str | None = option(
        None,
        "Whose answers the pruned training matches (Hinton et al. 2015, temperature 2): dense, the run's own dense "
        "network, or a file of weights of it.",
        SCHEDULE,
        unset="nobody's",
    )
    distill_weight: ranges.Below = option(0.5, "Weight of matching them; the labels have the rest.", SCHEDULE)
    optimizer: Literal["sgd", "adamw", "rmsprop"] = option("sgd", "Optimizer.", SCHEDULE)
    schedule: Literal["cosine", "steps", "onecycle", "constant"] | None = option(
        None, "How the rate moves after the warm-up.", SCHEDULE, unset="steps with --drops, else cosine"
    )
    drop_factors: tuple[ranges.Between, ...] = option(
        (), "A factor for each drop: 0.1,0.5.", SCHEDULE, unset="--drop for each"
    )
    clip: ranges.Clip = option(0.0, "Largest norm of the gradient; 0: any.", SCHEDULE)
    ema: ranges.Below = option(
        0.0, "Decay of a running average of the weights, from the last mask update on; 0: none.", SCHEDULE
    )
    export_ema: bool = option(
        True, "The average is what is tested last and exported, where there is one.", SCHEDULE
    )
    ship: Literal["last", "best"] = option(
        "last",
        "Epoch whose weights are tested last and exported. best: that with the best figure on the test images, among "
        "those after the last cut or mask update; its figure is then the largest of several, and flatters.",
        SCHEDULE,
    )
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", "Precision of the training; weights and evaluation stay in fp32.", SPEED
    )
    channels_last: bool = option(False, "Train with channels last in memory.", SPEED)
    compile: bool = option(False, "Compile the network with torch.compile, and again after the cut.", SPEED)
    accumulate: Annotated[int, Meta(ge=1, le=1024)] = option(
        1, "Parts of a step whose gradients add up: less memory at a time.", SPEED
    )

    def __post_init__(self) -> None:
        ranges.check(self)
        if self.method == AUTO:
            found = "iee" if self.budget is None else "early" if self.weights else "scaled"
            object.__setattr__(self, "method", found)
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
        if list(self.drops) != sorted({d for d in self.drops if 0 < d < 1}):
            raise UsageError(
                f"--drops {','.join(map(str, self.drops))[:80]} was asked; drops are ascending shares of the training, "
                "such as 0.5,0.75"
            )

    def _check_goal(self) -> None:
        """Refuses a method without the limit it needs, or with two."""
        method = METHODS[self.method]
        if self.from_run is not None:
            if self.budget is not None or self.masks.asked or self.weights is not None:
                raise UsageError(
                    f"--from-run {self.from_run} trains a pruned network on, and a budget, a sparsity or --weights "
                    "were given; leave them out, or prune anew without --from-run"
                )
            return
        if self.budget is not None:
            parse_budget(self.budget)
        if self.budget is not None and self.masks.asked:
            raise UsageError(
                f"--budget {self.budget} and a sparsity were asked; a run meets one of them: leave one out"
            )
        if self.budget is None and not self.masks.asked:
            wanted = " or ".join(
                ["--budget 0.5"] * method.latency + ["--sparsity 0.9"] * (method.sparsity is not None)
            )
            raise UsageError(f"--method {self.method} needs a limit; give {wanted}")
        if self.budget is not None and not method.latency:
            raise UsageError(
                f"--method {self.method} was asked to meet a latency, and removes {', '.join(method.units)}, which no "
                "latency is known for; give --sparsity, or --method iee"
            )
        if self.masks.asked and method.sparsity is None:
            raise UsageError(f"--method {self.method} meets a latency; give --budget instead of a sparsity")
        if method.pretrained and self.weights is None:
            raise UsageError(
                f"--method {self.method} prunes a trained network; give its --weights, such as dense.safetensors of "
                "a run"
            )
        if self.narrowed and self.budget is None:
            raise UsageError(
                f"{self.narrowed[0]} was given to a run to a sparsity; it says what a latency may cut: give --budget, "
                "or leave it out"
            )
        if self.vanish and method.kind in ("cut", "narrow"):
            raise UsageError(
                f"--vanish was given to --method {self.method}, which leaves a unit of every group; give --method iee "
                "or halp"
            )
        if self.protect_first is not None and self.budget is None:
            raise UsageError(
                f"--{'' if self.protect_first else 'no-'}protect-first was given to a run to a sparsity; it says which "
                "channels a latency leaves whole: give --budget, or leave it out"
            )
        self._check_options(method)

    def _check_options(self, method: Entry) -> None:
        """Refuses an option that the method would silently leave out."""
        m = self.masks
        if m.mask is not None and self.method != "static":
            raise UsageError(
                f"--mask was given to --method {self.method}, which chooses its own; give --method static"
            )
        if (m.units == "filters" and self.method not in ("iee", "filter")) or (
            m.units == "weights" and method.sparsity == "filters"
        ):
            raise UsageError(
                f"--units {m.units} was given to --method {self.method}, which removes {', '.join(method.units)}; "
                "filters are of iee and filter"
            )
        if m.value != "scores" and method.kind != "cut" and self.method != "halp":
            raise UsageError(
                f"--value {m.value} was given to --method {self.method}; widths are measured by halp, repair and early"
            )
        if m.rewind is not None and self.method != "ltr":
            raise UsageError(
                f"--rewind {m.rewind} was given to --method {self.method}; only ltr takes weights of a step "
                "(lth is step 0, lrr the last one)"
            )
        if method.kind == "rewind" and self.weights is not None and self.method != "lrr":
            raise UsageError(
                f"--method {self.method} rewinds to a step of a dense training that it watches, and --weights "
                f"{self.weights} are already trained; leave --weights out, or use --method lrr"
            )
        if m.at and method.kind != "once":
            raise UsageError(
                f"--at {m.at} was given to --method {self.method}; it is of one-shot pruning: snip, grasp, synflow, "
                "magnitude or random"
            )
        if m.ablation in ("shuffle", "reinit") and not (
            method.kind in ("once", "rewind") or m.mask is not None
        ):
            raise UsageError(
                f"--ablation {m.ablation} was given to --method {self.method}, which has no one mask to train; train "
                f"its final one anew: --method static --mask RUN --ablation {m.ablation}"
            )
        if m.widths != "scores" and method.kind != "cut":
            raise UsageError(
                f"--widths {m.widths} was given to --method {self.method}; it is of the cuts: repair and early"
            )
        for name, unset in (("cut_at", None), ("repair", True)):
            if getattr(m, name) is not unset and self.method != "early":
                typed = "--no-repair" if name == "repair" else f"--cut-at {m.cut_at:g}"
                raise UsageError(
                    f"{typed} was given to --method {self.method}; only early trains a whole network and cuts it once"
                )
        self._check_schedule()
        if self.distill == "dense" and not (self.baseline or self.weights):
            raise UsageError(
                "--distill dense matches the dense network, and --no-baseline trains none; leave one out, give "
                "--weights, or --distill a file of weights"
            )
        if m.restart and not (m.at or self.method == "ltr"):
            raise UsageError(
                "--restart begins the schedule anew after a pruning at a later step; give --at STEP or --method ltr"
            )
        if m.init == "random-scores" and self.method != "iee":
            raise UsageError(f"--init random-scores was given to --method {self.method}; it is IEE's own")
        if m.init == "magnitude" and self.method == "iee":
            raise UsageError(
                "--init magnitude was given to --method iee, which starts from given --weights by its own scores, "
                "else at random; give --init random, --init random-scores or --weights"
            )

    def _check_schedule(self) -> None:
        """Refuses a schedule whose parts do not go together."""
        kind = self.kind_of_schedule
        if (kind == "steps") != bool(self.drops):
            raise UsageError(
                f"--schedule {kind} and --drops {','.join(map(str, self.drops)) or 'none'} were asked; drops are of "
                "--schedule steps, which needs some, such as 0.5,0.75"
            )
        if self.drop_factors and len(self.drop_factors) != len(self.drops):
            raise UsageError(
                f"--drop-factors gives {len(self.drop_factors)} factors for {len(self.drops)} drops; give one for each"
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"--accumulate {self.accumulate} was asked of --batch-size {self.batch_size}, and does not divide it; "
                f"give a divisor of {self.batch_size}"
            )

    @property
    def kind_of_schedule(self) -> str:
        """How the learning rate moves after the warm-up."""
        return self.schedule or ("steps" if self.drops else "cosine")

    @property
    def factors(self) -> tuple[float, ...]:
        """The factor of every drop."""
        return self.drop_factors or (self.drop,) * len(self.drops)

    @property
    def distribution(self) -> Literal["uniform", "erk", "global", "nm"]:
        """How a sparsity is spread: as asked, else as the paper has it; filters, which have no ERK, over all layers."""
        own = "global" if self.masks.units == "filters" else METHODS[self.method].distribution
        return self.masks.distribution or own

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

        Args:
            values: as ``as_dict`` returns them; what is not there has its default.
            where: what they were read from, for messages.

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
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


OPTIONS = options_of(Settings)
"""The options of a training by name."""
