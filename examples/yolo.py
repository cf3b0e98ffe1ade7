"""Ultralytics YOLO, trained on by Ultralytics' own trainer while it is cut to a latency on ONNX Runtime.

    pip install 'halpiee[train,yolo]'
    python examples/yolo.py --model yolov8n --out runs/yolo                    # makes a few images; a minute on a CPU
    python examples/yolo.py --model yolo11n-seg --method halp --out runs/yolo
    python examples/yolo.py --model yolo26n.pt --data coco128.yaml --size 640 --epochs 100 --out runs/yolo

``Pruning`` is the callback: it attaches IEE or HALP to the trainer's optimizer; once the method has finished, it hands
the compact network, its optimizer and a new average back to the trainer. Ultralytics keeps the whole module in a
checkpoint, so ``YOLO("best.pt")`` loads, validates and exports the pruned network, and without halpiee installed.
``YOLO.train`` would build it anew from its YAML, at full width: ``train_on`` keeps the network that was loaded.
"""

from __future__ import annotations

import argparse
import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from PIL import Image, ImageDraw
from torch import Tensor, nn
from ultralytics import YOLO
from ultralytics.utils.torch_utils import ModelEMA

import halpiee
import latency
from halpiee.deploy import export_onnx

COLOURS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 60, 220)}
"""Classes of the images that are made here."""

SETTINGS: dict[str, Any] = {"device": "cpu", "plots": False, "verbose": False}
"""Settings of the trainer. With ``device=0`` it trains in mixed precision; steps that its scaler skips do not count."""


def images(out: Path, task: str, size: int, count: int = 16) -> Path:
    """Draws a coloured box on grey noise, ``count`` times to train on and half as often to validate on.

    Args:
        out: folder to write to.
        task: ``detect``, ``segment`` or ``classify``.
        size: pixels of a side.
        count: images to train on.

    Returns:
        What Ultralytics takes as ``data``: the YAML, or the folder with a folder for each class.
    """
    source = torch.Generator().manual_seed(0)
    for part, n in (("train", count), ("val", count // 2)):
        for i in range(n):
            noise = torch.randint(90, 160, (size, size, 3), dtype=torch.uint8, generator=source)
            label = i % len(COLOURS)
            name, colour = list(COLOURS.items())[label]
            width, height = torch.randint(size // 4, size // 2, (2,), generator=source).tolist()
            left = int(torch.randint(size - width, (), generator=source))
            top = int(torch.randint(size - height, (), generator=source))
            image = Image.fromarray(noise.numpy())
            ImageDraw.Draw(image).rectangle((left, top, left + width, top + height), fill=colour)
            folder = out / part / name if task == "classify" else out / "images" / part
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
            if task == "classify":
                continue
            x0, x1, y0, y1 = (p / size for p in (left, left + width, top, top + height))
            box = ((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0)
            numbers = box if task == "detect" else (x0, y0, x1, y0, x1, y1, x0, y1)
            (out / "labels" / part).mkdir(parents=True, exist_ok=True)
            line = " ".join([str(label), *(f"{number:.4f}" for number in numbers)])
            (out / "labels" / part / f"{i}.txt").write_text(line + "\n", encoding="utf-8")
    if task == "classify":
        return out
    described = {"path": str(out.resolve()), "train": "images/train", "val": "images/val"}
    file = out / "data.yaml"
    file.write_text(yaml.safe_dump({**described, "names": dict(enumerate(COLOURS))}), encoding="utf-8")
    return file


@dataclass
class Pruning:
    """Callbacks that prune the network of an Ultralytics trainer to a latency while it trains.

    Attributes:
        budget: share of the dense latency.
        profile: file of the latency profile; it is measured where it is missing.
        method: ``iee``, or ``halp`` for a network with pretrained weights.
        dense: a copy of the network, once the training has begun.
        cost: what predicts latencies, once the training has begun.
        pruner: the method, once the training has begun.
        cut_at: optimizer steps before the cut; None before it.
    """

    budget: float
    profile: Path
    method: Literal["iee", "halp"] = "iee"
    dense: nn.Module | None = field(default=None, init=False)
    cost: halpiee.LatencyCost | None = field(default=None, init=False)
    pruner: Any = field(default=None, init=False)
    cut_at: int | None = field(default=None, init=False)

    def attach(self, model: YOLO) -> YOLO:
        """Adds the callbacks to a model that is to be trained, and returns it."""
        model.add_callback("on_pretrain_routine_end", self.begin)
        model.add_callback("on_train_batch_end", self.cut)
        model.add_callback("on_train_epoch_end", self.average)
        return model

    def begin(self, trainer: Any) -> None:
        """Traces the network, measures its layers and attaches the method to the trainer's optimizer."""
        size = trainer.args.imgsz
        example = (torch.zeros(1, 3, size, size, device=trainer.device),)
        structure = halpiee.trace(trainer.model, example)
        measured = latency.sweep([timed.op for timed in structure.ops], path=self.profile)
        self.dense, self.cost = (
            copy.deepcopy(trainer.model).cpu().eval(),
            halpiee.LatencyCost(structure, measured),
        )
        steps = len(trainer.train_loader) * trainer.epochs // trainer.accumulate
        lengths: dict[str, float] = {
            "end": 0.75,
            "h": max(1, steps // 8),
            "j": max(1, steps // 8),
            "q": max(1, steps // 8),
        }
        if self.method == "halp":
            prunes = max(1, min(30, steps // 2))
            lengths = {"prunes": prunes, "interval": max(1, steps // 2 // prunes)}
        self.pruner = (halpiee.HALP if self.method == "halp" else halpiee.IEE)(
            trainer.model,
            trainer.optimizer,
            budget=halpiee.Latency(fraction=self.budget),
            total_steps=steps,
            structure=structure,
            cost=self.cost,
            **lengths,
        )

    def cut(self, trainer: Any) -> None:
        """Hands the compact network and its optimizer to the trainer once the method has finished."""
        if self.cut_at is not None or not self.pruner.finished:
            return
        self.cut_at = self.pruner.step
        trainer.model, trainer.optimizer = self.pruner.shrink()
        trainer.scheduler = self.pruner.rebind(trainer.scheduler)
        trainer.ema = ModelEMA(trainer.model)  # an average over steps with other widths is of no network
        trainer.best_fitness = None  # best.pt is the best pruned network, whatever the dense one reached

    def average(self, trainer: Any) -> None:
        """Until the cut, what Ultralytics validates and saves is the present network within its budget."""
        if self.cut_at is None:
            with self.pruner.evaluating():
                trainer.ema.ema.load_state_dict(trainer.model.state_dict())


def train_on(checkpoint: Path, **settings: Any) -> YOLO:
    """Trains a pruned checkpoint on, at its widths, and returns the trained model.

    Args:
        checkpoint: a ``.pt`` file that Ultralytics has saved.
        settings: of Ultralytics' trainer, ``data`` and ``epochs`` among them.
    """
    model = YOLO(checkpoint)
    usual = model.task_map[model.task]["trainer"]

    class Trainer(usual):  # type: ignore[misc, valid-type]
        """Ultralytics' trainer of the task, on the network that was loaded."""

        def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
            return weights

    model.train(trainer=Trainer, **{**SETTINGS, **settings})
    return model


def outputs(model: nn.Module, batch: Tensor) -> Tensor:
    """Returns what a network gives in evaluation: boxes ``[N, 4 + classes, anchors]`` or class scores."""
    with torch.no_grad():
        found = model.eval()(batch)
    while not isinstance(found, Tensor):
        found = found[0]
    return found


def main(
    name: str,
    out: Path,
    *,
    data: str | None = None,
    method: Literal["iee", "halp"] = "iee",
    budget: float = 0.5,
    size: int = 64,
    epochs: int = 6,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains to a share of the latency, reloads the checkpoint, validates, exports and measures.

    Args:
        name: of the network's YAML, such as ``yolov8n`` or ``yolo11n-seg``, or a ``.pt`` file.
        out: folder to write to.
        data: what Ultralytics takes as ``data``; a few images are made where it is missing.
        method: ``iee`` or ``halp``.
        budget: share of the dense latency.
        size: pixels of a side.
        epochs: of the training.
        settings: of Ultralytics' trainer.

    Returns:
        What came out, by name; ``difference`` is between the network as trained, in the half precision of the
        checkpoint, and as loaded.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    model = YOLO(name if name.endswith(".pt") else f"{name}.yaml")
    given = data or str(images(out / "images", model.task, size))
    pruning = Pruning(budget, out / "profile.jsonl", method)
    chosen = {"batch": 8, "nbs": 8, "imgsz": size, "epochs": epochs, "warmup_epochs": 1, "optimizer": "AdamW"}
    place = {"project": str(out.resolve()), "name": "train", "exist_ok": True}
    pruning.attach(model).train(data=given, **{**SETTINGS, **chosen, **place, **(settings or {})})
    trainer, dense, cost = model.trainer, pruning.dense, pruning.cost
    assert trainer is not None
    assert dense is not None
    assert cost is not None
    plan = halpiee.Plan.from_selection(cost.structure, halpiee.Selection(pruning.pruner.keep))
    plan.save(out / "plan.json", overwrite=True)

    loaded = YOLO(trainer.last)
    figures = loaded.val(data=given, imgsz=size, device="cpu", plots=False, verbose=False, **place)
    compact = YOLO(trainer.last).model.float().eval()
    example = torch.rand(1, 3, size, size)
    trained = copy.deepcopy(trainer.ema.ema).cpu().half().float()
    file = out / f"{Path(name).stem}.onnx"
    report = export_onnx(compact, (example,), file, overwrite=True)
    times = latency.compare({"dense": dense, "pruned": compact}, example_inputs=(example,), rounds=30)
    return {
        "cut_at": pruning.cut_at,
        "parameters": sum(p.numel() for p in compact.parameters()),
        "dense_parameters": sum(p.numel() for p in dense.parameters()),
        "predicted_share": pruning.pruner.reports[-1].used / cost.dense_us,
        "measured_share": times["pruned"].median_us / times["dense"].median_us,
        "difference": float((outputs(trained, example) - outputs(compact, example)).abs().max()),
        "fitness": float(figures.fitness),
        "onnx_rel_l2": report.rel_l2,
        "fixed_batch": report.fixed_batch,
        "onnx": str(file),
        "checkpoint": str(trainer.last),
        "plan": str(out / "plan.json"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--model", default="yolov8n", help="a YAML's name, such as yolo11n-seg, or a .pt file"
    )
    parser.add_argument("--data", help="what Ultralytics takes; a few images are made where it is left out")
    parser.add_argument("--method", choices=["iee", "halp"], default="iee")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the dense latency")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("runs/yolo"))
    asked = parser.parse_args()
    found = main(
        asked.model,
        asked.out,
        data=asked.data,
        method=asked.method,
        budget=asked.budget,
        size=asked.size,
        epochs=asked.epochs,
    )
    for what, value in found.items():
        print(f"{what:20} {value:.4g}" if isinstance(value, float) else f"{what:20} {value}")
