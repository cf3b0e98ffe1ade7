"""The stage that trains the dense network, and what it shares with those that train to a budget or a sparsity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from halpiee.methods.allocator import LatencyPool
from halpiee.methods.method import Method
from halpiee.sparsity.granularity import Channels
from halpiee.structure.shrink import shrink
from halpiee.structure.size import macs
from halpiee.training import record
from halpiee.training.checkpoint import load_state, save_json, save_weights
from halpiee.training.loop import Trainer, evaluate, make_optimizer, pick_threads
from halpiee.training.network import initial, network
from halpiee.training.records import read_result, read_threads

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["active_macs", "choose_threads", "resumed", "train_dense", "trainer_of"]


def train_dense(run: Run, *, keep_step: int | None = None) -> dict[str, Any]:
    """Trains the dense network, or scores the given weights, and returns its results.

    Args:
        run: whose folder it goes to.
        keep_step: step whose weights are kept in the folder as well.
    """
    path, weights = run.folder / "dense.json", run.folder / "dense.safetensors"
    if path.is_file():
        return read_result(path)
    model = initial(run.settings, run.data.n_classes).to(run.device)
    if run.settings.weights:
        history: list[dict[str, Any]] = []
        spent = 0.0
    else:
        trainer = trainer_of(run, model, "dense", make_optimizer(model, run.settings))
        choose_threads(run)
        torch.manual_seed(run.settings.seed)
        state = run.folder / "dense.state"
        if state.is_file():
            trainer.load(load_state(state, run.device))
        kept = run.folder / "dense-step.safetensors"
        if keep_step is not None and not kept.is_file():
            trainer.run(until=lambda t: t.step >= keep_step)
            save_weights(kept, model.state_dict())
        trainer.run()
        history, spent = trainer.history, trainer.seconds
    top1, top5 = evaluate(model, run.data)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": history,
        "seconds": spent,
        "params": sum(p.numel() for p in model.parameters()),
    }
    save_weights(weights, model.state_dict())
    save_json(path, result)
    (run.folder / "dense.state").unlink(missing_ok=True)
    return result


def trainer_of(
    run: Run,
    model: nn.Module,
    label: str,
    optimizer: Optimizer,
    method: Method | None = None,
    *,
    lead: int = 0,
) -> Trainer:
    """Returns a trainer whose state goes into the run's folder."""
    trainer = Trainer(
        model,
        optimizer,
        run.data,
        run.settings,
        checkpoint=run.folder / f"{label}.state",
        method=method,
        facts=lambda: _facts(run, trainer),
        lead=lead,
        report=lambda step, total, entry: run.talk.training(label, step, total, entry),
    )
    return trainer


def _facts(run: Run, trainer: Trainer) -> dict[str, Any]:
    """Returns the predicted latency of the active units, where it is one, their share, and the FLOPs so far.

    FLOPs are a multiple of those of as many dense steps, by both accountings.
    """
    method = trainer.method
    if not isinstance(method, Method) or not method.log:
        return {"latency_us": None}
    timed = isinstance(method.pool, LatencyPool) and bool(method.reports)
    keep = trainer.extra.get("keep")  # of the compact network that trains on
    done = sum(steps for steps, _, _ in method.log) if keep is None else trainer.step
    compact = None if keep is None else run.macs({name: int(mask.sum()) for name, mask in keep.items()})
    return {
        "latency_us": method.reports[-1].used if timed else None,
        "density": method.alive.density,
        "train_flops": record.train_flops(
            method.log,
            active_macs(run, method),
            done,
            compact_macs=compact,
            paper_charges_gradient=method.paper_charges_gradient,
        ),
    }


def active_macs(run: Run, method: Method) -> Callable[[Mapping[str, int]], float]:
    """Returns what turns active units per name into the multiply-accumulates of one image."""
    if isinstance(method.units, Channels):
        return run.macs
    layers = macs(run.structure)
    sizes = {name: math.prod(shape) for name, shape in method.units.sizes.items()}
    return lambda counts: record.effective_macs(layers, {name: k / sizes[name] for name, k in counts.items()})


def choose_threads(run: Run) -> None:
    """Picks the number of training threads by timing, on a copy so that nothing of the run moves."""
    if run.device.type != "cpu":
        return
    path = run.folder / "threads.json"
    if path.is_file():
        torch.set_num_threads(read_threads(path))
        return
    model = network(run.settings, run.data.n_classes).to(run.device)
    rehearsal = Trainer(model, make_optimizer(model, run.settings), run.data, run.settings)
    x, y = next(run.data.batches(0, run.settings.batch_size, seed=run.settings.seed))
    threads = pick_threads(lambda: rehearsal.train_step(x, y))
    run.talk.note(f"training with {threads} thread{'s' if threads > 1 else ''}")
    save_json(path, threads)


def resumed(
    run: Run,
    model: nn.Module,
    optimizer: Optimizer,
    method: Method,
    *,
    label: str = "pruned",
    first: int = 0,
    lead: int = 0,
) -> Trainer:
    """Returns the trainer of the pruned network, where it was saved: masked, or cut already.

    Args:
        run: whose folder it is.
        model: as it begins.
        optimizer: of the model.
        method: attached to it.
        label: of the training, and of its files.
        first: step of the schedule that it begins with.
        lead: steps before the schedule begins anew.
    """
    trainer = trainer_of(run, model, label, optimizer, method, lead=lead)
    trainer.step = first
    choose_threads(run)
    torch.manual_seed(run.settings.seed)
    saved = run.folder / f"{label}.state"
    state = load_state(saved, run.device) if saved.is_file() else None
    if state is not None and state["stage"] == "compact":
        pair = shrink(model, run.structure, state["extra"]["keep"], optimizer)
        assert isinstance(pair, tuple)
        trainer.replace(*pair)
        method.detach()
    if state is not None:
        trainer.load(state)
    return trainer
