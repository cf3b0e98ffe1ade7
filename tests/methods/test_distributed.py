"""Two ranks with different data choose the same units and hold the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .ranks import FIRST, LAST

PROGRAM = """
import copy
import sys
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import halpiee
from halpiee import GMP, IEE, NM, SET, SNFS, SNIP, ERK, AtInit, FilterPruning, Global, GraNet, RigL, Static, SynFlow
from halpiee import Uniform
from halpiee.saliency import Taylor
from halpiee.sparsity import Channels, Filters, Weights
from halpiee.zoo import build

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
first = build("resnet20", num_classes=3, width=0.25)
structure = halpiee.trace(first, (torch.zeros(1, 3, 8, 8),))
same = [(torch.randn(6, 3, 8, 8), torch.arange(6) % 3)]  # what is scored outside of DDP is the same on every rank
def even(net):
    return Weights(net, pinned=frozenset({n for n, s in Weights(net).sizes.items() if s[1] % 2}))

METHODS = {
    "iee-channels": lambda m, o, n: IEE(
        m, o, budget=Uniform(0.5), units=Channels(n, structure), criterion=Taylor(),
        total_steps=12, h=2, j=1, q=2, end=1.0,
    ),
    "iee-weights": lambda m, o, n: IEE(m, o, budget=Global(0.3), total_steps=12, h=2, j=1, q=2, end=1.0),
    "iee-nm": lambda m, o, n: IEE(m, o, budget=NM(1, 2), units=even(n), total_steps=12, h=2, j=1, q=2, end=1.0),
    "granet": lambda m, o, n: GraNet(m, o, budget=Global(0.3), total_steps=12, interval=5, initial=0.3),
    "gmp": lambda m, o, n: GMP(m, o, budget=Global(0.3), total_steps=12, interval=2),
    "rigl": lambda m, o, n: RigL(m, o, budget=ERK(0.3), total_steps=12, interval=2),
    "set": lambda m, o, n: SET(m, o, budget=ERK(0.3), total_steps=12, interval=2),
    "snfs": lambda m, o, n: SNFS(m, o, budget=ERK(0.3), total_steps=12, interval=2),
    "static": lambda m, o, n: Static(m, o, budget=ERK(0.3)),
    "snip": lambda m, o, n: SNIP(m, o, budget=Global(0.3), batches=same, at=3),
    "synflow": lambda m, o, n: SynFlow(m, o, budget=Global(0.3), batches=same, rounds=3),
    "random": lambda m, o, n: AtInit(m, o, budget=Global(0.3), criterion="random", at=2, shuffle=True),
    "filter": lambda m, o, n: FilterPruning(
        m, o, budget=Global(0.5), criterion="loss", total_steps=12, rounds=2, regrow=0.3
    ),
}
for name, make in METHODS.items():
    net = copy.deepcopy(first)
    model = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = make(model, optimizer, net)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(12):
        x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()
    total = sum(p.detach().double().abs().sum().item() for p in net.parameters())
    print("RESULT", name, method.alive.digest(), len(method.reports), repr(total))
"""


@pytest.mark.slow  # two processes that each load torch
def test_two_ranks_hold_equal_masks_and_weights_whatever_the_method(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(FIRST + PROGRAM + LAST)
    meeting = tmp_path / "meeting"  # a file: nobody else can take it, as a port can be taken
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(meeting)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=900) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], [err for _, err in said]
    results = [[line.split() for line in out.splitlines() if line.startswith("RESULT")] for out, _ in said]
    assert results[0] == results[1]
    events = {line[1]: int(line[3]) for line in results[0]}
    assert len(events) == 13
    # init and two cycles of prune and grow; init, one resize and two exchanges of drop and grow
    assert (events["iee-channels"], events["granet"], events["static"], events["snip"]) == (5, 6, 1, 1)
