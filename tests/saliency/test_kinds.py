"""Which parameters a coupled channel is scored on, by the kind of each: against the formulas of docs/methods.md."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.ops import FrozenBatchNorm2d

import halpiee
from halpiee.errors import ScoreWarning, UsageError
from halpiee.sparsity import Filters


def grad(parameter: Tensor | nn.Module) -> Tensor:
    """Returns the gradient of a parameter."""
    assert isinstance(parameter, Tensor)
    assert parameter.grad is not None
    return parameter.grad


class Scale(nn.Module):
    """One number per channel, times or plus: LayerScale, a plain scale, learned positions."""

    def __init__(self, *shape: int, plus: bool = False, value: float = 0.5) -> None:
        super().__init__()
        self.p, self.plus = nn.Parameter(torch.full(shape, value)), plus

    def forward(self, x: Tensor) -> Tensor:
        return x + self.p if self.plus else x * self.p


class Net(nn.Module):
    """A convolution, what follows it, a head."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.a, self.after, self.head = nn.Conv2d(3, 6, 3), after, nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.after(self.a(x))).mean((2, 3)))
        return found


def data(n: int = 1) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(5)
    return [
        (torch.randn(16, 3, 8, 8, generator=g), torch.randint(0, 4, (16,), generator=g)) for _ in range(n)
    ]


def net_of(after: nn.Module) -> Net:
    torch.manual_seed(0)
    return Net(after)


def taylor_on(model: nn.Module, names: tuple[str, ...]) -> Tensor:
    """|Σ w·g| per row over the named parameters, from one backward of a copy."""
    model = copy.deepcopy(model).requires_grad_(True)
    (x, y) = data()[0]
    torch.autograd.backward(cross_entropy(model(x), y))
    rows = [
        (p.detach() * grad(p)).flatten(1 if p.dim() > 1 else 0)
        for n, p in model.named_parameters()
        if n in names
    ]
    return torch.stack([r.sum(1) if r.dim() > 1 else r for r in rows]).sum(0).abs()


def found(model: nn.Module, criterion: str = "taylor") -> Tensor:
    structure = halpiee.trace(model, (data()[0][0][:1],))
    return halpiee.score(model, data(), criterion, units=structure)["a"]


PRODUCERS = ("a.weight", "a.bias")

BESIDE: dict[str, Callable[[], nn.Module]] = {
    "PReLU": lambda: nn.PReLU(6),
    "LayerScale": lambda: Scale(6, 1, 1),
    "positions": lambda: Scale(1, 6, 6, 6, plus=True, value=0.0),
    "bias": lambda: Scale(1, 6, 1, 1, plus=True, value=0.1),
    "frozen batch norm of buffers": lambda: FrozenBatchNorm2d(6),
    "batch norm without affine": lambda: nn.BatchNorm2d(6, affine=False).eval(),
}


@pytest.mark.parametrize("kind", BESIDE)
def test_what_is_no_norms_affine_leaves_the_score_to_the_weights_that_produce(kind: str) -> None:
    model = net_of(BESIDE[kind]()).eval()
    torch.testing.assert_close(found(model), taylor_on(model, PRODUCERS))
    assert model.a.bias is not None
    size = model.a.weight.detach().abs().sum((1, 2, 3)) + model.a.bias.detach().abs()
    torch.testing.assert_close(found(model, "magnitude"), size)


def test_an_rms_norm_by_function_is_scored_as_the_module_is() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(6))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.rms_norm(x, x.shape[-1:], self.gain)

    class Last(nn.Module):
        """Puts channels last for a norm, and back."""

        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm = norm

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            return found

    own, module = Own(), nn.RMSNorm(6)
    for gain in (own.gain, module.weight):
        nn.init.uniform_(gain, 0.5, 1.5, generator=torch.Generator().manual_seed(2))
    one, other = net_of(Last(own)), net_of(Last(module))
    torch.testing.assert_close(found(one), taylor_on(one, ("after.norm.gain",)))
    torch.testing.assert_close(found(one), found(other))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6), nn.GroupNorm(3, 6), nn.InstanceNorm2d(6, affine=True)])
def test_the_affine_pair_of_a_norm_carries_the_score_and_a_slope_beside_it_does_not(norm: nn.Module) -> None:
    torch.manual_seed(1)
    affine = dict(norm.named_parameters())
    nn.init.uniform_(affine["weight"], 0.5, 1.5)
    nn.init.normal_(affine["bias"])
    model = net_of(nn.Sequential(norm, nn.PReLU(6)))
    (x, y) = data()[0]
    copied = copy.deepcopy(model)
    torch.autograd.backward(cross_entropy(copied(x), y))
    assert isinstance(copied.after, nn.Sequential)
    pair = cast(nn.BatchNorm2d, copied.after[0])
    signed = (pair.weight * grad(pair.weight) + pair.bias * grad(pair.bias)).detach()
    if isinstance(norm, nn.GroupNorm):
        signed = signed.reshape(3, 2).sum(1)  # its unit is one norm group of two channels
    torch.testing.assert_close(found(model), signed.abs())


@pytest.mark.parametrize("frozen", ["a", "after", "all"])
def test_frozen_parameters_are_scored_as_if_they_were_not_and_stay_frozen(frozen: str) -> None:
    torch.manual_seed(2)
    norm = nn.BatchNorm2d(6).eval()
    affine = dict(norm.named_parameters())
    nn.init.uniform_(affine["weight"], 0.5, 1.5)
    nn.init.normal_(affine["bias"])
    model = net_of(norm)
    expected = taylor_on(model, ("after.weight", "after.bias"))
    (model if frozen == "all" else getattr(model, frozen)).requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    torch.testing.assert_close(found(model), expected)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_a_frozen_backbone_is_not_cut_first() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    structure = halpiee.trace(model, (data()[0][0][:1],))
    expected = halpiee.prune_once(model, "taylor", 0.8, data(2), units=structure).counts
    for module in model[:3]:
        module.requires_grad_(False)
    assert halpiee.prune_once(model, "taylor", 0.8, data(2), units=structure).counts == expected
    assert expected["0"] > 1


class Cut(nn.Module):
    """A backbone that runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.a(x))
        found: Tensor = self.head(torch.relu(self.b(x)).mean((2, 3)))
        return found


def test_groups_that_no_gradient_reaches_are_named() -> None:
    torch.manual_seed(0)
    model = Cut()
    structure = halpiee.trace(model, (data()[0][0][:1],))
    with pytest.warns(
        ScoreWarning, match=r"Taylor does not tell the units of 'a' apart: no gradient reaches them"
    ):
        scores = halpiee.score(model, data(), "taylor", units=structure)
    assert scores.flat == {"a": "no gradient reaches them"}
    assert not scores["a"].any()
    with pytest.warns(ScoreWarning, match="of 'a' apart"):
        mask = halpiee.prune_once(model, "taylor", 0.5, data(), units=structure)
    assert set(mask.flat) == {"a"}


def test_a_loss_without_any_gradient_is_refused_with_the_reason() -> None:
    model = net_of(nn.Identity())
    with pytest.raises(UsageError, match=r"depends on no parameter: the forward or the loss .*torch.no_grad"):
        halpiee.score(model, data(), "taylor", units="weights", loss_fn=lambda out, y: out.detach().sum())


def test_scores_that_are_all_the_same_are_named() -> None:
    model = net_of(nn.BatchNorm2d(6))  # γ = 1 and β = 0
    structure = halpiee.trace(model, (data()[0][0][:1],))
    with pytest.warns(
        ScoreWarning, match="Magnitude does not tell the units of 'a' apart: all their scores are 1"
    ):
        scores = halpiee.score(model, [], "magnitude", units=structure)
    assert scores["a"].tolist() == [1.0] * 6
    whole = halpiee.prune_once(model, "magnitude", 1.0, units=structure)  # nothing is decided by it
    assert whole.density == 1.0
    assert not whole.flat


def test_groups_of_one_kind_are_told_in_one_sentence() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    nn.init.constant_(dict(net.named_parameters())["1.weight"], 2.0)
    structure = halpiee.trace(net, (data()[0][0][:1],))
    with pytest.warns(
        ScoreWarning, match="'0', '3' apart: all scores within each of them are the same"
    ) as told:
        halpiee.score(net, [], "magnitude", units=structure)
    assert len(told) == 1


def test_what_a_batch_norm_in_training_mode_cancels_is_zero_and_not_ranked_by_rounding() -> None:
    model = net_of(nn.BatchNorm2d(6, affine=False)).train()
    structure = halpiee.trace(model, (data()[0][0][:1],))
    with pytest.warns(ScoreWarning, match="'a' apart: all their scores are 0"):
        scores = halpiee.score(model, data(), "taylor", units=structure)
    assert not scores["a"].any()


def test_a_filters_taylor_score_is_that_of_the_norm_behind_it() -> None:
    model = net_of(nn.BatchNorm2d(6)).train()
    x, _ = data()[0]
    follows, stays = Filters(model, x), Filters(model, x, norm_follows=False)
    pair = halpiee.score(model, data(), "taylor", units=follows)["a"]
    torch.testing.assert_close(pair, taylor_on(model, ("after.weight", "after.bias")))
    scale = halpiee.score(model, data(), "taylor", units=stays)["a"]
    torch.testing.assert_close(scale, taylor_on(model, ("after.weight",)))


def test_one_pair_of_tensors_is_one_batch_and_other_things_are_refused() -> None:
    model = net_of(nn.Identity())
    (pair,) = data()
    many = halpiee.score(model, [pair], "taylor", units="weights")
    torch.testing.assert_close(halpiee.score(model, pair, "taylor", units="weights"), many)
    with pytest.raises(UsageError, match=r"batches of type Tensor .* give \[\(inputs, targets\)"):
        halpiee.score(model, pair[0], "taylor", units="weights")
