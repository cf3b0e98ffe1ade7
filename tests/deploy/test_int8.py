"""Files in int8: scales from the calibration images, what is computed by hand, accuracy on a test set."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from halpiee.deploy.int8 import FileNetwork, export_int8
from halpiee.errors import UsageError
from latency.backends.onnxruntime.model import read_metadata


def batches(count: int = 4) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        x = torch.rand(8, 1, 4, 4, generator=generator)
        x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])  # the range is [0, 1]
        yield x


def test_the_scale_is_the_range_of_the_calibration_images_over_255(tmp_path: Path) -> None:
    conv = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(conv.weight, 1.0)
    report = export_int8(
        nn.Sequential(conv, nn.ReLU()), (torch.zeros(1, 1, 4, 4),), tmp_path / "i.onnx", batches()
    )
    assert report.images == 32
    # uint8 input in steps of 1/255, an int8 weight of 127 steps of 1/127, uint8 output in steps of 1/255
    x = (torch.arange(16) * 17 + 0.4).view(1, 1, 4, 4) / 255
    found = FileNetwork(report.path)(x)
    assert isinstance(found, Tensor)
    np.testing.assert_allclose(
        found.numpy(), (torch.arange(16) * 17).view(1, 1, 4, 4).numpy() / 255, atol=1e-6
    )
    beyond = FileNetwork(report.path)(torch.full((1, 1, 4, 4), 3.0))
    np.testing.assert_allclose(beyond.numpy(), 1.0, atol=1e-6)


def test_the_file_says_that_it_is_int8_and_keeps_the_names(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 8, 3)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"map": self.conv(image).relu()}

    report = export_int8(
        Named(), (torch.zeros(1, 1, 4, 4),), tmp_path / "n.onnx", batches(), metadata={"model": "mine"}
    )
    facts = read_metadata(report.path)
    assert (facts["precision"], facts["calibration_images"], facts["model"]) == ("int8", "32", "mine")
    proto = onnx.load(str(report.path))
    assert [v.name for v in proto.graph.input] == ["image"]
    assert [v.name for v in proto.graph.output] == ["map"]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert report.rel_l2 < 0.02  # rounding to 255 steps
    assert report.fp32.rel_l2 < 1e-5
    assert not list(tmp_path.glob("*fp32*"))


def test_without_images_no_file_is_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 was asked without calibration images"):
        export_int8(nn.Conv2d(1, 2, 1), (torch.zeros(1, 1, 4, 4),), tmp_path / "x.onnx", [])
    assert not (tmp_path / "x.onnx").exists()
