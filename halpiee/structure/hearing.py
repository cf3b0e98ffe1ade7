"""Listening to what a forward reads in Python, and trying whether it feeds an output.

The forward runs again on real tensors with other answers. Where every op that counts then computes the same values of
the same values, the answers steer nothing. A check of the model's own may end such a run: it lets pass or it does not,
but a number all of whose changes end so has told nothing, and in doubt it steers.
"""

from __future__ import annotations

import dis
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.structure.answers import (
    Answer,
    Answers,
    Change,
    changes,
    finer,
    flips,
    has_truths,
    is_truth,
    truths_in,
)
from halpiee.structure.branches import taken
from halpiee.structure.calls import tensors_of
from halpiee.structure.liveness import needed
from halpiee.structure.modes import Path, Watch, plain_tensors
from halpiee.structure.stand_ins import looked_on, stand_in_for
from halpiee.structure.surroundings import FOREIGN, Surroundings
from latency.copies import copy_of

__all__ = ["idle_answers"]

MOST_LINES = 16
"""Lines that read something beyond which it is not tried one by one: it steers, in doubt."""


class EndlessError(Exception):
    """A forward runs on and on."""


@dataclass(frozen=True)
class Heard:
    """What a model's forwards have read and computed.

    Attributes:
        answers: what they read in Python.
        ops: the ops that count, with the numbers among their arguments and what tells their outputs from others.
        ran: how many ops have run.
    """

    answers: list[Answer]
    ops: list[Any]
    ran: int


def idle_answers(
    model: nn.Module, example_inputs: tuple[Any, ...], around: Surroundings, *, training: bool
) -> Answers | None:
    """Returns what a forward reads in Python, where it reads something and none of it feeds an output; else None.

    Args:
        model: the model.
        example_inputs: its inputs.
        around: what the model shares with its copies.
        training: whether it runs once more with the branches that it takes in training.
    """
    try:
        read = heard(model, example_inputs, around, None, training=training, forwards=1)
        if not read.answers:
            return None
        expected = heard(model, example_inputs, around, None, training=training)
    except Exception:  # the trace says what it is
        return None

    def same(change: Change) -> bool | None:
        """Whether nothing that counts changes; None where a check of the model's own ends the forward."""
        try:
            most = 4 * expected.ran + 1000
            found = heard(model, example_inputs, around, change, training=training, most=most)
        except Exception as error:
            return None if raised_on_purpose(error) else False
        return found.ops == expected.ops

    return Answers(read.answers) if steer_nothing(expected.answers, same) else None


def steer_nothing(answers: list[Answer], same: Callable[[Change], bool | None]) -> bool:
    """Returns whether other answers change nothing.

    Args:
        answers: what is read.
        same: says of a change whether nothing changes, or None where that is not known.
    """
    lines = dict.fromkeys(answer.line for answer in answers)
    if len(lines) > MOST_LINES:
        return False
    numbers = {answer.line for answer in answers if not is_truth(answer.value)}
    checked = False
    for change in changes(answers):
        found = same(change)
        if found is False:
            return False
        checked |= found is None
    for line in numbers if checked else ():
        found_here = [same(change) for change in (*changes(answers, line), *finer(line))]
        if False in found_here or True not in found_here:
            return False
    for line in lines:
        here = [answer.value for answer in answers if answer.line == line and has_truths(answer.value)]
        alike = len(truths_in(here)) == 1
        opposite = [same(change) for change in flips(answers, line)] if here else [True]
        if False in opposite or (not alike and True not in opposite):
            return False
    return True


def raised_on_purpose(error: Exception) -> bool:
    """Returns whether a ``raise`` or an ``assert`` in code of the model's own has ended a forward."""
    if isinstance(error, EndlessError):
        return False
    if isinstance(error, Warning):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    frame = trace.tb_frame
    if str(frame.f_globals.get("__name__", "")).partition(".")[0] in FOREIGN:
        return False
    return dis.opname[frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def heard(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    around: Surroundings,
    change: Change | None,
    *,
    training: bool,
    forwards: int = 2,
    most: int | None = None,
) -> Heard:
    """Runs a copy of a model on real tensors, quietly.

    Args:
        model: the model.
        example_inputs: its inputs.
        around: what the model shares with its copies.
        change: answers in place of what is read.
        training: whether it runs once more with the branches that it takes in training.
        forwards: how often it runs: what one keeps on ``self`` may steer the next.
        most: ops after which it is endless.
    """
    path = Path(Answers(change=change))
    with around.kept(), quietly():
        copied = stand_in_for(copy_of(model), example_inputs, tensors="real")
        given = {f"input#{n}": tensor for n, tensor in enumerate(tensors_of(copied.inputs), start=1)}
        listen = Listen(path, copied.tensors | given, most)
        with looked_on(copied, path, [], listen):
            results = [copied.model(*copied.inputs) for _ in range(forwards)]
            if training:
                results += trained(copied.model, copied.inputs)
        outputs = [listen.value(tensor) for tensor in tensors_of(results)]
    assert path.answers is not None
    counting = needed(listen.events, listen.given, outputs)
    ops = [listen.ops[place] for place in sorted(counting)]
    return Heard(path.answers.heard, ops, listen.ran)


def trained(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """Runs a copy as it trains; what fails so, as a loss without targets, is not traced either."""
    taken(model)
    try:
        return [model(*inputs)]
    except EndlessError:
        raise
    except Exception:
        return []


class Listen(Watch):  # type: ignore[no-untyped-call]
    """Notes the ops that run with the numbers among their arguments and a sum over their outputs."""

    def __init__(self, path: Path, given: Mapping[str, Tensor], most: int | None) -> None:
        super().__init__(path, given, frozenset())
        self.most = most
        self.ops: list[Any] = []

    def step(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the op of this name and notes it."""
        if self.most is not None and self.ran > self.most:
            raise EndlessError
        out = super().step(name, func, args, kwargs)
        with plain_tensors():
            if outs := tensors_of(out):
                self.ops.append((name, plain([args, kwargs]), [sum_of(tensor) for tensor in outs]))
        return out


def plain(value: Any) -> Any:
    """Returns the numbers and texts in nested arguments, with None for everything else."""
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    return repr(value) if isinstance(value, bool | int | float | str) else None  # so that NaN equals itself


def sum_of(tensor: Tensor) -> Any:
    """Returns the shape and the sum of a tensor, where it has one."""
    shape = tuple(tensor.shape)
    try:
        dtype = torch.complex128 if tensor.is_complex() else torch.float64
        return shape, repr(tensor.detach().sum(dtype=dtype).item())
    except (RuntimeError, TypeError):  # a layout or a type without sums
        return shape, ""


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps what a forward prints, logs and warns of, and where it stops to be looked at, from the user."""

    def stop(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a breakpoint")

    disabled, hook = logging.root.manager.disable, sys.breakpointhook
    logging.disable()
    sys.breakpointhook = stop
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.breakpointhook = hook
        logging.disable(disabled)
