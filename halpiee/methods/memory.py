"""Which values a model holds: the active elements, or all; the last values of the others are remembered.

What is not used in forward is zero in the parameter itself, so that the model stays an ordinary one; what it was
last used with (MRU) waits here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Memory"]


class Memory:
    """Last values of masked parameters.

    Args:
        parameters: name → parameter, changed in place.
        masks: name → bool of the parameter's shape: which elements are active.

    Attributes:
        masks: as they are now, on the parameters' devices.
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
        """Inside, the model holds its active elements only; afterwards what it held before, bit for bit."""
        if not self.everything:
            yield
            return
        held = {name: p.detach().clone() for name, p in self._parameters.items()}
        with torch.no_grad():
            for name, p in self._parameters.items():
                p.data.masked_fill_(~self.masks[name], 0.0)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in held.items():
                    self._parameters[name].copy_(value)

    def state(self) -> dict[str, Tensor]:
        """Returns the last values."""
        return dict(self._last)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes over saved last values."""
        for name, value in state.items():
            self._last[name].copy_(value)
