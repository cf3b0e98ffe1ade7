"""What runs when a GPU is lent: checks of the timing, and predictions on torch; here on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from latency.backends import Built
from latency.backends.torch.network import ModuleRunner
from latency.errors import UsageError
from latency.timing.benchmark import Comparison
from tools import bench_latency, gpu_checks


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
