"""The processes of one training: those that torchrun or ``accelerate launch`` started, or this one alone.

Rank 0 reads, measures and writes; the others train with it. What only one of them may do is asked by ``once``: rank 0
does it, and every rank gets its answer, or its refusal.
"""

from __future__ import annotations

import gc
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from halpiee.errors import HalpieeError, MissingError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(days=7)
"""How long a rank waits for another one, which may be measuring; one that died is noticed at once."""

LOST = re.compile("gloo|connection closed|connection reset|nccl|broken pipe|timed out waiting|tcpstore", re.I)
"""What errors of torch.distributed say of a process that is gone."""


class PeerError(HalpieeError):
    """Rank 0 ended with an error that it prints itself; the other ranks end with its exit code."""

    def __init__(self, text: str, exit_code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is."""

    rank: int = 0  # of this process
    count: int = 1  # of all
    group: Any = None  # of gloo, for what is no tensor of the training; ``None``: there is one process
    _busy: list[bool] = field(default_factory=list, repr=False, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that reads, measures and writes."""
        return self.rank == 0

    def once(self, work: Callable[[], T]) -> T:
        """Returns what rank 0 gets from ``work``, on every rank; within ``work`` rank 0 asks nobody.

        Raises:
            PeerError: rank 0 was refused; on rank 0 its own error.
        """
        if self.count == 1 or self._busy:
            return work()
        import torch

        answer: list[Any] = [None, None]
        refused: BaseException | None = None
        if self.first:
            self._busy.append(True)
            try:
                answer = [None, work()]
            except BaseException as error:
                refused = error
                code = 130 if isinstance(error, KeyboardInterrupt) else getattr(error, "exit_code", 1)
                answer = [code, type(error).__name__]
            finally:
                self._busy.clear()
        torch.distributed.broadcast_object_list(answer, src=0, group=self.group)
        if refused is not None:
            raise refused
        if answer[0] == 130:
            raise KeyboardInterrupt
        if answer[0] is not None:
            raise PeerError(f"rank {self.rank} of {self.count} ends, as rank 0 did ({answer[1]})", answer[0])
        found: T = answer[1]
        return found

    def every(self, value: T) -> list[T]:
        """Returns the values of all ranks, in their order."""
        if self.count == 1:
            return [value]
        import torch

        found: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(found, value, group=self.group)
        return found

    def total(self, values: Tensor) -> Tensor:
        """Returns the sum over all ranks of numbers that lie on the CPU."""
        if self.count > 1:
            import torch

            torch.distributed.all_reduce(values, group=self.group)
        return values

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuses ranks that do not agree in what they train.

        ``facts`` are what they must agree in → a hash of it.

        Raises:
            UsageError: names what differs, and between which ranks.
        """
        found = self.every(dict(facts))
        for what in facts:
            other = [rank for rank, theirs in enumerate(found) if theirs.get(what) != found[0].get(what)]
            if other:
                raise UsageError(
                    f"rank {other[0]} of {self.count} trains with other {what} than rank 0; start every process with "
                    "the same command, the same version of halpiee and the same files"
                )

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Inside, an error of the connection to another rank becomes a sentence.

        Raises:
            MissingError: another rank has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not LOST.search(str(error)):
                raise
            said = " ".join(str(error).split())[:160]
            raise MissingError(
                f"rank {self.rank} of {self.count} ends: another rank of this training is gone ({said}); its own "
                "message says why, and --resume goes on from the last checkpoint, with as many ranks or others"
            ) from error

    def leave(self) -> None:
        """Ends the connection to the other ranks."""
        if self.count > 1:
            import torch

            gc.collect()  # DDP holds the group until it is collected: docs/decisions/0002
            torch.distributed.destroy_process_group()


ALONE = Ranks()
"""One process."""


def launched() -> int:
    """Returns how many processes a launcher started for this training; 1 without one."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1


def joined(device: str = "auto") -> Ranks:
    """Returns this process among those that a launcher started; they can talk from now on.

    Processes that train on CPUs talk by gloo.
    """
    if launched() == 1:
        return ALONE
    import torch
    import torch.distributed.nn  # its functions keep the default group of their first import: docs/decisions/0002
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.cuda.is_available()
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    group = torch.distributed.new_group(backend="gloo", timeout=PATIENCE)
    return Ranks(state.process_index, state.num_processes, group)


def code() -> str:
    """Returns a hash of the source of halpiee and latency, by which ranks of other versions are told."""
    import halpiee
    import latency

    found = hashlib.sha256()
    for package in (halpiee, latency):
        folder = Path(str(package.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:16]
