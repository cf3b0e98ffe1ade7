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
from halpiee.structure.calls import tensors_of
from halpiee.structure.groups import Structure
from halpiee.structure.heads import adapted
from halpiee.structure.modes import Api, Path, Watch
from halpiee.structure.probe import cut_for, moved_otherwise
from halpiee.structure.recorder import Recorder
from halpiee.structure.shrink import set_number
from halpiee.structure.wiring import wired

__all__ = ["alike"]


def alike(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    recorder: Recorder,
    structure: Structure,
    keep: Mapping[str, Tensor],
) -> bool:
    """Returns whether the model, cut on paper, is the full one on what is left: ops, what they read, numbers, moves."""
    cut = cut_for(structure, keep)
    memo: dict[int, Any] = {}
    given: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in memo:
            continue
        kept = cut.kept.get(name, {})
        shape = [kept[d].numel() if d in kept else size for d, size in enumerate(tensor.shape)]
        data = torch.empty(shape, dtype=tensor.dtype, device="meta")
        given[name] = nn.Parameter(data, False) if isinstance(tensor, nn.Parameter) else data
        memo[id(tensor)] = given[name]
    inputs = on_meta(example_inputs)
    given |= {f"input#{n}": tensor for n, tensor in enumerate(tensors_of(inputs), start=1)}
    path, made = Path(), list[tuple[Any, ...]]()
    watch = Watch(path, given)
    try:
        copied = copy.deepcopy(model, memo).eval()
        adapted(copied, always=True)
        modules = dict(copied.named_modules())
        for where, name, at, value in cut.attributes:
            set_number(modules[where], name, at, value)
        for where, module in modules.items():
            module.register_forward_pre_hook(path.enter(where))
            module.register_forward_hook(path.leave, always_call=True)
        with torch.no_grad(), Api(path, made, watch), watch:
            results = [copied(*inputs)]
            if recorder.training:
                taken(copied)
                results.append(copied(*inputs))
    except Exception:  # whatever it was, the full probe finds out
        return False
    shapes = [tuple(tensor.shape) for tensor in tensors_of(results)]
    numbers = [scalars for _, scalars, _ in recorder.scalars]
    return (
        made == recorder.made
        and wired(watch.events, watch.given) == wired(recorder.events, recorder.given)
        and watch.numbers == numbers
        and shapes == recorder.output_shapes
        and moved_otherwise(structure, recorder, watch.moves, cut) is None
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
