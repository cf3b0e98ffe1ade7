"""The tool for a target device: its numbers, its refusals, and that it needs nothing of this package."""

from __future__ import annotations

import ast
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tools import bench_onnx

TOOL = Path(bench_onnx.__file__)


def save(path: Path, layers: int, batch: int | str = "batch") -> Path:
    """A chain of products with a 64×64 matrix."""
    weight = numpy_helper.from_array(np.eye(64, dtype=np.float32), "w")
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in itertools.pairwise(names)]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 64]) for name in "xy"]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"predicted_us": "12"})
    onnx.save(model, path)
    return path


def test_it_imports_the_standard_library_numpy_and_onnxruntime_alone() -> None:
    imported = set()
    for node in ast.walk(ast.parse(TOOL.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    assert imported - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_copied_alone_it_times_files_from_anywhere(tmp_path: Path) -> None:
    long, short = save(tmp_path / "long.onnx", 400), save(tmp_path / "short.onnx", 10)
    tool = tmp_path / "bench.py"
    tool.write_text(TOOL.read_text())
    command = [
        sys.executable,
        "-I",
        str(tool),
        str(long),
        str(short),
        "--batch",
        "4",
        "--rounds",
        "9",
        "--json",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True, timeout=120)
    found = json.loads(shown.stdout)
    first, second = found["files"]
    assert (found["clock"], found["threads"], first["n"], first["batch"]) == ("cpu", 1, 9, 4)
    assert (first["name"], first["speedup"], first["difference_shown"]) == ("long", 1.0, False)
    assert second["speedup"] > 3
    assert second["difference_shown"]
    assert second["metadata"] == {"predicted_us": "12"}
    assert second["fps"] == pytest.approx(4e6 / second["median_us"])


def test_the_interval_of_a_median_is_of_order_statistics() -> None:
    # n = 9: P(Binomial(9, ½) ≤ 1) = 10/512 ≤ 2.5 %, ≤ 2: 46/512: the 2nd and the 8th value.
    assert interval_of(9) == (5.0, 2.0, 8.0)
    # n = 30: sum of C(30, 0 … 9)/2³⁰ = 2.1 %, … 10: 4.9 %: the 10th and the 21st.
    assert sum(math.comb(30, i) for i in range(10)) / 2**30 <= 0.025
    assert interval_of(30) == (15.5, 10.0, 21.0)


def interval_of(n: int) -> tuple[float, float, float]:
    return bench_onnx.interval([float(i) for i in range(n, 0, -1)])


def test_ratios_are_taken_round_by_round() -> None:
    slow = [200.0, 220.0, 240.0, 260.0, 280.0, 300.0, 320.0, 340.0, 360.0]  # a machine that slows down
    base, half = bench_onnx.summary({"slow": slow, "half": [us / 2 for us in slow]}, batch=2)
    assert (half["speedup"], half["speedup_ci"]) == (2.0, [2.0, 2.0])
    assert (base["median_us"], base["fps"]) == (280.0, pytest.approx(2e6 / 280))
    assert (half["p90_us"], half["iqr_us"]) == (pytest.approx(172.0), pytest.approx(40.0))


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("gone.onnx",), 2, "gone.onnx was asked for, and there is no such file; check the path"),
        (("text.onnx",), 2, "ONNX Runtime refused"),
        (("fixed.onnx", "--batch", "3"), 2, "fixed.onnx takes batch 2 only"),
        (("fixed.onnx", "fixed.onnx"), 2, "name every file once"),
        (("fixed.onnx", "--batch", "0"), 2, "at least 1"),
        (("open.onnx", "--size", "9x9x9"), 2, "ONNX Runtime refused"),
        (("open.onnx", "--size", "big"), 2, "--size big is no size"),
        (("fixed.onnx", "--batch", "2", "--provider", "cuda"), 3, "--provider cuda was asked"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_a_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "fixed.onnx", 2, batch=2)
    open_model = onnx.load(save(tmp_path / "open.onnx", 2))
    open_model.graph.input[0].CopyFrom(
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", "c", "h", "w"])
    )
    del open_model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(open_model, tmp_path / "open.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    if "cuda" in options and "CUDAExecutionProvider" in __import__("onnxruntime").get_available_providers():
        pytest.skip("this installation has the CUDA provider")
    assert bench_onnx.main(list(options)) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.out == ""


def test_a_network_runs_until_its_data_is_back_and_then_so_often_as_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each takes a fifth longer in the first run after the other, then a tenth, then what it takes.
    last, since = [""], [0]

    def timed(call: Callable[[], tuple[str, float]], cpu: bool) -> float:
        name, us = call()
        since[0] = since[0] + 1 if last[0] == name else 0
        last[0] = name
        slower: float = (1.2, 1.1, 1.0)[min(since[0], 2)]
        return us * slower

    monkeypatch.setattr(bench_onnx, "timed_us", timed)
    monkeypatch.setattr(bench_onnx, "warm", lambda call, cpu: None)
    found = bench_onnx.in_turns({"a": lambda: ("a", 200.0), "b": lambda: ("b", 100.0)}, 11, 60.0, True)
    assert found == {"a": [200.0] * 11, "b": [100.0] * 11}
