"""Parameter and multiply-accumulate counts against the numbers published for each network."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.image_list import ImageList

from halpiee import zoo
from halpiee.tasks.detection import Detection


def counted_macs(model: nn.Module, size: int) -> int:
    """Counts by hooks on the modules: output elements × weights behind each."""
    total = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        positions = output.shape[2:].numel() if output.dim() == 4 else 1
        total += module.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.device("meta"):
        model.to("meta").eval()(torch.empty(1, 3, size, size))
    return total


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# resnet20, 56: the CIFAR network with projections, 0.27 M / 40.8 M and 0.86 M / 125.8 M in the literature;
# vgg16_bn: 14.72 M / 313 M; mobilenet_v1: Keras counts 4,231,976 trainable parameters, the paper 569 M MACs.
PUBLISHED = [
    (zoo.resnet20, 32, 272_474, 40_813_184),
    (zoo.resnet56, 32, 855_770, 125_747_840),
    (zoo.vgg16_bn, 32, 14_724_042, 313_201_664),
    (zoo.mobilenet_v1, 224, 4_231_976, 568_740_352),
]


@pytest.mark.parametrize(("builder", "size", "n_parameters", "macs"), PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(
    builder: Callable[[], nn.Module], size: int, n_parameters: int, macs: int
) -> None:
    model = builder()
    assert parameters(model) == n_parameters
    assert counted_macs(model, size) == macs


# A row: C_in, C_out, kernel, side of the output, groups, how often. Written from the papers' tables.
Row = tuple[int, int, int, int, int, int]


def rows_vgg(per_stage: tuple[int, ...]) -> list[Row]:
    """Simonyan & Zisserman's table 1, columns B, D and E, at 32×32 with one linear layer."""
    widths = (3, 64, 128, 256, 512, 512)
    rows: list[Row] = []
    for stage, depth in enumerate(per_stage):
        side = 32 >> stage
        rows += [(widths[stage], widths[stage + 1], 3, side, 1, 1)]
        rows += [(widths[stage + 1], widths[stage + 1], 3, side, 1, depth - 1)]
    return rows


RESNET18_64 = [
    *((3, 64, 3, 64, 1, 1), (64, 64, 3, 64, 1, 4)),
    *((64, 128, 3, 32, 1, 1), (128, 128, 3, 32, 1, 3), (64, 128, 1, 32, 1, 1)),
    *((128, 256, 3, 16, 1, 1), (256, 256, 3, 16, 1, 3), (128, 256, 1, 16, 1, 1)),
    *((256, 512, 3, 8, 1, 1), (512, 512, 3, 8, 1, 3), (256, 512, 1, 8, 1, 1)),
]

RESNET50_32 = [
    *((3, 64, 3, 32, 1, 1), (64, 64, 1, 32, 1, 1), (64, 64, 3, 32, 1, 3), (64, 256, 1, 32, 1, 4)),
    (256, 64, 1, 32, 1, 2),
    *((256, 128, 1, 32, 1, 1), (128, 128, 3, 16, 1, 4), (128, 512, 1, 16, 1, 4), (512, 128, 1, 16, 1, 3)),
    (256, 512, 1, 16, 1, 1),
    *((512, 256, 1, 16, 1, 1), (256, 256, 3, 8, 1, 6), (256, 1024, 1, 8, 1, 6), (1024, 256, 1, 8, 1, 5)),
    (512, 1024, 1, 8, 1, 1),
    *((1024, 512, 1, 8, 1, 1), (512, 512, 3, 4, 1, 3), (512, 2048, 1, 4, 1, 3), (2048, 512, 1, 4, 1, 2)),
    (1024, 2048, 1, 4, 1, 1),
]


def rows_wide(blocks: int, widen: int) -> list[Row]:
    """He et al. 2016, section 4.2, ``widen`` times as wide: 6·blocks + 2 layers and a projection a later stage."""
    a, b, c = 16 * widen, 32 * widen, 64 * widen
    rows: list[Row] = [(3, a, 3, 32, 1, 1), (a, a, 3, 32, 1, 2 * blocks)]
    for c_in, c_out, side in ((a, b, 16), (b, c, 8)):
        rows += [(c_in, c_out, 3, side, 1, 1), (c_in, c_out, 1, side, 1, 1)]
        rows += [(c_out, c_out, 3, side, 1, 2 * blocks - 1)]
    return rows


MOBILENET_32 = [
    (3, 32, 3, 32, 1, 1),
    *((32, 32, 3, 32, 32, 1), (32, 64, 1, 32, 1, 1), (64, 64, 3, 16, 64, 1), (64, 128, 1, 16, 1, 1)),
    *((128, 128, 3, 16, 128, 1), (128, 128, 1, 16, 1, 1), (128, 128, 3, 8, 128, 1), (128, 256, 1, 8, 1, 1)),
    *((256, 256, 3, 8, 256, 1), (256, 256, 1, 8, 1, 1), (256, 256, 3, 4, 256, 1), (256, 512, 1, 4, 1, 1)),
    *((512, 512, 3, 4, 512, 5), (512, 512, 1, 4, 1, 5), (512, 512, 3, 2, 512, 1), (512, 1024, 1, 2, 1, 1)),
    *((1024, 1024, 3, 2, 1024, 1), (1024, 1024, 1, 2, 1, 1)),
]


@pytest.mark.parametrize(
    ("builder", "side", "rows", "linear", "millions"),
    [
        # the totals that are usually quoted, in millions of parameters and MACs
        (zoo.vgg13_bn, 32, rows_vgg((2, 2, 2, 2, 2)), (512, 10), (9.41, 228.3)),
        (zoo.vgg19_bn, 32, rows_vgg((2, 2, 4, 4, 4)), (512, 10), (20.04, 398.1)),
        (zoo.vgg11_bn, 32, rows_vgg((1, 1, 2, 2, 2)), (512, 10), (9.23, 152.8)),
        (zoo.resnet8, 32, rows_wide(1, 1), (64, 10), (0.08, 12.5)),
        (zoo.wrn14_8, 32, rows_wide(2, 8), (512, 10), (11.09, 1681.3)),
        (zoo.wrn14_10, 32, rows_wide(2, 10), (640, 10), (17.33, 2625.9)),
        (zoo.wrn20_8, 32, rows_wide(3, 8), (512, 10), (17.29, 2587.2)),
        (zoo.wrn32_2, 32, rows_wide(5, 2), (128, 10), (1.86, 275.6)),
        (zoo.resnet18_modified, 64, RESNET18_64, (512, 200), (11.27, 2221.8)),
        (zoo.resnet50_cifar, 32, RESNET50_32, (2048, 10), (23.52, 1297.8)),
        (zoo.mobilenet_v1_cifar, 32, MOBILENET_32, (1024, 10), (3.22, 46.4)),
    ],
)
def test_parameters_and_macs_follow_from_the_papers_tables(
    builder: Callable[[], nn.Module],
    side: int,
    rows: list[Row],
    linear: tuple[int, int],
    millions: tuple[float, float],
) -> None:
    weights = sum(n * c_in * c_out * k * k // groups for c_in, c_out, k, _, groups, n in rows)
    norms = sum(n * 2 * c_out for _, c_out, _, _, _, n in rows)
    macs = sum(n * c_in * c_out * k * k // groups * at * at for c_in, c_out, k, at, groups, n in rows)
    c_in, classes = linear
    model = builder()
    assert parameters(model) == weights + norms + c_in * classes + classes
    assert counted_macs(model, side) == macs + c_in * classes
    assert round(parameters(model) / 1e6, 2) == millions[0]
    assert round((macs + c_in * classes) / 1e6, 1) == millions[1]


def test_vgg2_16_has_two_further_linear_layers_of_512() -> None:
    assert parameters(zoo.vgg2_16_bn()) == parameters(zoo.vgg16_bn()) + 2 * (512 * 512 + 512)


def test_resnet18_and_resnet50_are_torchvisions() -> None:
    # torchvision states 11,689,512 parameters and 1.814 G, 25,557,032 and 4.089 G multiply-accumulates
    for name, n_parameters, gigamacs in (("resnet18", 11_689_512, 1.814), ("resnet50", 25_557_032, 4.089)):
        model = zoo.build(name)
        assert parameters(model) == n_parameters
        assert round(counted_macs(model, 224) / 1e9, 3) == gigamacs


def test_wrn22_2_has_the_weights_and_macs_of_the_sparse_training_papers() -> None:
    model = zoo.wrn22_2()
    assert sum(p.numel() for p in model.parameters() if p.dim() > 1) == 1_076_912
    assert counted_macs(model, 32) == 157_730_048


def test_resnet50_cifar_is_resnet50_with_another_stem_and_head() -> None:
    # torchvision's ResNet-50 has 25,557,032 parameters; the stem is 7×7×3×64, the head 2048·1000 + 1000.
    expected = 25_557_032 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64 - (2048 * 1000 + 1000) + (2048 * 10 + 10)
    assert parameters(zoo.resnet50_cifar()) == expected


def test_resnet18_modified_is_resnet18_with_another_stem_and_head() -> None:
    # torchvision's ResNet-18 has 11,689,512 parameters.
    expected = 11_689_512 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64 - (512 * 1000 + 1000) + (512 * 200 + 200)
    assert parameters(zoo.resnet18_modified()) == expected


# ResNet-50 from the stem's pool on without its last stage, the third at stride 1; six smaller maps; at 512×512.
SSD512 = [
    *((3, 64, 7, 256, 1, 1), (64, 64, 1, 128, 1, 1), (64, 64, 3, 128, 1, 3), (64, 256, 1, 128, 1, 4)),
    (256, 64, 1, 128, 1, 2),
    *((256, 128, 1, 128, 1, 1), (128, 128, 3, 64, 1, 4), (128, 512, 1, 64, 1, 4), (512, 128, 1, 64, 1, 3)),
    (256, 512, 1, 64, 1, 1),
    *((512, 256, 1, 64, 1, 1), (256, 256, 3, 64, 1, 6), (256, 1024, 1, 64, 1, 6), (1024, 256, 1, 64, 1, 5)),
    (512, 1024, 1, 64, 1, 1),
    *((1024, 256, 1, 64, 1, 1), (256, 512, 3, 32, 1, 1), (512, 256, 1, 32, 1, 1), (256, 512, 3, 16, 1, 1)),
    *((512, 128, 1, 16, 1, 1), (128, 256, 3, 8, 1, 1), (256, 128, 1, 8, 1, 1), (128, 256, 3, 4, 1, 1)),
    *((256, 128, 1, 4, 1, 1), (128, 256, 3, 2, 1, 1), (256, 128, 1, 2, 1, 1), (128, 256, 3, 1, 1, 1)),
]
# Channels, side and boxes a position of each map; a box has four offsets and 21 scores.
MAPS = [(1024, 64, 4), (512, 32, 6), (512, 16, 6), (256, 8, 6), (256, 4, 6), (256, 2, 4), (256, 1, 4)]


def test_ssd512_has_the_parameters_and_macs_of_its_table() -> None:
    weights = sum(n * c_in * c_out * k * k for c_in, c_out, k, _, _, n in SSD512)
    norms = sum(n * 2 * c_out for _, c_out, _, _, _, n in SSD512)
    macs = sum(n * c_in * c_out * k * k * at * at for c_in, c_out, k, at, _, n in SSD512)
    head = sum((9 * c + 1) * boxes * 25 for c, _, boxes in MAPS)
    model = Detection().network(zoo.ssd512_resnet50())
    assert parameters(model) == weights + norms + head == 16_102_340
    assert (
        counted_macs(model, 512)
        == macs + sum(9 * c * at * at * b * 25 for c, at, b in MAPS)
        == 45_916_877_824
    )


def test_the_backbone_of_ssd512_is_torchvisions_resnet50_without_its_last_stage() -> None:
    theirs: Any = torchvision.models.resnet50(weights=None)
    ours: Any = zoo.ssd512_resnet50()
    for layer in (theirs.layer3[0].conv2, theirs.layer3[0].downsample[0]):
        layer.stride = (1, 1)
    begun = [
        theirs.conv1,
        theirs.bn1,
        theirs.relu,
        theirs.maxpool,
        theirs.layer1,
        theirs.layer2,
        theirs.layer3,
    ]
    reference = nn.Sequential(*begun).eval()
    values = [v for v in ours.backbone.layers.state_dict().values() if v.dim() != 0]
    names = [n for n, v in reference.state_dict().items() if v.dim() != 0]
    reference.load_state_dict(dict(zip(names, values, strict=True)), strict=False)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours.backbone.layers.eval()(x), reference(x))


def test_ssd512_has_the_boxes_of_its_paper() -> None:
    """Liu et al. 2016: 24,564 boxes; the smallest of 0.07 of the side, on the first map, eight pixels apart."""
    net: Any = zoo.ssd512_resnet50(width=0.1)
    images = ImageList(torch.zeros(1, 3, 512, 512), [(512, 512)])
    (boxes,) = net.anchor_generator(images, list(net.backbone.eval()(images.tensors).values()))
    assert len(boxes) == 24_564 == sum(side * side * each for _, side, each in MAPS)
    half = 0.07 * 512 / 2
    torch.testing.assert_close(boxes[0], torch.tensor([4 - half, 4 - half, 4 + half, 4 + half]))
    torch.testing.assert_close(boxes[4][:2] - boxes[0][:2], torch.tensor([8.0, 0.0]))


@pytest.mark.parametrize("name", [name for name in zoo.names() if name != "ssd512_resnet50"])
def test_every_classifier_maps_images_to_logits(name: str) -> None:
    kwargs = {"width": 0.25, "num_classes": 6}
    assert zoo.build(name, **kwargs).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 6)


def test_width_scales_every_channel() -> None:
    model = zoo.resnet20(width=2)
    widths = {m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {32, 64, 128}


def test_initialisation_is_kaiming_normal_over_the_fan_in() -> None:
    torch.manual_seed(0)
    model = zoo.vgg16_bn()
    conv = [m for m in model.modules() if isinstance(m, nn.Conv2d)][-1]
    fan_in = 512 * 9
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_in), rel=0.01)
    assert abs(conv.weight.mean().item()) < 1e-4
