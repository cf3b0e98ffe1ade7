"""The quick answer to whether a model follows its channels: cut on paper, it runs through the same ops.

It runs on tensors without values or labels, which is quicker than a trace; what differs is then looked for by
``trial.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.structure.branches import taken
from halpiee.structure.groups import Structure
from halpiee.structure.heads import adapted
from halpiee.structure.modes import Api, Path, Watch
from halpiee.structure.probe import cut_for, irregular_keeps
from halpiee.structure.recorder import Recorder, tensors_of
from halpiee.structure.shrink import set_number

__all__ = ["agrees"]


def agrees(
    model: nn.Module, example_inputs: tuple[Any, ...], recorder: Recorder, structure: Structure
) -> bool:
    """Returns whether the model, cut on paper, runs through the same ops with the same numbers as the full one."""
    return all(alike(model, example_inputs, recorder, structure, keep) for keep in irregular_keeps(structure))


def alike(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    recorder: Recorder,
    structure: Structure,
    keep: Mapping[str, Tensor],
) -> bool:
    """Returns whether it does so for one keep."""
    cut = cut_for(structure, keep)
    memo: dict[int, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kept = cut.kept.get(name, {})
        shape = [kept[d].numel() if d in kept else size for d, size in enumerate(tensor.shape)]
        data = torch.empty(shape, dtype=tensor.dtype, device="meta")
        memo.setdefault(id(tensor), nn.Parameter(data, False) if isinstance(tensor, nn.Parameter) else data)
    watch = Watch()
    try:
        inputs = on_meta(example_inputs)
        copied = copy.deepcopy(model, memo).eval()
        adapted(copied, always=True)
        modules = dict(copied.named_modules())
        for path, name, at, value in cut.attributes:
            set_number(modules[path], name, at, value)
        made: list[tuple[Any, ...]] = []
        with torch.no_grad(), Api(Path(), made), watch:
            results = [copied(*inputs)]
            if recorder.training:
                taken(copied)
                results.append(copied(*inputs))
    except Exception:  # whatever it was, the full probe finds out
        return False
    shapes = [tuple(tensor.shape) for tensor in tensors_of(results)]
    ops = [event.name for event in recorder.events]
    numbers = [scalars for _, scalars, _ in recorder.scalars]
    return (
        made == recorder.made
        and watch.ops == ops
        and watch.numbers == numbers
        and shapes == recorder.output_shapes
    )


def on_meta(value: Any) -> Any:
    """Returns the same nested inputs without values."""
    if isinstance(value, Tensor):
        return value.detach().to("meta")
    if isinstance(value, dict):
        return {k: on_meta(v) for k, v in value.items()}
    if isinstance(value, list):
        return [on_meta(v) for v in value]
    if isinstance(value, tuple):
        items = [on_meta(v) for v in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value
