"""A whole run on a toy: every stage real, only the clock is a formula, so that what it must come to is known."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import latency
from halpiee.cli.train import gather
from halpiee.deploy import target
from halpiee.deploy.calibrate import Round
from halpiee.errors import BudgetError, OutputInUseError, ProfileError, PromiseError, UsageError
from halpiee.shared_options import Cycle
from halpiee.structure.groups import widths
from halpiee.training import pipeline, stage
from halpiee.training.config import Masks, Settings
from halpiee.training.job import Run
from halpiee.training.loop import Objective, Trainer
from halpiee.training.preflight import open_run
from halpiee.zoo import build
from latency.predict import Calibration
from latency.timing.benchmark import Comparison

from .talk import Quiet, ended, one_thread, trained, unclocked

KEYS = (
    "dense_us budget_us predicted_us measured_us next_step_us accuracy_dense accuracy_pruned top5_dense top5_pruned "
    "train_flops_ratio onnx_rel_l2 onnx_max_abs_error fps_dense fps_pruned macs_dense macs_pruned widths batch threads "
    "backend precision seconds events"
)


@pytest.fixture(autouse=True, scope="module")
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        # Sums depend on how many threads share them: a run keeps its choice, two runs to compare make the same.
        patch.setattr(stage, "pick_threads", one_thread)
        patch.syspath_prepend(str(Path(__file__).parent))
        # Latencies are measured elsewhere; here the line is known and the candidate always fits.
        patch.setattr(pipeline, "calibrate", lambda *_, **__: Calibration())
        patch.setattr(
            stage,
            "close_loop",
            lambda model, cost, example, candidate, *, budget_us, **_: (
                cost,
                [
                    Round(
                        1, cost.total_us(candidate.counts), budget_us, 0.9 * budget_us, 1.02 * budget_us, 1.0
                    )
                ],
            ),
        )
        yield


def settings(profile: Path, **other: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "toy:net",
        "data": "toy:data",
        "budget": "0.5",
        "method": "iee",
        "epochs": 4,
        "batch_size": 12,
        "profile": str(profile),
        "rounds": 3,
        "cycle": Cycle(cycles=3, end=0.75),
        **other,
    }
    return Settings(**values)


def write_profile(path: Path, model: str = "toy:net") -> Path:
    """Every op costs 4 + 0.25 · c_in · c_out µs (the diagonal: 1 + 0.1 · c)."""
    import halpiee

    structure = halpiee.trace(build(model, num_classes=6), (torch.zeros(1, 3, 6, 6),))
    cells = []
    for timed in structure.ops:
        op = timed.op
        widths = [(i, o) for i in range(1, op.c_in + 1) for o in range(1, op.c_out + 1)]
        if op.kind not in ("conv", "linear"):
            widths = [(c, c) for c in range(1, op.c_out + 1)]
        for i, o in widths:
            us = 4 + 0.25 * i * o if op.kind in ("conv", "linear") else 1 + 0.1 * o
            cells.append({**op.with_channels(i, o).key(), "us": us})
    latency.Profile(latency.environment(), cells).save(path)
    return path


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return write_profile(tmp_path / "profile.jsonl")


def execute(
    settings: Settings, folder: Path, talk: Quiet | None = None, *, resume: bool = False
) -> dict[str, Any]:
    return pipeline.execute(open_run(settings, folder, talk or Quiet(), resume=resume))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from halpiee.training.checkpoint import load_weights

    return load_weights(folder / "pruned.safetensors")


class Whole(NamedTuple):
    """A run that nothing interrupted."""

    given: Settings
    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="module")
def whole(toy: None, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    given = settings(write_profile(folder / "profile.jsonl"))
    return Whole(given, folder / "run", execute(given, folder / "run"))


@pytest.mark.slow  # trains, exports and times two small networks
def test_a_run_ends_in_a_network_within_its_budget_whose_files_agree(whole: Whole) -> None:
    given, folder, report = whole
    assert set(KEYS.split()) <= set(report)
    # conv1 3→a, conv2 a→b, fc b→6, the pool on b
    dense = 3 * 4 + 0.25 * (3 * 8 + 8 * 12 + 12 * 6) + 1 + 1.2
    a, b = report["widths"]["conv1"], report["widths"]["conv2"]
    used = 3 * 4 + 0.25 * (3 * a + a * b + b * 6) + 1 + 0.1 * b
    last = report["events"][-1]
    assert last["event"] == "shrink"
    assert last["used_us"] == pytest.approx(used)
    assert used <= 0.5 * dense + 1e-9 == pytest.approx(last["budget_us"] + 1e-9)
    assert report["macs_pruned"] == 36 * 9 * (3 * a + a * b) + b * 6
    assert report["macs_dense"] == 36 * 9 * (3 * 8 + 8 * 12) + 12 * 6
    assert report["fps_pruned"] == pytest.approx(1e6 / report["measured_us"])
    assert [e["event"] for e in report["events"]][:3] == ["init", "prune", "grow"]

    # the exported file, the plan with its weights, and the report speak of one network
    run = Run(given, folder, Quiet())
    compact = run.compact()
    x = torch.randn(3, 3, 6, 6)
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "pruned.onnx"), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = compact(x).detach().numpy()
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) <= 1e-5
    assert sum(p.numel() for p in compact.parameters()) == report["params_pruned"]

    # what is finished is shown, not done again
    assert execute(given, folder, resume=True) == report
    page = (folder / "report.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")


def worked_out(report: dict[str, Any]) -> dict[str, Any]:
    """Returns what of a report no clock has a part in."""
    measured = (
        "measured_us measured_iqr_us dense_us dense_iqr_us predicted_us predicted_low_us predicted_high_us budget_us "
        "next_step_us clock_drift contention "
        "speedup speedup_ci fps_dense fps_pruned layers promise seconds seconds_by_stage seconds_training settings"
    )
    clocked = ("seconds", "images_per_s", "waiting")
    kept = {key: value for key, value in report.items() if key not in measured.split()}
    kept["history"] = {
        side: [{key: value for key, value in entry.items() if key not in clocked} for entry in entries]
        for side, entries in report["history"].items()
    }
    return kept


STEPS = 40  # 4 epochs of 10; updates end after 3 · 3 · 3 = 27 … 30


@pytest.mark.slow  # the same run again for every place it is interrupted at
@pytest.mark.parametrize(
    "at", [("dense", 13), ("pruned", 4), ("pruned", 8), ("pruned", 17), ("pruned", 36)], ids=str
)
def test_an_interrupted_run_continues_bit_equal(whole: Whole, tmp_path: Path, at: tuple[str, int]) -> None:
    """The report is made of the files that both trainings leave: it is compared once, behind the cut."""
    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        execute(whole.given, folder, Quiet(at))
    assert not (folder / "report.json").exists()
    torch.manual_seed(1234)
    found = ended(open_run(whole.given, folder, Quiet(), resume=True))
    first, second = weights(whole.folder), weights(folder)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert found["pruned"]["events"] == whole.report["events"]
    for label, result in found.items():
        left = json.loads((whole.folder / f"{label}.json").read_text())
        assert unclocked(result) == unclocked(left), label
    if at == ("pruned", 36):
        assert worked_out(execute(whole.given, folder, resume=True)) == worked_out(whole.report)


@pytest.mark.slow  # trains a small network
def test_a_pretrained_network_starts_from_its_weights(whole: Whole, tmp_path: Path, profile: Path) -> None:
    start = str(whole.folder / "dense.safetensors")
    found = ended(open_run(settings(profile, weights=start), tmp_path / "run", Quiet()))
    events = found["pruned"]["events"]
    assert events[0]["event"] == "init"
    assert events[0]["step"] > 0
    assert found["dense"]["accuracy"] == whole.report["accuracy_dense"]


@pytest.mark.slow  # trains and exports two small networks
def test_what_was_profiled_on_torch_is_timed_on_torch(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "torch.jsonl"
    latency.Profile(latency.environment("torch"), latency.Profile.load(profile).cells).save(elsewhere)
    asked, answers = [], {}

    def clock(networks: dict[str, Any], **how: Any) -> Comparison:
        asked.append((how["backend"].name, how["backend"].device, how["threads"]))
        for name, runner in networks.items():
            with runner:
                answers[name] = runner.run()
        return Comparison({"dense": [100.0] * 30, "pruned": [40.0] * 30}, "cpu", {})

    monkeypatch.setattr(target, "compare", clock)
    report = execute(settings(elsewhere), tmp_path / "run")
    assert set(asked) == {("torch", "cpu", 1)}
    assert [report[key] for key in ("backend", "dense_us", "measured_us", "speedup", "layers")] == [
        "torch", 100.0, 40.0, 2.5, []
    ]  # fmt: skip
    run = Run(settings(elsewhere), tmp_path / "run", Quiet())
    with torch.no_grad():
        torch.testing.assert_close(answers["pruned"], run.compact()(*run.example))
        torch.testing.assert_close(answers["dense"], run.dense()(*run.example))


def test_a_backend_beside_a_profile_of_another_is_refused(tmp_path: Path, profile: Path) -> None:
    refused(
        lambda path: settings(path, backend="torch"),
        tmp_path,
        profile,
        UsageError,
        "was measured on onnxruntime; leave --backend out, or the profile",
    )


def refused(
    change: Callable[[Path], Settings], tmp_path: Path, profile: Path, kind: type[Exception], words: str
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(kind, match=words):
        open_run(change(profile), folder, Quiet())
    assert not folder.exists()


def test_a_profile_of_another_device_is_refused_and_nothing_written(tmp_path: Path, profile: Path) -> None:
    lines = profile.read_text().splitlines()
    header = json.loads(lines[0])
    header["environment"]["threads"] = 7
    profile.write_text("\n".join([json.dumps(header), *lines[1:]]) + "\n")
    refused(settings, tmp_path, profile, ProfileError, "threads")


def test_a_profile_that_lacks_cells_is_refused_and_nothing_written(tmp_path: Path, profile: Path) -> None:
    kept = [line for line in profile.read_text().splitlines() if '"conv"' not in line]
    profile.write_text("\n".join(kept) + "\n")
    refused(
        lambda path: settings(path, model="resnet20", data="digits"),
        tmp_path,
        profile,
        ProfileError,
        "lacks 22 of the .* `halpiee profile resnet20 --size 16 --classes 10 --out FILE`",
    )
    with pytest.raises(
        ProfileError, match=r"batch 1 on inputs of .*; it lacks 2 of the network's 3 convs and linears"
    ):
        execute(settings(profile), tmp_path / "other")
    profile.write_text(profile.read_text().splitlines()[0] + "\n")
    refused(settings, tmp_path, profile, ProfileError, "holds no cells .* that began it continues it")


def test_an_unreachable_budget_is_refused_before_any_training(tmp_path: Path, profile: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(BudgetError, match="the smallest network that training can reach needs") as caught:
        execute(settings(profile, budget="5us"), folder)
    assert caught.value.minimum > 5
    assert not (folder / "dense.state").exists()
    assert not (folder / "dense.safetensors").exists()


def test_other_settings_never_resume_nor_overwrite(tmp_path: Path, profile: Path) -> None:
    folder = tmp_path / "run"
    open_run(settings(profile), folder, Quiet())
    with pytest.raises(OutputInUseError, match="add --resume to continue it"):
        open_run(settings(profile), folder, Quiet())
    with pytest.raises(UsageError, match=r"other settings \(seed: 0 then, 1 now\)"):
        open_run(settings(profile, seed=1), folder, Quiet(), resume=True)


@pytest.mark.slow
def test_a_training_that_diverged_goes_on_with_the_lower_rate_that_its_message_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of a rate above 0.05 give NaN after the first epoch, of ten steps."""
    forward, done, folder = Objective.forward, list[None](), tmp_path / "a run"

    def diverging(objective: Objective, x: torch.Tensor, y: Any) -> torch.Tensor:
        done.append(None)
        loss = forward(objective, x, y)
        return loss * math.nan if objective._settings.lr > 0.05 and len(done) > 10 else loss

    monkeypatch.setattr(Objective, "forward", diverging)
    asked = Settings(
        model="toy:net", data="toy:data", method="rigl", masks=Masks(sparsity=0.5), baseline=False,
        epochs=3, batch_size=12, lr=0.1, warmup=0.0, schedule="constant",
    )  # fmt: skip
    with pytest.raises(PromiseError) as stopped:
        trained(open_run(asked, folder, Quiet()))
    [typed] = re.findall("`(halpiee train .*?)`", str(stopped.value))
    words = shlex.split(typed)
    assert words == ["halpiee", "train", "--resume", "--out", str(folder), "--lr", "0.01"]

    for other in ({"lr": 0.2}, {"lr": 0.01, "seed": 1}):
        with pytest.raises(UsageError, match=r"other settings .* \(a lower --lr or --clip is taken"):
            open_run(gather(other, folder, True), folder, Quiet(), resume=True)
    talk = Quiet(("pruned", 25))
    run = open_run(gather({"lr": float(words[-1])}, folder, True), folder, talk, resume=True)
    said = "resumed with --lr 0.01 where it was 0.1: not the training that was typed"
    assert run.settings.lowered == (said,)
    with pytest.raises(KeyboardInterrupt):
        pipeline.trained(run)
    assert said in talk.notes
    again = open_run(gather({}, folder, True), folder, Quiet(), resume=True)
    assert again.settings == run.settings
    found = trained(again)
    assert [(e["epoch"], e["lr"]) for e in found["history"]] == [(1, 0.1), (2, 0.01), (3, 0.01)]


def test_halp_prunes_given_weights_down_to_the_budget_and_never_brings_a_channel_back(
    tmp_path: Path, profile: Path
) -> None:
    from halpiee.training.checkpoint import save_weights
    from halpiee.training.config import Masks

    torch.manual_seed(0)
    trained = tmp_path / "trained.safetensors"
    save_weights(trained, build("toy:net", num_classes=6).state_dict())
    given = settings(profile, method="halp", weights=str(trained), masks=Masks(rounds=4, interval=3))
    found = ended(open_run(given, tmp_path / "run", Quiet()))["pruned"]
    events = found["events"]
    assert [e["step"] for e in events[:4]] == [3, 6, 9, 12]
    assert events[-1]["used_us"] <= events[-1]["budget_us"] * (1 + 1e-9)
    for before, after in itertools.pairwise(events[:4]):
        assert all(after["counts"][name] <= k for name, k in before["counts"].items())
    assert found["predicted_us"] <= found["budget_us"] * (1 + 1e-6)


def test_the_small_dense_network_of_a_latency_is_the_widest_uniform_one(
    tmp_path: Path, profile: Path
) -> None:
    found = ended(open_run(settings(profile, method="small-dense"), tmp_path / "run", Quiet()))["pruned"]
    a, b = found["counts"]["conv1"], found["counts"]["conv2"]

    def cost(a: int, b: int) -> float:
        return 3 * 4 + 0.25 * (3 * a + a * b + b * 6) + 1 + 0.1 * b

    assert cost(a, b) <= 0.5 * cost(8, 12)
    assert found["predicted_us"] == pytest.approx(cost(a, b), rel=1e-6)
    assert found["events"] == []


def test_a_latency_is_met_after_a_tenth_and_all_the_rest_trains_compact(
    tmp_path: Path, profile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 steps, updates end after 6: one cycle of 2, 2 and 2. Step 7 is the first of the compact network."""
    step, sizes = Trainer.train_step, list[tuple[str, int, int, int]]()

    def noted(trainer: Trainer, *parts: tuple[Any, Any]) -> torch.Tensor:
        loss = step(trainer, *parts)
        held = [p for group in trainer.optimizer.param_groups for p in group["params"]]
        assert {id(p) for p in held} == {id(p) for p in trainer.model.parameters()}
        average = 0 if trainer.average is None else len(trainer.average.module.get_parameter("conv2.weight"))
        conv2 = trainer.model.get_parameter("conv2.weight")
        sizes.append(
            (trainer.stage, trainer.model.get_parameter("conv1.weight").shape[0], len(conv2), average)
        )
        return loss

    monkeypatch.setattr(Trainer, "train_step", noted)
    asked = settings(profile, epochs=2, batch_size=4, cycle=Cycle(), ema=0.9, baseline=False)
    assert asked.cycle.end == 0.1
    found = ended(open_run(asked, tmp_path / "run", Quiet()))["pruned"]
    assert [(e["step"], e["event"]) for e in found["events"]] == [
        (0, "init"),
        (2, "prune"),
        (6, "grow"),
        (6, "shrink"),
    ]
    a, b = (found["counts"][name] for name in ("conv1", "conv2"))
    assert a * b < 8 * 12
    last = ("masked", 8, 12, 12)  # its average is of the final mask, and begins anew with the cut
    assert sizes == [("masked", 8, 12, 0)] * 5 + [last] + [("compact", a, b, b)] * 54


@pytest.mark.parametrize("method", ["iee", "halp", "small-dense"])
def test_the_first_layer_stays_whole_in_every_training_to_a_latency_that_asks_for_it(
    method: str, tmp_path: Path, profile: Path
) -> None:
    from halpiee.training.checkpoint import save_weights
    from halpiee.training.config import Masks

    torch.manual_seed(0)
    trained = tmp_path / "trained.safetensors"
    save_weights(trained, build("toy:net", num_classes=6).state_dict())
    other = {"weights": str(trained), "masks": Masks(rounds=4, interval=3)} if method == "halp" else {}
    given = settings(profile, method=method, protect_first=True, budget="0.6", **other)
    run = open_run(given, tmp_path / "run", Quiet())
    found = ended(run)["pruned"]
    kept = widths(run.structure, found["counts"])
    assert kept["conv1"] == 8
    assert 0 < kept["conv2"] < 12
    assert found["predicted_us"] <= 0.6 * found["dense_us"] * (1 + 1e-6)


def test_plan_and_train_protect_the_first_layer_of_the_same_networks_and_by_the_same_option(
    tmp_path: Path, profile: Path
) -> None:
    from halpiee.structure.trace import trace

    net = trace(build("mobilenet_v1"), (torch.zeros(1, 3, 32, 32),))
    run = open_run(settings(profile), tmp_path / "run", Quiet())
    run.structure = net
    found = {}
    for model, asked in itertools.product(("mobilenet_v1", "toy:net"), (None, True, False)):
        run.settings = settings(profile, model=model, protect_first=asked)
        run.__dict__.pop("protected", None)
        found[model, asked] = run.protected
    whole, free = (net.layers[0].out_groups[0][0],), ()
    assert found == {
        ("mobilenet_v1", None): whole,
        ("mobilenet_v1", True): whole,
        ("mobilenet_v1", False): free,
        ("toy:net", None): free,
        ("toy:net", True): whole,
        ("toy:net", False): free,
    }


def test_a_budget_that_only_a_narrower_first_layer_reaches_is_refused_before_training(
    tmp_path: Path, profile: Path
) -> None:
    # 13 + 0.25·(3a + ab + 6b) + 0.1b: 15.6 µs at a = b = 1, 22.6 µs at a = 8, b = 1; dense takes 62.2 µs
    with pytest.raises(BudgetError, match="the smallest network that training can reach") as caught:
        execute(settings(profile, budget="0.3", protect_first=True), tmp_path / "a")
    assert caught.value.minimum == pytest.approx(13 + 0.25 * (24 + 8 + 6) + 0.1)
    cost = pipeline.priced(open_run(settings(profile, budget="0.3"), tmp_path / "b", Quiet()))
    assert cost.dense_us == pytest.approx(62.2)


@pytest.mark.slow  # trains, exports and times two small networks
def test_a_run_without_a_baseline_says_that_its_dense_file_was_never_trained(
    toy: None, tmp_path: Path, profile: Path
) -> None:
    from latency.backends.onnxruntime.model import read_metadata

    talk, folder = Quiet(), tmp_path / "run"
    report = execute(settings(profile, baseline=False), folder, talk)
    note = "no dense network was trained: dense.onnx has its initial weights, and is there to be timed"
    assert report["notes"] == [note]
    assert report["weights_dense"] == "initial"
    assert read_metadata(folder / "dense.onnx")["weights"] == "initial"
    assert "weights" not in read_metadata(folder / "pruned.onnx")
    for page in ("report.md", "report.html"):
        assert "initial: no dense network was trained" in (folder / page).read_text(encoding="utf-8")


def test_a_run_keeps_further_limits_and_cuts_only_what_it_may(tmp_path: Path, profile: Path) -> None:
    asked = settings(profile, budget="0.9", also=("params=0.6", f"profile={profile}:0.7"), min_width=2.0)
    report = execute(asked, tmp_path / "run")
    params, second = report["limits"]
    assert report["promise"]["least"] == 0.0  # another limit holds the network back
    assert (params["limit"], second["limit"]) == ("params", str(profile))
    for limit in (params, second):
        assert limit["used"] <= limit["most"] * (1 + 1e-9)
        assert limit["measured"] is None  # the clock of this test times nothing
    kept = report["widths"]
    assert params["used"] == 27 * kept["conv1"] + 9 * kept["conv1"] * kept["conv2"] + 6 * kept["conv2"]
    assert params["most"] == pytest.approx(0.6 * (27 * 8 + 9 * 8 * 12 + 6 * 12))
    assert min(kept["conv1"], kept["conv2"]) >= 2
    asked = settings(profile, budget="0.8", only=("conv2",), multiple_of=3, baseline=False)
    only = open_run(asked, tmp_path / "only", Quiet())
    kept = widths(only.structure, ended(only)["pruned"]["counts"])
    assert kept["conv1"] == 8
    assert kept["conv2"] in (3, 6, 9)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"also": ("joy=1",)}, "that is no profile file, and the quantities are macs, params, memory"),
        ({"only": ("conv3",)}, "--only conv3 was asked, and no layer is called that; did you mean"),
        ({"protect": ("conv*",)}, "--protect leave all 2 groups whole, so nothing can be cut"),
        (
            {"budget": None, "masks": Masks(sparsity=0.5), "also": ("macs=0.5",)},
            "--also was given to a run to a",
        ),
        ({"method": "small-dense", "vanish": True}, "--vanish was given to --method small-dense"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_before_anything_is_measured(
    tmp_path: Path, profile: Path, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(text)):
        execute(settings(profile, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()
