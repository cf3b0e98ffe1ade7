"""The stage that meets a latency without training: cut, measure, solve every layer again from unlabelled images."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from halpiee.reconstruction.repair import RepairedLayer
from halpiee.reconstruction.rounds import InRounds, Rounds
from halpiee.selection.cost import LatencyCost
from halpiee.structure.proof import verify
from halpiee.training.checkpoint import save_json, save_weights
from halpiee.training.loop import evaluate
from halpiee.training.pruning import close
from halpiee.training.record import line_values
from halpiee.training.records import read_result
from halpiee.training.selected import save_plan

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["repair_to_budget"]


def repair_to_budget(run: Run, cost: LatencyCost) -> dict[str, Any]:
    """Cuts the given network to the budget, repairs it, and returns the results."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    begun = time.perf_counter()
    budget_us, fitted = run.budget_us(cost), cost.calibration
    model = run.dense()
    images, scored = _images(run)
    cut = Rounds(
        run.dense().to(run.device),
        run.structure,
        cost,
        budget_us,
        images=images,
        scored=scored,
        how=_how(run),
        note=run.talk.note,
    )
    cost, turns = close(run, model, cost, cut, budget_us)
    verify(model, run.structure, cut.keep, run.example, sizes=(1, 2, 5))
    layers: list[RepairedLayer] = []
    compact = cut.repaired(layers.append)
    for layer in layers:
        if layer.skipped is not None:
            run.talk.note(f"{layer.name} keeps its cut weights: {layer.skipped}")
    top1, top5 = evaluate(compact, run.data)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": [],
        "seconds": time.perf_counter() - begun,
        "params": sum(p.numel() for p in compact.parameters()),
        "counts": cut.counts,
        "events": [],
        "train_flops_ratio": {"paper": 0.0, "strict": 0.0},
        "repaired": [_values(layer) for layer in layers],
        "closed_loop": [asdict(turn) for turn in turns],
        "predicted_us": cost.total_us(cut.counts),
        "next_step_us": cut.next_step_us,
        "calibration": line_values(fitted) if fitted else None,
        "gap": cut.selection.gap,
        "dense_us": cost.dense_us,
        "budget_us": budget_us,
    }
    save_plan(run, cut.selection)
    save_weights(run.folder / "pruned.safetensors", compact.state_dict())
    save_json(path, result)
    return result


def _how(run: Run) -> InRounds:
    m = run.settings.masks
    given = {"rounds": m.rounds, "criterion": m.criterion}
    chosen: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return InRounds(**chosen, protect=run.protected, seed=run.settings.seed)


def _images(run: Run) -> tuple[Tensor, Tensor]:
    """Returns training images to solve from, and twice as many others to score on; the same where there are none."""
    x, n = run.data.train_x, run.settings.images
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(run.settings.seed)).to(x.device)
    solved, scored = (run.data.normalised(x[part]) for part in (order[:n], order[n : 3 * n]))
    return solved, scored if len(scored) else solved


def _values(layer: RepairedLayer) -> dict[str, Any]:
    """Returns what became of a layer as JSON values: no ridge where the cut weights were best, no errors if skipped."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in asdict(layer).items()
    }
