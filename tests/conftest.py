"""What makes all tests cheaper and changes none."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Iterator

import pytest


def pytest_collection_finish() -> None:
    """Keeps the collector from walking through what was imported: that stays until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def key_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets seals be made with a key of the tests, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """Lets torch.onnx read the sources of its 500 operators once: at every export it is half of a small one's time."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):  # a version of torch that keeps them elsewhere: only slower
        yield
        return

    def registry(*opset: int, **named: int) -> ONNXRegistry:
        found = copy.copy(read(*opset, **named))
        found.functions = {name: list(known) for name, known in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))
        yield
