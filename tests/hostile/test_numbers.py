"""Every numeric option of every verb: what lies beyond its range is refused by name before anything is done."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from halpiee.cli.app import program
from halpiee.cli.options import Ranged
from halpiee.errors import UsageError
from halpiee.ranges import inside
from halpiee.shared_options import Cycle
from halpiee.training.config import Masks, Settings

from .conftest import content, one_sentence

OPTIONS = [
    (verb, option)
    for verb, command in sorted(program.commands.items())
    for option in command.params
    if isinstance(option.type, Ranged | click.types.IntParamType | click.types.FloatParamType)
]
NEVER = (
    "nan",
    "-nan",
    "inf",
    "-inf",
    "1e400",
    str(2**65),
    str(-(2**65)),
    "1" * 5000,
    "1e300",
    "",
    "x",
    "0x10",
    "１",
    "1 2",
)
"""What no option takes."""

NEEDED = {
    "bench": ["gone.onnx"],
    "demo": [],
    "explain": ["resnet20"],
    "export": ["resnet20", "--out", "net.onnx"],
    "inspect": ["gone.jsonl"],
    "plan": ["resnet20", "--budget", "0.5"],
    "profile": ["resnet20", "--dry-run"],
    "prune": [
        "resnet20",
        "--data",
        "digits",
        "--weights",
        "gone.safetensors",
        "--budget",
        "0.5",
        "--out",
        "run",
    ],
    "study": ["collapse", "--data", "digits", "--out", "run"],
    "train": ["resnet20", "--data", "digits", "--budget", "0.5", "--out", "run"],
    "verify": ["gone.engine"],
}
"""What a verb needs beside, so that nothing else is missing."""


def beyond(kind: Ranged) -> list[str]:
    """Returns numbers just beyond both ends of a range, and a broken one where numbers are whole."""
    step = 1 if kind.kind is int else 1e-6
    meta: Any = kind.meta
    low = meta.ge - step if meta.ge is not None else meta.gt
    high = meta.le * (1 + 1e-9) + step if meta.le is not None else meta.lt
    found = [low, high if kind.kind is float else int(high)]
    return [str(number) for number in found] + ["1.5"] * (kind.kind is int)


def test_every_verb_with_a_number_is_here() -> None:
    assert {verb for verb, _ in OPTIONS} <= NEEDED.keys()
    assert len(OPTIONS) > 55


@pytest.mark.parametrize(("verb", "option"), OPTIONS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_a_number_beyond_its_range_is_refused_by_name(
    verb: str, option: click.Option, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = max(option.opts, key=len)
    assert isinstance(option.type, Ranged), f"{verb} {name} has no range"
    monkeypatch.chdir(tmp_path)
    for value in (*NEVER, *beyond(option.type)):
        if value.startswith("-") and option.flag_value is not None and name == "--regrow":
            continue  # a value is optional there, and what begins with a dash is the next option to click
        done = CliRunner().invoke(program, [verb, *NEEDED[verb], f"{name}={value}"])
        assert isinstance(done.exception, UsageError), (value, done.exception)
        said = str(done.exception)
        assert one_sentence(said), said
        assert said.startswith(f"{name} "), said
        assert " was asked; give " in said
    assert not content(tmp_path)


@pytest.mark.parametrize(("verb", "option"), OPTIONS, ids=lambda x: x if isinstance(x, str) else x.name)
def test_a_default_lies_in_its_range(verb: str, option: click.Option) -> None:
    if isinstance(option.type, Ranged) and isinstance(option.default, int | float):
        assert inside(option.type.meta, option.default)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "tpu"), "--device tpu was asked; give auto, cpu, cuda or one of them as cuda:1"),
        (
            ("--seed", str(2**65)),
            f"--seed {2**65} was asked; give at least 0 and at most 2,147,483,647, a whole number",
        ),
        (("--width", "nan"), "--width nan was asked; give at least 0.001 and at most 64"),
        (("--width", "-1"), "--width -1 was asked; give at least 0.001 and at most 64"),
        (("--lr", "1e300"), "--lr 1e300 was asked; give more than 0 and at most 1,000"),
        (("--weight-decay", "nan"), "--weight-decay nan was asked; give at least 0 and at most 100"),
        (("--sparsity", "1"), "--sparsity 1 was asked; give more than 0 and less than 1"),
        (
            ("--epochs", "1.5"),
            "--epochs 1.5 was asked; give at least 1 and at most 1,000,000, a whole number",
        ),
        (("--drops", "0.5,nan"), "--drops 0.5,nan hold 'drops'"),
        (("--drops", "0.75,0.5"), "--drops 0.75,0.5 was asked; drops are ascending shares of the training"),
        (("--budget", "1e309us"), "the budget '1e309us' was asked; give a share"),
        (("--nm", "1:99999999"), "the pattern '1:99999999' was asked"),
    ],
)
def test_what_is_said_of_a_number(
    options: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(program, ["train", *NEEDED["train"], *options])
    assert isinstance(done.exception, UsageError), done.output
    assert str(done.exception).startswith(said)
    assert not content(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (Settings, name, value)
        for name, value in itertools.product(
            ("lr", "width", "momentum", "weight_decay", "seed", "epochs", "batch_size", "threads", "warmup"),
            (float("nan"), float("inf"), -1, 10**400, True, "1"),
        )
    ]
    + [
        (Masks, name, -1)
        for name in ("sparsity", "rounds", "interval", "fraction", "initial", "at", "rewind")
    ]
    + [
        (Cycle, name, value)
        for value in (float("nan"), 0 - 1.0, 1e12)
        for name in ("omega", "end", "cycles", "h", "j", "q")
    ],
)
def test_settings_made_in_python_have_the_same_ranges(kind: type, name: str, value: object) -> None:
    base = {"model": "resnet20", "data": "digits", "budget": "0.5"} if kind is Settings else {}
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} .* was asked; give "):
        kind(**{**base, name: value})
