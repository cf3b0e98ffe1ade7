"""What a run is: one frozen value whose hash names it. The same settings resume, others never overwrite."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from halpiee.errors import UsageError
from halpiee.methods.catalogue import about

__all__ = ["Cycle", "Masks", "Settings", "parse_budget"]


def parse_budget(text: str) -> tuple[float | None, float | None]:
    """Returns (µs, fraction) of a budget such as ``0.5``, ``50%``, ``12.5ms`` or ``800us``; one of them is None.

    Raises:
        UsageError: the text is none of these, or not positive.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(us|µs|ms|s|%)?\s*", text, re.IGNORECASE)
    if not match or float(match[1]) <= 0:
        raise UsageError(
            f"the budget {text!r} was asked; give a share of the dense latency such as 0.5 or 50%, "
            "or a time such as 12.5ms or 800us"
        )
    number, unit = float(match[1]), (match[2] or "").lower()
    if unit in ("", "%"):
        fraction = number / 100 if unit == "%" else number
        if fraction > 1:
            raise UsageError(
                f"the budget {text!r} is {fraction:g} times the dense latency; "
                f"give a share up to 1, or a time with its unit such as {number:g}ms"
            )
        return None, fraction
    return number * {"us": 1.0, "µs": 1.0, "ms": 1e3, "s": 1e6}[unit], None


@dataclass(frozen=True, kw_only=True)
class Cycle:
    """How IEE exchanges units; see ``halpiee.IEE``.

    Attributes:
        h: steps before a prune; ``None``: chosen so that ``cycles`` fit.
        j: steps after it; likewise.
        q: steps of exploring; likewise.
        cycles: how many cycles when h, j and q are left open.
        omega: Ω⁰ as a share of Ψ.
        end: share of the training after which updates have ended.
        decay: how Ω falls.
        init: how the first units are chosen from scratch.
        solver: ``joint``, ``cpsat`` or ``linear``.
    """

    h: int | None = None
    j: int | None = None
    q: int | None = None
    cycles: int = 8
    omega: float = 0.3
    end: float = 0.75
    decay: Literal["exponential", "cosine"] = "exponential"
    init: Literal["random", "random_scores"] = "random"
    solver: Literal["joint", "cpsat", "linear"] = "joint"

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
    """What a method that trains to a sparsity is asked for; ``None``: its paper's own, fitted to the training.

    Attributes:
        sparsity: share that is removed.
        distribution: how it is spread: ``uniform``, ``erk``, ``global`` or ``nm``.
        nm: N and M of ``nm``, as ``2:4``.
        criterion: whose scores, by name.
        rounds: how often survivors are scored again.
        interval: steps between two updates.
        fraction: share exchanged by the first update.
        initial: sparsity that GraNet starts from.
        regrow: share of a layer's filters that each round exchanges.
        at: steps before one-shot pruning.
        init: how the first units are chosen: ``random``, or the largest of the given weights (``magnitude``).
        first: share of the training where a gradual method begins.
        last: share where it ends.
    """

    sparsity: float | None = None
    distribution: Literal["uniform", "erk", "global", "nm"] | None = None
    nm: str = "2:4"
    criterion: str | None = None
    rounds: int | None = None
    interval: int | None = None
    fraction: float | None = None
    initial: float = 0.0
    regrow: float = 0.0
    at: int = 0
    init: Literal["random", "magnitude"] = "random"
    first: float | None = None
    last: float | None = None

    def __post_init__(self) -> None:
        if self.sparsity is not None and not 0 < self.sparsity < 1:
            raise UsageError(
                f"a sparsity of {self.sparsity} was asked; sparsity is the share that is removed, between 0 and 1"
            )
        match = re.fullmatch(r"([0-9]+):([0-9]+)", self.nm)
        if not match or not 0 < int(match[1]) <= int(match[2]):
            raise UsageError(f"the pattern {self.nm!r} was asked; give N:M with 0 < N <= M, such as 2:4")

    @property
    def n_of_m(self) -> tuple[int, int]:
        """N and M."""
        n, m = self.nm.split(":")
        return int(n), int(m)

    @property
    def asked(self) -> bool:
        """Whether a sparsity is asked for, as a number or as a pattern."""
        return self.sparsity is not None or self.distribution == "nm"


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
        weights: safetensors file to start from; ``None``: from scratch.
        epochs: passes over the training data, of the dense and of the pruned network alike.
        batch_size: images per training step.
        lr: peak learning rate.
        warmup: share of the training over which the rate rises linearly.
        momentum: of SGD (Nesterov).
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
        seed: of every random choice.
    """

    model: str
    data: str
    budget: str | None = None
    width: float | None = None
    size: int | None = None
    method: str = "iee"
    weights: str | None = None
    epochs: int = 20
    batch_size: int = 64
    lr: float = 0.1
    warmup: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    baseline: bool = True
    backend: str = "onnxruntime"
    batch: int = 1
    threads: int = 1
    profile: str | None = None
    calibration_nets: int = 4
    rounds: int = 30
    device: str = "auto"
    cycle: Cycle = field(default_factory=Cycle)
    masks: Masks = field(default_factory=Masks)
    seed: int = 0

    def __post_init__(self) -> None:
        self._check_goal()
        for name, least in (("epochs", 1), ("batch_size", 1), ("batch", 1), ("threads", 1), ("rounds", 3)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)} was asked; it is at least {least}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr={self.lr} was asked; give a positive learning rate")

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
        if self.method == "halp" and self.weights is None:
            raise UsageError(
                "--method halp prunes a trained network; give its --weights, such as dense.safetensors of a run"
            )

    @property
    def goal(self) -> str:
        """What is to be met, in words: the budget as it was given, or the sparsity."""
        if self.budget is not None:
            return self.budget
        kind = self.masks.distribution or about(self.method).distribution
        if kind == "nm":
            return f"{self.masks.nm} weights"
        what = about(self.method).sparsity
        if what == "width":
            return f"{1 - (self.masks.sparsity or 0):.4g} of the parameters, uniformly narrower"
        return f"{100 * (self.masks.sparsity or 0):.4g}% of {what} removed, {kind}"

    def as_dict(self) -> dict[str, Any]:
        """Returns the settings as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Builds settings from their JSON values.

        Raises:
            UsageError: a key that settings do not have.
        """
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(
                f"settings hold {unknown}, which this version does not know; known are {sorted(known)}"
            )
        nested = {"cycle": Cycle(**values.get("cycle", {})), "masks": Masks(**values.get("masks", {}))}
        return cls(**{**values, **nested})

    @property
    def digest(self) -> str:
        """The run's name: a hash of all settings."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
