"""Training on a GPU that is none: every method runs there, stops, and goes on; and waits for the device are counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import latency
from halpiee.deploy.calibrate import Round
from halpiee.methods.sparse import Sparse
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.training import loop, stage
from halpiee.training.checkpoint import load_weights, save_weights
from halpiee.training.config import Masks, Settings
from halpiee.training.loop import Trainer
from halpiee.training.pipeline import pruning_of
from halpiee.training.preflight import open_run
from tests.latency.fakes import FakeBackend, staircase
from tests.pretended_cuda import PretendedCuda

from .talk import Quiet, one_thread, trained
from .test_loop import SETTINGS
from .test_masking import settings
from .toy import net


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "pick_threads", one_thread)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


VARIANTS: dict[str, Callable[[], Settings]] = {
    **{
        name: lambda name=name: settings(name)  # type: ignore[misc]
        for name in (
            "rigl",
            "set",
            "snfs",
            "gmp",
            "granet",
            "iee",
            "static",
            "snip",
            "synflow",
            "grasp",
            "magnitude",
        )
    },
    "random": lambda: settings("random"),
    "rigl-itop": lambda: settings("rigl-itop"),
    "set-itop": lambda: settings("set-itop"),
    "rigl 2:4": lambda: settings("rigl", sparsity=None, distribution="nm"),
    "filter": lambda: settings("filter"),
    "iee filters": lambda: settings("iee", units="filters"),
    "iee in fp16, with a GradScaler": lambda: replace(settings("iee"), precision="fp16"),
    "rigl in fp16, with a GradScaler": lambda: replace(settings("rigl"), precision="fp16"),
    "granet in bf16": lambda: replace(settings("granet"), precision="bf16"),
}


def ended(given: Settings, folder: Path, at: int | None = None, *, budget: bool = False) -> PretendedCuda:
    """Trains on the pretended device, stopped at a step where one is named; returns the device."""
    label = None if at is None else ("pruned", at)
    with PretendedCuda() as gpu:
        run = open_run(replace(given, device="cuda"), folder, Quiet(label), resume=folder.exists())
        if budget:
            ops = [timed.op for timed in run.structure.ops]
            profile = latency.sweep(ops, backend=FakeBackend(staircase(2)), fixed=fixed_sides(run.structure))
            stage.do(pruning_of(run, LatencyCost(run.structure, profile)), run)
        else:
            trained(run)
    return gpu


def same(whole: Path, parts: Path) -> None:
    expected, found = (load_weights(folder / "pruned.safetensors") for folder in (whole, parts))
    assert expected.keys() == found.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.slow  # trains a small network three times
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_on_a_gpu_stopped_twice_ends_as_the_one_that_was_not(variant: str, tmp_path: Path) -> None:
    given = VARIANTS[variant]()
    ended(given, tmp_path / "whole")
    for at in (7, 23):  # of 40 steps; masks still change after the first
        with pytest.raises(KeyboardInterrupt):
            ended(given, tmp_path / "parts", at)
    ended(given, tmp_path / "parts")
    same(tmp_path / "whole", tmp_path / "parts")


def met(model: Any, cost: LatencyCost, *more: Any, budget_us: float, **how: Any) -> Any:
    """A closed loop whose first turn meets the budget."""
    return cost, [Round(1, budget_us, budget_us, 0.0, budget_us, 1.0)]


@pytest.mark.slow  # trains a small network three times
@pytest.mark.parametrize("method", ["iee", "halp", "small-dense"])
def test_a_training_to_a_latency_on_a_gpu_goes_on_where_it_was_stopped(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "close_loop", met)
    save_weights(tmp_path / "dense.safetensors", net(6).state_dict())  # HALP prunes what was trained
    weights = str(tmp_path / "dense.safetensors") if method == "halp" else None
    given = replace(settings("rigl"), method=method, budget="0.6", masks=Masks(), weights=weights)
    ended(given, tmp_path / "whole", budget=True)
    for at in (7, 23):
        with pytest.raises(KeyboardInterrupt):
            ended(given, tmp_path / "parts", at, budget=True)
    ended(given, tmp_path / "parts", budget=True)
    same(tmp_path / "whole", tmp_path / "parts")


LOOKS = 100
"""Steps between two looks at what the device has counted, and between two at whether weights are finite."""


def steps_of(
    given: Settings, folder: Path, monkeypatch: pytest.MonkeyPatch, *, budget: bool = False
) -> list[tuple[int, int, bool]]:
    """Trains; returns of each step its number, the waits since the one before, and whether it was an ordinary one.

    Ordinary is a step at or before which no phase of the method began, and around which no epoch ended.
    """
    rows: list[tuple[int, int, bool]] = []
    one, enter, seen, changed = Trainer._one, Sparse._enter, [0], [False, False]

    def noted(method: Sparse, phase: Any) -> None:
        changed[0] = True
        enter(method, phase)

    def counted(trainer: Trainer, parts: Any) -> None:
        one(trainer, parts)
        waits = sum(gpus[-1].waits.values())
        around_end = trainer.step % trainer.per_epoch in (0, 1)
        rows.append((trainer.step, waits - seen[0], not (any(changed) or around_end)))
        seen[0], changed[:] = waits, [False, changed[0]]

    monkeypatch.setattr(Sparse, "_enter", noted)
    monkeypatch.setattr(Trainer, "_one", counted)
    gpus: list[PretendedCuda] = []
    monkeypatch.setattr(PretendedCuda, "__enter__", entered(gpus))
    ended(given, folder, budget=budget)
    return rows


def entered(gpus: list[PretendedCuda]) -> Any:
    """Returns what enters the device and notes which one it is."""
    enter = PretendedCuda.__enter__

    def noted(self: PretendedCuda) -> PretendedCuda:
        gpus.append(self)
        return enter(self)

    return noted


@pytest.mark.slow  # trains a small network for some hundred steps
@pytest.mark.parametrize("method", ["iee", "halp", "small-dense", "scaled", "rigl", "granet", "dense"])
def test_the_host_waits_for_the_gpu_at_most_once_in_fifty_steps(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "close_loop", met)
    to_latency = method in ("iee", "halp", "small-dense", "scaled")
    if to_latency:
        given = settings("rigl")  # method and budget follow
    else:
        given = settings("static") if method == "dense" else settings(method, interval=20)
    given = replace(given, batch_size=2, epochs=5)
    if to_latency:
        save_weights(tmp_path / "dense.safetensors", net(6).state_dict())
        weights = str(tmp_path / "dense.safetensors") if method == "halp" else None
        given = replace(given, method=method, budget="0.6", masks=Masks(), weights=weights)
    rows = steps_of(given, tmp_path / "run", monkeypatch, budget=to_latency)
    assert len(rows) == 300
    waits = {step: n for step, n, ordinary in rows if ordinary and n}
    assert set(waits) <= {step for step in range(1, 301) if step % LOOKS == 0}
    assert sum(waits.values()) <= 300 / 50
    assert sum(ordinary for _, _, ordinary in rows) > 150


def test_the_double_raises_where_cuda_would_and_counts_what_waits() -> None:
    with PretendedCuda() as gpu:
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device == torch.device("cuda:0")
        assert (there * 2).device.type == "cuda"
        for mixed in (
            lambda: there + here,
            lambda: here[there > 0],
            lambda: torch.randn(3, device="cuda", generator=torch.Generator()),
        ):
            with pytest.raises(RuntimeError, match=r"same device|device type"):
                mixed()  # type: ignore[no-untyped-call]
        with pytest.raises(TypeError, match=r"Use Tensor\.cpu"):
            there.numpy()
        assert not gpu.waits
        assert float(there.sum()) == 3.0
        assert (there.cpu() + here).tolist() == [2.0] * 3
        here.to("cuda")
    assert gpu.waits == {"__float__": 1, "download": 1, "upload": 1}
    assert torch.ones(1).numpy() == 1.0


def test_an_engine_is_of_the_device_of_its_training_whatever_the_one_before_it_was() -> None:
    with PretendedCuda():
        assert loop.engine(SETTINGS, torch.device("cuda")).device.type == "cuda"
    assert loop.engine(SETTINGS, torch.device("cpu")).device.type == "cpu"
