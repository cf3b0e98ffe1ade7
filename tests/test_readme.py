"""What the README shows, done."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
    numbers = {"resize": [32], "size": [32, 32], "mean": [0.5] * 3, "std": [0.25] * 3, "classes": ["a", "b"]}
    (run / "report.json").write_text(json.dumps({"promise": {"text": ""}, "preprocess": numbers}))
    [block] = blocks("half.json")
    space: dict[str, Any] = {"dense": dense, "image": Image.new("L", (50, 40), 255)}
    exec(compile(block, str(README), "exec"), space)
    assert torch.equal(space["x"], torch.full((1, 3, 32, 32), 2.0))  # (255/255 − 0.5) / 0.25
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(space["model"](x), compact(x))
    assert torch.equal(space["small"].eval()(x), compact(x))


def blocks(*words: str) -> list[str]:
    """Returns the Python blocks that contain one of some words, in their order."""
    found = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    return [block for block in found if any(word in block for word in words)]


def checkpointed() -> dict[str, Any]:
    """Returns the names of the README's loop, on a small network and a budget of units, which nothing is timed for."""
    import torch

    import halpiee
    from halpiee.zoo import build

    torch.manual_seed(0)
    model = build("resnet20", num_classes=10, width=0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    structure = halpiee.trace(model, (torch.randn(1, 3, 8, 8),))
    budget: Any = halpiee.Uniform(0.5)
    iee = halpiee.IEE(
        model, optimizer, budget=budget, units=structure, total_steps=24, h=2, j=1, q=2, structure=structure
    )
    return {"torch": torch, "model": model, "optimizer": optimizer, "iee": iee}


def stepped(space: dict[str, Any], steps: range) -> None:
    import torch

    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x, y = torch.randn(8, 3, 8, 8, generator=generator), torch.randint(10, (8,), generator=generator)
        space["optimizer"].zero_grad()
        torch.autograd.backward(torch.nn.functional.cross_entropy(space["model"](x), y))
        space["optimizer"].step()


def test_the_lines_on_checkpoints_go_on_bit_equal_and_cut_the_network_of_an_earlier_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.chdir(tmp_path)
    save, load, cut = blocks("checkpoint.pt")
    whole, first, second = checkpointed(), checkpointed(), checkpointed()
    stepped(whole, range(24))
    stepped(first, range(7))  # two steps into a phase
    exec(save, first)
    exec(load, second)
    stepped(second, range(7, 24))
    assert second["iee"].finished
    for name, value in whole["model"].state_dict().items():
        assert torch.equal(second["model"].state_dict()[name], value), name
    for name, mask in whole["iee"].alive.items():
        assert torch.equal(second["iee"].alive[name], mask), name
    with first["iee"].evaluating():
        exec(save, first)
        x = torch.randn(3, 3, 8, 8)
        expected = first["model"].eval()(x)
    exec(cut, second)
    torch.testing.assert_close(second["model"].eval()(x), expected, rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in second["model"].parameters()) < sum(
        p.numel() for p in first["model"].parameters()
    )


def test_the_lines_on_the_compact_network_restore_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    import halpiee

    monkeypatch.chdir(tmp_path)
    save, load = blocks("small.json")
    space = checkpointed()
    space |= {"halpiee": halpiee, "fresh": checkpointed()["model"]}
    space["structure"] = halpiee.trace(space["fresh"], (torch.randn(1, 3, 8, 8),))
    stepped(space, range(24))
    space["model"], _ = space["iee"].shrink()
    exec(save, space)
    x, trained = torch.randn(3, 3, 8, 8), space["model"].eval()
    exec(load, space)
    assert space["model"] is not trained
    assert torch.equal(space["model"](x), trained(x))


@pytest.mark.slow
@pytest.mark.timing  # profiles a small network
@pytest.mark.filterwarnings("default::latency.errors.HoldoutWarning")  # how busy the machine is, is no fault
def test_the_training_loop_of_the_readme_runs_and_keeps_its_budget() -> None:
    [loop] = blocks("halpiee.IEE(")
    space: dict[str, object] = {}
    exec(compile(loop, str(README), "exec"), space)
    iee, structure, model = space["iee"], space["structure"], space["model"]
    counts = iee.alive.counts  # type: ignore[attr-defined]
    assert iee.finished  # type: ignore[attr-defined]
    for event in iee.reports:  # type: ignore[attr-defined]
        assert event.used <= event.budget * (1 + 1e-9)
    stem = next(layer for layer in structure.layers if layer.name == "conv1")  # type: ignore[attr-defined]
    assert model.conv1.out_channels == counts[stem.out_groups[0][0]]  # type: ignore[attr-defined]
