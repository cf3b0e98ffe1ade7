"""Is this an ONNX file that can be run, with all that belongs to it? Looked at before a runtime sees it.

Weights may lie in files beside it. They are read only from its own folder: a location that leads out of it, by
``..``, an absolute path or a link, is refused, whatever the runtime would do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from latency.errors import UsageError

if TYPE_CHECKING:
    import onnx

__all__ = ["check_file", "external_files"]


def check_file(path: str | Path) -> onnx.ModelProto:
    """Returns the model, its external weights not loaded.

    Raises:
        UsageError: no such file, a truncated or foreign one, or external weights that are missing, too short or
            outside its folder.
    """
    import onnx

    path = Path(path)
    if not path.is_file():
        raise UsageError(f"the model {str(path)!r} was asked for, and there is no such file; check the path")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf's own exceptions
        raise _foreign(path, "it cannot be read as one") from error
    if not model.ir_version or not model.graph.output:
        raise _foreign(path, "it holds no graph with an output")
    for tensor_name, location, end in external_files(model):
        _check_location(path, tensor_name, location, end)
    return model


def external_files(model: onnx.ModelProto) -> Iterator[tuple[str, str, int]]:
    """Yields name, location and last byte of every tensor that lies outside the file."""
    from onnx import TensorProto

    attributes = [a for node in model.graph.node for a in node.attribute]
    tensors = [*model.graph.initializer, *(a.t for a in attributes if a.HasField("t"))]
    for tensor in tensors:
        if tensor.data_location == TensorProto.EXTERNAL:
            facts = {entry.key: entry.value for entry in tensor.external_data}
            end = int(facts.get("offset") or 0) + int(facts.get("length") or 0)
            yield tensor.name, facts.get("location", ""), end


def _check_location(path: Path, tensor: str, location: str, end: int) -> None:
    folder = path.resolve().parent
    target = (folder / location).resolve()
    asked = f"the weight {tensor!r} of {path} lies in {location!r}"
    if not location or Path(location).is_absolute() or not target.is_relative_to(folder):
        raise UsageError(
            f"{asked}, outside the model's folder, and is not read from there; "
            "export the model again as one file, or put its data file beside it"
        )
    if not target.is_file():
        raise UsageError(
            f"{asked}, and there is no such file; copy it from where the model came from, beside the model"
        )
    if target.stat().st_size < end:
        raise UsageError(
            f"{asked}, which ends after {target.stat().st_size} bytes, {end} are needed; copy it again"
        )


def _foreign(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} ({path.stat().st_size} bytes) was to be read as an ONNX model, and {why}: "
        "it is truncated or no ONNX file; copy or export it again"
    )
