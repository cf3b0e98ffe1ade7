"""Means over seeds by hand, their tables, and the figure's lines."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from halpiee.sheet import Mean
from halpiee.studies import read
from halpiee.studies.results import (
    Row,
    curves,
    draw,
    figure,
    means,
    show,
    table_csv,
    table_markdown,
    table_rows,
)

from .test_study import study, written


def row(method: str, sparsity: str, seed: int, **values: Any) -> Row:
    return Row(
        study="mine",
        version="v",
        cell=f"{method}{sparsity}{seed}",
        labels={"sparsity": sparsity, "method": method},
        seed=seed,
        values=values,
        seconds=2.0,
        date="2026-01-01",
        machine="x",
    )


ROWS = [
    row("static", "0.5", 0, accuracy=0.80),
    row("static", "0.5", 1, accuracy=0.82),
    row("static", "0.5", 2, accuracy=0.84),
    row("RigL", "0.5", 0, accuracy=0.9),
    row("static", "0.9", 0, accuracy=None),  # JSON's NaN
]


def test_a_mean_has_its_spread_and_students_interval() -> None:
    mean = Mean.of([0.80, 0.82, 0.84])
    assert mean.mean == pytest.approx(0.82)
    assert mean.std == pytest.approx(0.02)
    assert mean.n == 3
    # t of two degrees of freedom at 97.5 % is 4.302653; the half width is t·s/√n
    assert mean.half == pytest.approx(4.302653 * 0.02 / math.sqrt(3))
    assert mean.text() == "82.0 ± 2.0"
    assert Mean.of([0.5]).text() == "50.0"
    assert math.isnan(Mean.of([0.5]).half)
    assert Mean.of([math.nan]).text() == "–"


def test_means_are_over_seeds_and_nothing_else() -> None:
    found = means(ROWS, "accuracy", ["method", "sparsity"])
    assert found["static", "0.5"].n == 3
    assert found["RigL", "0.5"].mean == 0.9
    assert ("static", "0.9") not in found


def test_lists_are_averaged_point_by_point() -> None:
    rows = [row("static", "0.5", s, curve=[[1, 0.1 * s], [2, 1.0]]) for s in (0, 1)]
    found = curves(rows, "curve", ["method"])["static",]
    assert found[1.0].mean == pytest.approx(0.05)
    assert found[2.0].std == 0


def test_the_table_shows_what_the_paper_prints_beside(tmp_path: Path) -> None:
    held = study(tmp_path, paper=[{"method": "RigL", "sparsity": 0.5, "accuracy": 0.93}])
    assert table_rows(held, ROWS) == [
        ["method", "accuracy 0.5", "accuracy 0.9"],
        ["static", "82.0 ± 2.0", "–"],
        ["RigL", "90.0 (93.0)", "–"],
    ]
    assert table_markdown(held, ROWS).splitlines()[1] == "| --- | ---: | ---: |"
    lines = table_csv(held, ROWS).splitlines()
    assert lines[0] == "sparsity,method,quantity,x,mean,std,ci95,n"
    assert lines[1] == "0.5,static,accuracy,,0.82,0.02,0.0496828,3"
    assert lines[2] == "0.5,RigL,accuracy,,0.9,,,1"


def test_the_figure_draws_one_line_a_label_at_its_means(tmp_path: Path) -> None:
    rows = [*ROWS[:4], row("static", "0.9", 0, accuracy=0.7)]
    axes = figure(study(tmp_path, paper=[{"method": "RigL", "sparsity": 0.5, "accuracy": 0.93}]), rows).axes[
        0
    ]
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert lines["static"].get_xydata().tolist() == [[0.5, pytest.approx(82.0)], [0.9, pytest.approx(70.0)]]
    assert lines["RigL"].get_xydata().tolist() == [[0.5, 90.0]]
    hollow = [line for line in axes.get_lines() if line.get_markerfacecolor() == "none"]
    assert [line.get_xydata().tolist() for line in hollow] == [[[0.5, pytest.approx(93.0)]]]


def test_a_panel_and_the_tables_name_the_network_that_trained(tmp_path: Path) -> None:
    """At the smallest scale, or by --set, one network stands in for those of the axis; other labels stay."""
    grid = {"model": ["resnet56", "vgg13_bn"], "net": {"ResNet-8": {"model": "resnet8"}}}
    file = {
        "options": {"epochs": 10, "method": "static", "sparsity": 0.5},
        "grid": {**grid, "method": ["static", "set"]},
        "table": {"rows": ["method"], "columns": ["model", "net"], "values": ["accuracy"]},
        "figure": {"x": "method", "y": "accuracy", "panels": ["model", "net"], "xscale": "labels"},
        "smallest": {"options": {"model": "resnet8"}, "grid": {"model": ["resnet56"]}},
    }
    path = written(tmp_path, **file)
    whole, small = read(path), read(path, scale="smallest")
    other = read(path, over={"model": "wrn22_2"})
    assert [whole.shown("model", label) for label in ("resnet56", "vgg13_bn")] == ["resnet56", "vgg13_bn"]
    assert [cell.options["model"] for cell in small.cells(1)] == ["resnet8", "resnet8"]
    assert (small.shown("model", "resnet56"), small.shown("net", "ResNet-8")) == (
        "resnet8 (for resnet56)",
        "ResNet-8",
    )
    assert small.shown("method", "static") == "static"
    assert other.shown("model", "vgg13_bn") == "wrn22_2 (for vgg13_bn)"
    rows = [
        replace(
            row(method, "", 0, accuracy=0.5),
            labels={"model": "resnet56", "net": "ResNet-8", "method": method},
        )
        for method in ("static", "set")
    ]
    assert figure(small, rows).axes[0].get_title() == "resnet8 (for resnet56), ResNet-8"
    assert table_rows(small, rows)[0] == ["method", "accuracy resnet8 (for resnet56), ResNet-8"]
    assert (
        table_csv(small, rows).splitlines()[1].startswith("resnet8 (for resnet56),ResNet-8,static,accuracy")
    )
    show(small, rows, tmp_path, "halpiee study mine.yaml")
    assert "<td>resnet8 (for resnet56), ResNet-8, static</td>" in (tmp_path / "index.html").read_text()


def test_the_files_are_whole_and_the_same_for_the_same_rows(tmp_path: Path) -> None:
    held = study(tmp_path)
    files = show(held, ROWS[:4], tmp_path, "halpiee study mine.yaml")
    assert {path.name for path in files} == {"table.md", "table.csv", "index.html", "mine.svg", "mine.png"}
    page = (tmp_path / "index.html").read_text()
    assert "82.0 ± 2.0" in page
    assert "halpiee study mine.yaml" in page
    assert "<script" not in page
    ET.parse(tmp_path / "mine.svg")
    before = (tmp_path / "mine.svg").read_bytes()
    draw(held, ROWS[:4], tmp_path)
    assert (tmp_path / "mine.svg").read_bytes() == before
