"""The quick answer to whether a model follows its channels: cut on paper, it runs through the same ops.

It runs on tensors without values or labels, which is quicker than a trace; what differs is then looked for by
``trial.py``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.structure.branches import taken
from halpiee.structure.calls import tensors_of
from halpiee.structure.heads import adapted
from halpiee.structure.modes import Api, Path, Watch
from halpiee.structure.moves import Move
from halpiee.structure.probe import Cut
from halpiee.structure.recorder import Recorder
from halpiee.structure.shrink import set_number
from halpiee.structure.wiring import Step, wired

__all__ = ["Watched", "watched"]


@dataclass(frozen=True)
class Watched:
    """What ran of a model.

    Attributes:
        steps: its ops, and what they read.
        moves: what moved elements.
        numbers: the numbers of the pointwise ops.
        made: numbers that became tensors.
        shapes: shapes of the outputs.
    """

    steps: list[Step]
    moves: list[Move]
    numbers: list[tuple[Any, ...]]
    made: list[tuple[Any, ...]]
    shapes: list[tuple[int, ...]]

    def is_that_of(self, full: Recorder, steps: list[Step]) -> bool:
        """Returns whether the full model, whose ops these are, runs the same on the same tensors and numbers."""
        return (
            self.made == full.made
            and self.steps == steps
            and self.numbers == [scalars for _, scalars, _ in full.scalars]
            and self.shapes == full.output_shapes
        )


def watched(model: nn.Module, example_inputs: tuple[Any, ...], cut: Cut, *, training: bool) -> Watched | None:
    """Runs a model, cut on paper, without values; returns what ran, or None where its forward fails.

    Args:
        model: the model.
        example_inputs: its inputs.
        cut: what to leave out.
        training: whether to run it once more with the branches that it takes in training.
    """
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
            if training:
                taken(copied)
                results.append(copied(*inputs))
    except Exception:  # whatever it was, the full probe finds out
        return None
    shapes = [tuple(tensor.shape) for tensor in tensors_of(results)]
    return Watched(wired(watch.events, watch.given), watch.moves, watch.numbers, made, shapes)


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
