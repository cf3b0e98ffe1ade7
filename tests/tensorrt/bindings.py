"""Runs the project's TensorRT code against the real Python bindings, without TensorRT's libraries.

The bindings reach the libraries through nine C functions; all else are virtual calls. Here the libraries are one object
whose every virtual slot returns the object itself, so that the bindings check every name and type as they do in
production, while nothing is computed. What a call returns as a value is junk, and is set from here where it is read.

    python -m tests.tensorrt.bindings FOLDER MAJOR       FOLDER holds the unpacked wheel and gets the libraries
"""

from __future__ import annotations

import ctypes
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = """
extern "C" {
static void* slots[4096] __attribute__((aligned(4096)));  // read as text, its address is empty
static struct {
    char before[16];
    struct { void** table; char room[65536]; } self;
} whole __attribute__((aligned(256)));
#define object whole.self  // whose address ends in 16: read as a truth value it is true
static void* self_returned(...) { return &object; }
static void* get() {
    for (int i = 0; i < 4096; ++i) slots[i] = (void*)&self_returned;
    object.table = slots;
    void** words = (void**)object.room;
    for (int i = 0; i < 64; ++i) words[i] = (void*)&object;
    return &object;
}
void* createInferBuilder_INTERNAL(void*, int) { return get(); }
void* createInferRuntime_INTERNAL(void*, int) { return get(); }
void* createInferRefitter_INTERNAL(void*, void*, int) { return get(); }
void* getPluginRegistry() { return get(); }
void* getBuilderPluginRegistry(int) { return get(); }
bool initLibNvInferPlugins(void*, const char*) { return true; }
void* createNvOnnxParser_INTERNAL(void*, void*, int) { return get(); }
void* createNvOnnxParserRefitter_INTERNAL(void*, void*, int) { return get(); }
int getNvOnnxParserVersion() { return 0; }
}
"""


def libraries(folder: Path, major: int) -> None:
    """Compiles the three libraries and loads them under the names the bindings look for."""
    for name in ("nvinfer", "nvinfer_plugin", "nvonnxparser"):
        target = folder / f"lib{name}.so.{major}"
        command = [
            "g++",
            "-shared",
            "-fPIC",
            "-O0",
            "-x",
            "c++",
            "-",
            "-o",
            str(target),
            f"-Wl,-soname,{target.name}",
        ]
        subprocess.run(command, input=SOURCE.encode(), check=True)
        ctypes.CDLL(str(target), ctypes.RTLD_GLOBAL)


def contradictions(trt: Any, contract: dict[str, Any]) -> list[str]:
    """Returns what a contract names and the bindings lack, and members whose numbers differ."""
    wrong = []
    for enum, members in contract["enums"].items():
        there = getattr(getattr(trt, enum, None), "__members__", {})
        wrong += [f"{enum}.{m}" for m, number in members.items() if m in there and int(there[m]) != number]
        wrong += [f"{enum} is not there"] if not there else []
    return wrong


def missing(trt: Any, names: set[str]) -> list[str]:
    """Returns names of the form ``Class.member`` that the bindings lack."""
    return sorted(n for n in names if not hasattr(getattr(trt, n.split(".")[0], None), n.split(".")[1]))


def pretend(trt: Any) -> None:
    """Gives sensible answers where the fake libraries give junk, and leaves the checks of arguments alone."""
    shapes = {"b0.input": (1, 8, 8, 8), "b0.other": (1, 8, 8, 8), "b0.output": (1, 8, 8, 8)}
    names = list(shapes)
    answers = {
        "get_tensor_name": lambda i: names[i],
        "get_tensor_shape": lambda n: shapes[n],
        "get_tensor_mode": lambda n: trt.TensorIOMode.OUTPUT if n == names[-1] else trt.TensorIOMode.INPUT,
        "get_tensor_dtype": lambda n: trt.DataType.FLOAT,
    }
    for name, answer in answers.items():
        for owner in (trt.ICudaEngine, trt.IExecutionContext):
            if hasattr(owner, name):
                _after(owner, name, answer)
    trt.ICudaEngine.num_io_tensors = property(lambda self: len(names))
    for owner, name, value in (
        (trt.Builder, "build_serialized_network", b"a plan"),
        (trt.ITimingCache, "serialize", b"a cache"),
        (trt.EngineInspector, "get_engine_information", "{}"),
    ):
        _after(owner, name, lambda *_, _value=value: _value)
    for owner, name in (
        (trt.IBuilderConfig, "set_timing_cache"),
        (trt.IExecutionContext, "execute_async_v3"),
        (trt.IExecutionContext, "set_tensor_address"),
        (trt.IExecutionContext, "set_input_shape"),
        (trt.OnnxParser, "parse_from_file"),
    ):
        _after(owner, name, lambda *_: True)


def _after(owner: Any, name: str, answer: Any) -> None:
    real = getattr(owner, name)

    def call(self: Any, *given: Any, **named: Any) -> Any:
        real(self, *given, **named)  # the bindings check names and types
        return answer(*given)

    setattr(owner, name, call)


def main(folder: Path, major: int) -> dict[str, Any]:
    """Runs everything; returns what was found."""
    from latency.op import OPS, Op

    from .gpu import Gpu, cuda_python_modules
    from .types_of_calls import PROPERTIES, TYPES

    libraries(folder, major)
    sys.path.insert(0, str(folder))
    trt = importlib.import_module(
        "tensorrt_bindings" if (folder / "tensorrt_bindings").is_dir() else "tensorrt"
    )
    contract = json.loads((Path(__file__).parent / "contracts" / f"{major}.json").read_text())
    found: dict[str, Any] = {
        "version": trt.__version__,
        "numbers": contradictions(trt, contract),
        "missing": missing(trt, set(TYPES) | set(PROPERTIES)),
    }
    pretend(trt)
    sys.modules["tensorrt"] = trt
    sys.modules.update(cuda_python_modules(Gpu()))
    from latency.backends.tensorrt import TensorRT
    from latency.backends.tensorrt.ops import ACTIVATIONS, GATED, KINDS

    ran = []
    windowed: dict[str, Any] = {"kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    for kind in KINDS:
        shape = windowed if kind in ("conv", "conv_transpose", "max_pool", "avg_pool") else {}
        sides: dict[str, Any] = {} if OPS[kind].rows else {"h": 8, "w": 8}
        tail = ("add", *ACTIVATIONS, *GATED) if kind == "conv" else ()
        op = Op(kind=kind, c_in=8, c_out=8, tail=tail, **sides, **shape)
        TensorRT().build(op)
        ran.append(kind)
    for precision, dtype in (("tf32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")):
        TensorRT(precision=precision).build(
            Op(kind="conv", c_in=8, c_out=8, h=8, w=8, dtype=dtype, **windowed)
        )
        ran.append(precision)
    found["ran"] = [*ran, *from_onnx(trt, folder)]
    return found


def from_onnx(trt: Any, folder: Path) -> list[str]:
    """Does what an engine of an ONNX file needs: the parser and its complaints, a range of shapes, every flag."""
    from latency.backends.cuda import open_cuda
    from latency.backends.tensorrt.builder import Builder, Settings
    from latency.backends.tensorrt.engine import Execution, load_engine
    from latency.errors import UsageError

    builder = Builder(Settings(sparse=True, tf32=True, workspace_bytes=1 << 30))
    network = builder.parsed(folder / "any.onnx")
    plan = builder.build(network, shapes={"b0.input": ((1, 8, 8, 8), (2, 8, 8, 8), (4, 8, 8, 8))})
    _after(trt.ICudaEngine, "get_tensor_shape", lambda name: (-1, 8, 8, 8))
    engine = load_engine(trt, plan)
    assert engine is not None
    shapes = {name: (1, 8, 8, 8) for name in ("b0.input", "b0.other")}
    Execution(trt, engine, open_cuda("cuda-python"), shapes=shapes)
    _after(trt.OnnxParser, "parse_from_file", lambda *_: False)
    trt.OnnxParser.num_errors = property(lambda self: 1)
    try:
        builder.parsed(folder / "any.onnx")
    except UsageError:
        return ["shapes", "parser"]
    return ["shapes"]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
