"""Segmentation: pairs are read and checked, pixels counted, and torchvision's networks pruned and exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from halpiee.data.loaded import LoadedData
from halpiee.data.loading import Loading
from halpiee.data.opening import open_data
from halpiee.errors import DataError
from halpiee.tasks import named
from halpiee.zoo import build
from tools.synthetic_data import pairs, scene

from .pruned import pruned_and_exported

TASK = "segmentation"


def opened(path: Path, size: int | None = None, augment: str = "none") -> LoadedData:
    source = named(TASK).source(str(path), size)
    data = open_data(source, Loading(workers=0, augment=augment), kind="mask")
    assert isinstance(data, LoadedData)
    return data


def test_masks_stay_with_their_images_through_flips_and_crops(tmp_path: Path) -> None:
    """Every rectangle is red or green, the ground grey: the colour of a pixel tells its class."""
    data = opened(pairs(tmp_path), size=24, augment="flip,crop")
    assert data.classes == ("0", "1", "2")
    for x, masks in data.batches(0, 8):
        raw = (x * data.std + data.mean) * 255
        assert masks.shape == (8, 24, 24)
        red, green = (raw[:, c] - raw[:, 1 - c] for c in (0, 1))
        clear = (red.abs() < 15) | (red.abs() > 120)  # JPEG and scaling blur the edges
        said = (red > 60).long() + 2 * (green > 60).long()
        assert float((said == masks)[clear].float().mean()) > 0.98


def test_test_masks_are_brought_to_the_size_whole(tmp_path: Path) -> None:
    data = opened(pairs(tmp_path, side=32), size=16)
    masks = torch.cat([y for _, y in data.test_batches(3)])
    _, things = scene(8, 32)  # the third: 10.jpg and 11.jpg come before 8.jpg
    label, (x0, y0, x1, y1) = things[0]
    assert masks.shape == (4, 16, 16)
    assert int(masks[2, (y0 + y1) // 4, (x0 + x1) // 4]) == label + 1


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (
            np.zeros((32, 31), np.uint8),
            "is 32×31 and its image 32×32 (height × width); bring them to one size",
        ),
        (np.full((32, 32), 7, np.uint8), "has a pixel of the class 7; classes are 0 to 2"),
    ],
)
def test_masks_of_another_size_or_class_are_named(tmp_path: Path, mask: np.ndarray, said: str) -> None:
    folder = pairs(tmp_path)
    (folder / "classes.txt").write_text("ground\ndisc\nsquare\n")
    Image.fromarray(mask).save(folder / "train/masks/0.png")
    with pytest.raises(DataError) as refusal:
        named(TASK).source(str(folder), 32).check()
    assert said in str(refusal.value)


def test_an_image_without_a_mask_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    folder = pairs(tmp_path)
    (folder / "train/masks/3.png").unlink()
    with pytest.raises(DataError, match=r"train/images has the image 3\.jpg without a mask"):
        named(TASK).source(str(folder), 32).check()
    for file in (folder / "train/images").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="train/images has no images"):
        named(TASK).source(str(folder), 32).check()


def test_the_mean_of_intersection_over_union_is_that_of_torchmetrics() -> None:
    segmentation = pytest.importorskip("torchmetrics.segmentation")
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, generator=generator)
    masks = torch.randint(0, 4, (3, 5, 6), generator=generator)
    metric = named(TASK).metric(4)
    metric.add(logits[:2], masks[:2])
    metric.add(logits[2:], masks[2:])
    theirs = segmentation.MeanIoU(4, input_format="index", per_class=True)
    theirs.update(logits.argmax(1).flatten()[None, None], masks.flatten()[None, None])
    assert metric.figures()["miou"] == pytest.approx(float(theirs.compute().mean()))


def test_void_pixels_count_neither_in_the_loss_nor_in_the_figures() -> None:
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1] = 3.0  # says class 1 everywhere
    mask = torch.tensor([[[1, 1, 255, 0]]])
    metric = named(TASK).metric(2)
    metric.add(logits, mask)
    assert metric.figures() == {"miou": pytest.approx((2 / 3 + 0) / 2), "pixels": pytest.approx(2 / 3)}
    three = torch.nn.functional.cross_entropy(logits[..., [0, 1, 3]], mask[..., [0, 1, 3]])
    torch.testing.assert_close(named(TASK).loss(logits, mask), three)
    assert float(named(TASK).loss(logits, torch.full_like(mask, 255))) == 0


@pytest.mark.slow
def test_lraspp_is_trained_pruned_to_60_percent_and_exported_with_equal_answers(tmp_path: Path) -> None:
    data = opened(pairs(tmp_path / "data", train=16, side=64), size=64, augment="flip")
    task = named(TASK)
    torch.manual_seed(0)
    net = task.network(build("lraspp_mobilenet_v3_large", **task.arguments(data.n_classes)))
    found = pruned_and_exported(task, net, data, tmp_path / "net.onnx")
    assert found.losses[-1] < 0.7 * found.losses[0]
    assert found.share <= 0.6
    torch.testing.assert_close(found.exported, found.answers, rtol=1e-4, atol=1e-4)
    assert 0 < found.figures["miou"] <= 1
