"""``halpiee export --int8``: the accuracy of the file on the test set and its speed, beside fp32."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import halpiee
from halpiee.cli.app import program
from halpiee.errors import UsageError
from latency.backends.onnxruntime.model import read_metadata


def test_a_run_in_int8_is_judged_on_its_test_set(finished_run: Path, tmp_path: Path) -> None:
    from halpiee.cli.output import ScreenTalk
    from halpiee.training.checkpoint import read_settings
    from halpiee.training.job import Run

    out = tmp_path / "int8.onnx"
    options = [
        "export",
        str(finished_run),
        "--int8",
        "--images",
        "64",
        "--trust-run",
        "--out",
        str(out),
        "--json",
    ]
    shown = CliRunner().invoke(program, options)
    assert shown.exception is None, shown.exception
    found = json.loads(shown.stdout)

    run = Run(read_settings(finished_run, trust=True), finished_run, ScreenTalk())
    session = ort.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    right = total = 0
    for x, y in run.data.test_batches(16):
        (answers,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        right += int((np.argmax(answers, axis=1) == y.numpy()).sum())
        total += len(y)
    assert found["figures"]["int8"]["accuracy"] == pytest.approx(right / total)
    assert found["images"] == 64
    assert found["fps"]["int8"] == pytest.approx(1e6 / found["latency_us"]["int8"])
    facts = read_metadata(out)
    assert float(facts["accuracy"]) == pytest.approx(right / total, rel=1e-4)
    assert "accuracy_fp32" in facts
    assert "predicted_us" not in facts  # the run predicted it in fp32


def test_int8_without_data_or_with_another_precision_is_refused(tmp_path: Path) -> None:
    for options, said in (
        (("--int8",), "which has no data of its own; add --data"),
        (("--int8", "--precision", "fp16"), "--int8 was asked together with another --format or --precision"),
        (("--data", "digits"), "add --int8, or leave --data out"),
    ):
        out = ["--size", "3x16x16", "--out", str(tmp_path / "x.onnx")]
        shown = CliRunner().invoke(program, ["export", "separable:build", *options, *out])
        assert isinstance(shown.exception, UsageError), shown.output
        assert said in str(shown.exception)


def test_a_plan_from_an_int8_profile_offers_multiples_of_16(
    profile: Path, structure: halpiee.Structure
) -> None:
    from halpiee.limits import offered
    from halpiee.selection.cost import LatencyCost
    from halpiee.shared_options import Limiting
    from latency import Profile

    cells = Profile.load(profile).cells
    cost = LatencyCost(structure, Profile({"dtype": "int8"}, cells))
    for name, widths in offered(cost, Limiting()).candidates.items():
        whole = structure.by_name[name].size
        assert all(k % 16 == 0 or k == whole for k in widths), (name, widths)
    narrow = offered(cost, Limiting(multiple_of=4)).candidates
    assert any(k % 16 for widths in narrow.values() for k in widths)
