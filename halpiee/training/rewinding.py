"""The stages of pruning after training: the dense network is trained, pruned, rewound, and trained again.

Learning-rate rewinding keeps the final weights and begins the schedule anew; lottery-ticket rewinding takes the weights
of a step and the schedule from there (``--restart``: from the start); the lottery ticket is that of step 0. In n rounds
each prunes to ρ^(k/n) and trains again. Every training leaves its weights in the run's folder, so that an interrupted
run goes on where it was; the training that is pruned costs what it costs, and counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from halpiee.methods.dynamic import Static
from halpiee.methods.one_shot import best, stages
from halpiee.methods.registry import METHODS
from halpiee.methods.rewind import REINIT, Retrain
from halpiee.saliency.registry import named
from halpiee.sparsity.mask import Mask
from halpiee.training.attach import draw_again
from halpiee.training.baseline import resumed
from halpiee.training.checkpoint import fill, save_json, save_weights
from halpiee.training.config import Settings
from halpiee.training.limits import budget_of, few, weights_of
from halpiee.training.loop import Trainer, make_optimizer
from halpiee.training.masking import finish_masked
from halpiee.training.network import initial
from halpiee.training.records import read_log, read_result

if TYPE_CHECKING:
    from halpiee.training.run import Run

__all__ = ["retrain_of", "train_rewound"]

PAPERS_STEP = 1000 / 62_400
"""Step 1000 of 160 epochs of CIFAR-10 in batches of 128 (arXiv 2009.08576, table A.3), as a share."""


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


def train_rewound(run: Run) -> dict[str, Any]:
    """Prunes the dense stage's network, trains it again, and returns the results; resumes where it was saved."""
    path = run.folder / "pruned.json"
    if path.is_file():
        return read_result(path, pruned=True)
    s = run.settings
    m = s.masks
    retrain = retrain_of(s, run.total_steps)
    assert retrain is not None
    model = initial(s, run.data.n_classes).to(run.device)
    units = weights_of(model, s)
    rounds = m.rounds or 1
    trained = run.folder / "dense.safetensors"
    alive = Mask.full(units.sizes)
    before = [(run.total_steps, "train", alive.counts)] if s.weights is None else []
    for k, (pool, level) in enumerate(stages(budget_of(s), units, None, rounds), start=1):
        fill(model, trained)
        alive = best(
            model,
            named(m.criterion or "magnitude", s.seed),
            pool,
            units,
            few(run.data, 10),
            among=alive,
            level=level,
        )
        last = k == rounds
        if last and m.ablation == "shuffle":
            alive = alive.shuffled(s.seed)
        label = "pruned" if last else f"round{k}"
        trained, done = run.folder / f"{label}.safetensors", run.folder / f"{label}.json"
        if done.is_file():
            before += read_log(done)
            continue
        trainer, method = _again(run, model, alive, retrain, label)
        if last:
            return finish_masked(run, trainer, method, before)
        save_weights(trained, model.state_dict())
        save_json(done, {"accuracy": trainer.history[-1]["accuracy"], "log": method.log})
        (run.folder / f"{label}.state").unlink(missing_ok=True)
        before += method.log
    raise AssertionError("the last round ends the run")


def _again(run: Run, model: nn.Module, alive: Mask, retrain: Retrain, label: str) -> tuple[Trainer, Static]:
    """Trains the masked network once, from the rewound weights, and returns its trainer and method."""
    s = run.settings
    if retrain.weights == "fresh":
        draw_again(s, run.data.n_classes, model, s.seed)
    elif retrain.weights == 0:
        model.load_state_dict(initial(s, run.data.n_classes).state_dict())
    elif retrain.weights != "final":
        fill(model, run.folder / "dense-step.safetensors")
    optimizer = make_optimizer(model, s)
    method = Static(model, optimizer, mask=alive, units=weights_of(model, s), seed=s.seed)
    trainer = resumed(run, model, optimizer, method, label=label, first=retrain.first)
    trainer.run()
    method.detach()
    return trainer, method
