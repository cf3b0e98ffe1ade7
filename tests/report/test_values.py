"""Numbers become text with the digits they deserve, and what is missing becomes a dash."""

from typing import Any

import pytest

from halpiee.report.values import Row, comparison, count, facts, latency, number, percent, seconds, title


@pytest.mark.parametrize(
    ("value_us", "spread_us", "text"),
    [
        (521.37, 9.3, "521.4 µs"),  # two digits of the spread: 9.3 → tenths
        (521.37, 12.0, "521 µs"),  # 12 → whole µs
        (521.37, 0.04, "521.370 µs"),  # never more than thousandths
        (521.37, 300.0, "521 µs"),  # never fewer than whole µs
        (12_345.6, 220.0, "12.35 ms"),  # 0.22 ms → hundredths
        (521.37, None, "521 µs"),  # three digits without a spread
        (7.4, None, "7.40 µs"),
        (0.0, None, "0 µs"),
        (None, 3.0, "–"),
    ],
)
def test_a_latency_has_the_digits_that_its_spread_supports(
    value_us: float | None, spread_us: float | None, text: str
) -> None:
    assert latency(value_us, spread_us) == text


def test_dense_and_pruned_stand_in_one_unit() -> None:
    rows = {
        row.label: row
        for row in comparison({"dense_us": 24_310.0, "measured_us": 7_660.0, "budget_us": 7_700.0})
    }
    assert (rows["Latency, measured"].dense, rows["Latency, measured"].pruned) == ("24.3 ms", "7.66 ms")
    assert rows["Latency, budget"].pruned == "7.70 ms"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (40_812_544, "40.8 M"),
        (1_076_912, "1.08 M"),
        (412_345, "412 k"),
        (17, "17"),
        (4.1e9, "4.10 G"),
        (None, "–"),
    ],
)
def test_counts_have_three_digits_and_a_unit(value: float | None, text: str) -> None:
    assert count(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(8.34, "8.3 s"), (59.7, "59.7 s"), (125.2, "2 min 05 s"), (4200, "1 h 10 min"), (None, "–")],
)
def test_durations_are_read_at_a_glance(value: float | None, text: str) -> None:
    assert seconds(value) == text


def test_fractions_become_percentages() -> None:
    assert percent(0.98312) == "98.31%"
    assert percent(None) == "–"


@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), "12", True, [1]])
def test_what_is_not_a_finite_number_is_missing(value: Any) -> None:
    assert number({"x": value}, "x") is None
    assert number({"x": value}, "x", "y") is None


def test_the_comparison_is_pruned_over_dense_in_every_row(report: dict[str, Any]) -> None:
    assert comparison(report) == [
        Row("Latency, budget", "–", "260 µs", "0.50×"),
        Row("Latency, predicted", "–", "258 µs", "0.50×"),
        Row("Latency, measured", "520 µs (IQR 12)", "262.9 µs (IQR 4.4)", "0.51×"),
        Row("Speed-up, side by side", "–", "1.98× (95%: 1.95 to 2.01)", "–"),
        Row("Images per second", "1,923", "3,846", "2.00×"),
        Row("MACs per image", "40.8 M", "10.2 M", "0.25×"),
        Row("Parameters", "272 k", "68.0 k", "0.25×"),
        Row("Top-1 accuracy", "99.00%", "98.50%", "−0.50 points"),
        Row("Top-5 accuracy", "100.00%", "99.75%", "−0.25 points"),
        Row("Training FLOPs, paper", "1", "0.551", "0.55×"),
        Row("Training FLOPs, strict", "1", "0.613", "0.61×"),
        Row("Training time", "1 min 30 s", "1 min 00 s", "0.67×"),
    ]


def test_top_five_is_left_out_where_there_are_not_more_than_five_classes(report: dict[str, Any]) -> None:
    report |= {"top5_dense": None, "top5_pruned": None}
    assert "Top-5 accuracy" not in [row.label for row in comparison(report)]


def test_without_a_baseline_the_pruned_side_stands_alone(report: dict[str, Any]) -> None:
    report |= {"accuracy_dense": None, "top5_dense": None}
    rows = {row.label: row for row in comparison(report)}
    assert rows["Top-1 accuracy"] == Row("Top-1 accuracy", "–", "98.50%", "–")
    assert rows["Top-5 accuracy"] == Row("Top-5 accuracy", "–", "99.75%", "–")


def test_an_empty_report_is_all_dashes() -> None:
    for row in comparison({}):
        assert (row.dense, row.pruned, row.ratio) == ("–", "–", "–")
    assert {value for _, value in facts({})} == {"–"}


def test_seconds_of_training_come_before_seconds_of_the_stage(report: dict[str, Any]) -> None:
    report["seconds_training"] = {"dense": 80.0, "pruned": 40.0}
    row = next(row for row in comparison(report) if row.label == "Training time")
    assert row == Row("Training time", "1 min 20 s", "40.0 s", "0.50×")


def test_the_facts_say_how_near_the_export_and_the_prediction_are(report: dict[str, Any]) -> None:
    found = dict(facts(report))
    assert found["ONNX against PyTorch, relative L2"] == "3.1e-07"
    assert found["Network = a + b · sum of layers"] == "a = 12.1 µs, b = 0.981"
    bent = {**report, "calibration": {**report["calibration"], "bend": [[270.0, 280.0], [400.0, 520.0]]}}
    told = dict(facts(bent))["Network = a + b · sum of layers"]
    assert told == "a = 12.1 µs, b = 0.981 up to 280 µs, a line to the dense network beyond"
    assert found["Certified gap of the selection"] == "0.012%"
    assert found["Whole run"] == "1 h 02 min"


def test_the_title_reads_a_share_as_a_percentage_and_a_time_as_it_is(report: dict[str, Any]) -> None:
    assert title(report) == "resnet20 on digits, budget 50% of the dense latency"
    assert title(report | {"budget": "12.5ms"}) == "resnet20 on digits, budget 12.5ms"


def test_files_are_told_with_their_zipped_size_and_zeros_with_what_they_bring(report: dict[str, Any]) -> None:
    found = dict(facts(report))
    assert found["Dense file"] == "1.09 MB, zipped 1.01 MB"
    assert found["Pruned file"] == "0.28 MB, zipped 0.26 MB"
    assert "Zeros in the pruned file" not in found
    report["zeros"]["pruned"]["share"] = 0.9
    assert dict(facts(report))["Zeros in the pruned file"] == "90.0% of the weights; no speed from them here"
