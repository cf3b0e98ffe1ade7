"""``halpiee prune``: a run that trains nothing, from a trained toy network."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.nn import functional

import halpiee
from halpiee.cli.app import program
from halpiee.errors import BudgetError, UsageError
from halpiee.structure.groups import widths
from halpiee.training import stage
from halpiee.training.checkpoint import load_weights, save_weights
from halpiee.training.config import Masks, Settings
from halpiee.training.loop import Objective, evaluate
from halpiee.training.preflight import open_run
from halpiee.zoo import build

from .talk import Quiet, ended
from .test_run import KEYS, execute, settings, toy, write_profile

__all__ = ["toy"]

pytestmark = pytest.mark.slow  # trains a small network, exports and times two


@pytest.fixture(scope="module")
def trained(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the toy network after 150 steps of Adam on its whole data."""
    from halpiee.data.opening import load

    torch.manual_seed(0)
    data, model = load("toy:data"), build("toy:net", num_classes=6)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    x = data.normalised(data.train_x)
    for _ in range(150):
        adam.zero_grad()
        torch.autograd.backward(functional.cross_entropy(model(x), data.train_y))
        adam.step()
    assert evaluate(model, data)[0] > 0.9
    path = tmp_path_factory.mktemp("trained") / "trained.safetensors"
    save_weights(path, model.state_dict())
    return path


@pytest.fixture(scope="module")
def profile(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_profile(tmp_path_factory.mktemp("profile") / "profile.jsonl")


@pytest.fixture(scope="module")
def folder(trained: Path, profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "run"
    execute(settings(profile, method="repair", weights=str(trained), budget="0.7", images=100), out)
    return out


def repaired(folder: Path) -> nn.Module:
    """The network of a run as its plan and weights give it."""
    model = halpiee.Plan.load(folder / "plan.json").apply(build("toy:net", num_classes=6)).eval()
    model.load_state_dict(load_weights(folder / "pruned.safetensors"))
    return model


def test_the_report_holds_every_number_of_a_run_and_no_training(folder: Path) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert set(KEYS.split()) <= set(report)
    assert report["predicted_us"] <= report["budget_us"] * (1 + 1e-6)
    assert report["train_flops_ratio"] == {"paper": 0.0, "strict": 0.0}
    assert {layer["name"] for layer in report["repaired"]} == {"conv1.weight", "conv2.weight", "fc.weight"}
    assert all(layer["after"] <= layer["before"] for layer in report["repaired"])


def test_the_repaired_network_answers_nearer_to_the_dense_one_than_the_cut_one(
    folder: Path, trained: Path
) -> None:
    from halpiee.data.opening import load

    data, dense = load("toy:data"), build("toy:net", num_classes=6).eval()
    dense.load_state_dict(load_weights(trained))
    x = data.normalised(data.test_x)
    cut = halpiee.Plan.load(folder / "plan.json").apply(dense).eval()
    mended = repaired(folder)
    with torch.no_grad():
        aim = dense(x)
        assert (mended(x) - aim).norm() < 0.8 * (cut(x) - aim).norm()
    assert evaluate(mended, data)[0] == json.loads((folder / "report.json").read_text())["accuracy_pruned"]


def test_the_exported_file_is_the_network_that_load_gives(folder: Path) -> None:
    import onnxruntime

    x = torch.randn(3, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(folder / "pruned.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    with torch.no_grad():
        wanted = repaired(folder)(x)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_labels_have_no_part_in_it(
    folder: Path, trained: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("toy")

    whole = module.data()
    monkeypatch.setattr(module, "data", lambda: ((whole[0][0], whole[0][1].flip(0)), whole[1]))
    out = tmp_path / "run"
    given = settings(profile, method="repair", weights=str(trained), budget="0.7", images=100)
    ended(open_run(given, out, Quiet()))
    a, b = (load_weights(f / "pruned.safetensors") for f in (folder, out))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_weights_of_another_network_too_few_images_and_a_small_budget_are_refused(
    trained: Path, profile: Path, tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    save_weights(wrong, {"conv1.weight": torch.zeros(2, 3, 3, 3)})
    with pytest.raises(UsageError, match=r"wrong.safetensors does not fit toy:net \(.*; give the weights of"):
        execute(settings(profile, method="repair", weights=str(wrong)), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(BudgetError, match="the smallest network that a cut can reach needs"):
        execute(settings(profile, method="repair", weights=str(trained), budget="3us"), tmp_path / "b")
    with pytest.raises(UsageError, match="images"):
        settings(profile, method="repair", weights=str(trained), images=4)
    with pytest.raises(UsageError, match="--method repair prunes a trained network; give its --weights"):
        Settings(model="toy:net", data="toy:data", budget="0.5", method="repair")


def test_prune_answers_with_the_report_and_overwrites_nothing(
    trained: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    line = f"prune toy:net --data toy:data --weights {trained} --profile {profile} --budget 0.5 --out {out} --json"
    monkeypatch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
    done = CliRunner().invoke(program, line.split(), catch_exceptions=False, standalone_mode=False)
    assert json.loads(done.stdout)["method"] == "repair"
    again = CliRunner().invoke(program, line.split())
    assert again.exception is not None
    assert "already holds something" in str(again.exception)


@pytest.fixture(scope="module")
def early(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 steps, cut after 10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
        out = tmp_path_factory.mktemp("early") / "run"
        execute(settings(profile, method="early", images=40), out)
    return out


def test_an_early_cut_trains_whole_for_a_quarter_and_compact_from_then_on(early: Path) -> None:
    report = json.loads((early / "report.json").read_text())
    assert set(KEYS.split()) <= set(report)
    a, b = report["widths"]["conv1"], report["widths"]["conv2"]
    dense, compact = 36 * 9 * (3 * 8 + 8 * 12) + 12 * 6, 36 * 9 * (3 * a + a * b) + b * 6
    assert (report["macs_dense"], report["macs_pruned"]) == (dense, compact)
    ratio = (10 * dense + 30 * compact) / (40 * dense)
    assert report["train_flops_ratio"] == pytest.approx({"paper": ratio, "strict": ratio})
    assert report["predicted_us"] <= report["budget_us"] * (1 + 1e-6)
    assert [entry["step"] for entry in report["history"]["pruned"]] == [10, 20, 30, 40]
    assert {layer["name"] for layer in report["repaired"]} == {"conv1.weight", "conv2.weight", "fc.weight"}


@pytest.mark.parametrize("at", [4, 10, 17, 36])
def test_an_early_cut_that_is_interrupted_anywhere_ends_bit_equal(
    early: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
    given, out = settings(profile, method="early", images=40), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        ended(open_run(given, out, Quiet(("pruned", at))))
    torch.manual_seed(1234)
    ended(open_run(given, out, Quiet(), resume=True))
    a, b = (load_weights(f / "pruned.safetensors") for f in (early, out))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_given_weights_are_cut_before_the_first_step_and_distilled_from(
    trained: Path, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
    given = settings(
        profile, method="early", weights=str(trained), budget="0.7", images=100, distill="dense", epochs=1
    )
    found = ended(open_run(given, tmp_path / "run", Quiet()))["pruned"]
    a, b = found["counts"]["conv1"], found["counts"]["conv2"]
    compact = (36 * 9 * (3 * a + a * b) + b * 6) / (36 * 9 * (3 * 8 + 8 * 12) + 12 * 6)
    assert found["train_flops_ratio"] == pytest.approx({"paper": compact, "strict": compact})
    # 10 steps of a network that was trained before: what the cut left goes on, it does not begin anew
    assert found["accuracy"] > 0.6


def test_a_file_of_weights_is_the_teacher_and_its_share_of_the_loss_is_the_one_asked(
    trained: Path, profile: Path, tmp_path: Path
) -> None:
    asked = settings(profile, method="early", budget="0.7", distill=str(trained), distill_weight=0.3)
    run = open_run(asked, tmp_path / "run", Quiet())
    teacher, student = run.teacher(), run.build().eval()
    for name, value in load_weights(trained).items():
        assert torch.equal(teacher.state_dict()[name], value), name
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, *run.data.shape, generator=generator), torch.arange(8) % 6
    with torch.no_grad():
        found = Objective(student, asked, run.task, teacher)(x, y)
        logits, wanted = student(x), teacher(x)
    soft = functional.kl_div(
        functional.log_softmax(logits / 2, 1), functional.softmax(wanted / 2, 1), reduction="batchmean"
    )
    hard = functional.cross_entropy(logits, y)
    torch.testing.assert_close(found, 0.7 * hard + 0.3 * 4 * soft)


def test_a_teacher_of_another_network_is_refused_by_the_options_name(profile: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_weights(other, {"w": torch.zeros(3)})
    run = open_run(settings(profile, budget="0.7", distill=str(other)), tmp_path / "run", Quiet())
    with pytest.raises(UsageError, match=r"^--distill .*other.safetensors does not fit toy:net"):
        run.teacher()
    with pytest.raises(UsageError, match=r"gone.safetensors"):
        open_run(settings(profile, budget="0.7", distill="gone.safetensors"), tmp_path / "two", Quiet())


def test_options_of_an_early_cut_are_refused_where_nothing_is_cut_early() -> None:
    def asked(**more: Any) -> Settings:
        return Settings(**{"model": "toy:net", "data": "toy:data", "budget": "0.5", **more})

    with pytest.raises(
        UsageError, match=r"--cut-at 0.1 was given to --method iee; only early trains a whole"
    ):
        asked(method="iee", masks=Masks(cut_at=0.1))
    with pytest.raises(UsageError, match=r"--no-repair was given to --method scaled"):
        asked(method="scaled", masks=Masks(repair=False))
    with pytest.raises(
        UsageError, match=r"--distill dense matches the dense network, and --no-baseline trains none"
    ):
        asked(method="early", distill="dense", baseline=False)


def test_without_a_method_given_weights_are_cut_early_a_latency_is_scaled_to_and_a_sparsity_is_of_iee() -> (
    None
):
    def method(**more: Any) -> str:
        return Settings(**{"model": "toy:net", "data": "toy:data", **more}).method

    assert method(budget="0.5", weights="w.safetensors") == "early"
    assert method(budget="0.5") == "scaled"
    assert method(masks=Masks(sparsity=0.9)) == "iee"


def test_a_scaled_network_loses_its_last_block_meets_the_latency_and_goes_on_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
    path = write_profile(tmp_path / "residual.jsonl", "toy:residual")
    given = settings(path, model="toy:residual", method="scaled", budget="0.4")
    run = open_run(given, tmp_path / "run", Quiet())
    found = ended(run)["pruned"]
    kept = widths(run.structure, found["counts"])
    assert kept["second.conv1"] == 0 < kept["first.conv1"]
    assert found["predicted_us"] <= 0.4 * found["dense_us"] * (1 + 1e-6)
    assert found["train_flops_ratio"]["strict"] == pytest.approx(run.macs(found["counts"]) / run.macs({}))
    with pytest.raises(KeyboardInterrupt):
        ended(open_run(given, tmp_path / "cut", Quiet(("pruned", 17))))
    ended(open_run(given, tmp_path / "cut", Quiet(), resume=True))
    a, b = (load_weights(tmp_path / name / "pruned.safetensors") for name in ("run", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_given_weights_are_cut_to_the_widths_of_scaled_and_the_best_units_of_these_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
    path = write_profile(tmp_path / "residual.jsonl", "toy:residual")
    torch.manual_seed(0)
    model = build("toy:residual", num_classes=6)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        with torch.no_grad():  # a norm's scale stands for its unit
            norm.weight.copy_(torch.arange(1.0, 1 + len(norm.weight)))
    save_weights(tmp_path / "given.safetensors", model.state_dict())
    masks = Masks(widths="scaled", criterion="l1")
    given = settings(
        path,
        model="toy:residual",
        method="early",
        weights=str(tmp_path / "given.safetensors"),
        budget="0.4",
        masks=masks,
    )
    run = open_run(given, tmp_path / "run", Quiet())
    kept = widths(run.structure, ended(run)["pruned"]["counts"])
    whole = open_run(
        settings(path, model="toy:residual", method="scaled", budget="0.4"), tmp_path / "scaled", Quiet()
    )
    assert kept == widths(whole.structure, ended(whole)["pruned"]["counts"])
    assert kept["second.conv1"] == 0 < kept["first.conv1"]
    units = halpiee.Plan.load(tmp_path / "run" / "plan.json").keep["first.conv1"]
    assert not units.all()
    assert units.nonzero().flatten().tolist() == list(range(len(units)))[-kept["first.conv1"] :]
    with pytest.raises(UsageError, match=r"--widths scaled and --rounds 3 were asked"):
        settings(
            path,
            method="repair",
            weights="w.safetensors",
            budget="0.4",
            masks=Masks(widths="scaled", rounds=3),
        )
