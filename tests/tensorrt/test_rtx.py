"""Building with the real library, TensorRT for RTX, which needs no GPU; skipped where it is not installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import halpiee
import latency
from halpiee.cli.app import program
from halpiee.deploy.calibrate import random_counts
from halpiee.deploy.tensorrt import Batches, build_portable, prove_engine
from halpiee.structure.shrink import keep_first
from latency.backends import BACKENDS, way_of
from latency.backends.onnxruntime.model import exported, to_onnx
from latency.backends.tensorrt.builder import Builder, Settings, capabilities_of
from latency.backends.tensorrt.engine import check_library, facts_of, write_engine
from latency.backends.tensorrt.ops import KINDS, OpNetwork
from latency.errors import HalpieeError, UnsupportedOpError, UsageError
from latency.op import OPS, Op

trt = pytest.importorskip(
    "tensorrt_rtx", reason="TensorRT for RTX is not installed: pip install 'halpiee[rtx]'"
)

GPU = 86


@pytest.fixture(scope="module")
def builder() -> Builder:
    return Builder(Settings(level=0, capabilities=(GPU,)), trt=trt)


def built(builder: Builder, op: Op, *, native: bool = True) -> tuple[tuple[int, ...], bytes]:
    """Returns the shape of an op's output, as the library infers it, and the engine."""
    network = builder.network()
    OpNetwork(trt, network, native=native).add(op)
    return tuple(network.get_output(0).shape), builder.build(network)


def one(kind: str, dtype: str) -> Op:
    window = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1)} if OPS[kind].window else {}
    places = {} if OPS[kind].rows else {"h": 6, "w": 6}
    return Op(kind=kind, c_in=8, c_out=8, dtype=dtype, **places, **window)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_builds_in_every_precision(builder: Builder, kind: str, dtype: str) -> None:
    if (kind, dtype) == ("conv_transpose", "bfloat16"):  # the library cannot infer its type
        with pytest.raises(UnsupportedOpError, match=r"could not: (?!.*cudaError)"):
            built(builder, one(kind, dtype))
        return
    assert built(builder, one(kind, dtype))[1]


@pytest.mark.parametrize(
    "tail", [("relu",), ("batch_norm", "silu", "add", "hardswish"), ("add", "gelu"), ("relu6",)]
)
def test_tails_build_behind_a_convolution_and_a_linear_layer(builder: Builder, tail: tuple[str, ...]) -> None:
    for kind in ("conv", "linear"):
        op = one(kind, "float16")
        assert built(builder, Op.from_key({**op.key(), "tail": tail}))[1]


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", [(13, 17), (32, 9)])
def test_outputs_of_odd_geometries_have_the_shapes_that_pytorch_gives(
    builder: Builder, kernel: int, stride: int, dilation: int, size: tuple[int, int]
) -> None:
    shape: dict[str, Any] = {
        "kernel": (kernel, kernel), "stride": (stride, stride), "padding": (kernel // 2,) * 2,
        "dilation": (dilation, dilation), "h": size[0], "w": size[1],
    }  # fmt: skip
    for kind, layer in (("conv", nn.Conv2d), ("conv_transpose", nn.ConvTranspose2d)):
        network = builder.network()
        OpNetwork(trt, network).add(Op(kind=kind, c_in=4, c_out=6, **shape))
        made = layer(4, 6, kernel, stride, kernel // 2, dilation=dilation)
        assert tuple(network.get_output(0).shape) == tuple(made(torch.zeros(1, 4, *size)).shape)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pruned network, half of every group removed, as ONNX."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip
    example = (torch.randn(1, 3, 16, 16),)
    structure = halpiee.trace(model, example)
    keep = {g.name: torch.arange(g.size) < g.size // 2 for g in structure.groups if g.prunable}
    path = tmp_path_factory.mktemp("rtx") / "small.onnx"
    path.write_bytes(to_onnx(halpiee.shrink(model, structure, keep), example).SerializeToString())
    return path


def test_a_pruned_network_is_built_for_two_gpus_and_is_unproved(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "net.engine"
    done = build_portable(small, path, (86, 89), batches=Batches(1, 8, 32), settings=Settings())
    facts = facts_of(path)
    assert facts is not None
    assert done.rel_l2 is None
    assert (facts["library"], facts["capabilities"], facts["proved"]) == ("tensorrt-rtx", [86, 89], None)
    assert facts["batches"] == {"low": 1, "usual": 8, "high": 32}
    assert path.stat().st_size == done.size_bytes > 10_000
    assert way_of(".engine", None, path) == ("tensorrt-rtx", BACKENDS["tensorrt-rtx"].ways[0])


def test_half_precision_lies_in_the_graph(tmp_path: Path, builder: Builder) -> None:
    path = tmp_path / "half.onnx"
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    path.write_bytes(exported(model, (torch.randn(1, 3, 8, 8),), dtype="float16").SerializeToString())
    network = builder.parsed(path)
    assert network.get_input(0).dtype == trt.DataType.HALF
    assert builder.build(network, shapes={"input": [(1, 3, 8, 8)] * 3})


def export(*words: object) -> Any:
    return CliRunner().invoke(program, ["export", *map(str, words)])


def test_export_writes_the_engine_without_a_gpu_and_says_what_is_unproved(
    small: Path, tmp_path: Path
) -> None:
    out = tmp_path / "net.engine"
    done = export(small, "--format", "tensorrt-rtx", "--compute-capability", "86,89", "--out", out, "--json")
    assert done.exception is None, done.exception
    told = json.loads(done.stdout)
    assert (told["rel_l2"], told["device"]) == (None, "compute capability 86, 89")
    with pytest.raises(HalpieeError, match=r"a GPU was asked for"):
        prove_engine(out, small)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ("--compute-capability", "90"),
            "not for 90 (H100 and other datacenter GPUs: build with --format tensorrt",
        ),
        (("--compute-capability", "8x"), "builds for 75, 80, 86, 89, 120, 121, not for 8x"),
        ((), "add --compute-capability, such as 86,89"),
        (("--compute-capability", "86", "--dry-run"), "a trtexec line, which is TensorRT's"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_sentence(
    small: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    done = export(small, "--format", "tensorrt-rtx", *words, "--out", tmp_path / "net.engine")
    assert isinstance(done.exception, UsageError)
    assert said in str(done.exception)
    assert not (tmp_path / "net.engine").exists()


def test_capabilities_are_read_with_or_without_a_point_and_told_once() -> None:
    assert capabilities_of("8.9, 86,86") == (86, 89)


def test_an_engine_of_the_other_library_or_for_other_gpus_is_refused_before_it_is_loaded(
    tmp_path: Path,
) -> None:
    path = tmp_path / "net.engine"
    write_engine(path, b"plan", {"library": "tensorrt"})
    with pytest.raises(
        UsageError, match=r"is an engine of TensorRT, and TensorRT for RTX was to load it; name the"
    ):
        check_library(path, trt, {})
    write_engine(path, b"plan", {"library": "tensorrt-rtx", "capabilities": [86, 89]})
    with pytest.raises(
        UsageError, match=r"for compute capabilities 86, 89, and RTX 5090 has 120; export it again"
    ):
        check_library(path, trt, {"device": "RTX 5090", "capability": "12.0"})
    check_library(path, trt, {"device": "RTX 4090", "capability": "8.9"})


def test_a_file_that_is_no_model_is_refused_with_the_parsers_words(builder: Builder, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    with pytest.raises(UsageError, match=r"cannot read it: (?!no reason)"):
        builder.parsed(tmp_path / "junk.onnx")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_networks_of_a_calibration_build_at_the_level_of_their_profile(
    tmp_path: Path, dtype: str
) -> None:
    """What training times: the dense network and shrunk ones of candidate widths, in the profile's precision."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    ).eval()  # fmt: skip
    example = (torch.randn(2, 3, 16, 16),)
    structure = halpiee.trace(model, example)
    cells = [
        {**t.op.with_channels(i, o).key(), "us": 1.0 + 0.1 * i * o}
        for t in structure.ops
        for i, o in {(1, 1), (t.op.c_in, t.op.c_out), (1, t.op.c_out), (t.op.c_in, 1)}
    ]
    cost = halpiee.LatencyCost(structure, latency.Profile(latency.environment(), cells))
    builder = Builder(Settings(level=2, capabilities=(GPU,)), trt=trt)
    sizes = []
    for counts in ({}, *random_counts(cost, 3, seed=0)):
        network = halpiee.shrink(model, structure, keep_first(structure, counts)) if counts else model
        path = tmp_path / "network.onnx"
        path.write_bytes(exported(network, example, dtype=dtype).SerializeToString())
        parsed = builder.parsed(path)
        assert tuple(parsed.get_output(0).shape)[1:] == (10,)
        sizes.append(len(builder.build(parsed, shapes={"input": [(2, 3, 16, 16)] * 3})))
    assert min(sizes) > 10_000
