"""A training that is interrupted anywhere ends as if it had not been."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from halpiee.data.tensors import TensorData
from halpiee.errors import PromiseError, UsageError
from halpiee.tasks.classification import Classification, matching
from halpiee.training import loop
from halpiee.training.build import learning_rate, make_optimizer
from halpiee.training.checkpoint import load_state, load_weights
from halpiee.training.config import Settings
from halpiee.training.loop import Outlet, Trainer, evaluate, judged

SETTINGS = Settings(model="m", data="d", budget="0.5", epochs=3, batch_size=4, lr=0.1, warmup=0.25)


def data(n_classes: int = 3) -> TensorData:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (22, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.arange(22) % n_classes
    return TensorData("d", images[:14], labels[:14], images[14:], labels[14:], tuple("abcdefgh"[:n_classes]))


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.2), nn.Flatten(), nn.Linear(16, 3)
    )


def trainer(
    checkpoint: Path | None = None, report: Any = lambda *_: None, best: Path | None = None
) -> Trainer:
    model = net()
    torch.manual_seed(2)
    return Trainer(
        model,
        make_optimizer(model, SETTINGS),
        data(),
        SETTINGS,
        outlet=Outlet(checkpoint=checkpoint, best=best, report=report),
    )


@pytest.mark.parametrize("at", [1, 3, 4, 8])
def test_an_interrupted_training_ends_bit_equal(tmp_path: Path, at: int) -> None:
    whole = trainer()
    whole.run()
    path = tmp_path / "state"

    def interrupt(step: int, total: int, entry: object) -> None:
        if step == at and entry is None:
            os.kill(os.getpid(), signal.SIGINT)

    first = trainer(path, interrupt)
    with pytest.raises(KeyboardInterrupt):
        first.run()
    assert first.step == at
    second = trainer(path)
    torch.manual_seed(99)
    second.load(load_state(path))
    second.run()
    assert second.step == whole.step == 9
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, second.model.state_dict()[name]), name
    assert [e["loss"] for e in second.history] == [e["loss"] for e in whole.history]


def test_running_until_a_condition_stops_before_the_next_step() -> None:
    t = trainer()
    t.run(until=lambda t: t.step == 5)
    assert t.step == 5
    t.run(until=lambda t: t.step == 5)
    assert t.step == 5


def test_the_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, SETTINGS, 9) for step in range(10)]
    # warm-up: round(0.25 · 9) = 2 steps; then half a cosine over 7
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1])
    assert rates[5] == pytest.approx(0.05 * (1 + math.cos(math.pi * 3 / 7)))
    assert rates[9] == pytest.approx(0.0, abs=1e-12)


class Fixed(nn.Module):
    """Answers with the first pixel's label order, whatever the weights."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, x: Tensor) -> Tensor:
        return self.logits[: len(x)]


def test_accuracies_count_the_label_among_the_first_one_and_five() -> None:
    d = data(n_classes=7)  # 8 test images with labels 0 … 6, 0 (arange(22) % 7 from 14 on)
    assert d.test_y.tolist() == [0, 1, 2, 3, 4, 5, 6, 0]
    # every image answered 0 > 1 > 2 > 3 > 4 > 5 > 6: top-1 right for the two zeros, top-5 for labels 0 … 4
    logits = torch.arange(7, 0, -1.0).repeat(8, 1)
    assert evaluate(Fixed(logits), d) == (2 / 8, 6 / 8)


def test_the_loss_on_the_test_images_is_their_mean_by_hand() -> None:
    d = data(n_classes=7)
    logits = torch.arange(7, 0, -1.0).repeat(8, 1)
    shares = [math.exp(7 - i) / sum(math.exp(7 - j) for j in range(7)) for i in range(7)]
    expected = -sum(math.log(shares[label]) for label in d.test_y.tolist()) / 8
    for batch_size in (8, 3):
        fixed = Fixed(torch.cat([logits[:batch_size]]))
        assert judged(fixed, d, Classification(), batch_size=batch_size)["test_loss"] == pytest.approx(
            expected
        )


def test_five_classes_or_fewer_have_no_top5() -> None:
    assert evaluate(Fixed(torch.zeros(8, 3)), data(3))[1] is None


def test_five_losses_in_a_row_that_are_not_finite_stop_the_training_with_advice() -> None:
    t = trainer()
    before = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    next(iter(t.model.parameters())).data.fill_(float("inf"))
    with pytest.raises(
        PromiseError,
        match=r"not finite in 5 steps in a row, up to step 5, and none of them was taken; lower --lr",
    ):
        t.run()
    assert t.bad == 5
    for name, p in list(t.model.named_parameters())[1:]:
        assert torch.equal(p, before[name]), name


def test_a_step_whose_loss_is_not_finite_is_left_out_and_counted() -> None:
    """Batch 1 holds a NaN: the weights after it are those before it, and step 2 is done at its own rate."""
    t = trainer()
    bad = data()
    images, labels = bad.train_x.float() / 255, bad.train_y
    batches = [
        (images[:4] - 0.5, labels[:4]),
        (images[:4] * math.nan, labels[:4]),
        (images[4:8], labels[4:8]),
    ]
    counts: list[int] = []
    seen: list[dict[str, Tensor]] = []
    for x, y in batches:
        t._one([(x, y)])
        counts.append(t.bad)
        seen.append({name: value.detach().clone() for name, value in t.model.state_dict().items()})
    assert counts == [0, 1, 1]
    for name, value in seen[0].items():  # the statistics of batch norms too, which the forward pass has moved
        assert torch.equal(seen[1][name], value), name
        assert not torch.equal(seen[2][name], value), name
        assert bool(torch.isfinite(seen[2][name]).all()), name
    assert t.step == 3
    assert t.optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate(2, SETTINGS, 9))


def test_weights_that_are_not_finite_do_not_replace_the_last_good_checkpoint(tmp_path: Path) -> None:
    """The weights are spoilt at step 4, epochs end at 3 and 6, five bad steps in a row at 9."""
    path = tmp_path / "state"

    def spoil(step: int, total: int, entry: object) -> None:
        if step == 4:
            next(iter(t.model.parameters())).data.fill_(math.inf)

    t = trainer(path, spoil)
    with pytest.raises(PromiseError) as stopped:
        t.run()
    assert f"the last good checkpoint, {path}, is kept" in str(stopped.value)
    state = load_state(path)
    assert state["step"] == 3
    for name, value in state["model"].items():
        assert bool(torch.isfinite(value.float()).all()), name


def judged_as(figures: list[float], patch: pytest.MonkeyPatch) -> None:
    """Lets the epochs have these figures."""
    left = iter(figures)
    patch.setattr(loop, "judged", lambda *_, **__: {"accuracy": next(left), "test_loss": 0.0})


def test_the_weights_of_the_best_epoch_are_kept_beside_the_last_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_as([0.5, 0.75, 0.75], monkeypatch)
    held: dict[int, dict[str, Tensor]] = {}

    def look(step: int, total: int, entry: object) -> None:
        if entry is not None:
            held[step] = {name: value.clone() for name, value in t.model.state_dict().items()}

    t = trainer(tmp_path / "state", look, best=tmp_path / "best.safetensors")
    t.run()
    assert t.best == (2, 0.75)  # the earlier one of two that are as good
    kept = load_weights(tmp_path / "best.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in held[6].items())
    assert not all(torch.equal(kept[name], value) for name, value in held[9].items())


def test_a_process_that_died_before_it_wrote_the_best_epoch_writes_it_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged_as([0.5, 0.75, 0.25, 0.25], monkeypatch)
    best = tmp_path / "best.safetensors"
    first = trainer(tmp_path / "state", best=best)
    first.run(until=lambda t: t.step == 6)
    expected = load_weights(best)
    best.unlink()
    second = trainer(tmp_path / "state", best=best)
    second.load(load_state(tmp_path / "state"))
    assert second.best == (2, 0.75)
    second.run()
    kept = load_weights(best)
    assert all(torch.equal(kept[name], value) for name, value in expected.items())


def test_epochs_before_the_cut_are_not_the_best_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged_as([0.9, 0.5, 0.4], monkeypatch)
    t = trainer(best=tmp_path / "best.safetensors")
    t.run(until=lambda t: t.step == 3)
    assert t.best == (1, 0.9)
    other = net()
    t.replace(other, make_optimizer(other, SETTINGS))
    t.run()
    assert t.best == (2, 0.5)


def plain() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def trained(s: Settings, model: nn.Module) -> Trainer:
    found = Trainer(model, make_optimizer(model, s), data(), s)
    found.run()
    return found


def test_gradients_of_parts_add_up_to_those_of_the_whole_step() -> None:
    whole, parts = (trained(replace(SETTINGS, accumulate=k), plain()) for k in (1, 4))
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert [e["step"] for e in parts.history] == [3, 6, 9]
    assert parts.history[-1]["loss"] == pytest.approx(whole.history[-1]["loss"], rel=1e-5)


def test_clipped_gradients_have_the_norm_that_was_asked() -> None:
    s = replace(SETTINGS, clip=1e-3, momentum=0.0, weight_decay=0.0, warmup=0.0)
    model = plain()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    t = Trainer(model, make_optimizer(model, s), data(), s)
    x, y = next(t.data.batches(0, 4, seed=0))
    t.train_step((x, y))
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert float((after - before).norm()) == pytest.approx(t.optimizer.param_groups[0]["lr"] * 1e-3, rel=1e-3)


def test_the_average_of_weights_is_the_running_mean_by_hand(tmp_path: Path) -> None:
    s = replace(SETTINGS, ema=0.6)
    model = plain()
    t = Trainer(model, make_optimizer(model, s), data(), s)
    expected: Tensor | None = None
    for x, y in t.data.batches(0, 4, seed=0):
        t.train_step((x, y))
        now = next(iter(model.parameters())).detach().clone()
        expected = now if expected is None else 0.6 * expected + 0.4 * now
    assert expected is not None
    assert t.average is not None
    averaged = next(iter(t.average.module.parameters()))
    torch.testing.assert_close(averaged, expected)
    assert t.result is t.average.module
    kept = Trainer(plain(), make_optimizer(model, s), data(), replace(s, export_ema=False))
    assert kept.result is kept.model


def test_rates_of_every_schedule_are_those_by_hand() -> None:
    base = replace(SETTINGS, warmup=0.2, lr=1.0)  # of 10 steps: two of warm-up

    def rates(**other: Any) -> list[float]:
        return [learning_rate(step, replace(base, **other), 10) for step in range(10)]

    assert rates(schedule="constant") == pytest.approx([0.5, *[1.0] * 9])
    assert rates(drops=(0.5, 0.8), drop=0.1) == pytest.approx([0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert rates(drops=(0.5, 0.8), drop_factors=(0.5, 0.2)) == pytest.approx(
        [0.5, *[1] * 4, *[0.5] * 3, 0.1, 0.1]
    )
    cycle = rates(schedule="onecycle")
    assert cycle[0] == pytest.approx(1 / 25)
    assert cycle[1] == pytest.approx((1 / 25 + 1) / 2)
    assert cycle[2] == pytest.approx(1.0)
    assert cycle[9] == pytest.approx(1 / 25 * 1e-4)
    with pytest.raises(UsageError, match="drops are of --schedule steps"):
        replace(base, schedule="cosine", drops=(0.5,))
    with pytest.raises(UsageError, match="gives 1 factors for 2 drops"):
        replace(base, drops=(0.5, 0.8), drop_factors=(0.5,))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("rmsprop", torch.optim.RMSprop)],
)
def test_optimizers_are_torchs_own(name: str, kind: type) -> None:
    made = make_optimizer(net(), replace(SETTINGS, optimizer=name))  # type: ignore[arg-type]
    assert type(made) is kind
    assert [g["weight_decay"] for g in made.param_groups] == [5e-4, 0.0]


def test_weight_decay_leaves_norms_and_biases_alone() -> None:
    model = net()
    groups = make_optimizer(model, SETTINGS).param_groups
    assert [g["weight_decay"] for g in groups] == [5e-4, 0.0]
    assert all(p.dim() > 1 for p in groups[0]["params"])
    assert all(p.dim() == 1 for p in groups[1]["params"])


def test_matching_answers_cost_nothing_and_others_their_divergence_by_hand() -> None:
    same = torch.tensor([[1.0, -2.0, 0.5]])
    assert float(matching(same, same)) == pytest.approx(0.0, abs=1e-6)
    # softmax((2 ln 3, 0) / 2) = (3/4, 1/4), softmax(0, 0) = (1/2, 1/2); T² · Σ p ln(p / q)
    wanted = torch.tensor([[2 * math.log(3), 0.0]])
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(matching(torch.zeros(1, 2), wanted)) == pytest.approx(4 * divergence, rel=1e-5)


def test_training_in_bfloat16_keeps_weights_in_fp32_and_follows_the_fp32_training() -> None:
    def of(precision: Literal["fp32", "bf16"]) -> Trainer:
        layers: Any = net()
        model = layers[:2].append(nn.Flatten()).append(nn.Linear(16, 3))
        torch.manual_seed(2)
        return trained(replace(SETTINGS, precision=precision, channels_last=precision == "bf16"), model)

    whole, half = of("fp32"), of("bf16")
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    first, second = (dict(t.model.named_parameters())["0.weight"] for t in (whole, half))
    assert second.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(first, second)
    for a, b in zip(whole.history, half.history, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=0.05)
