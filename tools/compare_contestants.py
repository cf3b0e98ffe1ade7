"""Compare pruning with what a user would do instead, at equal latency: one cell is one training, one JSON line.

A first version: one process a core works through the cells that no other process holds, in the order given; a killed
process is started again and goes on with the next cell. ``--table`` prints means and 95 % intervals over seeds.

    python -m tools.compare_contestants --data cifar10 --out runs/compare --seeds 0 1 2 --budgets 0.5 0.3
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

import halpiee
import latency
from halpiee.data.images import shift_for
from halpiee.data.sources import load
from halpiee.data.tensors import TensorData
from halpiee.deploy.calibrate import calibrate
from halpiee.deploy.target import Target
from halpiee.methods.channels import HALP, small_dense
from halpiee.methods.iee import IEE
from halpiee.methods.method import Method
from halpiee.reconstruction.repair import repair
from halpiee.selection.cost import LatencyCost
from halpiee.structure.groups import Structure, macs
from halpiee.zoo import build
from latency.predict import Calibration
from tools.small_cifar import Runs, interval

__all__ = ["CONTESTANTS", "Ground", "main"]


@dataclass(frozen=True)
class Recipe:
    """How every network is trained.

    Attributes:
        batch: images of a step.
        lr: highest rate of a linear warm-up and half a cosine to zero.
        warmup: share of the steps.
        decay: weight decay of kernels and matrices.
    """

    batch: int = 128
    lr: float = 0.1
    warmup: float = 0.05
    decay: float = 5e-4


class Ground:
    """What all contestants share: data, structure, tables, the dense latency.

    Args:
        out: folder of the comparison.
        data: source of ``halpiee train``.
        network: zoo name.
        width: factor on its channels.
        size: of the images.
    """

    def __init__(self, out: Path, data: str, network: str, width: float, size: int) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.network, self.width = out, network, width
        self.name = f"{network}x{width:g}-{size}"
        self.recipe = Recipe()
        self.target = Target()
        with _locked(out / f"{self.name}.lock"):
            cached = out / f"data-{size}.pt"
            if cached.exists():
                held = torch.load(cached, weights_only=True)
                train_x, train_y, test_x, test_y = held["tensors"]
                self.data = TensorData(data, train_x, train_y, test_x, test_y, tuple(held["classes"]))
            else:
                self.data = load(data, size=size)
                d = self.data
                torch.save(
                    {"tensors": [d.train_x, d.train_y, d.test_x, d.test_y], "classes": list(d.classes)},
                    cached,
                )
            self.data = replace(
                self.data, augmentation=replace(self.data.augmentation, shift=shift_for(size))
            )
            self.example = (torch.zeros(1, *self.data.shape),)
            model = self.new(0)
            self.structure: Structure = halpiee.trace(model, self.example)
            profile = latency.sweep(
                [t.op for t in self.structure.ops], path=out / f"{self.name}.jsonl", resume=True
            )
            plain = LatencyCost(self.structure, profile)
            line = out / f"{self.name}.calibration.json"
            if not line.exists():
                fitted = calibrate(model, plain, self.example, networks=6)
                line.write_text(json.dumps(asdict(fitted)))
            self.cost = plain.with_calibration(msgspec.convert(json.loads(line.read_text()), Calibration))

    def new(self, seed: int) -> nn.Module:
        """Returns the dense network with the weights of a seed."""
        torch.manual_seed(seed)
        return build(self.network, num_classes=self.data.n_classes, width=self.width)

    def measured(self, model: nn.Module) -> float:
        """Returns µs of a network timed in turns with the dense one, on the scale of the calibration."""
        with _locked(self.out / "timing.lock"):
            found = self.target.compare(
                {
                    "dense": self.target.ready(self.new(0), self.example),
                    "pruned": self.target.ready(model, self.example),
                },
                self.example,
                rounds=15,
            )
        return self.cost.dense_us / found.ratio("dense", "pruned").median


@dataclass
class Training:
    """One training of a cell: where it stands, what it has cost.

    Attributes:
        ground: what all share.
        epochs: of this training.
        seed: of order and augmentation.
        teacher: whose logits are matched, or ``None``.
        weight: of the teacher's part of the loss.
        seconds: CPU time of the steps.
        spent: training MACs, 3 for each forward MAC.
    """

    ground: Ground
    epochs: float
    seed: int
    teacher: nn.Module | None = None
    weight: float = 0.9
    temperature: float = 2.0
    lr: float | None = None
    step: int = 0
    seconds: float = 0.0

    @property
    def per_epoch(self) -> int:
        return self.ground.data.steps_per_epoch(self.ground.recipe.batch)

    @property
    def total(self) -> int:
        return round(self.epochs * self.per_epoch)

    def rate(self) -> float:
        r = self.ground.recipe
        lr = r.lr if self.lr is None else self.lr
        warm = max(1, round(r.warmup * self.total))
        if self.step < warm:
            return lr * (self.step + 1) / warm
        return lr * (1 + math.cos(math.pi * (self.step - warm) / max(1, self.total - warm))) / 2

    def optimizer(self, model: nn.Module) -> torch.optim.SGD:
        r = self.ground.recipe
        return torch.optim.SGD(
            [
                {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": r.decay},
                {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
            ],
            lr=r.lr,
            momentum=0.9,
            nesterov=True,
        )

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            epoch, first = divmod(self.step, self.per_epoch)
            yield from self.ground.data.batches(epoch, self.ground.recipe.batch, seed=self.seed, start=first)

    def run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        until: Callable[[int], bool] = lambda step: False,
    ) -> None:
        """Trains to the end, or until the condition holds."""
        model.train().to(memory_format=torch.channels_last)
        begun = time.process_time()
        for x, y in self.batches():
            if self.step >= self.total or until(self.step):
                break
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(x)
                aim = None
                if self.teacher is not None:
                    with torch.no_grad():
                        aim = self.teacher(x)
            logits = logits.float()
            loss = functional.cross_entropy(logits, y)
            if aim is not None:
                t = self.temperature
                kl = functional.kl_div(
                    (logits / t).log_softmax(1), (aim.float() / t).softmax(1), reduction="batchmean"
                )
                loss = (1 - self.weight) * loss + self.weight * t * t * kl
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            for group in optimizer.param_groups:
                group["lr"] = self.rate()
            optimizer.step()
            self.step += 1
        self.seconds += time.process_time() - begun


@torch.no_grad()
def accuracy(model: nn.Module, data: TensorData) -> float:
    """Returns top-1 accuracy on all test images, in fp32."""
    model.eval()
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in data.test_batches(500)) / len(data.test_y)


# -- contestants ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """One training to do."""

    ground: Ground
    contestant: str
    budget: float
    seed: int
    epochs: float

    @property
    def key(self) -> str:
        return f"{self.ground.name}-{self.contestant}-{self.budget:g}-s{self.seed}-e{self.epochs:g}"

    @property
    def budget_us(self) -> float:
        return self.budget * self.ground.cost.dense_us


Result = tuple[nn.Module, dict[str, Any]]


def dense(cell: Cell) -> Result:
    """The dense network; its weights are kept for those that start from them."""
    g = cell.ground
    path = g.out / f"{g.name}-dense-s{cell.seed}-e{cell.epochs:g}.pt"
    model = g.new(cell.seed)
    with _locked(path.with_suffix(".lock")):
        if path.exists():
            held = torch.load(path, weights_only=True)
            model.load_state_dict(held["model"])
            return model, {"seconds": held["seconds"]}
        training = Training(g, cell.epochs, cell.seed)
        training.run(model, training.optimizer(model))
        torch.save({"model": model.state_dict(), "seconds": training.seconds}, path)
    return model, {"seconds": training.seconds}


def pretrained(cell: Cell, epochs: float) -> nn.Module:
    """Returns the dense network of this seed after so many epochs."""
    return dense(Cell(cell.ground, "dense", 1.0, cell.seed, epochs))[0]


def uniform(cell: Cell) -> Result:
    """The best uniformly narrower network, from scratch."""
    g = cell.ground
    model = small_dense(g.new(cell.seed), g.structure, latency_us=cell.budget_us, cost=g.cost)
    training = Training(g, cell.epochs, cell.seed)
    training.run(model, training.optimizer(model))
    return model, {"seconds": training.seconds}


def _through(cell: Cell, training: Training, model: nn.Module, make: Callable[..., Method]) -> Result:
    """Trains by a method, cuts where its updates end, trains on."""
    g = cell.ground
    optimizer = training.optimizer(model)
    method = make(model, optimizer)
    training.run(model, optimizer, until=lambda _: method.finished)
    compact, slim = method.shrink()
    counts = method.alive.counts
    training.run(compact, slim)
    return compact, {
        "seconds": training.seconds,
        "counts": dict(counts),
        "predicted_us": g.cost.total_us(counts),
    }


def iee(cell: Cell, *, end: float = 0.75, start: str = "scratch", epochs: float = 0.0, **more: Any) -> Result:
    """IEE from scratch, or from the dense network after so many epochs."""
    g = cell.ground
    training = Training(g, cell.epochs, cell.seed)
    total = training.total
    third = max(1, min(150, int(end * total) // (3 * more.pop("cycles", 8))))
    model = g.new(cell.seed) if start == "scratch" else pretrained(cell, epochs)

    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Method:
        return IEE(
            model,
            optimizer,
            budget=halpiee.Latency(us=cell.budget_us),
            total_steps=total,
            structure=g.structure,
            cost=g.cost,
            h=third,
            j=third,
            q=third,
            end=end,
            start=start,
            seed=cell.seed,
            **more,
        )

    return _through(cell, training, model, make)


def halp(cell: Cell, *, solver: str = "joint", end: float = 0.1, epochs: float = 4.0) -> Result:
    """HALP-style: the dense network of so many epochs, a geometric curve of prunes, trained on."""
    g = cell.ground
    training = Training(g, cell.epochs, cell.seed)
    prunes = 10
    model = pretrained(cell, epochs)

    def make(model: nn.Module, optimizer: torch.optim.Optimizer) -> Method:
        return HALP(
            model,
            optimizer,
            budget=halpiee.Latency(us=cell.budget_us),
            total_steps=training.total,
            structure=g.structure,
            cost=g.cost,
            prunes=prunes,
            interval=max(1, int(end * training.total) // prunes),
            solver=solver,
            seed=cell.seed,
        )

    return _through(cell, training, model, make)


def _cut(
    cell: Cell, model: nn.Module, *, mend: bool = True, criterion: str = "taylor"
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the model cut to the budget by one joint solve, its layers solved again."""
    g = cell.ground
    begun = time.process_time()
    order = torch.randperm(len(g.data.train_y), generator=torch.Generator().manual_seed(cell.seed))
    few = [(g.data.normalised(g.data.train_x[i]), g.data.train_y[i]) for i in torch.split(order[:1024], 128)]
    model = model.to(memory_format=torch.contiguous_format).eval()
    scores = halpiee.score(model, few, criterion, units=g.structure)
    chosen = halpiee.select(scores, g.cost, cell.budget_us)
    if mend:
        compact = repair(model, g.structure, chosen.keep, few[:4])
    else:
        compact = halpiee.shrink(model, g.structure, chosen.keep)
    return compact, {
        "counts": dict(chosen.counts),
        "predicted_us": chosen.latency_us,
        "cut_seconds": time.process_time() - begun,
        "accuracy_cut": accuracy(compact, g.data),
    }


def early(cell: Cell, *, share: float, mend: bool = True, criterion: str = "taylor") -> Result:
    """Dense for a share of the training, one cut, and on at the compact size with the same schedule."""
    g = cell.ground
    training = Training(g, cell.epochs, cell.seed)
    model = g.new(cell.seed)
    training.run(model, training.optimizer(model), until=lambda step: step >= share * training.total)
    compact, facts = _cut(cell, model, mend=mend, criterion=criterion)
    training.run(compact, training.optimizer(compact))
    return compact, {"seconds": training.seconds, **facts}


def tuned(
    cell: Cell, *, epochs: float = 4, lr: float = 0.05, mend: bool = True, distill: bool = False
) -> Result:
    """The dense network of so many epochs, one cut, trained on."""
    g = cell.ground
    model = pretrained(cell, epochs)
    compact, facts = _cut(cell, model, mend=mend)
    teacher = model.eval().to(memory_format=torch.channels_last) if distill else None
    training = Training(g, cell.epochs, cell.seed + 100, teacher=teacher, lr=lr)
    training.run(compact, training.optimizer(compact))
    return compact, {"seconds": training.seconds, **facts}


CONTESTANTS: dict[str, Callable[[Cell], Result]] = {
    "dense": dense,
    "uniform": uniform,
    "iee": iee,
    "iee-end0.1": lambda c: iee(c, end=0.1),
    "iee-pretrained": lambda c: iee(c, end=0.1, start="pretrained", epochs=4),
    "halp-joint": lambda c: halp(c),
    "halp-linear": lambda c: halp(c, solver="linear"),
    "early-0.1": lambda c: early(c, share=0.1),
    "early-0.25": lambda c: early(c, share=0.25),
    "early-0.25-cut": lambda c: early(c, share=0.25, mend=False),
    "early-0.5": lambda c: early(c, share=0.5),
    "repaired": tuned,
    "repaired-distill": lambda c: tuned(c, distill=True),
    "cut-tuned": lambda c: tuned(c, mend=False),
}


# -- cells ------------------------------------------------------------------------------------------


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds a file's lock; yields whether it was to be had."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def run(cell: Cell, rows: Path) -> None:
    """Trains a cell and appends its row, unless it is there or another process holds it."""
    with _locked(cell.ground.out / f"{cell.key}.lock", wait=False) as mine:
        if not mine or any(r["key"] == cell.key for r in Runs(rows).rows):
            return
        torch.manual_seed(cell.seed)
        model, facts = CONTESTANTS[cell.contestant](cell)
        g = cell.ground
        model = model.to(memory_format=torch.contiguous_format)
        row = {
            "key": cell.key,
            "contestant": cell.contestant,
            "network": g.name,
            "budget": cell.budget,
            "seed": cell.seed,
            "epochs": cell.epochs,
            "accuracy": accuracy(model, g.data),
            "latency_us": g.measured(model),
            "dense_us": g.cost.dense_us,
            "macs": sum(macs(halpiee.trace(model, g.example), {}).values()),
            **facts,
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
            ).stdout.strip(),
            "device": platform.processor() or platform.machine(),
            "date": time.strftime("%Y-%m-%d"),
            "versions": {"torch": torch.__version__},
        }
        with _locked(g.out / "rows.lock"):
            Runs(rows).add(row)


def table(rows: Path) -> None:
    """Prints mean and 95 % half-width over seeds."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in Runs(rows).rows:
        found.setdefault((row["network"], row["budget"], row["epochs"], row["contestant"]), []).append(row)
    for (network, budget, epochs, name), cells in sorted(found.items()):
        mean, half = interval([100 * r["accuracy"] for r in cells])
        us = sum(r["latency_us"] / r["dense_us"] for r in cells) / len(cells)
        seconds = sum(r["seconds"] for r in cells) / len(cells)
        print(
            f"{network:16} {budget:4g} {epochs:3g} ep  {name:28} {mean:6.2f} ± {half:5.2f}  n={len(cells)}  "
            f"{us:.3f} of dense  {seconds:5.0f} s"
        )


def main() -> None:
    """Runs the cells that are asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--width", type=float, default=2)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.5, 0.3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=4)
    parser.add_argument("--table", action="store_true")
    chosen = parser.parse_args()
    rows = chosen.out / "rows.jsonl"
    if chosen.table:
        table(rows)
        return
    torch.set_num_threads(1)
    ground = Ground(chosen.out, chosen.data, chosen.network, chosen.width, chosen.size)
    for seed in chosen.seeds:
        for contestant in chosen.contestants:
            for budget in [1.0] if contestant == "dense" else chosen.budgets:
                run(Cell(ground, contestant, budget, seed, chosen.epochs), rows)


if __name__ == "__main__":
    main()
