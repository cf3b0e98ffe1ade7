"""Profiles as tables for other programs, joined, and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import latency
from latency.inspect import draw
from latency.profile_io import conflicts
from latency.profiles import Profile

from .fakes import FakeBackend, conv, staircase


def cell(c_out: int, us: float, **fields: Any) -> dict[str, Any]:
    return {**conv(8, c_out).key(), "us": us, **fields}


def test_cells_that_two_profiles_see_differently_are_named_worst_first() -> None:
    a = Profile({}, [cell(8, 10.0), cell(16, 20.0), cell(24, 30.0), cell(32, 40.0, role="holdout")])
    b = Profile({}, [cell(8, 10.4), cell(16, 22.0), cell(24, 60.0), cell(32, 80.0, role="holdout")])
    assert [(c.c_out, c.us) for c in conflicts([a, b])] == [(24, (30.0, 60.0)), (16, (20.0, 22.0))]


def test_a_drawing_has_a_row_for_every_table_and_says_what_it_shows(tmp_path: Path) -> None:
    ops = [conv(3, 16), conv(32, 32), conv(32, 32, groups=32)]
    profile = latency.sweep(ops, backend=FakeBackend(staircase(8)))
    assert draw(profile, tmp_path / "all.svg") == 3
    assert draw(profile, tmp_path / "one.png", tables=1) == 1
    text = (tmp_path / "all.svg").read_text()
    assert text.count('<g id="axes_') == 9 + 1  # three columns a row, and the colours of the only heat map
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_a_drawing_keeps_its_rows_apart_and_names_its_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib import pyplot

    drawn: list[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    profile = latency.sweep([conv(32, 32), conv(32, 64)], backend=FakeBackend(staircase(8)))
    draw(profile, tmp_path / "all.png")
    monkeypatch.undo()
    (figure,) = drawn
    above, below = figure.axes[0], figure.axes[3]
    title = below.get_title(loc="left")
    text = next(t for t in below.get_children() if getattr(t, "get_text", str)() == title)
    renderer = figure.canvas.get_renderer()
    gap = above.xaxis.label.get_window_extent(renderer).y0 - text.get_window_extent(renderer).y1
    assert gap > 8
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [
        "time at the right edge of each step",
        "widths between, where slower than the edge",
        "measured cell",
    ]
    pyplot.close(figure)
