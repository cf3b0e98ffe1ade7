"""The quick answer to whether a model follows its channels: cut on paper, it runs through the same ops.

It runs on tensors without values or labels, which is quicker than a trace; what differs is then looked for by
``trial.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from halpiee.structure.branches import taken
from halpiee.structure.dry_run import fake_inputs
from halpiee.structure.groups import Structure
from halpiee.structure.heads import adapted
from halpiee.structure.modes import Api, Path, Watch
from halpiee.structure.movements import RESHAPES
from halpiee.structure.probe import cut_for, moved_otherwise
from halpiee.structure.recorder import Recorder, tensors_of
from halpiee.structure.shrink import set_number

__all__ = ["alike", "steps"]

COPIES = frozenset({"clone", "contiguous", "detach", "alias", "_to_copy"})
"""Ops that change nothing: a reshape or a product makes them where strides ask for it, torch where tensors are fake."""

BY_DEVICE = "_scaled_dot_product"
"""How the names of ops begin that hang on the device; tensors without values have one only as fake ones."""


def alike(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    recorder: Recorder,
    structure: Structure,
    keep: Mapping[str, Tensor],
) -> bool:
    """Returns whether the model, cut on paper, is the full one on what is left: its ops, numbers and moves."""
    cut = cut_for(structure, keep)
    fake_mode = None
    if any(event.name.startswith(BY_DEVICE) for event in recorder.events):
        fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        kept = cut.kept.get(name, {})
        shape = [kept[d].numel() if d in kept else size for d, size in enumerate(tensor.shape)]
        with fake_mode or nullcontext():
            device = "meta" if fake_mode is None else tensor.device
            data = torch.empty(shape, dtype=tensor.dtype, device=device)
        memo.setdefault(id(tensor), nn.Parameter(data, False) if isinstance(tensor, nn.Parameter) else data)
    path, made = Path(), list[tuple[Any, ...]]()
    watch = Watch(path)
    try:
        inputs = on_meta(example_inputs) if fake_mode is None else fake_inputs(fake_mode, example_inputs)
        copied = copy.deepcopy(model, memo).eval()
        adapted(copied, always=True)
        modules = dict(copied.named_modules())
        for where, name, at, value in cut.attributes:
            set_number(modules[where], name, at, value)
        for where, module in modules.items():
            module.register_forward_pre_hook(path.enter(where))
            module.register_forward_hook(path.leave, always_call=True)
        with torch.no_grad(), fake_mode or nullcontext(), Api(path, made), watch:
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
        and steps(watch.ops) == steps(event.name for event in recorder.events)
        and watch.numbers == numbers
        and shapes == recorder.output_shapes
        and moved_otherwise(structure, recorder, watch.moves, cut) is None
    )


def steps(names: Iterable[str]) -> list[str]:
    """Returns the ops of a forward in order, without what hangs on strides or on tensors being fake."""
    return ["view" if name in RESHAPES else name for name in names if name not in COPIES]


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
