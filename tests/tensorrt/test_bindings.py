"""The contracts and the code against the real bindings: names, arguments, types, enums; nothing is computed.

``TENSORRT_WHEELS`` names a folder with the bindings' wheels (``pip download --no-deps tensorrt-cu12-bindings==10.3.0
tensorrt-cu13-bindings==11.0.0.114``); a C++ compiler is needed as well.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from latency.backends.tensorrt.ops import KINDS

from .gpu import CUDA_ENUMS, CUDA_PYTHON

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the empty libraries with")
@pytest.mark.skipif(
    platform.machine() != "x86_64", reason="the empty libraries follow the x86-64 calling convention"
)
@pytest.mark.parametrize("major", [10, 11])
def test_the_real_bindings_accept_every_call_of_ops_and_of_engines(tmp_path: Path, major: int) -> None:
    wheels = sorted(
        Path(os.environ.get("TENSORRT_WHEELS", "nowhere")).glob(f"tensorrt*bindings-{major}.*.whl")
    )
    if not wheels:
        pytest.skip(f"no wheel of TensorRT {major}'s bindings in the folder TENSORRT_WHEELS")
    zipfile.ZipFile(wheels[-1]).extractall(tmp_path)
    command = [sys.executable, "-m", "tests.tensorrt.bindings", str(tmp_path), str(major)]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["version"].startswith(f"{major}.")
    assert (found["numbers"], found["missing"]) == ([], [])
    assert found["ran"] == [*KINDS, "tf32", "fp16", "bf16", "shapes", "parser"]


def test_cuda_python_has_every_function_with_as_many_arguments() -> None:
    command = """
import json, sys
from cuda.bindings import driver
functions, enums = json.load(sys.stdin)
for name, count in functions.items():
    line = getattr(driver, name).__doc__.splitlines()[0]
    inside = line[line.index("(") + 1 : line.rindex(")")]
    assert len([p for p in inside.split(",") if p.strip()]) == count, line
for name, members in enums.items():
    assert set(members) <= set(getattr(driver, name).__members__), name
"""
    probe = [sys.executable, "-c", "from cuda.bindings import driver"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("cuda-python is not installed")
    told = json.dumps([CUDA_PYTHON, CUDA_ENUMS])
    shown = subprocess.run(
        [sys.executable, "-c", command], input=told, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
