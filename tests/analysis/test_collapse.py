"""Neuron collapse by hand, and the published figures of ResNet-20 at initialisation."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import halpiee
from halpiee import zoo
from halpiee.analysis import collapsed_channels, neuron_collapse
from halpiee.errors import UsageError
from halpiee.sparsity import Mask

SPARSITY = 0.738
# Published (one point wide, arXiv 2009.08576, Sec. 5) and recomputed over three seeds, widened by one point.
SYNFLOW, SHUFFLED, SNIP, GRASP = (29.7, 32.9), (0.0, 1.77), (3.5, 6.2), (0.0, 2.7)


def test_a_channel_has_collapsed_when_none_of_its_incoming_weights_is_left() -> None:
    conv = torch.zeros(3, 2, 1, 2, dtype=torch.bool)
    conv[1, 1, 0, 0] = True
    masks = Mask(
        {"conv": conv, "other": torch.ones(2, 3, 1, 1, dtype=torch.bool), "fc": torch.zeros(4, 3) > 0}
    )
    assert {name: gone.tolist() for name, gone in collapsed_channels(masks).items()} == {
        "conv": [True, False, True],
        "other": [False, False],
    }
    assert neuron_collapse(masks) == 40.0


def test_masks_without_a_convolution_are_refused() -> None:
    with pytest.raises(UsageError, match="of 1 masks was asked, none of them of a convolution"):
        neuron_collapse({"fc": torch.ones(2, 2, dtype=torch.bool)})


def resnet20(seed: int) -> nn.Module:
    """ResNet-20 as the paper initialises it: Kaiming normal over fan in, γ ~ U(0, 1), β = 0."""
    torch.manual_seed(seed)
    model = zoo.resnet20()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight)
    return model


def test_magnitude_collapses_no_neuron() -> None:
    mask = halpiee.prune_once(resnet20(0), "magnitude", 1 - SPARSITY)
    assert mask.density == pytest.approx(1 - SPARSITY, abs=1e-5)
    assert neuron_collapse(mask) == 0.0


@pytest.mark.slow
def test_synflow_collapses_a_third_of_the_neurons_and_shuffling_its_layers_almost_none() -> None:
    mask = halpiee.prune_once(resnet20(0), "synflow", 1 - SPARSITY, rounds=100)
    assert SYNFLOW[0] <= neuron_collapse(mask) <= SYNFLOW[1]
    assert SHUFFLED[0] <= neuron_collapse(mask.shuffled(0)) <= SHUFFLED[1]


@pytest.fixture(scope="module")
def ten_a_class() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ten CIFAR-10 images of each class, normalised."""
    default = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
    folder = Path(os.environ.get("HALPIEE_CIFAR10", default))
    if not (folder / "train.parquet").is_file():
        pytest.skip(f"{folder} has no train.parquet; set HALPIEE_CIFAR10 to a folder of CIFAR-10 in Parquet")
    parquet = pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    rows = parquet.read_table(folder / "train.parquet")
    labels = numpy.asarray(rows["label"])
    first = [i for c in range(10) for i in (labels == c).nonzero()[0][:10]]
    pixels = [image.open(io.BytesIO(rows["img"][int(i)].as_py()["bytes"])).convert("RGB") for i in first]
    x = torch.stack([torch.from_numpy(numpy.array(p)).permute(2, 0, 1) for p in pixels]) / 255
    mean, std = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])
    return [((x - mean.view(3, 1, 1)) / std.view(3, 1, 1), torch.from_numpy(labels[first]))]


@pytest.mark.slow
@pytest.mark.parametrize(("criterion", "within"), [("snip", SNIP), ("grasp", GRASP)])
def test_scores_on_data_collapse_few_neurons(
    criterion: str, within: tuple[float, float], ten_a_class: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    mask = halpiee.prune_once(resnet20(0), criterion, 1 - SPARSITY, ten_a_class)
    assert within[0] <= neuron_collapse(mask) <= within[1]


def test_a_channel_may_be_counted_by_any_share_of_its_weights() -> None:
    conv = torch.ones(4, 2, 1, 2, dtype=torch.bool)
    for channel, lost in enumerate((0, 1, 3, 4)):  # of four weights each
        conv[channel].view(-1)[:lost] = False
    masks = {"conv": conv}
    shares = {1.0: 25, 0.75: 50, 0.5: 50, 0.25: 75, 0.2: 75}
    assert {t: neuron_collapse(masks, threshold=t) for t in shares} == shares
    with pytest.raises(UsageError, match=r"channels that lost 0 of their weights"):
        neuron_collapse(masks, threshold=0)
