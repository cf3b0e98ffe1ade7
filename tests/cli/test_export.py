"""``halpiee export`` from a run, from a plan with weights and from a model: what is written, said and refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

import halpiee
from halpiee.cli.app import program
from halpiee.errors import HalpieeError, MismatchError, OutputInUseError, UsageError
from halpiee.structure import Plan
from halpiee.structure.plan import Selection
from halpiee.training.checkpoint import save_weights
from halpiee.zoo import build
from latency.backends.onnxruntime.model import read_metadata

SMALL = ("--size", "3x8x8")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))


def export(*options: object) -> Result:
    return CliRunner().invoke(program, ["export", *map(str, options)])


def exported(*options: object) -> dict[str, Any]:
    shown = export("--json", *options)
    assert shown.exception is None, shown.exception
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def refusal(kind: type[HalpieeError], *options: object) -> str:
    shown = export(*options)
    assert isinstance(shown.exception, kind), shown.output
    return str(shown.exception)


def run_file(path: Path, x: torch.Tensor) -> NDArray[np.float32]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    return found


def test_a_folder_that_is_no_run_is_told_from_one_that_was_interrupted(tmp_path: Path) -> None:
    out = ("--out", tmp_path / "net.onnx")
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    runs, mine = tmp_path / "runs", tmp_path / "runs" / "mine"
    said = f"{runs} was named as the folder of a run, and holds none; "
    assert refusal(UsageError, runs, *out) == (
        said + "name one that `halpiee train` or `halpiee demo` wrote with --out"
    )
    # What a run brings along is no question of a folder that is none.
    assert refusal(UsageError, runs, "--width", "2", *out).startswith(said)
    (mine / "settings.json").write_text("{}")
    assert refusal(UsageError, runs, *out) == said + f"did you mean {mine}?"
    assert refusal(UsageError, mine, *out) == (
        f"{mine} holds no finished run; finish it with `halpiee train --resume --out {mine}`"
    )


@pytest.mark.parametrize("verb", ["profile", "explain", "plan", "export", "bench"])
def test_every_form_of_a_size_is_in_the_help_and_in_the_refusal(verb: str) -> None:
    forms = "224, 192x256 (height x width) or 1x28x28 (channels too)"
    assert forms in " ".join(CliRunner().invoke(program, [verb, "--help"]).output.split())
    named = {"plan": ["--budget", "0.5"], "export": ["--out", "net.onnx"]}.get(verb, [])
    shown = CliRunner().invoke(program, [verb, "toy:net", "--size", "8by8", *named])
    assert f"'8by8' is no image size; give {forms}" in " ".join(shown.output.split())


@pytest.fixture
def planned(tmp_path: Path) -> SimpleNamespace:
    """``toy:net`` with its weights in a file, and a plan that leaves every other channel."""
    torch.manual_seed(3)
    model = build("toy:net", num_classes=6).eval()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 8, 8),))
    keep = {g.name: torch.arange(g.size) % 2 == 0 for g in structure.prunable}
    chosen = Selection(keep, used=(77.0,))
    Plan.from_selection(
        structure,
        chosen,
        model="toy:net",
        arguments={"num_classes": 6},
        budget_us=80.0,
        target={"device": "a CPU", "backend": "onnxruntime", "dtype": "float32", "batch": 4, "threads": 2},
    ).save(tmp_path / "plan.json")
    save_weights(tmp_path / "dense.safetensors", model.state_dict())
    compact = halpiee.shrink(model, structure, keep)
    save_weights(tmp_path / "compact.safetensors", compact.state_dict())
    return SimpleNamespace(model=model, compact=compact.eval(), folder=tmp_path)


def test_a_runs_file_says_where_it_comes_from_and_how_fast_it_was(finished_run: Path, tmp_path: Path) -> None:
    exported(finished_run, "--out", tmp_path / "small.onnx")
    found = read_metadata(tmp_path / "small.onnx")
    assert found["halpiee_version"] == halpiee.__version__
    assert found["plan_sha256"] == hashlib.sha256((finished_run / "plan.json").read_bytes()).hexdigest()
    assert (found["budget"], found["budget_us"], found["device"]) == ("0.5", "125", "a CPU")
    assert (found["predicted_us"], found["measured_us"], found["dense_us"]) == ("120", "123.5", "250")
    assert (found["network"], found["precision"], len(found["run"])) == ("pruned", "fp32", len(found["run"]))


def test_the_dense_side_of_a_run_has_its_own_latency_and_no_plan(finished_run: Path, tmp_path: Path) -> None:
    exported(finished_run, "--dense", "--out", tmp_path / "dense.onnx")
    found = read_metadata(tmp_path / "dense.onnx")
    assert (found["network"], found["measured_us"]) == ("dense", "250")
    assert "plan_sha256" not in found
    assert "predicted_us" not in found


def test_a_half_precision_file_does_not_claim_latencies_of_fp32(finished_run: Path, tmp_path: Path) -> None:
    exported(finished_run, "--precision", "fp16", "--out", tmp_path / "half.onnx")
    found = read_metadata(tmp_path / "half.onnx")
    assert (found["precision"], found["budget_us"]) == ("fp16", "125")
    assert not found.keys() & {"predicted_us", "measured_us", "dense_us"}


def test_a_plan_with_dense_weights_is_checked_against_the_masked_network(planned: SimpleNamespace) -> None:
    out = planned.folder / "half.onnx"
    done = exported(
        "toy:net", "--plan", planned.folder / "plan.json", "--weights", planned.folder / "dense.safetensors", *SMALL,
        "--out", out,
    )  # fmt: skip
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = planned.compact(x).numpy()
    assert np.linalg.norm(run_file(out, x) - expected) <= 1e-5 * np.linalg.norm(expected)
    assert done["masked_rel_l2"] <= 1e-5
    assert done["rel_l2"] <= 1e-5
    found = read_metadata(out)
    assert (found["model"], found["budget_us"], found["predicted_us"]) == ("toy:net", "80", "77")
    assert [found[key] for key in ("device", "backend", "batch", "threads")] == [
        "a CPU",
        "onnxruntime",
        "4",
        "2",
    ]


def test_a_plan_for_fp32_predicts_nothing_of_a_half_precision_file(planned: SimpleNamespace) -> None:
    out = planned.folder / "half.onnx"
    exported("toy:net", "--plan", planned.folder / "plan.json", *SMALL, "--precision", "fp16", "--out", out)
    found = read_metadata(out)
    assert found["budget_us"] == "80"
    assert "predicted_us" not in found


def test_a_plan_with_the_compact_networks_weights_says_what_was_not_checked(planned: SimpleNamespace) -> None:
    done = exported(
        "toy:net", "--plan", planned.folder / "plan.json", "--weights", planned.folder / "compact.safetensors", *SMALL,
        "--out", planned.folder / "half.onnx",
    )  # fmt: skip
    assert done["masked_rel_l2"] is None
    assert done["notes"] == [
        "the weights are those of the compact network: there is no masked one to compare it with"
    ]
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = planned.compact(x).numpy()
    found = run_file(planned.folder / "half.onnx", x)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_a_fault_of_the_pruning_is_told_from_one_of_the_export(
    planned: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Plan.apply

    def wrong(self: Plan, model: torch.nn.Module) -> torch.nn.Module:
        compact = right(self, model)
        with torch.no_grad():
            compact.get_parameter("conv2.weight").mul_(1.1)
        return compact

    monkeypatch.setattr(Plan, "apply", wrong)
    out = planned.folder / "half.onnx"
    text = refusal(
        MismatchError,
        "toy:net", "--plan", planned.folder / "plan.json", "--weights", planned.folder / "dense.safetensors", *SMALL,
        "--out", out,
    )  # fmt: skip
    assert "a fault of the pruning, not of an export" in text
    assert not out.exists()


def test_weights_of_another_network_are_refused(planned: SimpleNamespace) -> None:
    save_weights(planned.folder / "other.safetensors", torch.nn.Linear(2, 2).state_dict())
    text = refusal(
        UsageError,
        "toy:net", "--plan", planned.folder / "plan.json", "--weights", planned.folder / "other.safetensors",
        "--out", planned.folder / "half.onnx",
    )  # fmt: skip
    assert "fits neither toy:net nor what" in text
    assert text.endswith("give the weights of this very network")


def test_a_model_without_weights_says_so(tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    done = exported("toy:net", *SMALL, "--classes", "4", "--out", out)
    assert done["notes"] == ["no --weights: the network has its initial weights"]
    assert onnx.load(out).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4


def test_an_input_that_the_model_cannot_take_is_said_with_the_option_to_change(tmp_path: Path) -> None:
    text = refusal(UsageError, "toy:net", "--size", "5x8x8", "--out", tmp_path / "a.onnx")
    assert text.startswith("Net was to be exported with inputs of 1×5×8×8 and raised RuntimeError on them:")
    assert text.endswith("give the size it takes with --size")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nothing to export was named; give the folder of a run, a MODEL, or --plan FILE"),
        (("toy:net", "--dense"), "only a run has a dense network beside"),
        (("toy:net", "--half-io"), "--half-io was asked of an fp32 file; add --precision fp16"),
        (("--plan", "no.json", "--width", "2"), "--width and --classes are in the plan"),
        (("--plan", "no.json"), "the plan no.json cannot be read"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    assert words in refusal(UsageError, *options, "--out", tmp_path / "a.onnx")


def test_an_existing_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("mine")
    refusal(OutputInUseError, "toy:net", "--out", tmp_path / "a.onnx")
    assert (tmp_path / "a.onnx").read_text() == "mine"


def test_a_plan_is_exported_at_the_images_it_was_made_for(planned: SimpleNamespace) -> None:
    out = planned.folder / "half.onnx"
    exported("toy:net", "--plan", planned.folder / "plan.json", "--out", out)
    dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims[1:]] == [3, 8, 8]
    assert read_metadata(out)["predicted_us"] == "77"


def test_at_other_images_than_its_own_a_plan_claims_no_latency(planned: SimpleNamespace) -> None:
    out, plan = planned.folder / "half.onnx", planned.folder / "plan.json"
    done = exported("toy:net", "--plan", plan, "--size", "12x10", "--out", out)
    dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims[1:]] == [3, 12, 10]
    found = read_metadata(out)
    assert "predicted_us" not in found
    assert found["budget_us"] == "80"
    assert done["notes"][0] == (
        f"the plan {plan} predicts its latency at 3×8×8: at 3×12×10 none is claimed; leave --size out to take the "
        "plan's"
    )


def test_a_plan_that_does_not_say_its_images_claims_no_latency(planned: SimpleNamespace) -> None:
    plan, out = planned.folder / "plan.json", planned.folder / "half.onnx"
    record = json.loads(plan.read_text())
    del record["inputs"]
    plan.write_text(json.dumps(record))
    done = exported("toy:net", "--plan", plan, *SMALL, "--out", out)
    assert "predicted_us" not in read_metadata(out)
    assert (
        "does not say which images its latency was predicted for: at 3×8×8 none is claimed"
        in done["notes"][0]
    )


def test_the_plan_of_a_run_brings_its_images_along(finished_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "half.onnx"
    weights = finished_run / "pruned.safetensors"
    plan = finished_run / "plan.json"
    record = json.loads(plan.read_text())
    plan.write_text(json.dumps({**record, "arguments": {"num_classes": 6}}))
    exported("toy:net", "--plan", plan, "--weights", weights, "--out", out)
    dims = onnx.load(out).graph.input[0].type.tensor_type.shape.dim
    assert [d.dim_value for d in dims[1:]] == [3, 6, 6]
    assert read_metadata(out)["predicted_us"] == "120"


def test_a_run_has_its_own_images(finished_run: Path, tmp_path: Path) -> None:
    text = refusal(UsageError, finished_run, *SMALL, "--out", tmp_path / "a.onnx")
    assert text == f"--size was asked of {finished_run}, a run, which has its own; leave --size out"


def test_a_folder_that_is_not_there_is_no_model(tmp_path: Path) -> None:
    text = refusal(UsageError, "runs/none", "--out", tmp_path / "a.onnx")
    assert text == (
        "runs/none was to be exported, and there is no such folder; name the folder of a run, or a MODEL"
    )


def test_a_dense_network_that_was_never_trained_is_refused(finished_run: Path, tmp_path: Path) -> None:
    (finished_run / "dense.safetensors").unlink()
    text = refusal(UsageError, finished_run, "--dense", "--out", tmp_path / "dense.onnx")
    assert "trained no dense network" in text
    assert "holds the pruned one only" in text
    assert not (tmp_path / "dense.onnx").exists()
