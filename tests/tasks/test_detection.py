"""Detection: VOC's and COCO's layouts say the same boxes, losses are torchvision's, pruned networks export alike."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halpiee.data.loaded import LoadedData
from halpiee.data.loading import Loading
from halpiee.data.opening import open_data
from halpiee.data.tensors import TensorData
from halpiee.errors import DataError, UsageError
from halpiee.tasks import named
from halpiee.tasks.detection import Detection
from halpiee.zoo import build
from tools.synthetic_data import NAMES, coco, scene, voc

from .pruned import pruned_and_exported

SSDLITE = "ssdlite320_mobilenet_v3_large"


def opened(path: Path, size: int | None = 64, augment: str = "none") -> LoadedData:
    data = open_data(
        named("detection").source(str(path), size), Loading(workers=0, augment=augment), kind="boxes"
    )
    assert isinstance(data, LoadedData)
    return data


@pytest.mark.parametrize("layout", [voc, coco])
def test_boxes_and_classes_are_those_that_were_written(tmp_path: Path, layout: Any) -> None:
    data = opened(layout(tmp_path, side=64))
    assert data.classes == NAMES
    targets = [target for _, batch in data.test_batches(3) for target in batch]
    for i, target in enumerate(targets, 8):
        _, things = scene(i, 64)
        assert target["labels"].tolist() == [label + 1 for label, _ in things]
        assert target["boxes"].tolist() == [list(map(float, box)) for _, box in things]


def test_boxes_follow_their_images_through_resizing_and_flips(tmp_path: Path) -> None:
    """The pixels inside of a box, and none outside, have its colour."""
    data = opened(voc(tmp_path, side=64), size=32, augment="flip")
    x, targets = next(data.batches(0, 8))
    raw = (x * data.std + data.mean) * 255
    flipped = 0
    for image, target in zip(raw, targets, strict=True):
        for label, (x0, y0, x1, y1) in zip(
            target["labels"], target["boxes"].round().int().tolist(), strict=True
        ):
            colour = image[int(label) - 1] - image[2 - int(label)]
            if len(target["labels"]) == 1:
                inside = colour[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1]
                assert float(inside.min()) > 100
                colour[max(0, y0 - 1) : y1 + 1, max(0, x0 - 1) : x1 + 1] = 0
                assert float(colour.abs().max()) < 60
                flipped += 1
    assert flipped == 4


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("<xmax>[0-9]+", "<xmax>99", "which does not lie in its image of 64×64 pixels"),
        ("<ymin>[0-9]+", "<ymin>63", "which does not lie in its image"),
        ("<name>disc", "<nam>disc", "is no annotation of VOC"),
        ("<xmin>[0-9]+", "<xmin>wide", "is no annotation of VOC (could not convert string to float"),
        ("</annotation>", "", "is no annotation of VOC (no element found"),
    ],
)
def test_a_wrong_annotation_is_named_before_training(tmp_path: Path, old: str, new: str, said: str) -> None:
    folder = voc(tmp_path)
    path = folder / "Annotations/000002.xml"
    path.write_text(re.sub(old, new, path.read_text(), count=1))
    with pytest.raises(DataError) as refusal:
        named("detection").source(str(folder), 64).check()
    assert "000002.xml" in str(refusal.value)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found["annotations"][0].update(bbox=[50, 50, 40, 4]), "does not lie in its image"),
        (lambda found: found["annotations"][0].update(category_id=3), "category 3, of which it lacks one"),
        (
            lambda found: found.pop("images"),
            "is no annotation file of COCO (Object missing required field `images`",
        ),
        (lambda found: found["images"][0].update(file_name="../../x.jpg"), "names lie below the folder"),
    ],
)
def test_a_wrong_file_of_coco_is_named_before_training(tmp_path: Path, change: Any, said: str) -> None:
    folder = coco(tmp_path)
    path = folder / "annotations/instances_train2017.json"
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))
    with pytest.raises(DataError) as refusal:
        named("detection").source(str(folder), 64).check()
    assert said in str(refusal.value)


def test_a_class_that_only_test_images_show_is_named(tmp_path: Path) -> None:
    folder = voc(tmp_path)
    path = folder / "Annotations/000008.xml"
    path.write_text(path.read_text().replace("disc", "horse"))
    with pytest.raises(DataError, match="test images show the class 'horse', which no training image has"):
        named("detection").source(str(folder), 64).check()


def test_a_folder_of_neither_layout_says_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match="found pictures; boxes are read from VOC's layout"):
        named("detection").source(str(tmp_path), 64).check()


def test_a_classifier_is_no_detector() -> None:
    with pytest.raises(UsageError, match="--task detection was asked of ResNet, which has no backbone"):
        named("detection").network(build("resnet20"))


@pytest.mark.parametrize(
    "model",
    [
        SSDLITE,
        pytest.param("fcos_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("retinanet_resnet50_fpn", marks=pytest.mark.slow),
        pytest.param("ssd300_vgg16", marks=pytest.mark.slow),
    ],
)
def test_losses_and_boxes_are_those_of_torchvisions_detector(model: str) -> None:
    """The shell of tensors and the whole detector, whose own transform leaves such images as they are."""
    side = {"ssd300_vgg16": 300, SSDLITE: 320}.get(model, 128)
    task = Detection()
    torch.manual_seed(0)
    arguments = {} if side >= 300 else {"min_size": side, "max_size": side}
    whole: Any = build(model, **task.arguments(2), **arguments)
    whole.transform.image_mean, whole.transform.image_std = [0.0] * 3, [1.0] * 3
    net = task.network(whole)
    x, y = torch.zeros(2, 3, side, side, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    task.prepare(TensorData("sizes", x, y, x, y, ("a",)), net)
    x = torch.rand(2, 3, side, side)
    targets = [
        {"boxes": torch.tensor([[5.0, 5, 80, 90], [30, 20, 110, 70]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    for module in whole.modules():  # both passes see the same statistics
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    net.train()
    own = task.loss(net(x), targets)
    theirs = sum(whole(list(x), [dict(target) for target in targets]).values())
    torch.testing.assert_close(own, theirs)
    net.eval()
    with torch.no_grad():
        found, expected = task.predictions(net(x)), whole(list(x))
    for one, other in zip(found, expected, strict=True):
        for key in ("boxes", "scores", "labels"):
            torch.testing.assert_close(one[key], other[key])


def test_the_mean_precision_is_one_for_the_right_boxes_and_less_for_shifted_ones() -> None:
    pytest.importorskip("pycocotools")
    target = {"boxes": torch.tensor([[5.0, 5, 25, 25]]), "labels": torch.tensor([1])}

    def figures(shift: float) -> dict[str, float]:
        class Told(Detection):
            def predictions(self, answers: Any) -> list[dict[str, torch.Tensor]]:
                return [{**target, "boxes": target["boxes"] + shift, "scores": torch.tensor([0.9])}]

        metric = Told().metric(1)
        metric.add(None, [target])
        return metric.figures()

    assert figures(0) == {"map": pytest.approx(1), "map50": pytest.approx(1)}
    # shifted by 2 of 20 pixels each way the overlap is 18² / (2·20² − 18²) = 0.68: right up to 0.65, 4 of 10 thresholds
    assert figures(2) == {"map": pytest.approx(0.4), "map50": pytest.approx(1)}


def same_boxes(one: dict[str, Tensor], other: dict[str, Tensor], side: int) -> bool:
    """Whether every box of both has one of its label in the other, 1e-4 of the image and of the score away."""

    def told(found: dict[str, Tensor]) -> Tensor:
        return torch.cat([found["boxes"] / side, found["scores"][:, None]], 1)

    apart = (told(one)[:, None] - told(other)[None]).abs().amax(2)
    apart[one["labels"][:, None] != other["labels"][None]] = 1.0
    return bool((apart.amin(1) <= 1e-4).all() and (apart.amin(0) <= 1e-4).all())


@pytest.mark.slow
def test_ssdlite_is_trained_pruned_to_60_percent_and_exported_with_equal_boxes(tmp_path: Path) -> None:
    data = opened(voc(tmp_path / "voc", train=160, test=40, side=96), size=96, augment="flip")
    task = Detection()
    torch.manual_seed(0)
    net = task.network(build(SSDLITE, **task.arguments(data.n_classes)))
    for (
        module
    ) in net.modules():  # 0.03 there: after forty steps eval mode would still see the first statistics
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3
    found = pruned_and_exported(task, net, data, tmp_path / "net.onnx", steps=60)
    assert sum(found.losses[-5:]) < 0.6 * sum(found.losses[:5])
    assert found.share <= 0.6
    for own, exported in zip(task.predictions(found.answers), task.predictions(found.exported), strict=True):
        assert len(own["boxes"]) > 0
        assert same_boxes(exported, own, 96)
    assert 0 <= found.figures["map"] <= 1
