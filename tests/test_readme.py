"""What the README shows, done."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

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


def test_the_first_screen_loads_a_run_and_applies_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    import halpiee
    from halpiee.structure.plan import Selection
    from halpiee.training.checkpoint import save_settings, save_weights
    from halpiee.training.config import Settings
    from halpiee.zoo import build

    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "cifar"
    run.mkdir(parents=True)
    dense = build("resnet20", num_classes=10, width=0.25).eval()
    structure = halpiee.trace(dense, (torch.zeros(1, 3, 32, 32),))
    keep = {group.name: torch.arange(group.size) % 2 == 0 for group in structure.prunable}
    plan = halpiee.Plan.from_selection(
        structure, Selection(keep), model="resnet20", arguments={"width": 0.25}
    )
    plan.save("half.json")
    plan.save(run / "plan.json")
    compact = halpiee.shrink(dense, structure, keep)
    assert isinstance(compact, torch.nn.Module)
    save_weights(run / "pruned.safetensors", compact.state_dict())
    save_settings(run, Settings(model="resnet20", data="cifar10", budget="0.5", width=0.25))
    (run / "report.json").write_text('{"promise": {"met": true, "text": ""}}')
    [block] = [
        b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL) if "halpiee.load(" in b
    ]
    space: dict[str, Any] = {"dense": dense}
    exec(compile(block, str(README), "exec"), space)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(space["model"](x), compact(x))
    assert torch.equal(space["small"].eval()(x), compact(x))


@pytest.mark.slow  # profiles a small network on this machine
def test_the_training_loop_of_the_readme_runs_and_keeps_its_budget() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    [loop] = [block for block in blocks if "halpiee.IEE(" in block]
    space: dict[str, object] = {}
    exec(compile(loop, str(README), "exec"), space)
    iee, structure, model = space["iee"], space["structure"], space["model"]
    counts = iee.alive.counts  # type: ignore[attr-defined]
    assert iee.finished  # type: ignore[attr-defined]
    for event in iee.reports:  # type: ignore[attr-defined]
        assert event.used <= event.budget * (1 + 1e-9)
    stem = next(layer for layer in structure.layers if layer.name == "conv1")  # type: ignore[attr-defined]
    assert model.conv1.out_channels == counts[stem.out_groups[0][0]]  # type: ignore[attr-defined]
