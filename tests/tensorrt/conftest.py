"""TensorRT of both majors and both CUDA libraries, imagined, in place of the real ones."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from .gpu import Gpu, cuda_python_modules, pycuda_modules
from .standin import Behaviour, tensorrt


@pytest.fixture(params=[10, 11])
def major(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(params=["cuda-python", "pycuda"])
def library(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def machine(major: int, library: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine with TensorRT and one of the libraries: ``.gpu``, ``.told``, ``.trt``, ``.library``."""
    return installed(major, library, monkeypatch)


def installed(major: int, library: str, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    gpu = Gpu()
    told = Behaviour(gpu)
    module = tensorrt(major, told)
    libraries = {"pycuda": pycuda_modules(gpu), "cuda-python": cuda_python_modules(gpu)}
    for name, modules in libraries.items():
        for path, content in modules.items():
            monkeypatch.setitem(sys.modules, path, content if name == library else None)
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    return SimpleNamespace(gpu=gpu, told=told, trt=module, library=library)
