"""What an explanation says of each layer and group."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from halpiee.structure import explain, trace, verify

from . import nets


def test_layers_say_what_can_go_and_what_holds_the_rest() -> None:
    found = explain(trace(nets.Residual(), (torch.zeros(nets.IMAGE),)))
    layers = {layer.name: layer for layer in found.layers}
    assert layers["stem"].prunable
    assert layers["stem"].reasons == ("a network input",)
    assert (layers["conv2"].c_in, layers["conv2"].c_out, layers["conv2"].macs) == (6, 8, 432 * 64)
    assert layers["head"].reasons == ("feeds the network's output",)
    assert found.prunable_macs_share == 1.0


def test_groups_list_what_is_cut_together() -> None:
    groups = {g.name: g for g in explain(trace(nets.Residual(), (torch.zeros(nets.IMAGE),))).groups}
    assert set(groups["stem"].members) == {"stem.out", "conv1.in", "conv2.out", "head.in"}
    assert groups["stem"].unlock is None
    assert groups["head"].unlock == "nothing: the outputs are needed as they are"


def test_a_frozen_group_names_its_source_line_and_what_would_unlock_it() -> None:
    found = explain(trace(nets.Mixer("softmax"), (torch.zeros(nets.IMAGE),)))
    group = next(g for g in found.groups if g.name == "a")
    assert group.reason == "_softmax over channels"
    assert group.unlock == "normalise with a norm layer, or work on each channel alone"
    assert group.source is not None
    file, _, line = group.source.rpartition(":")
    assert file.endswith("nets/moved.py")
    with open(file, encoding="utf-8") as source:
        assert "softmax(1)" in source.read().splitlines()[int(line) - 1]


def test_the_share_of_macs_leaves_frozen_layers_out() -> None:
    found = explain(trace(nets.Mixer("softmax"), (torch.zeros(nets.IMAGE),)))
    # a: 3·8 weights, frozen on both sides; b: 8·6 and c: 6·5 share a prunable group
    assert found.prunable_macs_share == pytest.approx((48 + 30) / (24 + 48 + 30))


def test_a_group_that_only_plans_may_cut_says_why_training_may_not() -> None:
    found = explain(trace(nets.LayerNormed(), (torch.zeros(2, 4, 3),)))
    group = next(g for g in found.groups if g.name == "a")
    assert group.prunable
    assert not group.trainable
    assert group.reason == "a norm over these channels: its statistics would still see the removed ones"
    assert found.untimed == {}


class Sampled(nn.Module):
    """A convolution, two looks at other places of its output, a running sum, a linear layer."""

    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 6, 1), nn.Linear(6, 4)
        self.register_buffer("places", torch.linspace(-1, 1, 32).reshape(1, 4, 4, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        for _ in range(2):
            y = F.grid_sample(y, self.places.expand(len(y), -1, -1, -1), align_corners=False)
        out: Tensor = self.head(torch.logcumsumexp(y, 2).mean((2, 3)))
        return out


def test_ops_without_an_entry_in_profiles_are_counted() -> None:
    assert explain(trace(nets.Attention(fused=False), (torch.zeros(2, 5, 6),))).untimed == {}
    found = explain(trace(Sampled(), (torch.zeros(2, 3, 4, 4),)))
    assert found.untimed == {"grid_sampler_2d": 2, "logcumsumexp": 1}


def test_a_head_that_only_trains_is_named() -> None:
    class Auxiliary(nets.Residual):
        def __init__(self) -> None:
            super().__init__()
            self.aux = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 5, 1))

        def forward(self, x: Tensor) -> Any:
            y = super().forward(x)
            return (y, self.aux(x)) if self.training else y

    assert explain(trace(Auxiliary(), (torch.zeros(nets.IMAGE),))).unread == ("aux",)
    assert explain(trace(nets.Residual(), (torch.zeros(nets.IMAGE),))).unread == ()


def test_a_layer_says_on_which_side_channels_can_go() -> None:
    found = explain(trace(nets.InputResidual(), (torch.zeros(nets.IMAGE),)))
    sides = {layer.name: (layer.in_prunable, layer.out_prunable) for layer in found.layers}
    assert sides == {"a": (False, True), "b": (True, False), "c": (False, False)}


def test_a_group_weighs_what_its_layers_do() -> None:
    found = explain(trace(nets.Residual(), (torch.zeros(nets.IMAGE),)))
    shares = {g.name: g.macs_share for g in found.groups}
    total = (216 + 432 + 432) * 64 + 40  # stem, conv1, conv2, head
    assert shares["conv1"] == pytest.approx(864 * 64 / total)
    assert shares["head"] == pytest.approx(40 / total)


def test_an_explanation_is_plain_json() -> None:
    found = explain(trace(nets.Outputs(), (torch.zeros(nets.IMAGE),)))
    assert json.loads(json.dumps(found.as_dict()))["layers"][0]["name"] == "a"


class Attention(nn.Module):
    """Attention of 3 heads of width 4, the number of heads written out, or held, or the scale given."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.qkv = nn.Linear(12, 36)
        self.proj = nn.Linear(12, 12)
        if form == "held":
            self.num_heads = 3

    def forward(self, x: Tensor) -> Any:
        heads = self.num_heads if self.form == "held" else 3
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        scale = 0.5 if self.form == "scaled" else None
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)
        return self.proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("form", "size"), [("written", None), ("held", 3), ("scaled", 4)])
def test_the_advice_for_attention_unlocks_it(form: str, size: int | None) -> None:
    x = (torch.ones(2, 7, 12),)
    model = Attention(form).eval()
    structure = trace(model, x)
    group = next(g for g in explain(structure).groups if g.name == "qkv")
    if size is None:
        assert group.unlock is not None
        assert not group.prunable
        assert "self.num_heads, -1" in group.unlock
        assert "scale=" in group.unlock
    else:
        assert group.prunable
        assert group.size == size
        verify(model, structure, {"qkv": torch.tensor([True] * (size - 1) + [False])}, x, tolerance=1e-5)


def test_a_network_of_which_nothing_can_go_says_so_and_why() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Conv2d(3, 8, 3)
            self.h = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            return self.h((x * x.mean(1, keepdim=True)).mean((2, 3)))

    structure = trace(Joined().eval(), (torch.zeros(1, 3, 8, 8),))
    assert structure.nothing_prunable == "none of the 2 layers can lose channels: mean over channels (1)"
    alone = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 5)), (torch.zeros(1, 4),))
    assert alone.nothing_prunable == "none of the 1 layers can lose channels: it has one layer alone"
    assert trace(nets.Residual(), (torch.zeros(nets.IMAGE),)).nothing_prunable is None
