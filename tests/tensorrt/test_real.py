"""On a real GPU with a real TensorRT: an op takes time, and an engine computes what ONNX Runtime computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from latency.backends.cuda import open_cuda
from latency.backends.tensorrt.builder import import_tensorrt
from latency.errors import MissingError

from .test_backend import conv

pytestmark = pytest.mark.tensorrt


@pytest.fixture(autouse=True)
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    try:
        import_tensorrt()
        open_cuda()
    except MissingError as missing:
        pytest.skip(str(missing))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_more_work_takes_more_time(precision: str) -> None:
    from latency.backends.tensorrt import TensorRT

    backend = TensorRT(precision=precision)
    dtype = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[precision]
    clock, times = backend.clock(), []
    for width in (64, 512):
        built = backend.build(conv(width, width, h=56, w=56, batch=8, dtype=dtype))
        assert built.minus is not None
        calls = (built.run, built.minus)
        long, short = (min(clock.time_us(call)[0] for _ in range(20)) for call in calls)
        times.append((long - short) / built.copies)
    assert 0 < times[0] < times[1]


def test_the_engine_of_a_network_computes_what_its_onnx_file_computes(tmp_path: Path) -> None:
    import torch

    from halpiee.deploy.onnx import export_onnx
    from halpiee.deploy.tensorrt import Batches, build_engine
    from halpiee.zoo import build

    model = build("resnet20").eval()
    export_onnx(model, (torch.zeros(1, 3, 32, 32),), tmp_path / "net.onnx")
    found = build_engine(tmp_path / "net.onnx", tmp_path / "net.engine", batches=Batches(1, 8, 16))
    assert found.rel_l2 is not None
    assert found.rel_l2 <= 1e-4
    assert not build_engine(tmp_path / "net.onnx", tmp_path / "net.engine", batches=Batches(1, 8, 16)).built
