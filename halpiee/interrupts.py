"""The signals that ask a process to end: from the keyboard, from ``kill``, from a terminal that was closed."""

from __future__ import annotations

import signal

__all__ = ["ending_signals"]


def ending_signals() -> tuple[signal.Signals, ...]:
    """Returns SIGINT and SIGTERM, and SIGHUP unless it is ignored, as ``nohup`` has it."""
    found = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        found.append(hangup)
    return tuple(found)
