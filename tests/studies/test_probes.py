"""What branches off a training: its states, the schedule it goes on with, and the quantities of the probes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from halpiee.analysis.measures import Plasticity, pruning_plasticity
from halpiee.data.opening import load
from halpiee.data.tensors import TensorData
from halpiee.sparsity.mask import Mask
from halpiee.studies.probes import (
    CollapseKnobs,
    Finished,
    FlowKnobs,
    PlasticityKnobs,
    collapse,
    final_gap,
    gradient_flow,
    plasticity,
    train_accuracy,
)
from halpiee.studies.trajectory import Branch, Place, branches, states, total_steps
from halpiee.training.build import initial, make_optimizer
from halpiee.training.config import Masks, Settings
from halpiee.training.loop import Trainer, evaluate


def pruned(branch: Branch, train: Callable[[torch.nn.Module, Mask], None], *, rate: float) -> Plasticity:
    return pruning_plasticity(
        branch.model,
        rate=rate,
        train=lambda model, free: train(model, Mask.of(free)),
        accuracy=lambda model: evaluate(model, branch.place.data)[0],
        units=branch.units("weights"),
        within="global",
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "training"))
    s = Settings(
        model="toy:net",
        data="toy:data",
        epochs=4,
        batch_size=20,
        lr=0.1,
        drops=(0.5,),
        warmup=0.0,
        method="gmp",
        masks=Masks(sparsity=0.5),
    )
    return Place(s, load("toy:data"), torch.device("cpu"), tmp_path)


def weights(branch: Branch) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in branch.model.parameters()])


def test_states_in_any_order_are_those_of_one_training(place: Place) -> None:
    s = place.settings
    model = initial(s, place.data.n_classes)
    trainer = Trainer(model, make_optimizer(model, s), place.data, s)
    torch.manual_seed(s.seed)
    expected = {}
    for step in (0, 6, 12, 24):
        trainer.run(until=lambda t, step=step: t.step >= step)  # type: ignore[misc]
        expected[step] = torch.cat([p.detach().flatten() for p in model.parameters()]).clone()
    assert total_steps(place) == 24
    states(place, 0.0, [24])  # the end first: the others must not be taken from it
    files = states(place, 0.0, [12, 0, 6])
    for step in (0, 6, 12):
        assert torch.equal(weights(Branch.load(place, files[step])), expected[step]), step
    assert torch.equal(weights(Branch.load(place, states(place, 0.0, [24])[24])), expected[24])


def test_a_pretrained_network_has_its_sparsity_in_every_layer_from_the_start(place: Place) -> None:
    for _, branch in branches(place, 0.75, [0.0, 1.0]):
        for name in ("conv1.weight", "conv2.weight", "fc.weight"):
            weight = branch.model.get_parameter(name)
            assert float((weight != 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_what_is_pruned_stays_zero_while_the_rest_trains_at_the_rate_it_is_given(place: Place) -> None:
    ((_, branch),) = branches(place, 0.0, [0.5])
    rates: list[int] = []

    def rate(step: int) -> float:
        rates.append(step)
        return 0.05

    seen: list[float] = []

    def train(model: torch.nn.Module, mask: Mask) -> None:
        branch.train_on(model, mask, "weights", 5, rate)
        kept = [p for n, p in model.named_parameters() if n in ("conv1.weight", "conv2.weight", "fc.weight")]
        seen.append(sum(int((p != 0).sum()) for p in kept) / sum(p.numel() for p in kept))

    pruned(branch, train, rate=0.5)
    assert rates == [12, 13, 14, 15, 16]
    assert seen == [pytest.approx(0.5, abs=0.002)]


def test_the_rate_after_pruning_is_the_one_at_that_time(place: Place) -> None:
    (_, early), (_, late) = branches(place, 0.0, [0.25, 0.75])
    assert early.rate(early.step - 1) == pytest.approx(0.1)
    assert late.rate(late.step - 1) == pytest.approx(0.01)


def test_the_final_gap_of_a_prune_at_the_end_is_its_loss_and_earlier_ones_recover(place: Place) -> None:
    knobs = PlasticityKnobs(rate=0.8, scope="global", times=(0.25, 1.0))
    found = final_gap(place, knobs)
    (early, first), (end, last) = found["final_gap"]
    assert (early, end) == (1.0, 4.0)
    ((_, branch),) = branches(place, 0.0, [1.0])
    assert found["accuracy"] == evaluate(branch.model, place.data)[0]
    at_once = pruned(branch, lambda model, mask: None, rate=0.8)
    assert last == pytest.approx(at_once.pruned - found["accuracy"])
    assert first != last


def test_plasticity_of_filters_with_and_without_regrowth(place: Place) -> None:
    for regrowth in (False, True):
        knobs = PlasticityKnobs(rate=0.5, of="filters", times=(0.5,), onward=1, regrowth=regrowth)
        ((epoch, value),) = plasticity(place, knobs)["plasticity"]
        assert epoch == 2.0
        assert -1 <= value <= 1


def test_flow_looks_at_every_epoch_and_its_correlations_are_correlations(place: Place) -> None:
    found = gradient_flow(place, FlowKnobs(every=2, examples=120))
    assert [x for x, _ in found["scale_change"]] == [2, 4]  # there is no epoch before the first
    assert [x for x, _ in found["hessian"]] == [0, 2, 4]
    assert [x for x, _ in found["mask_distance"]] == [2, 4]
    for name in ("scale_change", "hessian"):
        assert all(-1 <= y <= 1 for _, y in found[name])
    assert all(0 <= y <= 0.4 for _, y in found["mask_distance"])  # 20 % of the filters are out


def test_scales_are_compared_with_the_gradient_over_all_images_not_with_those_of_batches(
    place: Place,
) -> None:
    """|σ·Δσ| and |θᵀg| by hand at the last epoch; g is one gradient over the 120 images, norms as in evaluation."""
    ((epoch, found),) = gradient_flow(place, FlowKnobs(every=4, examples=120))["scale_change"]
    files = states(place, 0.0, [18, 24])
    earlier, model = (Branch.load(place, files[step]).model.eval() for step in (18, 24))
    images, labels = place.data.at(torch.arange(120))
    torch.autograd.backward(torch.nn.functional.cross_entropy(model(images), labels))
    changes, sizes = [], []
    for i in (1, 2):
        kernel = model.get_parameter(f"conv{i}.weight")
        assert kernel.grad is not None
        sizes.append((kernel.detach() * kernel.grad).flatten(1).sum(1).abs())
        now, then = (net.get_parameter(f"bn{i}.weight").detach() for net in (model, earlier))
        changes.append((now * (now - then)).abs())
    expected = torch.corrcoef(torch.stack([torch.cat(changes), torch.cat(sizes)]))[0, 1]
    assert epoch == 4
    assert found == pytest.approx(float(expected), abs=1e-4)


def test_the_training_accuracy_is_over_all_images_those_behind_the_last_full_batch_too() -> None:
    """A network that always says 0, on 256 images of class 0 and 44 of class 1."""

    class Zero(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 0.0]).expand(len(x), 2)

    images, labels = torch.zeros(300, 1, 4, 4), torch.cat([torch.zeros(256), torch.ones(44)]).long()
    data = TensorData("two", images, labels, images[-2:], labels[-2:], ("a", "b"))
    run: Any = SimpleNamespace(compact=Zero, device="cpu", data=data)
    assert train_accuracy(Finished(run, None, {})) == pytest.approx(256 / 300)


def test_collapse_at_the_threshold_of_one_is_that_of_all_weights(place: Place) -> None:
    found = collapse(place, CollapseKnobs(by="synflow-shuffled", thresholds=(0.5, 1.0)))
    assert found["neurons"][-1] == (1.0, found["collapsed"])
    assert found["neurons"][0][1] >= found["collapsed"]
    assert sum(found["densities"].values()) > 0
