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
from pathlib import Path
threads = [task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm")]
assert not [name for name in threads if "gloo" in name], threads
"""
