"""The copy of a model that a trace runs: without values unless asked, and cut on paper where asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from halpiee.errors import StructureError
from halpiee.structure.heads import adapted
from halpiee.structure.modes import Api, Dispatch, Path, Watch
from halpiee.structure.probe import Cut
from halpiee.structure.shrink import set_number, sliced
from halpiee.structure.stored import forgotten
from halpiee.structure.vanish import emptied
from latency.copies import copy_of

__all__ = ["StandIn", "Tensors", "looked_on", "stand_in_for"]

Tensors = Literal["fake", "meta", "real"]
"""What a copy runs on: fake tensors run the ops of their device without values, as ``meta`` does, several times as fast
but with some other ops, of recurrent layers or where a number is written into a slice."""


@dataclass(frozen=True)
class StandIn:
    """A copy of a model and of its inputs.

    Attributes:
        model: the copy, in eval mode.
        tensors: its parameters and buffers by name; one that has several names stands under the first.
        inputs: copies of the inputs.
        fake_mode: the mode that its fake tensors belong to; None where they are others.
    """

    model: nn.Module
    tensors: dict[str, Tensor]
    inputs: tuple[Any, ...]
    fake_mode: FakeTensorMode | None


def stand_in_for(
    model: nn.Module, example_inputs: tuple[Any, ...], cut: Cut | None = None, *, tensors: Tensors = "fake"
) -> StandIn:
    """Copies a model; the copy has no memory and does no arithmetic, unless it is asked for on real tensors.

    Args:
        model: the model.
        example_inputs: its inputs.
        cut: what to leave out, or None.
        tensors: what it runs on. Real parameters share the model's memory unless they are cut.

    Raises:
        StructureError: the model cannot be copied.
    """
    like = Like(tensors)
    memo: dict[int, Any] = {}
    named: dict[str, Tensor] = {}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) in memo:
            continue
        own = tensor.detach()  # a parameter is never written into, a buffer may be
        own = own.clone() if tensors == "real" and not isinstance(tensor, nn.Parameter) else own
        data = like.tensor(own, cut.kept.get(name, {}) if cut is not None else {})
        named[name] = nn.Parameter(data, requires_grad=False) if isinstance(tensor, nn.Parameter) else data
        memo[id(tensor)] = named[name]
    try:
        copied = copy_of(model, memo).eval()
        adapted(copied, always=True)
    except Exception as error:
        raise StructureError(
            f"the model {type(model).__name__} cannot be copied ({error}); "
            "remove tensors that are not parameters or buffers from its attributes"
        ) from error
    modules = dict(copied.named_modules())
    for path, name, at, value in cut.attributes if cut is not None else ():
        set_number(modules[path], name, at, value)
    emptied(copied)
    forgotten(copied, ())
    return StandIn(copied, named, like.nested(example_inputs), like.fake_mode)


class Like:
    """Makes tensors like given ones, on the tensors that a copy runs on."""

    def __init__(self, tensors: Tensors) -> None:
        self.real = tensors == "real"
        self.fake_mode = FakeTensorMode(allow_non_fake_inputs=True) if tensors == "fake" else None

    def tensor(self, tensor: Tensor, kept: Mapping[int, Tensor]) -> Tensor:
        """Returns a stand-in with only the kept positions; a real one may share the tensor's memory."""
        if self.real:
            return sliced(tensor, kept) if kept else tensor
        if self.fake_mode is not None and not kept:
            return self.fake_mode.from_tensor(tensor)
        shape = [kept[d].numel() if d in kept else size for d, size in enumerate(tensor.shape)]
        device = "meta" if self.fake_mode is None else tensor.device
        with self.fake_mode or nullcontext():
            return torch.empty(shape, dtype=tensor.dtype, device=device)

    def nested(self, value: Any) -> Any:
        """Returns the same nested value with stand-ins, whose memory is their own."""
        if isinstance(value, Tensor):
            value = value.detach()
            if self.real:
                return value.clone()
            return value.to("meta") if self.fake_mode is None else self.fake_mode.from_tensor(value)
        if isinstance(value, dict):
            return {k: self.nested(v) for k, v in value.items()}
        if isinstance(value, list):
            return [self.nested(v) for v in value]
        if isinstance(value, tuple):
            items = [self.nested(v) for v in value]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        return value


@contextmanager
def looked_on(
    stand_in: StandIn, path: Path, made: list[tuple[Any, ...]], looking: Dispatch | Watch
) -> Iterator[None]:
    """While it lasts, forwards of the copy run under the eyes of a dispatch mode, each op as itself.

    Args:
        stand_in: the copy.
        path: is told where in the copy the forward is.
        made: takes the numbers that become tensors.
        looking: the mode.
    """
    handles = []
    for name, module in stand_in.model.named_modules():
        handles.append(module.register_forward_pre_hook(path.enter(name)))
        handles.append(module.register_forward_hook(path.leave, always_call=True))
    fast = torch.backends.mha.get_fastpath_enabled()
    report = logging.getLogger(FakeTensorMode.__module__)
    quiet, report.disabled = report.disabled, True  # a cut that fails is a finding, not an error
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with torch.no_grad(), stand_in.fake_mode or nullcontext(), Api(path, made, looking), looking:
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        report.disabled = quiet
        for handle in handles:
            handle.remove()
