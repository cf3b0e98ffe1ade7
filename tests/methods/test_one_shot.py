"""Pruning outside of training: budgets, rounds, what is left behind."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import halpiee
from halpiee.errors import ScoreWarning, StructureError, UsageError
from halpiee.saliency import Magnitude
from halpiee.saliency.criterion import Look
from halpiee.sparsity import ERK, NM, Filters, Global, PerLayer, Uniform, Units, Weights


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 4))


N = 80 + 60 + 24


class Recorder:
    """Magnitude that notes how many weights are not zero whenever it is asked, and prefers what it was not told."""

    per_step = False

    def __init__(self) -> None:
        self.nonzero: list[int] = []

    def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, torch.Tensor]:
        weights = {name: value(name) for name in units.sizes}
        self.nonzero.append(sum(int((w != 0).sum()) for w in weights.values() if w is not None))
        return Magnitude()(units, value, gradient)


def test_one_threshold_over_all_layers_keeps_the_largest_weights_anywhere() -> None:
    model = mlp()
    mask = halpiee.prune_once(model, "magnitude", 0.25)
    size = torch.cat([model.get_parameter(f"{i}.weight").detach().abs().flatten() for i in (0, 2, 4)])
    kept = torch.cat([mask[f"{i}.weight"].flatten() for i in (0, 2, 4)])
    assert int(kept.sum()) == round(0.25 * N)
    assert size[kept].min() > size[~kept].max()


def test_other_budgets_share_out_by_layer() -> None:
    model = mlp()
    assert halpiee.prune_once(model, "magnitude", Uniform(0.5)).counts == {
        "0.weight": 40,
        "2.weight": 30,
        "4.weight": 12,
    }
    assert halpiee.prune_once(model, "random", PerLayer({"2": 0.1})).counts == {
        "0.weight": 80,
        "2.weight": 6,
        "4.weight": 24,
    }
    runs = halpiee.prune_once(model, "magnitude", NM(2, 2))
    assert runs.density == 1.0
    assert halpiee.prune_once(model, "magnitude", ERK(0.5)).density == pytest.approx(0.5, abs=2 / N)


def test_rounds_follow_powers_of_the_density() -> None:
    model, criterion = mlp(), Recorder()
    mask = halpiee.prune_once(model, criterion, Global(0.1), rounds=4)
    expected = [N, *(round(0.1 ** (k / 4) * N) for k in (1, 2, 3))]
    assert criterion.nonzero == expected
    assert sum(mask.counts.values()) == round(0.1 * N)


def test_only_survivors_are_scored_again() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    with torch.no_grad():
        model.get_parameter("0.weight").copy_(torch.tensor([[4.0, 3.0, 2.0, 1.0]]))

    class Flip:
        """First the large, then the small; a pruned weight is at zero and would win."""

        per_step = False
        asked = 0

        def __call__(self, units: Units, value: Look, gradient: Look) -> dict[str, torch.Tensor]:
            self.asked += 1
            size = Magnitude()(units, value, gradient)
            return {n: s if self.asked == 1 else -s for n, s in size.items()}

    mask = halpiee.prune_once(model, Flip(), Global(0.25), rounds=2)
    assert mask["0.weight"].tolist() == [[False, True, False, False]]


def test_the_model_is_left_as_it_was_and_apply_writes_the_zeros() -> None:
    model = mlp()
    before = copy.deepcopy(model.state_dict())
    data = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
    for criterion, rounds in (("snip", 1), ("grasp", 3), ("synflow", 5), ("inverted-synflow", 5)):
        # keeping the smallest flows soon leaves none, which it says
        collapses = criterion == "inverted-synflow"
        with pytest.warns(ScoreWarning, match="Inverted SynFlow .* 0") if collapses else nullcontext():
            mask = halpiee.prune_once(model, criterion, 0.3, data, rounds=rounds)
        assert bool(mask.flat) == collapses
        assert mask.density == pytest.approx(0.3, abs=1 / N)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    mask.apply(model)
    for name, keep in mask.items():
        weight = dict(model.named_parameters())[name]
        assert torch.equal(weight.detach(), before[name] * keep)


def test_synflow_in_many_rounds_keeps_a_path_where_one_round_cuts_a_layer() -> None:
    # The bottleneck's few weights carry all paths: they score highest as long as scores are taken again.
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(30, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 30, bias=False)
    )
    mask = halpiee.prune_once(model, "synflow", 0.05, rounds=50)
    mask.apply(model)
    assert model(torch.ones(1, 30)).abs().sum() > 0


def test_inverted_keeps_the_smallest() -> None:
    model = mlp()
    mask = halpiee.prune_once(model, "inverted-magnitude", 0.25)
    size = torch.cat([model.get_parameter(f"{i}.weight").detach().abs().flatten() for i in (0, 2, 4)])
    kept = torch.cat([mask[f"{i}.weight"].flatten() for i in (0, 2, 4)])
    assert size[kept].max() < size[~kept].min()


def test_filters_are_pruned_with_their_norms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
    )
    units = Filters(model)
    mask = halpiee.prune_once(model, "l1", Uniform(0.5), units=units)
    norm = model.get_parameter("0.weight").detach().abs().sum((1, 2, 3))
    assert set(mask["0"].nonzero().flatten().tolist()) == set(norm.topk(3).indices.tolist())
    mask.apply(model, units)
    assert torch.equal(model.get_parameter("1.weight").detach() != 0, mask["0"])


def test_channels_of_a_structure_are_pruned_as_shrink_takes_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3))
    structure = halpiee.trace(model, (torch.zeros(1, 2, 8, 8),))
    mask = halpiee.prune_once(model, "random", Uniform(0.5), units=structure, seed=3)
    compact = halpiee.shrink(model, structure, mask)
    assert isinstance(compact, nn.Module)
    assert compact.get_parameter("0.weight").shape[0] == 3


def test_random_masks_are_those_of_their_seed() -> None:
    model = mlp()
    first, again, other = (halpiee.prune_once(model, "random", 0.5, seed=s) for s in (1, 1, 2))
    assert first.digest() == again.digest() != other.digest()


def test_shuffling_keeps_every_layers_count_and_moves_its_weights() -> None:
    mask = halpiee.prune_once(mlp(), "magnitude", 0.3)
    shuffled = mask.shuffled(1)
    assert shuffled.counts == mask.counts
    assert shuffled.digest() == mask.shuffled(1).digest()
    assert 0 < shuffled.iou(mask) < 0.5


def test_a_mask_of_another_model_is_refused() -> None:
    mask = halpiee.prune_once(mlp(), "magnitude", 0.3)
    with pytest.raises(
        UsageError, match=r"a mask of shape \(10, 8\) was applied to '0.weight', .* has \(3, 3\)"
    ):
        mask.apply(nn.Sequential(nn.Linear(3, 3)))


def test_rounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="rounds=0 was asked"):
        halpiee.prune_once(mlp(), "magnitude", 0.3, rounds=0)
    with pytest.raises(UsageError, match="2:4 was asked in 3 rounds"):
        halpiee.prune_once(mlp(), "magnitude", NM(2, 4), rounds=3)


def test_a_criterion_that_needs_data_says_so() -> None:
    with pytest.raises(UsageError, match=r"no batch gave finite scores .* give at least one batch"):
        halpiee.prune_once(mlp(), "snip", 0.3)


def test_batches_that_are_not_finite_are_counted() -> None:
    good = (torch.randn(6, 8), torch.randint(0, 4, (6,)))
    bad = (torch.full((6, 8), float("inf")), good[1])
    mask = halpiee.prune_once(mlp(), "snip", 0.3, [good, bad], rounds=2)
    assert mask.skipped == 2  # once a round
    assert mask.digest() == halpiee.prune_once(mlp(), "snip", 0.3, [good], rounds=2).digest()


def test_a_model_without_prunable_layers_is_refused() -> None:
    with pytest.raises(StructureError, match="found no conv or linear layer"):
        halpiee.prune_once(nn.Sequential(nn.ReLU()), "magnitude", 0.3)


def test_inputs_that_do_not_divide_into_runs_are_refused_with_the_name_to_pin() -> None:
    with pytest.raises(
        UsageError, match=r"3:5 was asked of '0.weight', whose 8 input channels do not divide"
    ):
        halpiee.prune_once(mlp(), "magnitude", NM(3, 5))
    pinned = Weights(mlp(), pinned=frozenset({"0.weight", "4.weight"}))
    assert halpiee.prune_once(mlp(), "magnitude", NM(3, 5), units=pinned).counts == {"2.weight": 36}


def test_scores_are_taken_where_gradients_are_off() -> None:
    data = [(torch.randn(6, 8), torch.randint(0, 4, (6,)))]
    with torch.no_grad():
        mask = halpiee.prune_once(mlp(), "grasp", 0.3, data)
    assert mask.digest() == halpiee.prune_once(mlp(), "grasp", 0.3, data).digest()
