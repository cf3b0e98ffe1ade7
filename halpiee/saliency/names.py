"""Criteria by name, and what each one is made of."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable

from halpiee.errors import UsageError
from halpiee.saliency.algebra import Inverted
from halpiee.saliency.criterion import Criterion
from halpiee.saliency.gradient import Gradient
from halpiee.saliency.grasp import GraSP
from halpiee.saliency.loss import LossPreservation
from halpiee.saliency.magnitude import Magnitude
from halpiee.saliency.norm import Norm
from halpiee.saliency.random import Random
from halpiee.saliency.scale import ScaleChange
from halpiee.saliency.snip import SNIP
from halpiee.saliency.synflow import SynFlow
from halpiee.saliency.taylor import Taylor

__all__ = ["CRITERIA", "criterion_of", "named"]

CRITERIA: dict[str, Callable[[int], Criterion]] = {
    "gradient": lambda seed: Gradient(),
    "grasp": lambda seed: GraSP(),
    "grasp-magnitude": lambda seed: GraSP(magnitude=True),
    "grasp-plain": lambda seed: GraSP(temperature=1.0),
    "l1": lambda seed: Norm(1),
    "l2": lambda seed: Norm(2),
    "loss": lambda seed: LossPreservation(),
    "loss-magnitude": lambda seed: LossPreservation(magnitude=True),
    "magnitude": lambda seed: Magnitude(),
    "random": Random,
    "scale-change": lambda seed: ScaleChange(),
    "snip": lambda seed: SNIP(),
    "synflow": lambda seed: SynFlow(),
    "taylor": lambda seed: Taylor(),
}
"""Name → criterion for a seed. Each but ``random`` also stands as ``inverted-NAME``."""


def _inverted(name: str) -> Callable[[int], Criterion]:
    return lambda seed: Inverted(CRITERIA[name](seed))


CRITERIA |= {f"inverted-{name}": _inverted(name) for name in CRITERIA if name != "random"}


def named(name: str, seed: int = 0) -> Criterion:
    """Returns the criterion of a name; ``_`` may stand for ``-``.

    Raises:
        UsageError: no such criterion; the message has the closest name and all others.
    """
    known = name.replace("_", "-")
    if known not in CRITERIA:
        close = difflib.get_close_matches(known, CRITERIA, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        plain = ", ".join(n for n in sorted(CRITERIA) if not n.startswith("inverted-"))
        raise UsageError(
            f"the criterion {name!r} was asked; {hint}known are {plain}, and inverted-… of each but random"
        )
    return CRITERIA[known](seed)


def criterion_of(given: object, seed: int = 0) -> Criterion:
    """Returns the criterion that a name, a criterion or its class stands for.

    Raises:
        UsageError: an unknown name, or something else.
    """
    if isinstance(given, str):
        return named(given, seed)
    made = given() if isinstance(given, type) and not _needs_arguments(given) else given
    if isinstance(made, type) or not callable(made) or not hasattr(made, "per_step"):
        shown = made.__name__ if isinstance(made, type) else repr(made)
        raise UsageError(
            f"the criterion {shown} was asked; give a name such as 'taylor' or 'magnitude', or a criterion such as "
            "halpiee.saliency.Taylor()"
        )
    return made  # type: ignore[no-any-return]


def _needs_arguments(kind: type) -> bool:
    parameters = inspect.signature(kind).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is inspect.Parameter.empty and p.kind not in kinds for p in parameters)
