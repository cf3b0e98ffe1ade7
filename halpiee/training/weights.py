"""Weights of somebody else, fitted to a network by name; and ``load``, which gives the network of a run or a plan."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from halpiee.data.images import Preprocess
from halpiee.errors import UsageError
from halpiee.report.values import read_report
from halpiee.structure.plan import Plan
from halpiee.tasks.task import REGISTRY, named
from halpiee.training.checkpoint import FILE, fill, load_weights, read_settings, read_values
from halpiee.training.config import Settings
from halpiee.zoo.registry import build, check_arguments, check_named

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "backbone.", "encoder.")
"""What wrappers, trainers and this package put before the names of parameters."""
INSIDE = ("state_dict", "model_state_dict", "model", "model_ema", "ema", "net", "weights")
"""Under which key checkpoints keep their weights."""


@dataclass(frozen=True)
class Fitted:
    """A state dict for a network."""

    state: dict[str, Tensor]  # every name of the network that the weights have, with a tensor of its shape
    notes: tuple[str, ...] = ()  # on what was changed or left out

    def into(self, model: nn.Module) -> None:
        """Gives a network these weights; a head that was left out stays as it was drawn."""
        model.load_state_dict({**model.state_dict(), **self.state})


def read_weights(given: str, model: str, *, option: str = "--weights") -> dict[str, Tensor]:
    """Returns the tensors that an option names; nothing in a file is executed, and nothing is downloaded.

    ``given`` is a file (safetensors, or a state dict that ``torch.save`` wrote), or the name of weights of torchvision
    (``IMAGENET1K_V1``) or timm (``a1_in1k``; its usual ones: ``timm:pretrained``) for MODEL that a cache here has.

    Raises:
        UsageError: there is no such file or name, or it holds no weights.
    """
    path = Path(given).expanduser()
    if not path.is_file():
        path = _cached(given, model) or path
    if not path.is_file() or path.suffix == ".safetensors":
        return load_weights(path)
    try:
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(
            f"{option} {given} cannot be read as a state dict ({type(error).__name__}: it may hold code, which is not "
            "run); write one with torch.save(model.state_dict(), path)"
        ) from error
    for _ in range(len(INSIDE)):
        inner = next((found[key] for key in INSIDE if isinstance(found, Mapping) and key in found), None)
        if not isinstance(inner, Mapping):
            break
        found = inner
    tensors = (
        {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    )
    if not tensors:
        raise UsageError(
            f"{option} {given} holds {type(found).__name__} without a tensor; write a state dict with "
            "torch.save(model.state_dict(), path)"
        )
    return tensors


def fit_weights(
    model: nn.Module, given: str, network: str, *, reset_head: bool = False, option: str = "--weights"
) -> tuple[str, ...]:
    """Gives a network the weights that an option names (``read_weights``), and returns what was changed or left out.

    With ``reset_head`` a head of another number of classes is left as it was drawn; ``network`` is the MODEL string.

    Raises:
        UsageError: there are no such weights, or they are those of another network.
    """
    tensors = read_weights(given, network, option=option)
    try:
        found = fitted_to(model, tensors, name=given, network=network, reset_head=reset_head)
    except UsageError as error:
        raise UsageError(str(error).replace("--weights", option, 1)) from error
    found.into(model)
    return found.notes


def fitted_to(
    model: nn.Module, given: Mapping[str, Tensor], *, name: str, network: str, reset_head: bool = False
) -> Fitted:
    """Returns what of given weights fits a network, by name; see ``fit_weights``.

    Raises:
        UsageError: names or shapes do not fit.
    """
    own = model.state_dict()
    found, notes = _renamed(dict(given), own)
    for key in [key for key in own if key.endswith("num_batches_tracked") and key not in found]:
        found[key] = own[key]
    other = [key for key in own if key in found and found[key].shape != own[key].shape]
    heads = _heads(model)
    in_head = [key for key in other if key.rpartition(".")[0] in heads]
    extra = [key for key in found if key not in own]
    if in_head == other and other and not reset_head:
        shown = f"{other[0]} is {list(found[other[0]].shape)} there and {list(own[other[0]].shape)} here"
        raise UsageError(
            f"--weights {name} does not fit {network} in its head alone ({shown}); give --reset-head to draw the head "
            "anew, or data of as many classes"
        )
    if reset_head:
        left = sorted({key.rpartition(".")[0] for key in in_head})
        notes += [f"the head {', '.join(left)} is drawn anew: it was of another size"] if left else []
        if extra:
            notes.append(f"left out {len(extra)} tensors that {network} lacks ({extra[0]} …)")
        found = {key: value for key, value in found.items() if key in own and key not in in_head}
        missing = [key for key in own if key not in found and key.rpartition(".")[0] not in heads]
    else:
        missing = [key for key in own if key not in found]
    wrong = [key for key in other if key not in in_head or not reset_head]
    if missing or wrong or (extra and not reset_head):
        said = (
            f"Missing key(s) in state_dict: {', '.join(map(repr, missing[:3]))}" if missing
            else f"size mismatch for {wrong[0]}: {list(given.get(wrong[0], found[wrong[0]]).shape)} there, "
            f"{list(own[wrong[0]].shape)} here" if wrong
            else f"Unexpected key(s) in state_dict: {', '.join(map(repr, extra[:3]))}"
        )  # fmt: skip
        raise UsageError(
            f"--weights {name} does not fit {network} ({said}); "
            "give the weights of this very network, with its --width and classes"
        )
    return Fitted(found, tuple(notes))


def _renamed(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the weights under the network's names, prefixes taken off or put on, and what was done."""
    notes: list[str] = []
    while True:
        best, changed, said = sum(key in own for key in given), given, ""
        for prefix in PREFIXES:
            off = {key.removeprefix(prefix): value for key, value in given.items()}
            on = {prefix + key: value for key, value in given.items()}
            # what all names begin with hides the prefixes behind it
            hides = all(key.startswith(prefix) for key in given) > all(key.startswith(prefix) for key in own)
            for state, more, how in (
                (off, hides, f"took the prefix {prefix!r} off"),
                (on, False, f"put {prefix!r} before"),
            ):
                hits = sum(key in own for key in state) + more
                if len(state) == len(given) and hits > best:
                    best, changed, said = hits, state, f"{how} the names of the weights"
        if not said:
            return given, notes
        given = changed
        notes.append(said)


def _heads(model: nn.Module) -> set[str]:
    """Returns the modules that give the classes: the last layer with a weight, and what torchvision calls so."""
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    named = ("classifier", "cls_logits", "cls_score", "classification_head")
    return {*layers[-1:], *(name for name in layers if any(word in name for word in named))}


def _cached(given: str, model: str) -> Path | None:
    """Returns the file of weights that are named and lie in a cache.

    Raises:
        UsageError: there are weights of that name, and the cache has them not; where they would be fetched.
    """
    if "/" in given or ":" in model or given.endswith((".pth", ".pt", ".safetensors", ".bin", ".ckpt")):
        return None
    from torchvision.models import get_model_weights, list_models

    plain = model.removeprefix("torchvision/")
    if plain in list_models():
        entries = {entry.name: entry for entry in get_model_weights(plain)}
        entry = entries.get(given.rpartition(".")[2])
        if entry is not None:
            file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(entry.url).path)
            return _there(file, given, f"python -c 'import torchvision; torchvision.models.get_model(\"{plain}\", "
                          f"weights=\"{entry.name}\")'")  # fmt: skip
    if importlib.util.find_spec("timm") is not None:
        import timm
        from huggingface_hub import try_to_load_from_cache

        plain = model.removeprefix("timm/").partition(".")[0]
        usual: Any = timm.get_pretrained_cfg(plain) if given == "timm:pretrained" else None
        tagged = f"{plain}.{given.rpartition('.')[2] if usual is None else usual.tag}"
        if tagged in timm.list_pretrained():
            settings: Any = timm.get_pretrained_cfg(tagged)
            repository = settings.hf_hub_id
            found = try_to_load_from_cache(repository, "model.safetensors") if repository else None
            file = Path(found) if isinstance(found, str) else Path("model.safetensors of " + str(repository))
            return _there(
                file, given, f"python -c 'import timm; timm.create_model(\"{tagged}\", pretrained=True)'"
            )
    return None


def _there(file: Path, given: str, fetching: str) -> Path:
    if not file.is_file():
        raise UsageError(
            f"--weights {given} were asked for by name, and no cache on this machine has them ({file}); fetch "
            f"them with {fetching}"
        )
    return file


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
    sizes = [{name: t.shape for name, t in (one or {}).items()} for one in (loaded, model.state_dict())]
    if loaded is not None and sizes[0] == sizes[1]:
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
