"""Benchmarks keep rows, and the tables of the results page are written from the newest of them."""

import json
from pathlib import Path

import pytest

from tools.results import MARKED, PAGE, append, markdown, newest, page


def test_a_row_has_its_commit_machine_and_date_before_its_columns(tmp_path: Path) -> None:
    append("speed", [{"network": "a", "ms": 1.5}], folder=tmp_path)
    append("speed", [{"network": "b", "ms": 2.5}], folder=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "speed.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["commit", "machine", "date", "network", "ms"]] * 2
    assert [row["network"] for row in rows] == ["a", "b"]


def test_of_rows_with_one_key_the_newest_counts_in_the_place_of_the_first() -> None:
    rows = [{"network": "a", "ms": 1}, {"network": "b", "ms": 2}, {"network": "a", "ms": 3}]
    assert newest(rows, ["network"]) == [{"network": "a", "ms": 3}, {"network": "b", "ms": 2}]


def test_only_the_machines_that_are_asked_for_count() -> None:
    rows = [{"machine": "Intel Xeon", "n": 1}, {"machine": "AMD EPYC", "n": 2}]
    assert newest(rows, ["n"], "EPYC") == [{"machine": "AMD EPYC", "n": 2}]


@pytest.mark.parametrize(
    ("value", "cell"),
    [
        (None, "–"),
        (1234, "1,234"),
        (0.00637, "0.00637"),
        (81.6, "81.6"),
        (12345.6, "12,346"),
        ("3 of 3", "3 of 3"),
    ],
)
def test_a_cell_has_four_digits_at_most(value: object, cell: str) -> None:
    assert markdown([{"x": value}]).splitlines()[-1] == f"| {cell} |"


def test_a_marked_table_is_written_again_and_the_text_around_it_stays(tmp_path: Path) -> None:
    append("speed", [{"network": "a", "ms": 1.5}, {"network": "a", "ms": 1.25}], folder=tmp_path)
    text = "before\n<!-- table speed key=network -->\nold\n<!-- end -->\nafter\n"
    table = "| network | ms |\n| --- | --- |\n| a | 1.25 |"
    expected = f"before\n<!-- table speed key=network -->\n\n{table}\n\n<!-- end -->\nafter\n"
    assert page(text, folder=tmp_path) == expected
    assert page(expected, folder=tmp_path) == expected


def test_the_results_page_is_what_its_rows_say() -> None:
    text = PAGE.read_text()
    assert page(text) == text


def test_every_table_of_the_results_page_comes_from_rows() -> None:
    assert "| --- |" not in MARKED.sub("", PAGE.read_text())


def test_a_marked_comparison_is_written_again_from_its_rows(tmp_path: Path) -> None:
    row = {
        "key": "a",
        "contestant": "early",
        "budget": 0.5,
        "seed": 0,
        "accuracy": 0.7,
        "latency_us": 5,
        "dense_us": 10,
    }
    (tmp_path / "study.jsonl").write_text(json.dumps(row) + "\n")
    text = page("before\n<!-- comparison study -->\nold\n<!-- end -->\nafter", folder=tmp_path)
    assert text.startswith("before\n<!-- comparison study -->\n")
    assert text.endswith("<!-- end -->\nafter")
    assert "| early | 0.5 | 0 | 70.0 | – | 0.500 | – | – |" in text
    assert "old" not in text
