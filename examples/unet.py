"""A network of two inputs that is no classifier: a small U-Net that removes noise, cut to a latency.

    python examples/unet.py --out runs/unet

The second input is a map of the noise's strength. Skips are concatenated and the two inputs meet in the first layer;
``trace`` finds what belongs together by itself. The loss is a mean squared error: IEE never sees it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import halpiee
import latency
from halpiee.deploy import export_onnx
from halpiee.structure import verify

STEPS, SIZE = 60, 16


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
        back = self.up(nn.functional.interpolate(half, scale_factor=2.0, mode="nearest"))
        return noisy - self.leave(self.join(torch.cat([full, back], 1)))


def batch(step: int, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Returns noisy images, maps of the noise's strength and clean images, each ``[size, 1, 16, 16]``."""
    source = torch.Generator().manual_seed(step)
    angle = torch.rand(size, 1, 1, 1, generator=source) * 6.3
    rows, columns = torch.meshgrid(torch.arange(SIZE) / 3, torch.arange(SIZE) / 3, indexing="ij")
    clean = torch.sin(rows * angle.cos() + columns * angle.sin() + angle)
    strength = torch.rand(size, 1, 1, 1, generator=source).expand_as(clean)
    return clean + strength * torch.randn(clean.shape, generator=source), strength, clean


def main(out: Path) -> dict[str, float]:
    """Trains to half the latency, proves the cut, exports, and returns errors and times."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model: nn.Module = UNet()
    optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    example = (torch.zeros(1, 1, SIZE, SIZE), torch.zeros(1, 1, SIZE, SIZE))
    structure = halpiee.trace(model, example)
    profile = latency.sweep([timed.op for timed in structure.ops], path=out / "profile.jsonl")
    cost = halpiee.LatencyCost(structure, profile)
    iee = halpiee.IEE(
        model,
        optimizer,
        budget=halpiee.Latency(fraction=0.5),
        total_steps=STEPS,
        structure=structure,
        cost=cost,
        end=0.75,
        h=6,
        j=3,
        q=6,
    )
    dense = UNet().eval()
    for step in range(STEPS):
        noisy, strength, clean = batch(step)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(noisy, strength), clean).backward()
        optimizer.step()
        if iee.finished:
            model, optimizer = iee.shrink()
    model.eval()
    proof = verify(dense, structure, iee.keep, example)  # masked equals compact, for this cut
    report = export_onnx(model, example, out / "pruned.onnx", overwrite=True)
    times = latency.compare({"dense": dense, "pruned": model}, example_inputs=example, rounds=30)
    with torch.no_grad():
        noisy, strength, clean = batch(STEPS)
        after = float(nn.functional.mse_loss(model(noisy, strength), clean))
        before = float(nn.functional.mse_loss(noisy, clean))
    return {
        "budget_share": 0.5,
        "predicted_share": iee.reports[-1].used / cost.dense_us,
        "measured_share": times["pruned"].median_us / times["dense"].median_us,
        "masked_vs_compact": float(proof),
        "onnx_rel_l2": report.rel_l2,
        "error_before": before,
        "error_after": after,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("runs/unet"))
    for name, number in main(parser.parse_args().out).items():
        print(f"{name:20} {number:.4g}")
