"""``halpiee export --format tensorrt``: the ONNX file beside the engine, the dry run, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result

from halpiee.cli.app import program
from halpiee.errors import HalpieeError, MissingError, OutputInUseError, UsageError


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def export(*options: object) -> Result:
    return CliRunner().invoke(program, ["export", *map(str, options)])


def refusal(kind: type[HalpieeError], *options: object) -> str:
    shown = export(*options)
    assert isinstance(shown.exception, kind), (shown.output, shown.exception)
    return str(shown.exception)


TOY = ("toy:net", "--size", "3x8x8", "--format", "tensorrt")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engine_and_its_onnx_file_are_written(
    machine: SimpleNamespace, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "net.engine"
    shown = export(*TOY, "--out", out, "--precision", precision, "--batch", "1:2:4", "--json")
    assert shown.exception is None, shown.exception
    found = json.loads(shown.stdout)
    assert found["rel_l2"] == 0.0
    assert (found["built"], found["why"]) == (True, "new")
    assert out.is_file()
    assert (tmp_path / "net.onnx").is_file()
    again = export(tmp_path / "net.onnx", "--format", "tensorrt", "--out", out, "--batch", "1:2:4", "--json")
    assert json.loads(again.stdout)["why"] == "fits"


def test_an_onnx_file_that_is_there_is_not_overwritten(machine: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(b"something")
    assert "take it" in refusal(OutputInUseError, *TOY, "--out", tmp_path / "net.engine")


def test_without_tensorrt_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    said = refusal(MissingError, *TOY, "--out", tmp_path / "net.engine")
    assert "pip install tensorrt" in said
    assert not list(tmp_path.glob("net*"))


def test_a_dry_run_says_the_trtexec_line_without_tensorrt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    shown = export(*TOY, "--out", "net.engine", "--batch", "1:8:32", "--dry-run", "--json")
    line = json.loads(shown.stdout)["trtexec"]
    assert line.startswith("trtexec --onnx=net.onnx --saveEngine=net.engine --stronglyTyped ")
    assert "--optShapes=x:8x3x8x8" in line
    assert "--fp16" not in line


def test_options_of_engines_are_refused_for_onnx_files(tmp_path: Path) -> None:
    said = refusal(UsageError, "toy:net", "--size", "3x8x8", "--sparse", "--out", tmp_path / "net.onnx")
    assert "add --format tensorrt" in said
