"""Budgets as text, settings as a hash, cycles that fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from halpiee.cli.train import gather
from halpiee.errors import UsageError
from halpiee.ranges import parse_budget
from halpiee.shared_options import Cycle
from halpiee.training.checkpoint import read_settings, save_settings
from halpiee.training.config import Masks, Settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", (None, 0.5)),
        ("50%", (None, 0.5)),
        ("12.5ms", (12500.0, None)),
        ("800us", (800.0, None)),
        ("800µs", (800.0, None)),
        ("1", (None, 1.0)),
        ("0.002 s", (2000.0, None)),
    ],
)
def test_a_budget_is_a_share_or_a_time(text: str, expected: tuple[float | None, float | None]) -> None:
    assert parse_budget(text) == expected


@pytest.mark.parametrize("text", ["", "fast", "-1", "0", "5 parsecs"])
def test_what_is_no_budget_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(UsageError, match=r"give a share of the dense latency such as 0.5 or 50%"):
        parse_budget(text)


def test_a_share_above_one_suggests_a_unit() -> None:
    with pytest.raises(
        UsageError, match=r"'12.5' is 12.5 times the dense latency; .* such as 12.5us or 12.5ms"
    ):
        parse_budget("12.5")


def test_open_cycle_lengths_share_what_the_cycles_leave() -> None:
    # 0.75 · 440 = 330 steps, 8 cycles of 41: 13 each
    assert Cycle().steps(440) == (13, 13, 13)
    # h given: 41 − 20 = 21 for j and q
    assert Cycle(h=20).steps(440) == (20, 10, 10)


@pytest.mark.parametrize(
    ("steps", "scored", "expected"),
    [
        (1564, False, (6, 6, 6)),  # 156 steps, 8 cycles of 19
        (440, False, (7, 7, 7)),  # 44 steps: three cycles leave 4 steps a phase, two leave 7
        (440, True, (6, 6, 6)),  # and two times three phases after a first one of h
        (220, False, (7, 7, 7)),
        (220, True, (5, 5, 5)),
        (30, False, (1, 1, 1)),
    ],
)
def test_a_short_training_has_fewer_cycles_of_more_steps(
    steps: int, scored: bool, expected: tuple[int, int, int]
) -> None:
    assert Cycle(end=0.1).steps(steps, scored=scored) == expected


def test_too_many_cycles_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"8 cycles were asked of 20 steps .* ending at 75%; .* leaves 1 steps"
    ):
        Cycle(cycles=8).steps(20)
    with pytest.raises(UsageError, match=r"1 cycle was asked of 20 steps .* end later \(--end\)"):
        Cycle(end=0.1).steps(20)


@pytest.mark.parametrize(
    ("asked", "end"),
    [
        ({"budget": "0.5", "method": "iee"}, 0.1),
        ({"budget": "0.5", "method": "iee", "cycle": Cycle(end=0.5)}, 0.5),
        ({"budget": "0.5", "method": "halp", "weights": "dense.safetensors"}, 0.75),
        ({"masks": Masks(sparsity=0.9), "method": "iee"}, 0.75),
        ({"masks": Masks(sparsity=0.9, units="filters"), "method": "iee"}, 0.75),
    ],
)
def test_updates_end_early_where_channels_go_for_a_latency(asked: dict[str, Any], end: float) -> None:
    assert Settings(model="resnet20", data="digits", **asked).cycle.end == end


def test_the_digest_names_the_settings() -> None:
    one = Settings(model="resnet20", data="digits", budget="0.5")
    assert one.digest == Settings.from_dict(one.as_dict()).digest
    assert one.digest != Settings(model="resnet20", data="digits", budget="0.5", seed=1).digest


def test_unknown_settings_are_named() -> None:
    with pytest.raises(
        UsageError,
        match="settings hold 'learning_rate', which is no option; known are accumulate, also, backend",
    ):
        Settings.from_dict({"model": "m", "data": "d", "budget": "0.5", "learning_rate": 1})


@pytest.mark.parametrize("asked", [True, False])
def test_protecting_the_first_layer_is_refused_where_no_latency_is_met(asked: bool) -> None:
    option = "--protect-first" if asked else "--no-protect-first"
    with pytest.raises(UsageError, match=f"^{option} was given to a run to a sparsity; .* give --budget"):
        Settings(
            model="resnet20", data="digits", method="rigl", masks=Masks(sparsity=0.9), protect_first=asked
        )


@pytest.mark.parametrize("method", ["scaled", "iee", "halp", "early", "repair"])
def test_a_run_of_old_is_read_with_the_repair_that_nobody_typed(method: str, tmp_path: Path) -> None:
    """Settings had no ``inputs`` then, and ``repair`` was true; of IEE and HALP that meant nothing."""
    weights = None if method in ("scaled", "iee") else "dense.safetensors"
    settings = Settings(model="resnet20", data="digits", budget="0.5", method=method, weights=weights)
    values = json.loads(json.dumps(settings.as_dict()))
    values["masks"]["repair"] = True
    del values["inputs"]
    (tmp_path / "settings.json").write_text(json.dumps(values))
    assert read_settings(tmp_path) == settings
    assert gather({}, tmp_path, resume=True) == settings
    assert gather({"from_run": str(tmp_path)}, tmp_path / "on", resume=False).model == "resnet20"


def test_a_repair_that_is_typed_is_kept_or_refused(tmp_path: Path) -> None:
    typed = Settings(model="resnet20", data="digits", budget="0.5", method="iee", masks=Masks(repair=True))
    save_settings(tmp_path, typed)
    assert read_settings(tmp_path).masks.repair is True
    with pytest.raises(UsageError, match="--repair was given to --method scaled; only early, halp and iee"):
        Settings(model="resnet20", data="digits", budget="0.5", method="scaled", masks=Masks(repair=True))
