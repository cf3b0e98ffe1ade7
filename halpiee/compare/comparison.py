"""What is compared: one YAML file names the network, its data, the budgets, the seeds and the contestants.

::

    network: resnet20
    width: 2
    data: path/to/cifar10
    size: 16
    epochs: 4
    batch_size: 128
    budgets: [0.5, 0.3]
    seeds: [0, 1, 2]
    contestants: [dense, uniform, early]

Budgets are shares of the dense latency. Everything but budgets, seeds and contestants is the *setting*: rows of another
setting are never mixed with these, and further budgets, seeds and contestants may be added at any time.

Each contestant is options of ``halpiee train``, from scratch or from the dense network of its seed. With ``-distilled``
behind its name, its training matches the dense network's answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from halpiee import ranges
from halpiee.errors import UsageError, unknown
from halpiee.options import described, fitted, option
from halpiee.recipes import values_in

DENSE, DISTILLED = "dense", "-distilled"


@dataclass(frozen=True)
class Contestant:
    """One way to a network of a latency."""

    summary: str  # in a few words
    options: Mapping[str, Any] = field(default_factory=dict)  # of ``halpiee train``
    pretrained: bool = False  # whether it starts from the dense network of its seed
    # how many times the epochs of the comparison it trains; ``flops``: as many as cost what the dense training costs
    epochs: float | Literal["flops"] = 1
    distilled: bool = False  # whether it matches the dense network's answers
    outside: bool = False  # whether it is another library's: it needs an extra

    @property
    def needs_dense(self) -> bool:
        """Whether the dense network of its seed is trained before."""
        return self.pretrained or self.distilled


UNIFORM, SHORT = {"method": "small-dense"}, {"end": 0.1}

CONTESTANTS: dict[str, Contestant] = {
    DENSE: Contestant("the whole network", {**UNIFORM, "budget": "1"}),
    "uniform": Contestant("the widest uniform network, from scratch", UNIFORM),
    "uniform-twice": Contestant("the same for twice the epochs", UNIFORM, epochs=2),
    "uniform-flops": Contestant("the same for the dense training's FLOPs", UNIFORM, epochs="flops"),
    "scaled": Contestant("fewer blocks and channels alike, from scratch", {"method": "scaled"}),
    "scaled-twice": Contestant("the same for twice the epochs", {"method": "scaled"}, epochs=2),
    "early": Contestant("whole for a quarter, one cut with repair, then compact", {"method": "early"}),
    "iee": Contestant("IEE from scratch, updates for three quarters", {"method": "iee", "end": 0.75}),
    "iee-short": Contestant("IEE from scratch, updates for a tenth", {"method": "iee", **SHORT}),
    "iee-pretrained": Contestant("IEE from the dense network", {"method": "iee", **SHORT}, pretrained=True),
    "halp-linear": Contestant(
        "HALP: ten prunes in a tenth, its own knapsack",
        {"method": "halp", "rounds": 10, **SHORT},
        pretrained=True,
    ),
    "halp-joint": Contestant(
        "the same, both sides of each layer priced",
        {"method": "halp", "rounds": 10, "solver": "joint", **SHORT},
        pretrained=True,
    ),
    "l1": Contestant(
        "uniform widths by the L1 norm of the filters (Li et al. 2017), trained on",
        {"method": "early", "criterion": "l1", "widths": "uniform", "repair": False},
        pretrained=True,
    ),
    "cut": Contestant(
        "Taylor scores, one solve, trained on", {"method": "early", "repair": False}, pretrained=True
    ),
    "repaired-scaled": Contestant(
        "cut to the widths of scaled, layers solved again, trained on",
        {"method": "early", "widths": "scaled"},
        pretrained=True,
    ),
    "repaired": Contestant("the same, layers solved again, trained on", {"method": "early"}, pretrained=True),
    "repair": Contestant(
        "cut in rounds, layers solved again, no training", {"method": "repair"}, pretrained=True
    ),
    "torch-pruning": Contestant(
        "Torch-Pruning, global group Taylor, ratio bisected to the latency, trained on",
        pretrained=True,
        outside=True,
    ),
}


def contestant(name: str) -> Contestant:
    """Returns a contestant by name.

    Raises:
        UsageError: nothing has that name; the message lists the names.
    """
    plain = name.removesuffix(DISTILLED)
    found = CONTESTANTS.get(plain)
    if found is None or (plain != name and (plain == DENSE or found.outside or plain == "repair")):
        known = [
            *CONTESTANTS,
            *(f"{n}{DISTILLED}" for n, c in CONTESTANTS.items() if n != DENSE and not c.outside),
        ]
        raise UsageError(
            f"the contestant {name[:80]!r} was asked; {unknown(name, known, 'known are ' + ', '.join(CONTESTANTS))}"
        )
    return found if plain == name else replace(found, summary=f"{found.summary}; distilled", distilled=True)


VARIED = ("budgets", "seeds", "contestants")
"""What is no part of the setting."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared; the fields of a training mean what they mean for ``halpiee train``."""

    network: str = field(metadata=described("A zoo, torchvision or timm name, or package.module:function."))
    data: str = field(metadata=described("As for halpiee train."))
    budgets: tuple[ranges.Between, ...] = field(metadata=described("Shares of the dense latency."))
    seeds: tuple[ranges.Seed, ...] = option((0, 1, 2), "Seeds of the trainings.")
    contestants: tuple[str, ...] = option(("dense", "uniform", "early"), "What is compared.")
    width: ranges.Width | None = option(None, "Width multiplier of a zoo network.")
    size: ranges.Side | None = option(None, "Pixels of a side to bring the images to.")
    device: str = option("auto", "Device of the trainings.")
    backend: Literal["onnxruntime", "torch"] = option("onnxruntime", "Runtime that is timed.")
    profile: str | None = option(None, "A profile measured before.")
    batch: ranges.Images = option(1, "Images per inference.")
    threads: ranges.Threads = option(1, "Threads of the runtime.")
    epochs: ranges.Epochs = option(20, "Epochs of every training.")
    batch_size: ranges.Images = option(128, "Images per training step.")
    lr: ranges.Rate = option(0.1, "Peak learning rate from scratch.")
    tuning_lr: ranges.Rate = option(0.1, "Peak learning rate of a network that was trained before.")
    weight_decay: ranges.Decay = option(5e-4, "Weight decay.")
    distill: ranges.Between = option(
        0.5, "Weight of the dense network's answers in `…-distilled` contestants."
    )
    bf16: bool = option(False, "Train in bfloat16.")

    def __post_init__(self) -> None:
        ranges.check(self)
        for name in VARIED:
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UsageError(f"{name}: {list(values)} was asked; give at least one, each once")
        for name in self.contestants:
            contestant(name)

    @property
    def setting(self) -> str:
        """A hash of all but budgets, seeds and contestants, and of where a profile lies."""
        shared = {key: value for key, value in asdict(self).items() if key not in (*VARIED, "profile")}
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def title(self) -> str:
        """The setting in words."""
        wide = "" if self.width is None else f" ×{self.width:g}"
        pixels = "" if self.size is None else f" at {self.size} px"
        name = Path(self.data).name or self.data
        return f"{self.network}{wide} on {name}{pixels}, {self.epochs} epochs"

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, where: str) -> Comparison:
        """Returns the comparison of values as YAML has them; ``where`` they were read from is for messages.

        Raises:
            UsageError: a field that is not known or lacks, or a value of another type or range.
        """
        found = fitted(cls, values, where=where)
        missing = [name for name in ("network", "data", "budgets") if name not in found]
        if missing:
            raise UsageError(f"{where} names no {' and no '.join(missing)}; give a line `{missing[0]}: …`")
        return cls(**found)


def read_comparison(path: Path) -> Comparison:
    """Returns the comparison that a YAML file describes.

    Raises:
        UsageError: there is no such file, it is no YAML, or it asks for what there is not; the message names the file.
    """
    if not path.is_file():
        raise UsageError(
            f"{path} was asked for, and there is no such file; write one as `halpiee compare --help` shows"
        )
    values = values_in(path, what=str(path))
    if not isinstance(values, dict):
        raise UsageError(f"{path} holds a {type(values).__name__}; write one `option: value` a line")
    try:
        return Comparison.from_values(values, where=str(path))
    except UsageError as error:
        raise error if str(path) in str(error) else UsageError(f"{path}: {error}") from error
