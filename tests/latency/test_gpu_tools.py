"""What runs when a GPU is lent: checks of the timing, predictions on torch, and the list of steps; here on the CPU."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from latency.backends import Built
from latency.backends.torch.network import ModuleRunner
from latency.errors import UsageError
from latency.timing.benchmark import Comparison
from tools import bench_latency, gpu_checks, gpu_session
from tools.gpu_session import Step


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Steps can be interrupted, also where a shell in the background lets these tests ignore that: ten seconds less."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def build(*rows: tuple[float, float, str]) -> list[dict[str, Any]]:
    return [{"op": {"c_in": 1}, "slope_us": s, "event_us": e, "tactic": t} for s, e, t in rows]


def test_ratio_choices_and_distance_of_builds_are_per_op() -> None:
    found = gpu_checks.agreement(
        [build((10.0, 14.0, "a"), (50.0, 52.0, "b")), build((11.0, 14.0, "c"), (50.0, 52.0, "b"))]
    )
    first, second = found["slope_and_event"]
    assert first["event_over_slope"] == pytest.approx(14.0 / 10.5)
    assert (first["choices"], second["choices"]) == (2, 1)
    assert first["apart"] == pytest.approx(0.1)
    assert second["apart"] == 0.0
    assert found["builds"] == {"n": 2, "differ": 0.5}


def test_a_staircase_jumps_where_a_width_takes_clearly_longer() -> None:
    assert gpu_checks.jumps([8, 16, 24, 32, 40], [10.0, 10.5, 15.0, 14.9, 16.2]) == [24, 40]


def test_an_op_that_runs_alone_is_timed_eight_times_beside_once() -> None:
    calls = []
    many, one, copies = gpu_checks.pair(Built(run=lambda: calls.append(1)))
    many()
    assert (len(calls), copies) == (8, 7)
    one()
    assert len(calls) == 9


def test_a_module_is_called_as_often_as_asked_in_its_precision_and_layout() -> None:
    seen = []

    class Seen(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append((x.dtype, x.is_contiguous(memory_format=torch.channels_last)))
            answer: torch.Tensor = self.conv(x)
            return answer

    model = Seen()
    example = (torch.randn(2, 3, 8, 8),)
    with ModuleRunner(
        model, example, device="cpu", precision="bf16", channels_last=True, forwards=3
    ) as runner:
        seen.clear()
        answer = runner.run()
        assert isinstance(answer, torch.Tensor)
        assert answer.dtype == torch.bfloat16
    assert seen == [(torch.bfloat16, True)] * 3
    assert model.conv.weight.dtype == torch.float32


def test_onnx_runtime_is_not_asked_for_half_precision() -> None:
    with pytest.raises(UsageError, match="leave them out, or add --backend torch"):
        bench_latency.Slopes(precision="fp16")


def test_a_network_takes_what_three_more_forwards_take_over_three(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Comparison({"dense×1": [5.0, 6.0, 5.0], "dense×4": [35.0, 36.0, 41.0]}, "wall", {})
    monkeypatch.setattr(bench_latency.Slopes, "compare", lambda *asked, **settings: found)
    target = bench_latency.Slopes("torch", "cpu")
    assert target.measured_us({"dense": {"1": None, "4": None}}, (), 9) == {"dense": 10.0}


def test_a_network_on_torch_is_timed_with_its_batch_norms_folded_and_computes_the_same() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, eps=0.5), torch.nn.ReLU())
    model.eval()
    example = (torch.randn(2, 3, 8, 8),)
    slopes = bench_latency.Slopes("torch", "cpu").call(model, example)
    with slopes["4"] as runner, torch.autograd.profiler.profile() as seen:
        found = runner.run()
    names = [event.name for event in seen.function_events]
    assert "aten::conv2d" in names
    assert "aten::batch_norm" not in names
    torch.testing.assert_close(found, model(*example))


def test_steps_that_ended_well_are_not_done_again_and_others_are(tmp_path: Path) -> None:
    count = "import pathlib; p = pathlib.Path('{}'); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    good, bad = tmp_path / "good", tmp_path / "bad"
    chosen = [
        Step("good", (sys.executable, "-c", count.format(good)), 20.0),
        Step("bad", (sys.executable, "-c", count.format(bad) + "; raise SystemExit(3)"), 20.0),
    ]
    assert [gpu_session.run(chosen, tmp_path, 100.0) for _ in range(2)] == [4, 4]
    assert (good.read_text(), bad.read_text()) == ("x", "xx")
    ended = json.loads((tmp_path / "session.json").read_text())
    assert (ended["good"]["ended"], ended["bad"]["ended"]) == ("well", "with exit code 3")


def test_a_step_is_ended_at_its_limit_and_the_next_one_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_session, "LEAST", 2.0)
    chosen = [
        Step("long", (sys.executable, "-c", "import time; time.sleep(60)"), 0.3),
        Step("next", (sys.executable, "-c", "print('said')"), 20.0),
    ]
    assert gpu_session.run(chosen, tmp_path, 4.0) == 4
    ended = json.loads((tmp_path / "session.json").read_text())
    assert (ended["long"]["ended"], ended["next"]["ended"]) == ("out of time", "well")
    assert (tmp_path / "next.log").read_text() == "said\n"


def test_without_time_no_step_is_begun(tmp_path: Path) -> None:
    assert gpu_session.run([Step("any", ("nothing",), 20.0)], tmp_path, 1.0) == 4
    assert json.loads((tmp_path / "session.json").read_text())["any"]["ended"] == "no time left"


def test_a_step_that_was_late_goes_on_and_what_waits_for_it_comes_after(tmp_path: Path) -> None:
    there = tmp_path / "there"
    late = f"import pathlib, time; p = pathlib.Path('{there}'); p.exists() or (p.touch(), time.sleep(60))"
    chosen = [
        Step("late", (sys.executable, "-c", late), 0.7),
        Step("after", (sys.executable, "-c", "print('said')"), 20.0, needs=("late",)),
    ]
    assert gpu_session.run(chosen, tmp_path, 100.0) == 0
    assert (tmp_path / "after.log").read_text() == "said\n"


def test_what_waits_for_a_step_that_failed_is_not_begun(tmp_path: Path) -> None:
    chosen = [
        Step("bad", (sys.executable, "-c", "raise SystemExit(3)"), 20.0),
        Step("after", (sys.executable, "-c", "print('said')"), 20.0, needs=("bad",)),
    ]
    assert gpu_session.run(chosen, tmp_path, 100.0) == 4
    assert json.loads((tmp_path / "session.json").read_text())["after"]["ended"] == "waits for bad"
    assert not (tmp_path / "after.log").exists()


def test_every_step_needs_only_steps_before_it_and_no_two_have_one_name(tmp_path: Path) -> None:
    for device, trial in (("cuda", False), ("cpu", True)):
        seen: list[str] = []
        for step in gpu_session.steps(tmp_path, device, trial, tmp_path):
            assert set(step.needs) <= set(seen)
            assert step.name not in seen
            seen.append(step.name)


def test_the_list_names_the_profiles_that_are_to_be_shipped(tmp_path: Path) -> None:
    names = {step.name for step in gpu_session.steps(tmp_path, "cuda", False)}
    for model in ("resnet50", "mobilenet_v1", "resnet20"):
        for precision in ("fp32", "fp16"):
            assert {f"profile-{model}-{precision}-b{batch}" for batch in (1, 32, 256)} <= names
