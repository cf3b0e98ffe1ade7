"""Criteria by name: a criterion is one class, in one file, that registers itself.

::

    @halpiee.criterion("fisher", paper="Theis et al. 2018, arXiv 1801.05787", units=("weights", "channels"))
    @dataclass(frozen=True)
    class Fisher: ...

The fields of the class are its options. A class may register under several names, each with other values of its fields.
Here, too, are criteria made of criteria: inverse, absolute value, product, one in a mode of the batch norms.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.saliency.criterion import Batches, Criterion, Look, LossFn, NormMode, Passes, norm_mode, pass_of
from halpiee.sparsity.granularity import Units
from latency.registry import Registry, not_known, plain

C = TypeVar("C", bound=Callable[..., Any])

INVERTED = "inverted-"


@dataclass(frozen=True)
class Entry:
    """A criterion that is registered."""

    name: str  # of ``--criterion`` and ``criterion=``
    kind: Callable[..., Any]  # the class, or a function of (units, value, gradient)
    paper: str = ""  # where it is from
    units: tuple[str, ...] = ("weights", "filters", "channels")  # what it scores
    options: Mapping[str, Any] = field(default_factory=dict)  # values of the class's fields under this name
    invertible: bool = True  # whether ``inverted-NAME`` is one, too

    def make(self, seed: int = 0) -> Criterion:
        """Returns the criterion; a class with a field ``seed`` gets the seed."""
        if not isinstance(self.kind, type):
            return cast(Criterion, self.kind)
        takes = "seed" in inspect.signature(self.kind).parameters
        made: Criterion = self.kind(**self.options, **({"seed": seed} if takes else {}))
        return made


REGISTRY: Registry[Entry] = Registry("criterion", group="halpiee.criteria", home="halpiee.saliency")


def criterion(
    name: str,
    *,
    paper: str = "",
    units: tuple[str, ...] = ("weights", "filters", "channels"),
    options: Mapping[str, Any] | None = None,
    invertible: bool = True,
) -> Callable[[C], C]:
    """Registers a criterion: a class (see ``Criterion``), or a function of (units, value, gradient).

    Args:
        name: in lower case, words joined by ``-``.
        paper: where it is from.
        units: what it scores: ``weights``, ``filters``, ``channels``.
        options: values of the class's fields under this name.
        invertible: whether ``inverted-NAME`` makes sense.

    Returns:
        A decorator that returns what it is given. A function without ``per_step`` is scored on every step.

    Raises:
        UsageError: a name that another criterion has, or a class whose fields have no defaults.
    """

    def register(kind: C) -> C:
        given = dict(options or {})
        if not callable(kind):
            raise UsageError(f"the criterion {name!r} is {kind!r}; decorate a class or a function")
        if isinstance(kind, type) and (missing := _without_default(kind) - given.keys() - {"seed"}):
            raise UsageError(
                f"the criterion {name!r} needs a value of {sorted(missing)[0]!r}; give the field a default, or "
                "options={…}"
            )
        if not isinstance(kind, type) and not hasattr(kind, "per_step"):
            kind.per_step = True  # type: ignore[attr-defined]
        REGISTRY.add(name, Entry(name, kind, paper, tuple(units), given, invertible), kind)
        return kind

    return register


def named(name: str, seed: int = 0) -> Criterion:
    """Returns the criterion of a name; ``_`` may replace ``-``, and ``inverted-NAME`` keeps those that NAME removes.

    Raises:
        UsageError: no such criterion; the message has the closest name and all others.
    """
    known = plain(name)
    of = known.removeprefix(INVERTED)
    if of not in REGISTRY or (of != known and not REGISTRY[of].invertible):
        more = f", and inverted-… of each but {' and '.join(_not_invertible())}{REGISTRY.elsewhere}"
        raise not_known("criterion", name, REGISTRY.names(), more=more)
    made = REGISTRY[of].make(seed)
    return made if of == known else Inverted(made)


class _Criteria(Mapping[str, Callable[[int], Criterion]]):
    """Every name, the inverted ones too → criterion for a seed."""

    def __getitem__(self, name: str) -> Callable[[int], Criterion]:
        if name not in list(self):
            raise KeyError(name)
        return lambda seed: named(name, seed)

    def __iter__(self) -> Iterator[str]:
        yield from REGISTRY
        yield from (f"{INVERTED}{name}" for name in REGISTRY if name not in _not_invertible())

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class _Changed:
    """Scores of one criterion, each changed by itself: the passes are the criterion's own."""

    of: Criterion

    @property
    def per_step(self) -> bool:
        """As the criterion's own."""
        return self.of.per_step

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Makes the criterion's own passes."""
        return pass_of(self.of)(model, batches, loss_fn)


class Inverted(_Changed):
    """``−c``: keeps the units that the criterion would remove first (the ablation of Frankle et al. 2021)."""

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        return {name: -score for name, score in self.of(units, value, gradient).items()}


@dataclass(frozen=True)
class InMode(_Changed):
    """``c`` over batches, with batch norms in a mode of their own: by running or by batch statistics.

    Attributes:
        of: the criterion.
        norms: the mode.
    """

    norms: NormMode = "eval"

    def probe(self, model: nn.Module, batches: Batches, loss_fn: LossFn) -> Passes:
        """Makes the criterion's own passes in that mode."""
        with norm_mode(model, self.norms):
            yield from pass_of(self.of)(model, batches, loss_fn)

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, Tensor]:
        """Returns unit name → score."""
        return self.of(units, value, gradient)


CRITERIA: Mapping[str, Callable[[int], Criterion]] = _Criteria()
"""Name → criterion for a seed; each but ``random`` also as ``inverted-NAME``."""


def criterion_of(given: object, seed: int = 0) -> Criterion:
    """Returns a criterion, given its name, its class or itself.

    Raises:
        UsageError: an unknown name, or something else.
    """
    if isinstance(given, str):
        return named(given, seed)
    made = given() if isinstance(given, type) and not _without_default(given) else given
    if isinstance(made, type) or not callable(made) or not hasattr(made, "per_step"):
        shown = made.__name__ if isinstance(made, type) else repr(made)
        raise UsageError(
            f"the criterion {shown} was asked; give a name such as 'taylor' or 'magnitude', or a criterion such as "
            "halpiee.saliency.Taylor()"
        )
    return made  # type: ignore[no-any-return]


def _not_invertible() -> list[str]:
    return sorted(name for name, entry in REGISTRY.loaded().items() if not entry.invertible)


def _without_default(kind: type) -> set[str]:
    """Returns the arguments of a class without a default."""
    parameters = inspect.signature(kind).parameters.values()
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name for p in parameters if p.default is inspect.Parameter.empty and p.kind not in stars}
