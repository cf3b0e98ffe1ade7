"""What the stand-in's names do to build an engine: networks and their layers, configurations, ONNX files.

``Class_name`` is the method or property ``Class.name``. An engine is JSON: the layers it came from, its inputs and
outputs, the version and GPU it belongs to.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Building", "new"]


def new(like: Any, owner: str, **fields: Any) -> Any:
    """Returns an object of a class of the same module, with private fields."""
    cls = getattr(like._module, owner)
    made = cls.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(made, f"_{name}", value)
    return made


def _layer(network: Any, owner: str, kind: str, inputs: list[Any], shape: Any) -> Any:
    layer = new(network, owner, kind=kind, inputs=inputs, shape=shape, network=network)
    object.__setattr__(layer, "_output", new(network, "ITensor", layer=layer, dtype=inputs[0]._dtype))
    network._layers.append(layer)
    return layer


def _shape(tensor: Any) -> tuple[int, ...]:
    layer = tensor._layer
    found: tuple[int, ...] = layer._shape(layer) if layer is not None else tensor._fixed
    return found


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


class Building:
    """From a logger to a serialised engine."""

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
        return new(self, "INetworkDefinition", layers=[], inputs=[], outputs=[], onnx=None)

    def Builder_create_builder_config(self: Any) -> Any:
        return new(self, "IBuilderConfig", cache=None, profiles=[])

    def Builder_create_optimization_profile(self: Any) -> Any:
        return new(self, "IOptimizationProfile", shapes={})

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
        return new(self, "ITimingCache", content=content)

    def IBuilderConfig_set_timing_cache(self: Any, cache: Any, ignore_mismatch: bool) -> bool:
        self._told.caches.append(cache._content)
        if cache._content and not cache._content.startswith(self._module.__version__.encode()):
            return False
        self._cache = cache
        return True

    def IBuilderConfig_get_timing_cache(self: Any) -> Any:
        return self._cache

    def ITimingCache_serialize(self: Any) -> bytes:
        content: bytes = self._content
        return content

    def Builder_build_serialized_network(self: Any, network: Any, config: Any) -> bytes | None:
        told, version = self._told, self._module.__version__
        complaint = told.fails.pop(0) if told.fails else None
        if complaint is not None:
            self._logger.log(type("Severity", (), {"name": "ERROR"}), complaint)
            return None
        assert network._outputs or network._onnx, "a network without outputs"
        told.levels.append(config.builder_optimization_level)
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
        tensor = new(self, "ITensor", layer=None, dtype=dtype.name, fixed=shape)
        tensor.name = name
        self._inputs.append(tensor)
        return tensor

    def INetworkDefinition_mark_output(self: Any, tensor: Any) -> None:
        self._outputs.append(tensor)

    def INetworkDefinition_add_constant(self: Any, shape: Any, weights: Any) -> Any:
        assert int(np.prod(shape)) == weights._count
        fake = new(self, "ITensor", layer=None, dtype=weights._dtype, fixed=shape)
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
        return new(self, "ParserError", text=self._told.unreadable)

    def ParserError_desc(self: Any) -> str:
        text: str = self._text
        return text

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
                    tensor = new(self, "ITensor", layer=None, dtype=names[kind.elem_type], fixed=tuple(shape))
                    tensor.name = value.name
                    self._network._inputs.append(tensor)
        content = base64.b64encode(Path(path).read_bytes()).decode()
        object.__setattr__(self._network, "_onnx", {"io": io, "file": content})
        return True
