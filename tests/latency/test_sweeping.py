"""Sweeps on a backend whose times are a formula."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import latency
from latency.backends import Built
from latency.errors import HoldoutWarning, OutputInUseError, ProfileError, UsageError
from latency.op import Op
from latency.profiles import Profile

from .fakes import FakeBackend, conv, staircase

OPS = [
    conv(3, 32, tail=("relu",)),
    conv(32, 32),
    conv(64, 64),
    conv(64, 64, groups=64),
    Op(kind="linear", c_in=64, c_out=10),
    Op(kind="add", c_in=64, c_out=64, h=8, w=8),
]


def sweep_keys(path: Path) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    return [(line["op"], line["groups"] > 1, line["c_in"], line["c_out"], line["role"]) for line in lines]


@pytest.mark.parametrize("step", [8, 16])
def test_every_width_of_a_staircase_is_answered_from_few_cells(step: int) -> None:
    backend = FakeBackend(staircase(step))
    profile = latency.sweep(OPS, backend=backend)
    widths = np.arange(1, 65)
    table = profile.table(conv(64, 64))
    assert table.steps == (step, step)
    expected = [[staircase(step)(conv(int(i), int(o))) for o in widths] for i in widths[5:]]
    np.testing.assert_allclose(table.lookup(widths[5:, None], widths[None]), expected, rtol=1e-3)
    swept = [c for c in profile.cells if c["role"] == "sweep" and c["op"] == "conv" and c["groups"] == 1]
    assert len(swept) < 64


def lawless(op: Op) -> float:
    """Times that no table of few cells tells."""
    return 20.0 + op.c_in * op.c_out * np.random.default_rng([op.c_in, op.c_out, op.h]).uniform(0.1, 1.0)


def test_a_sweep_whose_held_out_cells_are_far_off_says_so_in_python() -> None:
    with pytest.warns(
        HoldoutWarning, match=r"holdout: one cell in twenty is off by \d+% or more; measure more"
    ) as said:
        profile = latency.sweep([conv(256, 256)], backend=FakeBackend(lawless), seed=3)
    assert len(said) == 1
    assert said[0].filename == __file__
    errors, weights = [], []
    table = profile.table(conv(256, 256))
    for cell in profile.cells:
        if cell["role"] == "holdout" and not table.measured(cell["c_in"], cell["c_out"]):
            errors.append(abs(float(table.lookup(cell["c_in"], cell["c_out"])) / cell["us"] - 1))
            weights.append(cell["us"])
    order = np.argsort(errors)
    below = np.cumsum(np.array(weights)[order]) / sum(weights)
    p95 = np.array(errors)[order][np.searchsorted(below, 0.95)]
    assert p95 > 0.05
    assert f"{p95:.0%}" in str(said[0].message)


def test_noise_makes_no_steps_that_are_not_there() -> None:
    rng = np.random.default_rng(0)
    backend = FakeBackend(staircase(16), noise=lambda: float(rng.normal(1.0, 0.02)))
    table = latency.sweep([conv(64, 64)], backend=backend).table(conv(64, 64))
    curve = table.lookup(64, np.arange(1, 65))
    assert len(np.unique(curve)) == 4
    assert list(np.flatnonzero(np.diff(curve)) + 1) == [16, 32, 48]


def test_a_real_fall_towards_wider_ops_is_kept() -> None:
    def us(op: Op) -> float:
        return 100.0 if op.c_out == 24 else 10.0 + -(-op.c_out // 8)

    table = latency.sweep([conv(32, 32)], backend=FakeBackend(us)).table(conv(32, 32))
    assert float(table.lookup(32, 24)) > float(table.lookup(32, 32))


def test_a_sweep_that_is_done_measures_nothing_again(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    first = latency.sweep(OPS, backend=FakeBackend(staircase(8)), path=path)
    content = path.read_bytes()
    again = FakeBackend(staircase(8))
    second = latency.sweep(OPS, backend=again, path=path)
    assert path.read_bytes() == content
    assert second.cells == first.cells
    assert len(again.built) == len(
        {op.table_key() for op in OPS}
    )  # each is built once, to see that it can be


def test_the_file_holds_no_cell_twice_and_loads_to_the_same_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    profile = latency.sweep(OPS, backend=FakeBackend(staircase(8)), path=path)
    keys = sweep_keys(path)
    assert len(keys) == len(set(keys)) == len(profile.cells)
    assert Profile.load(path).cells == profile.cells


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", [1, 10, 30, 60, 90])
def test_a_killed_sweep_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    path = tmp_path / "p.jsonl"
    backend = FakeBackend(staircase(8))
    build = backend.build

    def dying(op: Op) -> Built:
        if len(backend.built) > after:
            raise Killed
        return build(op)

    monkeypatch.setattr(backend, "build", dying)
    with pytest.raises(Killed):
        latency.sweep(OPS, backend=backend, path=path)
    with path.open("a") as file:
        file.write('{"op":"conv","kernel":[3,')
    kept = path.read_text().splitlines()[:-1]
    whole = latency.sweep(OPS, backend=FakeBackend(staircase(8)), path=path)
    lines = path.read_text().splitlines()
    assert lines[: len(kept)] == kept
    keys = sweep_keys(path)
    assert len(keys) == len(set(keys))
    expected = latency.sweep(OPS, backend=FakeBackend(staircase(8)))
    cells = [
        {(c["op"], c["groups"], c["c_in"], c["c_out"], c["role"], c["us"]) for c in p.cells}
        for p in (whole, expected)
    ]
    assert cells[0] == cells[1]


def test_a_file_of_another_device_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    latency.sweep([conv(8, 8)], backend=FakeBackend(staircase(8)), path=path)
    content = path.read_bytes()
    with pytest.raises(
        ProfileError, match="device is 'imagined' in the file, 'other' here; name another file"
    ):
        latency.sweep([conv(8, 8)], backend=FakeBackend(staircase(8), device="other"), path=path)
    assert path.read_bytes() == content


def test_a_file_is_not_continued_unless_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("mine")
    with pytest.raises(OutputInUseError, match="exists already and was left alone"):
        latency.sweep([conv(8, 8)], backend=FakeBackend(staircase(8)), path=path, resume=False)
    assert path.read_text() == "mine"


def test_two_sweeps_do_not_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.jsonl"
    outer = FakeBackend(staircase(8))
    build = outer.build

    def nested(op: Op) -> Built:
        with pytest.raises(OutputInUseError, match="is being written by another sweep"):
            latency.sweep([conv(8, 8)], backend=FakeBackend(staircase(8)), path=path)
        monkeypatch.setattr(outer, "build", build)
        return build(op)

    monkeypatch.setattr(outer, "build", nested)
    latency.sweep([conv(8, 8)], backend=outer, path=path)
    assert not path.read_text().count("schema") > 1


def test_ops_that_cannot_be_built_are_told_and_the_others_measured() -> None:
    profile = latency.sweep(OPS, backend=FakeBackend(staircase(8), refused=("add",)))
    assert profile.environment["not_measured"] == ["add at 8×8 batch 1 64→64: add was asked for"]
    assert not profile.has_table(OPS[-1])
    assert profile.has_table(OPS[0])


def test_cells_that_do_not_fit_in_memory_are_left_out_and_stay_known(tmp_path: Path) -> None:
    class OutOfMemoryError(RuntimeError):  # named like PyTorch's
        pass

    def us(op: Op) -> float:
        if op.c_in * op.c_out > 64 * 128:
            raise OutOfMemoryError("CUDA out of memory")
        return staircase(8)(op)

    path = tmp_path / "small.jsonl"
    profile = latency.sweep([conv(128, 128)], backend=FakeBackend(us), path=path)
    assert all(c["c_in"] * c["c_out"] <= 64 * 128 for c in profile.cells)
    assert "conv 3×3 at 8×8 batch 1 128→128: out of memory" in profile.environment["not_measured"]
    assert Profile.load(path).environment["not_measured"] == profile.environment["not_measured"]
    profile.save(tmp_path / "packed.jsonl")
    packed = Profile.load(tmp_path / "packed.jsonl")
    assert packed.environment["not_measured"] == profile.environment["not_measured"]


def test_any_other_failure_of_a_backend_ends_the_sweep() -> None:
    def us(op: Op) -> float:
        raise RuntimeError("the driver fell over")

    with pytest.raises(RuntimeError, match="fell over"):
        latency.sweep([conv(64, 64)], backend=FakeBackend(us))


def test_a_full_disk_keeps_the_lines_before_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, written = tmp_path / "p.jsonl", os.write

    def full(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_size > 4000:
            written(fd, data[:20])  # the disk takes what still fits
            raise OSError(28, "No space left on device")
        return written(fd, data)

    monkeypatch.setattr("latency.profile_io.os.write", full)
    with pytest.raises(UsageError, match="same command again"):
        latency.sweep([conv(64, 64)], backend=FakeBackend(staircase(8)), path=path)
    monkeypatch.undo()
    before = path.read_bytes()
    assert before.endswith(b"}\n")
    latency.sweep([conv(64, 64)], backend=FakeBackend(staircase(8)), path=path)
    assert path.read_bytes().startswith(before)
    keys = sweep_keys(path)
    assert len(keys) == len(set(keys))


def test_a_table_that_its_held_out_cells_contradict_gets_more_cells() -> None:
    def us(op: Op) -> float:
        ins, outs = -(-op.c_in // 8), -(-op.c_out // 8)
        chequered = 30.0 if (ins + outs) % 2 and 64 not in (op.c_in, op.c_out) else 0.0
        return 20.0 + ins * outs + chequered

    op = conv(64, 64)
    coarse = latency.sweep([op], backend=FakeBackend(us), holdout=0)
    with pytest.warns(HoldoutWarning):
        fine = latency.sweep([op], backend=FakeBackend(us), holdout=6, seed=3)
    assert len([c for c in fine.cells if c["role"] == "sweep"]) > len(
        [c for c in coarse.cells if c["role"] == "sweep"]
    )


def test_tables_that_everything_contradicts_get_half_as_many_cells_more_and_no_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("latency.sweeping.MORE_CELLS", 0)
    ops = [conv(256, 256), conv(256, 128, h=16, w=16)]
    coarse = latency.sweep(ops, backend=FakeBackend(lawless), holdout=0, seed=3)
    with pytest.warns(HoldoutWarning):
        fine = latency.sweep(ops, backend=FakeBackend(lawless), holdout=6, seed=3)
    coarse, fine = (sum(c["role"] == "sweep" for c in found.cells) for found in (coarse, fine))
    assert 1.2 * coarse < fine <= 1.5 * coarse


def test_progress_rises_to_its_total() -> None:
    told: list[tuple[int, int]] = []
    latency.sweep(
        OPS, backend=FakeBackend(staircase(8)), progress=lambda done, total: told.append((done, total))
    )
    done = [d for d, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1]


def test_a_dry_run_measures_nothing() -> None:
    backend = FakeBackend(staircase(8))
    estimate = latency.sweep(OPS, backend=backend, dry_run=True)
    assert backend.built == []
    assert (estimate.ops, estimate.tables) == (6, 5)
    assert "5 tables" in str(estimate)
    assert estimate.cells < estimate.candidates


def test_a_whole_grid_has_every_crossing_and_probes_nothing() -> None:
    ops = [conv(3, 16, tail=("relu",)), conv(16, 24), conv(24, 24, groups=24)]
    profile = latency.sweep(ops, backend=FakeBackend(staircase(8)), every=8)
    cells = sorted((c["groups"] > 1, c["c_in"], c["c_out"]) for c in profile.cells)
    dense = [(False, i, o) for i in (8, 16) for o in (8, 16, 24)]
    assert cells == sorted(
        [(False, 3, 8), (False, 3, 16), *dense, (True, 8, 8), (True, 16, 16), (True, 24, 24)]
    )
    assert {c["role"] for c in profile.cells} == {"sweep"}
    assert latency.sweep(ops, backend=FakeBackend(staircase(8)), every=8, dry_run=True).cells == len(cells)
