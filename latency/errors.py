"""Every error of halpiee, and the exit code each one ends a command with.

The tree (the root stands here because ``latency`` imports nothing of ``halpiee``)::

    HalpieeError                      1  our bug
    ├── UsageError                    2  what was asked cannot be done as asked
    │   ├── ProfileError              2  a profile that is foreign, torn or lacks cells
    │   ├── BudgetError               2  a budget below what the smallest network needs (.minimum)
    │   ├── StructureError            2  a model, keep or plan that does not fit
    │   ├── DataError                 2  a data source that is empty, unreadable or of another shape
    │   ├── OutputInUseError          2  an output path that already holds something
    │   └── WriteError                2  a file that cannot be written: no space, no permission, no such place
    ├── MissingError                  3  a device, driver or extra that is not there
    │   └── UnsupportedOpError        3  an op that a backend cannot build
    └── PromiseError                  4  the result misses its promise
        ├── MeasurementError          4  a latency that could not be measured within the limits asked
        └── MismatchError             4  outputs that differ by more than the tolerance (.error)

Two warnings stand beside it: HoldoutWarning here, ScoreWarning in ``halpiee.errors``.

0 is success and 130 is an interruption with its state saved.
A message has three parts: what was asked, what was found, what to type next.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable

__all__ = [
    "BudgetError", "DataError", "HalpieeError", "MeasurementError", "MismatchError", "MissingError", "OutputInUseError",
    "ProfileError", "PromiseError", "StructureError", "UnsupportedOpError", "UsageError", "WriteError",
]  # fmt: skip


class HalpieeError(Exception):
    """Root of every error that halpiee raises on purpose."""

    exit_code = 1


class UsageError(HalpieeError):
    """What was asked cannot be done as asked."""

    exit_code = 2


class ProfileError(UsageError):
    """A profile that belongs to another device or schema, is torn, or lacks cells."""


class BudgetError(UsageError):
    """A budget below what the smallest legal network needs.

    Attributes:
        minimum: the smallest reachable cost, in the unit of the budget.
    """

    def __init__(self, message: str, minimum: float = float("nan")) -> None:
        super().__init__(message)
        self.minimum = minimum


class StructureError(UsageError):
    """A model, a keep or a plan that does not fit the structure it is used with."""


class DataError(UsageError):
    """A data source that is empty, unreadable or of another shape."""


class OutputInUseError(UsageError):
    """An output path that already holds something, or that another process writes; nothing was written."""


class WriteError(UsageError):
    """A file that cannot be written: no space, no permission, no such place; what was there is unchanged."""


class MissingError(HalpieeError):
    """A device, driver or optional package that is not there."""

    exit_code = 3


class UnsupportedOpError(MissingError):
    """An op that a backend cannot build."""


class PromiseError(HalpieeError):
    """A result that misses its promise: budget or tolerance."""

    exit_code = 4


class MeasurementError(PromiseError):
    """A latency that could not be measured within the limits asked."""


class HoldoutWarning(UserWarning):
    """A sweep whose held-out cells are far from what its tables say of them."""


class MismatchError(PromiseError):
    """Outputs that differ by more than the tolerance.

    Attributes:
        error: the error that was found, in the measure the message names.
    """

    def __init__(self, message: str, error: float = float("nan")) -> None:
        super().__init__(message)
        self.error = error


def need(value: object, kind: type | tuple[type, ...], what: str, advice: str) -> None:
    """Refuses a value of another type in one sentence; a truth value is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UsageError(f"{what} of type {type(value).__name__} was given; {advice}")


def unknown(
    name: object, choices: Iterable[str], otherwise: str = "", *, before: str = "", most: int = 1
) -> str:
    """Returns ``did you mean …`` for a name that is none of the choices, else ``otherwise``, both behind ``before``."""
    close = difflib.get_close_matches(str(name), list(choices), n=most)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else otherwise
    return before + hint if hint else ""


def said(error: BaseException, most: int = 300, *, first: bool = False) -> str:
    """Returns what an error says on one line, or its ``first`` line, cut; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return " ".join(" ".join(lines[:1] if first else lines).split())[:most] or type(error).__name__


def outside() -> int:
    """Returns the ``stacklevel`` at which a warning of the caller names the line of the user's own code."""
    homes = [str(frame.frame.f_globals.get("__name__")).split(".")[0] for frame in inspect.stack(0)[1:]]
    ours = ("halpiee", "latency", "torch")
    return next((i for i, home in enumerate(homes, 1) if home not in ours), len(homes))


OUT_OF_MEMORY = (
    "out of memory",
    "outofmemory",
    "alloc_failed",
    "failed to allocate",
    "unable to find an engine",
    "memory allocation failure",
)
"""What runtimes say, in lower case, where the device's memory is full: CUDA, cuDNN (whose search skips every algorithm
whose workspace does not fit), TensorRT."""


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an error of any runtime says that the device's memory is full.

    PyTorch raises ``torch.OutOfMemoryError``, PyCUDA ``pycuda.driver.MemoryError``; neither is imported for this. Where
    a graph is instantiated, or by cuDNN, it is a plain ``RuntimeError``, known by its text.
    """
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)
