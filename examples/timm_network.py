"""A timm network with pretrained weights, fine-tuned on classes of your own while it is cut to a latency.

    python examples/timm_network.py --pretrained --out runs/timm              # timm downloads its weights
    python examples/timm_network.py --model resnet18 --out runs/timm

``num_classes`` gives the network a fresh head. ``start="pretrained"`` scores the weights that are there before anything
is removed; what is removed keeps its pretrained value in memory and may come back while the network explores.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch
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
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    structure = halpiee.trace(model, example)
    profile = latency.sweep([timed.op for timed in structure.ops], path=out / f"{name}.jsonl", progress=True)
    cost = halpiee.LatencyCost(structure, profile)
    iee = halpiee.IEE(
        model,
        optimizer,
        budget=halpiee.Latency(fraction=budget),
        total_steps=steps,
        structure=structure,
        cost=cost,
        start="pretrained",
        h=4,
        j=2,
        q=4,
    )
    model.train()
    for step in range(steps):
        images, labels = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        if iee.finished:
            model, optimizer = iee.shrink()
    model.eval()
    report = export_onnx(model, example, out / f"{name}.onnx", overwrite=True)
    times = latency.compare({"dense": dense, "pruned": model}, example_inputs=example, rounds=30)
    with torch.no_grad():
        images, labels = batch(steps, size=64)
        right = float((model(images).argmax(1) == labels).float().mean())
    return {
        "accuracy": right,
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
