"""Files of a run that survive an interruption: written whole or not at all, and read without executing code.

The settings of a run may name a ``package.module:function``. The user typed that name when the run began, and a seal
(``latency.backends.tensorrt.engine``) shows that this happened here. Unsealed settings come from elsewhere: their
functions are neither imported nor called unless they are typed again or the run is trusted.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from msgspec import Meta
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.training.config import Settings
from halpiee.zoo.registry import check_named, names_code
from latency.backends.tensorrt.engine import seal, sealed
from latency.files import read_json, sound, write


class State(TypedDict):
    """What a checkpoint holds; the tensors are the models' and optimizers' own to check."""

    stage: Literal["masked", "compact"]
    step: Annotated[int, Meta(ge=0)]
    seconds: float
    loss: tuple[float, float]
    history: list[dict[str, Any]]
    extra: dict[str, Any]
    model: dict[str, Any]
    optimizer: dict[str, Any]
    threads: Annotated[int, Meta(ge=1, le=4096)]
    random: list[Any]
    waited: NotRequired[float]
    bad: NotRequired[Annotated[int, Meta(ge=0)]]
    scaler: NotRequired[dict[str, Any] | None]
    average: NotRequired[dict[str, Any] | None]
    best: NotRequired[tuple[Annotated[int, Meta(ge=0)], float] | None]
    method: Any


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Saves tensors and plain values; only ``load_state`` reads them back."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    write(path, content.getvalue(), overwrite=True)


def load_state(path: Path) -> dict[str, Any]:
    """Loads what ``save_state`` wrote, onto the CPU; nothing in the file is executed.

    Models and optimizers move what they load to their own device. Masks and scores stay: selection is the CPU's work.

    Raises:
        UsageError: the file is not such a state.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}); delete it to start this stage again"
        ) from error
    sound(
        state,
        State,
        what=f"{path} is no checkpoint of a run: it",
        advice="delete it to start this stage again",
    )
    return state


def save_weights(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Saves a state dict as safetensors."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write(path, save(plain, dict(metadata or {})), overwrite=True)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Loads a safetensors state dict.

    Raises:
        UsageError: there is no such file, or it is not safetensors.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise UsageError(f"weights {path} were asked for, and there is no such file; check the path")
    try:
        loaded: dict[str, Tensor] = load_file(path)
    except Exception as error:
        raise UsageError(
            f"{path} is not a safetensors file ({error}); "
            "write one with safetensors.torch.save_file(model.state_dict(), path)"
        ) from error
    return loaded


def fill(model: nn.Module, path: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Gives a model the weights of a safetensors file, or those that were read from it.

    Raises:
        UsageError: there is no such file, or its weights are of another network.
    """
    try:
        model.load_state_dict(load_weights(path) if weights is None else weights)
    except RuntimeError as error:
        said = " ".join(str(error).partition("\n")[2].split())
        raise UsageError(
            f"{path} holds weights of another network than this one ({said[:200]}); fetch the file again "
            "that belongs here"
        ) from error


def save_json(path: Path, value: Any) -> None:
    """Saves JSON with numbers that are not finite written as null."""

    def clean(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return None
        if isinstance(item, Mapping):
            return {key: clean(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [clean(entry) for entry in item]
        return item

    text = json.dumps(clean(value), indent=1, allow_nan=False) + "\n"
    write(path, text, overwrite=True)


FILE = "settings.json"
NAMES = ("model", "data", "task")
"""Settings that may name code."""


def save_settings(folder: Path, settings: Settings) -> None:
    """Writes the settings of a run, with a seal where they name code."""
    values = settings.as_dict()
    if any(names_code(values[key]) for key in NAMES):
        with suppress(OSError):  # no home to keep a key in: the names are typed again on --resume
            values["seal"] = seal(_facts(values))
    save_json(folder / FILE, values)


def read_values(folder: Path) -> dict[str, Any]:
    """Returns the settings of a run as they are in its folder, seal and all.

    Before settings had ``inputs``, ``repair`` was true where nothing was typed, and only ``early`` read it.

    Raises:
        UsageError: the file cannot be read, or holds no settings.
    """
    path = folder / FILE
    values = read_json(path, dict[str, Any], what=str(path), advice="name the folder of another run")
    masks = values.get("masks")
    if "inputs" not in values and isinstance(masks, dict) and masks.get("repair") is True:
        values["masks"] = {**masks, "repair": None}
    return values


def read_settings(folder: Path, *, trust: bool = False) -> Settings:
    """Returns the settings of a run, fit to build its network and load its data.

    With ``trust`` they may name any function.

    Raises:
        UsageError: the file is no settings, or it names code and was not written by this user here.
    """
    values = read_values(folder)
    if not trust:
        check_names(folder, values, instead="type --trust-run")
    return settings_of(folder, values)


def settings_of(folder: Path, values: Mapping[str, Any]) -> Settings:
    """Returns the settings of values that ``read_values`` read.

    Raises:
        UsageError: they are none, or do not go together; the message names the file.
    """
    path = folder / FILE
    try:
        return Settings.from_dict(values, where=str(path))
    except UsageError as error:
        if str(path) in str(error):
            raise
        raise UsageError(f"{path} holds settings of no run: {error}") from error


def check_names(
    folder: Path, values: Mapping[str, Any], *, instead: str, typed: Mapping[str, Any] | None = None
) -> None:
    """Refuses settings that name code and were not written by this user here.

    The ``values`` are those of ``read_values``; ``typed`` settings replace them; ``instead`` is what to type if the run
    is trusted.

    Raises:
        UsageError: names what would be called.
    """
    if sealed(_facts(values), values.get("seal")):
        return
    for key in NAMES:
        if key not in (typed or {}) and isinstance(values.get(key), str):
            check_named(values[key], where=f"{folder / FILE} names the {key}", instead=instead)


def _facts(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: values.get(key) for key in NAMES}
    if not names_code(str(named["task"])):
        named.pop("task")  # runs that are older than tasks stay sealed
    return {"purpose": "run", **named}
