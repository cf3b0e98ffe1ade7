"""Networks of several inputs go through every verb: ``--input image=3x16x16 --input depth=1x16x16``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from click.testing import CliRunner

import halpiee
from halpiee.cli.app import program
from halpiee.errors import UsageError
from halpiee.inputs import Input, example_of, parse_inputs
from latency.backends.onnxruntime.model import read_metadata

from .plans import write_profile
from .twofold import net

BOTH = ("--input", "depth=1x16x16", "--input", "image=3x16x16")


def told(verb: str, *options: object) -> dict[str, Any]:
    shown = CliRunner().invoke(program, [verb, *map(str, options), "--json"])
    assert shown.exception is None, shown.exception
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def refused(verb: str, *options: object) -> str:
    shown = CliRunner().invoke(program, [verb, *map(str, options)])
    assert isinstance(shown.exception, UsageError), shown.output
    return str(shown.exception)


def test_inputs_are_drawn_in_the_order_of_forward_with_defaults_between() -> None:
    example = example_of(net(), parse_inputs(["depth=1x4x6", "image=3x4x6"]), batch=2)
    assert [x.shape if isinstance(x, torch.Tensor) else x for x in example] == [
        (2, 3, 4, 6),
        1.0,
        (2, 1, 4, 6),
    ]
    assert parse_inputs(["ids=64:int64"]) == (Input("ids", (64,), "int64"),)
    assert str(Input("ids", (64,), "int64")) == "ids=64:int64"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--input", "image"), "--input image was asked; give the name of forward's argument and its shape"),
        (("--input", "image=3x0x2"), "of 0 numbers; give between 1 and"),
        (("--input", "image=3x4x4:flaot32"), "did you mean 'float32'"),
        (("--input", "image=3x4x4", "--input", "image=3x4x4"), "--input image was given twice"),
        (("--input", "imag=3x4x4"), "forward of Twofold has no such argument; did you mean 'image'"),
        (("--input", "depth=1x4x4"), "needs image too; add --input image=SHAPE"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(options: tuple[str, ...], said: str) -> None:
    assert said in refused("explain", "twofold:net", *options)


def test_a_network_of_two_inputs_is_explained_profiled_planned_exported_and_timed(tmp_path: Path) -> None:
    layers = {one["name"]: one for one in told("explain", "twofold:net", *BOTH)["layers"]}
    assert set(layers) == {"a", "b", "mid", "head"}
    assert told("profile", "twofold:net", *BOTH, "--dry-run")["ops"] == 4

    structure = halpiee.trace(net(), (torch.zeros(1, 3, 16, 16), 1.0, torch.zeros(1, 1, 16, 16)))
    profile, plan, out = (
        write_profile(structure, tmp_path / "p.jsonl"),
        tmp_path / "half.json",
        tmp_path / "n.onnx",
    )
    made = told("plan", "twofold:net", *BOTH, "--profile", profile, "--budget", "0.6", "--out", plan)
    assert made["predicted_us"] <= made["budget_us"]
    assert halpiee.Plan.load(plan).inputs == [[3, 16, 16], [1, 16, 16]]

    found = told("export", "twofold:net", "--plan", plan, *BOTH, "--out", out)
    assert found["inputs"] == ["image", "depth"]
    assert found["outputs"] == ["flow"]
    assert found["masked_rel_l2"] is None or found["masked_rel_l2"] < 1e-5
    facts = read_metadata(out)
    assert facts["input_shapes"] == "image=3x16x16 depth=1x16x16"
    assert float(facts["predicted_us"]) == pytest.approx(made["predicted_us"], rel=1e-4)
    weights = {t.name: tuple(t.dims) for t in onnx.load(str(out)).graph.initializer}
    assert weights["mid.weight"][0] == made["groups"]["mid"][0] < 8

    rows = told("bench", out, "twofold:net", *BOTH, "--rounds", 9, "--seconds", 5)["files"]
    assert all(row["median_us"] > 0 for row in rows)


def test_a_file_of_any_size_is_timed_at_the_sizes_that_are_typed(tmp_path: Path) -> None:
    out = tmp_path / "net.onnx"
    told("export", "twofold:net", *BOTH, "--dynamic-size", "--input-names", "rgb,d", "--out", out)
    assert (
        told("bench", out, "--input", "rgb=3x32x8", "--input", "d=1x32x8", "--rounds", 9)["files"][0]["n"] > 0
    )
    assert "the size of image was given, and" in refused("bench", out, "--input", "image=3x32x8")
    assert "--size 1x2x3 was asked" in refused("bench", out, "--input", "rgb=1x2x3")


def test_the_trtexec_line_of_a_network_and_of_its_file_names_both_inputs(tmp_path: Path) -> None:
    out, how = tmp_path / "net.onnx", ("--format", "tensorrt", "--batch", "1:4:9", "--dry-run")
    told("export", "twofold:net", *BOTH, "--out", out)
    for source in (("twofold:net", *BOTH), (out,)):
        line = told("export", *source, *how, "--out", tmp_path / "net.engine")["trtexec"]
        assert "--optShapes=image:4x3x16x16,depth:4x1x16x16 " in line
        assert "--maxShapes=image:9x3x16x16,depth:9x1x16x16 " in line


def test_integers_are_inputs_too() -> None:
    assert told("explain", "twofold:tokens", "--input", "ids=5:int64")["layers"]
