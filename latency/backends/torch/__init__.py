"""Ops and networks on PyTorch: on a GPU (cuDNN, CUDA graphs) or on the CPU.

On a GPU an op is timed as the slope between a graph of K copies and a graph of one, without launch and graph entry. All
copies read the same inputs, which are warm, as activations are in a network; their weights rotate through as many bytes
as the network has (``TimingPolicy.weight_copies``). On the CPU a call is the op alone.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Unpack

from latency.backends import Backend, Built, Found, NetworkOptions, Runner, Way, backend
from latency.backends.torch.network import (
    Mode,
    ModuleRunner,
    Precision,
    capture_refused,
    clock_on,
    dtype_of,
    resolved_device,
    set_arithmetic,
    shared_graphs,
)
from latency.device import PRECISIONS, clocks, environment, limits, precision_of
from latency.errors import UnsupportedOpError, said
from latency.op import Op
from latency.timing import Clock

if TYPE_CHECKING:
    import torch


@backend("torch")
class Torch(Backend):
    """Ops and networks on PyTorch.

    Args:
        threads: threads of the CPU.
        device: ``auto`` (a GPU where there is one), ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32`` (TF32 off), ``tf32``, ``fp16`` or ``bf16``: the arithmetic of every op.
        channels_last: whether activations lie in NHWC order.
        mode: of whole networks on a GPU: one CUDA ``graph``, ``eager``, or through torch's ``compile``.

    Raises:
        MissingError: a GPU was asked for and there is none.
    """

    ways = (
        Way("eager", ("module",), {"mode": "eager"}, usual=True),
        Way("compile", ("module",), {"mode": "compile"}),
    )
    precisions = tuple(PRECISIONS)

    def __init__(
        self,
        threads: int = 1,
        device: str = "auto",
        precision: Precision = "fp32",
        channels_last: bool = False,
        mode: Mode = "graph",
    ) -> None:
        import torch

        self.check(precision=precision)
        self.device = resolved_device(device)
        self.device_kind = "cpu" if self.device == "cpu" else "cuda"
        self.threads = threads
        self.precision = precision
        self.channels_last = channels_last
        self.mode = mode
        self.dtype = dtype_of(precision)
        self._network: list[Op] = []
        if self.device == "cpu":
            torch.set_num_threads(threads)
        else:
            set_arithmetic(precision)

    @classmethod
    def settings_of(cls, environment: Mapping[str, Any], layout: str) -> dict[str, Any]:
        """Returns device, precision and layout that a profile was measured with."""
        return {
            "device": "cuda" if "cuda" in environment else "cpu",
            "precision": precision_of(environment),
            "channels_last": layout == "nhwc",
        }

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances of everything this backend measures."""
        import torch

        dtype = str(self.dtype).removeprefix("torch.")
        if self.device == "cpu":
            return environment("torch", self.threads, dtype)
        facts = torch.cuda.get_device_properties(self.device)
        return environment(
            "torch",
            self.threads,
            dtype,
            device=facts.name,
            capability=f"{facts.major}.{facts.minor}",
            multiprocessors=facts.multi_processor_count,
            l2_bytes=facts.L2_cache_size,
            memory_bytes=facts.total_memory,
            cuda=torch.version.cuda,
            cudnn=torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            tf32=self.precision == "tf32",
            cpu_flags=[],
            cudnn_benchmark=True,
            **limits(self._number),
        )

    def clock(self) -> Clock:
        """Returns CUDA events, the CPU time of one thread, or the wall clock of several."""
        return clock_on(self.device, self.threads)

    def anchor(self) -> Callable[[], object] | None:
        """Returns a small product of matrices; None on a GPU, whose events no other process disturbs."""
        if self.device != "cpu":
            return None
        import torch

        a, b = torch.randn(48, 48), torch.randn(48, 48)
        return lambda: torch.mm(a, b)

    def expects(self, ops: Sequence[Op]) -> None:
        """Takes the network's ops: they decide how cold weights are, and only their kernels are named."""
        self._network = list(ops)

    def build(self, op: Op) -> Built:
        """Builds an op: as two graphs on a GPU, alone on the CPU."""
        import torch

        if op.dtype != str(self.dtype).removeprefix("torch."):
            raise UnsupportedOpError(
                f"an op in {op.dtype} was asked for; this backend measures {self.precision}; "
                "start it with that precision"
            )
        with torch.inference_mode():
            if self.device == "cpu":
                from latency.backends.torch.ops import op_call

                call = op_call(op, self.tensor, self.tensor)

                def run() -> object:
                    with torch.inference_mode():
                        return call()

                return Built(run=run, method="alone")
            return self._graphs(op)

    @property
    def _number(self) -> int:
        return int(self.device.partition(":")[2] or 0)

    def state(self) -> dict[str, Any]:
        """Returns, of a GPU, its clock, what throttles it, and µs of a product of matrices that never changes."""
        if self.device == "cpu":
            return {}
        clock, graph = self.clock(), self._reference
        us = sorted(clock.time_us(graph.replay)[0] for _ in range(3))[1]
        return {"reference_us": round(us, 2), **clocks(self._number)}

    @cached_property
    def _reference(self) -> Any:
        """The graph of sixteen products of 1,024 × 1,024 in the backend's precision."""
        import torch

        with torch.cuda.device(self.device), torch.inference_mode():
            a = torch.randn(1024, 1024, device=self.device, dtype=self.dtype)
            torch.cuda.synchronize()
            return self._captured([lambda: torch.mm(a, a)] * 16, warm_up=1)

    def deployed(self, model: Any, example_inputs: Sequence[Any]) -> Any:
        """Returns a copy with the batch norms folded into the layers before them."""
        from latency.backends.torch.modules import folded

        return folded(model, tuple(example_inputs))

    def network(
        self, model: Any, example_inputs: Sequence[Any] | None = None, **how: Unpack[NetworkOptions]
    ) -> Runner:
        """Returns a module to be entered and timed."""
        return ModuleRunner(
            model,
            example_inputs,
            device=self.device,
            threads=self.threads,
            precision=self.precision,
            channels_last=self.channels_last,
            mode=self.mode,
            forwards=how.get("forwards", 1),
        )

    @classmethod
    def where_it_trains(cls, device: str) -> bool:
        """Returns True: PyTorch trains where it is timed."""
        del device
        return True

    @classmethod
    def found(cls) -> list[tuple[str, Found]]:
        """Returns the GPUs that PyTorch finds."""
        if importlib.util.find_spec("torch") is None:
            return []
        import torch

        if not torch.cuda.is_available():
            return [("backend torch on CUDA", Found("note", "no CUDA device; everything runs on the CPU"))]
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return [("backend torch on CUDA", Found("ok", names))]

    def tensor(self, *shape: int) -> torch.Tensor:
        """Returns random numbers: arithmetic on zeros is faster on some devices."""
        import torch

        x = torch.randn(*shape, device=self.device, dtype=self.dtype)
        if self.channels_last and len(shape) == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _graphs(self, op: Op) -> Built:
        """Captures many copies of an op in one graph and one of them in another."""
        import torch

        from latency.backends.torch.ops import op_call

        policy = self.policy
        with torch.cuda.device(self.device):
            shared = _Shared(self.tensor)
            first = op_call(op, self.tensor, shared)
            torch.cuda.synchronize()  # what made the tensors must not run beside cuDNN's search
            one = self._captured([first], warm_up=3)
            one_us = max(1.0, min(self.clock().time_us(one.replay)[0] for _ in range(3)))
            copies = policy.series(one_us)
            l2_bytes = int(torch.cuda.get_device_properties(self.device).L2_cache_size)
            calls = [first]
            for _ in range(min(copies, policy.weight_copies(op, self._network, l2_bytes)) - 1):
                shared.rewind()
                calls.append(op_call(op, self.tensor, shared))
            torch.cuda.synchronize()
            many = self._captured([calls[i % len(calls)] for i in range(copies)])

        def run(graph: Any = many, kept: object = calls) -> object:  # a graph does not own what it reads
            del kept
            return graph.replay()

        named = not self._network or op in self._network  # a session of the profiler takes 20 ms and more
        return Built(
            run=run,
            minus=one.replay,
            copies=copies - 1,
            method="graph slope",
            tactic=self.kernels(one) if named else None,
        )

    def _captured(self, calls: Sequence[Callable[[], object]], warm_up: int = 0) -> Any:
        """Returns the graph of some calls; cuDNN's choice of algorithm cannot happen during a capture."""
        self.searched(calls, warm_up)
        return self.recorded(calls)

    def searched(self, calls: Sequence[Callable[[], object]], times: int) -> None:
        """Runs some calls, at whose first run cuDNN chooses algorithms, and waits."""
        import torch

        stream, _, _ = shared_graphs(self.device)
        with torch.cuda.stream(stream):
            for _ in range(times):
                for call in calls:
                    call()
        torch.cuda.synchronize()

    def recorded(self, calls: Sequence[Callable[[], object]]) -> Any:
        """Returns the graph of some calls."""
        import torch

        stream, pool, _ = shared_graphs(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                for call in calls:
                    call()
        except RuntimeError as error:
            if not capture_refused(error):
                raise
            raise UnsupportedOpError(
                f"an op was to be captured in a CUDA graph, and {self.device} refuses it "
                f"({said(error, first=True)}); it is left out"
            ) from error
        return graph

    def kernels(self, graph: Any) -> str | None:
        """Returns the names of the GPU kernels of one replay: what the library chose."""
        import torch
        from torch.profiler import ProfilerActivity, profile

        try:
            with (
                warnings.catch_warnings()
            ):  # the profiler of some versions warns of how it is used, each time
                warnings.simplefilter("ignore")
                with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as seen:
                    graph.replay()
                    torch.cuda.synchronize()
        except RuntimeError:
            return None
        names = [e.name[:60] for e in seen.events() if str(getattr(e, "device_type", "")).endswith("CUDA")]
        return " + ".join(names) or None


class _Shared:
    """Makes the inputs of an op's first copy, and hands the same tensors to the other copies."""

    def __init__(self, tensor: Callable[..., torch.Tensor]) -> None:
        self._tensor, self._made, self._next = tensor, list[Any](), 0

    def __call__(self, *shape: int) -> torch.Tensor:
        if self._next == len(self._made):
            self._made.append(self._tensor(*shape))
        self._next += 1
        found: torch.Tensor = self._made[self._next - 1]
        return found

    def rewind(self) -> None:
        """Begins again with the first."""
        self._next = 0
