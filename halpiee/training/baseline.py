"""The stage that trains the dense network, and what it shares with those that train to a budget or a sparsity."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from halpiee.methods.method import Method
from halpiee.methods.pools import LatencyPool
from halpiee.structure.shrink import shrink
from halpiee.training.checkpoint import load_state, save_json, save_weights
from halpiee.training.loop import Trainer, evaluate, make_optimizer, pick_threads
from halpiee.training.network import initial, network

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["choose_threads", "resumed", "train_dense", "trainer_of"]


def train_dense(run: Run) -> dict[str, Any]:
    """Trains the dense network, or scores the given weights, and returns its results."""
    path, weights = run.folder / "dense.json", run.folder / "dense.safetensors"
    if path.is_file():
        return dict(json.loads(path.read_text()))
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
    run: Run, model: nn.Module, label: str, optimizer: Optimizer, method: Method | None = None
) -> Trainer:
    """Returns a trainer whose state goes into the run's folder."""
    return Trainer(
        model,
        optimizer,
        run.data,
        run.settings,
        checkpoint=run.folder / f"{label}.state",
        method=method,
        latency_us=lambda: _latency_us(method),
        report=lambda step, total, entry: run.talk.training(label, step, total, entry),
    )


def _latency_us(method: Method | None) -> float | None:
    """Returns the predicted latency of the active units, where it is one."""
    if method is None or not method.reports or not isinstance(method.pool, LatencyPool):
        return None
    return method.reports[-1].used


def choose_threads(run: Run) -> None:
    """Picks the number of training threads by timing, on a copy so that nothing of the run moves."""
    if run.device.type != "cpu":
        return
    path = run.folder / "threads.json"
    if path.is_file():
        torch.set_num_threads(int(json.loads(path.read_text())))
        return
    model = network(run.settings, run.data.n_classes).to(run.device)
    rehearsal = Trainer(model, make_optimizer(model, run.settings), run.data, run.settings)
    x, y = next(run.data.batches(0, run.settings.batch_size, seed=run.settings.seed))
    threads = pick_threads(lambda: rehearsal.train_step(x, y))
    run.talk.note(f"training with {threads} thread{'s' if threads > 1 else ''}")
    save_json(path, threads)


def resumed(run: Run, model: nn.Module, optimizer: Optimizer, method: Method) -> Trainer:
    """Returns the trainer of the pruned network, where it was saved: masked, or cut already."""
    trainer = trainer_of(run, model, "pruned", optimizer, method)
    choose_threads(run)
    torch.manual_seed(run.settings.seed)
    saved = run.folder / "pruned.state"
    state = load_state(saved, run.device) if saved.is_file() else None
    if state is not None and state["stage"] == "compact":
        pair = shrink(model, run.structure, state["extra"]["keep"], optimizer)
        assert isinstance(pair, tuple)
        trainer.replace(*pair)
        method.detach()
    if state is not None:
        trainer.load(state)
    return trainer
