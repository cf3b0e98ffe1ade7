"""The options that several verbs, the settings of a run or the Python classes take alike, each written once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.errors import UsageError
from halpiee.options import option

GOAL, METHOD, NETWORK, RUNTIME = "Goal", "Method", "Network", "Runtime"
IEE = "IEE: prune, improve, explore, grow"
SCHEDULE, SPEED = "Schedule, dense and pruned", "Speed of the training"
"""Headings."""

EARLY, LATE = 0.1, 0.75
"""Shares of a training after which IEE's updates have ended: for a latency (docs/decisions/0155), for a sparsity."""

MOST_CYCLES, FEWEST_STEPS = 8, 5
"""Cycles of IEE, and the steps of a phase below which there are fewer of them: scores of less are of few images."""


@dataclass(frozen=True, kw_only=True)
class Scaled:
    """How wide a network of the zoo is built."""

    width: ranges.Width | None = option(
        None, "Width multiplier of a zoo network.", NETWORK, unset="the network's own"
    )


@dataclass(frozen=True, kw_only=True)
class Batched:
    """How many images one inference takes."""

    batch: ranges.Images = option(1, "Images per inference.", RUNTIME)


@dataclass(frozen=True, kw_only=True)
class Threaded:
    """How many threads the runtime has."""

    threads: ranges.Threads = option(1, "Threads of the runtime.", RUNTIME)


@dataclass(frozen=True, kw_only=True)
class Protecting:
    """Whether a latency leaves the first layer whole."""

    protect_first: bool | None = option(
        None,
        "Leave the first layer whole within --budget; nothing to protect where it shares a residual stream.",
        GOAL,
        unset="on for resnet50 and mobilenet_v1, as in the papers",
    )


@dataclass(frozen=True, kw_only=True)
class Limiting:
    """What a latency is limited by beside itself, and which channels it may take."""

    also: tuple[str, ...] = option(
        (),
        "A further limit: macs=0.5, params=2e6, memory=12MB (largest input + output of one op), energy=0.6 (the "
        "energy_mj of the profile's cells), or another profile of this network, at any batch or device: "
        "profile=batch8.jsonl:0.6. May be given several times.",
        GOAL,
    )
    protect: tuple[str, ...] = option(
        (),
        "Leave the layers that match whole: a name or pattern such as head or 'layer4.*'; may be given several times.",
        GOAL,
    )
    only: tuple[str, ...] = option(
        (),
        "Cut only channels that the layers that match write alone, such as backbone; may be given several times.",
        GOAL,
    )
    vanish: bool = option(False, "Residual blocks may be removed whole.", GOAL)
    min_width: ranges.Fewest = option(
        0.0, "Fewest units that every group keeps: a number, or below 1 a share of its units.", GOAL
    )
    multiple_of: ranges.Classes = option(1, "Widths are multiples of this many units.", GOAL)

    @property
    def narrowed(self) -> tuple[str, ...]:
        """The limits that were given, as they are typed."""
        names = ("also", "protect", "only", "vanish", "min_width", "multiple_of")
        usual = {"min_width": 0.0, "multiple_of": 1, "vanish": False}
        given = [name for name in names if getattr(self, name) != usual.get(name, ())]
        return tuple("--" + name.replace("_", "-") for name in given)


@dataclass(frozen=True, kw_only=True)
class Seeded:
    """Where random choices begin."""

    seed: ranges.Seed = option(0, "Seed of every random choice.")


@dataclass(frozen=True, kw_only=True)
class Switches:
    """How IEE exchanges units: what its paper's Table 4 turns on and off."""

    omega: ranges.Between = option(
        0.3, "Exploration budget of the first cycle, as a share of the budget.", IEE
    )
    decay: Literal["exponential", "cosine"] = option(
        "exponential",
        "Decay of the exploration budget: to 1 % of the budget or one step of the coarsest group, or as a cosine to 0.",
        IEE,
    )
    end: ranges.Positive | None = option(
        None,
        "Share of the training after which updates have ended; channels are cut out then, and the rest trains compact.",
        IEE,
        unset=f"of iee {EARLY} for a latency by halpiee train; else {LATE}",
    )
    explore_init: Literal["model", "zero"] | None = option(
        None,
        "Values that units start from which were never active: the network's initial ones, or zero.",
        IEE,
        unset="weights: zero; channels: model",
    )
    spread: Literal["erk", "uniform"] = option(
        "erk", "How the first weights of a global budget are spread over the layers.", IEE
    )
    grow_by: Literal["score", "random"] = option(
        "score", "Grow the units with the highest scores, or random ones.", IEE
    )
    grow_values: Literal["last", "zero"] = option(
        "last", "Values of grown units: as exploration left them, or zero.", IEE
    )
    freeze: bool = option(True, "Freeze active units during exploration.", IEE)
    explore_norm: Literal["batch", "running"] = option(
        "batch", "Statistics that batch norms use during exploration: of the batch, or the running ones.", IEE
    )
    solver: Literal["joint", "cpsat", "linear"] | None = option(
        None, "Solver that selects the units of a latency.", GOAL, unset="joint; of halp linear"
    )


@dataclass(frozen=True, kw_only=True)
class Scheduling:
    """How a training steps: its schedule, its optimizer, and what makes it fast."""

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

    def check_schedule(self) -> None:
        """Refuses a schedule whose parts do not go together."""
        kind = self.kind_of_schedule
        if list(self.drops) != sorted({d for d in self.drops if 0 < d < 1}):
            raise UsageError(
                f"--drops {','.join(map(str, self.drops))[:80]} was asked; drops are ascending shares of the training, "
                "such as 0.5,0.75"
            )
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


@dataclass(frozen=True, kw_only=True)
class Cycle(Switches):
    """How IEE exchanges units, its lengths beside its switches; see ``halpiee.IEE``."""

    cycles: ranges.Epochs | None = option(
        None,
        "Prune-and-grow cycles, where --h, --j and --q are left out.",
        IEE,
        unset=f"{MOST_CYCLES}, or as many as leave {FEWEST_STEPS} steps for each of these",
    )
    h: ranges.Steps | None = option(None, "Steps before a prune.", IEE, unset="what --cycles leaves")
    j: ranges.StepsOrNone | None = option(
        None, "Steps between a prune and exploration.", IEE, unset="what --cycles leaves"
    )
    q: ranges.Steps | None = option(None, "Steps of exploration.", IEE, unset="what --cycles leaves")

    def __post_init__(self) -> None:
        ranges.check(self)

    def steps(self, total_steps: int, *, scored: bool = False) -> tuple[int, int, int]:
        """Returns (h, j, q); open ones share what the cycles leave within the first ``end`` of training.

        Where given weights are ``scored``, h further steps come first.

        Raises:
            UsageError: not even one step each is left.
        """
        end = LATE if self.end is None else self.end
        given = [n for n in (self.h, self.j, self.q) if n is not None]

        def share(cycles: int) -> int:
            room = int(end * total_steps) - cycles * sum(given) - scored * (self.h or 0)
            return room // max(cycles * (3 - len(given)) + (scored and self.h is None), 1)

        few = (n for n in range(MOST_CYCLES, 1, -1) if share(n) >= FEWEST_STEPS)
        cycles = next(few, 1) if self.cycles is None else self.cycles
        h, j, q = (share(cycles) if n is None else n for n in (self.h, self.j, self.q))
        if min(h, q) < 1 or j < 0:
            what = "1 cycle was" if cycles == 1 else f"{cycles} cycles were"
            raise UsageError(
                f"{what} asked of {total_steps} steps with updates ending at {end:.0%}; that leaves "
                f"{int(end * total_steps) // cycles} steps for h, j and q: train more epochs, end later (--end), or "
                "ask for fewer --cycles"
            )
        return h, j, q
