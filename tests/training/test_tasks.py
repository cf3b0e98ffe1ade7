"""Runs of other tasks, and on images that stay in their files, go through the same stages as classification."""

from __future__ import annotations

import copy
import importlib
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import latency
from halpiee.data.loaded import LoadedData
from halpiee.data.loading import Loading
from halpiee.deploy.calibrate import Round
from halpiee.deploy.onnx import export_onnx
from halpiee.errors import DataError, ScoreWarning, UsageError
from halpiee.selection.cost import LatencyCost
from halpiee.selection.options import fixed_sides
from halpiee.training import stage
from halpiee.training.build import initial, make_optimizer, method_of
from halpiee.training.checkpoint import load_weights, read_settings
from halpiee.training.config import Masks, Settings
from halpiee.training.pipeline import pruning_of
from halpiee.training.preflight import open_run
from tests.data.folders import class_folder
from tests.latency.fakes import FakeBackend, staircase
from tools.synthetic_data import pairs, voc

from .talk import Quiet, one_thread, trained

NETWORK = """
from torch import nn
def net(num_classes=3):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes, 1))
"""
LABELS = """
import torch, toy
def data():
    def several(x, y):
        return x, (torch.eye(6)[y] + torch.eye(6)[(y + 1) % 6]).clamp(max=1)
    train, test = toy.data()
    return several(*train), several(*test)
"""
TASK = """
import halpiee
from halpiee.tasks.classification import Accuracy
class Ranks(halpiee.Task):
    title = "Ranked right"
    def loss(self, answers, targets, *, smoothing=0.0):
        return (answers.argmax(1) - targets).abs().float().mean() + 0 * answers.sum() + answers.square().mean()
    def metric(self, n_classes):
        return Accuracy(n_classes)
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(stage, "pick_threads", one_thread)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "pixelnet.py").write_text(NETWORK)
    (tmp_path / "ranking.py").write_text(TASK)
    (tmp_path / "labels.py").write_text(LABELS)
    importlib.invalidate_caches()


def settings(**other: Any) -> Settings:
    values: dict[str, Any] = {
        "model": "toy:net",
        "data": "toy:data",
        "epochs": 2,
        "batch_size": 4,
        "method": "rigl",
        "masks": Masks(sparsity=0.5),
        "baseline": False,
        "loading": Loading(keep="files", workers=0),
        **other,
    }
    return Settings(**values)


def test_a_segmentation_is_trained_to_a_sparsity(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs", side=16)
    asked = settings(task="segmentation", model="pixelnet:net", data=str(folder), size=16, epochs=6)
    talk = Quiet()
    run = open_run(asked, tmp_path / "run", talk)
    found = trained(run)
    assert run.task.title == "Mean IoU"
    assert talk.figures == {"Mean IoU"}
    assert 0.2 < found["accuracy"] <= 1
    assert {"miou", "pixels"} <= found["history"][-1].keys()
    assert found["history"][-1]["loss"] < found["history"][0]["loss"]


def test_a_classifier_does_not_answer_every_pixel(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs", side=16)
    asked = settings(task="segmentation", data=str(folder), size=16)
    with pytest.raises(DataError, match=r"answers two images with \[2, 3\] where \[2, 3, 16, 16\] is wanted"):
        open_run(asked, tmp_path / "run", Quiet())
    assert not (tmp_path / "run").exists()


def test_a_task_from_elsewhere_trains_and_its_run_is_not_called_where_it_was_not_typed(
    tmp_path: Path,
) -> None:
    folder = class_folder(tmp_path / "images", classes=3)
    run = open_run(
        settings(task="ranking:Ranks", data=str(folder), model="resnet20"), tmp_path / "run", Quiet()
    )
    assert run.task.title == "Ranked right"
    stored = (tmp_path / "run/settings.json").read_text()
    (tmp_path / "run/settings.json").write_text(stored.replace("ranking:Ranks", "ranking:Other"))
    with pytest.raises(UsageError, match="names the task"):
        read_settings(tmp_path / "run")
    with pytest.raises(UsageError, match="the task 'segmentatoin' was asked; did you mean 'segmentation'"):
        open_run(settings(task="segmentatoin"), tmp_path / "other", Quiet())


def test_a_training_on_files_interrupted_within_an_epoch_ends_bit_equal(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "images", train=24, classes=3)
    asked = settings(data=str(folder), model="resnet20", width=0.25, loading=Loading(keep="files", workers=0))
    whole = open_run(asked, tmp_path / "whole", Quiet())
    assert isinstance(whole.data, LoadedData)
    trained(whole)
    with pytest.raises(KeyboardInterrupt):
        trained(open_run(asked, tmp_path / "parts", Quiet(("pruned", 8))))
    trained(open_run(asked, tmp_path / "parts", Quiet(), resume=True))
    first, second = (load_weights(tmp_path / name / "pruned.safetensors") for name in ("whole", "parts"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_unreadable_images_are_named_once_while_training(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "images", train=24, classes=3)
    for name in ("train/class1/0001.png", "val/class0/0003.png"):
        (folder / name).write_bytes(b"no image")
    talk = Quiet()
    trained(open_run(settings(data=str(folder), model="resnet20", width=0.25), tmp_path / "run", talk))
    named = [note for note in talk.notes if "is not a readable image" in note]
    assert sorted(note.partition(" is not")[0] for note in named) == [
        str(folder / "train/class1/0001.png"),
        str(folder / "val/class0/0003.png"),
    ]


def test_the_best_epoch_is_shipped_where_it_was_asked_for(tmp_path: Path) -> None:
    folder = class_folder(tmp_path / "images", train=24, classes=3)
    asked = settings(
        data=str(folder),
        model="resnet20",
        width=0.25,
        epochs=5,
        ship="best",
        masks=Masks(sparsity=0.5, last=0.4),
    )
    talk = Quiet()
    found = trained(open_run(asked, tmp_path / "run", talk))
    final = {entry["epoch"]: entry["accuracy"] for entry in found["history"] if entry["epoch"] > 2}
    assert found["epoch"] == max(final, key=lambda epoch: final[epoch])
    assert found["accuracy"] == final[found["epoch"]]
    assert f"the weights of pruned are those of epoch {found['epoch']}, the best one" in talk.notes
    shipped, best = (load_weights(tmp_path / f"run/pruned{of}.safetensors") for of in ("", "-best"))
    assert all(torch.equal(shipped[name], value) for name, value in best.items())


def test_a_class_that_the_test_split_lacks_trains_and_is_left_out_of_the_mean(tmp_path: Path) -> None:
    """Class 2 is in no test mask: its intersection over union is of nothing unless it is said somewhere."""
    folder = pairs(tmp_path / "pairs", side=16)
    for path in (folder / "val/masks").iterdir():
        mask = np.array(Image.open(path))
        Image.fromarray(np.where(mask == 2, 0, mask).astype(np.uint8)).save(path)
    asked = settings(task="segmentation", model="pixelnet:net", data=str(folder), size=16, epochs=1)
    found = trained(open_run(asked, tmp_path / "run", Quiet()))
    assert 0 < found["accuracy"] <= 1


def pixels(net: nn.Module, x: Tensor, y: Any) -> Tensor:
    """The mean of −log p of the class of every pixel; void ones do not count."""
    counted = y != 255
    shares = net(x).log_softmax(1).gather(1, torch.where(counted, y, 0).long()[:, None])[:, 0]
    loss: Tensor = -shares[counted].mean()
    return loss


def several(net: nn.Module, x: Tensor, y: Any) -> Tensor:
    """The binary cross-entropy of every class."""
    p = net(x).sigmoid()
    loss: Tensor = -(y * p.log() + (1 - y) * (1 - p).log()).mean()
    return loss


def whole_detector(net: nn.Module, x: Tensor, y: Any) -> Tensor:
    """The losses of torchvision's own detector, whose transform leaves such images as they are."""
    detector: Any = net.get_submodule("net")
    transform = detector.transform
    transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3
    transform.min_size, transform.max_size, transform.fixed_size = (64,), 64, (64, 64)
    return torch.stack(list(detector(list(x), [dict(target) for target in y]).values())).sum()


TASKS: dict[str, tuple[Any, Any]] = {
    "pixels": (pixels, {"task": "segmentation", "model": "pixelnet:net", "size": 16}),
    "several classes": (several, {"data": "labels:data"}),
    "boxes": (whole_detector, {"task": "detection", "model": "ssdlite320_mobilenet_v3_large", "size": 64}),
}


def sensitivities(net: nn.Module, batches: Any, loss: Any) -> dict[str, Tensor]:
    """|w · ∂loss/∂w| of every weight, the mean over batches."""
    weights = {n: p for n, p in net.named_parameters() if p.dim() > 1}
    found = dict.fromkeys(weights, torch.zeros(()))
    for x, y in batches:
        gradients = torch.autograd.grad(loss(net, x, y), list(weights.values()))
        for (name, w), g in zip(weights.items(), gradients, strict=True):
            found[name] = found[name] + (w.detach() * g).abs() / len(batches)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_a_network_is_pruned_at_initialisation_by_the_loss_of_its_task(task: str, tmp_path: Path) -> None:
    loss, asked = TASKS[task]
    if "data" not in asked:
        layout = voc if task == "boxes" else pairs
        asked = {**asked, "data": str(layout(tmp_path / "data", side=asked["size"]))}
    run = open_run(settings(method="snip", **asked), tmp_path / "run", Quiet())
    net = initial(run.settings, run.data.n_classes)
    by_hand = sensitivities(copy.deepcopy(net), stage.examples(run), loss)
    make = method_of(run.settings, net, 4, stage.material(run))
    # maps of one pixel, of which no anchor is among the hardest: said of boxes alone
    with pytest.warns(ScoreWarning, match="extra") if task == "boxes" else nullcontext():
        method = make(net, make_optimizer(net, run.settings))
    assert method.last_drop is not None
    scores = method.last_drop[1]
    assert scores.keys() == by_hand.keys()
    for name, score in scores.items():
        torch.testing.assert_close(score, by_hand[name], rtol=1e-3, atol=1e-7, msg=name)
    assert sum(method.alive.counts.values()) == sum(s.numel() for s in scores.values()) // 2


def test_a_trained_network_is_rewound_under_the_mask_of_its_tasks_loss(tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs", side=16)
    masks = Masks(sparsity=0.5, criterion="snip")
    asked = settings(
        task="segmentation", model="pixelnet:net", data=str(folder), size=16, method="lrr", masks=masks
    )
    run = open_run(asked, tmp_path / "run", Quiet())
    trained(run)
    dense = run.build()
    dense.load_state_dict(load_weights(tmp_path / "run/dense.safetensors"))
    by_hand = sensitivities(dense.train(), stage.examples(run), pixels)
    kept = load_weights(tmp_path / "run/mask.safetensors")
    least = min(float(by_hand[name][mask].min()) for name, mask in kept.items())
    most = max(float(by_hand[name][~mask].max()) for name, mask in kept.items())
    assert most <= least * (1 + 1e-3)


def met(model: Any, cost: LatencyCost, *more: Any, budget_us: float, **how: Any) -> Any:
    """A closed loop that measures what was predicted."""
    return cost, [Round(1, budget_us, budget_us, 0.0, budget_us, 1.0)]


NETWORKS = {
    "detection": ("ssdlite320_mobilenet_v3_large", voc, {"map", "map50"}),
    "segmentation": ("lraspp_mobilenet_v3_large", pairs, {"miou", "pixels"}),
}


@pytest.mark.slow  # traces, trains and exports a MobileNet-V3
@pytest.mark.parametrize("task", NETWORKS)
def test_torchvisions_networks_of_twelve_steps_are_cut_to_60_percent_and_exported(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores of the cut are those of the task's own loss. SSDlite's norms still hold 69 % of their first statistics."""
    model, layout, figures = NETWORKS[task]
    monkeypatch.setattr(stage, "close_loop", met)
    folder = layout(tmp_path / "data", train=12, test=4, side=64)
    asked = settings(
        **{"task": task, "model": model, "data": str(folder), "size": 64, "budget": "0.6", "method": "early"},
        **{"masks": Masks(cut_at=0.5), "epochs": 4, "lr": 0.01, "clip": 10.0, "images": 12},
    )
    run = open_run(asked, tmp_path / "run", Quiet())
    ops = [timed.op for timed in run.structure.ops]
    profile = latency.sweep(ops, backend=FakeBackend(staircase(8)), fixed=fixed_sides(run.structure))
    cost = LatencyCost(run.structure, profile)
    training = pruning_of(run, cost)
    stage.do(training, run)
    result = training.result(run)
    assert cost.total_us(result["counts"]) <= 0.6 * cost.dense_us
    assert figures <= result["history"][-1].keys()
    # what they answer to images is compared where float32 determines it: tests/tasks
    assert export_onnx(run.compact(), run.example, tmp_path / "net.onnx").rel_l2 <= 1e-5
