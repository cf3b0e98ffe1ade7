"""Odd values for every argument and option of every verb: one sentence, exit 2 or 3, nothing written.

The options are those that the program has: a new one is tried without a line here.
"""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import click
import pytest

from halpiee.cli.app import program

from .program import refusal, stop_at, typed
from .test_files import NETWORK
from .test_numbers import NEEDED

VERBS = NEEDED | {
    "bench": NETWORK,
    "compare": ["gone.yaml", "--out", "run"],
    "doctor": [],
    "explain": NETWORK,
    "export": [*NETWORK, "--out", "net.onnx"],
    "merge": ["gone.jsonl", "--out", "all.jsonl"],
    "methods": [],
    "pack": ["gone.jsonl", "--out", "packed.jsonl"],
    "plan": [*NETWORK, "--budget", "0.5", "--profile", "gone.jsonl"],
    "profile": [*NETWORK, "--dry-run"],
    "report": ["gone"],
    "train": [*NETWORK, "--data", "digits", "--budget", "0.5", "--out", "run"],
}
"""What a verb needs beside, an argument first."""

ODD = (
    "", " ", "x", "-1", "0", "1", "2", "0.5", "1.5", "nan", "inf", "1e300", str(2**65), "1_0", "１", "0b1", "50%",
    "-5%", "5us", "a\nb", "\x1b[2Jx", "\udcff", "ü" * 300, "x" * 5000, "a/" * 300 + "b", "../..", "/", "~",
    "/dev/null", "/dev/full", "/proc/self/mem", "/sys/x", "FILE", "FILE/below", "FOLDER", "MISSING", "EMPTY", "HUGE",
    "abc:def", "[", "{", ",", ",,", "1,", "=", "a=", "=b", "a=b", "a=2..1",
    "macs=0", "macs=nan", "profile=:0.5", "memory=1XB", "epochs=1e400", "ids=0", "ids=1:foo", "image=3x8x8", "1x1x1x1",
    "0x0", "99999x1", "tpu", "cuda:99", "timm/x", "torchvision/x", "resnet20 ", "hf:x", "*", "%s%n", "4:2", "None",
)  # fmt: skip
"""Values; those in capitals are paths of the fixture ``places``."""

OPTIONS = [(verb, one) for verb, command in sorted(program.commands.items()) for one in command.params]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Returns a file, a place below it, a folder, a place in none, an empty file and one of 2 GB without a block."""
    home = tmp_path_factory.mktemp("places")
    (home / "file").write_text("something")
    (home / "folder").mkdir()
    (home / "empty").touch()
    (home / "huge").touch()
    os.truncate(home / "huge", 2**31)
    names = {
        "FILE": "file",
        "FILE/below": "file/below",
        "FOLDER": "folder",
        "MISSING": "missing/a",
        "EMPTY": "empty",
        "HUGE": "huge",
    }
    return {name: str(home / path) for name, path in names.items()}


def walk(options: list[tuple[str, click.Parameter]], per: int, places: dict[str, str], folder: Path) -> int:
    """Tries ``per`` values for each option, others for the next one; returns how many were refused."""
    values, refused = itertools.cycle(ODD), 0
    for verb, option in options:
        flag = isinstance(option, click.Option) and option.is_flag
        for value in [""] if flag else itertools.islice(values, per):
            value = places.get(value, value)
            name = max(option.opts, key=len)
            if isinstance(option, click.Argument):
                arguments = [verb, value, *VERBS[verb][1:]]
            else:
                arguments = [verb, *VERBS[verb], name if flag else f"{name}={value}"]
            try:
                refused += refusal(typed(arguments, folder)) is not None
            except BaseException as error:
                raise AssertionError([word[:80] for word in arguments]) from error
            for path in folder.iterdir():  # what a value that is taken has begun
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return refused


def test_every_verb_is_walked() -> None:
    assert set(VERBS) == set(program.commands)
    assert len(OPTIONS) > 250


def test_an_odd_value_is_refused_in_one_sentence_or_taken(
    places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    networks = ("traced", "from_model", "from_plan", "from_run")
    stop_at(
        monkeypatch,
        "halpiee.training.preflight.check_settings",
        *(f"halpiee.cli.networks.{name}" for name in networks),
    )
    assert walk(OPTIONS, 3, places, tmp_path) > 500


@pytest.mark.slow
@pytest.mark.parametrize("verb", sorted(program.commands))
def test_odd_values_are_refused_in_one_sentence_or_taken(
    verb: str, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every eighth value for each option, to the place where the work begins."""
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch)
    walk([one for one in OPTIONS if one[0] == verb], len(ODD) // 8, places, tmp_path)
