"""What the stand-in's names do to run an engine: 5 µs a layer on the imagined GPU.

``Class_name`` is the method or property ``Class.name``. An engine from ONNX computes what ONNX Runtime computes.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import numpy as np

from .building import new

__all__ = ["LAYER_US", "Running"]

LAYER_US = 5.0
NUMPY = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT64": "int64"}


class Running:
    """From a serialised engine to its outputs and times."""

    def Runtime___init__(self: Any, logger: Any) -> None:
        assert getattr(logger, "_ready", False)

    def Runtime_deserialize_cuda_engine(self: Any, content: bytes) -> Any:
        try:
            plan = json.loads(content)
        except ValueError:
            return None
        if (plan["version"], plan["gpu"]) != (self._module.__version__, self._told.gpu.name):
            return None
        return new(self, "ICudaEngine", plan=plan)

    def ICudaEngine_num_io_tensors(self: Any) -> int:
        return len(self._plan["io"])

    def ICudaEngine_get_tensor_name(self: Any, index: int) -> str:
        name: str = self._plan["io"][index][0]
        return name

    def ICudaEngine_get_tensor_mode(self: Any, name: str) -> Any:
        return self._module.TensorIOMode[_row(self, name)[1]]

    def ICudaEngine_get_tensor_dtype(self: Any, name: str) -> Any:
        return self._module.DataType[_row(self, name)[2]]

    def ICudaEngine_get_tensor_shape(self: Any, name: str) -> tuple[int, ...]:
        return tuple(_row(self, name)[3])

    def ICudaEngine_create_execution_context(self: Any) -> Any:
        return new(self, "IExecutionContext", engine=self, addresses={}, shapes={})

    def ICudaEngine_create_engine_inspector(self: Any) -> Any:
        return new(self, "EngineInspector", engine=self)

    def EngineInspector_get_engine_information(self: Any, form: Any) -> str:
        layers = [{"Name": n, "TacticName": f"kernel_of_{n}"} for n in self._engine._plan["layers"]]
        return json.dumps({"Layers": layers})

    def IExecutionContext_set_input_shape(self: Any, name: str, shape: Any) -> bool:
        low, _, high = self._engine._plan["profile"][name]
        if any(not a <= s <= b for a, s, b in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def IExecutionContext_get_tensor_shape(self: Any, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            told: tuple[int, ...] = self._shapes[name]
            return told
        batch = next((shape[0] for shape in self._shapes.values()), -1)
        return tuple(batch if d == -1 else d for d in _row(self._engine, name)[3])

    def IExecutionContext_set_tensor_address(self: Any, name: str, address: int) -> bool:
        count = int(np.prod(self.get_tensor_shape(name)))
        size = count * np.dtype(NUMPY[_row(self._engine, name)[2]]).itemsize
        assert len(self._told.gpu.memory[address]) >= size, "too little memory for a tensor"
        self._addresses[name] = address
        return True

    def IExecutionContext_execute_async_v3(self: Any, stream: int) -> bool:
        plan, told = self._engine._plan, self._told
        assert set(self._addresses) == {row[0] for row in plan["io"]}, "a tensor without an address"

        assert told.gpu.depth > 0, "no context is current in this thread"

        def work() -> float:
            assert not self.__dict__.get("_busy"), "two threads on one execution context"
            self._busy = True
            if told.busy_seconds:
                time.sleep(told.busy_seconds)
            self._busy = False
            if plan["onnx"] and told.computes:
                _compute(self, base64.b64decode(plan["onnx"]))
            profiler = self.__dict__.get("profiler")
            for name in plan["layers"] if profiler is not None else ():
                profiler.report_layer_time(name, LAYER_US / 1e3)
            us: float = LAYER_US * len(plan["layers"]) if told.us is None else told.us(plan)
            return us

        told.gpu.run(work, stream)
        return True


def _row(engine: Any, name: str) -> list[Any]:
    return next(row for row in engine._plan["io"] if row[0] == name)


def _compute(context: Any, model: bytes) -> None:
    """Puts into the outputs' memory what ONNX Runtime makes of the inputs' memory."""
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    memory, feeds = context._told.gpu.memory, {}
    for value in session.get_inputs():
        shape = context.get_tensor_shape(value.name)
        dtype = np.dtype(NUMPY[_row(context._engine, value.name)[2]])
        flat = np.frombuffer(memory[context._addresses[value.name]], dtype=dtype, count=int(np.prod(shape)))
        feeds[value.name] = flat.reshape(shape)
    names = [o.name for o in session.get_outputs()]
    for name, array in zip(names, session.run(names, feeds), strict=True):
        data = (array + np.asarray(context._told.error, dtype=array.dtype)).tobytes()
        memory[context._addresses[name]][: len(data)] = data
