"""IEE in a training loop of your own: bf16 autocast, gradient accumulation, an averaged model, and resume.

    python examples/own_loop.py --out runs/own-loop
    python examples/own_loop.py --out runs/own-loop --stop-at 60    # interrupted; the first command continues it

The loop is an ordinary one. What IEE adds: it is made once from the model and the optimizer, its state is saved beside
theirs, and when it has finished ``shrink()`` hands back the compact pair. The averaged model starts there: an average
over steps with different masks belongs to no mask.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import halpiee
import latency

STEPS, MICRO_BATCHES = 96, 2
SHAPE = (3, 12, 12)


def network() -> nn.Module:
    """Returns a small convolutional network of four classes."""
    layers: list[nn.Module] = []
    for c_in, c_out, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1)):
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def batch(step: int, part: int, size: int = 32) -> tuple[Tensor, Tensor]:
    """Returns images ``[size, 3, 12, 12]`` whose class is the quarter that is brightest, and the classes ``[size]``.

    A batch depends on its step alone, so a resumed training sees the same batches.
    """
    source = torch.Generator().manual_seed(1000 * step + part)
    images = torch.randn(size, *SHAPE, generator=source)
    labels = torch.randint(4, (size,), generator=source)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, column = divmod(label, 2)
        image[:, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6] += 0.5
    return images, labels


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, profile: Path) -> halpiee.IEE:
    """Returns IEE to 60 % of the dense latency on this machine's ONNX Runtime; the profile is measured once."""
    structure = halpiee.trace(model, (torch.zeros(1, *SHAPE),))
    measured = latency.sweep([timed.op for timed in structure.ops], path=profile)
    return halpiee.IEE(
        model,
        optimizer,
        budget=halpiee.Latency(fraction=0.6),
        total_steps=STEPS,
        structure=structure,
        cost=halpiee.LatencyCost(structure, measured),
        end=0.75,
        h=8,
        j=4,
        q=8,
    )


def train(out: Path, stop_at: int | None = None) -> nn.Module:
    """Trains, or continues what ``out`` holds, and returns the averaged compact network.

    Args:
        out: folder of the profile and the checkpoint.
        stop_at: leave after this many steps, as an interruption would.
    """
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    iee = attach(model, optimizer, out / "profile.jsonl")
    average: AveragedModel | None = None
    done = 0

    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        done = saved["step"]
        if saved["average"] is not None:  # it had been shrunk: cut first, then load the compact values
            iee.load_record(saved["iee"])
            model, optimizer = iee.shrink()
            scheduler = iee.rebind(scheduler)
            average = averaged(model)
            average.load_state_dict(saved["average"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scheduler.load_state_dict(saved["scheduler"])
        if average is None:  # the method's state comes last: it looks at the model's values
            iee.load_state_dict(saved["iee"])

    model.train()
    for step in range(done, STEPS):
        if step == stop_at:
            return model
        optimizer.zero_grad()
        for part in range(MICRO_BATCHES):
            images, labels = batch(step, part)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            (loss / MICRO_BATCHES).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if average is not None:
            average.update_parameters(model)
        elif iee.finished:
            model, optimizer = iee.shrink()
            scheduler = iee.rebind(scheduler)
            average = averaged(model)
        torch.save(
            {
                "step": step + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scheduler": scheduler.state_dict(),
                "iee": iee.state_dict(),
                "average": None if average is None else average.state_dict(),
            },
            checkpoint,
        )
    assert average is not None
    return average.module.eval()


def averaged(model: nn.Module) -> AveragedModel:
    """Returns an exponential moving average of a model's parameters and running statistics."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def accuracy(model: nn.Module) -> float:
    """Returns the share of right answers on batches that no training sees."""
    with torch.no_grad():
        pairs = [batch(STEPS + k, 0) for k in range(8)]
        return sum(float((model(x).argmax(1) == y).float().mean()) for x, y in pairs) / len(pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/own-loop"))
    parser.add_argument("--stop-at", type=int)
    arguments = parser.parse_args()
    result = train(arguments.out, arguments.stop_at)
    if arguments.stop_at is None:
        widths = [layer.out_channels for layer in result.modules() if isinstance(layer, nn.Conv2d)]
        print(f"widths {widths}, accuracy {accuracy(result):.0%}")
