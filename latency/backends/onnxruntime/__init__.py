"""ONNX Runtime on the CPU: ops as differential graphs, networks as sessions, and the one way from PyTorch to ONNX.

Graphs in int8 are as the runtime's own quantiser writes them: pairs of QuantizeLinear and DequantizeLinear (QDQ).
Activations are uint8, one scale per tensor; weights int8, one scale per output channel. Times do not depend on the
scales, so ops and networks that are only timed get made-up ranges; a file that is deployed gets those of its data
(``halpiee.deploy.int8``), through the same quantiser.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from latency.backends import Backend, Built, Found, NetworkOptions, Runner, Way, backend, is_module
from latency.backends.cuda import gpu_facts
from latency.backends.onnxruntime.model import quiet, to_onnx
from latency.backends.onnxruntime.network import SessionRunner, feeds, session
from latency.backends.onnxruntime.ops import differential_graph
from latency.device import environment
from latency.errors import MissingError, UsageError
from latency.op import Op, weight_bytes
from latency.timing import Clock, CpuClock, WallClock, checksum

if TYPE_CHECKING:
    import onnx


class OnOnnx(Backend):
    """What backends share that run ONNX graphs on the CPU, in fp32 or int8."""

    builds = 3
    """Builds of one cell at least: where a session's buffers lie changes its time."""

    files = (".onnx",)
    precision: str

    @classmethod
    def settings_of(cls, environment: Mapping[str, Any], layout: str) -> dict[str, Any]:
        """Returns the precision that a profile was measured with, where it is not fp32."""
        return {"precision": "int8"} if environment.get("dtype") == "int8" else {}

    def anchor(self) -> Callable[[], object]:
        """Returns a checksum of 16 KB, about 5 µs; see `latency.timing.checksum`."""
        return checksum()

    def reads(self, op: Op) -> int:
        """Returns the bytes of weights that a timed run of a build reads: those of all its copies, and of one."""
        return (self.policy.copies(op) + 1) * weight_bytes(op)

    def build(self, op: Op) -> Built:
        """Builds an op as two graphs, of some copies and of one; see `TimingPolicy.copies`."""
        most, plain = self.policy.copies(op), op if op.dtype != "int8" else replace(op, dtype="float32")
        graphs = [differential_graph(plain, copies, most) for copies in (most, 1)]
        many, one = (self.call(graph if plain is op else quantised(graph)) for graph in graphs)
        return Built(run=many, minus=one, copies=most - 1, method="twin")

    def call(self, graph: onnx.ModelProto) -> Callable[[], object]:
        """Returns what runs a graph on random inputs."""
        raise NotImplementedError

    def deployed(self, model: Any, example_inputs: Sequence[Any]) -> Any:
        """Returns the ONNX model of a module; in int8 with made-up ranges, which do not change its time."""
        made = to_onnx(model, example_inputs)
        return quantised(made) if self.precision == "int8" else made

    def given(self, model: Any, example_inputs: Sequence[Any] | None) -> Any:
        """Returns what a network is made of: in int8 a module's own ONNX model."""
        if self.precision != "int8" or example_inputs is None or not is_module(model):
            return model
        return self.deployed(model, example_inputs)


@backend("onnxruntime")
class OnnxRuntime(OnOnnx):
    """Ops and networks on ONNX Runtime; ops on its CPU provider.

    Args:
        threads: intra-op threads. One is timed by CPU time, several by the wall clock.
        device: ``auto`` or ``cpu``.
        precision: ``fp32`` or ``int8`` (QDQ); a file has its own.
        channels_last: False; the runtime chooses layouts itself.
        provider: of whole networks: ``cpu``, ``cuda``, ``tensorrt`` or ``rtx``.

    Raises:
        UsageError: another precision or layout, no such provider.
        MissingError: another device.
    """

    ways = (
        Way("cpu", (".onnx",), usual=True),
        Way("cuda", (".onnx",), {"provider": "cuda"}),
        Way("tensorrt", (".onnx",), {"provider": "tensorrt"}),
        Way("ort-rtx", (".onnx",), {"provider": "rtx"}),
        Way("onnx", ("module",)),
    )
    times_layers = True

    def __init__(
        self,
        threads: int = 1,
        device: str = "auto",
        precision: str = "fp32",
        channels_last: bool = False,
        provider: str = "cpu",
    ) -> None:
        self.check(device=device, precision=precision, channels_last=channels_last)
        self.threads, self.provider, self.precision = threads, provider, precision
        self.evicts = threads == 1
        """Whether caches are emptied before cold weights are timed; one thread cannot empty other cores' caches."""

    @classmethod
    def check(cls, **settings: Any) -> None:
        """Refuses settings that only other runtimes have."""
        super().check(**settings)
        device = settings.get("device", "auto")
        if settings.get("precision", "fp32") in PRECISIONS and device not in ("auto", "cpu"):
            raise MissingError(
                f"ONNX Runtime on {device} was asked for; it is measured on the CPU here; use --backend torch for a GPU"
            )
        if settings.get("precision", "fp32") not in PRECISIONS or settings.get("channels_last"):
            raise UsageError(
                "ONNX Runtime was asked with a device, precision or layout; it is measured on the CPU in fp32 or int8 "
                "and NCHW; leave them out, or add --backend torch"
            )

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        if self.provider == "cpu":
            return environment("onnxruntime", self.threads, PRECISIONS[self.precision], optimization="all")
        own = {**gpu_facts(), "provider": self.provider}
        return environment("onnxruntime", self.threads, optimization="all", **own)

    def clock(self) -> Clock:
        """Returns the CPU clock for one thread, the wall clock for several."""
        return CpuClock() if self.threads == 1 else WallClock()

    def call(self, graph: onnx.ModelProto) -> Callable[[], object]:
        """Returns what runs a graph on random inputs."""
        runtime = session(graph, threads=self.threads, merge=False)
        return partial(runtime.run, None, feeds(runtime))

    def network(
        self, model: Any, example_inputs: Sequence[Any] | None = None, **how: Unpack[NetworkOptions]
    ) -> Runner:
        """Returns a module, which is exported, an ONNX model or the path of one, to be entered and timed."""
        model = self.given(model, example_inputs)
        return SessionRunner(model, example_inputs, provider=self.provider, threads=self.threads, **how)

    @classmethod
    def found(cls) -> list[tuple[str, Found]]:
        """Returns the providers of the installation."""
        if importlib.util.find_spec("onnxruntime") is None:
            return []
        import onnxruntime

        return [("backend onnxruntime", Found("ok", ", ".join(onnxruntime.get_available_providers())))]


PRECISIONS = {"fp32": "float32", "int8": "int8"}
"""Arithmetic that ops and networks are timed in, and what profiles call it."""


QUANTISER: Mapping[str, Any] = {"per_channel": True, "reduce_range": False}
"""Arguments of the quantiser, for files and for what is timed alike."""

POSITIVE = ("Relu", "Clip", "Sigmoid", "HardSigmoid", "Softmax")
"""Ops whose results are never negative: their ranges begin at zero, so that the quantiser drops the op."""


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
    with quiet(""):
        quantiser = QDQQuantizer(
            shaped,
            QUANTISER["per_channel"],
            QUANTISER["reduce_range"],
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
