"""The promise, and training FLOPs from what each step used and moved."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from halpiee.training.record import effective_macs, line_of, line_values, predicted, promise, train_flops
from latency.predict import Calibration, Interval


def test_a_latency_over_103_percent_of_the_budget_breaks_the_promise() -> None:
    assert promise(103.0, 100.0, 5.0)["met"]
    missed = promise(103.1, 100.0, 5.0)
    assert not missed["met"]
    assert "over it" in missed["text"]


def test_leaving_more_than_a_step_unused_breaks_it_too() -> None:
    # next step 2 %: at least min(0.93, 1 − 0.03) = 0.93 is promised
    assert promise(93.0, 100.0, 2.0)["met"]
    assert not promise(92.9, 100.0, 2.0)["met"]
    # next step 10 %: at least 0.85
    assert promise(85.0, 100.0, 10.0)["met"]
    assert not promise(84.9, 100.0, 10.0)["met"]


def test_a_network_with_everything_active_has_nothing_left_to_use() -> None:
    assert promise(50.0, 100.0, math.nan)["met"]


def test_a_prediction_carries_the_range_that_its_cost_knows() -> None:
    cost = SimpleNamespace(total_us=lambda counts: 10.0 * counts["g"], interval=lambda _: None)
    assert predicted(cost, {"g": 3}) == {"predicted_us": 30.0}  # type: ignore[arg-type]
    cost.interval = lambda counts: Interval(30.0, 9.0 * counts["g"], 11.0 * counts["g"], 0.9)
    known = {"predicted_us": 30.0, "predicted_low_us": 27.0, "predicted_high_us": 33.0}
    assert predicted(cost, {"g": 3}) == known  # type: ignore[arg-type]


def test_training_flops_follow_from_the_two_masks() -> None:
    # dense 10 MACs, 10 steps; 4 active while training 6 steps and exploring 2, then 2 compact steps
    log = [(6, "train", {"g": 4}), (2, "explore", {"g": 4}), (2, "compact", {"g": 4})]
    found = train_flops(log, lambda counts: counts.get("g", 10), 10)
    # paper: 6·3·4 + 2·(10 + 2·4) + 2·3·4 = 132; strict: 6·12 + 2·(30 − 4) + 24 = 148; of 3·10·10
    assert found == {"paper": pytest.approx(132 / 300), "strict": pytest.approx(148 / 300)}


def test_iee_formula_of_the_paper_comes_out() -> None:
    # Equal thirds of H, J and Q in the first share e = 3/4, p active: paper p + (1 − p) e/9, strict p + (3 − 4 p) e/9
    p, log = 0.4, [(50, "train", {"g": 4}), (25, "explore", {"g": 4}), (25, "train", {"g": 4})]
    found = train_flops(log, lambda counts: counts.get("g", 10), 100)
    assert found["paper"] == pytest.approx(p + (1 - p) * 0.75 / 9)
    assert found["strict"] == pytest.approx(p + (3 - 4 * p) * 0.75 / 9)


@pytest.mark.parametrize("bend", [None, ((300.0, 310.0), (500.0, 600.0))])
def test_a_calibration_comes_back_from_its_file_as_it_was(
    bend: tuple[tuple[float, float], tuple[float, float]] | None,
) -> None:
    line = Calibration(10.0, 1.0, ((100.0, 110.0), (500.0, 600.0)), bend)
    values = json.loads(json.dumps(line_values(line)))
    assert line_of(values) == line
    assert values["worst"] == pytest.approx(0.0 if bend else 90 / 600)
    del values["bend"]  # as a run of before wrote it
    assert line_of(values).bend is None


def test_a_layer_that_runs_twice_has_one_density() -> None:
    # 100 MACs a call at a half, 10 of a layer that is dense
    assert effective_macs({"a": 100, "a#2": 100, "b": 10}, {"a.weight": 0.5}) == 110
