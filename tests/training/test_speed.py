"""Faster ways of training end where the plain one does: half precision, compiled code, fused optimizers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from halpiee.methods.dynamic import RigL
from halpiee.sparsity import Uniform
from halpiee.training import loop, stage, to_sparsity
from halpiee.training.build import make_optimizer
from halpiee.training.checkpoint import load_state, load_weights
from halpiee.training.config import Settings
from halpiee.training.loop import Outlet, Trainer
from halpiee.training.preflight import open_run

from .talk import Quiet, one_thread, trained
from .test_loop import SETTINGS, data, plain
from .test_masking import settings

FIRST = 2.0**10
"""The scale of the losses that these trainings begin with."""


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "pick_threads", one_thread)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Autocast to fp16 with a loss scaler on a CPU, which accelerate keeps for GPUs; the scale doubles in 4 steps."""
    original = loop.engine

    def engine(given: Settings, device: torch.device) -> Any:
        found = original(replace(given, precision="fp32"), device)
        if given.precision == "fp16":
            found.native_amp = True
            found.scaler = torch.amp.GradScaler("cpu", init_scale=FIRST, growth_interval=4)
            found.state._mixed_precision = "fp16"
        return found

    monkeypatch.setattr(loop, "engine", engine)
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()


def rigl(checkpoint: Path | None = None, **other: Any) -> Trainer:
    """Returns a training of 9 steps whose mask changes at every second step."""
    s = replace(SETTINGS, warmup=0.0, lr=0.05, **other)
    model = plain()
    optimizer = make_optimizer(model, s)
    method = RigL(model, optimizer, budget=Uniform(0.5), total_steps=9, interval=2)
    return Trainer(model, optimizer, data(), s, method=method, outlet=Outlet(checkpoint))


@pytest.mark.usefixtures("half")
def test_a_training_in_fp16_follows_the_one_in_fp32_and_scales_its_losses() -> None:
    whole, scaled = rigl(), rigl(precision="fp16")
    seen: list[torch.dtype] = []
    layer = next(m for m in scaled.model.modules() if isinstance(m, nn.Conv2d))
    layer.register_forward_hook(lambda module, given, answer: seen.append(answer.dtype))
    whole.run()
    scaled.run()
    assert seen[0] is torch.float16
    assert all(p.dtype == torch.float32 for p in scaled.model.parameters())
    for a, b in zip(whole.history, scaled.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=0.01)
    assert scaled.method is not None
    assert scaled.method.step == 9  # none was skipped
    assert scaled._engine.scaler.get_scale() == FIRST * 2**2  # of 9 steps, every fourth doubles it


@pytest.mark.usefixtures("half")
def test_a_training_in_fp16_that_was_stopped_ends_bit_equal(tmp_path: Path) -> None:
    path = tmp_path / "state"
    whole, first = rigl(precision="fp16"), rigl(path, precision="fp16")
    whole.run()
    first.run(until=lambda t: t.step == 5)
    first.save()
    second = rigl(path, precision="fp16")
    second.load(load_state(path))
    assert second._engine.scaler.get_scale() == FIRST * 2
    second.run()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value), name


@pytest.mark.usefixtures("half")
def test_a_step_whose_gradients_are_too_large_for_fp16_is_skipped_and_halves_the_scale() -> None:
    """The loss itself is finite, so that it is no bad step; the method does not count it either."""
    t = rigl(precision="fp16")
    t._engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    t._take(t.model, t.optimizer)
    before = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    x, y = next(t.data.batches(0, 4, seed=0))
    t.train_step((x, y))
    for name, p in t.model.named_parameters():
        assert torch.equal(p, before[name]), name
    assert t._engine.scaler.get_scale() == 2.0**39
    assert t.bad == 0
    assert t.method is not None
    assert t.method.step == 0


@pytest.mark.usefixtures("half")
def test_clipping_in_fp16_sees_gradients_without_the_scale() -> None:
    s = replace(SETTINGS, clip=1e-3, momentum=0.0, weight_decay=0.0, warmup=0.0, precision="fp16")
    model = plain()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    t = Trainer(model, make_optimizer(model, s), data(), s)
    x, y = next(t.data.batches(0, 4, seed=0))
    t.train_step((x, y))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(t.optimizer.param_groups[0]["lr"] * 1e-3, rel=1e-3)


def both_ends(given: Settings, tmp_path: Path, patch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the weights of a run, and of the same one with something patched."""
    trained(open_run(given, tmp_path / "plain", Quiet()))
    faster = patch()
    trained(open_run(faster, tmp_path / "faster", Quiet()))
    first, second = (load_weights(tmp_path / name / "pruned.safetensors") for name in ("plain", "faster"))
    return first, second


def test_compiled_code_trains_the_same_network_before_the_cut_and_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is torch's; its last stage, inductor, is left out, as it takes a minute a network."""
    given = settings("filter", rounds=2, criterion="l1")
    compiled: list[int] = []
    original = torch.compile

    def compile(module: nn.Module, **how: Any) -> Any:
        assert how["backend"] == "inductor"
        compiled.append(sum(p.numel() for p in module.parameters()))
        return original(module, **{**how, "backend": "aot_eager"})

    def patch() -> Settings:
        monkeypatch.setattr(torch, "compile", compile)
        return replace(given, compile=True)

    first, second = both_ends(given, tmp_path, patch)
    assert len(compiled) == 2
    assert compiled[1] < compiled[0]
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_whose_steps_are_in_parts_trains_the_same_network(tmp_path: Path) -> None:
    """Threads are chosen by a training of one part beside it."""
    given = replace(settings("rigl"), model="toy:plain")
    first, second = both_ends(given, tmp_path, lambda: replace(given, accumulate=4))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def test_two_trainings_in_turns_keep_their_own_numbers_of_parts() -> None:
    """Accelerate's engines share their state: the second one must not change the steps of the first."""
    alone, first, other = (rigl(accumulate=k) for k in (4, 4, 1))
    batches = list(alone.data.batches(0, 1, seed=0))
    alone.train_step(*batches[:4])
    other.train_step(next(other.data.batches(0, 4, seed=0)))
    first.train_step(*batches[:4])
    for name, value in alone.model.state_dict().items():
        assert torch.equal(first.model.state_dict()[name], value), name
    torch.testing.assert_close(
        dict(other.model.state_dict()), dict(alone.model.state_dict()), rtol=1e-4, atol=1e-6
    )


@pytest.mark.usefixtures("half")
def test_trainings_in_turns_keep_their_precision_when_they_are_cut() -> None:
    precisions = {"fp16": torch.float16, "fp32": torch.float32}
    trainings = [rigl(precision=precision) for precision in precisions]
    seen: list[torch.dtype] = []
    for one in trainings:
        one.train_step(next(one.data.batches(0, 4, seed=0)))
        one.replace(one.model, one.optimizer)
        layer = next(m for m in one.model.modules() if isinstance(m, nn.Conv2d))
        layer.register_forward_hook(lambda module, given, answer: seen.append(answer.dtype))
    for one in trainings:
        one.train_step(next(one.data.batches(0, 4, seed=0)))
    assert seen == list(precisions.values())


@pytest.mark.usefixtures("half")
def test_a_training_in_fp16_unscales_what_it_clips_beside_one_in_fp32() -> None:
    """Whether to unscale is asked of the shared precision: by another one, scaled gradients would be clipped."""
    alone = rigl(precision="fp16", clip=0.1)
    alone.train_step(next(alone.data.batches(0, 4, seed=0)))
    beside, _ = rigl(precision="fp16", clip=0.1), rigl()
    beside.train_step(next(beside.data.batches(0, 4, seed=0)))
    for name, value in alone.model.state_dict().items():
        assert torch.equal(beside.model.state_dict()[name], value), name


@pytest.mark.slow  # inductor compiles two networks
def test_inductors_code_trains_the_same_network(tmp_path: Path) -> None:
    given = settings("filter", rounds=2, criterion="l1")
    first, second = both_ends(given, tmp_path, lambda: replace(given, compile=True))
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_fused_optimizers_train_the_same_network_before_the_cut_and_after_it(
    name: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU gets by default, on a CPU, which has the same kernels."""
    lr = 0.1 if name == "sgd" else 0.01
    given = replace(settings("filter", rounds=2, criterion="l1"), optimizer=name, lr=lr, clip=1.0)
    made: list[Optimizer] = []

    def fused(model: nn.Module, s: Settings) -> Optimizer:
        found = make_optimizer(model, s)
        for group in found.param_groups:
            group["fused"], group["foreach"] = True, False
        made.append(found)
        return found

    ended: list[Optimizer] = []
    finish = stage.Training.finish

    def watched(self: stage.Training, run: Any) -> None:
        ended.append(self.trainer.optimizer)
        finish(self, run)

    def patch() -> Settings:
        monkeypatch.setattr(to_sparsity, "make_optimizer", fused)
        monkeypatch.setattr(stage.Training, "finish", watched)
        return given

    first, second = both_ends(given, tmp_path, patch)
    assert ended[0] is not made[0]  # it was cut
    assert all(group["fused"] for group in ended[0].param_groups)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5)
