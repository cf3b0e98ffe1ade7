"""One training and what branches off it: its state at given steps, and the networks that are pruned there.

Every state is kept in the study's folder under a hash of the settings, so that cells which need the same dense network
at the same step, in whatever process, train it once. A training that was killed goes on from its last state.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from halpiee.data.tensors import TensorData
from halpiee.errors import OutputInUseError
from halpiee.methods.dynamic import Static
from halpiee.methods.rewind import keeping_mask
from halpiee.saliency.criterion import pooled_gradients
from halpiee.saliency.score import buffers_kept
from halpiee.sparsity.distribution import Uniform
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.granularity import Units, Weights
from halpiee.sparsity.mask import Mask
from halpiee.training.build import initial, learning_rate, make_optimizer
from halpiee.training.checkpoint import load_state, save_state
from halpiee.training.config import Settings
from halpiee.training.loop import Trainer
from latency.files import FolderLock

WAIT_S = 0.5
"""Between two looks at whether another process has trained what is needed."""


@dataclass(frozen=True)
class Place:
    """Where a probe works."""

    settings: Settings  # of the training
    data: TensorData  # on the device
    device: torch.device  # of the training
    shared: Path  # folder of the states that several cells need


def total_steps(place: Place) -> int:
    """Returns the optimizer steps of the whole training."""
    return place.data.steps_per_epoch(place.settings.batch_size) * place.settings.epochs


def batches_of(data: TensorData, images: int, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Returns training batches of the first epoch's order, without augmentation: what gradients are averaged over."""
    found = []
    for x, y in data.batches(0, batch_size, augment=False):
        found.append((x, y))
        if len(found) * batch_size >= images:
            break
    return found


def states(place: Place, pretrained: float, steps: Sequence[int]) -> dict[int, Path]:
    """Trains the network, dense or of a uniform sparsity, and returns the files of its states at some steps.

    ``pretrained`` is the sparsity from the start on, 0 for dense; ``steps`` are optimizer steps done.
    """
    text = json.dumps([place.settings.as_dict(), pretrained], sort_keys=True, default=str)
    folder = place.shared / hashlib.sha256(text.encode()).hexdigest()[:12]
    found = {step: folder / f"step{step}.state" for step in sorted(set(steps))}
    while not all(path.is_file() for path in found.values()):
        try:
            lock = FolderLock(folder)
        except OutputInUseError:
            time.sleep(WAIT_S)
            continue
        with lock:
            _train(place, pretrained, found)
    return found


def _train(place: Place, pretrained: float, wanted: Mapping[int, Path]) -> None:
    """Trains on from the last state before each that is wanted."""
    torch.manual_seed(place.settings.seed)
    trainer = _trainer(place, pretrained)
    for step, path in sorted(wanted.items()):
        if not path.is_file():
            there = {int(p.stem.removeprefix("step")): p for p in path.parent.glob("step*.state")}
            last = max((s for s in there if s <= step), default=0)
            if last > trainer.step:
                trainer.load(load_state(there[last]))
            if trainer.step < step:
                trainer.run(until=lambda t, step=step: t.step >= step)  # type: ignore[misc]
            save_state(path, trainer.state())


def _trainer(place: Place, pretrained: float) -> Trainer:
    s = place.settings
    model = initial(s, place.data.n_classes).to(place.device)
    optimizer = make_optimizer(model, s)
    method = None
    if pretrained:
        method = Static(model, optimizer, budget=Uniform(1 - pretrained), seed=s.seed)
    return Trainer(model, optimizer, place.data, s, method=method)


@dataclass
class Branch:
    """A network at a step of a training, and the state of its optimizer."""

    place: Place  # settings and data
    step: int  # optimizer steps done
    model: nn.Module  # with the weights of that step
    optimizer: dict[str, Any]  # state of that step

    @classmethod
    def load(cls, place: Place, path: Path) -> Branch:
        """Returns the network that a state holds; masks, whose zeros are in the weights, are left out."""
        state = load_state(path)
        model = initial(place.settings, place.data.n_classes).to(place.device)
        model.load_state_dict(state["model"])
        return cls(place, int(state["step"]), model, state["optimizer"])

    def units(self, of: str) -> Units:
        """Returns the weights or the filters; only the kernels of filters are zeroed, so that they can come back."""
        return Weights(self.model) if of == "weights" else Filters(self.model, norm_follows=False)

    def rate(self, step: int) -> float:
        """Returns the schedule's learning rate at a step."""
        return learning_rate(step, self.place.settings, total_steps(self.place))

    def gradients(self) -> dict[str, Tensor]:
        """Returns the loss gradient of every parameter, a mean over the training images of one epoch, 2,560 at most."""
        self.model.train()
        batches = batches_of(self.place.data, 2560, self.place.settings.batch_size)
        with buffers_kept(self.model):
            *_, found = pooled_gradients(self.model, batches, functional.cross_entropy)
        return {name: g for name, g in (found or {}).items() if g is not None}

    def train_on(
        self, model: nn.Module, mask: Mask, of: str, steps: int, rate: Callable[[int], float]
    ) -> None:
        """Trains a pruned copy for some steps; what the mask leaves out stays zero, its momentum is gone.

        The mask, whose names are weights or filters (``of``), says what may be other than zero; ``rate`` maps a step of
        the training to its learning rate.
        """
        s, data = self.place.settings, self.place.data
        optimizer = make_optimizer(model, s)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer))
        units = Weights(model) if of == "weights" else Filters(model, norm_follows=False)
        masks, names = units.masks(mask), dict(model.named_parameters())
        with torch.no_grad():
            for name, free in masks.items():
                for value in optimizer.state.get(names[name], {}).values():
                    if isinstance(value, Tensor) and value.shape == free.shape:
                        value.mul_(free.to(value.device))
        model.train()
        first, at = divmod(self.step, data.steps_per_epoch(s.batch_size))
        batches = itertools.chain.from_iterable(
            data.batches(epoch, s.batch_size, seed=s.seed, start=at if epoch == first else 0)
            for epoch in itertools.count(first)
        )
        with keeping_mask(model, optimizer, mask, units):
            for step, (x, y) in zip(range(self.step, self.step + steps), batches, strict=False):
                now = rate(step)
                for group in optimizer.param_groups:
                    group["lr"] = now
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(
                    functional.cross_entropy(model(x), y, label_smoothing=s.label_smoothing)
                )
                optimizer.step()


def branches(place: Place, pretrained: float, shares: Sequence[float]) -> Iterator[tuple[float, Branch]]:
    """Yields (epoch, network) at some shares of the training."""
    whole, per_epoch = total_steps(place), place.data.steps_per_epoch(place.settings.batch_size)
    files = states(place, pretrained, [round(share * whole) for share in shares])
    for step, path in files.items():
        yield step / per_epoch, Branch.load(place, path)
