"""Processes that find torch loaded: forks of a server that has computed nothing, so a start costs no import."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

PRELOADED = ["torch.distributed.nn", "halpiee.cli", "halpiee.studies.work", "halpiee.training.pipeline"]


def server() -> ForkServerContext:
    """Returns what makes the processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def carry_out(program: str, arguments: Sequence[str], environment: Mapping[str, str], said: Path) -> None:
    """Runs a program in this process, as ``python -W ignore -c`` does; what it says goes to the end of a file."""
    with said.open("ab") as told:
        os.dup2(told.fileno(), 1)
        os.dup2(told.fileno(), 2)
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    warnings.simplefilter("ignore")
    exec(compile(program, "-c", "exec"), {"__name__": "__main__"})


def begin(
    program: str,
    *arguments: str,
    said: Path,
    ranks: int = 2,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[BaseProcess]:
    """Starts a program in so many processes, with the environment that torchrun gives its ranks.

    Args:
        program: Python.
        arguments: of its command line.
        said: folder of what each rank says: a file of its number.
        ranks: how many.
        environment: further variables.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**environment, "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context, processes = server(), list[BaseProcess]()
    for rank in range(ranks):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process = context.Process(target=carry_out, args=(program, arguments, own, said / str(rank)))
        process.start()
        processes.append(process)
    return processes


def end(processes: Sequence[BaseProcess], said: Path, seconds: float = 900.0) -> list[tuple[int, str]]:
    """Returns exit code and words of every process, once all have ended."""
    try:
        for process in processes:
            process.join(seconds)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert None not in codes, "a process did not end"
    return [(int(code or 0), (said / str(rank)).read_text()) for rank, code in enumerate(codes)]
