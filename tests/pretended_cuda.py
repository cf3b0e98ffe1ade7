"""A CUDA device that is none, to test what runs on a GPU without one.

``PretendedCuda()`` is a context manager. Inside, ``device="cuda"`` gives tensors of the CPU that carry a mark, and each
call of torch is checked as CUDA would check it: tensors of two devices in one call, an index or a generator of the
wrong side, ``.numpy()`` of a marked tensor. What waits for the device is counted, with the line of the project.

``PretendedCuda(modelled=True)`` gives tensors without numbers instead (of torch's ``meta`` device), and a clock: every
call takes what a model of an H200 says. Then graphs, events and streams work, and memory is counted.
"""

from __future__ import annotations

import contextlib
import math
import traceback
import types
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["LAUNCH_US", "PretendedCuda", "modelled_us"]

CUDA = torch.device("cuda:0")
MARK = "_pretended_cuda"

WAITS = frozenset(
    [
        "item",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "tolist",
        "nonzero",
        "masked_select",
        "unique",
        "equal",
        "is_nonzero",
        "argwhere",
        "bincount",
        "repeat_interleave",
    ]
)
"""Calls that wait for the device where they are given one of its tensors."""

EITHER_SIDE = frozenset(
    [
        "copy_",
        "__set__",
        "to",
        "cpu",
        "cuda",
        "type_as",
        "__getitem__",
        "__setitem__",
        "index",
        "index_put_",
        "_foreach_copy_",
        "__deepcopy__",
        "__get__",
        "set_",
        "__reduce_ex__",
        "result_type",
        "can_cast",
        "is_same_size",
        "size",
        "dim",
        "numel",
        "stride",
        "is_floating_point",
        "is_complex",
        "backward",
        "_has_compatible_shallow_copy_type",
        "data_ptr",
        "untyped_storage",
    ]
)
"""Calls that take tensors of both sides."""

FREE = frozenset(["__get__", "detach", "view", "reshape", "expand", "randn", "zeros", "empty", "contiguous"])
"""Views and allocations, which take no modelled time."""

LAUNCH_US = 2.0
"""From one kernel of a graph to the next, modelled."""

FLOPS, BYTES_PER_US, MULTIPROCESSORS, L2_BYTES = 800e6, 4.0e6, 132, 50 << 20
"""An H200, modelled: half-precision operations a µs (a fifth of them in float32), bytes a µs from memory."""


def modelled_us(name: str, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> float:
    """Returns what a kernel takes on the modelled device: arithmetic in whole waves of tiles, or memory.

    Views and allocations take nothing.
    """
    out = outputs[0] if outputs else None
    if out is None or name in (
        "__get__",
        "detach",
        "view",
        "reshape",
        "expand",
        "randn",
        "zeros",
        "empty",
        "contiguous",
    ):
        return 0.0
    moved = sum(t.numel() * t.element_size() for t in (*inputs, *outputs))
    flops = 0.0
    if name in ("convolution", "linear") and len(inputs) > 1:
        flops = 2.0 * out.numel() * inputs[1].numel() / max(1, inputs[1].shape[0])
        tiles = math.ceil(out.numel() / (128 * 64))
        waves = math.ceil(tiles / MULTIPROCESSORS)
        flops *= waves * MULTIPROCESSORS * 128 * 64 / out.numel() if tiles > MULTIPROCESSORS else 1.0
        flops *= 1.0 if out.element_size() == 2 else 5.0
    return LAUNCH_US + max(flops / FLOPS, moved / BYTES_PER_US)


class PretendedCuda(TorchFunctionMode):
    """The device, while the context lasts.

    Args:
        modelled: whether tensors have no numbers and calls take modelled time.
        devices: GPUs that there are.

    Attributes:
        waits: what waited for the device, with how often.
        where: the same by line of the project.
        now_us: modelled time so far.
        entered: devices that were made the current one, in order.
        did: what the host did, modelled: calls that launch or are captured, graphs, tensors allocated, and searches for
            an algorithm, of which every new shape of a convolution needs one.
        most_bytes: of the tensors that lived at once, modelled.
    """

    def __init__(self, *, modelled: bool = False, devices: int = 1) -> None:
        super().__init__()
        self.modelled, self.devices = modelled, devices
        self.waits: Counter[str] = Counter()
        self.where: Counter[str] = Counter()
        self.now_us = 0.0
        self.entered: list[object] = []
        self.did: Counter[str] = Counter()
        self._searched: set[tuple[Any, ...]] = set()
        self.held = self.most_bytes = 0
        self.captured: list[float] | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PretendedCuda:
        for owner, name, value in self._replaced():
            self._stack.callback(setattr, owner, name, owner.__dict__.get(name, getattr(owner, name)))
            setattr(owner, name, value)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._stack.close()

    def has(self, value: Any) -> bool:
        """Returns whether a value is a tensor of the device."""
        if not isinstance(value, torch.Tensor):
            return False
        return value.is_meta if self.modelled else bool(value.__dict__.get(MARK, False))

    def mark(self, value: Any) -> Any:
        """Puts a tensor on the device."""
        if isinstance(value, torch.Tensor) and not self.modelled:
            value.__dict__[MARK] = True
        return value

    # What torch.cuda says and does.

    def _replaced(self) -> Iterator[tuple[Any, str, Any]]:
        cuda: Any = torch.cuda
        facts = types.SimpleNamespace(
            name="Pretended", major=9, minor=0, multi_processor_count=MULTIPROCESSORS, L2_cache_size=L2_BYTES,
            total_memory=139 << 30,
        )  # fmt: skip
        yield cuda, "is_available", lambda: True
        yield cuda, "device_count", lambda: self.devices
        yield cuda, "current_device", lambda: 0
        yield cuda, "get_device_name", lambda device=0: "Pretended"
        yield cuda, "get_device_properties", lambda device=0: facts
        yield cuda, "synchronize", lambda device=None: self._wait("synchronize")
        yield cuda, "manual_seed", lambda seed: None
        yield cuda, "manual_seed_all", lambda seed: None
        yield cuda, "get_rng_state", lambda device=0: torch.zeros(1, dtype=torch.uint8)
        yield cuda, "set_rng_state", lambda state, device=0: None
        yield cuda, "get_rng_state_all", lambda: []
        yield cuda, "set_rng_state_all", lambda states: None
        yield cuda, "device", self._on
        yield cuda, "Stream", lambda device=None: object()
        yield cuda, "stream", lambda stream: contextlib.nullcontext()
        yield cuda, "graph_pool_handle", lambda: (0, 1)
        yield cuda, "CUDAGraph", lambda: Graph(self)
        yield cuda, "graph", self._graph
        yield cuda, "Event", lambda enable_timing=False: Event(self)
        yield torch.version, "cuda", "13.0"
        yield torch.profiler, "profile", _no_profiler
        yield torch, "load", self._loading(torch.load)
        yield torch.nn.Parameter, "__new__", self._parameter(torch.nn.Parameter.__new__)
        for name in ("numpy", "__array__"):
            yield torch.Tensor, name, self._refusing(getattr(torch.Tensor, name))

    @contextlib.contextmanager
    def _on(self, device: object) -> Iterator[None]:
        self.entered.append(device)
        yield

    @contextlib.contextmanager
    def _graph(self, graph: Graph, pool: object = None, stream: object = None) -> Iterator[None]:
        assert self.captured is None, "a capture within a capture"
        begun, self.captured = self.now_us, []
        self.did["graphs"] += 1
        try:
            yield
        finally:
            graph.us, self.captured, self.now_us = sum(self.captured), None, begun

    def _loading(self, load: Callable[..., Any]) -> Callable[..., Any]:
        def loading(file: Any, map_location: Any = None, **more: Any) -> Any:
            found = load(file, map_location=None if map_location is None else "cpu", **more)
            return _mapped(self.mark, found) if _is_cuda(map_location) else found

        return loading

    def _parameter(self, new: Callable[..., Any]) -> Callable[..., Any]:
        def made(cls: type, data: Any = None, requires_grad: bool = True) -> Any:
            found = new(cls, data, requires_grad)
            return self.mark(found) if self.has(data) else found

        return made

    def _refusing(self, old: Callable[..., Any]) -> Callable[..., Any]:
        def refused(tensor: Any, *more: Any, **fields: Any) -> Any:
            if self.has(tensor):
                raise TypeError(
                    "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first."
                )
            return old(tensor, *more, **fields)

        return refused

    def _wait(self, what: str) -> None:
        self.waits[what] += 1
        for frame in reversed(traceback.extract_stack(limit=16)):
            if any(part in frame.filename for part in ("/halpiee/", "/latency/")):
                self.where[f"{what} {frame.filename.rpartition('/')[2]}:{frame.lineno}"] += 1
                break

    # What every call of torch is.

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Checks a call as CUDA would, runs it, and marks what it returns."""
        fields, name = dict(kwargs or {}), str(getattr(func, "__name__", func))
        inputs = _tensors(args) + _tensors(fields.values())
        on = [t for t in inputs if self.has(t)]
        if name in ("__get__", "__set__"):
            return self._attribute(func, name, args, fields)
        if name == "_parse_to":  # reads what a module is to be moved to, and moves nothing
            return func(*args, **fields)
        if name == "get_device":
            return 0 if on else -1
        if name in ("to", "cpu", "cuda") and inputs:
            return self._moved(name, args, fields)
        if _is_cuda(fields.get("device")):
            if fields.get("generator") is not None:
                raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
            fields["device"] = "meta" if self.modelled else "cpu"
            return self._allocated(self.mark(func(*args, **fields)))
        if on and fields.get("device") is not None:
            return func(*args, **fields)
        self._check(name, args, inputs, on)
        if on and (name in WAITS or (name == "where" and len(args) == 1)):
            self._wait(name)
        # without numbers a ReLU is its size; torch's own way to it is twenty functions of Python
        sized = self.modelled and name == "relu" and on and not fields.get("inplace") and len(args) == 1
        out = torch.empty_like(args[0]) if sized else func(*args, **fields)
        return self._answered(name, args, on, out)

    def _attribute(self, func: Any, name: str, args: Sequence[Any], fields: dict[str, Any]) -> Any:
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        there = self.has(args[0])
        if name == "__get__":
            if there and attribute in ("device", "is_cuda", "is_cpu"):
                return {"device": CUDA, "is_cuda": True, "is_cpu": False}[attribute]
            found = func(*args, **fields)
            return self.mark(found) if there else found
        given = args[1] if len(args) > 1 else None
        if attribute == "grad" and isinstance(given, torch.Tensor) and there != self.has(given):
            raise RuntimeError("assigned grad has data located on a different device")
        found = func(*args, **fields)
        if attribute == "data" and not self.modelled:
            args[0].__dict__[MARK] = self.has(given)
        return found

    def _moved(self, name: str, args: Sequence[Any], fields: dict[str, Any]) -> Any:
        source, target, dtype = args[0], fields.pop("device", None), fields.pop("dtype", None)
        for value in args[1:]:
            if isinstance(value, torch.device | str):
                target = value
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, torch.Tensor):
                target, dtype = CUDA if self.has(value) else "cpu", value.dtype
        target = {"cpu": "cpu", "cuda": CUDA}.get(name, target)
        goes = self.has(source) if target is None else _is_cuda(target)
        if goes != self.has(source):
            self._wait("upload" if goes else "download")
        with torch._C.DisableTorchFunction():
            out = source.to(dtype=dtype, **fields) if dtype is not None or fields else source
            if self.modelled and goes != source.is_meta:
                return torch.empty_like(out, device="meta" if goes else "cpu")
            if out is source and goes != self.has(source):
                out = source.clone()
        if out is not source:
            out.__dict__[MARK] = goes
        return out

    def _check(
        self, name: str, args: Sequence[Any], inputs: list[torch.Tensor], on: list[torch.Tensor]
    ) -> None:
        """Raises where CUDA would."""
        if name in ("__getitem__", "__setitem__") and inputs:
            indices = _tensors(args[1:2])
            if not self.has(args[0]) and any(map(self.has, _tensors(args[1:]))):
                raise RuntimeError(
                    "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
                )
            if self.has(args[0]):
                given = args[2] if len(args) > 2 else None
                if isinstance(given, torch.Tensor) and given.dim() > 0 and not self.has(given):
                    raise RuntimeError(f"{name}: tensors are on two devices, cuda:0 and cpu")
                for index in indices:
                    if index.dtype == torch.bool or not self.has(index):
                        self._wait("index")
        if on and name not in EITHER_SIDE:
            for tensor in inputs:
                if tensor.dim() > 0 and not self.has(tensor):
                    raise RuntimeError(
                        f"{name}: Expected all tensors to be on the same device, but found at least two devices, "
                        f"cuda:0 and cpu! (cpu tensor of shape {tuple(tensor.shape)})"
                    )

    def _answered(self, name: str, args: Sequence[Any], on: list[torch.Tensor], out: Any) -> Any:
        """Marks what a call on the device returned, and lets the modelled time pass."""
        if not on or name in ("item", "tolist") or (name == "copy_" and not self.has(args[0])):
            return out
        if name == "copy_" and not all(map(self.has, _tensors(args[1:2]))):
            self._wait("upload")
        results = _tensors([out])
        for tensor in results:
            self.mark(tensor)
        if self.modelled:
            us = modelled_us(name, on, results)
            self.now_us += us
            if self.captured is not None:
                self.captured.append(us)
            self._count(name, us, on)
            for tensor in results:
                if not any(tensor is given for given in on):  # what is changed in place is there already
                    self._allocated(tensor)
        return out

    def _count(self, name: str, us: float, inputs: Sequence[torch.Tensor]) -> None:
        """Counts what the host does for a call."""
        if us == 0.0:
            return
        self.did["launched" if self.captured is None else "captured"] += 1
        if name == "convolution" and self.captured is None:
            shape = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in inputs)
            self.did["searches"] += shape not in self._searched
            self._searched.add(shape)

    def _allocated(self, tensor: Any) -> Any:
        """Counts a tensor's bytes while it lives."""
        if self.modelled and isinstance(tensor, torch.Tensor) and tensor._base is None:
            import weakref

            self.did["allocated"] += 1
            size = tensor.numel() * tensor.element_size()
            self.held += size
            self.most_bytes = max(self.most_bytes, self.held)
            weakref.finalize(tensor, self._freed, size)
        return tensor

    def _freed(self, size: int) -> None:
        self.held -= size


class Graph:
    """A graph that takes, each time, what its calls took when they were captured."""

    def __init__(self, cuda: PretendedCuda) -> None:
        self._cuda, self.us = cuda, 0.0

    def replay(self) -> None:
        """Lets the time pass."""
        self._cuda.now_us += 5.0 + self.us


class Event:
    """A moment of the modelled clock."""

    def __init__(self, cuda: PretendedCuda) -> None:
        self._cuda, self.at_us = cuda, 0.0

    def record(self, stream: object = None) -> None:
        """Takes the time."""
        self.at_us = self._cuda.now_us

    def synchronize(self) -> None:
        """Waits for nothing."""

    def elapsed_time(self, end: Event) -> float:
        """Returns ms from this event to another."""
        return (end.at_us - self.at_us) / 1e3


def _no_profiler(**settings: Any) -> Any:
    raise RuntimeError("no kernel runs on a pretended device")


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return device.startswith("cuda") if isinstance(device, str) else type(device) is int


def _tensors(values: Any, depth: int = 0) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple) and depth < 3:
            found += _tensors(value, depth + 1)
        elif isinstance(value, dict) and depth < 3:
            found += _tensors(value.values(), depth + 1)
    return found


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)((key, _mapped(change, part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return type(value)(_mapped(change, part) for part in value)
    return change(value)
