"""A timm network in timm's train loop, fine-tuned on classes of your own while it is cut to a latency.

    python examples/timm_network.py --pretrained --out runs/timm              # timm downloads its weights
    python examples/timm_network.py --model resnet18 --out runs/timm

``num_classes`` gives the network a fresh head. ``start="pretrained"`` scores the weights that are there before anything
is removed; what is removed keeps its pretrained value in memory and may come back while the network explores.

Loss, optimizer, schedule, average and figures are timm's, as in its ``train.py``. The loop has three lines of halpiee,
marked as such: attach, hand over at the end, and start the average there.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, accuracy
from torch import Tensor, nn

import halpiee
import latency
from halpiee.deploy import export_onnx

SIZE, CLASSES = 64, 3


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Returns images ``[size, 3, 64, 64]`` of noise with one strong colour, and which colour, ``[size]``."""
    source = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (size,), generator=source)
    images = torch.randn(size, 3, SIZE, SIZE, generator=source)
    images[torch.arange(size), labels] += 0.5
    return images, labels


def main(
    name: str, out: Path, *, pretrained: bool = False, steps: int = 40, budget: float = 0.6
) -> dict[str, float]:
    """Fine-tunes to a share of the latency, exports, and returns what was predicted and measured."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=CLASSES)
    dense = timm.create_model(name, num_classes=CLASSES).eval()
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    structure = halpiee.trace(model, example)
    profile = latency.sweep([timed.op for timed in structure.ops], path=out / f"{name}.jsonl", progress=True)
    cost = halpiee.LatencyCost(structure, profile)
    limits: dict[str, Any] = {
        "budget": halpiee.Latency(fraction=budget),
        "structure": structure,
        "cost": cost,
    }
    cycle: dict[str, Any] = {"start": "pretrained", "end": 0.75, "h": 4, "j": 2, "q": 4}

    epochs, updates = 4, steps // 4
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    scheduler, _ = create_scheduler_v2(
        optimizer, num_epochs=epochs, warmup_epochs=1, step_on_epochs=False, updates_per_epoch=updates
    )
    loss_fn, ema = LabelSmoothingCrossEntropy(0.1), None
    iee = halpiee.IEE(model, optimizer, total_steps=steps, **limits, **cycle)  # halpiee: attach
    for epoch in range(epochs):
        losses = AverageMeter()
        model.train()
        for update in range(epoch * updates, (epoch + 1) * updates):
            images, labels = batch(update)
            loss = loss_fn(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if iee.finished and ema is None:
                model, optimizer = iee.shrink()  # halpiee: the compact pair takes over
                scheduler, ema = (
                    iee.rebind(scheduler),
                    ModelEmaV3(model, decay=0.9),
                )  # halpiee: and its average begins
            if ema is not None:
                ema.update(model)
            losses.update(loss.item(), images.size(0))
            scheduler.step_update(num_updates=update + 1, metric=losses.avg)
        scheduler.step(epoch + 1)
    assert ema is not None
    model = ema.module
    model.eval()
    report = export_onnx(model, example, out / f"{name}.onnx", overwrite=True)
    times = latency.compare({"dense": dense, "pruned": model}, example_inputs=example, rounds=30)
    with torch.no_grad():
        images, labels = batch(steps, size=64)
        (right,) = accuracy(model(images), labels)
    return {
        "accuracy": float(right) / 100,
        "predicted_share": iee.reports[-1].used / cost.dense_us,
        "measured_share": times["pruned"].median_us / times["dense"].median_us,
        "onnx_rel_l2": report.rel_l2,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="test_resnet")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/timm"))
    given = parser.parse_args()
    for what, number in main(given.model, given.out, pretrained=given.pretrained).items():
        print(f"{what:20} {number:.4g}")
