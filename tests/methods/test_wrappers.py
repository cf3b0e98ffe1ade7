"""What is given in wrappers comes back from ``shrink`` in the same wrappers."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.nn  # before a group exists; see ranks.py
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from halpiee.methods.attach import bare, rewrapped, settings_of

from .ranks import FIRST, LAST

PROGRAM = """
import copy
import sys
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import halpiee
from halpiee import IEE, FilterPruning, Global, RigL, Uniform
from halpiee.saliency import Taylor
from halpiee.sparsity import Channels
from halpiee.zoo import build

rank = int(sys.argv[1])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
first = build("resnet20", num_classes=3, width=0.25)
structure = halpiee.trace(first, (torch.zeros(1, 3, 8, 8),))
METHODS = {
    "iee": lambda m, o, n: IEE(
        m, o, budget=Uniform(0.5), units=Channels(n, structure), criterion=Taylor(),
        total_steps=12, h=2, j=1, q=2, end=1.0,
    ),
    "filter": lambda m, o, n: FilterPruning(
        m, o, budget=Global(0.5), structure=structure, criterion="loss", total_steps=12, rounds=2
    ),
    "rigl": lambda m, o, n: RigL(m, o, budget=Global(0.3), total_steps=12, interval=2),
}
for name, make in METHODS.items():
    net = copy.deepcopy(first)
    model = DistributedDataParallel(net, gradient_as_bucket_view=True, bucket_cap_mb=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    method = make(model, optimizer, net)
    generator = torch.Generator().manual_seed(rank)
    cut = False
    for step in range(16):
        x, y = torch.randn(4, 3, 8, 8, generator=generator), torch.randint(0, 3, (4,), generator=generator)
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()
        if method.finished and not cut:
            cut = True
            model, optimizer = method.shrink()
            buffers = sum(b.double().sum().item() for b in model.buffers())
    assert type(model) is DistributedDataParallel and model.gradient_as_bucket_view
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    width = sum(p.numel() for p in model.parameters())
    total = sum(p.detach().double().abs().sum().item() for p in model.parameters())
    print("RESULT", name, cut, width, repr(buffers) if name != "rigl" else "-", repr(total))
"""


@pytest.mark.slow  # two processes that each load torch
def test_ranks_that_train_on_behind_shrink_hold_equal_weights(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(FIRST + PROGRAM + LAST)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), f"file://{tmp_path}/store"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    results = []
    for process in ranks:
        out, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
        results.append([line.split() for line in out.splitlines() if line.startswith("RESULT")])
    assert results[0] == results[1]
    widths = {line[1]: int(line[3]) for line in results[0]}
    assert [line[2] for line in results[0]] == ["True"] * 3
    assert widths["iee"] < widths["rigl"]
    assert widths["filter"] < widths["rigl"]


@pytest.fixture
def alone(tmp_path: Path) -> Any:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    gc.collect()  # models hold the group
    dist.destroy_process_group()


def test_the_settings_of_ddp_are_taken_over(alone: Any) -> None:
    given = DistributedDataParallel(
        nn.Linear(3, 2), find_unused_parameters=True, bucket_cap_mb=7, gradient_as_bucket_view=True
    ).eval()
    found = rewrapped(given, nn.Linear(2, 2))
    assert isinstance(found, DistributedDataParallel)
    assert found.process_group is given.process_group
    assert (found.find_unused_parameters, found.gradient_as_bucket_view) == (True, True)
    assert found.bucket_bytes_cap == 7 * 2**20
    assert settings_of(found) == settings_of(given)
    assert not found.training
    assert bare(found) is found.module
    plain = DistributedDataParallel(nn.Linear(3, 2))
    assert rewrapped(plain, nn.Linear(2, 2)).bucket_bytes_cap == plain.bucket_bytes_cap


def test_a_communication_hook_is_not_taken_over_in_silence(alone: Any) -> None:
    given = DistributedDataParallel(nn.Linear(3, 2))

    def halved(state: Any, bucket: Any) -> Any:
        raise NotImplementedError

    halved.__annotations__ = {}
    given.register_comm_hook(None, halved)
    with pytest.warns(UserWarning, match=r"without the communication hook .*halved.*register one with a new"):
        rewrapped(given, nn.Linear(2, 2))


def test_nested_wrappers_come_back_in_their_order() -> None:
    inner = nn.Linear(2, 2)
    compiled: Any = torch.compile(DataParallel(nn.Linear(3, 2)), backend="eager")
    found = rewrapped(compiled, inner)
    assert type(found) is type(compiled)
    assert isinstance(found._orig_mod, DataParallel)
    assert bare(found) is inner
    x = torch.randn(4, 2)
    assert torch.equal(found(x), inner(x))
    assert rewrapped(nn.Linear(3, 2), inner) is inner
