"""The training loop: one network, one optimizer, where it stands; interrupted at any step and continued bit-equal."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from halpiee.data.data import Data
from halpiee.errors import PromiseError
from halpiee.interrupts import ending_signals
from halpiee.methods.sparse import Sparse
from halpiee.training.checkpoint import save_state
from halpiee.training.config import Settings

__all__ = ["Trainer", "evaluate", "learning_rate", "make_optimizer", "matching", "pick_threads"]


def learning_rate(step: int, settings: Settings, total_steps: int) -> float:
    """Returns the rate of a step: linear warm-up, then drops by a factor, or half a cosine to zero at the end."""
    warmup = max(1, round(settings.warmup * total_steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    if settings.drops:
        passed = sum(step >= round(share * total_steps) for share in settings.drops)
        return settings.lr * settings.drop**passed
    done = (step - warmup) / max(1, total_steps - warmup)
    return settings.lr * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """Returns SGD with momentum; weight decay on matrices and kernels only."""
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    nesterov = settings.nesterov and settings.momentum > 0
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum, nesterov=nesterov)


@torch.no_grad()
def evaluate(model: nn.Module, data: Data, *, batch_size: int = 256) -> tuple[float, float | None]:
    """Returns top-1 and, beyond five classes, top-5 accuracy on the test images, as shares of 1."""
    training = model.training
    model.eval()
    first = fifth = total = 0
    for x, y in data.test_batches(batch_size):
        best = model(x).topk(min(5, data.n_classes), dim=1).indices
        hits = best == y[:, None]
        first += int(hits[:, 0].sum())
        fifth += int(hits.any(1).sum())
        total += len(y)
    model.train(training)
    return first / total, fifth / total if data.n_classes > 5 else None


def pick_threads(step: Callable[[], object], *, steps: int = 3) -> int:
    """Returns how many threads make ``step`` fastest: one, or as many as there are cores.

    On a shared machine the spin barriers of several threads can make a step thirty times slower than one thread,
    so it is measured and not assumed. The choice stays set.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    best, fastest = 1, math.inf
    for threads in (1, cores) if cores > 1 else (1,):
        torch.set_num_threads(threads)
        step()
        times = []
        for _ in range(steps):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
            if sum(times) > 4 * fastest * steps:
                break
        typical = sorted(times)[len(times) // 2]
        if typical < 0.9 * fastest:
            best, fastest = threads, typical
    torch.set_num_threads(best)
    return best


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Turns the first signal to end into a note, so that a step is finished and the state saved; a second kills.

    Not a second SIGHUP: a terminal that is closed sends it itself, and its shell once more.
    """
    caught: list[int] = []

    def note(number: int, _: object) -> None:
        if caught and number != getattr(signal, "SIGHUP", None):
            raise KeyboardInterrupt
        caught.append(number)

    try:
        before = {number: signal.signal(number, note) for number in ending_signals()}
    except ValueError:  # signals belong to the main thread; elsewhere the caller's handling stays
        yield caught
        return
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def matching(answers: Tensor, wanted: Tensor, temperature: float = 2.0) -> Tensor:
    """Returns ``T² · KL(softmax(wanted / T) ‖ softmax(answers / T))``, the mean over images (Hinton et al. 2015).

    Args:
        answers: logits ``[N, classes]`` of the network in training.
        wanted: logits ``[N, classes]`` of the network to match.
        temperature: T.
    """
    ours, theirs = (logits.float() / temperature for logits in (answers, wanted))
    divergence = functional.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")
    return temperature**2 * divergence


def laid_out(model: nn.Module, settings: Settings) -> nn.Module:
    """Returns the model with the memory layout that it trains in."""
    return model.to(memory_format=torch.channels_last) if settings.bf16 else model


class Trainer:
    """One training.

    Args:
        model: on its device.
        optimizer: of this model.
        data: on the same device.
        settings: of the run.
        checkpoint: where the state goes at the end of every epoch and on an interruption; ``None``: nowhere.
        method: attached to the optimizer, or ``None`` for a dense training.
        facts: asked at the end of every epoch for what else its history entry holds.
        report: called with every new history entry and, about twice a second, with the steps done.

    Attributes:
        step: optimizer steps tried so far.
        lead: steps before the schedule begins, which they do the beginning of, too.
        history: one entry per epoch: epoch, step, loss, accuracy, seconds, and the facts.
        seconds: wall time spent training.
        stage: ``masked`` while the network has its dense shape, ``compact`` after it was shrunk.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: Data,
        settings: Settings,
        *,
        checkpoint: Path | None = None,
        method: Sparse | None = None,
        facts: Callable[[], dict[str, Any]] = dict,
        report: Callable[[int, int, dict[str, Any] | None], None] = lambda step, total, entry: None,
    ) -> None:
        self.model, self.optimizer, self.data, self.settings = model, optimizer, data, settings
        self._teacher: nn.Module | None = None
        laid_out(model, settings)
        self.method, self.checkpoint, self._facts, self._report = method, checkpoint, facts, report
        self.per_epoch = data.steps_per_epoch(settings.batch_size)
        self.schedule_steps = self.per_epoch * settings.epochs
        self.lead = 0
        self.step = 0
        self.stage = "masked"
        self.extra: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._loss_sum = 0.0
        self._loss_steps = 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps to the end."""
        return self.lead + self.schedule_steps

    def learn_from(self, teacher: nn.Module) -> None:
        """Matches the answers of another network, too, with the weight ``settings.distill``."""
        self._teacher = laid_out(teacher, self.settings).eval()

    def replace(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Goes on with the compact network."""
        self.model, self.optimizer, self.stage = laid_out(model, self.settings), optimizer, "compact"

    def state(self) -> dict[str, Any]:
        """Returns all that ``load`` needs."""
        return {
            "settings": self.settings.digest,
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "loss": [self._loss_sum, self._loss_steps],
            "history": self.history,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "method": None if self.method is None else self.method.state_dict(),
            "random": torch.get_rng_state(),
            "threads": torch.get_num_threads(),
            "extra": self.extra,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continues from a saved state; the model must already have the state's shape."""
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self._loss_sum, self._loss_steps = state["loss"]
        self.history = list(state["history"])
        self.extra = dict(state["extra"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.method is not None and self.stage == "compact":
            self.method.load_record(state["method"])
        elif self.method is not None:
            self.method.load_state_dict(state["method"])
        torch.set_rng_state(state["random"].cpu())
        torch.set_num_threads(state["threads"])

    def save(self) -> None:
        """Writes the state, if there is a place for it."""
        if self.checkpoint is not None:
            save_state(self.checkpoint, self.state())

    @property
    def rate(self) -> float:
        """The learning rate of the next step; after ``lead`` steps the schedule begins anew."""
        step = self.step if self.step < self.lead else self.step - self.lead
        return learning_rate(step, self.settings, self.schedule_steps)

    def train_step(self, x: Tensor, y: Tensor) -> Tensor:
        """Does one step of the recipe and returns the loss."""
        s = self.settings
        if s.bf16 and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=s.bf16):
            answers = self.model(x)
            if self._teacher is not None:
                with torch.no_grad():
                    wanted = self._teacher(x)
        loss = functional.cross_entropy(answers.float(), y, label_smoothing=s.label_smoothing)
        if self._teacher is not None:
            loss = (1 - s.distill) * loss + s.distill * matching(answers, wanted)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        return loss.detach()

    def run(self, until: Callable[[Trainer], bool] = lambda _: False) -> None:
        """Trains to the end, or until the condition holds before a step.

        Raises:
            KeyboardInterrupt: interrupted; the state has been saved.
            PromiseError: the loss is not finite.
        """
        self.model.train()
        begun = time.perf_counter()
        with _interruptible() as caught:
            while self.step < self.total_steps:
                epoch, first = divmod(self.step, self.per_epoch)
                batches = self.data.batches(
                    epoch, self.settings.batch_size, seed=self.settings.seed, start=first
                )
                for x, y in batches:
                    if until(self) or self.step >= self.total_steps:
                        return
                    loss = float(self.train_step(x, y))
                    if not math.isfinite(loss):
                        raise PromiseError(
                            f"the loss became {loss} at step {self.step}; lower --lr (now {self.settings.lr:g}) "
                            "or lengthen the warm-up"
                        )
                    self.step += 1
                    self._loss_sum += loss
                    self._loss_steps += 1
                    begun = self._tick(begun)
                    if self.step % self.per_epoch == 0:
                        begun = self._end_epoch(begun)
                        self.save()
                    if caught:
                        self.save()
                        raise KeyboardInterrupt

    def _tick(self, begun: float) -> float:
        now = time.perf_counter()
        self.seconds += now - begun
        self._report(self.step, self.total_steps, None)
        return now

    def _end_epoch(self, begun: float) -> float:
        """Evaluates and appends to the history; evaluation time does not count as training."""
        with self.method.evaluating() if self.method is not None else nullcontext():
            accuracy, _ = evaluate(self.model, self.data)
        entry = {
            "epoch": self.step // self.per_epoch,
            "step": self.step,
            "loss": self._loss_sum / max(1, self._loss_steps),
            "accuracy": accuracy,
            "seconds": self.seconds,
            **self._facts(),
        }
        self._loss_sum, self._loss_steps = 0.0, 0
        self.history.append(entry)
        self._report(self.step, self.total_steps, entry)
        return time.perf_counter()
