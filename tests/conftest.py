"""What makes all tests cheaper and changes none."""

from __future__ import annotations

import copy
import functools
import gc
from collections.abc import Callable, Iterator
from typing import Any

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


@pytest.fixture
def charts_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a chart of the same series be drawn once: hundreds of reports differ in one of eight charts."""
    from halpiee.report import plots

    draw, drawn = plots._svg, dict[Any, str]()
    Form = Callable[[float], str]

    def once(series: Any, x_label: str, form: Form, x_form: Form, bands: Any, whole_x: bool) -> str:
        asked = (repr((series, bands)), x_label, form.__code__, x_form.__code__, whole_x)
        if asked not in drawn:
            drawn[asked] = draw(series, x_label, form, x_form, bands, whole_x)
        return drawn[asked]

    monkeypatch.setattr(plots, "_svg", once)
