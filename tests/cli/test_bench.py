"""``halpiee bench``: what is timed beside what, what is said, and what is refused."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from onnx import TensorProto, helper
from torch import nn

from halpiee.cli import bench as module
from halpiee.cli.app import program
from halpiee.cli.bench import show
from halpiee.errors import HalpieeError, MissingError, OutputInUseError, UsageError
from halpiee.structure.plan import Selection
from halpiee.training.checkpoint import save_json
from latency.backends.onnxruntime.model import to_onnx

ROUNDS = ("--rounds", "9")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))


def invoke(*options: object) -> Result:
    return CliRunner().invoke(program, ["bench", *map(str, options)])


def timed(*options: object) -> dict[str, Any]:
    shown = invoke("--json", *ROUNDS, *options)
    assert shown.exception is None, shown.exception
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def refusal(kind: type[HalpieeError], *options: object) -> str:
    shown = invoke(*options)
    assert isinstance(shown.exception, kind), shown.output
    return str(shown.exception)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dense.onnx``, 40 times the work of ``small.onnx``; ``fixed.onnx``, batch 2 only."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    example = (torch.zeros(1, 3, 16, 16),)
    wide = nn.Sequential(nn.Conv2d(3, 128, 3), nn.ReLU(), nn.Conv2d(128, 64, 3), nn.ReLU())
    slim = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
    onnx.save(to_onnx(wide, example), folder / "dense.onnx")
    onnx.save(to_onnx(slim, example), folder / "small.onnx")
    onnx.save(to_onnx(slim, (torch.zeros(2, 3, 16, 16),), dynamic_batch=False), folder / "fixed.onnx")
    return folder


def test_every_batch_size_has_a_row_per_network_with_its_ratio_to_the_base(files: Path) -> None:
    found = timed(files / "small.onnx", files / "dense.onnx", "--against", "dense", "--batch", "1,3")
    rows = found["files"]
    assert [(r["name"], r["batch"]) for r in rows] == [
        ("small", 1), ("dense", 1), ("small", 3), ("dense", 3)
    ]  # fmt: skip
    for small, dense in (rows[:2], rows[2:]):
        assert small["speedup"] > 5  # 39 times the MACs
        assert small["speedup_ci"][0] <= small["speedup"] <= small["speedup_ci"][1]
        assert small["difference_shown"]
        assert (dense["speedup"], dense["difference_shown"]) == (1.0, False)
        assert small["p50_us"] <= small["p90_us"] <= small["p99_us"]
        assert small["fps"] == pytest.approx(small["batch"] * 1e6 / small["median_us"])
    assert (found["clock"], found["mode"], found["batches"]) == ("cpu", "latency", [1, 3])


WITHOUT_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
from halpiee.cli import main
main(sys.argv[1:])
"""


def test_files_are_timed_on_a_target_without_torch_and_say_what_their_metadata_hold(
    files: Path, tmp_path: Path
) -> None:
    stamped = onnx.load(files / "small.onnx")
    helper.set_model_props(stamped, {"predicted_us": "12"})
    onnx.save(stamped, tmp_path / "stamped.onnx")
    named = [str(files / "dense.onnx"), str(tmp_path / "stamped.onnx")]
    command = [sys.executable, "-c", WITHOUT_TORCH, "bench", *named, "--batch", "4", "--json", *ROUNDS]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads(shown.stdout)
    dense, small = found["files"]
    assert (found["clock"], found["threads"], dense["batch"], dense["n"] >= 9) == ("cpu", 1, 4, True)
    assert (dense["speedup"], dense["difference_shown"]) == (1.0, False)
    assert small["speedup"] > 3
    assert small["difference_shown"]
    assert small["metadata"] == {"predicted_us": "12"}
    assert small["fps"] == pytest.approx(4e6 / small["median_us"])


def test_a_dense_file_beside_is_found_by_its_name(files: Path) -> None:
    found = timed(files / "small.onnx", "--against", "dense")
    assert [r["name"] for r in found["files"]] == ["dense", "small"]


def test_a_run_is_timed_eagerly_and_as_onnx_beside_its_dense_network(finished_run: Path) -> None:
    found = timed(finished_run, f"{finished_run}@onnx", "--against", "dense")
    assert [(r["name"], r["runtime"]) for r in found["files"]] == [
        ("dense", "torch"), ("run", "torch"), ("run@onnx", "onnxruntime cpu")
    ]  # fmt: skip


def test_a_model_is_timed_by_its_name_in_the_precision_asked() -> None:
    found = timed("toy:net", "--size", "3x6x6", "--precision", "bf16")
    assert [(r["name"], r["runtime"], r["precision"]) for r in found["files"]] == [
        ("toy:net", "torch", "bf16")
    ]


def test_throughput_counts_the_images_of_all_callers_and_says_so(files: Path) -> None:
    shown = timed(files / "small.onnx", "--mode", "throughput", "--callers", "2", "--batch", "4")
    (row,) = shown["files"]
    assert (shown["mode"], shown["callers"], row["callers"], row["n"]) == ("throughput", 2, 2, 9)
    assert "median_us" not in row


def test_a_csv_file_has_a_line_per_row_and_is_never_overwritten(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "found.csv"
    found = timed(files / "small.onnx", files / "dense.onnx", "--csv", out)
    with out.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines] == ["small", "dense"]
    assert float(lines[1]["median_us"]) == found["files"][1]["median_us"]
    assert float(lines[1]["speedup_lo"]) == found["files"][1]["speedup_ci"][0]
    assert (lines[0]["clock"], lines[0]["threads"], lines[0]["mode"]) == ("cpu", "1", "latency")
    refusal(OutputInUseError, files / "small.onnx", "--csv", out)


def row(name: str, speedup: float, lo: float, hi: float, shown: bool) -> dict[str, Any]:
    numbers = {f"{key}_us": 120.0 for key in ("median", "p50", "p90", "p99")} | {"iqr_us": 7.0}
    found = {"name": name, "runtime": "torch", "precision": "fp32", "device": "cpu", "batch": 1, **numbers}
    return found | {
        "n": 30, "fps": 8333.0, "speedup": speedup, "speedup_ci": [lo, hi], "difference_shown": shown
    }  # fmt: skip


def test_a_spread_that_shows_no_difference_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row("a", 1.0, 1.0, 1.0, False), row("b", 1.02, 0.98, 1.06, False), row("c", 1.5, 1.4, 1.6, True)]
    result = {
        "mode": "latency", "against": "a", "batch": 1, "batches": [1], "threads": 1, "clock": "cpu", "files": rows
    }  # fmt: skip
    show(result)
    shown = capsys.readouterr().out
    assert "b against a: the spread supports no difference" in shown
    assert "c against a" not in shown
    assert "0.980 … 1.060" in shown
    assert "median, µs" in shown
    assert "120.0" in shown  # tenths: the quartiles are 7 µs apart
    assert "CPU time of the calling thread" in shown


def test_a_column_has_one_unit_also_where_a_network_takes_a_tenth_of_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    slow = row("slow", 1.0, 1.0, 1.0, False) | {
        f"{key}_us": 24_000.0 for key in ("median", "p50", "p90", "p99")
    }
    rows = [slow, row("quick", 8.0, 7.9, 8.1, True) | {"median_us": 3000.0}]
    show(
        {
            "mode": "latency",
            "against": "slow",
            "batch": 1,
            "batches": [1],
            "threads": 1,
            "clock": "cpu",
            "files": rows,
        }
    )
    shown = capsys.readouterr().out
    assert "median, ms" in shown
    assert "µs" not in shown
    assert "24.000" in shown
    assert "3.000" in shown


def test_halps_protocol_is_eager_fp32_batch_256_mean_of_thirty_runs_after_ten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[str, Any] = {}

    def latencies(
        runners: dict[str, Any], field: object, base: str, batch: int, how: Any, warm_up: int | None
    ) -> tuple[list[dict[str, Any]], str]:
        asked.update(batch=batch, rounds=how.rounds, warm_up=warm_up, precision=runners["toy:net"].precision)
        asked.update(runtime=runners["toy:net"].runtime)
        return [], "cpu"

    monkeypatch.setattr(module, "_latencies", latencies)
    timed("toy:net", "--size", "3x6x6", "--protocol", "halp")
    assert asked == {"batch": 256, "rounds": 30, "warm_up": 10, "precision": "fp32", "runtime": "torch"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--batch", "1,x"), "--batch 1,x was asked; give images per inference: 1, or several: 1,8,32"),
        (("--batch", "0"), "--batch 0 was asked"),
        (("--threads", "0"), "--threads 0 was asked; give at least 1 and at most 1,024, a whole number"),
        (("--callers", "2"), "--callers 2 was asked of a latency; add --mode throughput"),
        (("--against", "other"), "--against other was asked; the files are named toy:net"),
        (("--against", "dense"), "name the dense network's file too"),
        (("--size", "5x6x6"), "was to be run on 1×5×6×6 in fp32 and raised RuntimeError"),
        (("--protocol", "halp", "--mode", "throughput"), "it is one of latency, leave --mode out"),
    ],
)
def test_what_cannot_be_timed_as_asked_is_refused(options: tuple[str, ...], words: str) -> None:
    assert words in refusal(UsageError, "toy:net", "--size", "3x6x6", *options)


def test_a_truncated_or_foreign_file_is_named(files: Path, tmp_path: Path) -> None:
    whole = (files / "small.onnx").read_bytes()
    for name, content in {"cut": whole[:-100], "text": b"this is no model", "empty": b""}.items():
        (tmp_path / f"{name}.onnx").write_bytes(content)
        text = refusal(UsageError, tmp_path / f"{name}.onnx")
        assert f"{name}.onnx ({len(content)} bytes) was to be read as an ONNX model" in text
        assert text.endswith("it is truncated or no ONNX file; copy or export it again")


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("gone.data", "there is no such file; copy it from where the model came from"),
        ("../outside.data", "outside the model's folder, and is not read from there"),
        ("/etc/passwd", "outside the model's folder, and is not read from there"),
        ("link.data", "outside the model's folder, and is not read from there"),
        ("short.data", "which ends after 3 bytes, 16 are needed; copy it again"),
    ],
)
def test_external_data_is_read_from_the_models_own_folder_only(
    tmp_path: Path, location: str, words: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(16))
    (folder / "link.data").symlink_to(tmp_path / "outside.data")
    (folder / "short.data").write_bytes(b"abc")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "external", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "net.onnx").write_bytes(model.SerializeToString())
    text = refusal(UsageError, folder / "net.onnx")
    assert "the weight 'w' of" in text
    assert words in text


def test_a_file_of_a_fixed_batch_names_it(files: Path) -> None:
    text = refusal(UsageError, files / "fixed.onnx", "--batch", "8")
    assert "fixed.onnx takes batch 2 only; use --batch 2, or export it with a free batch dimension" in text


def test_a_file_of_another_size_or_precision_is_refused(files: Path) -> None:
    text = refusal(UsageError, files / "small.onnx", "--size", "3x32x32")
    assert "--size 3x32x32 was asked, and" in text
    assert "small.onnx takes 3x16x16" in text
    text = refusal(UsageError, files / "small.onnx", "--precision", "fp16")
    assert "small.onnx holds fp32 weights; leave --precision out, or export it again" in text


def test_a_provider_or_device_that_is_not_there_ends_in_three(files: Path) -> None:
    text = refusal(MissingError, f"{files / 'small.onnx'}@cuda")
    assert text.startswith("ONNX Runtime on cuda was asked for, and this installation has ")
    if not torch.cuda.is_available():
        text = refusal(MissingError, "toy:net", "--device", "cuda", "--size", "3x6x6")
        assert text.startswith("a GPU was asked for and PyTorch finds none; check nvidia-smi")


def test_what_is_neither_a_file_nor_a_run_nor_a_model_is_said(tmp_path: Path) -> None:
    assert "no such file or folder; check the path" in refusal(UsageError, tmp_path / "gone")
    (tmp_path / "notes.txt").write_text("x")
    assert "neither an ONNX file (.onnx), a plan (.json) nor the folder of a run" in refusal(
        UsageError, tmp_path / "notes.txt"
    )
    (tmp_path / "half").mkdir()
    save_json(tmp_path / "half" / "settings.json", {})
    assert "holds no finished run; finish it with" in refusal(UsageError, tmp_path / "half")
    assert "an ONNX file runs @cpu, @cuda, @tensorrt" in refusal(UsageError, "a.onnx@fast")
    assert "runs @eager, @onnx, @openvino, @compile" in refusal(UsageError, "toy:net@fast")
    assert "toy:net was named twice" in refusal(UsageError, "toy:net", "toy:net")


def test_the_prediction_of_a_file_does_not_stand_beside_what_was_quantised_of_it(tmp_path: Path) -> None:
    import latency
    from halpiee.cli.timed import open_all

    x, scale, zero, q, y = "input", "scale", "zero", "q", "output"
    nodes = [
        helper.make_node("QuantizeLinear", [x, scale, zero], [q]),
        helper.make_node("DequantizeLinear", [q, scale, zero], [y]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in (x, y)]
    constants = [
        helper.make_tensor(scale, TensorProto.FLOAT, [], [0.1]),
        helper.make_tensor(zero, TensorProto.INT8, [], [0]),
    ]
    facts = {
        "device": latency.environment()["device"], "backend": "onnxruntime", "batch": "1", "threads": "1",
        "predicted_us": "77.0",
    }  # fmt: skip
    found = {}
    for name, kept in (("int8", nodes), ("fp32", [helper.make_node("Relu", [x], [y])])):
        graph = helper.make_graph(kept, "g", values[:1], values[1:], constants if kept is nodes else [])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        helper.set_model_props(model, facts)
        onnx.save(model, tmp_path / f"{name}.onnx")
        options = {"width": None, "classes": None, "trust": {"engine": False, "plan": False, "run": False}}
        [[one], _] = open_all([str(tmp_path / f"{name}.onnx")], None, shape=None, **options)
        found[name] = one.predicted_us(1, 1)
    assert found == {"int8": None, "fp32": 77.0}


def test_a_plan_is_timed_at_its_own_images_and_predicts_nothing_of_others(tmp_path: Path) -> None:
    import halpiee
    import latency
    from halpiee.cli.timed import open_all
    from halpiee.structure import Plan
    from halpiee.zoo import build

    structure = halpiee.trace(build("toy:net", num_classes=6).eval(), (torch.zeros(1, 3, 8, 8),))
    device = latency.environment()["device"]
    chosen = Selection({}, used=(77.0,))
    Plan.from_selection(
        structure,
        chosen,
        model="toy:net",
        arguments={"num_classes": 6},
        target={"device": device, "backend": "onnxruntime", "dtype": "float32", "batch": 1, "threads": 1},
    ).save(tmp_path / "half.json")
    options = {"width": None, "classes": None, "trust": {"engine": False, "plan": True, "run": False}}
    file = f"{tmp_path / 'half.json'}@onnx"
    (own,), _ = open_all([file], None, shape=None, **options)
    (other,), _ = open_all([file], None, shape=(3, 12, 12), **options)
    assert own.network is not None
    assert tuple(own.network.example[0].shape) == (1, 3, 8, 8)
    assert (own.predicted_us(1, 1), other.predicted_us(1, 1)) == (77.0, None)
    note = (
        f"the plan {tmp_path / 'half.json'} predicts its latency at 3×8×8: at 3×12×12 none is claimed; leave --size "
        "out to take the plan's"
    )
    shown = invoke("--json", *ROUNDS, tmp_path / "half.json", "--trust-plan", "--size", "3x12x12")
    assert shown.stderr.splitlines()[0] == note
    initial = "half has its initial weights: its times hold, its outputs mean nothing"
    assert json.loads(shown.stdout)["notes"] == [note, initial]
    assert own.network.unclaimed is None
