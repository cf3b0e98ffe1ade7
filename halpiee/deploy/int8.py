"""Files in int8: ONNX Runtime's static quantisation (QDQ), calibrated on images of the data.

Weights are int8 with a scale for each output channel, activations uint8 with one for each tensor: the range that the
calibration images gave it. The fp32 file that is quantised is proved against PyTorch first. An int8 file computes
something else than its network on purpose; what it is worth is its accuracy on the test set, beside that of the fp32
file, and its latency beside it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from halpiee.deploy.onnx import ExportReport, export_onnx, onnx_outputs, write_metadata
from halpiee.errors import UsageError, said
from halpiee.structure.verification import relative_l2
from latency.backends.onnxruntime import QUANTISER
from latency.backends.onnxruntime.model import quiet
from latency.backends.onnxruntime.network import session
from latency.files import check_place, write


@dataclass(frozen=True)
class Int8Report:
    """An int8 file, and the fp32 file that it was made of.

    Attributes:
        path: the file.
        size_bytes: its size.
        images: it was calibrated on.
        fp32: what was proved of the fp32 file, which is kept only where it was asked for.
        rel_l2: ‖a − b‖₂ / ‖b‖₂ of int8 against fp32 outputs on the first calibration images.
    """

    path: Path
    size_bytes: int
    images: int
    fp32: ExportReport
    rel_l2: float


def export_int8(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    path: str | Path,
    batches: Iterable[Tensor | tuple[Tensor, ...]],
    *,
    beside: str | Path | None = None,
    metadata: Mapping[str, str] | None = None,
    seed: int = 0,
    **ends: Any,
) -> Int8Report:
    """Exports a model in int8.

    Args:
        model: any module; it is left alone.
        example_inputs: as for ``export_onnx``.
        path: the file to write.
        batches: calibration images as the network takes them, normalised, ``[N, …]``: some hundreds in all. All are
            held by the runtime's calibration for a while.
        beside: where the fp32 file goes; None: it is not kept.
        metadata: names and values for the file's metadata.
        seed: of the random inputs of the fp32 file's proof.
        **ends: ``dynamic_size``, ``input_names`` and ``output_names`` of ``export_onnx``.

    Raises:
        UsageError: there are no calibration images, or the runtime cannot quantise the model.
        MismatchError: the fp32 file differs from PyTorch.
        OutputInUseError: the file exists.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    path = Path(path)
    check_place(path)
    with tempfile.TemporaryDirectory(prefix="halpiee.int8.") as folder:
        float_path = Path(beside) if beside is not None else Path(folder) / "fp32.onnx"
        done = export_onnx(model, example_inputs, float_path, metadata=metadata, seed=seed, **ends)
        reader = _Reader(done.inputs, batches)
        if reader.first is None:
            raise UsageError("int8 was asked without calibration images; give some hundreds of the data")
        made = Path(folder) / "int8.onnx"
        try:
            with quiet(""):
                quantize_static(
                    str(float_path),
                    str(made),
                    reader,
                    quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8,
                    weight_type=QuantType.QInt8,
                    **QUANTISER,
                )
        except Exception as error:  # the quantiser raises what its passes raise
            raise UsageError(
                f"{type(model).__name__} was to be quantised to int8, and ONNX Runtime's quantiser raised "
                f"{type(error).__name__}: {said(error, 200)}; export it in fp32 or fp16"
            ) from error
        proto = onnx.load(str(made))
        kept = {entry.key: entry.value for entry in onnx.load(str(float_path)).metadata_props}
        del proto.metadata_props[:]
        stated = {**kept, "precision": "int8", "calibration_images": str(reader.images)}
        write_metadata(proto, stated)
        onnx.checker.check_model(proto, full_check=True)
        write(path, proto.SerializeToString())
        rel = relative_l2(*(session(one).run(None, reader.first) for one in (path, float_path)))
    return Int8Report(path, path.stat().st_size, reader.images, done, rel)


class _Reader:
    """Gives the calibration its batches, and counts their images."""

    def __init__(self, names: tuple[str, ...], batches: Iterable[Tensor | tuple[Tensor, ...]]) -> None:
        self._names, self._batches = names, self._arrays(batches)
        self.images = 0
        self.first = next(self._batches, None)
        self._left = chain([] if self.first is None else [self.first], self._batches)

    def _arrays(self, batches: Iterable[Tensor | tuple[Tensor, ...]]) -> Iterator[dict[str, Any]]:
        for batch in batches:
            parts = batch if isinstance(batch, tuple) else (batch,)
            self.images += len(parts[0])
            arrays = [x.detach().cpu().numpy() for x in parts]
            yield dict(zip(self._names, arrays, strict=True))

    def get_next(self) -> dict[str, Any] | None:
        """Returns the next batch, by the names of the inputs."""
        return next(self._left, None)


class FileNetwork(nn.Module):
    """An ONNX file on this CPU as a module of tensors, to be judged on a test set like any network."""

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self._run = onnx_outputs(Path(path))

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Returns the outputs: a tensor, or a tuple where there are several."""
        found = tuple(torch.from_numpy(x) for x in self._run(inputs))
        return found[0] if len(found) == 1 else found
