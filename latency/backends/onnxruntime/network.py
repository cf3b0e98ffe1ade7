"""Whole networks on ONNX Runtime: sessions, and what feeds them.

Constants of every session, for ops and networks alike: sequential execution, all graph optimisations, initialisers
constant (else the runtime leaves its blocked layout), ``threads`` intra-op threads, each on a core of its own.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from latency.backends import NetworkOptions, Runner, is_module
from latency.backends.onnxruntime.model import as_proto, check_file, exported, to_onnx, weight_precision
from latency.errors import MissingError, UsageError, said
from latency.timing import Clock, WallClock

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort


class SessionRunner(Runner):
    """A whole network in a session of ONNX Runtime."""

    def __init__(
        self,
        model: Any,
        example_inputs: Sequence[Any] | None,
        *,
        provider: str = "cpu",
        threads: int = 1,
        **how: Unpack[NetworkOptions],
    ) -> None:
        self.runtime = f"onnxruntime {provider}"
        self.device = "cpu" if provider == "cpu" else "cuda"
        self._model, self._examples, self._name = model, example_inputs, how.get("name")
        self._session_options: dict[str, Any] = {"threads": threads, "provider": provider}
        self._sizes, self._forwards = (how.get("batch"), how.get("shape")), how.get("forwards", 1)
        self._session: Any = None
        self._call: Callable[[], object] = lambda: None

    def ready(self) -> None:
        """Makes the session and runs it once."""
        model, given, module = self._model, self._examples, None
        if is_module(model):
            _check_precision(model, given or ())
            module, model = model, exported(model, given)
        elif not isinstance(model, str | Path | bytes) and not hasattr(model, "SerializeToString"):
            raise UsageError(
                f"the latency of a {type(model).__name__} was asked for; pass a torch module, an ONNX model or a path"
            )
        self.precision = weight_precision(as_proto(model))
        self._session = session(model, **self._session_options)
        name = self._name or (str(model) if isinstance(model, str | Path) else "the model")
        inputs = network_inputs(self._session, given, name, *self._sizes)
        try:
            self._session.run(None, inputs)
        except Exception as error:  # its exceptions share no base class
            if module is None:
                raise self._refused(error) from error
            # The module has a batch in it, and the graph that of the export's own try.
            self._session = session(
                to_onnx(module, given or (), dynamic_batch=False), **self._session_options
            )
        self._call = self._bound(inputs)

    def start(self) -> object:
        """Runs the inferences."""
        answer: object = None
        for _ in range(self._forwards):
            answer = self._call()
        return answer

    def free(self) -> None:
        """Frees the session."""
        self._session, self._call = None, lambda: None

    def clock(self) -> Clock | None:
        """Returns the wall clock on a GPU: the CPU time of a thread that waits for it says nothing."""
        return None if self.device == "cpu" else WallClock()

    def infer(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Returns the outputs in the model's order."""
        return list(self._session.run(None, dict(inputs)))

    def _bound(self, inputs: dict[str, Any]) -> Callable[[], object]:
        runtime = self._session
        if self.device == "cpu":
            return lambda: runtime.run(None, inputs)
        binding = runtime.io_binding()  # inputs and outputs stay on the GPU, as in an application of its own
        for key, value in inputs.items():
            binding.bind_cpu_input(key, value)
        for output in runtime.get_outputs():
            binding.bind_output(output.name, "cuda")

        def run() -> object:
            runtime.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return None

        return run

    def _refused(self, error: Exception) -> UsageError:
        why = said(error, first=True)
        if self._name is None:
            return UsageError(
                f"the model was to be run and ONNX Runtime refused: {why}; give inputs that it takes, or another batch"
            )
        return UsageError(
            f"{self._name} was to be run on batch {self._sizes[0] or 1} and ONNX Runtime refused: {why}; give the size "
            "it takes with --size, or another --batch"
        )


def _leaves(given: Sequence[Any]) -> list[Any]:
    """Returns the tensors and arrays among inputs, in order, those in lists and dicts included."""
    found: list[Any] = []
    for value in given:
        if hasattr(value, "detach") or isinstance(value, np.ndarray):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _leaves(list(value.values()))
        elif isinstance(value, list | tuple):
            found += _leaves(value)
    return found


def _check_precision(module: Any, example_inputs: Sequence[Any]) -> None:
    """Refuses bfloat16, for which ONNX Runtime has no kernels on the CPU."""
    values = [*module.parameters(), *example_inputs]
    if any(str(getattr(x, "dtype", "")) == "torch.bfloat16" for x in values):
        raise UsageError(
            f"the latency of {type(module).__name__} in bfloat16 was asked of ONNX Runtime, which has no such kernels "
            "on the CPU; measure model.float() with inputs of float32, or with backend='torch'"
        )


def session(
    model: onnx.ModelProto | bytes | str | Path,
    threads: int = 1,
    *,
    merge: bool = True,
    provider: str = "cpu",
    trace_to: Path | None = None,
) -> ort.InferenceSession:
    """Returns a session with the constants that every measurement here shares.

    Beyond one thread all but the caller's are tied to a core each; ``merge`` lets equal nodes merge, which a
    differential graph must not; ``trace_to`` is the prefix of the runtime's own profile.

    Raises:
        UsageError: a model that cannot be read or run.
        MissingError: a provider that this installation does not have.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    providers = _plugged(options) if provider == "rtx" else _providers(provider)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    cores = os.cpu_count() or 1
    if 1 < threads <= cores:
        options.add_session_config_entry(
            "session.intra_op_thread_affinities", ";".join(str(core + 1) for core in range(1, threads))
        )
    if trace_to is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(trace_to)
    if isinstance(model, str | Path):
        check_file(model)
        source: Any = str(model)
    else:
        source = model if isinstance(model, bytes) else model.SerializeToString()
    without = None if merge else ["CommonSubexpressionElimination"]
    try:
        named = None if provider == "rtx" else providers  # a plugin's provider is named by the options alone
        made = ort.InferenceSession(source, options, providers=named, disabled_optimizers=without)
    except Exception as error:  # its exceptions share no base class with one another
        what = str(model) if isinstance(model, str | Path) else "the model"
        raise UsageError(
            f"ONNX Runtime was asked to run {what} and refused: {said(error, first=True)}; "
            "check the file with onnx.checker"
        ) from error
    if made.get_providers()[0] != providers[0]:  # the runtime falls back, and says so in its log only
        raise MissingError(
            f"ONNX Runtime on {provider} was asked for, and it could not load {providers[0]}: it would run on "
            f"{made.get_providers()[0]}; check that CUDA and cuDNN are the versions that onnxruntime-gpu wants"
        )
    return made


PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""Execution providers by the word that asks for them, the first with those it falls back to."""


def _providers(name: str) -> list[str]:
    import onnxruntime as ort

    if name not in PROVIDERS:
        raise UsageError(f"the provider {name!r} was asked for; there are {', '.join(PROVIDERS)}, rtx")
    there = ort.get_available_providers()
    if PROVIDERS[name][0] not in there:
        raise MissingError(
            f"ONNX Runtime on {name} was asked for, and this installation has {', '.join(there)}; "
            "install onnxruntime-gpu on a machine with a CUDA device, or use the CPU"
        )
    return [provider for provider in PROVIDERS[name] if provider in there]


PLUGIN = "onnxruntime_ep_nv_tensorrt_rtx"
"""NVIDIA's package with the provider of TensorRT for RTX, a library that ONNX Runtime loads on request."""


def _plugged(options: ort.SessionOptions) -> list[str]:
    """Puts the provider of TensorRT for RTX on the first GPU that it finds; returns its name."""
    import onnxruntime as ort

    request = "ONNX Runtime on TensorRT for RTX was asked for, and"
    try:
        plugin = importlib.import_module(PLUGIN)
    except ImportError as error:
        raise MissingError(
            f"{request} {PLUGIN} cannot be imported ({error}); pip install onnxruntime-ep-nv-tensorrt-rtx on a machine "
            "with an NVIDIA GPU, or name @cuda"
        ) from error
    name = str(plugin.get_ep_name())

    def found() -> list[Any]:
        return [device for device in ort.get_ep_devices() if device.ep_name == name]

    if not found():  # a library is registered once in a process
        try:
            ort.register_execution_provider_library(name, plugin.get_library_path())
        except Exception as error:  # its exceptions share no base class
            raise MissingError(
                f"{request} its library cannot be loaded ({said(error, first=True)}); run nvidia-smi "
                "to see the driver, or name @cpu"
            ) from error
    devices = found()
    if not devices:
        raise MissingError(f"{request} it finds no GPU; run nvidia-smi to see the driver, or name @cuda")
    options.add_provider_for_devices(devices[:1], {})
    return [name]


def feeds(
    runtime: Any, *, batch: int = 1, seed: int = 0, sizes: Mapping[str, Sequence[int]] | None = None
) -> dict[str, Any]:
    """Returns random inputs for a session, free dimensions filled with the batch, or of the ``sizes`` given by name."""
    rng = np.random.default_rng(seed)
    found = {}
    for value in runtime.get_inputs():
        shape = [d if isinstance(d, int) else batch for d in (sizes or {}).get(value.name, value.shape)]
        dtype = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(value.type, np.float32)
        if value.type == "tensor(bool)":
            found[value.name] = np.ones(shape, dtype=np.bool_)
        elif value.type.startswith(("tensor(int", "tensor(uint")):
            found[value.name] = np.zeros(shape, dtype=np.dtype(value.type[7:-1]))
        else:
            found[value.name] = rng.standard_normal(shape).astype(dtype)
    return found


def network_inputs(
    runtime: Any, given: Sequence[Any] | None, name: str, batch: int | None, shape: Any
) -> dict[str, Any]:
    """Returns the arrays that a session, or `ModelInputs`, is fed: those given, in order, or random ones."""
    if given is None:
        return feeds(runtime, sizes=input_sizes(runtime, name, batch, shape))
    names = [value.name for value in runtime.get_inputs()]
    arrays = [x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x) for x in _leaves(given)]
    if len(arrays) != len(names):
        raise UsageError(
            f"{len(arrays)} example inputs were passed; the model reads {len(names)} ({', '.join(names)}); pass as many"
        )
    return dict(zip(names, arrays, strict=True))


def input_sizes(
    runtime: Any, name: str, batch: int | None, shape: Sequence[int] | Mapping[str, Sequence[int]] | None
) -> dict[str, list[Any]]:
    """Returns the shapes of the inputs of a session, or of `ModelInputs`, all open dimensions filled.

    Open dimensions have the sizes of the inputs that the file was exported with, where it says so.

    Raises:
        UsageError: a batch or a shape that the model does not take, or open dimensions without a shape.
    """
    sizes: dict[str, list[Any]] = {}
    written = written_shapes(runtime)
    named = {**shape} if isinstance(shape, Mapping) else {}
    shape = None if isinstance(shape, Mapping) else shape
    strange = sorted(named.keys() - {value.name for value in runtime.get_inputs()})
    if strange:
        raise UsageError(
            f"the size of {strange[0]} was given, and {name} reads "
            f"{', '.join(value.name for value in runtime.get_inputs())}; name one of these"
        )
    for value in runtime.get_inputs():
        dims = list(value.shape)
        own = dims[0] if dims and isinstance(dims[0], int) else None
        if not dims or (
            any(sizes.values()) and own is not None
        ):  # a scalar, or a table beside what has the batch
            sizes[value.name] = [d if isinstance(d, int) else batch for d in dims]
            continue
        if batch is None:
            batch = own or 1
        if own is not None and own != batch:
            raise UsageError(
                f"--batch {batch} was asked, and {name} takes batch {own} only; use --batch {own}, or export "
                "it with a free batch dimension (`halpiee export` does, unless the network has its batch in it)"
            )
        full = [batch, *dims[1:]]
        if shape is None and value.name in written.keys() - named.keys():
            full = [
                own if isinstance(own, int) else usual
                for own, usual in zip(full, [batch, *written[value.name]], strict=True)
            ]
        wanted = named.get(value.name, shape)
        if wanted is not None and (len(full) == len(wanted) + 1 or value.name in named):
            fits = len(full) == len(wanted) + 1
            clash = fits and [
                1 for a, b in zip(full[1:], wanted, strict=True) if isinstance(a, int) and a != b
            ]
            if clash or not fits:
                raise UsageError(
                    f"--size {'x'.join(map(str, wanted))} was asked, and {name} takes "
                    f"{'x'.join(map(str, full[1:]))}; leave --size out, or export the model at that size"
                )
            full = [batch, *wanted]
        unknown = [d for d in full if not isinstance(d, int)]
        if unknown:
            raise UsageError(
                f"{name} leaves {', '.join(map(str, unknown))} of its input {value.name} open; "
                "give them with --size, such as --size 3x224x224"
            )
        sizes[value.name] = full
    return sizes


def written_shapes(runtime: Any) -> dict[str, list[int]]:
    """Returns input → shape of its example without the batch, from the metadata ``input_shapes`` of the file."""
    text = str(runtime.get_modelmeta().custom_metadata_map.get("input_shapes", ""))
    ranks = {value.name: len(value.shape) for value in runtime.get_inputs()}
    found = {}
    for part in text.split(" "):
        name, mark, size = part.rpartition("=")
        numbers = size.split("x")
        if mark and all(n.isdecimal() for n in numbers) and ranks.get(name) == len(numbers) + 1:
            found[name] = [int(n) for n in numbers]
    return found
