"""``halpiee plan`` and its profile: measured as it goes, of another batch or image, cut short, or without prices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import halpiee
from halpiee.cli.app import program
from halpiee.errors import ProfileError
from latency import Op, Profile
from latency.backends import Built

from .plans import MODEL, SIZES, plan, refusal, write_profile
from .warping import once


class Formula:
    """A runtime whose ops take 1 + 0.1·blocks_in·blocks_out µs, in blocks of four channels."""

    name, kind, now_us = "formula", "cpu", 0.0

    def environment(self) -> dict[str, object]:
        return {"backend": self.name, "threads": 1}

    def clock(self) -> Formula:
        return self

    def anchor(self) -> None:
        return None

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        begun = self.now_us
        run()
        return self.now_us - begun, self.now_us - begun

    def build(self, op: Op) -> Built:
        def run() -> None:
            self.now_us += 1 + 0.1 * -(-op.c_in // 4) * (1 if op.diagonal else -(-op.c_out // 4))

        return Built(run=run)


def test_a_lazy_plan_starts_from_no_profile_and_leaves_one_that_plans_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latency.backends.load", lambda *_, **__: Formula())
    path = tmp_path / "new.jsonl"
    base = ["plan", "resnet20", "--size", "3x8x8", "--profile", str(path), "--budget", "0.5"]
    first = CliRunner().invoke(program, [*base, "--lazy", "--json"])
    assert first.exception is None, first.exception
    held = path.read_bytes()
    second = CliRunner().invoke(program, [*base, "--json"])
    lazy, again = json.loads(first.stdout), json.loads(second.stdout)
    assert lazy["groups"] == again["groups"]
    assert lazy["interpolated"] == []
    assert lazy["predicted_us"] <= lazy["budget_us"]
    assert path.read_bytes() == held


MINE = "halpiee profile separable:build --size {} --width 0.25"


def test_a_profile_in_half_precision_and_nhwc_prices_the_same_network(
    structure: halpiee.Structure, profile: Path, tmp_path: Path
) -> None:
    cells = [cell | {"dtype": "bfloat16", "layout": "nhwc"} for cell in Profile.load(profile).cells]
    cells += [cell | {"batch": 3, "role": "probe"} for cell in cells[:4]]
    Profile({"backend": "torch", "dtype": "bfloat16"}, cells).save(tmp_path / "half.jsonl")
    full, half = (plan(path, "--budget", "0.5") for path in (profile, tmp_path / "half.jsonl"))
    assert half["batch"] == 1
    assert half["predicted_us"] == pytest.approx(full["predicted_us"])
    assert half["groups"] == full["groups"]


@pytest.mark.parametrize(
    ("options", "measuring"),
    [
        (("--batch", "8"), MINE.format(16) + " --batch 8 --out FILE"),
        (("--size", "24"), MINE.format(24) + " --out FILE"),
        (("--size", "24x16", "--classes", "7"), MINE.format("3x24x16") + " --classes 7 --out FILE"),
    ],
)
def test_a_profile_of_another_batch_or_image_is_told_from_what_was_asked(
    profile: Path, options: tuple[str, ...], measuring: str
) -> None:
    cells = len(Profile.load(profile).cells)
    text = refusal(profile, ProfileError, "--budget", "0.5", *options)
    assert text.startswith(
        f"--profile {profile} holds {cells:,} cells at batch 1 on inputs of up to 16×16; it lacks "
    )
    assert text.endswith(f"measure them with `{measuring}`")


def test_a_profile_without_cells_is_continued_by_the_command_that_made_it(tmp_path: Path) -> None:
    Profile({"threads": 2}, []).save(tmp_path / "cut.jsonl")
    text = refusal(tmp_path / "cut.jsonl", ProfileError, "--budget", "0.5")
    assert text == (
        f"{tmp_path / 'cut.jsonl'} holds no cells (its sweep was cut short); `{MINE.format(16)} "
        f"--out {tmp_path / 'cut.jsonl'}` continues it"
    )


def test_the_command_that_follows_a_profile_builds_the_same_network(
    tmp_path: Path, structure: halpiee.Structure, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.jsonl"
    made = Profile.load(write_profile(structure, tmp_path / "made.jsonl"))
    monkeypatch.setattr("latency.sweep", lambda *_, **__: made)
    base = ["profile", *MODEL, "--classes", "7", "--batch", "2", *SIZES]
    shown = CliRunner().invoke(program, [*base, "--out", str(out)])
    assert shown.output.splitlines()[-1] == (
        "next: halpiee plan separable:build --size 16 --width 0.25 --classes 7 --batch 2 "
        f"--profile {out} --budget 0.5"
    )


@pytest.fixture
def warping(tmp_path: Path) -> list[str]:
    """The beginning of a plan of a network that warps, which no profile prices."""
    traced = halpiee.trace(once(), (torch.zeros(1, 3, 4, 4),))
    path = write_profile(traced, tmp_path / "own.jsonl")
    return ["plan", "warping:once", "--size", "4", "--profile", str(path)]


@pytest.mark.parametrize("budget", ["1.0", "100us"])
def test_what_no_profile_prices_is_said(warping: list[str], budget: str) -> None:
    shown = CliRunner().invoke(program, [*warping, "--budget", budget])
    assert shown.exception is None, shown.exception
    said = " ".join(shown.output.split())
    assert "not priced: grid_sampler_2d ×1; " in said
    assert ("so the network takes longer than the 100us asked" in said) == (budget == "100us")
    assert ("warning: not priced" in said) == (budget == "100us")
    assert "`halpiee train` calibrates with whole networks" in said
    found = json.loads(CliRunner().invoke(program, [*warping, "--budget", budget, "--json"]).stdout)
    assert found["untimed"] == {"grid_sampler_2d": 1}
    assert any("not priced" in note for note in found["notes"])


def test_a_size_that_the_network_does_not_take_is_named(warping: list[str]) -> None:
    warping[warping.index("4")] = "1x4x4"
    shown = CliRunner().invoke(program, [*warping, "--budget", "0.5"])
    text = str(shown.exception)
    assert text.startswith("warping:once was to take images of --size 1x4x4: the forward of Warping fails")
    assert text.endswith("give the size that it takes with --size, or each input with --input NAME=SHAPE")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("warping.py:once", "write warping:once, from the folder that holds it"),
        ("warping:Warping", "to build it needs times; name a function that needs no arguments"),
    ],
)
def test_a_network_of_your_own_is_named_by_a_function_without_arguments(
    warping: list[str], model: str, text: str
) -> None:
    warping[1] = model
    assert text in str(CliRunner().invoke(program, [*warping, "--budget", "0.5"]).exception)
