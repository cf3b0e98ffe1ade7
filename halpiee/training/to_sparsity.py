"""Stages that train a network to a sparsity: under masks of weights, by filters, or rewound."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from torch import nn

from halpiee.methods.dynamic import Static
from halpiee.methods.method import Method
from halpiee.methods.one_shot import Pruning
from halpiee.methods.registry import METHODS
from halpiee.methods.rewind import REINIT, Retrain, rewinding
from halpiee.saliency.registry import named
from halpiee.sparsity.filters import Filters
from halpiee.sparsity.mask import Mask
from halpiee.structure.groups import macs
from halpiee.structure.plan import Selection
from halpiee.training import record
from halpiee.training.build import (
    budget_of,
    densities,
    draw_again,
    initial,
    make_optimizer,
    method_of,
    weights_of,
)
from halpiee.training.config import Settings
from halpiee.training.job import Run, save_plan
from halpiee.training.record import read_log
from halpiee.training.stage import Training, begun, cut, examples, material


def retrain_of(settings: Settings, total_steps: int) -> Retrain | None:
    """Returns which weights are trained again from where on the schedule; ``None`` for methods that do not."""
    m, method = settings.masks, METHODS[settings.method]
    if method.kind != "rewind":
        return None
    if m.ablation == "reinit":
        return REINIT
    typed = m.rewind if m.rewind is not None else max(1, round(PAPERS_STEP * total_steps))
    weights = method.load().preset.get("weights", typed)
    return Retrain(weights, "step" if isinstance(weights, int) and not m.restart else "start")


PLAN, MASK = "plan.json", "mask.safetensors"
"""What a run was pruned by: channels, or single weights."""

PAPERS_STEP = 1000 / 62_400
"""Step 1000 of 160 epochs of CIFAR-10 in batches of 128 (arXiv 2009.08576, table A.3), as a share."""


class Masked(Training):
    """Trains to a sparsity: masks of single weights to the end, or filters that are cut out half way."""

    method: Method
    before: record.Trained = ()
    """Log of what was trained before this training: the dense network that is pruned after training."""

    def start(self, run: Run) -> None:
        """Builds network and method; goes on where they were saved."""
        s = run.settings
        model = initial(s, run.data.n_classes).to(run.device)
        if s.masks.mask is not None and s.masks.ablation == "reinit":
            draw_again(s, run.data.n_classes, model, s.seed)
        optimizer = make_optimizer(model, s)
        self.method = method_of(s, model, run.total_steps, material(run))(model, optimizer)
        lead = s.masks.at if s.masks.restart else 0
        self.trainer = begun(run, model, optimizer, self.name, self.method, lead=lead)

    def run(self, run: Run) -> None:
        """Trains; filters are cut out as soon as their choice is final."""
        if isinstance(self.method.units, Filters) and self.trainer.stage == "masked":
            self.trainer.run(until=lambda _: self.method.finished)
            filters = {path: int(mask.sum()) for path, mask in self.method.alive.items()}
            cut(run, self.trainer, self.method)
            self.trainer.extra = {"keep": self.method.keep, "filters": filters, "units": self._units()}
            self.trainer.save()
        self.trainer.run()

    def _units(self) -> dict[str, Any]:
        """Returns how many units are kept, of how many, and how many were asked for."""
        method = self.method
        return {
            "kept": sum(method.alive.counts.values()),
            "asked": int(method.pool.total),
            "total": sum(math.prod(shape) for shape in method.units.sizes.values()),
            "densities": densities(method),
            "left_out": dict(method.units.left_out),
        }

    def facts(self, run: Run) -> dict[str, Any]:
        """Returns counts, the units that are kept, events and training FLOPs."""
        method, keep = self.method, self.trainer.extra.get("keep")
        counts = {} if keep is None else {name: int(mask.sum()) for name, mask in keep.items()}
        units = self.trainer.extra.get("units") or self._units()
        effective = (
            None if keep is not None else record.effective_macs(macs(run.structure), units["densities"])
        )
        return {
            "counts": counts,
            "sparsity": units,
            "effective_macs": effective,
            "events": record.events(method.reports, latency=False),
            "train_flops_ratio": record.train_flops(
                [*self.before, *method.log],
                run.active_macs(method),
                self.trainer.schedule_steps,
                compact_macs=run.macs(counts),
                paper_charges_gradient=method.paper_charges_gradient,
            ),
        }

    def finish(self, run: Run) -> None:
        """Writes the plan of the cut network, or the mask, beside the weights."""
        keep = self.trainer.extra.get("keep")
        if keep is not None:
            save_plan(run, Selection(keep))
        else:
            run.keep(MASK, self.method.alive)
        super().finish(run)


class Rewound(Masked):
    """Prunes the trained dense network and trains it again, in rounds.

    Learning-rate rewinding keeps the final weights and begins the schedule anew; lottery-ticket rewinding takes the
    weights of a step and the schedule from there (``--restart``: from the start); the lottery ticket is that of step 0.
    In n rounds each prunes to ρ^(k/n) and trains again. Every training leaves its weights in the folder; the training
    that is pruned costs what it costs, and counts.
    """

    def start(self, run: Run) -> None:
        """Leaves everything to the rounds."""

    def run(self, run: Run) -> None:
        """Prunes and trains in rounds; rounds whose results are there are not trained again."""
        s = run.settings
        m = s.masks
        retrain = retrain_of(s, run.total_steps)
        assert retrain is not None
        model = initial(s, run.data.n_classes).to(run.device)
        units = weights_of(model, s)
        how = Pruning(
            budget=budget_of(s),
            criterion=named(m.criterion or "magnitude", s.seed),
            batches=examples(run),
            loss_fn=run.task.loss,
            rounds=m.rounds or 1,
            shuffle=m.ablation == "shuffle",
            units=units,
            seed=s.seed,
        )
        before = [] if s.weights else [(run.total_steps, "train", Mask.full(units.sizes).counts)]
        run.fill(model, "dense.safetensors")
        for k, alive in enumerate(rewinding(model, how, partial(_rewound, run, retrain)), start=1):
            last = k == how.rounds
            label = self.name if last else f"round{k}"
            log = run.ranks.once(partial(_log, run, label))
            if log is not None:
                before += log
                run.fill(model, f"{label}.safetensors")
                continue
            self.before = tuple(before)
            self.method = Static(model, make_optimizer(model, s), mask=alive, units=units, seed=s.seed)
            optimizer = self.method.optimizer
            self.trainer = begun(run, model, optimizer, label, self.method, first=retrain.first)
            self.trainer.run()
            self.method.detach()
            if not last:
                run.keep(f"{label}.safetensors", model.state_dict())
                accuracy = self.trainer.history[-1]["accuracy"]
                run.note(f"{label}.json", {"accuracy": accuracy, "log": self.method.log})
                run.forget(f"{label}.state")
                before += self.method.log


def _log(run: Run, label: str) -> list[tuple[int, str, dict[str, int]]] | None:
    """Returns the log of a finished round."""
    path = run.folder / f"{label}.json"
    return read_log(path) if path.is_file() else None


def _rewound(run: Run, retrain: Retrain, model: nn.Module) -> None:
    """Writes the weights that are trained again into the model; the final ones are there."""
    s = run.settings
    if retrain.weights == "fresh":
        draw_again(s, run.data.n_classes, model, s.seed)
    elif retrain.weights == 0:
        model.load_state_dict(initial(s, run.data.n_classes).state_dict())
    elif retrain.weights != "final":
        run.fill(model, "dense-step.safetensors")
