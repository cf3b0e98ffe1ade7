"""A study at work: killed, shared, refused; and every study of the papers at its smallest scale."""

from __future__ import annotations

import importlib
import json
import os
import random
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from halpiee.cli import study as verb
from halpiee.errors import DataError, UsageError
from halpiee.studies import Study, names, read
from halpiee.studies.results import Row, sheet_of
from halpiee.studies.work import check_data, work
from halpiee.training import stage
from halpiee.training.job import Silent
from tests.forked import server
from tools.synthetic_data import voc

from .test_study import written

TOY: dict[str, Any] = {
    "options": {"model": "toy:net", "data": "toy:data", "epochs": 3, "batch-size": 20, "method": "static"},
    "grid": {"sparsity": [0.5, 0.8], "method": {"static": {}, "RigL": {"method": "rigl", "interval": 2}}},
    "values": ["accuracy", "layers", "train_flops", "survival"],
}


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    monkeypatch.setattr(stage, "pick_threads", one_thread)


def one_thread(step: object) -> int:
    torch.set_num_threads(1)
    return 1


def process(study: Study, out: Path) -> BaseProcess:
    """Returns a process that works at a study; a fork of this one would inherit autograd's threads."""
    return server().Process(target=importlib.import_module("toy").work_on, args=(study, out))


def toy(folder: Path, **changes: Any) -> Study:
    return read(written(folder, **{**TOY, **changes}))


def values(rows: list[Row]) -> dict[str, Any]:
    return {row.cell: row.values for row in rows}


def test_a_study_ends_with_a_row_a_cell_and_does_nothing_twice(tmp_path: Path) -> None:
    held, sheet = toy(tmp_path), sheet_of(tmp_path / "out")
    rows = work(held, sheet, seeds=2, talk=Silent())
    assert {row.cell for row in rows} == {cell.name for cell in held.cells(2)}
    assert len(rows) == 8
    first = rows[0]
    assert first.labels == {"sparsity": "0.5", "method": "static"}
    assert first.values["train_flops"] < 1
    written_then = sheet.path.read_bytes()
    work(held, sheet, seeds=1, talk=Silent())
    assert sheet.path.read_bytes() == written_then
    # more seeds go on from there
    assert len(work(held, sheet, seeds=3, talk=Silent())) == 12


def test_killed_at_random_moments_no_cell_is_lost_or_repeated(tmp_path: Path) -> None:
    held = toy(tmp_path)
    whole = values(work(held, sheet_of(tmp_path / "whole"), seeds=1, talk=Silent()))
    sheet = sheet_of(tmp_path / "killed")
    draw = random.Random(0)
    for _ in range(10):
        child = process(held, tmp_path / "killed")
        child.start()
        child.join(draw.uniform(0.05, 0.6))
        assert child.pid is not None
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
    rows = work(held, sheet, seeds=1, talk=Silent())
    assert sorted(row.cell for row in sheet.rows()) == sorted(cell.name for cell in held.cells(1))
    assert values(rows) == whole  # bit for bit what an undisturbed study finds


@pytest.mark.slow  # trains six networks twice
def test_a_study_of_digits_killed_at_ten_random_moments_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """Rewinding trains a dense network first, so that kills fall into both trainings of a cell, and between cells."""
    file = Path(__file__).parents[2] / "benchmarks" / "rewinding.yaml"
    held = read(file, scale="smallest", over={"data": "digits", "size": 8, "device": "cpu"})
    warm = server().Process(target=int)  # what imports torch is not timed
    warm.start()
    warm.join()
    child = process(held, tmp_path / "whole")
    begun = time.perf_counter()
    child.start()
    child.join()
    takes = time.perf_counter() - begun
    draw, done = random.Random(0), []
    for _ in range(10):
        child = process(held, tmp_path / "killed")
        child.start()
        child.join(draw.uniform(0, 0.1 * takes))
        assert child.is_alive()  # ten kills come before the end
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        done.append(len(sheet_of(tmp_path / "killed").rows()))
    assert done == sorted(done)  # no row is lost
    child = process(held, tmp_path / "killed")
    child.start()
    child.join()
    rows = {name: sheet_of(tmp_path / name).rows() for name in ("whole", "killed")}
    assert sorted(row.cell for row in rows["killed"]) == sorted(cell.name for cell in held.cells(1))
    assert values(rows["killed"]) == values(rows["whole"])


def test_processes_share_a_study_and_each_cell_is_done_once(tmp_path: Path) -> None:
    held, sheet = toy(tmp_path), sheet_of(tmp_path / "out")
    children = [process(held, tmp_path / "out") for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert sorted(row.cell for row in sheet.rows()) == sorted(cell.name for cell in held.cells(1))


def test_a_cell_after_another_trains_the_mask_that_the_other_ended_with(tmp_path: Path) -> None:
    grid = {
        "sparsity": [0.8],
        "method": {
            "RigL": {"method": "rigl", "interval": 2},
            "again": {"after": "RigL", "mask": "{run}", "sparsity": None, "ablation": "reinit"},
        },
    }
    rows = work(toy(tmp_path, grid=grid), sheet_of(tmp_path / "out"), seeds=1, talk=Silent())
    assert rows[0].values["layers"] == rows[1].values["layers"]
    assert rows[0].values["accuracy"] != rows[1].values["accuracy"]


def test_one_cell_can_be_done_by_its_name(tmp_path: Path) -> None:
    held, sheet = toy(tmp_path), sheet_of(tmp_path / "out")
    name = held.cells(1)[2].name
    assert [row.cell for row in work(held, sheet, seeds=1, talk=Silent(), only=name)] == [name]
    with pytest.raises(
        UsageError,
        match=r"--cell nothing was asked, and the study has no training of that name; --plan lists",
    ):
        work(held, sheet, seeds=1, talk=Silent(), only="nothing")


def test_rows_of_another_version_stop_the_work_before_it_begins(tmp_path: Path) -> None:
    sheet = sheet_of(tmp_path / "out")
    work(toy(tmp_path, grid={**TOY["grid"], "sparsity": [0.5]}), sheet, seeds=1, talk=Silent())
    with pytest.raises(UsageError, match=r"holds rows of .* choose another --out"):
        work(toy(tmp_path), sheet, seeds=1, talk=Silent())


def test_data_that_lacks_what_a_study_needs_is_refused() -> None:
    with pytest.raises(
        DataError, match=r"needs images of at least 32 pixels a side, and --data digits has 16×16"
    ):
        check_data(read("granet-cifar"), "digits", None)
    check_data(read("granet-cifar"), "digits", 32)
    check_data(read("granet-cifar", scale="smallest"), "digits", 16)


def test_a_study_of_another_task_reads_the_data_of_that_task(tmp_path: Path) -> None:
    folder = str(voc(tmp_path / "voc"))
    held = read("detection")
    check_data(held, folder, None)  # images are brought to the 512 pixels of its recipe
    with pytest.raises(DataError, match="needs images of at least 512 pixels a side"):
        check_data(held, folder, 300)
    (tmp_path / "voc" / "ImageSets/Main/train.txt").unlink()
    with pytest.raises(DataError, match=r"needs train\.txt and val\.txt"):
        check_data(held, folder, None)


def asked(*arguments: str) -> Any:
    return CliRunner().invoke(verb.command, arguments, standalone_mode=False)


def test_the_verb_lists_plans_and_refuses(tmp_path: Path) -> None:
    listed = {s["name"]: s for s in json.loads(asked("--list", "--json").output)["studies"]}
    assert set(listed) == set(names())
    assert listed["at-init-ladder"]["cells"] == 19 * 7 * 3
    # 19 rungs of ResNet-20: five methods train 160 epochs, two train twice; three forwards an image a step
    assert listed["at-init-ladder"]["core_hours"] == pytest.approx(
        3 * 19 * 9 * 160 * 3 * 40.8e6 * 5e4 / 2e10 / 3600
    )
    plan = asked("iee-wrn", "--seeds", "1", "--plan", "--out", "DIR").output.splitlines()
    assert len(plan) == 15
    assert plan[0].startswith(
        "halpiee train wrn22_2 --data DATA --no-baseline --method static --distribution erk"
    )
    assert "--sparsity 0.8 " in plan[0]
    for arguments, text in [
        (("iee-wm", "--plan"), r"iee-wm is neither a file nor a study; did you mean 'iee-wrn'"),
        (("iee-wrn", "--seeds", "0", "--plan"), "--seeds 0 was asked; give"),
        (("iee-wrn", "--set", "epoch=3", "--plan"), "did you mean 'epochs'"),
        (("iee-wrn", "--set", "epochs", "--plan"), "write KEY=VALUE"),
        (("iee-wrn",), "--data and --out missing"),
        ((), "takes the name of one study"),
    ]:
        error = asked(*arguments).exception
        assert isinstance(error, UsageError), arguments
        assert text in str(error), str(error)


def test_every_planned_command_is_one_that_train_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The commands are parsed by `halpiee train` itself and name the settings that the study trains with."""
    import shlex

    from halpiee.cli import train
    from halpiee.studies.work import settings_of

    found: list[Any] = []
    monkeypatch.setattr(train, "carry_out", lambda settings, out, **_: found.append(settings))
    for name in (
        "granet-cifar",
        "at-init-ablations",
        "at-step",
        "iee-ablation",
        "reinit",
        "latency",
        "iee-2-4",
    ):
        lines = asked(name, "--seeds", "1", "--plan", "--out", "DIR", "--data", "digits").output.splitlines()
        held = read(name, over={"data": "digits", "device": "auto"})
        cells = held.cells(1)
        assert len(lines) == len(cells)
        for line, cell in zip(lines, cells, strict=True):
            words = shlex.split(line)[2:]
            result = CliRunner().invoke(train.command, words, standalone_mode=False)
            assert result.exception is None, (line, result.exception)
            expected = settings_of(held, cell, Path("DIR"))
            assert found[-1].as_dict() == expected.as_dict(), line


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_the_study_runs_to_its_table_and_figure_at_its_smallest_scale(name: str, tmp_path: Path) -> None:
    data = ["toy:few_digits", "--set", "batch-size=16"]
    if name == "detection":
        pytest.importorskip("pycocotools")
        data = [str(voc(tmp_path / "voc", train=160, test=40, side=64))]
    begun = time.process_time()
    result = asked(
        *(name, "--data", *data, "--seeds", "1", "--scale", "smallest"),
        *("--out", str(tmp_path / "out"), "--json", "--device", "cpu"),
    )
    assert result.exception is None, result.exception
    held = read(name, scale="smallest")
    rows = sheet_of(tmp_path / "out").rows()
    assert {row.cell for row in rows} == {cell.name for cell in held.cells(1)}
    for row in rows:
        assert set(row.values) == set(held.file.values)
        shown = row.values[held.file.figure.y]
        assert shown not in (None, [], {}), (row.cell, row.values)
    assert (tmp_path / "out" / f"{name}.png").stat().st_size > 10_000
    assert "–" not in (tmp_path / "out" / "table.md").read_text()
    assert time.process_time() - begun < 60
