"""The stage that trains to a sparsity: masks of single weights to the end, or filters that are cut out half way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from halpiee.methods.method import Method
from halpiee.methods.small_dense import keep_first, small_dense, uniform_counts
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity.filters import Filters
from halpiee.structure.proof import verify
from halpiee.structure.size import macs
from halpiee.training import record
from halpiee.training.attach import draw_again, method_of
from halpiee.training.baseline import active_macs, choose_threads, resumed, trainer_of
from halpiee.training.checkpoint import load_state, save_json, save_weights
from halpiee.training.limits import densities, few
from halpiee.training.loop import Trainer, evaluate, make_optimizer
from halpiee.training.network import initial
from halpiee.training.records import read_result
from halpiee.training.selected import Selected, save_plan

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["finish_masked", "train_masked", "train_small"]


def train_masked(run: Run) -> dict[str, Any]:
    """Trains to a sparsity and returns the results; resumes where its state was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    model = initial(s, run.data.n_classes).to(run.device)
    if s.masks.mask is not None and s.masks.ablation == "reinit":
        draw_again(s, run.data.n_classes, model, s.seed)
    optimizer = make_optimizer(model, s)
    make = method_of(
        s,
        model,
        run.total_steps,
        structure=lambda: run.structure,
        n_classes=run.data.n_classes,
        examples=lambda: few(run.data, 10),
        shape=run.data.shape,
    )
    method = make(model, optimizer)
    trainer = resumed(run, model, optimizer, method, lead=s.masks.at if s.masks.restart else 0)
    if isinstance(method.units, Filters) and trainer.stage == "masked":
        trainer.run(until=lambda t: method.finished)
        _cut(run, trainer, method)
    trainer.run()
    return finish_masked(run, trainer, method)


def _cut(run: Run, trainer: Trainer, method: Method) -> None:
    """Cuts the removed filters out; what trains on is the compact network."""
    kept = {path: int(mask.sum()) for path, mask in method.alive.items()}
    compact, optimizer = method.shrink()
    verify(method.model, run.structure, method.keep, run.example, compact=compact, sizes=(1, 2, 5))
    trainer.replace(compact, optimizer)
    trainer.extra = {"keep": method.keep, "filters": kept, "units": _units(method)}
    trainer.save()


def _units(method: Method) -> dict[str, Any]:
    """Returns how many units are kept, of how many, and how many were asked for."""
    total = sum(math.prod(shape) for shape in method.units.sizes.values())
    return {
        "kept": sum(method.alive.counts.values()),
        "asked": int(method.pool.total),
        "total": total,
        "densities": densities(method),
        "left_out": dict(method.units.left_out),
    }


def finish_masked(
    run: Run, trainer: Trainer, method: Method, before: Sequence[tuple[int, str, dict[str, int]]] = ()
) -> dict[str, Any]:
    """Writes weights, masks, plan and results.

    Args:
        run: whose folder it goes to.
        trainer: at its end.
        method: what it trained by.
        before: log of what was trained before this training: the dense network that is pruned after training.
    """
    model = trainer.model
    top1, top5 = evaluate(model, run.data)
    counts: dict[str, int] = {}
    keep = trainer.extra.get("keep")
    if keep is not None:
        counts = {name: int(mask.sum()) for name, mask in keep.items()}
        save_plan(run, Selected(keep))
    units = trainer.extra.get("units") or _units(method)
    layers = macs(run.structure)
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": sum(p.numel() for p in model.parameters()),
        "counts": counts,
        "sparsity": units,
        "effective_macs": None if keep is not None else record.effective_macs(layers, units["densities"]),
        "events": record.plain_events(method.reports),
        "train_flops_ratio": record.train_flops(
            [*before, *method.log],
            active_macs(run, method),
            trainer.schedule_steps,
            compact_macs=run.macs(counts),
            paper_charges_gradient=method.paper_charges_gradient,
        ),
    }
    save_weights(run.folder / "pruned.safetensors", model.state_dict())
    if keep is None:
        save_weights(run.folder / "mask.safetensors", method.alive)
    save_json(run.folder / "pruned.json", result)
    (run.folder / "pruned.state").unlink(missing_ok=True)
    return result


def train_small(run: Run, cost: LatencyCost | None) -> dict[str, Any]:
    """Trains the small dense network from the start, at equal parameters or within the latency."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    limit: dict[str, Any] = {"params": 1 - (s.masks.sparsity or 0.0)}
    if cost is not None:
        limit = {"latency_us": run.budget_us(cost), "cost": cost, "protect": run.protected}
    counts = uniform_counts(run.structure, **limit)
    keep = keep_first(run.structure, counts)
    model = small_dense(initial(s, run.data.n_classes), run.structure, **limit).to(run.device)
    trainer = trainer_of(run, model, "pruned", make_optimizer(model, s))
    choose_threads(run)
    torch.manual_seed(s.seed)
    saved = run.folder / "pruned.state"
    if saved.is_file():
        trainer.load(load_state(saved, run.device))
    trainer.run()
    top1, top5 = evaluate(model, run.data)
    predicted = None if cost is None else cost.total_us(counts)
    params = sum(p.numel() for p in model.parameters())
    whole = sum(p.numel() for p in run.build().parameters())
    save_plan(run, Selected(keep, math.nan if predicted is None else predicted))
    ratio = run.macs(counts) / run.macs({})
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": params,
        "counts": counts,
        "events": [],
        "train_flops_ratio": {"paper": ratio, "strict": ratio},
        "sparsity": None
        if cost is not None
        else {"kept": params, "asked": int(limit["params"] * whole), "total": whole, "densities": {}},
        "predicted_us": predicted,
        "dense_us": None if cost is None else cost.dense_us,
        "next_step_us": None if cost is None else cost.next_step_us(counts, cost.candidates),
    }
    save_weights(run.folder / "pruned.safetensors", model.state_dict())
    save_json(path, result)
    saved.unlink(missing_ok=True)
    return result
