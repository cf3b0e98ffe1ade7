"""What a forward reads of its tensors in Python: a number to log, a truth value to check, an array.

Fake tensors have no such values. They are heard of a forward on real tensors and given again on fake ones, in order.
Whether they feed an output is tried with other answers (``hearing.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from halpiee.structure.units import source_line

__all__ = [
    "TAKEN",
    "Answer",
    "Answers",
    "Change",
    "asks",
    "changes",
    "finer",
    "flips",
    "has_truths",
    "is_truth",
    "truths_in",
]

TAKEN = frozenset({"numpy", "__array__", "tolist", "__format__"})
"""Methods of tensors that make arrays, lists and texts of their values without an op."""

NEAR = (0.0, 0.1, 0.25, 0.5, 0.8, 0.95, 1.05, 1.25, 2.0, 4.0, 10.0, 100.0, -0.5, -1.0)
"""Factors of numbers that a check may let pass."""


@dataclass(frozen=True)
class Answer:
    """What Python was told.

    Attributes:
        value: a number, a truth value, a text, an array, or lists of them.
        line: file and line that asked.
    """

    value: Any
    line: str


@dataclass(frozen=True)
class Change:
    """Other answers in place of those that are found.

    Attributes:
        other: returns another value for the answer of this place, or the same.
        line: the one line whose answers are changed; all lines where it is empty.
        truths: whether truth values are changed; numbers and texts otherwise.
    """

    other: Callable[[int, Any], Any]
    line: str = ""
    truths: bool = False


class Answers:
    """The answers of a forward, in order.

    Args:
        given: answers to give where there are no values; none where they are heard here.
        change: what to answer in place of what is found.
    """

    def __init__(self, given: Sequence[Answer] = (), change: Change | None = None) -> None:
        self.given = given
        self.change = change
        self.heard: list[Answer] = []

    def again(self) -> Answers:
        """Returns the answers for another forward, from the first one on."""
        return Answers(self.given)

    def ask(self, run: Callable[[], Any]) -> Any:
        """Returns what is found, or the answer that is given where nothing can be found."""
        place = len(self.heard)
        try:
            found = run()
        except (RuntimeError, TypeError):  # what fake tensors raise
            if place >= len(self.given):
                raise
            found = self.given[place].value
            found = found.copy() if isinstance(found, np.ndarray) else found
        line = source_line()
        kept = found.copy() if isinstance(found, np.ndarray) else found
        self.heard.append(Answer(kept, line))
        if self.change is not None and self.change.line in ("", line):
            return self.change.other(place, kept)
        return found


def asks(func: Any) -> bool:
    """Returns whether an op makes Python numbers of the values of tensors."""
    schema = getattr(func, "_schema", None)
    if schema is None or torch.Tag.data_dependent_output not in func.tags:
        return False
    return not any(isinstance(part.type, torch.TensorType) for part in schema.returns)


def changes(answers: Sequence[Answer], line: str = "") -> Iterator[Change]:
    """Yields other answers for all numbers at once, or for those of one line.

    More, none, no number; and for each two of them one order and the other.
    """
    numbers = [n for n, answer in enumerate(answers) if not is_truth(answer.value)]
    if not numbers:
        return
    for by in (lambda x: x * 1.618 + 1.577, lambda x: 0.0 if x else 1.0, lambda x: float("nan")):
        yield Change(lambda place, value, by=by: other(value, by), line)  # type: ignore[misc]
    for bit in range(max(1, max(numbers).bit_length())):
        for odd in (0, 1):

            def far(place: int, value: Any, bit: int = bit, odd: int = odd) -> Any:
                return other(value, lambda x: 1e6 if place >> bit & 1 == odd else -1e6)

            yield Change(far, line)


def finer(line: str) -> Iterator[Change]:
    """Yields answers near those of a line, for where far ones do not pass a check of the model's own."""
    for factor in NEAR:
        yield Change(lambda place, value, factor=factor: other(value, lambda x: x * factor), line)  # type: ignore[misc]


def flips(answers: Sequence[Answer], line: str) -> Iterator[Change]:
    """Yields the opposite of the truth values of a line: of all, and of a part."""
    yield Change(lambda place, value: flipped(value), line, truths=True)
    places = [n for n, answer in enumerate(answers) if answer.line == line and has_truths(answer.value)]
    for bit in range(max(places).bit_length()) if len(places) > 1 else ():
        for odd in (0, 1):

            def part(place: int, value: Any, bit: int = bit, odd: int = odd) -> Any:
                return flipped(value) if place >> bit & 1 == odd else value

            yield Change(part, line, truths=True)


def is_truth(value: Any) -> bool:
    """Returns whether a value is truth values alone."""
    if isinstance(value, np.ndarray):
        return bool(value.dtype.kind == "b")
    if isinstance(value, list):
        return all(map(is_truth, value))
    return isinstance(value, bool)


def has_truths(value: Any) -> bool:
    """Returns whether there are truth values in a value."""
    return is_truth(value) or (isinstance(value, list) and any(map(has_truths, value)))


def truths_in(value: Any) -> set[bool]:
    """Returns which truth values there are in a value."""
    if isinstance(value, np.ndarray):
        return set(value.reshape(-1).tolist()) if value.dtype.kind == "b" else set()
    if isinstance(value, list):
        return set().union(*map(truths_in, value))
    return {value} if isinstance(value, bool) else set()


def flipped(value: Any) -> Any:
    """Returns the opposite of the truth values in a value, and the rest as it is."""
    if isinstance(value, np.ndarray):
        return ~value if value.dtype.kind == "b" else value
    if isinstance(value, list):
        return [flipped(v) for v in value]
    return not value if isinstance(value, bool) else value


def other(value: Any, by: Callable[[float], float]) -> Any:
    """Returns another number, text, array or list; truth values as they are."""
    if isinstance(value, list):
        return [other(v, by) for v in value]
    if isinstance(value, str):
        return f"{value}{by(1.0)}"
    if isinstance(value, np.ndarray):
        return others(value, by)
    if isinstance(value, complex):
        return complex(by(value.real), by(value.imag))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    found = by(value)
    if isinstance(value, float):
        return found
    return value + 1 if found != found else int(found) + (int(found) == value)


def others(value: np.ndarray[Any, Any], by: Callable[[float], float]) -> np.ndarray[Any, Any]:
    """Returns an array of other numbers, of the same shape and type."""
    if value.dtype.kind not in "iufc":
        return value
    found: Any = np.array([other(x, by) for x in value.reshape(-1).tolist()], dtype=object)
    if value.dtype.kind in "iu":
        limits = np.iinfo(value.dtype)
        found = found.clip(limits.min, limits.max)
    return np.asarray(found.astype(value.dtype).reshape(value.shape))
