"""Forwards that decide by values: how many objects there are, and where, is not what follows the channels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import nms

from halpiee.structure import trace
from halpiee.structure.recorder import Decisions

from .corners import IMAGE, Net, is_cut_exactly, stays_and_says_why


def picked(m: Any, x: Tensor) -> Any:
    """Places where a sum over the features is above 0, each through the head: cut features choose other places."""
    y = m.a(x)
    rows = y.permute(0, 2, 3, 1)[m.s(y)[:, 0] > 0]
    return m.h(rows).sum(0)


def ranked(m: Any, x: Tensor) -> Any:
    """Boxes made of the features, those that overlap left out: how many are left hangs on every feature."""
    y = m.a(x)
    scores = m.s(y).flatten()
    boxes = torch.stack([scores, scores, scores + 1, scores + 2], dim=1)
    best = scores.topk(min(9, int((scores > scores.mean()).sum()))).indices
    left = best[nms(boxes[best], scores[best], 0.3)]
    return m.h(y.permute(0, 2, 3, 1).reshape(-1, y.shape[1])[left]).sum(0)


def counted(m: Any, x: Tensor) -> Any:
    """As many rows of the features as a value says."""
    y = m.a(x)
    rows = 1 + int(m.s(y).abs().mean() * 100) % 7
    return m.h(y[:, :, :rows].mean((2, 3)))


@pytest.mark.parametrize("forward", [picked, ranked, counted])
def test_how_many_objects_a_smaller_network_would_find_does_not_matter(forward: Any) -> None:
    is_cut_exactly(
        lambda: Net(forward, a=nn.Conv2d(3, 8, 1), s=nn.Conv2d(8, 1, 1), h=nn.Linear(8, 5)), IMAGE, {"a"}
    )


def written(m: Any, x: Tensor) -> Any:
    """Places below 0 are filled with what another layer says of all of them."""
    y = m.a(x).permute(0, 2, 3, 1).contiguous()
    y[m.s(x)[:, 0] > 0] = m.b(x).mean((0, 2, 3))
    return m.h(y.mean((1, 2)))


def test_a_mask_over_places_writes_whole_rows_of_channels() -> None:
    is_cut_exactly(
        lambda: Net(
            written, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), s=nn.Conv2d(3, 1, 1), h=nn.Linear(8, 5)
        ),
        IMAGE,
        {"a"},
    )


def test_channels_stay_where_a_mask_over_several_dimensions_picks_among_them() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = torch.sigmoid(m.a(x))
        return m.b(x) * y[y.mean((2, 3)) > 0.5].mean()

    stays_and_says_why(lambda: Net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 5, 1)), IMAGE, "index")


def test_decisions_are_taken_again_where_they_read_the_same_sizes() -> None:
    first, values = Decisions(), torch.tensor([3.0, 1.0, 2.0])
    first.outcome("gt", [values], values > 1.5)
    first.outcome("topk", [values], torch.topk(values, 2))
    first.outcome("_local_scalar_dense", [values[0]], 3.0)
    again = Decisions(first)
    other = torch.tensor([0.0, 5.0, 0.0])
    assert again.outcome("gt", [other], other > 1.5).tolist() == [True, False, True]
    found, places = again.outcome("topk", [other], tuple(torch.topk(other, 2)))
    assert places.tolist() == [0, 2]
    assert found.tolist() == [5.0, 0.0]  # values are its own
    assert again.outcome("_local_scalar_dense", [other[0]], 0.0) == 3.0


def test_decisions_are_its_own_on_other_sizes_and_on_another_path() -> None:
    first, values = Decisions(), torch.tensor([3.0, 1.0, 2.0])
    for _ in range(3):
        first.outcome("gt", [values], values > 1.5)
    again = Decisions(first)
    assert again.outcome("gt", [values[:2]], values[:2] < 0).tolist() == [False, False]
    assert again.outcome("lt", [values], values < 2.5).tolist() == [False, True, True]
    assert again.outcome("gt", [values], values > 5).tolist() == [False, False, False]


def test_what_whole_numbers_say_is_no_decision() -> None:
    """A size that follows the channels is read again."""
    first, again = Decisions(), torch.tensor([8, 4])
    first.outcome("eq", [again], again == 8)
    assert first.taken == []


@pytest.mark.slow  # five traces on real tensors, 3 s each
@pytest.mark.parametrize(
    ("name", "n_prunable", "seeds"),
    [("retinanet_resnet50_fpn", 47, 2), ("fasterrcnn_mobilenet_v3_large_320_fpn", 34, 3)],
)
def test_weights_do_not_change_what_can_be_cut_of_a_detector(name: str, n_prunable: int, seeds: int) -> None:
    for seed in range(seeds):
        torch.manual_seed(seed)
        model = torchvision.models.get_model(
            name, weights=None, weights_backbone=None, min_size=64, max_size=96
        )
        for parameter in model.eval().parameters():
            if bool(
                (parameter == parameter.flatten()[0]).all()
            ):  # its prior: with it hardly an object is found
                nn.init.uniform_(parameter, 0.5, 1.5)
        assert len(trace(model, ([torch.rand(3, 64, 64)],)).prunable) == n_prunable
