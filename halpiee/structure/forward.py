"""Runs a copy of the model once and records it, with a label beside every tensor.

The copy (``watching.py``) is fake unless the forward needs values, and may be a cut of the model.

A forward that reads its tensors in Python (to log a number, to check a range) is first run on real tensors, and the
values that it reads are noted. Then it runs again with other values in their place. Where every op that counts still
computes the same, the values steer nothing, and the trace returns the noted ones. A check of the model's own may end
such a run; a number all of whose changes end so shows nothing, and in doubt it steers.
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

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import _disable_current_modes

from halpiee.errors import StructureError
from halpiee.structure.labels import Tag, together
from halpiee.structure.recorder import Decisions, Recorder
from halpiee.structure.records import needed, tensors_of
from halpiee.structure.rules.norm import freeze_averaged
from halpiee.structure.shrink import Cut
from halpiee.structure.state import (
    Answer,
    Answers,
    Change,
    ConstantError,
    Constants,
    branches_by_mode,
    changes,
    finer,
    flips,
    has_truths,
    is_truth,
    reads_values,
    snapshot,
    stored_by,
    take_training_branches,
    truths_in,
)
from halpiee.structure.surroundings import Surroundings, foreign
from halpiee.structure.watching import Dispatch, Path, TracedCopy, Watch, copied_for_trace, recorded_run
from latency.backends.torch.modules import copy_of

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What fake tensors raise where the forward reads_values for a number that only real ones have."""


class ForwardError(StructureError):
    """The forward of a copy fails: where the model itself runs, the fault is of the trace."""

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where  # the op and the module that it failed in, as far as known


class NeedsValuesError(Exception):
    """The forward cannot run on fake tensors."""


@dataclass(frozen=True)
class Subject:
    """What is traced: a model, its example inputs, and the state that it shares with its copies."""

    model: nn.Module
    inputs: tuple[Any, ...]
    around: Surroundings
    branches: bool  # whether the model's code branches on ``training``

    @classmethod
    def of(cls, model: nn.Module, inputs: tuple[Any, ...]) -> Subject:
        """Notes the state that the model's code reaches outside its modules."""
        return cls(model, inputs, Surroundings(model), branches_by_mode(model))


def record(subject: Subject, recorder: Recorder, cut: Cut | None = None, *, training: bool) -> None:
    """Runs a copy of the model, cut on paper where a cut is given, and records it.

    With ``training`` it runs once more with the branches that it takes in training. Where it cannot run so on these
    inputs (a loss may want targets), only the evaluation counts.
    """
    real, model = recorder.real, subject.model
    with subject.around.kept():
        copied = copied_for_trace(model, subject.inputs, cut, tensors="real" if real else "fake")
        subject.around.watch(copied.fake_mode)
        recorder.modules.update(copied.model.named_modules())
        recorder.originals = {id(p): name for name, p in model.named_parameters()}
        if real and recorder.decisions is None:
            recorder.decisions = Decisions()
        for name, tensor in copied.tensors.items():
            given = {d: u + 1 for d, u in cut.units.get(name, {}).items()} if cut is not None else None
            recorder.add_parameter(name, tensor, given)
        for index, tensor in enumerate(tensors_of(copied.inputs)):
            if index == 0 and tensor.dim():
                recorder.batch = tensor.shape[0]
            atom = recorder.units.fresh(1)
            recorder.units.freeze(atom, "a network input")
            recorder.inputs.append((f"input#{index + 1}" if index else "input", int(atom[0])))
            recorder.set(tensor, Tag().with_axes([atom.reshape((1,) * tensor.dim())] if tensor.dim() else []))
            recorder.given[recorder.value(tensor)] = f"input#{index + 1}"
        before = snapshot(copied.model)
        ended(recorder, forward(copied, recorder), "feeds the network's output")
        recorder.stored = stored_by(copied.model, before)
        recorder.evaluation_ended()
        if training:
            trained(copied, recorder, must=cut is not None)
    read = {value for event in recorder.events for value in event.reads} | set(recorder.outputs)
    for values, label, reason in recorder.unread:
        if read.intersection(values):
            recorder.units.freeze(label, reason)
    # a loop over a detector's objects may read the output of a layer that was empty and unread here
    inputs = recorder.units.find(together(layer.ins for layer in recorder.layers))
    for outs, where in recorder.idle:
        roots = recorder.units.find(outs)
        reason = f"{where} of no element: what reads it was not seen"
        recorder.units.freeze(roots[~np.isin(roots, inputs)], reason)


def ended(recorder: Recorder, outputs: list[Tensor], reason: str) -> None:
    """Freezes the units that feed an output."""
    for tensor in outputs:
        recorder.freeze(tensor, reason)
        if average := recorder.averages.get(recorder.value(tensor)):
            freeze_averaged(recorder, average.over)
        recorder.outputs.append(recorder.value(tensor))
        recorder.output_shapes.append(tuple(tensor.shape))


def trained(copied: TracedCopy, recorder: Recorder, *, must: bool) -> None:
    """Runs the copy once more as it trains: couplings there count, its own layers are frozen, and nothing is timed."""
    take_training_branches(copied.model)
    evaluated = {layer.name for layer in recorder.layers}
    n_layers, scalars, made = len(recorder.layers), len(recorder.scalars), len(recorder.made)
    positions = dict(recorder.output_positions)
    try:
        outputs = forward(copied, recorder)
    except (StructureError, NeedsValuesError):
        if must:
            raise
        del recorder.events[recorder.evaluated :], recorder.layers[n_layers:]
        del recorder.scalars[scalars:], recorder.made[made:]
        recorder.spreads = [spread for spread in recorder.spreads if spread.place < recorder.evaluated_moves]
        del recorder.moves[recorder.evaluated_moves :]
        recorder.failed, recorder.failed_at, recorder.last_module = [], "", ""
    else:
        recorder.training = True
        ended(recorder, outputs, "feeds an output in training")
    recorder.layers[n_layers:] = [c for c in recorder.layers[n_layers:] if c.name not in evaluated]
    for layer in recorder.layers[n_layers:]:
        recorder.units.freeze(layer.outs, "runs in training alone")
    recorder.output_positions |= positions


def forward(copied: TracedCopy, recorder: Recorder) -> list[Tensor]:
    """Runs the copy under the recording modes and returns its output tensors."""
    path = Path(recorder.answers, Constants() if recorder.constants else None)
    model = copied.model
    try:
        with recorded_run(copied, path, recorder.made, Dispatch(recorder, path)):
            result = model(*copied.inputs)
    except (StructureError, ConstantError):
        raise
    except NEEDS_VALUES as error:
        raise NeedsValuesError from error
    except Exception as error:
        if copied.fake_mode is not None and path.taking:
            raise NeedsValuesError from error
        where = recorder.last_module = path.last
        raise ForwardError(
            f"the forward of {type(model).__name__} fails on the example inputs"
            f"{f' in {where!r}' if where else ''}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}; "
            "check the inputs' shapes and types by calling the model yourself",
            recorder.failed_at or where,
        ) from error
    outputs = tensors_of(result)
    if not outputs:
        raise StructureError(
            f"the forward of {type(model).__name__} returned {type(result).__name__} without a tensor in it; "
            "what feeds no output cannot be told from what does: return tensors, lists or dicts of them"
        )
    return outputs


MOST_LINES = 16
"""Lines that read values in Python; where there are more, they are not tried one by one, and count as steering."""


class EndlessError(Exception):
    """A forward runs far more ops than the first one did."""


@dataclass(frozen=True)
class Observed:
    """The values that a model's forwards read, and the ops that they ran."""

    answers: list[Answer]  # what they read in Python
    ops: list[Any]  # those that count, with the numbers among their arguments and sums of their outputs
    ran: int  # how many ops have run
    of_constants: bool = False  # no input, parameter or buffer has a part in what they read


def python_answers(subject: Subject) -> Answers | None:
    """Returns the values that a forward reads in Python, where another network may be given the same; else None.

    They are the same for other inputs and widths where no input, parameter or buffer has a part in them, whatever they
    feed: a detector makes its anchors of strides, numbers that it holds beside its buffers. Else other values are
    tried, and none may change what an op that counts computes.
    """
    try:
        read = observed(subject, forwards=1, compare=False)
        if not read.answers or read.of_constants:
            return Answers(read.answers) if read.answers else None
        expected = observed(subject)
    except Exception:  # the trace says what it is
        return None

    def same(change: Change) -> bool | None:
        """Whether nothing that counts changes; None where a check of the model's own ends the forward."""
        try:
            found = observed(subject, change, most=4 * expected.ran + 1000)
        except Exception as error:
            return None if raised_on_purpose(error) else False
        return found.ops == expected.ops

    return Answers(read.answers) if steer_nothing(expected.answers, same) else None


def steer_nothing(answers: list[Answer], same: Callable[[Change], bool | None]) -> bool:
    """Returns whether other answers change nothing; ``same`` says so of one change, or None where it is not known."""
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
    """Returns whether a ``raise`` or an ``assert`` in code of the model's own, or NumPy's, has ended a forward."""
    trace = error.__traceback__
    if isinstance(error, EndlessError | Warning) or trace is None:
        return isinstance(error, Warning)
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    name = str(frame.f_globals.get("__name__", ""))
    if foreign(name) and not name.startswith("numpy."):
        return False
    return dis.opname[frame.f_code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


def observed(
    subject: Subject,
    change: Change | None = None,
    *,
    forwards: int = 2,
    most: int | None = None,
    compare: bool = True,
) -> Observed:
    """Runs a copy of a model on real tensors, quietly, and notes the values that it reads in Python, some changed.

    It runs ``forwards`` times, as a tensor that one keeps on ``self`` may steer the next, and is endless after ``most``
    ops. With ``compare`` its ops are noted, with sums over their outputs.
    """
    path = Path(Answers(change=change))
    with subject.around.kept(), quietly():
        copied = copied_for_trace(copy_of(subject.model), subject.inputs, tensors="real")
        given = {f"input#{n}": tensor for n, tensor in enumerate(tensors_of(copied.inputs), start=1)}
        listen = Listen(path, copied.tensors | given, most, compare=compare)
        with recorded_run(copied, path, [], listen):
            results = [copied.model(*copied.inputs) for _ in range(forwards)]
            if subject.branches:
                results += run_as_trained(copied.model, copied.inputs)
        outputs = [listen.value(tensor) for tensor in tensors_of(results)]
    assert path.answers is not None
    counting = needed(listen.events, listen.given, outputs) if compare else set()
    ops = [listen.ops[place] for place in sorted(counting)]
    constant = len(listen.read) == len(path.answers.noted) and untouched(listen)
    return Observed(path.answers.noted, ops, listen.ran, constant)


def run_as_trained(model: nn.Module, inputs: tuple[Any, ...]) -> list[Any]:
    """Runs a copy as it trains; a forward that fails so, as a loss without targets, is not traced either."""
    take_training_branches(model)
    try:
        return [model(*inputs)]
    except EndlessError:
        raise
    except Exception:
        return []


class Listen(Watch):  # type: ignore[no-untyped-call]
    """Notes the ops that run with the numbers among their arguments and a sum over their outputs."""

    def __init__(
        self, path: Path, given: Mapping[str, Tensor], most: int | None, *, compare: bool = True
    ) -> None:
        super().__init__(path, given, frozenset())
        self.most, self.compare = most, compare
        self.ops: list[Any] = []
        self.read: list[tuple[int, ...]] = []  # tensors that Python reads values of

    def step(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Runs the named op and records it."""
        if self.most is not None and self.ran > self.most:
            raise EndlessError
        if reads_values(func):
            self.read.append(tuple(self.value(tensor) for tensor in tensors_of([args, kwargs])))
        out = super().step(name, func, args, kwargs)
        if self.compare and (outs := tensors_of(out)):
            with _disable_current_modes():
                self.ops.append((name, plain([args, kwargs]), [sum_of(tensor) for tensor in outs]))
        return out


def untouched(listen: Listen) -> bool:
    """Returns whether no input, parameter or buffer has a part in the values that a forward reads in Python."""
    of_given = set(listen.given)
    for event in listen.events:
        if of_given.isdisjoint(event.reads):
            continue
        if event.name.endswith("_") and event.reads[0] not in of_given:
            return False  # written into a constant, of which there may be views
        of_given.update(event.writes)
    return all(of_given.isdisjoint(values) for values in listen.read)


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
    """Suppresses what a forward prints, logs and warns of, and makes its breakpoints fail."""

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
