"""Weights under several names, and weights that are computed from other tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune
from torch.nn.utils import spectral_norm as old_spectral_norm

import halpiee
from halpiee.errors import StructureError, UsageError
from halpiee.sparsity import Filters, Mask, Weights

prune: Any = torch_prune  # torch does not annotate it


class Tied(nn.Module):
    """A word model whose head is its embedding, and two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.b, self.c = nn.Conv1d(6, 6, 3, padding=1), nn.Conv1d(6, 6, 3, padding=1)
        self.c.weight = self.b.weight
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.words(x).transpose(1, 2)
        found: Tensor = self.head(torch.relu(self.c(torch.relu(self.b(x)))).mean(2))
        return found


@pytest.fixture
def tied() -> Tied:
    torch.manual_seed(0)
    return Tied()


def data() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(0)
    return [(torch.randint(0, 7, (8, 5), generator=g), torch.randint(0, 7, (8,), generator=g))]


def test_a_shared_weight_is_one_entry_under_the_name_of_the_parameter(tied: Tied) -> None:
    assert Weights(tied).sizes == {"b.weight": (6, 6, 3), "words.weight": (7, 6)}


def test_a_shared_weight_is_scored_by_the_gradient_of_all_its_uses(tied: Tied) -> None:
    ((x, y),) = data()
    torch.autograd.backward(nn.functional.cross_entropy(tied(x), y))
    expected = {
        n: (p * p.grad).abs().detach()
        for n, p in tied.named_parameters()
        if n.endswith("weight") and p.grad is not None
    }
    tied.zero_grad()
    torch.testing.assert_close(dict(halpiee.score(tied, data(), "taylor", units="weights")), expected)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor", "snip"])
def test_a_shared_weight_is_pruned_as_any_other(tied: Tied, criterion: str) -> None:
    mask = halpiee.prune_once(tied, criterion, 0.5, data())
    assert sum(mask.counts.values()) == (108 + 42) // 2
    scores = torch.cat(
        [s.flatten() for s in halpiee.score(tied, data(), criterion, units="weights").values()]
    )
    kept = torch.cat([mask[n].flatten() for n in Weights(tied).sizes])
    assert scores[kept].min() >= scores[~kept].max()
    mask.apply(tied)
    assert tied.c.weight is tied.b.weight
    assert torch.equal(tied.head.weight != 0, mask["words.weight"])


@pytest.mark.parametrize("method", ["RigL", "SET", "GMP", "IEE", "SNIP", "Static"])
def test_methods_train_shared_weights_under_one_mask(tied: Tied, method: str) -> None:
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1, momentum=0.9)
    named: dict[str, dict[str, Any]] = {
        "IEE": {"h": 2, "j": 1, "q": 2},
        "SNIP": {"batches": data()},
        "Static": {},
    }
    extra = named.get(method, {"interval": 3})
    kind = getattr(halpiee, method)
    running = kind(tied, optimizer, budget=halpiee.Uniform(0.5), total_steps=12, **extra)
    ((x, y),) = data()
    for _ in range(12):
        optimizer.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(tied(x), y))
        optimizer.step()
    assert running.alive.counts == {"b.weight": 54, "words.weight": 21}
    assert not tied.c.weight[~running.alive["b.weight"]].any()
    assert torch.equal(tied.head.weight, tied.words.weight)


class TwoConvs(nn.Module):
    """Two convolutions of one weight, a norm behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b, self.c = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c.weight = self.b.weight
        self.nb, self.nc = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.nb(self.b(torch.relu(self.a(x)))))
        found: Tensor = self.head(torch.relu(self.nc(self.c(x))).mean((2, 3)))
        return found


def test_filters_of_a_shared_weight_go_with_the_biases_and_norms_of_all_their_layers() -> None:
    torch.manual_seed(0)
    model = TwoConvs()
    units = Filters(model, torch.zeros(1, 3, 4, 4))
    assert units.sizes == {"a": (4,), "b": (4,)}
    alive = Mask({"a": torch.ones(4, dtype=torch.bool), "b": torch.tensor([True, False, True, True])})
    masks = units.masks(alive)
    for name in ("b.bias", "c.bias", "nb.weight", "nc.weight", "nc.running_var"):
        assert masks[name].tolist() == [True, False, True, True], name
    pair = units.gate({n: torch.ones_like(t) for n, t in model.state_dict().items()}.get)["b"]
    assert pair.tolist() == [4.0] * 4  # γ and β of both norms
    assert Filters(model, torch.zeros(1, 3, 4, 4), pinned={"c"}).sizes == {"a": (4,)}


COMPUTED: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "weight norm": (parametrizations.weight_norm, r"_?WeightNorm.*remove_parametrizations"),
    "spectral norm": (parametrizations.spectral_norm, r"SpectralNorm.*remove_parametrizations"),
    "old spectral norm": (old_spectral_norm, r"SpectralNorm.*remove_spectral_norm"),
    "orthogonal": (parametrizations.orthogonal, r"Orthogonal.*remove_parametrizations"),
    "pruned": (lambda m: prune.l1_unstructured(m, "weight", 0.3), r"L1Unstructured.*prune.remove"),
}


def conv_net(change: Callable[[nn.Module], object]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip
    change(model[2])
    return model


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_weight_that_is_computed_is_refused_by_name_with_what_undoes_it(kind: str) -> None:
    change, undo = COMPUTED[kind]
    model = conv_net(change)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for call in (
        lambda: halpiee.score(model, [], "magnitude", units="weights"),
        lambda: halpiee.prune_once(model, "magnitude", 0.5),
        lambda: halpiee.prune_once(model, "l1", 0.5, units="filters"),
        lambda: halpiee.RigL(model, optimizer, budget=halpiee.ERK(0.5), total_steps=40, interval=4),
        lambda: halpiee.IEE(model, optimizer, budget=halpiee.Global(0.5), total_steps=40, h=4, j=2, q=4),
    ):
        with pytest.raises(StructureError, match=rf"'2.weight' was to be masked.*{undo}.*protect="):
            call()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    left = Weights(model, pinned={"2.weight"})
    assert set(left.sizes) == {"0.weight", "6.weight"}
    assert halpiee.prune_once(model, "magnitude", 0.5, units=left).density == 0.5


def test_the_old_weight_norm_is_refused_too() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = conv_net(nn.utils.weight_norm)
    with pytest.raises(StructureError, match=r"'2.weight' .*WeightNorm.*remove_weight_norm"):
        halpiee.prune_once(model, "magnitude", 0.5)


def test_a_mask_is_applied_whole_or_not_at_all() -> None:
    model = conv_net(lambda m: None)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    good = torch.zeros(6, 3, 3, 3, dtype=torch.bool)
    for bad, text in (
        ({"9.weight": torch.zeros(2, dtype=torch.bool)}, "'9.weight', the model has no such parameter"),
        ({"2.weight": torch.zeros(3, dtype=torch.bool)}, r"has \(8, 6, 3, 3\)"),
    ):
        with pytest.raises(UsageError, match=text):
            Mask({"0.weight": good, **bad}).apply(model)
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    mask = Mask({"0.weight": good, "2.weight": torch.ones(8, 6, 3, 3, dtype=torch.bool)})
    prune.identity(dict(model.named_modules())["2"], "weight")
    with pytest.raises(UsageError, match=r"'2.weight' .*prune.remove"):
        mask.apply(model)
    assert torch.equal(dict(model.named_parameters())["0.weight"], before["0.weight"])


def test_names_that_stay_whole_are_checked_and_one_name_is_one_name() -> None:
    model = conv_net(lambda m: None)
    assert set(Weights(model, pinned="0.weight").left_out) == {"0.weight"}
    assert set(Weights(model, pinned={"6"}).left_out) == {"6.weight"}
    with pytest.raises(UsageError, match=r"'0.wieght' was asked to stay whole.*did you mean '0.weight'"):
        Weights(model, pinned={"0.wieght"})
