"""ONNX Runtime with NVIDIA's plugin for RTX GPUs: the plugin and the GPU are fakes, the runtime is real."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest
import torch

from latency.backends import way_of
from latency.backends.onnxruntime.model import to_onnx
from latency.backends.onnxruntime.network import PLUGIN, session
from latency.errors import MissingError

NAME = "NvTensorRTRTXExecutionProvider"


@pytest.fixture(scope="module")
def model() -> bytes:
    made: bytes = to_onnx(torch.nn.Conv2d(3, 4, 3), (torch.zeros(1, 3, 8, 8),)).SerializeToString()
    return made


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with the plugin: ``.gpus`` are found once the library is ``.loaded``, and ``.given`` to the options."""
    here = SimpleNamespace(gpus=2, loaded=[], given=[], error=None)
    plugin: Any = ModuleType(PLUGIN)
    plugin.get_ep_name, plugin.get_library_path = lambda: NAME, lambda: "/opt/libprovider.so"
    monkeypatch.setitem(sys.modules, PLUGIN, plugin)

    def register(name: str, path: str) -> None:
        if here.error is not None:
            raise here.error
        here.loaded.append((name, path))

    def devices() -> list[Any]:
        gpus = [SimpleNamespace(ep_name=NAME, number=i) for i in range(here.gpus if here.loaded else 0)]
        return [SimpleNamespace(ep_name="CPUExecutionProvider", number=0), *gpus]

    monkeypatch.setattr(ort, "register_execution_provider_library", register)
    monkeypatch.setattr(ort, "get_ep_devices", devices)
    monkeypatch.setattr(
        ort.SessionOptions, "add_provider_for_devices", lambda options, them, more: here.given.append(them)
    )
    return here


def test_the_first_gpu_is_given_and_the_library_is_loaded_once(
    machine: SimpleNamespace, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    class Session:
        def __init__(self, source: bytes, options: Any, **how: Any) -> None:
            made.append(how["providers"])

        def get_providers(self) -> list[str]:
            return [NAME, "CPUExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    for _ in range(2):
        session(model, provider="rtx")
    assert machine.loaded == [(NAME, "/opt/libprovider.so")]
    assert [[gpu.number for gpu in gpus] for gpus in machine.given] == [[0], [0]]
    assert made == [None, None]  # names beside the options' own are refused


def test_a_runtime_that_falls_back_to_the_cpu_is_refused(machine: SimpleNamespace, model: bytes) -> None:
    with pytest.raises(MissingError, match=f"could not load {NAME}: it would run on CPUExecutionProvider"):
        session(model, provider="rtx")  # the fake gives the real runtime no provider


def test_a_library_without_its_driver_is_said_in_one_sentence(machine: SimpleNamespace, model: bytes) -> None:
    machine.error = RuntimeError("Failed to load library libprovider.so: libcuda.so.1: cannot open\nmore")
    with pytest.raises(
        MissingError, match=r"cannot be loaded \(Failed to load .* cannot open\); run nvidia-smi"
    ):
        session(model, provider="rtx")


def test_a_machine_without_a_gpu_and_one_without_the_plugin_are_said(
    machine: SimpleNamespace, model: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.gpus = 0
    with pytest.raises(MissingError, match="it finds no GPU; run nvidia-smi"):
        session(model, provider="rtx")
    monkeypatch.setitem(sys.modules, PLUGIN, None)
    with pytest.raises(MissingError, match="pip install onnxruntime-ep-nv-tensorrt-rtx on a machine"):
        session(model, provider="rtx")


def test_bench_names_it_beside_the_other_ways_of_an_onnx_file(tmp_path: Path) -> None:
    found = way_of(".onnx", "ort-rtx", tmp_path / "net.onnx")
    assert found is not None
    assert (found[0], dict(found[1].settings)) == ("onnxruntime", {"provider": "rtx"})
