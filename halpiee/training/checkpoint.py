"""Files that survive an interruption: written whole or not at all, and read without executing code."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import torch
from msgspec import Meta
from torch import Tensor, nn

from halpiee.errors import UsageError
from latency._files import write
from latency.outside import sound

__all__ = ["fill", "load_state", "load_weights", "save_json", "save_state", "save_weights"]


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


def fill(model: nn.Module, path: Path) -> None:
    """Gives a model the weights of a safetensors file.

    Raises:
        UsageError: there is no such file, or its weights are of another network.
    """
    try:
        model.load_state_dict(load_weights(path))
    except RuntimeError as error:
        said = " ".join(str(error).partition("\n")[2].split())
        raise UsageError(
            f"{path} holds weights of another network than this one ({said[:200]}); fetch the file again "
            "that belongs here"
        ) from error


def save_json(path: Path, value: Any) -> None:
    """Saves JSON with NaN written as null."""

    def clean(item: Any) -> Any:
        if isinstance(item, float) and item != item:
            return None
        if isinstance(item, Mapping):
            return {key: clean(entry) for key, entry in item.items()}
        if isinstance(item, list | tuple):
            return [clean(entry) for entry in item]
        return item

    text = json.dumps(clean(value), indent=1, allow_nan=False) + "\n"
    write(path, text, overwrite=True)
