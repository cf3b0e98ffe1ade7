"""Weights of somebody else: where they lie, what of them fits a network, and what was done to make them fit."""

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

from halpiee.errors import UsageError
from halpiee.training.checkpoint import load_weights

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

    def hits(state: Mapping[str, Tensor]) -> int:
        return sum(key in own for key in state)

    notes: list[str] = []
    while prefix := next((p for p in PREFIXES if given and all(key.startswith(p) for key in given)), None):
        if all(key.startswith(prefix) for key in own):
            break
        given = {key.removeprefix(prefix): value for key, value in given.items()}
        notes.append(f"took the prefix {prefix!r} off the names of the weights")
    while True:
        best, changed, said = hits(given), given, ""
        for prefix in PREFIXES:
            off = {key.removeprefix(prefix): value for key, value in given.items()}
            on = {prefix + key: value for key, value in given.items()}
            for state, how in ((off, f"took the prefix {prefix!r} off"), (on, f"put {prefix!r} before")):
                if len(state) == len(given) and hits(state) > best:
                    best, changed, said = hits(state), state, f"{how} the names of the weights"
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
