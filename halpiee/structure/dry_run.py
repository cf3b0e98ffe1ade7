"""One forward of a copy of the model with a label beside every tensor: what it leaves behind, no more.

The copy (``stand_ins.py``) is fake unless the forward asks for values, and may be smaller than the model, cut on
paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    UnsupportedOperatorException,
)

from halpiee.errors import StructureError
from halpiee.structure.branches import taken
from halpiee.structure.calls import tensors_of
from halpiee.structure.decisions import Decisions
from halpiee.structure.labels import Tag
from halpiee.structure.modes import Dispatch, Path
from halpiee.structure.probe import Cut
from halpiee.structure.recorder import Recorder
from halpiee.structure.stand_ins import StandIn, looked_on, stand_in_for
from halpiee.structure.stored import left_behind, snapshot
from halpiee.structure.surroundings import Surroundings

__all__ = ["ForwardError", "NeedsValuesError", "record"]

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What fake tensors raise where the forward asks for a number that only real ones have."""


class ForwardError(StructureError):
    """The forward of a copy fails: where the model itself runs, the fault is of the trace.

    Attributes:
        where: the op and the module that it failed in, as far as known.
    """

    def __init__(self, message: str, where: str) -> None:
        super().__init__(message)
        self.where = where


class NeedsValuesError(Exception):
    """The forward cannot run on fake tensors."""


def record(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    around: Surroundings,
    positions: frozenset[str],
    cut: Cut | None = None,
    recorder: Recorder | None = None,
    *,
    real: bool = False,
    training: bool = False,
) -> Recorder:
    """Runs a copy of the model, fake unless asked, cut where asked, and returns what was recorded.

    Args:
        model: the model.
        example_inputs: its inputs.
        around: what the model shares with its copies, which stays as it is.
        positions: grouped layers and norms whose unit is a position across groups.
        cut: what to leave out, or None.
        recorder: what to record into; a new one where none is given.
        real: whether to run on real tensors.
        training: whether to run it once more with the branches that it takes in training. Where it cannot run so
            on these inputs (a loss may want targets), only the evaluation counts.
    """
    recorder = Recorder({}, positions) if recorder is None else recorder
    with around.kept():
        copied = stand_in_for(model, example_inputs, cut, tensors="real" if real else "fake")
        around.watch(copied.fake_mode)
        recorder.modules.update(copied.model.named_modules())
        recorder.originals = {id(p): name for name, p in model.named_parameters()}
        recorder.real = real
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
        recorder.stored = left_behind(copied.model, before)
        recorder.evaluation_ended()
        if training:
            trained(copied, recorder, must=cut is not None)
    read = {value for event in recorder.events for value in event.reads} | set(recorder.outputs)
    for values, label, reason in recorder.unread:
        if read.intersection(values):
            recorder.units.freeze(label, reason)
    unseen(recorder)
    return recorder


def unseen(recorder: Recorder) -> None:
    """Freezes what no layer reads of layers that nothing went through, as where a detector found no object.

    A loop over objects may read it another time.
    """
    none = [np.zeros(0, dtype=np.int64)]
    read = recorder.units.find(np.concatenate(none + [layer.ins for layer in recorder.layers]))
    for outs, where in recorder.idle:
        roots = recorder.units.find(outs)
        recorder.units.freeze(
            roots[~np.isin(roots, read)], f"{where} of no element: what reads it was not seen"
        )


def ended(recorder: Recorder, outputs: list[Tensor], reason: str) -> None:
    """Freezes what feeds an output."""
    for tensor in outputs:
        recorder.freeze(tensor, reason)
        recorder.outputs.append(recorder.value(tensor))
        recorder.output_shapes.append(tuple(tensor.shape))


def trained(copied: StandIn, recorder: Recorder, *, must: bool) -> None:
    """Runs the copy once more as it trains; what couples there is coupled, and nothing in it can go or is timed."""
    taken(copied.model)
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


def forward(copied: StandIn, recorder: Recorder) -> list[Tensor]:
    """Runs the copy under the recording modes and returns its output tensors."""
    path = Path(recorder.answers)
    model = copied.model
    try:
        with looked_on(copied, path, recorder.made, Dispatch(recorder, path)):
            result = model(*copied.inputs)
    except StructureError:
        raise
    except NEEDS_VALUES as error:
        raise NeedsValuesError from error
    except Exception as error:
        if copied.fake_mode is not None and path.taking:
            raise NeedsValuesError from error
        where = recorder.last_module = path.last
        raise ForwardError(
            f"the forward of {type(model).__name__} fails on the example inputs"
            f"{f' in {where!r}' if where else ''}: {type(error).__name__}: {error}; "
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
