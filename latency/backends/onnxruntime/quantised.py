"""Graphs in int8, as ONNX Runtime's own quantiser writes them: pairs of QuantizeLinear and DequantizeLinear (QDQ).

Activations are uint8, one scale per tensor; weights int8, one scale per output channel. Times do not hang on the
scales, so ops and networks that are timed only get made-up ranges; a file that is deployed gets those of its data
(``halpiee.deploy.int8``), through the same quantiser.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from latency.errors import MissingError

if TYPE_CHECKING:
    import onnx

__all__ = ["POSITIVE", "SETTINGS", "quantised", "quiet"]

SETTINGS: Mapping[str, Any] = {"per_channel": True, "reduce_range": False}
"""Arguments of the quantiser, for files and for what is timed alike."""

POSITIVE = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax")
"""Ops whose results are never negative: theirs begin at zero, so that the quantiser leaves the op out."""


def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a float32 model in int8 with made-up ranges: it takes the time of a calibrated one, and computes noise.

    Raises:
        MissingError: ONNX Runtime is there without its quantiser.
    """
    import onnx

    try:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
        from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    except ImportError as error:
        raise MissingError(
            f"int8 was asked for, and ONNX Runtime's quantiser cannot be imported ({error}); install onnxruntime anew"
        ) from error
    shaped = onnx.shape_inference.infer_shapes(model)
    positive = {name for node in shaped.graph.node if node.op_type in POSITIVE for name in node.output}
    names = {value.name for value in shaped.graph.input}
    names |= {name for node in shaped.graph.node for name in node.output if name}
    ranges = {
        name: TensorData(
            lowest=np.array(0.0 if name in positive else -1.0, dtype=np.float32),
            highest=np.array(1.0, dtype=np.float32),
        )
        for name in names
    }
    with quiet():
        quantiser = QDQQuantizer(
            shaped,
            SETTINGS["per_channel"],
            SETTINGS["reduce_range"],
            QuantType.QInt8,
            QuantType.QUInt8,
            TensorsData(CalibrationMethod.MinMax, ranges),
            [],
            [],
            sorted({*QLinearOpsRegistry, *QDQRegistry}),
            {},
        )
        quantiser.quantize_model()
    made: onnx.ModelProto = quantiser.model.model
    return made


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps the quantiser's advice away from the screen."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)
