"""Loads what a run or a plan leaves: the compact network, in evaluation mode, without its data, profile or runtime."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from halpiee.data.images import Preprocess
from halpiee.errors import UsageError
from halpiee.report.values import read_report
from halpiee.structure.plan import Plan
from halpiee.tasks.task import REGISTRY, named
from halpiee.training.checkpoint import FILE, fill, load_weights, read_settings, read_values
from halpiee.training.config import Settings
from halpiee.training.weights import read_weights
from halpiee.zoo.registry import build, check_arguments, check_named

PLAN, WEIGHTS = "plan.json", "pruned.safetensors"
"""What a finished run holds of its compact network."""


def load(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    weights: str | Path | None = None,
    trust: bool = False,
) -> nn.Module:
    """Returns the compact network of a finished run, or what a plan leaves of its network, in evaluation mode.

    Of a run, ``preprocess`` of the network brings an image to what it was trained on, and has the names of the classes.

    Files are data: one that names a function of some module is refused, unless it is trusted or you give the network.

    Args:
        path: folder of a run, or a plan's file.
        model: the dense network, built by you, where the file names none or is not to be asked. It stays as it is; a
            plan takes its weights from it. Detectors and segmenters come back in the form that is exported.
        weights: of the dense network, or of the compact one: safetensors, or a state dict of ``torch.save``; of a plan
            only. A plan without a model and without weights gives a network with random ones.
        trust: whether the file may name code to import and call, for its network. A run that this user began here is
            trusted.

    Raises:
        UsageError: there is no run or plan, the run is not finished, weights of another network, or a file that names
            code.
        StructureError: the plan is of another network.
    """
    path = Path(path)
    if path.is_dir():
        if weights is not None:
            raise UsageError(
                f"{path} is a run, which has weights of its own; leave weights out, or load its {PLAN}"
            )
        return _of_run(path, model, trust)
    plan = Plan.load(path)
    if model is None:
        if not plan.model:
            raise UsageError(f"the plan {path} does not name its network; build it and give it as model=")
        if not trust:
            where, instead = f"the plan {path}", "build it and give it as model=, or give trust=True"
            check_named(plan.model, where=f"{where} names the network", instead=instead)
            check_arguments(plan.model, plan.arguments, where=where, instead=instead)
        model = build(plan.model, **plan.arguments)
    loaded = None if weights is None else read_weights(str(weights), plan.model or "", option="weights")
    if loaded is not None and weights is not None and _shapes(loaded) == _shapes(model.state_dict()):
        model.load_state_dict(loaded)
        loaded = None
    compact = plan.apply(model).eval()
    if loaded is not None and weights is not None:
        fill(compact, Path(weights), loaded)
    return compact


def _of_run(folder: Path, model: nn.Module | None, trust: bool) -> nn.Module:
    """Returns the compact network of a run's folder."""
    if not (folder / FILE).is_file():
        raise UsageError(
            f"{folder} was named as the folder of a run, and holds none; name one that `halpiee train` wrote with --out"
        )
    if not (folder / WEIGHTS).is_file():
        raise UsageError(
            f"{folder} holds no finished run; finish it with `halpiee train --resume --out {folder}`"
        )
    plan = Plan.load(folder / PLAN) if (folder / PLAN).is_file() else None
    loaded = load_weights(folder / WEIGHTS)
    if model is None:
        settings = read_settings(folder, trust=trust)
        model = named(settings.task).network(_built(settings, plan, loaded))
    elif set(loaded) - set(model.state_dict()):  # what was trained is what the task makes of the network
        known = REGISTRY.get(str(read_values(folder).get("task")))
        model = model if known is None else known().network(model)
    compact = model if plan is None else plan.apply(model)
    fill(compact, folder / WEIGHTS)
    told = (read_report(folder).get("preprocess") if (folder / "report.json").is_file() else None) or {}
    names = ("resize", "size", "mean", "std", "classes")
    if set(names) <= told.keys():
        compact.preprocess = Preprocess(**{name: told[name] for name in names})  # type: ignore[assignment]
    return compact.eval()


def _built(settings: Settings, plan: Plan | None, loaded: dict[str, Tensor]) -> nn.Module:
    """Returns the dense network of a run; where no plan says the number of classes, it is that of the weights."""
    width = {} if settings.width is None else {"width": settings.width}
    if plan is not None and "num_classes" in plan.arguments:
        return build(settings.model, num_classes=plan.arguments["num_classes"], **width)
    with torch.device("meta"):
        one = build(settings.model, num_classes=1, **width).state_dict()
    classes = {len(loaded[key]) for key, value in one.items() if key in loaded and value.shape[:1] == (1,)}
    return build(settings.model, num_classes=max(classes, default=1), **width)


def _shapes(weights: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in weights.items()}
