"""A network with its batch in it is exported at that batch, and whatever runs the file afterwards takes that one."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

import latency
from halpiee.cli.app import program
from halpiee.deploy.onnx import export_onnx
from halpiee.errors import UsageError
from latency.backends.onnxruntime.model import read_metadata


def told(verb: str, *options: object) -> Result:
    shown = CliRunner().invoke(program, [verb, *map(str, options)])
    assert shown.exception is None, shown.exception
    return shown


@pytest.fixture
def file(tmp_path: Path) -> Path:
    told("export", "anchored:net", "--size", "3x8x8", "--out", tmp_path / "net.onnx", "--measure")
    return tmp_path / "net.onnx"


def test_the_export_says_it_in_a_note_in_the_file_and_in_json(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    note = f"{out} takes batches of 1 only: the network has the batch of its example inputs in it"
    shown = told("export", "anchored:net", "--size", "3x8x8", "--out", out)
    assert note in " ".join(shown.output.split())
    out.unlink()
    found = json.loads(told("export", "anchored:net", "--size", "3x8x8", "--out", out, "--json").stdout)
    assert found["fixed_batch"] == 1
    assert found["batch_sizes"] == [1, 1, 1]
    assert any(text.startswith(note) for text in found["notes"])
    assert read_metadata(out)["fixed_batch"] == "1"


class Pairs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y.view(2, 4, 8, 8)


def test_a_file_of_two_images_is_timed_with_two_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "pairs.onnx"
    export_onnx(Pairs(), (torch.zeros(2, 3, 8, 8),), path)
    found = json.loads(told("bench", path, "--rounds", 9, "--json").stdout)
    assert found["batches"] == [2]
    assert found["files"][0]["batch"] == 2
    assert "--batch 2: a file that is named takes no other" in found["notes"]
    refused = CliRunner().invoke(program, ["bench", str(path), "--batch", "8"])
    assert isinstance(refused.exception, UsageError)
    assert "takes batch 2 only; use --batch 2" in str(refused.exception)
    assert latency.measure(path).median_us > 0


def test_a_measured_file_says_the_batch_that_it_was_measured_with(file: Path) -> None:
    assert read_metadata(file)["batch"] == "1"
    dims = onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims] == [1, 3, 8, 8]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_module_with_its_batch_in_it_is_measured_at_that_batch(batch: int) -> None:
    class Kept(Pairs):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(x)
            return y.view(batch, 4, 8, 8)

    assert latency.measure(Kept(), (torch.zeros(batch, 3, 8, 8),), rounds=9).median_us > 0


def test_a_module_that_takes_other_things_than_images_is_measured() -> None:
    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor, t: Tensor, double: bool) -> dict[str, object]:
            return {"loss": None, "y": self.conv(x) * t * (2 if double else 1)}

    inputs = (torch.zeros(2, 3, 8, 8), torch.tensor(3.0), True)
    assert latency.measure(Step(), inputs, rounds=9).median_us > 0


def test_a_module_of_bfloat16_is_refused_on_a_runtime_without_such_kernels() -> None:
    with pytest.raises(
        UsageError, match=r"Pairs in bfloat16 .* measure model\.float\(\) with inputs of float32"
    ):
        latency.measure(Pairs().bfloat16(), (torch.zeros(2, 3, 8, 8, dtype=torch.bfloat16),))
