"""A network named on the command line: a run's folder, a MODEL, or a plan with weights; built, and ready to use."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halpiee.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Network", "check_run", "from_model", "from_plan", "from_run", "is_run"]


@dataclass(frozen=True)
class Network:
    """A network with example inputs.

    Attributes:
        model: in evaluation mode.
        example: inputs of batch 1.
        metadata: what a file of it says of itself.
        notes: what the user should know of it.
        unclaimed: the note among them that says why the latency of its plan is not claimed of it.
        masked_error: relative L2 of compact against masked, where that was compared.
    """

    model: nn.Module
    example: tuple[Tensor, ...]
    metadata: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unclaimed: str | None = None
    masked_error: float | None = None


def is_run(text: str) -> bool:
    """Whether a text names a folder that holds a run."""
    return (Path(text) / "settings.json").is_file()


def check_run(folder: Path) -> None:
    """Refuses a folder that holds no finished run.

    Raises:
        UsageError: it holds none, or one that was interrupted.
    """
    if not is_run(str(folder)):
        below = sorted(path.parent for path in folder.glob("*/settings.json"))
        raise UsageError(
            f"{folder} was named as the folder of a run, and "
            + ("holds none; " if folder.is_dir() else "there is no such folder; ")
            + (f"did you mean {' or '.join(map(str, below[:3]))}?" if below else "")
            + ("" if below else "name one that `halpiee train` or `halpiee demo` wrote with --out")
        )
    if not (folder / "report.json").is_file():
        raise UsageError(
            f"{folder} holds no finished run; finish it with `halpiee train --resume --out {folder}`"
        )


def from_run(folder: Path, *, dense: bool = False, precision: str = "fp32") -> Network:
    """Returns the compact network of a finished run, or its dense one.

    Raises:
        UsageError: the folder holds no finished run.
    """
    check_run(folder)
    from halpiee.cli.common import ScreenTalk
    from halpiee.deploy.metadata import run_metadata
    from halpiee.training.run import Run
    from halpiee.training.settings import Settings

    settings = Settings.from_dict(json.loads((folder / "settings.json").read_text()))
    report = json.loads((folder / "report.json").read_text())
    run = Run(settings, folder, ScreenTalk())
    side = "dense" if dense else "pruned"
    return Network(
        run.dense() if dense else run.compact(),
        tuple(x[:1] for x in run.example),
        run_metadata(report, plan=folder / "plan.json", run=settings.digest, side=side, precision=precision),
    )


def from_model(
    name: str,
    shape: tuple[int, ...],
    *,
    width: float | None = None,
    classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Network:
    """Returns the network of a MODEL string.

    Raises:
        UsageError: no such network, or weights that do not fit it.
    """
    arguments = {"width": width, "num_classes": classes}
    given = {key: value for key, value in arguments.items() if value is not None}
    model = _built(name, given, seed)
    if weights is not None:
        from halpiee.training.checkpoint import load_weights

        _fit(model, load_weights(weights), f"--weights {weights} does not fit {name}")
    notes = () if weights is not None else ("no --weights: the network has its initial weights",)
    return Network(model.eval(), _example(shape), {"model": name}, notes)


USUAL = (3, 224, 224)
"""(channels, height, width) of images where nothing says otherwise."""


def from_plan(
    path: Path,
    shape: tuple[int, ...] | None = None,
    *,
    model: str | None = None,
    weights: Path | None = None,
    precision: str = "fp32",
    seed: int = 0,
) -> Network:
    """Returns what a plan leaves of its network; compared with the masked one where the weights are dense.

    Args:
        path: the plan.
        shape: (channels, height, width) of the images; by default those that the plan was made for. For others no
            latency is claimed.
        model: MODEL string of the dense network; by default the plan's.
        weights: of the dense network, or of the compact one.
        precision: of the file that is made of it.
        seed: of the initial weights.

    Raises:
        UsageError: no such plan, weights of another network, or a plan that names no network.
        MismatchError: the compact network differs from the masked one.
    """
    from halpiee.deploy.metadata import plan_metadata
    from halpiee.structure.masked import verify
    from halpiee.structure.plan import Plan
    from halpiee.structure.trace import trace
    from halpiee.training.checkpoint import load_weights

    plan = Plan.load(path)
    name = model or plan.model
    if not name:
        raise UsageError(f"the plan {path} does not name its network; give it as MODEL before --plan")
    shape = shape or plan.image or USUAL
    dense, example = _built(name, plan.arguments, seed).eval(), _example(shape)
    metadata = plan_metadata(plan, path, precision=precision) | {"model": name}
    unclaimed = None
    if shape != plan.image and metadata.pop("predicted_us", None) is not None:
        unclaimed = _elsewhere(path, plan.image, shape)
    notes: tuple[str, ...] = () if unclaimed is None else (unclaimed,)
    loaded = None if weights is None else load_weights(weights)
    sizes = {key: tuple(value.shape) for key, value in dense.state_dict().items()}
    if loaded is not None and {key: tuple(value.shape) for key, value in loaded.items()} != sizes:
        compact = plan.apply(dense)
        _fit(compact, loaded, f"--weights {weights} fits neither {name} nor what {path} leaves of it")
        note = "the weights are those of the compact network: there is no masked one to compare it with"
        return Network(compact.eval(), example, metadata, (*notes, note), unclaimed)
    if loaded is None:
        notes += ("no --weights: the network has its initial weights",)
    else:
        dense.load_state_dict(loaded)
    compact = plan.apply(dense).eval()
    structure = trace(dense, example, vanish=not all(plan.counts.values()))
    error = verify(dense, structure, plan.keep, example, compact=compact, sizes=(1, 2, 5))
    return Network(compact, example, metadata, notes, unclaimed, error)


def _elsewhere(path: Path, planned: tuple[int, ...] | None, shape: tuple[int, ...]) -> str:
    """Returns why the latency of a plan is not claimed of a network at these images."""
    taken = "×".join(map(str, shape))
    if planned is None:
        return (
            f"the plan {path} does not say which images its latency was predicted for: at {taken} none is claimed; "
            "write the plan again with halpiee plan"
        )
    return (
        f"the plan {path} predicts its latency at {'×'.join(map(str, planned))}: at {taken} none is claimed; leave "
        "--size out to take the plan's"
    )


def _built(name: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    import torch

    from halpiee.zoo import build

    torch.manual_seed(seed)
    return build(name, **arguments)


def _example(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    import torch

    return (torch.randn(1, *shape, generator=torch.Generator().manual_seed(0)),)


def _fit(model: nn.Module, loaded: dict[str, Tensor], asked: str) -> None:
    """Loads weights, or says in one line what does not fit."""
    try:
        model.load_state_dict(loaded)
    except RuntimeError as error:
        said = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        if len(said) > 200:
            said = said[:200].rpartition(", ")[0] + " …"
        raise UsageError(f"{asked}: {said.rstrip(' .')}; give the weights of this very network") from error
