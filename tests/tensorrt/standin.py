"""A ``tensorrt`` made from a contract: every name, argument, property and enum member must be in it, and fit its type.

What the names do is modelled as far as this project uses it. An engine is JSON: the layers it came from, its inputs and
outputs, the version and GPU it belongs to. Running one takes 5 µs a layer on the imagined GPU; an engine from ONNX
computes what ONNX Runtime computes.
"""

from __future__ import annotations

import base64
import enum
import json
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .gpu import Gpu

LAYER_US = 5.0
CONTRACTS = Path(__file__).parent / "contracts"
NUMPY = {"FLOAT": "float32", "HALF": "float16", "BF16": "uint16", "INT64": "int64"}
VERSIONS = {10: "10.3.0", 11: "11.0.0.114"}

TYPES: dict[str, tuple[Any, ...]] = {
    "Builder.__init__": ("ILogger",),
    "Builder.create_network": (int,),
    "Builder.create_builder_config": (),
    "Builder.create_optimization_profile": (),
    "Builder.build_serialized_network": ("INetworkDefinition", "IBuilderConfig"),
    "IBuilderConfig.set_memory_pool_limit": ("MemoryPoolType", int),
    "IBuilderConfig.set_flag": ("BuilderFlag",),
    "IBuilderConfig.clear_flag": ("BuilderFlag",),
    "IBuilderConfig.create_timing_cache": (bytes,),
    "IBuilderConfig.set_timing_cache": ("ITimingCache", bool),
    "IBuilderConfig.get_timing_cache": (),
    "IBuilderConfig.add_optimization_profile": ("IOptimizationProfile",),
    "IOptimizationProfile.set_shape": (str, tuple, tuple, tuple),
    "ITimingCache.serialize": (),
    "INetworkDefinition.add_input": (str, "DataType", tuple),
    "INetworkDefinition.add_constant": (tuple, "Weights"),
    "INetworkDefinition.add_convolution_nd": ("ITensor", int, tuple, "Weights", "Weights"),
    "INetworkDefinition.add_deconvolution_nd": ("ITensor", int, tuple, "Weights", "Weights"),
    "INetworkDefinition.add_resize": ("ITensor",),
    "INetworkDefinition.add_normalization": ("ITensor", "ITensor", "ITensor", int),
    "INetworkDefinition.add_activation": ("ITensor", "ActivationType"),
    "INetworkDefinition.add_elementwise": ("ITensor", "ITensor", "ElementWiseOperation"),
    "INetworkDefinition.add_pooling_nd": ("ITensor", "PoolingType", tuple),
    "INetworkDefinition.add_matrix_multiply": ("ITensor", "MatrixOperation", "ITensor", "MatrixOperation"),
    "INetworkDefinition.add_concatenation": (list,),
    "INetworkDefinition.mark_output": ("ITensor",),
    "INetworkDefinition.get_input": (int,),
    "Weights.__init__": ("DataType", int, int),
    "OnnxParser.__init__": ("INetworkDefinition", "ILogger"),
    "OnnxParser.parse_from_file": (str,),
    "OnnxParser.get_error": (int,),
    "ParserError.desc": (),
    "Runtime.__init__": ("ILogger",),
    "Runtime.deserialize_cuda_engine": (bytes,),
    "ICudaEngine.create_execution_context": (),
    "ICudaEngine.create_engine_inspector": (),
    "ICudaEngine.get_tensor_name": (int,),
    "ICudaEngine.get_tensor_mode": (str,),
    "ICudaEngine.get_tensor_shape": (str,),
    "ICudaEngine.get_tensor_dtype": (str,),
    "EngineInspector.get_engine_information": ("LayerInformationFormat",),
    "IExecutionContext.get_tensor_shape": (str,),
    "IExecutionContext.set_input_shape": (str, tuple),
    "IExecutionContext.set_tensor_address": (str, int),
    "IExecutionContext.execute_async_v3": (int,),
    "ILogger.__init__": (),
    "ILogger.log": (object, str),
    "IProfiler.__init__": (),
    "IProfiler.report_layer_time": (str, float),
}
"""Types of what this project passes; contracts hold names only. ``test_bindings.py`` puts them to the real bindings."""

PROPERTIES: dict[str, Any] = {
    "IBuilderConfig.builder_optimization_level": int,
    "IBuilderConfig.avg_timing_iterations": int,
    "IBuilderConfig.max_aux_streams": int,
    "IBuilderConfig.profiling_verbosity": "ProfilingVerbosity",
    "IConvolutionLayer.stride_nd": tuple,
    "IConvolutionLayer.padding_nd": tuple,
    "IConvolutionLayer.dilation_nd": tuple,
    "IConvolutionLayer.num_groups": int,
    "IDeconvolutionLayer.stride_nd": tuple,
    "IDeconvolutionLayer.padding_nd": tuple,
    "IDeconvolutionLayer.dilation_nd": tuple,
    "IDeconvolutionLayer.num_groups": int,
    "IResizeLayer.scales": (tuple, float),
    "IResizeLayer.resize_mode": "InterpolationMode",
    "IResizeLayer.coordinate_transformation": "ResizeCoordinateTransformation",
    "IResizeLayer.nearest_rounding": "ResizeRoundMode",
    "INormalizationLayer.epsilon": float,
    "IPoolingLayer.stride_nd": tuple,
    "IPoolingLayer.padding_nd": tuple,
    "IPoolingLayer.average_count_excludes_padding": bool,
    "IActivationLayer.alpha": float,
    "IActivationLayer.beta": float,
    "ITensor.name": str,
    "ITensor.allowed_formats": int,
    "IExecutionContext.profiler": "IProfiler",
}
"""Types of the properties it sets, a tuple being one of whole numbers; the name of a layer is text everywhere."""


@dataclass
class Behaviour:
    """What the stand-in is told to do.

    Attributes:
        gpu: where engines run.
        fails: complaints with which builds return None, one a build; None for a build that succeeds.
        unreadable: what the parser complains of.
        error: added to the outputs of engines made from ONNX.
        calls: every call that was made, by its name.
    """

    gpu: Gpu
    fails: list[str | None] = field(default_factory=list)
    unreadable: str | None = None
    error: float = 0.0
    calls: set[str] = field(default_factory=set)
    flags: dict[str, bool] = field(default_factory=dict)
    caches: list[bytes] = field(default_factory=list)


class _Named(enum.Enum):
    """A pybind enum: a member is no number, but has one."""

    def __int__(self) -> int:
        return int(self.value)


class Strict:
    """An object with the attributes of its contract and no others."""

    _contract: dict[str, Any]
    _class: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if f"{self._class}.{name}" not in self._contract["props"]:
            raise AttributeError(f"{self._class} has no {name}")
        raise AttributeError(f"{self._class}.{name} is not modelled")

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_") or "_class" not in type(self).__dict__:  # private, or a user's subclass
            object.__setattr__(self, name, value)
            return
        key = f"{self._class}.{name}"
        if self._contract["props"].get(key) != "rw":
            raise AttributeError(f"{key} cannot be set")
        wanted = str if name == "name" else PROPERTIES.get(key)
        assert wanted is not None, f"{key} is set, but not modelled: name its type"
        _check(key, value, wanted, self._module)
        object.__setattr__(self, name, value)


def _check(where: str, value: Any, wanted: Any, module: ModuleType) -> None:
    wanted, numbers = wanted if isinstance(wanted, tuple) else (wanted, int)
    kind = getattr(module, wanted) if isinstance(wanted, str) else wanted
    right = isinstance(value, kind) and not (kind is int and isinstance(value, bool | np.generic))
    if kind is tuple and right:
        right = all(type(v) is numbers for v in value)
    if not right:
        raise TypeError(f"{where}: incompatible argument {value!r}, wanted {kind.__name__}")


def tensorrt(major: int, behaviour: Behaviour) -> ModuleType:
    """Returns the module of a major version."""
    contract = json.loads((CONTRACTS / f"{major}.json").read_text())
    module = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)  # PyTorch looks for it
    module.__version__ = VERSIONS[major]  # type: ignore[attr-defined]
    for name, members in contract["enums"].items():
        setattr(module, name, _Named(name, members))
    owners = {key.split(".")[0] for key in (*contract["methods"], *contract["props"])}
    for owner in owners:
        space: dict[str, Any] = {
            "_contract": contract,
            "_class": owner,
            "_module": module,
            "_told": behaviour,
        }
        for key, overloads in contract["methods"].items():
            if key.split(".")[0] == owner:
                space[key.split(".")[1]] = _method(key, overloads, module, behaviour)
        for key in contract["props"]:
            getter = getattr(_Model, key.replace(".", "_"), None)
            if key.split(".")[0] == owner and getter is not None:
                space[key.split(".")[1]] = property(getter)
        setattr(module, owner, type(owner, (Strict,), space))
    return module


def _method(key: str, overloads: list[list[str]], module: ModuleType, told: Behaviour) -> Any:
    def call(self: Any, *given: Any, **named: Any) -> Any:
        # a layer's get_output is every layer's
        types = TYPES.get(key, (int,) if key.endswith("Layer.get_output") else None)
        assert types is not None, f"{key} is called, but not modelled: name its types"
        told.calls.add(key)
        for overload in overloads:
            names = [n.rstrip("?") for n in overload[1:]]
            optional = [n.rstrip("?") for n in overload[1:] if n.endswith("?")]
            bound = dict(zip(names, given, strict=False)) | named
            if (
                len(given) <= len(names)
                and set(bound) <= set(names)
                and set(names) - set(bound) <= set(optional)
            ):
                break
        else:
            raise TypeError(f"{key}: incompatible arguments {given} {named}")
        for name, wanted in zip(names, types, strict=False):
            if name in bound:
                _check(f"{key}({name})", bound[name], wanted, module)
        act = getattr(
            _Model, "Layer_get_output" if key.endswith("Layer.get_output") else key.replace(".", "_"), None
        )
        return act(self, *bound.values()) if act else None

    return call


def _new(like: Any, owner: str, **fields: Any) -> Any:
    cls = getattr(like._module, owner)
    made = cls.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(made, f"_{name}", value)
    return made


def _layer(network: Any, owner: str, kind: str, inputs: list[Any], shape: Any) -> Any:
    layer = _new(network, owner, kind=kind, inputs=inputs, shape=shape, network=network)
    object.__setattr__(layer, "_output", _new(network, "ITensor", layer=layer, dtype=inputs[0]._dtype))
    network._layers.append(layer)
    return layer


def _shape(tensor: Any) -> tuple[int, ...]:
    return tensor._layer._shape(tensor._layer) if tensor._layer is not None else tensor._fixed


def _window(layer: Any, kernel: tuple[int, ...], channels: int, dilation: tuple[int, ...]) -> tuple[int, ...]:
    n, _, *sizes = _shape(layer._inputs[0])
    padding, stride = getattr(layer, "padding_nd", (0, 0)), layer.stride_nd
    found = [
        (x + 2 * p - d * (k - 1) - 1) // s + 1
        for x, k, s, p, d in zip(sizes, kernel, stride, padding, dilation, strict=True)
    ]
    return (n, channels, *found)


def _broadcast(layer: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in np.broadcast_shapes(*map(_shape, layer._inputs)))


class _Model:
    """What the names do; ``Class_name`` is the method or property ``Class.name``."""

    def Builder___init__(self: Any, logger: Any) -> None:
        assert getattr(logger, "_ready", False), "a logger whose base was never initialised"
        self._logger = logger

    def ILogger___init__(self: Any) -> None:
        self._ready = True

    def IProfiler___init__(self: Any) -> None:
        self._ready = True

    def Builder_create_network(self: Any, flags: int = 0) -> Any:
        typed = 1 << int(self._module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        assert flags == typed, "networks are strongly typed"
        return _new(self, "INetworkDefinition", layers=[], inputs=[], outputs=[], onnx=None)

    def Builder_create_builder_config(self: Any) -> Any:
        return _new(self, "IBuilderConfig", cache=None, profiles=[])

    def Builder_create_optimization_profile(self: Any) -> Any:
        return _new(self, "IOptimizationProfile", shapes={})

    def IOptimizationProfile_set_shape(self: Any, name: str, low: Any, usual: Any, high: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(low, usual, high, strict=True))
        self._shapes[name] = (low, usual, high)

    def IBuilderConfig_add_optimization_profile(self: Any, profile: Any) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def IBuilderConfig_set_flag(self: Any, flag: Any) -> None:
        self._told.flags[flag.name] = True

    def IBuilderConfig_clear_flag(self: Any, flag: Any) -> None:
        self._told.flags[flag.name] = False

    def IBuilderConfig_create_timing_cache(self: Any, content: bytes) -> Any:
        return _new(self, "ITimingCache", content=content)

    def IBuilderConfig_set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        self._told.caches.append(cache._content)
        if cache._content and not cache._content.startswith(self._module.__version__.encode()):
            return False
        self._cache = cache
        return True

    def IBuilderConfig_get_timing_cache(self: Any) -> Any:
        return self._cache

    def ITimingCache_serialize(self: Any) -> bytes:
        return self._content

    def Builder_build_serialized_network(self: Any, network: Any, config: Any) -> bytes | None:
        told, version = self._told, self._module.__version__
        complaint = told.fails.pop(0) if told.fails else None
        if complaint is not None:
            self._logger.log(type("Severity", (), {"name": "ERROR"}), complaint)
            return None
        assert network._outputs or network._onnx, "a network without outputs"
        if config._cache is not None:
            config._cache._content = f"{version};{len(network._layers)}".encode()
        io = network._onnx["io"] if network._onnx else [
            *([t.name, "INPUT", t._dtype, list(t._fixed)] for t in network._inputs),
            *([t.name, "OUTPUT", t._dtype, list(_shape(t))] for t in network._outputs),
        ]  # fmt: skip
        plan = {
            "version": version,
            "gpu": told.gpu.name,
            "layers": [layer.name for layer in network._layers if layer._kind != "constant"] or ["network"],
            "io": io,
            "profile": config._profiles[0]._shapes if config._profiles else {},
            "onnx": network._onnx and network._onnx["file"],
        }
        assert config._profiles or all(-1 not in shape for *_, shape in io), (
            "open dimensions without a profile"
        )
        return json.dumps(plan).encode()

    def INetworkDefinition_add_input(self: Any, name: str, dtype: Any, shape: Any) -> Any:
        tensor = _new(self, "ITensor", layer=None, dtype=dtype.name, fixed=shape)
        tensor.name = name
        self._inputs.append(tensor)
        return tensor

    def INetworkDefinition_mark_output(self: Any, tensor: Any) -> None:
        self._outputs.append(tensor)

    def INetworkDefinition_add_constant(self: Any, shape: Any, weights: Any) -> Any:
        assert int(np.prod(shape)) == weights._count
        fake = _new(self, "ITensor", layer=None, dtype=weights._dtype, fixed=shape)
        return _layer(self, "ILayer", "constant", [fake], lambda layer: shape)

    def INetworkDefinition_add_convolution_nd(
        self: Any, x: Any, maps: int, size: Any, kernel: Any, bias: Any
    ) -> Any:
        def shape(layer: Any) -> tuple[int, ...]:
            taps = _shape(x)[1] // layer.num_groups * size[0] * size[1]
            assert kernel._count == maps * taps, "weights of the wrong number"
            return _window(layer, size, maps, layer.dilation_nd)

        assert bias._count == maps
        assert kernel._dtype == bias._dtype == x._dtype, "strong typing: one precision"
        return _layer(self, "IConvolutionLayer", "conv", [x], shape)

    def INetworkDefinition_add_deconvolution_nd(
        self: Any, x: Any, maps: int, size: Any, kernel: Any, bias: Any
    ) -> Any:
        def shape(layer: Any) -> tuple[int, ...]:
            n, channels, *sizes = _shape(x)
            assert kernel._count == channels * (maps // layer.num_groups) * size[0] * size[1]
            geometry = zip(sizes, size, layer.stride_nd, layer.padding_nd, layer.dilation_nd, strict=True)
            return (n, maps, *((i - 1) * s - 2 * p + d * (k - 1) + 1 for i, k, s, p, d in geometry))

        assert bias._count == maps
        assert kernel._dtype == bias._dtype == x._dtype, "strong typing: one precision"
        return _layer(self, "IDeconvolutionLayer", "deconvolution", [x], shape)

    def INetworkDefinition_add_resize(self: Any, x: Any) -> Any:
        def shape(layer: Any) -> tuple[int, ...]:
            assert layer.resize_mode.name == "NEAREST"
            return tuple(int(d * s) for d, s in zip(_shape(x), layer.scales, strict=True))

        return _layer(self, "IResizeLayer", "resize", [x], shape)

    def INetworkDefinition_add_normalization(self: Any, x: Any, scale: Any, bias: Any, axes: int) -> Any:
        size = _shape(x)
        wanted = tuple(d if axes >> i & 1 else 1 for i, d in enumerate(size))
        assert _shape(scale) == _shape(bias) == wanted, (
            "one number for each place along the axes, 1 elsewhere"
        )
        assert x._dtype == scale._dtype == bias._dtype, "strong typing: one precision"
        return _layer(self, "INormalizationLayer", "normalization", [x], lambda layer: size)

    def INetworkDefinition_add_pooling_nd(self: Any, x: Any, kind: Any, window: Any) -> Any:
        shape = lambda layer: _window(layer, window, _shape(x)[1], (1, 1))  # noqa: E731
        return _layer(self, "IPoolingLayer", "pool", [x], shape)

    def INetworkDefinition_add_activation(self: Any, x: Any, kind: Any) -> Any:
        return _layer(self, "IActivationLayer", "activation", [x], lambda layer: _shape(x))

    def INetworkDefinition_add_elementwise(self: Any, x: Any, y: Any, kind: Any) -> Any:
        assert x._dtype == y._dtype, "strong typing: one precision"
        assert len(_shape(x)) == len(_shape(y)), "TensorRT broadcasts between tensors of one rank only"
        return _layer(self, "IElementWiseLayer", "elementwise", [x, y], _broadcast)

    def INetworkDefinition_add_matrix_multiply(self: Any, x: Any, left: Any, y: Any, right: Any) -> Any:
        assert (left.name, right.name) == ("NONE", "TRANSPOSE")
        assert len(_shape(x)) == len(_shape(y))
        return _layer(
            self, "IMatrixMultiplyLayer", "matmul", [x, y], lambda _: (*_shape(x)[:-1], _shape(y)[-2])
        )

    def INetworkDefinition_add_concatenation(self: Any, inputs: Any) -> Any:
        shapes = [_shape(x) for x in inputs]
        whole = (shapes[0][0], sum(s[1] for s in shapes), *shapes[0][2:])
        return _layer(self, "ILayer", "concat", inputs, lambda layer: whole)

    def INetworkDefinition_num_inputs(self: Any) -> int:
        return len(self._inputs)

    def INetworkDefinition_get_input(self: Any, index: int) -> Any:
        return self._inputs[index]

    def Layer_get_output(self: Any, index: int) -> Any:
        assert index == 0
        return self._output

    def ILayer_get_output(self: Any, index: int) -> Any:
        return self._output

    def ITensor_shape(self: Any) -> tuple[int, ...]:
        return _shape(self)

    def Weights___init__(self: Any, dtype: Any, pointer: int, count: int) -> None:
        assert pointer > 0
        self._dtype, self._count = dtype.name, count

    def OnnxParser___init__(self: Any, network: Any, logger: Any) -> None:
        self._network = network

    def OnnxParser_num_errors(self: Any) -> int:
        return 0 if self._told.unreadable is None else 1

    def OnnxParser_get_error(self: Any, index: int) -> Any:
        return _new(self, "ParserError", text=self._told.unreadable)

    def ParserError_desc(self: Any) -> str:
        return self._text

    def OnnxParser_parse_from_file(self: Any, path: str) -> bool:
        if self._told.unreadable is not None:
            return False
        import onnx

        model = onnx.load(path)
        names = {
            onnx.TensorProto.FLOAT: "FLOAT",
            onnx.TensorProto.FLOAT16: "HALF",
            onnx.TensorProto.BFLOAT16: "BF16",
        }
        io = []
        for mode, values in (("INPUT", model.graph.input), ("OUTPUT", model.graph.output)):
            for value in values:
                kind = value.type.tensor_type
                shape = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
                io.append([value.name, mode, names[kind.elem_type], shape])
                if mode == "INPUT":
                    tensor = _new(
                        self, "ITensor", layer=None, dtype=names[kind.elem_type], fixed=tuple(shape)
                    )
                    tensor.name = value.name
                    self._network._inputs.append(tensor)
        content = base64.b64encode(Path(path).read_bytes()).decode()
        object.__setattr__(self._network, "_onnx", {"io": io, "file": content})
        return True

    def Runtime___init__(self: Any, logger: Any) -> None:
        assert getattr(logger, "_ready", False)

    def Runtime_deserialize_cuda_engine(self: Any, content: bytes) -> Any:
        try:
            plan = json.loads(content)
        except ValueError:
            return None
        if (plan["version"], plan["gpu"]) != (self._module.__version__, self._told.gpu.name):
            return None
        return _new(self, "ICudaEngine", plan=plan)

    def ICudaEngine_num_io_tensors(self: Any) -> int:
        return len(self._plan["io"])

    def ICudaEngine_get_tensor_name(self: Any, index: int) -> str:
        return self._plan["io"][index][0]

    def ICudaEngine_get_tensor_mode(self: Any, name: str) -> Any:
        return self._module.TensorIOMode[_row(self, name)[1]]

    def ICudaEngine_get_tensor_dtype(self: Any, name: str) -> Any:
        return self._module.DataType[_row(self, name)[2]]

    def ICudaEngine_get_tensor_shape(self: Any, name: str) -> tuple[int, ...]:
        return tuple(_row(self, name)[3])

    def ICudaEngine_create_execution_context(self: Any) -> Any:
        return _new(self, "IExecutionContext", engine=self, addresses={}, shapes={})

    def ICudaEngine_create_engine_inspector(self: Any) -> Any:
        return _new(self, "EngineInspector", engine=self)

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
            return self._shapes[name]
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
        assert stream in (77, 88), "a stream of its own, never the default one"
        assert set(self._addresses) == {row[0] for row in plan["io"]}, "a tensor without an address"

        def work() -> float:
            if plan["onnx"]:
                _compute(self, base64.b64decode(plan["onnx"]))
            profiler = self.__dict__.get("profiler")
            for name in plan["layers"] if profiler is not None else ():
                profiler.report_layer_time(name, LAYER_US / 1e3)
            return LAYER_US * len(plan["layers"])

        told.gpu.run(work)
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
