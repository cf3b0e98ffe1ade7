"""What makes all tests cheaper and changes none."""

from __future__ import annotations

import copy
import gc
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest

MOST_PROCESSES = 8
"""What more would gain is lost to their starts."""

PROCESS_BYTES = 2 << 30
"""Of one process of tests, which holds torch, ONNX Runtime and the largest of torchvision's networks."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Answers ``-n auto``: a process for each core that has its memory."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(cores, MOST_PROCESSES, memory_bytes // PROCESS_BYTES))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files with most slow tests first where processes share the files, so that none ends with a long one."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    every = Counter(item.path for item in items)
    items.sort(key=lambda item: (-slow[item.path], -every[item.path], str(item.path)))


def pytest_collection_finish() -> None:
    """Keeps the collector from walking through what was imported: that stays until the end; else it comes rarely."""
    gc.set_threshold(20_000, 20, 20)
    gc.collect()
    gc.freeze()
    if "torch" in sys.modules:
        _threads.append(sys.modules["torch"].get_num_threads())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """Freezes what outlives a test in which the collector walked through everything: a fifth of the time otherwise.

    Nor do threads stay that a training has chosen: small networks in two of them take ten times as long.
    """
    yield
    if _threads and sys.modules["torch"].get_num_threads() != _threads[0]:
        sys.modules["torch"].set_num_threads(_threads[0])
    walks = gc.get_stats()[2]["collections"]
    if walks != _walks[0]:
        gc.collect()
        gc.freeze()
        _walks[0] = walks + 1


_walks = [0]
"""Full collections so far."""

_threads: list[int] = []
"""Of torch, before the first test."""


@pytest.fixture(scope="session", autouse=True)
def key_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Lets seals be made with a key of the tests, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("config")))
        yield


class Unread:
    """What torch writes in annotations of functions that it makes ten thousand times at an export."""

    def __class_getitem__(cls, _: object) -> type[Unread]:
        return cls


@pytest.fixture(scope="session", autouse=True)
def operators_read_once() -> Iterator[None]:
    """Lets torch.onnx read the sources of its 500 operators once, and at an export what is registered once.

    At every export that is three quarters of a small one's time.
    """
    if "torch" not in sys.modules:  # none of these tests exports
        yield
        return
    import torch

    export, original, read = torch.onnx.export, list[Any](), dict[tuple[Any, ...], Any]()

    def registry(*opset: Any, **named: Any) -> Any:
        asked = (*opset, *named.values())
        if asked not in read:
            read[asked] = original[0](*opset, **named)
        found = copy.copy(read[asked])
        found.functions = {name: list(known) for name, known in found.functions.items()}
        return found

    with pytest.MonkeyPatch.context() as patch:

        def exported(*given: Any, **named: Any) -> Any:
            with pytest.MonkeyPatch.context() as here:
                # a version of torch that keeps them elsewhere: only slower
                with suppress(ImportError, AttributeError):
                    from torch.onnx._internal.exporter._registration import ONNXRegistry

                    if not original:
                        original.append(ONNXRegistry.from_torchlib)
                        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(registry))
                with suppress(ImportError, AttributeError):
                    from torch._export import utils

                    utils._materialize_cpp_cia_ops()
                    here.setattr(utils, "_materialize_cpp_cia_ops", lambda: None)
                    here.setattr(torch._ops, "Callable", Unread)
                return export(*given, **named)

        patch.setattr(torch.onnx, "export", exported)
        yield


@pytest.fixture(scope="session", autouse=True)
def seeds_set_without_stacks() -> Iterator[None]:
    """Lets ``torch.manual_seed`` not write down where it is called, for the error of a GPU that never begins: ms."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("cuda", "xpu", "mtia"):
            device: Any = getattr(sys.modules.get("torch"), name, None)
            if device is not None and not device.is_available():
                patch.setattr(device, "traceback", SimpleNamespace(format_stack=list), raising=False)
        yield


@pytest.fixture
def charts_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a chart of the same series be drawn once: hundreds of reports differ in one of eight charts."""
    from halpiee.report import plots

    draw = plots._svg
    Form = Callable[[float], str]

    def written(form: Form) -> tuple[Any, str]:
        read = [cell.cell_contents for cell in form.__closure__ or ()]
        return form.__code__, repr((read, form.__defaults__, form.__kwdefaults__))

    def once(series: Any, x_label: str, form: Form, x_form: Form, bands: Any, whole_x: bool) -> str:
        asked = (repr((series, bands)), x_label, written(form), written(x_form), whole_x)
        if asked not in _drawn:
            _drawn[asked] = draw(series, x_label, form, x_form, bands, whole_x)
        return _drawn[asked]

    monkeypatch.setattr(plots, "_svg", once)


_drawn: dict[Any, str] = {}
"""Charts by all that they are drawn of."""
