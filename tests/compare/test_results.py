"""Rows on disk: whole or not there, whoever writes at the same time."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from halpiee.compare.results import Row, lines, read_rows, render_html, render_markdown, sheet_of
from halpiee.errors import UsageError
from halpiee.sheet import FILE


def row(seed: int, contestant: str = "uniform", accuracy: float = 0.5, **more: Any) -> Row:
    return Row(
        key=f"{contestant}-{seed}",
        contestant=contestant,
        budget=0.5,
        seed=seed,
        accuracy=accuracy,
        latency_us=50.0,
        dense_us=100.0,
        **more,
    )


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [row(0, counts={"conv1": 8}, commit="abc"), row(1, train_macs=3e12)]
    for one in rows:
        sheet_of(tmp_path).append(one)
    assert read_rows(tmp_path) == read_rows(tmp_path / FILE) == rows


def test_a_torn_last_line_is_left_out_and_the_next_row_stands_whole(tmp_path: Path) -> None:
    sheet_of(tmp_path).append(row(0))
    whole = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole + whole[:30])
    assert read_rows(tmp_path) == [row(0)]
    sheet_of(tmp_path).append(row(1))
    assert read_rows(tmp_path) == [row(0), row(1)]


def test_a_line_that_is_no_row_is_named_with_its_field(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"key": "a", "contestant": "b", "budget": "half", "seed": 0}\n')
    with pytest.raises(
        UsageError, match=r"line 1 of .* is no row of a comparison: it holds 'half' at budget"
    ):
        read_rows(tmp_path)
    (tmp_path / FILE).write_text("no JSON\n")
    with pytest.raises(UsageError, match=r"line 1 of .* is no JSON"):
        read_rows(tmp_path)
    with pytest.raises(UsageError, match="`halpiee compare` writes one"):
        read_rows(tmp_path / "none")


def _write(folder: Path, first: int) -> None:
    for seed in range(first, first + 50):
        sheet_of(folder).append(row(seed))


def test_processes_that_write_at_once_lose_no_row(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    others = [fork.Process(target=_write, args=(tmp_path, first)) for first in (0, 50, 100)]
    for one in others:
        one.start()
    for one in others:
        one.join()
    assert sorted(r.seed for r in read_rows(tmp_path)) == list(range(150))


def test_a_table_shows_gains_over_uniform_and_never_mixes_settings() -> None:
    rows = [
        row(0, accuracy=0.60),
        row(1, accuracy=0.62),
        row(0, "early", 0.63, seconds=10.0, start_seconds=300.0),
        row(1, "early", 0.65, seconds=14.0, start_seconds=300.0),
    ]
    assert lines(rows)[0] == (
        "early",
        "0.5",
        "0, 1",
        "64.0 ± 12.7",
        "+3.0 ± 0.0 (2 of 2)",
        "0.500",
        "300 + 12",
        "–",
    )
    other = [row(0, "early", 0.99, setting="x", title="<another>")]
    text = render_markdown([*rows, *other])
    assert text.count("| early | 0.5 |") == 2
    assert "| early | 0.5 | 0 | 99.0 | – |" in text
    page = render_html([*rows, *other])
    assert "&lt;another&gt;" in page
    assert "http" not in page.replace("http://www.w3.org", "")
