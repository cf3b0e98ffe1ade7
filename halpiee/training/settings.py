"""What a run is: one frozen value whose hash names it. The same settings resume, others never overwrite."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal

from msgspec import Meta

from halpiee import ranges
from halpiee.asked import parse_budget
from halpiee.errors import UsageError
from halpiee.methods.catalogue import About, about
from halpiee.training.cycle import Cycle
from halpiee.training.masks import Masks
from halpiee.training.typed import fitted

__all__ = ["Cycle", "Masks", "Settings", "parse_budget"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One training to a budget.

    Attributes:
        model: a MODEL string.
        width: width multiplier of a zoo network; ``None``: the model's own.
        data: a data source.
        size: image size to bring the data to; ``None``: as it is.
        budget: a latency, as ``parse_budget`` reads it; ``None`` where ``masks`` holds a sparsity.
        method: how the budget is met; see ``halpiee methods``.
        protect_first: whether the first layer stays whole within a latency; ``None``: for the networks of
            ``selection.protect.RECIPES``, as in a plan.
        weights: safetensors file to start from; ``None``: from scratch.
        epochs: passes over the training data, of the dense and of the pruned network alike.
        batch_size: images per training step.
        lr: peak learning rate.
        warmup: share of the training over which the rate rises linearly.
        drops: shares of the training at which the rate is multiplied by ``drop``; none: half a cosine to zero.
        drop: the factor.
        momentum: of SGD.
        nesterov: whether it is Nesterov's.
        weight_decay: on weights with two or more dimensions; norms and biases are left alone.
        label_smoothing: of the cross-entropy.
        baseline: whether a dense network is trained beside.
        backend: which runtime is profiled and measured.
        batch: images per inference.
        threads: of the runtime.
        profile: profile file to use; ``None``: measured into the run's folder.
        calibration_nets: random shrunk networks measured to fit sums to whole networks.
        rounds: interleaved rounds of the closing measurement.
        device: where to train.
        cycle: IEE's own settings.
        masks: what a sparsity is asked for.
        images: training images whose activations a repair solves layers from.
        seed: of every random choice.
    """

    model: str
    data: str
    budget: str | None = None
    width: ranges.Width | None = None
    size: ranges.Side | None = None
    method: str = "iee"
    protect_first: bool | None = None
    weights: str | None = None
    epochs: ranges.Epochs = 20
    batch_size: ranges.Images = 64
    lr: ranges.Rate = 0.1
    warmup: ranges.Below = 0.05
    drops: tuple[ranges.Between, ...] = ()
    drop: ranges.Between = 0.1
    momentum: ranges.Below = 0.9
    nesterov: bool = True
    weight_decay: ranges.Decay = 5e-4
    label_smoothing: ranges.Below = 0.0
    baseline: bool = True
    backend: str = "onnxruntime"
    batch: ranges.Images = 1
    threads: ranges.Threads = 1
    profile: str | None = None
    calibration_nets: Annotated[int, Meta(ge=0, le=1000)] = 4
    rounds: Annotated[int, Meta(ge=3, le=10**5)] = 30
    device: str = "auto"
    cycle: Cycle = field(default_factory=Cycle)
    masks: Masks = field(default_factory=Masks)
    images: ranges.Solved = 512
    seed: ranges.Seed = 0

    def __post_init__(self) -> None:
        ranges.check(self)
        self._check_goal()
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
        method = about(self.method)
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
                f"--method {self.method} was asked to meet a latency, and removes {method.units}, which no latency is "
                "known for; give --sparsity, or --method iee"
            )
        if self.masks.asked and method.sparsity is None:
            raise UsageError(f"--method {self.method} meets a latency; give --budget instead of a sparsity")
        if method.pretrained and self.weights is None:
            raise UsageError(
                f"--method {self.method} prunes a trained network; give its --weights, such as dense.safetensors of "
                "a run"
            )
        if self.protect_first is not None and self.budget is None:
            raise UsageError(
                f"--{'' if self.protect_first else 'no-'}protect-first was given to a run to a sparsity; it says which "
                "channels a latency leaves whole: give --budget, or leave it out"
            )
        self._check_options(method)

    def _check_options(self, method: About) -> None:
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
                f"--units {m.units} was given to --method {self.method}, which removes {method.units}; "
                "filters are of iee and filter"
            )
        if m.rewind is not None and self.method != "ltr":
            raise UsageError(
                f"--rewind {m.rewind} was given to --method {self.method}; only ltr takes weights of a step "
                "(lth is step 0, lrr the last one)"
            )
        if method.rewinds and self.weights is not None and self.method != "lrr":
            raise UsageError(
                f"--method {self.method} rewinds to a step of a dense training that it watches, and --weights "
                f"{self.weights} are already trained; leave --weights out, or use --method lrr"
            )
        if m.at and not method.once:
            raise UsageError(
                f"--at {m.at} was given to --method {self.method}; it is of one-shot pruning: snip, grasp, synflow, "
                "magnitude or random"
            )
        if m.ablation in ("shuffle", "reinit") and not (method.once or method.rewinds or m.mask is not None):
            raise UsageError(
                f"--ablation {m.ablation} was given to --method {self.method}, which has no one mask to train; train "
                f"its final one anew: --method static --mask RUN --ablation {m.ablation}"
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

    @property
    def distribution(self) -> Literal["uniform", "erk", "global", "nm"]:
        """How a sparsity is spread: as asked, else as the paper has it; filters, which have no ERK, over all layers."""
        own = "global" if self.masks.units == "filters" else about(self.method).distribution
        return self.masks.distribution or own

    @property
    def goal(self) -> str:
        """What is to be met, in words: the budget as it was given, or the sparsity."""
        if self.budget is not None:
            return self.budget
        if self.masks.mask is not None:
            return f"the mask of {self.masks.mask}"
        kind = self.distribution
        if kind == "nm":
            return f"{self.masks.nm} weights"
        what = self.masks.units or about(self.method).sparsity
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
        plain = {key: value for key, value in values.items() if key not in ("cycle", "masks", "seal")}
        parts: dict[str, Any] = {}
        for name, kind in (("cycle", Cycle), ("masks", Masks)):
            part = values.get(name, {})
            if not isinstance(part, Mapping):
                raise UsageError(f"{where} hold {name!r}: {str(part)[:80]!r}; it takes options by name")
            parts[name] = fitted(kind, part, where=where)
        found = fitted(cls, plain, where=where)
        for name in ("model", "data"):
            if name not in found:
                raise UsageError(f"{where} hold no {name!r}; name one")
        return cls(**found, cycle=Cycle(**parts["cycle"]), masks=Masks(**parts["masks"]))

    @property
    def digest(self) -> str:
        """The run's name: a hash of all settings."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
