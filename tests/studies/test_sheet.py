"""The rows of a study: half a line is cut off, another version is refused, a cell belongs to one process."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from halpiee.errors import UsageError
from halpiee.studies.results import Row, sheet_of
from halpiee.studies.work import check_rows


def row(cell: str, version: str = "v1", study: str = "mine") -> Row:
    return Row(
        study=study,
        version=version,
        cell=cell,
        labels={"method": cell},
        seed=0,
        values={"accuracy": 0.5, "curve": [(1.0, 2.0)]},
        seconds=1.0,
        date="2026-01-01T00:00:00+00:00",
        machine="x",
    )


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path / "out")
    assert sheet.rows() == []
    sheet.append(row("a"))
    sheet.append(row("b"))
    assert [r.cell for r in sheet_of(tmp_path / "out").rows()] == ["a", "b"]
    assert sheet.rows()[0].values["curve"] == [[1.0, 2.0]]


def test_half_a_line_is_left_out_and_cut_off_by_the_next_row(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path)
    sheet.append(row("a"))
    whole = sheet.path.read_bytes()
    sheet.path.write_bytes(whole + whole[:40])
    assert [r.cell for r in sheet.rows()] == ["a"]
    sheet.append(row("b"))
    assert [json.loads(line)["cell"] for line in sheet.path.read_text().splitlines()] == ["a", "b"]


def test_a_broken_line_among_whole_ones_is_refused_by_its_number(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path)
    sheet.append(row("a"))
    sheet.path.write_bytes(sheet.path.read_bytes() + b'{"study": 3}\n')
    with pytest.raises(UsageError, match=r"line 2 of .*rows.jsonl is no row of a study: .*delete the line"):
        sheet.rows()


def test_rows_of_another_version_or_study_are_refused(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path)
    sheet.append(row("a"))
    check_rows(sheet, "mine", "v1")
    with pytest.raises(UsageError, match=r"holds rows of mine in version v1, and this is mine in version v2"):
        check_rows(sheet, "mine", "v2")
    with pytest.raises(UsageError, match=r"and this is other in version v1: .*choose another --out"):
        check_rows(sheet, "other", "v1")


def test_a_cell_is_claimed_once_at_a_time_and_leaves_nothing(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path)
    with sheet.claimed("a") as mine:
        assert mine
        with sheet_of(tmp_path).claimed("a") as again, sheet_of(tmp_path).claimed("b") as other:
            assert not again
            assert other
    with sheet.claimed("a") as mine:
        assert mine
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_last_row_whose_newline_was_torn_counts_and_stays(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path)
    sheet.append(row("a"))
    sheet.path.write_bytes(sheet.path.read_bytes().rstrip())
    assert [r.cell for r in sheet.rows()] == ["a"]
    sheet.append(row("b"))
    assert [r.cell for r in sheet.rows()] == ["a", "b"]


def test_a_cell_that_cannot_be_done_now_is_passed_over_with_all_that_come_after_it(tmp_path: Path) -> None:
    cells = [
        SimpleNamespace(name="a", after=None),
        SimpleNamespace(name="b", after="a"),
        SimpleNamespace(name="c", after=None),
    ]
    asked: list[str] = []

    def make(cell: SimpleNamespace) -> Row | None:
        asked.append(cell.name)
        return None if cell.name == "a" and len(asked) == 1 else row(cell.name)

    sheet = sheet_of(tmp_path)
    with sheet.claimed("c"):
        sheet.fill(cells, make, wait=False)
    assert (asked, sheet.rows()) == (["a"], [])
    sheet.fill(cells, make, wait=False)
    assert [r.cell for r in sheet.rows()] == ["a", "b", "c"]
