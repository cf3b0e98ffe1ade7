"""OpenVINO on the CPU: ops as the differential graphs of ONNX Runtime's backend, whole networks from ONNX, QDQ in int8.

Every model is compiled for one stream of latency with ``threads`` threads, its shapes fixed; what is not int8 runs in
float32. Inference runs on threads of the runtime: it is timed by the wall clock, and the anchor tells which runs count.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np

from latency.backends import Found, NetworkOptions, Runner, Way, backend
from latency.backends.onnxruntime import PRECISIONS, OnOnnx
from latency.backends.onnxruntime.model import ModelInputs, as_proto, exported, weight_precision
from latency.backends.onnxruntime.network import feeds, network_inputs
from latency.device import environment
from latency.errors import MissingError, UsageError
from latency.timing import Clock, WallClock


@backend("openvino")
class OpenVINO(OnOnnx):
    """Ops and networks on OpenVINO's CPU plugin."""

    ways = (Way("openvino", (".onnx", "module")),)

    def __init__(
        self, threads: int = 1, device: str = "auto", precision: str = "fp32", channels_last: bool = False
    ) -> None:
        self.check(device=device, precision=precision, channels_last=channels_last)
        self.threads, self.precision = threads, precision
        self._core = _imported().Core()

    @classmethod
    def check(cls, **settings: Any) -> None:
        """Refuses settings that only other runtimes have."""
        super().check(**settings)
        device, precision = settings.get("device", "auto"), settings.get("precision", "fp32")
        if device not in ("auto", "cpu") or precision not in PRECISIONS or settings.get("channels_last"):
            raise UsageError(
                "OpenVINO was asked with a device, precision or layout; it is measured on the CPU in fp32 or int8; "
                "leave them out, or name another backend"
            )

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        return environment("openvino", self.threads, PRECISIONS[self.precision], optimization="latency")

    def clock(self) -> Clock:
        """Returns the wall clock: inference runs on the runtime's threads."""
        return WallClock()

    def call(self, graph: Any) -> Callable[[], object]:
        """Returns what runs a graph on random inputs."""
        return cast(Callable[[], object], self.request(graph, feeds(ModelInputs(graph))).infer)

    def network(
        self, model: Any, example_inputs: Sequence[Any] | None = None, **how: Unpack[NetworkOptions]
    ) -> Runner:
        """Returns a module, which is exported, an ONNX model or the path of one, to be entered and timed."""
        return _Network(self, self.given(model, example_inputs), example_inputs, **how)

    @classmethod
    def found(cls) -> list[tuple[str, Found]]:
        """Returns the version that is installed."""
        if importlib.util.find_spec("openvino") is None:
            return [("openvino", Found("note", "not installed", "pip install 'halpiee[openvino]'"))]
        return [("openvino", Found("ok", importlib.metadata.version("openvino")))]

    def request(self, proto: Any, arrays: Mapping[str, Any]) -> Any:
        """Returns an inference of an ONNX model, or of the path of one, that is ready to run on arrays by name."""
        ov = _imported()
        source = str(proto) if isinstance(proto, str | Path) else proto.SerializeToString()
        try:
            model = self._core.read_model(source)
            model.reshape({name: list(array.shape) for name, array in arrays.items()})
            how = {
                "INFERENCE_NUM_THREADS": self.threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
            }
            request = self._core.compile_model(model, "CPU", how).create_infer_request()
            for name, array in arrays.items():
                request.set_tensor(name, ov.Tensor(np.ascontiguousarray(array)))
            request.infer()
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise UsageError(
                f"OpenVINO was asked to run {proto if isinstance(proto, str | Path) else 'the model'} and refused: "
                f"{' '.join(lines)[-300:]}; give the inputs and the batch that it takes"
            ) from error
        return request


class _Network(Runner):
    """A whole network as one compiled model."""

    runtime = "openvino cpu"
    in_caller = False

    def __init__(
        self, own: OpenVINO, model: Any, examples: Sequence[Any] | None, **how: Unpack[NetworkOptions]
    ) -> None:
        self._own, self._model, self._examples = own, model, examples
        self._sizes, self._forwards = (how.get("batch"), how.get("shape")), how.get("forwards", 1)
        self._request: Any = None

    def ready(self) -> None:
        """Exports a module, compiles, and runs once."""
        given = self._examples
        model = exported(self._model, given)
        proto = as_proto(model)
        self.precision = weight_precision(proto)
        name = str(model) if isinstance(model, str | Path) else "the model"
        arrays = network_inputs(ModelInputs(proto), given, name, *self._sizes)
        self._request = self._own.request(model, arrays)

    def start(self) -> object:
        """Runs the inferences."""
        for _ in range(self._forwards):
            answer: object = self._request.infer()
        return answer

    def free(self) -> None:
        """Frees the compiled model."""
        self._request = None

    def again(self) -> Runner:
        """Returns another runner: a request serves one caller."""
        return self.copied()

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs in the model's order."""
        return list(self._request.infer(dict(inputs)).values())


def _imported() -> Any:
    try:
        import openvino
    except (ImportError, OSError) as error:
        raise MissingError(
            f"OpenVINO was asked for, and it cannot be imported ({error}); install it with "
            "`pip install 'halpiee[openvino]'`"
        ) from error
    return openvino
