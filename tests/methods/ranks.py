"""How a program of several ranks ends: no thread of gloo outlives the process group.

``terminate called without an active exception`` at the end of a process is a C++ thread that is still there when the
interpreter has gone. gloo's threads end with the last reference to the group, and two things hold one beyond
``destroy_process_group``: the reducer of a ``DistributedDataParallel``, and the default arguments
(``group=group.WORLD``) of torch.distributed.nn, which DDP imports when the first model is wrapped. A program that
imports torch.distributed.nn before it makes the group, and lets its models go before it destroys the group, ends clean.
"""

from __future__ import annotations

FIRST = """
import torch.distributed.nn  # before the group exists: the default arguments of its functions hold the group
"""

LAST = """
del net, model, optimizer, method, make
import gc
gc.collect()
dist.barrier()
dist.destroy_process_group()
import contextlib
import time
from pathlib import Path

def gloo_threads():
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # the thread ended in between
            names.append(task.read_text().strip())
    return [name for name in names if "gloo" in name]

until = time.monotonic() + 60  # a thread that was told to end may wait for a core
while threads := gloo_threads():
    assert time.monotonic() < until, threads
    time.sleep(0.01)
"""
