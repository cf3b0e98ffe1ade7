"""One forward of a copy of the model with a label beside every tensor: what it leaves behind, no more.

The copy has fake parameters (no memory, no arithmetic, any device) unless the forward asks for values, and may
be a smaller one than the model, cut on paper.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)

from halpiee.errors import StructureError
from halpiee.structure.branches import taken
from halpiee.structure.calls import tensors_of
from halpiee.structure.decisions import Decisions
from halpiee.structure.heads import adapted
from halpiee.structure.labels import Tag
from halpiee.structure.modes import Api, Dispatch, Path
from halpiee.structure.probe import Cut
from halpiee.structure.recorder import Recorder
from halpiee.structure.shrink import set_number, sliced
from halpiee.structure.vanish import emptied

__all__ = ["NeedsValuesError", "record"]

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
"""What fake tensors raise where the forward asks for a number that only real ones have."""


class NeedsValuesError(Exception):
    """The forward cannot run on fake tensors."""


def record(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
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
        positions: grouped layers and norms whose unit is a position across groups.
        cut: what to leave out, or None.
        recorder: what to record into; a new one where none is given.
        real: whether to run on real tensors.
        training: whether to run it once more with the branches that it takes in training. Where it cannot run so
            on these inputs (a loss may want targets), only the evaluation counts.
    """
    fake_mode = None if real else FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    names: dict[int, str] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in memo:
            own = tensor.detach()  # a parameter is never written into, a buffer may be
            own = own.clone() if real and not isinstance(tensor, nn.Parameter) else own
            data = stand_in(own, fake_mode, cut.kept.get(name, {}) if cut is not None else {})
            memo[id(tensor)] = (
                nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
            )
            names[id(tensor)] = name
    with torch.random.fork_rng(devices=[]):
        try:
            copied = copy.deepcopy(model, dict(memo)).eval()
            adapted(copied, always=True)
        except Exception as error:
            raise StructureError(
                f"the model {type(model).__name__} cannot be copied ({error}); "
                "remove tensors that are not parameters or buffers from its attributes"
            ) from error
        modules = dict(copied.named_modules())
        recorder = Recorder({}, positions) if recorder is None else recorder
        recorder.modules.update(modules)
        recorder.real = real
        if real and recorder.decisions is None:
            recorder.decisions = Decisions()
        for path, name, at, value in cut.attributes if cut is not None else ():
            set_number(modules[path], name, at, value)
        emptied(copied)
        for identity, name in names.items():
            given = {d: u + 1 for d, u in cut.units.get(name, {}).items()} if cut is not None else None
            recorder.add_parameter(name, memo[identity], given)
        inputs = fake_inputs(fake_mode, example_inputs)
        for index, tensor in enumerate(tensors_of(inputs)):
            if index == 0 and tensor.dim():
                recorder.batch = tensor.shape[0]
            atom = recorder.units.fresh(1)
            recorder.units.freeze(atom, "a network input")
            recorder.inputs.append((f"input#{index + 1}" if index else "input", int(atom[0])))
            recorder.set(tensor, Tag().with_axes([atom.reshape((1,) * tensor.dim())] if tensor.dim() else []))
            recorder.given[recorder.value(tensor)] = f"input#{index + 1}"
        ended(recorder, forward(copied, recorder, fake_mode, inputs), "feeds the network's output")
        recorder.evaluation_ended()
        if training:
            trained(copied, recorder, fake_mode, inputs, must=cut is not None)
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


def trained(
    model: nn.Module,
    recorder: Recorder,
    fake_mode: FakeTensorMode | None,
    inputs: tuple[Any, ...],
    *,
    must: bool,
) -> None:
    """Runs the copy once more as it trains; what couples there is coupled, and nothing in it can go or is timed."""
    taken(model)
    evaluated = {layer.name for layer in recorder.layers}
    n_layers, scalars, made = len(recorder.layers), len(recorder.scalars), len(recorder.made)
    positions = dict(recorder.output_positions)
    try:
        outputs = forward(model, recorder, fake_mode, inputs)
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


def stand_in(tensor: Tensor, fake_mode: FakeTensorMode | None, kept: Mapping[int, Tensor]) -> Tensor:
    """Returns a fake tensor in place of a real one, or a real one, with only the kept positions."""
    if fake_mode is None:
        return sliced(tensor, kept) if kept else tensor
    if not kept:
        return fake_mode.from_tensor(tensor)
    shape = [kept[d].numel() if d in kept else size for d, size in enumerate(tensor.shape)]
    with fake_mode:
        return torch.empty(shape, dtype=tensor.dtype, device=tensor.device)


def fake_inputs(fake_mode: FakeTensorMode | None, value: Any) -> Any:
    """Returns the same nested value with fake tensors, or with copies."""
    if isinstance(value, Tensor):
        return value.detach().clone() if fake_mode is None else fake_mode.from_tensor(value.detach())
    if isinstance(value, dict):
        return {k: fake_inputs(fake_mode, v) for k, v in value.items()}
    if isinstance(value, list):
        return [fake_inputs(fake_mode, v) for v in value]
    if isinstance(value, tuple):
        items = [fake_inputs(fake_mode, v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def forward(
    model: nn.Module, recorder: Recorder, fake_mode: FakeTensorMode | None, inputs: tuple[Any, ...]
) -> list[Tensor]:
    """Runs the fake copy under the recording modes and returns its output tensors."""
    path = Path()
    handles = []
    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(path.enter(name)))
        handles.append(module.register_forward_hook(path.leave, always_call=True))
    fast = torch.backends.mha.get_fastpath_enabled()
    report = logging.getLogger(FakeTensorMode.__module__)
    quiet, report.disabled = report.disabled, True  # a cut that fails is a finding, not an error
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        looking = Dispatch(recorder, path)
        with torch.no_grad(), fake_mode or nullcontext(), Api(path, recorder.made, looking), looking:
            result = model(*inputs)
    except StructureError:
        raise
    except NEEDS_VALUES as error:
        raise NeedsValuesError from error
    except Exception as error:
        where = recorder.last_module = path.last
        raise StructureError(
            f"the forward of {type(model).__name__} fails on the example inputs"
            f"{f' in {where!r}' if where else ''}: {type(error).__name__}: {error}; "
            "check the inputs' shapes and types by calling the model yourself"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        report.disabled = quiet
        for handle in handles:
            handle.remove()
    outputs = tensors_of(result)
    if not outputs:
        raise StructureError(
            f"the forward of {type(model).__name__} returned {type(result).__name__} without a tensor in it; "
            "what feeds no output cannot be told from what does: return tensors, lists or dicts of them"
        )
    return outputs
