"""Ops as engines, on the stand-in: shapes by hand, times by closed form, faults as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import latency
from latency.backends.tensorrt import TensorRT
from latency.backends.tensorrt.ops import KINDS, from_float, to_float
from latency.errors import MissingError, UnsupportedOpError, UsageError
from latency.op import Op

from .gpu import GRAPH_US, LAUNCH_US
from .running import LAYER_US


def conv(c_in: int = 8, c_out: int = 8, **fields: Any) -> Op:
    given = {"h": 8, "w": 8, "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return Op(c_in=c_in, c_out=c_out, **{"kind": "conv", **given, **fields})


def output_of(backend: TensorRT) -> tuple[int, ...]:
    return next(b.shape for b in backend._built[0].bindings if not b.is_input)


SIZES = {
    "conv": (2, 8, 3, 3), "max_pool": (2, 8, 3, 3), "avg_pool": (2, 8, 3, 3), "global_avg_pool": (2, 8, 1, 1),
    "linear": (2, 8), "layer_norm": (2, 8), "conv_transpose": (2, 8, 12, 12), "upsample": (2, 8, 12, 12),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_shape_it_should(machine: SimpleNamespace, kind: str) -> None:
    windowed = kind in ("conv", "conv_transpose", "max_pool", "avg_pool")
    shape: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2)} if windowed else {}
    positions: dict[str, Any] = {} if kind in ("linear", "layer_norm") else {"h": 6, "w": 6}
    backend = TensorRT()
    backend.build(Op(kind=kind, c_in=8, c_out=8, batch=2, **positions, **shape))
    assert output_of(backend) == SIZES.get(kind, (2, 8, 6, 6))


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (conv(4, 8, stride=(2, 2)), (1, 8, 4, 4)),
        (conv(6, 6, groups=6), (1, 6, 8, 8)),
        (conv(4, 8, w=1, kernel=(3,), stride=(1,), padding=(1,), dilation=(1,)), (1, 8, 8, 1)),
        (Op(kind="linear", c_in=5, c_out=7, h=9, batch=2, tail=("add", "gelu")), (2, 9, 7)),
        (conv(4, 8, tail=("batch_norm", "silu", "add", "hardswish")), (1, 8, 8, 8)),
        # (8 - 1)·2 - 2·1 + 2·(3 - 1) + 1
        (conv(4, 8, kind="conv_transpose", stride=(2, 2), dilation=(2, 2), tail=("relu",)), (1, 8, 17, 17)),
        (conv(6, 6, kind="conv_transpose", groups=6), (1, 6, 8, 8)),
        (Op(kind="layer_norm", c_in=5, c_out=5, h=9, batch=2, tail=("add",)), (2, 9, 5)),
        (Op(kind="upsample", c_in=5, c_out=5, h=3, w=4, stride=(3, 2)), (1, 5, 9, 8)),
    ],
)
def test_strides_groups_tokens_and_tails(machine: SimpleNamespace, op: Op, shape: tuple[int, ...]) -> None:
    backend = TensorRT()
    backend.build(op)
    assert output_of(backend) == shape


def test_the_slope_is_the_op_without_its_launch_where_there_are_graphs(machine: SimpleNamespace) -> None:
    backend = TensorRT()
    built = backend.build(conv(tail=("relu",)))
    assert built.minus is not None
    assert built.tactic is not None
    clock = backend.clock()
    long, short = clock.time_us(built.run)[0], clock.time_us(built.minus)[0]
    two_layers = 2 * LAYER_US
    graphs = machine.library == "cuda-python"
    assert built.method == ("graph slope" if graphs else "enqueue slope")
    assert (long - short) / built.copies == pytest.approx(two_layers + (0.0 if graphs else LAUNCH_US))
    assert built.tactic.endswith(f"(profiler {two_layers:.1f} µs)")
    assert "conv.1 [kernel_of_b0.conv.1]" in built.tactic


def test_a_network_is_timed_on_the_stream_that_it_runs_on(machine: SimpleNamespace, tmp_path: Path) -> None:
    plan = {
        "version": machine.trt.__version__,
        "gpu": machine.gpu.name,
        "layers": ["a", "b", "c"],
        "io": [["x", "INPUT", "FLOAT", [1, 3]], ["y", "OUTPUT", "FLOAT", [1, 2]]],
        "onnx": None,
    }
    path = tmp_path / "net.engine"
    path.write_bytes(json.dumps(plan).encode())
    backend = TensorRT()
    entry = GRAPH_US if machine.library == "cuda-python" else LAUNCH_US
    for forwards in (1, 4):
        with backend.network(path, trust=True, forwards=forwards) as runner:
            assert runner.cuda.stream != backend.cuda.stream
            found = latency.compare({"net": runner}, backend=backend, rounds=9)["net"]
        launches = 1 if machine.library == "cuda-python" else forwards
        assert found.median_us == pytest.approx(launches * entry + forwards * 3 * LAYER_US)
    assert not machine.gpu.memory


def test_a_network_that_does_not_fit_gives_back_what_it_took(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    # Rows of 30,000 and 300 numbers: 120 kB fit into 121 kB, 1.2 kB more do not.
    plan = {
        "version": machine.trt.__version__,
        "gpu": machine.gpu.name,
        "layers": ["a"],
        "io": [["x", "INPUT", "FLOAT", [1, 30_000]], ["y", "OUTPUT", "FLOAT", [1, 300]]],
        "onnx": None,
    }
    path = tmp_path / "net.engine"
    path.write_bytes(json.dumps(plan).encode())
    machine.gpu.capacity_bytes = 121_000
    runner = TensorRT().network(path, trust=True)
    with pytest.raises(MissingError, match="out of memory"):
        runner.__enter__()
    assert not machine.gpu.memory
    machine.gpu.capacity_bytes = 122_000
    with runner:
        assert len(machine.gpu.memory) == 2
    assert not machine.gpu.memory


def test_branches_of_one_build_have_a_time_each(machine: SimpleNamespace) -> None:
    backend = TensorRT(branches=3)
    ops = [conv(), conv(4, 8, tail=("relu",)), conv(4, 8, tail=("add", "relu"))]
    backend.prepare(ops)
    clock = backend.clock()
    times = [clock.time_us(backend.build(op).run)[0] for op in ops]
    assert times == pytest.approx([LAYER_US, 2 * LAYER_US, 3 * LAYER_US])


def test_a_sweep_prices_the_op(machine: SimpleNamespace, tmp_path: Path) -> None:
    op = conv(8, 8)
    profile = latency.sweep([op], backend=TensorRT(), path=tmp_path / "p.jsonl", every=4)
    assert profile.environment["device"] == "Imagined GPU"
    assert profile.environment["tensorrt"] == machine.trt.__version__
    graphs = machine.library == "cuda-python"
    assert float(profile.table(op).lookup(8, 8)) == pytest.approx(LAYER_US + (0 if graphs else LAUNCH_US))


def test_the_timing_cache_is_kept_between_runs_and_a_foreign_one_replaced(
    machine: SimpleNamespace, tmp_path: Path
) -> None:
    path = tmp_path / "p.timing"
    first = TensorRT(timing_cache=path)
    first.build(conv())
    first.builder.cache.save()
    kept = path.read_bytes()
    assert kept.startswith(machine.trt.__version__.encode())
    del machine.told.caches[:]
    TensorRT(timing_cache=path).build(conv())
    assert machine.told.caches[0] == kept
    path.write_bytes(b"9.9.9;1")
    del machine.told.caches[:]
    TensorRT(timing_cache=path).build(conv())
    assert machine.told.caches == [b"9.9.9;1", b""]


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"), [("fp32", "float32", False), ("tf32", "float32", True)]
)
def test_tf32_is_used_where_it_is_asked_for(
    machine: SimpleNamespace, precision: str, dtype: str, tf32: bool
) -> None:
    TensorRT(precision=precision).build(conv(dtype=dtype))
    assert machine.told.flags["TF32"] is tf32


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_half_precisions_lie_in_the_graph(machine: SimpleNamespace, precision: str, dtype: str) -> None:
    backend = TensorRT(precision=precision)
    backend.build(conv(dtype=dtype))
    assert {b.dtype for b in backend._built[0].bindings} == {{"fp16": "HALF", "bf16": "BF16"}[precision]}
    assert "FP16" not in machine.told.flags


def test_a_build_that_returns_none_says_why(machine: SimpleNamespace) -> None:
    machine.told.fails = ["no implementation for node conv", "no implementation for node conv"]
    with pytest.raises(UnsupportedOpError, match=r"conv 3×3 .* could not: no implementation for node conv"):
        TensorRT().build(conv())


def test_a_build_that_fails_with_free_formats_is_tried_plainly(machine: SimpleNamespace) -> None:
    machine.told.fails = ["no implementation"]
    assert TensorRT().build(conv()).method.endswith("slope/linear")


def test_a_cell_that_cannot_be_built_is_written_down(machine: SimpleNamespace, tmp_path: Path) -> None:
    machine.told.fails = ["broken", "broken"]
    profile = latency.sweep([conv(4, 4)], backend=TensorRT(), path=tmp_path / "p.jsonl", every=4)
    assert profile.environment["not_measured"] == [
        "conv of an image 3×3 at 8×8 batch 1 4→4: conv of an image 3×3 at 8×8 batch 1 was to be built, and "
        f"TensorRT {machine.trt.__version__} could not: broken"
    ]


def test_memory_that_is_full_is_said(machine: SimpleNamespace) -> None:
    backend = TensorRT()
    machine.gpu.capacity_bytes = 1000
    with pytest.raises(MissingError, match="no more \\(out of memory\\); use a smaller batch"):
        backend.build(conv(64, 64))
    machine.told.fails = ["Requested amount of GPU memory could not be allocated"]
    with pytest.raises(MissingError, match="no memory for it"):
        backend.build(conv())


def test_the_memory_of_an_op_is_given_back(machine: SimpleNamespace) -> None:
    backend = TensorRT()
    for width in range(4, 20):
        backend.build(conv(4, width))
    assert len(machine.gpu.memory) == 2


def test_the_primary_context_is_used(machine: SimpleNamespace) -> None:
    TensorRT()
    assert machine.gpu.contexts == ["primary"]


@pytest.mark.parametrize(
    ("kind", "fields"),
    [("softmax", {}), ("conv", {"kernel": (3, 3, 3)}), ("max_pool", {"kernel": (2, 2, 2)})],
)
def test_what_is_not_built_is_refused(machine: SimpleNamespace, kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedOpError, match="leave it out of the sweep"):
        TensorRT().build(Op(kind=kind, c_in=4, c_out=4, h=8, w=8, **fields))


def test_an_op_of_another_precision_is_refused(machine: SimpleNamespace) -> None:
    with pytest.raises(UnsupportedOpError, match="this backend measures fp16"):
        TensorRT(precision="fp16").build(conv())


def test_no_gpu_is_said(machine: SimpleNamespace) -> None:
    machine.gpu.devices = 0
    with pytest.raises(MissingError, match="GPU"):
        TensorRT()
    with pytest.raises(UsageError, match="'cupy' was asked for"):
        TensorRT(library="cupy")


def test_bfloat16_rounds_to_the_nearest_even() -> None:
    import numpy as np

    ulp = 2.0**-7  # of numbers from 1 to 2
    numbers = np.array([1.0, 1 + ulp / 2, 1 + 1.5 * ulp, 1 + 0.51 * ulp, -3.0], dtype=np.float32)
    assert to_float(from_float(numbers, "BF16")).tolist() == [1.0, 1.0, 1 + 2 * ulp, 1 + ulp, -3.0]


def test_without_tensorrt_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingError, match="pip install tensorrt"):
        TensorRT()


def test_the_standin_refuses_what_the_contract_does_not_have(machine: SimpleNamespace, major: int) -> None:
    trt = machine.trt
    with pytest.raises(AttributeError):
        trt.BuilderFlag.FP17  # noqa: B018
    assert hasattr(trt.BuilderFlag, "FP16") is (major == 10)
    backend = TensorRT()
    network = backend.builder.network()
    with pytest.raises(TypeError):
        network.add_input("x", trt.DataType.FLOAT, (1, 2), 3)
    with pytest.raises(TypeError):
        network.add_input("x", "float32", (1, 2))
    with pytest.raises(TypeError):
        network.add_input(nmae="x", dtype=trt.DataType.FLOAT, shape=(1, 2))
    tensor = network.add_input("x", trt.DataType.FLOAT, (1, 2))
    with pytest.raises(AttributeError):
        tensor.shap = (1, 2)
    with pytest.raises(TypeError):
        tensor.allowed_formats = 1.0


def test_engines_are_json_in_the_standin_and_name_their_version(machine: SimpleNamespace) -> None:
    backend = TensorRT()
    backend.build(conv())
    assert json.loads(backend._plan)["version"] == machine.trt.__version__
