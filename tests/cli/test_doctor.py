"""What doctor says of NVIDIA's libraries: absent, there, there but broken."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path
from typing import Any

import pytest

from halpiee.cli.doctor import examine

PACKAGES = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt-rtx"),
    "pycuda": ("pycuda", "pycuda"),
    "cuda-python": ("cuda", "cuda-python"),
}
"""What doctor calls them → (package, distribution)."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of all that is installed, where packages may be put; none of these four is imported yet."""
    for package, _ in PACKAGES.values():
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def put(place: Path, what: str, source: str) -> None:
    """Installs a package of version 9.9 whose modules hold this source."""
    package, distribution = PACKAGES[what]
    for folder in (package, f"{package}/bindings") if package == "cuda" else (package,):
        (place / folder).mkdir()
        (place / folder / "__init__.py").write_text(source if package.startswith("tensorrt") else "")
    inner = place / package / ("bindings/driver.py" if package == "cuda" else "driver.py")
    inner.write_text(source)
    info = place / f"{distribution.replace('-', '_')}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.9\n")


def said() -> dict[str, tuple[str, str]]:
    return {f.what: (f.state, f.found) for f in examine()}


def no_driver(*_: Any, **__: Any) -> Any:
    raise OSError("libcuda.so.1: cannot open shared object file")


class Driver:
    """A libcuda for CUDA 13.0."""

    def __init__(self, name: str, *_: Any, **__: Any) -> None:
        assert "cuda" in name

    def cuDriverGetVersion(self, number: Any) -> int:
        number._obj.value = 13000
        return 0


def test_libraries_that_are_there_are_said_with_their_versions(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in PACKAGES:
        put(place, what, "__version__ = '9.9'\n")
    monkeypatch.setattr(ctypes, "CDLL", Driver)
    found = said()
    assert {what: found[what] for what in PACKAGES if what != "tensorrt_rtx"} == dict.fromkeys(
        ("tensorrt", "pycuda", "cuda-python"), ("ok", "9.9")
    )
    assert found["tensorrt_rtx"] == ("ok", "9.9; builds for 75, 80, 86, 89, 120, 121 without a GPU")
    assert found["NVIDIA driver"] == ("ok", "libcuda for CUDA 13.0")


def test_libraries_that_cannot_be_loaded_are_said_with_the_reason(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for what in PACKAGES:
        put(place, what, "raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    monkeypatch.setattr(ctypes, "CDLL", no_driver)
    found = said()
    for what in ("tensorrt", "tensorrt_rtx"):
        assert found[what][0] == "broken"
        assert "libcuda.so.1: cannot open shared object file" in found[what][1]
    for what in ("pycuda", "cuda-python"):
        assert found[what] == (
            "note",
            "9.9, which cannot be loaded: libcuda.so.1: cannot open shared object file",
        )
    assert found["NVIDIA driver"] == (
        "note",
        "no libcuda: this machine has no NVIDIA driver, engines cannot run",
    )


def test_what_is_not_installed_is_a_note(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata
    import importlib.util

    find, version = importlib.util.find_spec, importlib.metadata.version
    hidden = {name for pair in PACKAGES.values() for name in pair}
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name in hidden else find(name, *a)
    )

    def asked(name: str) -> str:
        if name in hidden:
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", asked)
    assert {said()[what] for what in PACKAGES} == {("note", "not installed")}
