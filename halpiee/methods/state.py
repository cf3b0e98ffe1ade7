"""What a model holds and what may not move while some of its units are inactive.

``Memory``: elements that forward does not use are zero in the parameter itself, so that the model stays ordinary; the
values they were last used with are kept here. ``Guard``: zero gradients are not enough to hold an element still, as
momentum and weight decay move a weight without any gradient, and batch norms change their statistics in forward. So
what an update mask leaves out is copied when a phase starts and put back, bit for bit, after every optimizer step.
``RunningNorms``: what active channels normalise by during exploration.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from halpiee.errors import UsageError


class Memory:
    """Last values of masked parameters.

    The masks (name → bool of the parameter's shape) say which elements are active; parameters are changed in place.
    ``everything``: whether the model holds all elements now, not the active ones only.

    Attributes:
        everything: whether the model holds all elements now, not the active ones only.
    """

    def __init__(self, parameters: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        self._last = {name: p.detach().clone() for name, p in parameters.items()}
        self.everything = False
        self.masks: dict[str, Tensor] = {}
        self.expect(masks)

    def expect(self, masks: Mapping[str, Tensor], *, everything: bool = False) -> None:
        """States which units the model holds, without changing a value: at the start, or after loading a state."""
        self.masks = {name: masks[name].to(p.device) for name, p in self._parameters.items()}
        self.everything = everything

    @property
    def inactive(self) -> dict[str, Tensor]:
        """Name → which elements are not active."""
        return {name: ~mask for name, mask in self.masks.items()}

    @torch.no_grad()
    def show_all(self) -> None:
        """Brings the inactive elements back with their last values."""
        if not self.everything:
            for name, p in self._parameters.items():
                torch.where(self.masks[name], p.data, self._last[name], out=p.data)
            self.everything = True

    @torch.no_grad()
    def show_active(self) -> None:
        """Takes the inactive elements out and remembers what they have become."""
        if self.everything:
            for name, p in self._parameters.items():
                torch.where(self.masks[name], self._last[name], p.data, out=self._last[name])
                p.data.masked_fill_(~self.masks[name], 0.0)
            self.everything = False

    @torch.no_grad()
    def switch(self, masks: Mapping[str, Tensor], *, zero: bool = False) -> None:
        """Makes other elements active, with their last values (or zero where they were not active before)."""
        self.show_active()
        for name, p in self._parameters.items():
            old, new, last = self.masks[name], masks[name].to(p.device), self._last[name]
            torch.where(old, p.data, last, out=last)
            if zero:
                last.masked_fill_(new & ~old, 0.0)
            torch.where(new, last, torch.zeros_like(last), out=p.data)
            self.masks[name] = new

    @torch.no_grad()
    def renew(self) -> None:
        """Records all present values as the last active ones, and zeroes the inactive ones."""
        for name, p in self._parameters.items():
            self._last[name].copy_(p)
            if not self.everything:
                p.data.masked_fill_(~self.masks[name], 0.0)

    @torch.no_grad()
    def forget_inactive(self) -> None:
        """Lets inactive elements come back as zero."""
        for name, last in self._last.items():
            last.masked_fill_(~self.masks[name], 0.0)

    def value(self, name: str) -> Tensor | None:
        """Returns the current values of active elements beside the last values of the others."""
        if name not in self._parameters:
            return None
        if self.everything:
            return self._parameters[name].detach()
        return torch.where(self.masks[name], self._parameters[name].detach(), self._last[name])

    @contextmanager
    def only_active(self) -> Iterator[None]:
        """Context in which inactive elements are zero; restores them afterwards, bit for bit."""
        if not self.everything:
            yield
            return
        before = {name: p.detach().clone() for name, p in self._parameters.items()}
        for name, p in self._parameters.items():
            p.data.masked_fill_(~self.masks[name], 0.0)
        try:
            yield
        finally:
            for name, value in before.items():
                self._parameters[name].data.copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Returns the last values."""
        return dict(self._last)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over saved last values."""
        for name, value in state.items():
            self._last[name].copy_(value)


def shaped_state(optimizer: Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yields the optimizer's state tensors of the parameter's shape, by key."""
    for key, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor) and key != "step" and value.shape == parameter.shape:
            yield key, value


def fresh_state(optimizer: Optimizer) -> dict[str, float]:
    """Returns the value each state tensor of this optimizer starts from, found on a throw-away parameter.

    Its class and defaults are tried out on one 2×3 parameter with zero gradients; the optimizer is not touched.

    Returns:
        State key → initial value, for state of the parameter's shape; scalars are left out.

    Raises:
        UsageError: the optimizer keeps state of another shape, which cannot be masked.
    """
    first = next((p for group in optimizer.param_groups for p in group["params"]), None)
    if first is None:
        raise UsageError("the optimizer has no parameters; build it with model.parameters()")
    # Zeros: weight decay would find its way from ones into a momentum that starts at nothing.
    probe = torch.nn.Parameter(torch.zeros(2, 3, device=first.device, dtype=first.dtype))
    probe.grad = torch.zeros_like(probe)
    name = type(optimizer).__name__
    try:
        accepted = inspect.signature(type(optimizer)).parameters
        options = {key: value for key, value in optimizer.defaults.items() if key in accepted}
        copy = type(optimizer)([probe], **options)
        copy.step()
    except (TypeError, RuntimeError) as error:
        raise UsageError(
            f"{name} cannot be masked: a step of it on one matrix failed ({error}); "
            "use an optimizer that steps without a closure, such as SGD or AdamW"
        ) from error
    fresh = {}
    for key, value in copy.state[probe].items():
        if not isinstance(value, Tensor) or value.numel() == 1 or key == "step":
            continue
        if value.shape != probe.shape:
            raise UsageError(
                f"{name} keeps state {key!r} of shape {tuple(value.shape)} for a parameter of shape (2, 3); "
                "only state of the parameter's shape can be masked: use SGD, AdamW or another elementwise optimizer"
            )
        fresh[key] = float(value.flatten()[0])
    return fresh


class Guard:
    """Remembers and restores everything outside an update mask: parameters and buffers by name, and optimizer state."""

    def __init__(self, tensors: Mapping[str, Tensor], optimizer: Optimizer) -> None:
        self._tensors = dict(tensors)
        self._optimizer = optimizer
        self._fresh = fresh_state(optimizer)
        self._free: dict[str, Tensor | None] = {}
        self._values_only = False
        self._values: dict[str, Tensor] = {}
        self._state: dict[tuple[str, str], Tensor] = {}

    def hold(self, free: Mapping[str, Tensor | None], *, values_only: bool = False) -> None:
        """Starts to freeze; forgets what was frozen before.

        ``free`` maps names of tensors to a BoolTensor of their shape, True where it may move, ``None``: nowhere; other
        tensors move freely. With ``values_only`` optimizer state moves freely all the same.
        """
        self._values_only = values_only
        self._free = {
            name: None if mask is None else mask.to(self._tensors[name].device) for name, mask in free.items()
        }
        self._values = {name: self._tensors[name].detach().clone() for name in free}
        self._state = {
            (name, key): value.detach().clone()
            for name in (() if values_only else free)
            for key, value in shaped_state(self._optimizer, self._tensors[name])
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Sets every frozen element to its stored value."""
        for name, free in self._free.items():
            tensor = self._tensors[name]
            _put_back(tensor, self._values[name], free)
            if self._values_only:
                continue
            for key, value in shaped_state(self._optimizer, tensor):
                kept = self._state.get((name, key))
                if kept is None:  # state that the first step has just made
                    kept = self._state[name, key] = torch.full_like(value, self._fresh.get(key, 0.0))
                _put_back(value, kept, free)

    @torch.no_grad()
    def moved(self) -> list[str]:
        """Returns the names of the tensors in which a frozen element differs from its stored value."""
        found = []
        for name, free in self._free.items():
            now = self._tensors[name].detach()
            before = self._values[name].to(now.device)
            other = (now != before) & ~(now.isnan() & before.isnan())
            if bool((other if free is None else other & ~free.to(now.device)).any()):
                found.append(name)
        return found

    @torch.no_grad()
    def forget_state(self, elements: Mapping[str, Tensor]) -> None:
        """Resets optimizer state where ``elements`` is True: momentum of what was dropped is gone."""
        for name, mask in elements.items():
            for key, value in shaped_state(self._optimizer, self._tensors[name]):
                value.masked_fill_(mask.to(value.device), self._fresh.get(key, 0.0))


def _put_back(tensor: Tensor, kept: Tensor, free: Tensor | None) -> None:
    data = tensor.detach()
    if free is None:
        data.copy_(kept)
    else:
        torch.where(free, data, kept, out=data)


class RunningNorms:
    """Makes active channels use their running statistics from the start of the phase; off until switched on.

    It is done by hooks, and code that ``torch.compile`` has made does not look whether hooks have come or gone: it is
    made anew when they do.
    """

    def __init__(self) -> None:
        self._handles: list[RemovableHandle] = []

    def on(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        """Begins, with the statistics as they are now; a batch norm without a mask of its elements is active whole."""
        for path, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                mask = masks.get(f"{path}.running_mean")
                active = torch.ones_like(module.running_mean, dtype=torch.bool) if mask is None else mask
                hook = running_norm(module.running_mean, module.running_var, active)
                self._handles.append(module.register_forward_hook(hook))
        self._compile_again()

    def off(self) -> None:
        """Ends."""
        for handle in self._handles:
            handle.remove()
        self._compile_again()
        self._handles = []

    def _compile_again(self) -> None:
        dynamo = sys.modules.get("torch._dynamo")
        if self._handles and dynamo is not None:
            dynamo.reset()


def running_norm(mean: Tensor, variance: Tensor | None, active: Tensor) -> Callable[..., Tensor | None]:
    """Returns a forward hook of a batch norm: active channels come out normalised by the statistics given here.

    All are of shape ``[C]``; the statistics are copied, since a forward in train mode moves them.
    """
    held_mean = mean.detach().clone()
    held_variance = torch.ones_like(held_mean) if variance is None else variance.detach().clone()

    def hook(
        module: nn.modules.batchnorm._BatchNorm, inputs: tuple[Tensor, ...], output: Tensor
    ) -> Tensor | None:
        if not module.training:
            return None
        x = inputs[0]
        fixed = nn.functional.batch_norm(
            x, held_mean, held_variance, module.weight, module.bias, False, 0.0, module.eps
        )
        channel = active.to(x.device).view(1, -1, *[1] * (x.dim() - 2))
        return torch.where(channel, fixed, output)

    return hook
