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

__all__ = ["Cycle", "Settings", "parse_budget"]


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
class Settings:
    """One training to a budget.

    Attributes:
        model: a MODEL string.
        width: width multiplier of a zoo network; ``None``: the model's own.
        data: a data source.
        size: image size to bring the data to; ``None``: as it is.
        budget: as ``parse_budget`` reads it.
        method: how the budget is met.
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
        seed: of every random choice.
    """

    model: str
    data: str
    budget: str
    width: float | None = None
    size: int | None = None
    method: Literal["iee"] = "iee"
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
    seed: int = 0

    def __post_init__(self) -> None:
        parse_budget(self.budget)
        for name, least in (("epochs", 1), ("batch_size", 1), ("batch", 1), ("threads", 1), ("rounds", 3)):
            if getattr(self, name) < least:
                raise UsageError(f"{name}={getattr(self, name)} was asked; it is at least {least}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise UsageError(f"lr={self.lr} was asked; give a positive learning rate")

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
        return cls(**{**values, "cycle": Cycle(**values.get("cycle", {}))})

    @property
    def digest(self) -> str:
        """The run's name: a hash of all settings."""
        text = json.dumps(self.as_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
