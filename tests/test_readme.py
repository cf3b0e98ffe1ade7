"""What the README shows, done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"


def commands() -> list[str]:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL))
    lines = [line.split("  #")[0].strip() for line in shell.replace("\\\n", " ").splitlines()]
    return [line.removeprefix(".venv/bin/") for line in lines if line.startswith(".venv/bin/halpiee")]


def test_the_readme_shows_the_main_verbs() -> None:
    shown = {shlex.split(line)[1] for line in commands()}
    assert {"doctor", "explain", "profile", "plan", "train", "bench"} <= shown


@pytest.mark.parametrize("line", commands())
def test_a_command_of_the_readme_is_one_the_program_takes(line: str) -> None:
    from halpiee.cli.app import program

    _, verb, *arguments = shlex.split(line)
    context = program.commands[verb].make_context(verb, arguments)
    assert context.params


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README.read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.slow  # profiles a small network on this machine
def test_the_training_loop_of_the_readme_runs_and_keeps_its_budget() -> None:
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    space: dict[str, object] = {}
    exec(compile(block[1], str(README), "exec"), space)
    iee, structure, model = space["iee"], space["structure"], space["model"]
    counts = iee.alive.counts  # type: ignore[attr-defined]
    assert iee.finished  # type: ignore[attr-defined]
    for event in iee.reports:  # type: ignore[attr-defined]
        assert event.used <= event.budget * (1 + 1e-9)
    stem = next(layer for layer in structure.layers if layer.name == "conv1")  # type: ignore[attr-defined]
    assert model.conv1.out_channels == counts[stem.out_groups[0][0]]  # type: ignore[attr-defined]
