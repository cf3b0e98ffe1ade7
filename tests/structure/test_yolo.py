"""Blocks of YOLO detectors: what is chunked can go, what is split by numbers stays alone, anchors ask for no values.

The modules are written from the published architectures (C2f of YOLOv8, PSA of YOLOv10), with names of their own.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from halpiee.structure import shrink, trace, verify

from . import nets


class ConvNorm(nn.Sequential):
    def __init__(self, c_in: int, c_out: int, k: int = 1, s: int = 1) -> None:
        super().__init__(nn.Conv2d(c_in, c_out, k, s, k // 2, bias=False), nn.BatchNorm2d(c_out), nn.SiLU())


class Bottleneck(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.a, self.b = ConvNorm(c, c, 3), ConvNorm(c, c, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.b(self.a(x))
        return y


class C2f(nn.Module):
    """Half of the channels goes through bottlenecks; all halves are joined."""

    def __init__(self, c_in: int, c_out: int, n: int, *, literal: bool) -> None:
        super().__init__()
        self.c, self.literal = c_out // 2, literal
        self.cv1, self.cv2 = ConvNorm(c_in, 2 * self.c), ConvNorm((2 + n) * self.c, c_out)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv1(x)
        parts = list(y.split((self.c, self.c), 1) if self.literal else y.chunk(2, 1))
        for block in self.m:
            parts.append(block(parts[-1]))
        found: Tensor = self.cv2(torch.cat(parts, 1))
        return found


class PSA(nn.Module):
    """Attention over positions on one half of the channels, which is split off by numbers."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.c = c // 2
        self.cv1, self.cv2 = ConvNorm(c, 2 * self.c), ConvNorm(2 * self.c, c)
        self.mlp = nn.Sequential(ConvNorm(self.c, 2 * self.c), nn.Conv2d(2 * self.c, self.c, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.mlp(b)
        found: Tensor = self.cv2(torch.cat((a, b), 1))
        return found


class Detector(nn.Module):
    """A stem, one block, and boxes whose anchors are made of a stride that is held as a plain tensor."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.stem, self.block, self.boxes = ConvNorm(3, 16, 3, 4), block, nn.Conv2d(16, 4, 1)
        self.stride = torch.tensor([4.0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.boxes(self.block(self.stem(x)))
        h, w = y.shape[-2:]
        places = torch.arange(w, dtype=y.dtype, device=y.device) + 0.5
        scale = y.new_full((h, w), self.stride[0])  # asks Python for a number
        found: Tensor = (y + places) * scale
        return found.flatten(2)


IMAGE = torch.zeros(1, 3, 32, 32)


def checked(block: nn.Module) -> dict[str, str | None]:
    model = nets.randomise(Detector(block))
    structure = trace(model, (IMAGE,))
    assert structure.details["real"] is False
    for seed in (0, 1):
        keep = nets.random_keep(structure, seed)
        assert verify(model, structure, keep, (IMAGE,)) <= 1e-5
    return {g.name: g.reason for g in structure.groups if g.prunable or "output" not in str(g.reason)}


def test_a_block_that_is_chunked_can_lose_both_halves_alike() -> None:
    found = checked(C2f(16, 16, 2, literal=False))
    assert {name: reason for name, reason in found.items() if reason} == {"input": "a network input"}
    assert any(name.startswith("block.cv1") for name in found)


@pytest.mark.parametrize("block", [C2f(16, 16, 2, literal=True), PSA(16)], ids=["C2f", "PSA"])
def test_a_split_by_numbers_is_blamed_on_its_layer_alone(block: nn.Module) -> None:
    found = checked(block)
    stay = {name: reason for name, reason in found.items() if reason and name != "input"}
    assert stay
    assert all(name.startswith("block.cv1") for name in stay)
    assert all(str(reason).startswith("split_with_sizes in block with ") for reason in stay.values())
    assert any(name.startswith("stem") for name in found if not found[name])
    assert any(name.startswith(("block.cv2", "block.m")) for name in found if not found[name])


class Scaled(nn.Module):
    """Reads a number of a weight in Python, and multiplies by it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.b(self.a(x) * float(self.a.weight.abs().sum()))
        return found


def test_a_number_that_hangs_on_a_weight_is_not_taken_for_a_constant() -> None:
    structure = trace(nets.randomise(Scaled()), (IMAGE,))
    assert structure.details["real"] is True


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("yolov8n", 48), ("yolo11n", 56), ("yolo26n", 75)])
def test_ultralytics_networks_are_traced_without_values(
    name: str, least: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("YOLO_CONFIG_DIR", os.fspath(tmp_path))
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    model = tasks.DetectionModel(f"{name}.yaml", verbose=False).eval()
    structure = trace(model, (torch.zeros(1, 3, 64, 64),))
    assert structure.details["real"] is False
    assert len(structure.prunable) >= least


def test_the_number_of_a_chunked_part_follows_it_so_that_the_block_may_split_by_it() -> None:
    model = nets.randomise(Detector(C2f(16, 16, 2, literal=False)))
    structure = trace(model, (IMAGE,))
    small = shrink(model, structure, nets.random_keep(structure, 0))
    assert isinstance(small.block, C2f)
    first = small.block.cv1[0]
    assert isinstance(first, nn.Conv2d)
    parts = first.out_channels
    assert 0 < parts < 16
    assert small.block.c == parts // 2
    chunked = small(IMAGE)
    small.block.literal = True
    for one, other in zip(small(IMAGE), chunked, strict=True):
        assert torch.equal(one, other)
