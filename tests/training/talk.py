"""What the tests of a run are told by it."""

from __future__ import annotations

import os
import signal
from typing import Any


class Quiet:
    """Says nothing; interrupts a training at a step when told."""

    def __init__(self, at: tuple[str, int] | None = None) -> None:
        self.at = at

    def stage(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def sweeping(self, done: int, total: int) -> None: ...

    def training(self, label: str, step: int, total: int, entry: dict[str, Any] | None) -> None:
        if self.at == (label, step) and entry is None:
            os.kill(os.getpid(), signal.SIGINT)
