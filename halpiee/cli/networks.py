"""The network that a MODEL, a run or a plan on the command line stands for."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from halpiee.errors import StructureError, UsageError, said
from halpiee.inputs import Input, Shape, at_batch, example_of, spelled

if TYPE_CHECKING:
    from torch import Tensor, nn

    from halpiee.structure.groups import Structure
    from halpiee.structure.plan import Plan
    from halpiee.training.job import Run


@dataclass(frozen=True)
class Network:
    """A network with example inputs."""

    model: nn.Module  # in evaluation mode
    example: tuple[Any, ...]  # inputs of batch 1
    metadata: dict[str, str] = field(default_factory=dict)  # what a file of it says of itself
    notes: tuple[str, ...] = ()  # what the user should know of it
    # the note among them that says why the latency of its plan is not claimed of it
    unclaimed: str | None = None
    masked_error: float | None = None  # relative L2 of compact against masked, where that was compared
    untrained: bool = False  # whether it has its initial weights: its times hold, its outputs mean nothing
    run: Run | None = None  # the run that it is of, with its data and its task


INITIAL = {"weights": "initial"}
"""What a file of a network with its initial weights says of itself."""


def is_run(text: str) -> bool:
    """Whether a text names a folder that holds a run."""
    return (Path(text) / "settings.json").is_file()


def check_run(folder: Path) -> None:
    """Refuses a folder that holds no run, or one that was interrupted."""
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


def from_run(folder: Path, *, dense: bool = False, precision: str = "fp32", trust: bool = False) -> Network:
    """Returns the compact network of a finished run, or its dense one; ``precision`` is that of the file made of it."""
    check_run(folder)
    from halpiee.cli.output import ScreenTalk
    from halpiee.deploy.onnx import run_metadata
    from halpiee.report.values import read_report
    from halpiee.training.checkpoint import read_settings
    from halpiee.training.job import Run

    settings = read_settings(folder, trust=trust)
    report = read_report(folder)
    run = Run(settings, folder, ScreenTalk())
    side = "dense" if dense else "pruned"
    untrained = dense and not run.has_dense
    return Network(
        run.dense() if dense else run.compact(),
        tuple(x[:1] for x in run.example),
        run_metadata(
            report,
            plan=folder / "plan.json",
            run=settings.digest,
            side=side,
            precision=precision,
            trained=not untrained,
        ),
        (f"{folder} trained no dense network (--no-baseline): it has its initial weights",)
        if untrained
        else (),
        untrained=untrained,
        run=run,
    )


def from_model(
    name: str,
    shape: Shape,
    *,
    width: float | None = None,
    classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Network:
    """Returns the network of a MODEL string, that takes an image of a shape or inputs by name."""
    arguments = {"width": width, "num_classes": classes}
    given = {key: value for key, value in arguments.items() if value is not None}
    model = _built(name, given, seed)
    if weights is not None:
        from halpiee.training.weights import read_weights

        _fit(model, read_weights(str(weights), name), f"--weights {weights} does not fit {name}")
    notes = () if weights is not None else ("no --weights: the network has its initial weights",)
    untrained = weights is None
    metadata = {"model": name} | (INITIAL if untrained else {})
    return Network(model.eval(), _example(model, shape), metadata, notes, untrained=untrained)


@dataclass(frozen=True)
class Traced:
    """A model with its structure."""

    model: nn.Module
    example: tuple[Any, ...]
    structure: Structure


def traced(
    model: str,
    batch: int,
    shape: Shape,
    *,
    width: float | None = None,
    classes: int | None = None,
    weights: Path | None = None,
    seed: int = 0,
) -> Traced:
    """Builds and traces a MODEL string at a batch of images of ``shape`` (channels, height, width), or of inputs."""
    from halpiee.errors import StructureError
    from halpiee.structure.trace import trace

    network = from_model(model, shape, width=width, classes=classes, weights=weights, seed=seed).model
    example = example_of(network, shape, batch)
    try:
        structure = trace(network, example)
    except StructureError as error:
        reason, end, _ = str(error).partition("; check the inputs' shapes")
        if "positional argument" in reason:
            raise StructureError(
                f"{model} takes other inputs than {spelled(shape)} ({reason.split(': ')[-1].split(';')[0]}); name "
                "each of them: --input NAME=SHAPE --input …"
            ) from error
        if not end:
            raise
        named = any(isinstance(n, Input) for n in shape)
        typed = f"inputs of {spelled(shape)}" if named else f"images of --size {'x'.join(map(str, shape))}"
        raise StructureError(
            f"{model} was to take {typed}: {reason}; give the size that it takes with --size, or each input "
            "with --input NAME=SHAPE"
        ) from error
    return Traced(network, example, structure)


USUAL = (3, 224, 224)
"""(channels, height, width) of images where nothing says otherwise."""


def from_plan(
    path: Path,
    shape: Shape | None = None,
    *,
    model: str | None = None,
    weights: Path | None = None,
    precision: str = "fp32",
    seed: int = 0,
    trust: bool = False,
) -> Network:
    """Returns the network that a plan leaves; compares it with the masked one where the weights are dense.

    The ``shape`` is of its images, or inputs by name, by default those that the plan was made for: for others no
    latency is claimed. With ``trust`` the plan may name any function and give a builder any argument.

    Raises:
        UsageError: no such plan, weights of another network, or a plan that names no network or code to run.
        MismatchError: the compact network differs from the masked one.
    """
    from halpiee.deploy.onnx import plan_metadata
    from halpiee.structure.plan import Plan
    from halpiee.structure.trace import trace
    from halpiee.structure.verification import verify
    from halpiee.training.weights import read_weights
    from halpiee.zoo.registry import check_arguments, check_named, names_code
    from latency.backends.torch.modules import tensors_in

    plan = Plan.load(path)
    name = model or plan.model
    if not name:
        raise UsageError(f"the plan {path} does not name its network; give it as MODEL before --plan")
    if not trust:
        instead = "type the name as MODEL before --plan, or --trust-plan"
        if model is None:
            check_named(name, where=f"the plan {path} names the network", instead=instead)
        if not names_code(name):
            check_arguments(name, plan.arguments, where=f"the plan {path}", instead="type --trust-plan")
            _check_planned(path, plan, name)
    shape = shape or plan.image or tuple(Input("", tuple(one)) for one in plan.inputs) or USUAL
    dense = _built(name, plan.arguments, seed).eval()
    example = _example(dense, shape)
    metadata = plan_metadata(plan, path, precision=precision) | {"model": name}
    unclaimed = None
    if [list(x.shape[1:]) for x in tensors_in(example)] != plan.inputs and metadata.pop(
        "predicted_us", None
    ) is not None:
        unclaimed = _elsewhere(path, plan.inputs, shape)
    notes: tuple[str, ...] = () if unclaimed is None else (unclaimed,)
    loaded = None if weights is None else read_weights(str(weights), name)
    sizes = {key: tuple(value.shape) for key, value in dense.state_dict().items()}
    if loaded is not None and {key: tuple(value.shape) for key, value in loaded.items()} != sizes:
        compact = _left(path, plan, dense, example)
        _fit(compact, loaded, f"--weights {weights} fits neither {name} nor what {path} leaves of it")
        note = "the weights are those of the compact network: there is no masked one to compare it with"
        return Network(compact.eval(), example, metadata, (*notes, note), unclaimed)
    if loaded is None:
        notes += ("no --weights: the network has its initial weights",)
        metadata |= INITIAL
    else:
        dense.load_state_dict(loaded)
    compact = _left(path, plan, dense, example)
    structure = trace(dense, example, vanish=not all(plan.counts.values()))
    taken = _taken(dense, example)
    error = verify(dense, structure, plan.keep, example, compact=compact, sizes=taken)
    if len(taken) < len(SIZES):
        notes += (
            f"{name} runs on batches of {', '.join(map(str, taken))} only: compact was compared with masked there",
        )
    return Network(compact, example, metadata, notes, unclaimed, error, untrained=loaded is None)


SIZES = (1, 2, 5)
"""Batches that compact and masked are compared on."""


def _taken(model: nn.Module, example: tuple[Any, ...]) -> tuple[int, ...]:
    """Returns the batch sizes that a network runs on; (1,) where its batch is fixed."""
    import torch

    from latency.backends.torch.modules import copy_of

    taken = []
    for size in SIZES:
        with contextlib.suppress(Exception), torch.no_grad():
            copy_of(model)(*at_batch(example, size))
            taken.append(size)
    return tuple(taken) or (1,)


def _check_planned(path: Path, plan: Plan, name: str) -> None:
    """Refuses a plan of other tensors than its network has, before any memory is taken for the weights."""
    import torch

    from halpiee.structure.shrink import check_shapes

    try:
        with torch.device("meta"):
            model = _built(name, plan.arguments, 0)
    except (NotImplementedError, RuntimeError):  # a network that computes with its weights while it is built
        return
    try:
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        check_shapes(tensors, {key: tuple(shape) for key, shape in plan.shapes.items()})
    except StructureError as error:
        raise StructureError(
            f"the plan {path} is not of the {name} that it names: {error}; write it again with halpiee plan"
        ) from error


def _left(path: Path, plan: Plan, dense: nn.Module, example: tuple[Any, ...]) -> nn.Module:
    """Applies a plan to its network; refuses it where the result does not run."""
    import torch

    compact = plan.apply(dense).eval()
    try:
        with torch.no_grad():
            compact(*example)
    except Exception as error:
        try:
            with torch.no_grad():
                dense(*example)
        except Exception:
            return compact  # not the plan's doing: tracing says what of the inputs does not fit
        raise StructureError(
            f"the plan {path} leaves a network that does not run ({said(error, 200)}); write it "
            "again with halpiee plan"
        ) from error
    return compact


def _elsewhere(path: Path, planned: list[list[int]], shape: Shape) -> str:
    """Returns why a plan predicts no latency for inputs of this size."""
    taken = spelled(shape)
    if not planned:
        return (
            f"the plan {path} does not say which images its latency was predicted for: at {taken} none is claimed; "
            "write the plan again with halpiee plan"
        )
    made = " and ".join("×".join(map(str, one)) for one in planned)
    return (
        f"the plan {path} predicts its latency at {made}: at {taken} none is claimed; leave "
        "--size out to take the plan's"
    )


def _built(name: str, arguments: dict[str, Any], seed: int) -> nn.Module:
    import torch

    from halpiee.zoo import build

    torch.manual_seed(seed)
    return build(name, **arguments)


def _example(model: nn.Module, shape: Shape) -> tuple[Any, ...]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return example_of(model, shape)


def _fit(model: nn.Module, loaded: dict[str, Tensor], asked: str) -> None:
    """Loads weights; an error says in one line what does not fit."""
    try:
        model.load_state_dict(loaded)
    except RuntimeError as error:
        reason = next((line.strip() for line in str(error).splitlines()[1:] if line.strip()), str(error))
        if len(reason) > 200:
            reason = reason[:200].rpartition(", ")[0] + " …"
        raise UsageError(f"{asked}: {reason.rstrip(' .')}; give the weights of this very network") from error
