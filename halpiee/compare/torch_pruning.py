"""Torch-Pruning as a contestant: global group Taylor scores, the ratio bisected until the measured latency fits.

The network is pruned in one step on the gradients of a few batches, as the library's own examples do, and trained on
with the recipe of the comparison. Needs ``pip install torch-pruning``.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from halpiee.deploy.onnx import export_onnx
from halpiee.errors import BudgetError, MissingError
from halpiee.structure.groups import macs
from halpiee.structure.trace import trace
from halpiee.training.build import make_optimizer
from halpiee.training.checkpoint import fill
from halpiee.training.config import Settings
from halpiee.training.job import Run, Talk
from halpiee.training.loop import Outlet, Trainer, evaluate

BLOCKS = (16, 8, 1)
"""What is left of a group is a multiple; the next is tried where none fits, as the library keeps groups whole."""

STEPS = 8
"""Halvings of the range of ratios: to 1/256 of all channels, finer than a step of most processors."""


def pruned_and_tuned(run: Run, weights: Path, settings: Settings, folder: Path, talk: Talk) -> dict[str, Any]:
    """Prunes the dense network of ``weights`` to a share of its latency, trains it on, exports and times it.

    Returns:
        The part of a run's report that a row needs; latencies are shares of the dense one.

    Raises:
        MissingError: the library is not installed.
        BudgetError: nothing that it prunes is that fast.
    """
    budget = float(settings.budget or 1)
    dense = run.build()
    fill(dense, weights)
    ready = run.target.ready(copy.deepcopy(dense).eval(), run.example)
    share = partial(share_of, run, ready, rounds=settings.rounds)
    data = run.data
    batches = list(data.few(max(1, 256 // data.n_classes), seed=settings.seed))
    for block in BLOCKS:
        with suppress(BudgetError) if block > 1 else nullcontext():
            model = bisected(partial(pruned, dense, run.example, batches, block), share, budget, talk)
            break
    trainer = Trainer(
        model.to(run.device),
        make_optimizer(model, settings),
        data,
        settings,
        outlet=Outlet(
            report=lambda step, total, entry: talk.training(
                "torch-pruning", step, total, entry and {**entry, "figure": run.task.title}, ""
            )
        ),
    )
    trainer.run()
    top1, _ = evaluate(model, data)
    model = model.cpu().eval()
    export_onnx(model, run.example, folder / "pruned.onnx", overwrite=True)
    mine = sum(macs(trace(model, run.example), {}).values())
    steps = trainer.total_steps * settings.batch_size
    return {
        "accuracy_pruned": top1,
        "dense_us": 1.0,
        "speedup": 1.0 / share(model),
        "macs_pruned": mine,
        "macs_dense": run.macs({}),
        "params_pruned": sum(p.numel() for p in model.parameters()),
        "seconds_training": {"pruned": trainer.seconds},
        "train_macs": {"strict": 3.0 * mine * steps},
    }


def share_of(run: Run, dense: Any, model: nn.Module, *, rounds: int) -> float:
    """Returns the latency of a network over that of the dense one, which is ready, timed in turns."""
    networks = {"dense": dense, "pruned": run.target.ready(model.eval(), run.example)}
    return 1.0 / run.target.compare(networks, run.example, rounds=rounds).ratio("dense", "pruned").median


def bisected(make: Any, share: Any, budget: float, talk: Talk) -> nn.Module:
    """Returns the network whose measured share of the dense latency is the largest within the budget.

    ``make`` is a ratio of channels to remove → network, ``share`` a network → measured latency over that of the dense
    one. Latency does not fall with every channel, so that the last ratio that fits need not be the best.

    Raises:
        BudgetError: none of the ratios that were tried fits.
    """
    low, high = 0.0, 1.0
    best: nn.Module | None = None
    least, most = 1.0, 0.0
    for _ in range(STEPS):
        ratio = (low + high) / 2
        try:
            model = make(ratio)
            found = share(model)
        except (RuntimeError, ValueError, ZeroDivisionError) as error:  # it pruned a layer away
            talk.note(f"ratio {ratio:.3f}: {str(error)[:120]}")
            high = ratio
            continue
        talk.note(f"ratio {ratio:.3f}: {found:.3f} of the dense latency, wanted {budget:.3f}")
        least = min(least, found)
        if found <= budget:
            high = ratio
            if most <= found:
                best, most = model, found
        else:
            low = ratio
    if best is None:
        raise BudgetError(
            f"a network of {budget:.3g} times the dense latency was asked of torch-pruning; the fastest that it made "
            f"takes {least:.3g}; ask for at least {least:.3g}",
            minimum=least,
        )
    return best


def pruned(dense: nn.Module, example: tuple[Any, ...], batches: Any, block: int, ratio: float) -> nn.Module:
    """Returns the network that Torch-Pruning makes of a copy of the dense one."""
    try:
        torch_pruning: Any = import_module("torch_pruning")
    except ImportError as error:
        raise MissingError(
            "the contestant torch-pruning needs a package: pip install torch-pruning"
        ) from error
    model = copy.deepcopy(dense).train(False)
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    pruner = torch_pruning.pruner.MetaPruner(
        model,
        example,
        importance=torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=True,
        pruning_ratio=ratio,
        round_to=block,
        ignored_layers=last,
    )
    model.zero_grad()
    for x, y in batches:
        functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        pruner.step()
    model.zero_grad(set_to_none=True)
    return model
