"""The package as its users see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import latency


def test_importing_it_and_reading_a_profile_needs_neither_torch_nor_onnx(tmp_path: Path) -> None:
    code = (
        "import sys, latency; latency.Profile({}, []).save(sys.argv[1]); latency.Profile.load(sys.argv[1]);"
        "latency.sweep, latency.measure, latency.Calibration;"
        "print(sorted({'torch', 'onnx', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p")], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_public_name_is_there() -> None:
    assert [name for name in latency.__all__ if not hasattr(latency, name)] == []


def test_sweep_stays_a_function_once_its_module_is_loaded() -> None:
    import latency.sweeping

    assert callable(latency.sweep)
    assert latency.sweep is latency.sweeping.sweep
