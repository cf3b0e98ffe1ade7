"""Two ranks with different data choose the same units and hold the same weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import halpiee
from halpiee.methods.gradual import GraNet
from halpiee.methods.iee import IEE
from halpiee.saliency import Taylor
from halpiee.sparsity import Channels, Global, Uniform
from halpiee.zoo import build

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{sys.argv[2]}", rank=rank, world_size=2)
torch.manual_seed(0)
net = build("resnet20", num_classes=3, width=0.25)
structure = halpiee.trace(net, (torch.zeros(1, 3, 8, 8),))
model = DistributedDataParallel(net)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
if sys.argv[3] == "iee":
    method = IEE(
        model, optimizer, budget=Uniform(0.5), units=Channels(net, structure), criterion=Taylor(),
        total_steps=12, h=2, j=1, q=2, end=1.0,
    )
else:
    method = GraNet(model, optimizer, budget=Global(0.3), total_steps=12, interval=5, initial=0.3)
generator = torch.Generator().manual_seed(rank)
for _ in range(12):
    x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
total = sum(p.detach().double().abs().sum().item() for p in net.parameters())
print("RESULT", method.alive.digest(), len(method.reports), repr(total))
dist.destroy_process_group()
"""


@pytest.mark.slow  # two processes that each load torch
@pytest.mark.parametrize(
    ("method", "events"),
    [
        ("iee", "5"),  # init and two cycles
        ("granet", "6"),  # init, one resize, and two exchanges of drop and grow: after 5 and 10
    ],
)
def test_two_ranks_hold_equal_masks_and_weights(tmp_path: Path, method: str, events: str) -> None:
    script = tmp_path / "rank.py"
    script.write_text(PROGRAM)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(port), method],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    results = []
    for process in ranks:
        out, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
        results.append(next(line for line in out.splitlines() if line.startswith("RESULT")))
    assert results[0] == results[1]
    assert results[0].split()[2] == events
