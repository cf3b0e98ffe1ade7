"""The training loop: one network, one optimizer, where it stands; interrupted at any step and continued bit-equal.

Hugging Face accelerate wraps what is trained: processes, precision, accumulation, torch.compile. What it wraps is the
loss of a batch; the network inside stays plain, so that methods mask it, and it is cut, copied and exported as it is.
The host waits for the device where something happens (an epoch ends, a mask changes, a state is saved) and every
``LOOK`` steps, not at every step.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._pytree import tree_map

from halpiee.data.data import Data
from halpiee.errors import PromiseError, ending_signals
from halpiee.inputs import called, count
from halpiee.methods.sparse import Sparse, all_finite
from halpiee.tasks import Task
from halpiee.tasks.classification import Classification
from halpiee.training.build import learning_rate
from halpiee.training.checkpoint import save_state, save_weights
from halpiee.training.config import Settings
from halpiee.training.ranks import ALONE, Ranks, launched

LOOK = 100
"""Steps between two looks at what the device has counted, and between two of the method at its weights."""

ASK = 10
"""Steps between two questions whether a rank was interrupted, where asking would hold up the device."""

PACE = 2.0
"""Seconds between two looks at how fast it goes."""

MOST_BAD = 5
"""Steps in a row whose loss is not finite that end a training."""


@torch.no_grad()
def judged(
    model: nn.Module, data: Data, task: Task, *, batch_size: int = 256, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Returns the figures of a network on the test set, and its mean loss there as ``test_loss``.

    Args:
        model: as the task has it.
        data: the part of this rank.
        task: says what counts.
        batch_size: images at once.
        ranks: whose counts add up.
    """
    training = model.training
    model.eval()
    metric = task.metric(data.n_classes)
    losses = torch.zeros(2, dtype=torch.float64, device=next(model.parameters(), torch.zeros(())).device)
    for x, y in data.test_batches(batch_size):
        answers, n = called(model, x), count(x)
        metric.add(answers, y)
        losses += torch.stack([task.loss(answers, y).double() * n, torch.full_like(losses[1], n)])
    model.train(training)
    total, images = ranks.total(losses.cpu()).tolist()
    metric.merge([other for rank, other in enumerate(ranks.every(metric)) if rank != ranks.rank])
    return {**metric.figures(), "test_loss": total / max(1.0, images)}


def evaluate(
    model: nn.Module, data: Data, task: Task | None = None, *, batch_size: int = 256, ranks: Ranks = ALONE
) -> tuple[float, float | None]:
    """Returns the figure of the task, and top-5 accuracy where it has one; see ``judged``. Without a task: top-1."""
    task = task or Classification()
    found = judged(model, data, task, batch_size=batch_size, ranks=ranks)
    return found[task.figure], found.get("top5")


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


def laid_out(model: nn.Module, settings: Settings) -> nn.Module:
    """Returns the model with the memory layout that it trains in."""
    return model.to(memory_format=torch.channels_last) if settings.channels_last else model


class Objective(nn.Module):
    """The loss of a batch as a module: what DDP, autocast and torch.compile wrap.

    Args:
        network: in training.
        settings: of the run.
        task: whose loss it is.
        teacher: whose answers are matched with the weight ``settings.distill_weight``.
    """

    def __init__(
        self, network: nn.Module, settings: Settings, task: Task, teacher: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.network, self._settings, self._task = network, settings, task
        self._teachers = () if teacher is None else (teacher,)  # no submodule: DDP must not synchronise it

    def forward(self, x: Any, y: Any) -> Tensor:
        """Returns the mean loss of a batch."""
        s = self._settings
        if s.channels_last:
            x = tree_map(lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t, x)
        answers = in_fp32(called(self.network, x))
        loss = self._task.loss(answers, y, smoothing=s.label_smoothing)
        for teacher in self._teachers:
            with torch.no_grad():
                wanted = in_fp32(called(teacher, x))
            loss = (1 - s.distill_weight) * loss + s.distill_weight * self._task.distance(answers, wanted)
        return loss


def in_fp32(answers: Any) -> Any:
    """Returns the answers of a network in fp32, a tensor or a tuple of them: losses are not summed in less."""
    return answers.float() if isinstance(answers, Tensor) else tuple(answer.float() for answer in answers)


def engine(settings: Settings, device: torch.device) -> Any:
    """Returns accelerate's engine for one training: its processes are those of the launcher, its precision is asked."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(launched() == 1)  # precision and device of an engine before
    return Accelerator(
        device_placement=False,
        cpu=device.type == "cpu",
        mixed_precision={"fp32": "no"}.get(settings.precision, settings.precision),
        gradient_accumulation_steps=settings.accumulate,
        dynamo_backend="inductor" if settings.compile else "no",
    )


@dataclass(frozen=True)
class Outlet:
    """Where a training's state and progress go.

    Attributes:
        checkpoint: where the state goes at the end of every epoch and on an interruption; ``None``: nowhere.
        best: where the weights of the best epoch go; ``None``: nowhere.
        facts: asked at the end of every epoch for what else its history entry holds.
        report: called with every new history entry and after every step with the steps done.
    """

    checkpoint: Path | None = None
    best: Path | None = None
    facts: Callable[[], dict[str, Any]] = dict
    report: Callable[[int, int, dict[str, Any] | None], None] = lambda step, total, entry: None


class Trainer:
    """One training.

    Args:
        model: on its device.
        optimizer: of this model.
        data: on the same device; every rank trains on its part.
        settings: of the run; its batch size is that of all ranks and all parts of a step together.
        method: attached to the optimizer, or ``None`` for a dense training.
        task: what is learnt, prepared; ``None``: single classes.
        ranks: the processes that train.
        outlet: where state and progress go.

    Attributes:
        step: optimizer steps tried so far.
        lead: steps before the schedule begins, which they do the beginning of, too.
        history: one entry per epoch: epoch, step, loss, accuracy, seconds, and the facts.
        seconds: wall time spent training.
        waited: of these, seconds spent waiting for the next batch.
        pace: images per second of late, and what takes the time: the loader or the device.
        stage: ``masked`` while the network has its dense shape, ``compact`` after it was shrunk.
        bad: steps that were left out, as their loss was not finite.
        best: the best epoch of the network as it is now, and its figure; ``None``: no epoch ended since it was cut, or
            since its mask was final.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        data: Data,
        settings: Settings,
        *,
        method: Sparse | None = None,
        task: Task | None = None,
        ranks: Ranks = ALONE,
        outlet: Outlet | None = None,
    ) -> None:
        self.task = task or Classification()
        self.settings, self.method, self.ranks, self.outlet = settings, method, ranks, outlet or Outlet()
        if method is not None:
            method.watch = LOOK  # the loop looks at every loss
        self.data = data if ranks.count == 1 else data.sharded(ranks.rank, ranks.count)
        self.device = next(model.parameters()).device
        self._engine = engine(settings, self.device)
        self._kept = dict(vars(self._engine.state))
        self._teacher: nn.Module | None = None
        self.per_epoch = data.steps_per_epoch(settings.batch_size)
        self.schedule_steps = self.per_epoch * settings.epochs
        self.lead = 0
        self.step = 0
        self.stage = "masked"
        self.extra: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.seconds = self.waited = 0.0
        self._begun = time.perf_counter()
        self.bad = 0
        self.pace, self._last = "", (0, 0.0, 0.0)
        self._row = torch.zeros((), dtype=torch.int64, device=self.device)
        self._bad = torch.zeros((), dtype=torch.int64, device=self.device)
        self._losses = torch.zeros(
            2, dtype=torch.float64, device=self.device
        )  # sum and number of finite ones
        self.average: AveragedModel | None = None
        self.best: tuple[int, float] | None = None
        self._take(model, optimizer)

    def _take(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Wraps the network and its optimizer anew."""
        self._own()
        self.model, self.optimizer = laid_out(model, self.settings), optimizer
        self._objective = self._engine.prepare_model(
            Objective(self.model, self.settings, self.task, self._teacher)
        )
        self._stepper = self._engine.prepare_optimizer(optimizer)
        self.average, self.best = None, None
        self._buffers = list(self.model.buffers())
        self._before = [buffer.clone() for buffer in self._buffers]

    def _own(self) -> None:
        """Makes this training's what all engines of a process share: another one may have made it its own."""
        shared = vars(self._engine.state)
        shared.clear()
        shared.update(self._kept)
        self._engine.gradient_accumulation_steps = self.settings.accumulate

    @property
    def total_steps(self) -> int:
        """Optimizer steps to the end."""
        return self.lead + self.schedule_steps

    @property
    def part(self) -> int:
        """Images that this rank takes at once: a step's, over the ranks and the parts of a step."""
        return max(1, self.settings.batch_size // (self.ranks.count * self.settings.accumulate))

    def learn_from(self, teacher: nn.Module) -> None:
        """Matches the answers of another network, too, with the weight ``settings.distill_weight``."""
        self._teacher = laid_out(teacher, self.settings).eval()
        self._engine.free_memory()
        self._take(self.model, self.optimizer)

    def replace(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Goes on with the compact network: wrapper, compiled code, loss scaler and average are its own."""
        self.stage = "compact"
        self._engine.free_memory()
        self._take(model, optimizer)

    # -- saving -----------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Returns all that ``load`` needs."""
        scaler = self._engine.scaler
        return {
            "settings": self.settings.digest,
            "stage": self.stage,
            "step": self.step,
            "seconds": self.seconds,
            "waited": self.waited,
            "loss": self._losses.tolist(),
            "history": self.history,
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "method": None if self.method is None else self.method.state_dict(),
            "random": self.ranks.every(random_state(self.device)),
            "threads": torch.get_num_threads(),
            "extra": self.extra,
            "bad": self.bad,
            "scaler": None if scaler is None else scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continues from a saved state; the model must already have the state's shape.

        Saved by another number of ranks, their random numbers are lost: the rest goes on as it was.
        """
        self.stage, self.step, self.seconds = state["stage"], state["step"], state["seconds"]
        self._losses.copy_(torch.tensor(state["loss"], dtype=torch.float64))
        self.history = list(state["history"])
        self.extra = dict(state["extra"])
        self.bad, self.waited = state.get("bad", 0), state.get("waited", 0.0)
        self._last = (self.step, self.seconds, self.waited)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.method is not None and self.stage == "compact":
            self.method.load_record(state["method"])
        elif self.method is not None:
            self.method.load_state_dict(state["method"])
        if state.get("average") is not None:
            self._average().load_state_dict(state["average"])
        if state.get("scaler") is not None and self._engine.scaler is not None:
            self._engine.scaler.load_state_dict(state["scaler"])
        if len(state["random"]) == self.ranks.count:
            set_random_state(state["random"][self.ranks.rank], self.device)
        if self.ranks.count == 1:
            torch.set_num_threads(state["threads"])
        self.best = None if state.get("best") is None else (state["best"][0], state["best"][1])
        if self.best is not None and self.best[0] * self.per_epoch == self.step:
            self._keep_best()  # this process may have died between the two files

    def save(self) -> None:
        """Writes the state, if there is a place for it; what is not finite does not replace a good state."""
        if self.outlet.checkpoint is None or not self._finite:
            return
        state = self.state()
        if self.ranks.first:
            save_state(self.outlet.checkpoint, state)

    @property
    def _finite(self) -> bool:
        """Whether all weights are, and all statistics."""
        return all_finite(v for v in self.model.state_dict().values() if v.is_floating_point())

    def _keep_best(self) -> None:
        """Writes the weights of an epoch that is the best so far."""
        if self.outlet.best is not None and self.ranks.first:
            save_weights(self.outlet.best, self.result.state_dict())

    # -- one step ---------------------------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """The learning rate of the next step; after ``lead`` steps the schedule begins anew."""
        step = self.step if self.step < self.lead else self.step - self.lead
        return learning_rate(step, self.settings, self.schedule_steps)

    def train_step(self, *parts: tuple[Any, Any]) -> Tensor:
        """Does one step of the recipe and returns the loss.

        A step whose loss is not finite is left out, and statistics are those before it. On a CPU nothing moves;
        elsewhere, where asking would wait for the device, its gradients count as zero.

        Args:
            parts: batches whose gradients add up to the step's.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self._remember()
        self._own()
        loss = torch.zeros((), device=self.device)
        for x, y in parts:
            with self._engine.accumulate(self._objective):
                share = self._objective(x, y)
                self._engine.backward(share)
            loss = share.detach() if len(parts) == 1 else loss + share.detach() / len(parts)
        if not self._sound(loss):
            return loss
        if self.settings.clip:
            self._engine.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self._stepper.step()
        if self.settings.ema and (self.method is None or self.method.finished):
            self._average().update_parameters(self.model)
        return loss

    @torch.no_grad()
    def _remember(self) -> None:
        """Keeps the statistics of norms: a forward pass whose loss is not finite spoils them for good."""
        if self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def _sound(self, loss: Tensor) -> bool:
        """Counts a loss that is not finite on any rank, and returns whether the step may be done."""
        if self.device.type == "cpu":
            bad = int(self.ranks.total(torch.tensor(int(not math.isfinite(float(loss))))))
            self._bad += min(1, bad)
            self._row.copy_((self._row + 1) * min(1, bad))
            if bad:
                for buffer, before in zip(self._buffers, self._before, strict=True):
                    buffer.copy_(before)
            return not bad
        flag = (~torch.isfinite(loss)).to(torch.int64)
        if self.ranks.count > 1:
            torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        for p in self.model.parameters():
            if p.grad is not None:
                p.grad.masked_fill_(flag > 0, 0.0)
        for buffer, before in zip(self._buffers, self._before, strict=True):
            torch.where(flag > 0, before, buffer, out=buffer)
        self._bad += flag
        self._row.copy_((self._row + 1) * flag)
        return True

    def _look(self) -> None:
        """Reads what was counted of losses that are not finite.

        Raises:
            PromiseError: too many in a row.
        """
        bad, row = torch.stack([self._bad, self._row]).tolist()  # one wait for the device
        self.bad += bad
        self._bad.zero_()
        if row >= MOST_BAD:
            saved = self.outlet.checkpoint
            where = shlex.quote(str(saved.parent)) if saved else ""
            again = f"`halpiee train --resume --out {where} --lr {self.settings.lr / 10:g}` goes on from it"
            raise PromiseError(
                f"the loss was not finite in {row} steps in a row, up to step {self.step}, and none of them was taken; "
                f"lower --lr (now {self.settings.lr:g}), lengthen --warmup, or limit gradients with --clip 1"
                + (
                    f"; the last good checkpoint, {saved}, is kept: {again}"
                    if saved and saved.is_file()
                    else ""
                )
            )

    def _average(self) -> AveragedModel:
        """The running average of the weights; it begins with what they are now."""
        if self.average is None:
            average = get_ema_multi_avg_fn(self.settings.ema)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.model, multi_avg_fn=average, use_buffers=True)
        return self.average

    @property
    def result(self) -> nn.Module:
        """The network that training has come to: the average of its weights where that was asked for."""
        if self.average is None or not self.settings.export_ema:
            return self.model
        averaged: nn.Module = self.average.module
        return averaged

    # -- all steps --------------------------------------------------------------------------------------------

    def run(self, until: Callable[[Trainer], bool] = lambda _: False) -> None:
        """Trains to the end, or until the condition holds before a step.

        Raises:
            KeyboardInterrupt: interrupted; the state has been saved.
            PromiseError: the loss is not finite in too many steps in a row.
            MissingError: another rank has ended.
        """
        self.model.train()
        self._begun = time.perf_counter()
        with _interruptible() as caught, self.ranks.heard():
            while self.step < self.total_steps:
                epoch, first = divmod(self.step, self.per_epoch)
                for parts in self._steps(epoch, first):
                    if until(self) or self.step >= self.total_steps:
                        self._look()
                        self._settle()
                        return
                    self._one(parts)
                    if self.step % self.per_epoch == 0:
                        self._end_epoch()
                        self.save()
                        if self.best is not None and self.best[0] * self.per_epoch == self.step:
                            self._keep_best()
                    if self._interrupted(caught):
                        self.save()
                        raise KeyboardInterrupt
            self._settle()

    def _steps(self, epoch: int, first: int) -> Iterator[Sequence[tuple[Any, Any]]]:
        """Yields the batches of every step that is left of an epoch."""
        s = self.settings
        batches = iter(self.data.batches(epoch, self.part, seed=s.seed, start=first * s.accumulate))
        for _ in range(first, self.per_epoch):
            asked = time.perf_counter()
            parts = list(itertools.islice(batches, s.accumulate))
            self.waited += time.perf_counter() - asked
            yield parts

    def _one(self, parts: Sequence[tuple[Any, Any]]) -> None:
        """Does a step, and keeps count."""
        loss = self.train_step(*parts)
        self.step += 1
        finite = torch.isfinite(loss).double()
        self._losses += torch.stack(
            [torch.nan_to_num(loss.double(), posinf=0.0, neginf=0.0) * finite, finite]
        )
        if self.device.type == "cpu" or self.step % LOOK == 0 or self.step % self.per_epoch == 0:
            self._look()
        now = time.perf_counter()
        self.seconds += now - self._begun
        self._begun = now
        self._measure_pace()
        self.outlet.report(self.step, self.total_steps, None)

    def _interrupted(self, caught: Sequence[int]) -> bool:
        """Whether to save and end: the same answer on every rank."""
        if self.ranks.count == 1:
            return bool(caught)
        if self.device.type != "cpu" and self.step % ASK:
            return False
        return bool(self.ranks.total(torch.tensor(len(caught))))

    def _images_per_s(self) -> float:
        """Returns the images of an epoch over the seconds that training them took."""
        before = self.history[-1] if self.history else {"step": 0, "seconds": 0.0}
        spent = self.seconds - before["seconds"]
        return (self.step - before["step"]) * self.settings.batch_size / max(spent, 1e-9)

    @property
    def _phase(self) -> str:
        """What the method does: ``dense``, ``masked``, ``explore`` or ``compact``."""
        if self.stage == "compact" or self.method is None:
            return "compact" if self.stage == "compact" else "dense"
        return "explore" if self.method.memory.everything and not self.method.finished else "masked"

    def _measure_pace(self) -> None:
        """Looks at the clock about once in two seconds."""
        step, seconds, waited = self._last
        spent = self.seconds - seconds
        if spent < PACE:
            return
        images = (self.step - step) * self.settings.batch_size
        limit = "loader" if self.waited - waited > spent / 2 else "device"
        self.pace = f"{images / spent:,.0f} images/s, limited by the {limit}"
        self._last = (self.step, self.seconds, self.waited)

    def _settle(self) -> None:
        """Gives every rank the statistics of rank 0, as DDP does at each step's beginning."""
        if self.ranks.count > 1:
            averaged = () if self.average is None else self.average.buffers()
            for buffer in itertools.chain(self.model.buffers(), averaged):
                torch.distributed.broadcast(buffer, src=0)

    def _end_epoch(self) -> None:
        """Evaluates and appends to the history; evaluation time does not count as training."""
        self._settle()
        with self.method.evaluating() if self.method is not None else nullcontext():
            figures = judged(self.model, self.data, self.task, ranks=self.ranks)
        total, number = self.ranks.total(self._losses.cpu().clone()).tolist()
        entry = {
            "epoch": self.step // self.per_epoch,
            "step": self.step,
            "loss": total / max(1.0, number),
            **figures,
            "accuracy": figures[self.task.figure],
            "seconds": self.seconds,
            "lr": self.optimizer.param_groups[0]["lr"],
            "bad_steps": self.bad,
            "images_per_s": self._images_per_s(),
            "waiting": self.waited / max(self.seconds, 1e-9),
            "phase": self._phase,
            **self.outlet.facts(),
        }
        if self.average is not None:
            entry["accuracy_ema"], _ = evaluate(self.average.module, self.data, self.task, ranks=self.ranks)
        self._losses.zero_()
        self.history.append(entry)
        self._judge(entry)
        self.outlet.report(self.step, self.total_steps, entry)
        self._begun = time.perf_counter()

    def _judge(self, entry: Mapping[str, Any]) -> None:
        """Notes an epoch that is better than those before it, of the same network under its final mask."""
        if self.method is not None and self.stage == "masked" and not self.method.finished:
            return
        averaged = self.average is not None and self.settings.export_ema
        figure = float(entry["accuracy_ema" if averaged else "accuracy"])
        if self.best is None or figure > self.best[1]:
            self.best = (int(entry["epoch"]), figure)


def random_state(device: torch.device) -> list[Tensor]:
    """Returns where the random numbers of this process stand: those of the CPU, then those of the device."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(state: Sequence[Tensor], device: torch.device) -> None:
    """Goes on with random numbers from where they stood."""
    torch.set_rng_state(state[0].cpu())
    if device.type == "cuda" and len(state) > 1:
        torch.cuda.set_rng_state(state[1].cpu(), device)
