"""One path from data to an exported pruned network, for networks that answer with any tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import halpiee
import latency
from halpiee.data.data import Data
from halpiee.deploy import export_onnx
from halpiee.tasks import Task
from tests.latency.fakes import FakeBackend, staircase

__all__ = ["Found", "pruned_and_exported"]


@dataclass
class Found:
    losses: list[float]
    share: float
    answers: list[Tensor]
    exported: list[Tensor]
    figures: dict[str, float]


def pruned_and_exported(
    task: Task, net: nn.Module, data: Data, path: Path, *, steps: int = 30, lr: float = 0.02
) -> Found:
    """Trains some steps, prunes to 60 % of the latency on an imagined device, and exports."""
    task.prepare(data, net)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    losses: list[float] = []
    net.train()
    while len(losses) < steps:
        for x, y in data.batches(len(losses), 8):
            loss = task.loss(net(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(net.parameters(), 10)
            optimizer.step()
            losses.append(float(loss.detach()))
    net.eval()
    example = (torch.randn(1, *data.shape, generator=torch.Generator().manual_seed(0)),)
    structure = halpiee.trace(net, example)
    profile = latency.sweep([timed.op for timed in structure.ops], backend=FakeBackend(staircase(8)))
    cost = halpiee.LatencyCost(structure, profile)
    scores = halpiee.score(net, [], "magnitude", units=structure)
    selection = halpiee.select(scores, cost, 0.6 * cost.dense_us)
    small = halpiee.shrink(net, structure, selection.keep).eval()
    export_onnx(small, example, path)

    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x, y = next(data.test_batches(4))
    feeds = [{session.get_inputs()[0].name: np.ascontiguousarray(image[None].numpy())} for image in x]
    outputs = [session.run(None, feed) for feed in feeds]
    with torch.no_grad():
        answers = small(x)
    metric = task.metric(data.n_classes)
    metric.add(answers, y)
    return Found(
        losses,
        selection.latency_us / cost.dense_us,
        [answers] if isinstance(answers, Tensor) else list(answers),
        [torch.cat([torch.from_numpy(out[k]) for out in outputs]) for k in range(len(outputs[0]))],
        metric.figures(),
    )
