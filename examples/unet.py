"""A U-Net of two inputs and a regression loss, from pretrained weights to half its latency on two threads.

    python examples/unet.py --out runs/unet
    python examples/unet.py --out runs/unet --stop-at 30    # interrupted; the first command continues it

The second input is a map of the noise's strength. Skips are concatenated and the two inputs meet in the first layer;
``trace`` finds what belongs together by itself. The loss is a mean squared error: IEE never sees it. The loop has
AdamW, bf16 autocast, four micro-batches a step and an averaged model, which starts at the cut.

``start="pretrained"`` scores the weights that are there before anything is removed. The prediction is a sum of layers;
``meet`` measures the network that was chosen beside the dense one, on two threads, and lets IEE choose again until it
meets the budget.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, mse_loss
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import halpiee
import latency
from halpiee.deploy import Target, export_onnx, meet
from halpiee.structure import verify

STEPS, MICRO_BATCHES, SIZE = 60, 4, 16
ON = Target(threads=2)
EXAMPLE = (torch.zeros(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE))


def block(c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """Returns convolution, norm and activation."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class UNet(nn.Module):
    """Estimates a clean image ``[N, 1, H, W]`` from a noisy one and a map of the noise's strength, of that shape."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.enter = block(2, width)
        self.down = block(width, 2 * width, stride=2)
        self.bottom = block(2 * width, 2 * width)
        self.up = block(2 * width, width)
        self.join = block(2 * width, width)
        self.leave = nn.Conv2d(width, 1, 1)

    def forward(self, noisy: Tensor, strength: Tensor) -> Tensor:
        """Returns the noisy image minus the estimated noise."""
        full = self.enter(torch.cat([noisy, strength], 1))
        half = self.bottom(self.down(full))
        back = self.up(interpolate(half, scale_factor=2.0, mode="nearest"))
        return noisy - self.leave(self.join(torch.cat([full, back], 1)))


def batch(step: int, part: int, size: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Returns noisy images, maps of the noise's strength and clean images, each ``[size, 1, 16, 16]``.

    A batch depends on its step alone, so a resumed training sees the same batches.
    """
    source = torch.Generator().manual_seed(1000 * step + part)
    angle = torch.rand(size, 1, 1, 1, generator=source) * 6.3
    rows, columns = torch.meshgrid(torch.arange(SIZE) / 3, torch.arange(SIZE) / 3, indexing="ij")
    clean = torch.sin(rows * angle.cos() + columns * angle.sin() + angle)
    strength = torch.rand(size, 1, 1, 1, generator=source).expand_as(clean)
    return clean + strength * torch.randn(clean.shape, generator=source), strength, clean


def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Makes one step of the optimizer, of four micro-batches in bf16."""
    optimizer.zero_grad()
    for part in range(MICRO_BATCHES):
        noisy, strength, clean = batch(step, part)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = mse_loss(model(noisy, strength), clean)
        (loss / MICRO_BATCHES).backward()
    optimizer.step()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer."""
    return torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)


def averaged(model: nn.Module) -> AveragedModel:
    """Returns an exponential moving average of a model's parameters and running statistics."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)


def pretrain(path: Path) -> None:
    """Stands in for the file that you have: the weights of a dense network that was trained."""
    torch.manual_seed(0)
    model = UNet()
    optimizer = adamw(model)
    for step in range(30):
        update(model, optimizer, 10_000 + step)
    torch.save(model.state_dict(), path)


def attach(model: nn.Module, optimizer: torch.optim.Optimizer, profile: Path) -> halpiee.IEE:
    """Returns IEE to half the latency on two threads of ONNX Runtime here; the profile is measured once."""
    structure = halpiee.trace(model, EXAMPLE)
    measured = latency.sweep([timed.op for timed in structure.ops], path=profile, threads=ON.threads)
    return halpiee.IEE(
        model,
        optimizer,
        budget=halpiee.Latency(fraction=0.5),
        total_steps=STEPS,
        structure=structure,
        cost=halpiee.LatencyCost(structure, measured),
        start="pretrained",
        end=0.75,
        h=6,
        j=3,
        q=6,
    )


def train(weights: Path, out: Path, stop_at: int | None = None) -> tuple[nn.Module, halpiee.IEE]:
    """Trains, or continues what ``out`` holds, and returns the averaged compact network and what cut it.

    Args:
        weights: of the dense network.
        out: folder of the profile and the checkpoint.
        stop_at: leave after this many steps, as an interruption would.
    """
    checkpoint = out / "checkpoint.pt"
    model: nn.Module = UNet()
    model.load_state_dict(torch.load(weights, weights_only=True))
    optimizer = adamw(model)
    iee = attach(model, optimizer, out / "profile.jsonl")
    average: AveragedModel | None = None
    done = 0

    if checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        done = saved["step"]
        if saved["average"] is not None:  # it had been cut: cut first, then load the compact values
            iee.load_record(saved["iee"])
            model, optimizer = iee.shrink()
            average = averaged(model)
            average.load_state_dict(saved["average"])
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if average is None:  # the method's state comes last: it looks at the model's values
            iee.load_state_dict(saved["iee"])

    model.train()
    for step in range(done, STEPS):
        if step == stop_at:
            return model, iee
        update(model, optimizer, step)
        if average is not None:
            average.update_parameters(model)
        elif iee.finished:
            for turn in meet(iee, EXAMPLE, target=ON):
                print(f"predicted {turn.predicted_us:.0f} µs, measured {turn.measured_us:.0f} µs")
            model, optimizer = iee.shrink()
            average = averaged(model)
        state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
        state |= {"iee": iee.state_dict(), "average": None if average is None else average.state_dict()}
        torch.save(state, checkpoint)
    assert average is not None
    return average.module.eval(), iee


def main(out: Path, stop_at: int | None = None) -> dict[str, float]:
    """Trains to half the latency, proves the cut, exports, and returns errors and times."""
    out.mkdir(parents=True, exist_ok=True)
    weights = out / "dense.pt"
    if not weights.exists():
        pretrain(weights)
    model, iee = train(weights, out, stop_at)
    if stop_at is not None:
        return {"stopped at": stop_at}
    dense = UNet().eval()
    dense.load_state_dict(torch.load(weights, weights_only=True))
    structure = halpiee.trace(dense, EXAMPLE)
    halpiee.Plan.from_selection(structure, iee).save(out / "plan.json")
    torch.save(model.state_dict(), out / "pruned.pt")
    proof = verify(dense, structure, iee.keep, EXAMPLE)  # masked equals compact, for this cut
    report = export_onnx(model, EXAMPLE, out / "pruned.onnx", overwrite=True)
    times = latency.compare(
        {"dense": dense, "pruned": model}, example_inputs=EXAMPLE, rounds=30, threads=ON.threads
    )
    noisy, strength, clean = batch(STEPS, 0, size=64)
    with torch.no_grad():
        errors = [
            float(mse_loss(found, clean)) for found in (noisy, dense(noisy, strength), model(noisy, strength))
        ]
    return {
        "measured_share": times["pruned"].median_us / times["dense"].median_us,
        "masked_vs_compact": float(proof),
        "onnx_rel_l2": report.rel_l2,
        **dict(zip(("error_noisy", "error_dense", "error_pruned"), errors, strict=True)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    parser.add_argument("--stop-at", type=int)
    given = parser.parse_args()
    for name, number in main(given.out, given.stop_at).items():
        print(f"{name:20} {number:.4g}")
