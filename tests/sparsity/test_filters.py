"""Filters as units: which norm follows which convolution, what is zeroed, what is left of the channels."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn

import halpiee
from halpiee import zoo
from halpiee.errors import StructureError, UsageError
from halpiee.sparsity import Filters, Mask


class Residual(nn.Module):
    """Two convolutions into one sum, a third behind it; the norm behind the sum belongs to none of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn_a = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=True)
        self.bn_sum = nn.BatchNorm2d(4)
        self.c, self.bn_c = nn.Conv2d(4, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.fc = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.bn_a(self.a(x)).relu()
        y = self.bn_sum(self.b(a) + a).relu()
        found: torch.Tensor = self.fc(self.bn_c(self.c(y)).relu().mean((2, 3)))
        return found


@pytest.fixture
def net() -> Residual:
    torch.manual_seed(0)
    net = Residual()
    for name, p in net.named_parameters():
        if "bn" in name:
            nn.init.uniform_(p, 0.5, 1.5)
    return net


def keep(size: int, *gone: int) -> torch.Tensor:
    mask = torch.ones(size, dtype=torch.bool)
    mask[list(gone)] = False
    return mask


def test_a_norm_follows_the_convolution_whose_output_it_reads(net: Residual) -> None:
    units = Filters(net)
    assert units.sizes == {"a": (4,), "b": (4,), "c": (5,)}
    assert units.norms == {"a": "bn_a", "c": "bn_c"}


def test_a_preactivation_network_gives_each_norm_to_the_convolution_before_it() -> None:
    units = Filters(zoo.wrn22_2(width=0.25))
    # the first convolution of a block is normalised by the block's second norm; a sum's norm is nobody's
    assert units.norms["blocks.0.conv1"] == "blocks.0.bn2"
    assert "blocks.0.conv2" not in units.norms
    assert units.norms["conv1"] == "blocks.0.bn1"


def test_a_filter_takes_its_bias_and_its_norm_with_it(net: Residual) -> None:
    masks = Filters(net).masks({"a": keep(4, 1), "b": keep(4, 0), "c": keep(5)})
    assert set(masks) == {
        *("a.weight", "b.weight", "b.bias", "c.weight"),
        *(f"bn_{c}.{n}" for c in "ac" for n in ("weight", "bias", "running_mean", "running_var")),
    }
    assert masks["a.weight"].flatten(1).all(1).tolist() == [True, False, True, True]
    assert not masks["a.weight"][1].any()
    assert masks["bn_a.bias"].tolist() == [True, False, True, True]
    assert masks["b.bias"].tolist() == [False, True, True, True]


def test_without_the_norm_a_zeroed_filter_still_has_a_gradient(net: Residual) -> None:
    def gradient(norm_follows: bool) -> torch.Tensor:
        units = Filters(net, norm_follows=norm_follows)
        masks = units.masks({"a": keep(4), "b": keep(4), "c": keep(5, 2)})
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        with torch.no_grad():
            for name, p in net.named_parameters():
                if name in masks:
                    p.mul_(masks[name])
        x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(1))
        grad: torch.Tensor = torch.autograd.grad(net(x).square().sum(), net.c.weight)[0]
        net.load_state_dict(before, strict=False)
        return grad[2].abs().sum()

    assert gradient(norm_follows=True) == 0
    assert gradient(norm_follows=False) > 0
    assert Filters(net).zero_is_dead
    assert not Filters(net, norm_follows=False).zero_is_dead


def test_scores_are_summed_over_the_weights_of_a_filter(net: Residual) -> None:
    values = dict(net.named_parameters())
    found = Filters(net).reduce(values.get)
    for path, conv in (("a", net.a), ("b", net.b), ("c", net.c)):
        torch.testing.assert_close(found[path], conv.weight.detach().sum(dim=(1, 2, 3)))
    scales = Filters(net, pinned=frozenset({"a"})).scales(values.get)
    assert list(scales) == ["c"]
    assert torch.equal(scales["c"], net.bn_c.weight)


def test_a_channel_goes_when_all_filters_that_write_to_it_are_gone(net: Residual) -> None:
    structure = halpiee.trace(net, (torch.zeros(1, 3, 5, 5),))
    alive = Mask({"a": keep(4, 0, 1), "b": keep(4, 1, 2), "c": keep(5, 4)})
    kept = Filters(net).channels(structure, alive)
    assert sorted(mask.tolist() for mask in kept.values()) == sorted(
        [keep(4, 1).tolist(), keep(5, 4).tolist()]
    )


def test_the_network_shrunk_by_filters_computes_what_the_masked_one_does(net: Residual) -> None:
    x = torch.zeros(1, 3, 5, 5)
    structure = halpiee.trace(net, (x,))
    units = Filters(net, pinned=frozenset({"a", "b"}))
    alive = {"c": keep(5, 0, 3)}
    small = halpiee.shrink(net, structure, units.channels(structure, alive)).eval()
    assert cast(nn.Conv2d, small.c).out_channels == 3
    masks = units.masks(alive)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name in masks:
                p.mul_(masks[name])
    x = torch.randn(4, 3, 5, 5)
    torch.testing.assert_close(small(x), net.eval()(x))


def test_the_model_keeps_its_mode_and_statistics(net: Residual) -> None:
    net.train()
    net.bn_a.eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    Filters(net)
    assert [m.training for m in (net, net.bn_a, net.bn_c)] == [True, False, True]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_network_without_convolutions_is_refused() -> None:
    with pytest.raises(StructureError, match="found no convolution that may be pruned"):
        Filters(nn.Linear(3, 2))


def test_a_pinned_name_that_is_no_convolution_is_refused(net: Residual) -> None:
    with pytest.raises(UsageError, match="'fc' was asked to stay whole"):
        Filters(net, pinned=frozenset({"fc"}))
    assert Filters(net, pinned=frozenset({"a"})).left_out == {"a": "pinned by the caller"}


class Separable(nn.Module):
    """A pointwise, a depthwise and a pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.bn_one = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.depth, self.bn_depth = nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn_one(self.one(x)).relu()
        found: torch.Tensor = self.two(self.bn_depth(self.depth(x)).relu())
        return found


def test_a_depthwise_filter_goes_with_the_filters_that_write_its_channel() -> None:
    torch.manual_seed(0)
    net = Separable()
    for bn in (net.bn_one, net.bn_depth):
        nn.init.uniform_(bn.bias, 0.5, 1.0)
    units = Filters(net, pinned=frozenset({"two"}))
    assert units.sizes == {"one": (4,)}
    assert units.left_out["depth"] == "depthwise: goes with the filters that write its channels"
    alive = Mask({"one": keep(4, 1, 2)})
    masks = units.masks(alive)
    assert masks["depth.weight"].flatten(1).all(1).tolist() == [True, False, False, True]
    assert masks["bn_depth.bias"].tolist() == [True, False, False, True]
    structure = halpiee.trace(net, (torch.zeros(1, 3, 8, 8),))
    small = halpiee.shrink(net, structure, units.channels(structure, alive)).eval()
    assert cast(nn.Conv2d, small.depth).out_channels == 2
    alive.apply(net, units)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(small(x), net.eval()(x))


def test_to_be_grown_again_a_filter_leaves_the_depthwise_one_behind_it_alone() -> None:
    units = Filters(Separable(), norm_follows=False)
    assert units.tensors == {"one.weight", "two.weight", "two.bias"}


def test_a_depthwise_filter_behind_a_sum_stays_while_one_of_its_writers_does() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.depth, self.out = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.out(self.depth(self.a(x) + self.b(x)).relu())
            return found

    masks = Filters(Two()).masks({"a": keep(4, 0, 1), "b": keep(4, 1, 2), "out": keep(2)})
    assert masks["depth.bias"].tolist() == [True, False, True, True]
