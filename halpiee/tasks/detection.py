"""Where in an image things are, and of which class: torchvision's detectors of one stage."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from halpiee.data.data import Data
from halpiee.data.folders import BoxSource
from halpiee.data.source import Source
from halpiee.errors import MissingError, UsageError
from halpiee.tasks.task import Metric, Task, task

PARTS = ("backbone", "head", "transform", "anchor_generator")
"""What torchvision's SSD, SSDlite, RetinaNet and FCOS have."""


@task("detection")
class Detection(Task):
    """The detector's own loss; targets are a dictionary of ``boxes`` and ``labels`` per image, class 0 is background.

    What is trained, timed and exported are backbone and head. Anchors, matching, and the boxes that are read off lie in
    a shell of the detector without weights, which serves the dense and the pruned network and the exported one alike.
    """

    kind: ClassVar[str] = "boxes"
    figure: ClassVar[str] = "map"
    title = "mAP"

    def __init__(self) -> None:
        self._shell: Shell | None = None

    def source(self, data: str, size: int | None) -> Source:
        """Returns a folder in VOC's or COCO's layout, or a function's datasets."""
        return BoxSource.of(data, size) or super().source(data, size)

    def arguments(self, n_classes: int) -> dict[str, Any]:
        """Returns the number of classes with the background."""
        return {"num_classes": n_classes + 1}

    def network(self, model: nn.Module) -> nn.Module:
        """Returns backbone and head.

        Raises:
            UsageError: the model is no such detector.
        """
        lacking = [name for name in PARTS if not isinstance(getattr(model, name, None), nn.Module)]
        if lacking:
            raise UsageError(
                f"--task detection was asked of {type(model).__name__}, which has no {lacking[0]}; give one of "
                "torchvision's ssd300_vgg16, ssdlite320_mobilenet_v3_large, retinanet_resnet50_fpn or fcos_resnet50_fpn"
            )
        return Detector(model)

    def prepare(self, data: Data, network: nn.Module) -> None:
        """Keeps the detector without its weights, for images of the data's size."""
        assert isinstance(network, Detector)
        self._shell = Shell(network, data.shape)

    def loss(self, answers: Any, targets: Any, *, smoothing: float = 0.0) -> Tensor:
        """Returns the sum of the detector's losses."""
        return torch.stack(list(self._of_shell().losses(answers, targets).values())).sum()

    def predictions(self, answers: Any) -> list[dict[str, Tensor]]:
        """Returns for every image ``boxes`` (x and y of two corners, pixels), ``scores`` and ``labels``."""
        return self._of_shell().boxes(answers)

    def metric(self, n_classes: int) -> MeanPrecision:
        """Returns COCO's mean average precision."""
        return MeanPrecision(self)

    def _of_shell(self) -> Shell:
        assert self._shell is not None, "prepare() comes first"
        return self._shell


class Detector(nn.Module):
    """Backbone and head of a detector of torchvision."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net: Any = model

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps images ``[B, 3, H, W]`` to what the head gives, in its order: logits and offsets of every anchor."""
        return tuple(self.net.head(maps(self.net, x)).values())


class Shell:
    """A copy of a detector without weights, for images [C, H, W]: the parts before and behind backbone and head."""

    def __init__(self, detector: Detector, shape: Sequence[int]) -> None:
        parameter = next(detector.parameters())
        training = detector.training
        detector.eval()
        with torch.no_grad():
            image = torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
            features = maps(detector.net, image)
            self._names = list(detector.net.head(features))
        detector.train(training)
        self._sizes = [tuple(feature.shape[-2:]) for feature in features]
        self._shape = tuple(shape)
        self._net: Any = copy.deepcopy(detector.net).to("meta")
        self._answers: dict[str, Tensor] = {}
        self._net.transform.forward = self._images
        self._net.backbone.forward = self._features
        self._net.head.forward = lambda features: self._answers

    def losses(self, answers: Sequence[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Returns the losses of a batch by name."""
        self._answers = dict(zip(self._names, answers, strict=True))
        found: dict[str, Tensor] = self._net.train()(list(answers[0]), targets)
        return found

    def boxes(self, answers: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Returns the boxes of a batch, after non-maximum suppression."""
        self._answers = dict(zip(self._names, answers, strict=True))
        images = [answer.new_zeros(self._shape) for answer in answers[0]]
        found: list[dict[str, Tensor]] = self._net.eval()(images)
        return found

    def _images(self, images: list[Tensor], targets: Any) -> tuple[Any, Any]:
        from torchvision.models.detection.image_list import ImageList

        first = next(iter(self._answers.values()))
        size = (int(self._shape[1]), int(self._shape[2]))
        return ImageList(first.new_zeros(1).expand(len(first), *self._shape), [size] * len(first)), targets

    def _features(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict(
            (str(i), x.new_zeros(1).expand(len(x), 1, *size)) for i, size in enumerate(self._sizes)
        )


def maps(net: Any, x: Tensor) -> list[Tensor]:
    """Returns the feature maps of a detector's backbone."""
    found = net.backbone(x)
    return [found] if isinstance(found, Tensor) else list(found.values())


class MeanPrecision(Metric):
    """COCO's mean average precision, by torchmetrics and pycocotools, of the boxes that a task reads off answers."""

    def __init__(self, task: Detection) -> None:
        self._task = task
        self._seen: list[tuple[Any, Any]] = []

    def add(self, answers: Any, targets: Any) -> None:
        """Keeps boxes and targets of a batch."""
        said = self._task.predictions(answers)
        self._seen += [(_on_host(one), _on_host(target)) for one, target in zip(said, targets, strict=True)]

    def merge(self, others: Sequence[Any]) -> None:
        """Takes the images of other processes."""
        for other in others:
            self._seen += other._seen

    def __getstate__(self) -> dict[str, Any]:
        return {"_seen": self._seen}  # what other processes merge

    def figures(self) -> dict[str, float]:
        """Returns ``map`` (over overlaps of 0.5 to 0.95) and ``map50``; −1 where no box is wanted counts as 0."""
        try:
            from torchmetrics.detection import MeanAveragePrecision

            metric: Any = MeanAveragePrecision(backend="pycocotools")
            metric.warn_on_many_detections = False  # as COCO does, the hundred best of an image count
        except ModuleNotFoundError as error:
            raise MissingError(
                "--task detection is judged by torchmetrics and pycocotools, which are not installed; type pip install "
                "'halpiee[tasks]'"
            ) from error
        metric.update([said for said, _ in self._seen], [target for _, target in self._seen])
        found = metric.compute()
        return {"map": max(0.0, float(found["map"])), "map50": max(0.0, float(found["map_50"]))}


def _on_host(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.cpu() for key, value in values.items()}
