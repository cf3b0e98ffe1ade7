"""What a network is timed on: the runtime, device, precision and layout that its ops were profiled on.

ONNX Runtime runs the exported graph on the CPU. PyTorch runs the module with its batch norms folded, on a GPU as one
CUDA graph. Training goes on in the same process afterwards, so what timing sets of PyTorch (threads, TF32, cuDNN's
choice by trying) is put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

import latency
from halpiee.deploy.folding import folded
from halpiee.errors import UsageError
from halpiee.structure.groups import Structure
from latency.backends import load
from latency.backends.onnxruntime import to_onnx
from latency.backends.torch.network import Precision, module_call
from latency.timing.benchmark import Comparison, compare

__all__ = ["Target", "in_terms_of", "restored"]

DTYPES: dict[str, str] = {"fp16": "float16", "bf16": "bfloat16"}
"""What profiles call a precision; all others are float32."""


@dataclass(frozen=True)
class Target:
    """What networks and their ops run on.

    Attributes:
        backend: ``onnxruntime`` (the CPU, fp32) or ``torch``.
        device: of torch: ``auto``, ``cpu`` or ``cuda``.
        precision: of torch: ``fp32`` (TF32 off), ``tf32``, ``fp16`` or ``bf16``.
        channels_last: whether images lie in NHWC order, of torch.
        threads: of the CPU.

    Raises:
        UsageError: another backend, or ONNX Runtime with what only torch has.
    """

    backend: str = "onnxruntime"
    device: str = "auto"
    precision: Precision = "fp32"
    channels_last: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        if self.backend not in ("onnxruntime", "torch"):
            raise UsageError(
                f"networks were to be timed on {self.backend}; whole networks are timed on onnxruntime or torch: "
                "profile on one of them"
            )
        plain = (self.device, self.precision, self.channels_last) in {
            ("auto", "fp32", False),
            ("cpu", "fp32", False),
        }
        if self.backend == "onnxruntime" and not plain:
            raise UsageError(
                "ONNX Runtime was asked with a device, precision or layout; it is measured on the CPU in fp32 and "
                "NCHW; leave them out, or add --backend torch"
            )

    @classmethod
    def of_profile(cls, profile: latency.Profile) -> Target:
        """Returns what a profile was measured on.

        Raises:
            UsageError: by a backend that times no whole networks.
        """
        facts = profile.environment
        backend = str(facts.get("backend", "onnxruntime"))
        threads = int(facts.get("threads", 1))
        if backend != "torch":
            return cls(backend, threads=threads)
        short: dict[str, Precision] = {"float16": "fp16", "bfloat16": "bf16"}
        precision = short.get(str(facts.get("dtype")), "tf32" if facts.get("tf32") else "fp32")
        last = _layout(profile) == "nhwc"
        return cls(backend, "cuda" if "cuda" in facts else "cpu", precision, last, threads)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the backend beside its threads."""
        if self.backend == "onnxruntime":
            return {}
        return {"device": self.device, "precision": self.precision, "channels_last": self.channels_last}

    @property
    def environment(self) -> dict[str, Any]:
        """The circumstances of what is measured here on it, as a profile states them.

        Raises:
            MissingError: the device is not there.
        """
        with restored():
            return load(self.backend, threads=self.threads, settings=self.settings).environment()

    @property
    def dtype(self) -> str:
        """Element type of weights and activations, as PyTorch names it."""
        return DTYPES.get(self.precision, "float32")

    def of(self, structure: Structure) -> Structure:
        """Returns the structure with ops in this target's precision and layout, which name the tables."""
        return _with_ops(structure, self.dtype, "nhwc" if self.channels_last else "nchw")

    def ready(self, model: nn.Module, example_inputs: tuple[Any, ...], *, forwards: int = 1) -> Any:
        """Returns a network in the form that ``compare`` takes: an ONNX model, or a call of so many forwards."""
        if self.backend == "onnxruntime":
            return to_onnx(model, example_inputs)
        with restored():
            return module_call(
                folded(model, example_inputs),
                example_inputs,
                threads=self.threads,
                repeats=forwards,
                **self.settings,
            )

    def compare(
        self,
        networks: Mapping[str, Any],
        example_inputs: tuple[Any, ...],
        *,
        rounds: int,
        seconds: float = 60.0,
    ) -> Comparison:
        """Times networks in turns.

        Args:
            networks: by name, what ``ready`` returned; for ONNX Runtime also paths.
            example_inputs: what they read.
            rounds: turns that count.
            seconds: fewer, but nine, where they would take longer.
        """
        with restored():
            torch.set_num_threads(self.threads)  # what is ready runs with as many as there are
            return compare(
                networks,
                example_inputs=example_inputs,
                backend=self.backend,
                device=self.device,
                threads=self.threads,
                rounds=rounds,
                seconds=seconds,
            )


def in_terms_of(profile: latency.Profile, structure: Structure) -> Structure:
    """Returns the structure with ops in the precision and layout of a profile, of any backend."""
    return _with_ops(structure, str(profile.environment.get("dtype", "float32")), _layout(profile))


def _layout(profile: latency.Profile) -> str:
    return "nhwc" if any(cell.get("layout") == "nhwc" for cell in profile.cells) else "nchw"


def _with_ops(structure: Structure, dtype: str, layout: str) -> Structure:
    ops = tuple(replace(t, op=replace(t.op, dtype=dtype, layout=layout)) for t in structure.ops)
    return replace(structure, ops=ops)


@contextmanager
def restored() -> Iterator[None]:
    """Puts back what timing changes of PyTorch for the whole process."""
    threads, chosen = torch.get_num_threads(), torch.backends.cudnn.benchmark
    products, convs = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = chosen
        torch.backends.cuda.matmul.allow_tf32 = products
        torch.backends.cudnn.allow_tf32 = convs
