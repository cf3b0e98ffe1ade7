"""A file's inputs and outputs are called as in the network, and it takes any height and width where that is asked."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from halpiee.deploy.onnx import export_onnx, onnx_outputs
from halpiee.errors import UsageError
from latency.backends.onnxruntime.model import read_metadata


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Depth(nn.Module):
    """A small U-Net of an image and a depth map; a dict comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.down, self.up = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ConvTranspose2d(6, 4, 2, stride=2)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        x = (self.a(image) + self.b(depth)).relu()
        y = self.up(self.down(x).relu())
        return {"flow": x + y, "score": y.mean((2, 3))}


def ends(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(str(path)).graph
    return [value.name for value in graph.input], [value.name for value in graph.output]


def dims(value: onnx.ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]


def test_arguments_and_keys_are_the_names_of_the_file(tmp_path: Path) -> None:
    example = drawn(1, 3, 8, 8), drawn(1, 1, 8, 8, seed=4)
    report = export_onnx(Depth(), example, tmp_path / "depth.onnx")
    assert ends(report.path) == (["image", "depth"], ["flow", "score"])
    assert (report.inputs, report.outputs) == (("image", "depth"), ("flow", "score"))
    assert read_metadata(report.path)["input_shapes"] == "image=3x8x8 depth=1x8x8"
    with torch.no_grad():
        expected = Depth()(*example)
    found = onnx_outputs(report.path)(example)
    np.testing.assert_allclose(found[0], expected["flow"].numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[1], expected["score"].numpy(), rtol=1e-4, atol=1e-5)


def test_names_can_be_given(tmp_path: Path) -> None:
    example = drawn(1, 3, 8, 8), drawn(1, 1, 8, 8)
    names = {"input_names": ["rgb", "d"], "output_names": ["image", "s"]}
    report = export_onnx(Depth(), example, tmp_path / "depth.onnx", **names)  # type: ignore[arg-type]
    assert ends(report.path) == (["rgb", "d"], ["image", "s"])


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            {"input_names": ["rgb"]},
            r"1 input names were given \(rgb\); the network has 2 inputs \(image, depth\)",
        ),
        (
            {"output_names": ["a", "a"]},
            r"'a' was given as the name of an output, and is empty or has been given",
        ),
        ({"output_names": ["a", "image"]}, r"'image' was given as the name of an output"),
        ({"input_names": ["", "b"]}, r"'' was given as the name of an input"),
    ],
)
def test_names_that_do_not_fit_are_refused(tmp_path: Path, names: dict[str, list[str]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        export_onnx(Depth(), (drawn(1, 3, 8, 8), drawn(1, 1, 8, 8)), tmp_path / "x.onnx", **names)  # type: ignore[arg-type]
    assert not (tmp_path / "x.onnx").exists()


class Odd(nn.Module):
    """Everything that makes names collide: a weight and an output called as the input, an input passed on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, 4, 1)
        self.images = nn.Parameter(torch.tensor(2.0))

    def forward(self, images: list[Tensor], scale: float = 1.0) -> dict[str, object]:
        y = self.conv(images[0]) * self.images
        return {
            "images_0": images[0],
            "maps": [y, y + images[1].mean()],
            "sum": {"all": y.sum(1)},
            "again": y,
        }


def test_names_that_collide_are_told_apart_and_the_file_still_computes_the_same(tmp_path: Path) -> None:
    example = [drawn(2, 3, 4, 4), drawn(2, 3, 4, 4, seed=5)]
    report = export_onnx(Odd(), (example, 1.0), tmp_path / "odd.onnx")
    inputs = ["images_0", "images_1"]
    outputs = ["images_0_out", "maps_0", "maps_1", "sum_all", "again"]
    assert ends(report.path) == (inputs, outputs)
    onnx.checker.check_model(onnx.load(str(report.path)), full_check=True)
    with torch.no_grad():
        y = Odd().conv(example[0]) * 2
    found = onnx_outputs(report.path)(tuple(example))
    for array, wanted in zip(found, (example[0], y, y + example[1].mean(), y.sum(1), y), strict=True):
        np.testing.assert_allclose(array, wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_a_weight_of_an_inputs_name_makes_way(tmp_path: Path) -> None:
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.x = nn.Parameter(torch.full((3, 1, 1), 2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.x * x + x.cos()

    x = drawn(2, 3, 4, 4)
    report = export_onnx(Same(), (x,), tmp_path / "same.onnx")
    assert ends(report.path) == (["x"], ["output"])
    np.testing.assert_allclose(
        onnx_outputs(report.path)((x,))[0], (2 * x + x.cos()).numpy(), rtol=1e-5, atol=1e-6
    )


def test_a_file_of_a_free_size_computes_what_pytorch_does_at_other_sizes(tmp_path: Path) -> None:
    example = drawn(1, 3, 16, 16), drawn(1, 1, 16, 16)
    report = export_onnx(Depth(), example, tmp_path / "depth.onnx", dynamic_size=True)
    graph = onnx.load(str(report.path)).graph
    assert [dims(value) for value in graph.input] == [
        ["batch", 3, "height", "width"],
        ["batch", 1, "height", "width"],
    ]
    assert report.sizes == ((16, 16), (80, 48), (48, 112))
    for size in ((16, 16), (24, 40), (10, 6)):  # two of them not tried by the export
        inputs = drawn(3, 3, *size), drawn(3, 1, *size, seed=9)
        with torch.no_grad():
            expected = Depth()(*inputs)
        flow, score = onnx_outputs(report.path)(inputs)
        assert flow.shape == (3, 4, *size)
        np.testing.assert_allclose(flow, expected["flow"].numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(score, expected["score"].numpy(), rtol=1e-4, atol=1e-5)


def test_a_network_of_one_size_is_refused_as_a_file_of_any(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fixed = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Flatten(), nn.Linear(128, 4))
    with pytest.raises(
        UsageError, match=r"runs on 8×8 and on no other size that was tried \(72×40: .*export one file"
    ):
        export_onnx(fixed, (drawn(1, 3, 8, 8),), tmp_path / "x.onnx", dynamic_size=True)
    with pytest.raises(UsageError, match=r"without an input \[N, C, H, W\]; leave it out"):
        export_onnx(nn.Linear(3, 2), (drawn(1, 3),), tmp_path / "x.onnx", dynamic_size=True)
    assert not list(tmp_path.iterdir())


def test_a_size_that_is_made_constant_by_code_is_refused(tmp_path: Path) -> None:
    class Grid(nn.Module):
        """Adds a ramp made for the first size it sees: right at any size in PyTorch, wrong in a graph of one."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            n = int(x.shape[2])
            convolved: Tensor = self.conv(x)
            return convolved + torch.tensor([float(i) for i in range(n)]).view(1, 1, n, 1)

    with pytest.raises(UsageError, match="Grid was to be exported to ONNX with a free height and width"):
        export_onnx(Grid(), (drawn(1, 3, 8, 8),), tmp_path / "x.onnx", dynamic_size=True)


def test_a_file_of_a_free_size_is_timed_at_the_size_of_its_example(tmp_path: Path) -> None:
    import latency
    from latency.backends.onnxruntime.network import network_inputs, session

    example = drawn(1, 3, 16, 16), drawn(1, 1, 16, 16)
    report = export_onnx(Depth(), example, tmp_path / "depth.onnx", dynamic_size=True)
    runtime = session(report.path)
    found = network_inputs(runtime, None, "depth", 2, None)
    assert {name: x.shape for name, x in found.items()} == {"image": (2, 3, 16, 16), "depth": (2, 1, 16, 16)}
    assert latency.measure(report.path, rounds=9, seconds=2).median_us > 0
