"""The stage that trains to a latency: IEE or HALP, the closed loop, the cut, the rest of training at compact size."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from halpiee.deploy.calibrate import Candidate, Round, close_loop
from halpiee.methods.allocator import LatencyPool
from halpiee.methods.method import Method
from halpiee.selection.cost import LatencyCost
from halpiee.structure.proof import verify
from halpiee.training import record
from halpiee.training.attach import method_of
from halpiee.training.baseline import resumed
from halpiee.training.checkpoint import save_json, save_weights
from halpiee.training.limits import few
from halpiee.training.loop import Trainer, evaluate, make_optimizer
from halpiee.training.network import initial
from halpiee.training.record import line_values
from halpiee.training.records import read_result
from halpiee.training.selected import Selected, save_plan

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["close", "train_to_budget"]


def train_to_budget(run: Run, cost: LatencyCost) -> dict[str, Any]:
    """Trains to the budget, cuts, trains on, and returns the results; resumes where its state was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    model = initial(s, run.data.n_classes).to(run.device)
    optimizer = make_optimizer(model, s)
    budget_us = run.budget_us(cost)
    make = method_of(
        s,
        model,
        run.total_steps,
        structure=lambda: run.structure,
        n_classes=run.data.n_classes,
        examples=lambda: few(run.data, 10),
        shape=run.data.shape,
        limit=(cost, budget_us),
        protect=run.protected,
    )
    method = make(model, optimizer)
    trainer = resumed(run, model, optimizer, method)
    if trainer.stage == "masked":
        trainer.run(until=lambda t: method.finished)
        fitted = cost.calibration
        cost, rounds = close(run, method.model, cost, _Candidate(method), budget_us)
        compact, slim = method.shrink()
        verify(method.model, run.structure, method.keep, run.example, compact=compact, sizes=(1, 2, 5))
        trainer.replace(compact, slim)
        predicted = cost.total_us(method.alive.counts)
        trainer.extra = {
            "keep": dict(method.alive),
            "closed_loop": [asdict(r) for r in rounds],
            "predicted_us": predicted,
            "next_step_us": method.reports[-1].next_step,
            "calibration": line_values(fitted) if fitted else None,
            "gap": method.reports[-1].gap,
            "dense_us": cost.dense_us,
            "budget_us": budget_us,
        }
        trainer.save()
    trainer.run()
    return _finish(run, trainer, method, path)


def close(
    run: Run, model: nn.Module, cost: LatencyCost, candidate: Candidate, budget_us: float
) -> tuple[LatencyCost, list[Round]]:
    """Measures the candidate beside the dense network and solves again until it meets the budget."""
    run.talk.note("measuring the candidate beside the dense network")
    s = run.settings
    cost, turns = close_loop(
        model,
        cost,
        run.example,
        candidate,
        budget_us=budget_us,
        target=run.target,
        rounds=s.rounds,
    )
    for turn in turns:
        run.talk.note(
            f"round {turn.round}: predicted {turn.predicted_us:.0f} µs, measured {turn.measured_us:.0f} µs, "
            f"wanted {turn.lower_us:.0f} … {turn.upper_us:.0f} µs"
        )
    return cost, turns


def _finish(run: Run, trainer: Trainer, method: Method, path: Path) -> dict[str, Any]:
    """Writes plan, weights and results."""
    model = trainer.model
    top1, top5 = evaluate(model, run.data)
    counts = {name: int(mask.sum()) for name, mask in trainer.extra["keep"].items()}
    extra = {key: value for key, value in trainer.extra.items() if key != "keep"}
    result = {
        "accuracy": top1,
        "top5": top5,
        "history": trainer.history,
        "seconds": trainer.seconds,
        "params": sum(p.numel() for p in model.parameters()),
        "counts": counts,
        "events": record.events(method.reports),
        "train_flops_ratio": record.train_flops(
            method.log, run.macs, trainer.total_steps, compact_macs=run.macs(counts)
        ),
        **extra,
    }
    chosen = Selected(trainer.extra["keep"], trainer.extra["predicted_us"], trainer.extra["gap"])
    save_plan(run, chosen, trainer.extra["budget_us"])
    save_weights(run.folder / "pruned.safetensors", model.state_dict())
    save_json(path, result)
    (run.folder / "pruned.state").unlink(missing_ok=True)
    return result


class _Candidate:
    """The method's selection as the closed loop sees it."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._turns = [(method.alive, method.reports[-1])]

    @property
    def counts(self) -> dict[str, int]:
        return self._method.alive.counts

    @property
    def keep(self) -> dict[str, torch.Tensor]:
        return self._method.keep

    @property
    def next_step_us(self) -> float:
        return self._method.reports[-1].next_step

    def solve_again(self, cost: LatencyCost) -> None:
        assert isinstance(self._method.pool, LatencyPool)
        self._method.choose_again(self._method.pool.with_cost(cost))
        self._turns.append((self._method.alive, self._method.reports[-1]))

    def go_back(self, turn: int) -> None:
        self._method.adopt(*self._turns[turn])
