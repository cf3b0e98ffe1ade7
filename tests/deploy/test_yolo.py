"""Networks of Ultralytics, half of their units removed, become ONNX files that answer as PyTorch does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from halpiee.deploy.onnx import export_onnx
from halpiee.structure import shrink, trace
from tools.models_table import YOLO, random_keep, uneven


@pytest.mark.slow  # exports nine networks; skipped without the extra `yolo`
@pytest.mark.parametrize("name", YOLO)
def test_a_half_of_each_network_exports_and_is_that_of_pytorch(name: str, tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    model = uneven(ultralytics.YOLO(f"{name}.yaml").model.eval())
    size = 224 if name.endswith("-cls") else 320
    example = (torch.rand(1, 3, size, size),)
    structure = trace(model, example)
    compact = shrink(model, structure, random_keep(structure, 0, 0.5)).eval()
    done = export_onnx(compact, example, tmp_path / "half.onnx")
    assert done.rel_l2 < 1e-5
    # anchors are made for the first images: a detector's file holds their batch, and says so
    assert done.fixed_batch == (None if name.endswith("-cls") else 1)
    whole, half = (sum(p.numel() for p in one.parameters()) for one in (model, compact))
    assert half < 0.5 * whole
