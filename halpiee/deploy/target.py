"""What a network is timed on: the backend, device, precision and layout that its ops were profiled on.

A backend times a network in the form in which it is deployed there: ONNX Runtime the exported graph, PyTorch the module
with its batch norms folded, on a GPU as one CUDA graph, TensorRT an engine. Training goes on in the same process
afterwards, so what timing sets of PyTorch (threads, arithmetic, cuDNN's choice by trying) is put back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

import latency
from halpiee.errors import UsageError
from halpiee.structure.groups import Structure
from latency.backends import BACKENDS, Backend, Runner, load
from latency.backends.torch.network import Precision, restored
from latency.device import PRECISIONS
from latency.timing.benchmark import Comparison, compare


@dataclass(frozen=True)
class Target:
    """What networks and their ops run on.

    Attributes:
        backend: as it is registered: ``onnxruntime`` (the CPU, fp32), ``torch``, ``tensorrt`` ….
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, where the backend has a choice.
        precision: ``fp32`` (TF32 off), ``tf32``, ``fp16``, ``bf16`` or ``int8`` (ONNX Runtime).
        channels_last: whether images lie in NHWC order.
        threads: of the CPU.
        options: more settings of the backend, such as TensorRT's ``level``.

    Raises:
        UsageError: a backend that there is not or that times single ops only, or settings that it does not take.
    """

    backend: str = "onnxruntime"
    device: str = "auto"
    precision: Precision = "fp32"
    channels_last: bool = False
    threads: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = BACKENDS[self.backend]
        if kind.network is Backend.network:
            able = [name for name in BACKENDS if BACKENDS[name].network is not Backend.network]
            raise UsageError(
                f"networks were to be timed on {self.backend}, which has no `network`; whole networks are timed on "
                f"{' or '.join(able)}: profile on one of them"
            )
        kind.check(**self.settings)

    @classmethod
    def of_profile(cls, profile: latency.Profile) -> Target:
        """Returns what a profile was measured on."""
        facts = profile.environment
        backend = str(facts.get("backend", "onnxruntime"))
        options = BACKENDS[backend].settings_of(facts, _layout(profile))
        own = {
            name: options.pop(name) for name in ("device", "precision", "channels_last") if name in options
        }
        return cls(backend, threads=int(facts.get("threads", 1)), options=options, **own)

    @property
    def settings(self) -> dict[str, Any]:
        """Arguments of the backend beside its threads: those that are not as usual."""
        usual = {"device": "auto", "precision": "fp32", "channels_last": False}
        own = {name: getattr(self, name) for name in usual}
        return {name: value for name, value in own.items() if value != usual[name]} | dict(self.options)

    @property
    def environment(self) -> dict[str, Any]:
        """The circumstances of what is measured here on it, as a profile states them.

        Raises:
            MissingError: the device is not there.
        """
        with restored():
            return self.opened().environment()

    @property
    def dtype(self) -> str:
        """Element type of weights and activations, as PyTorch names it."""
        return {**PRECISIONS, "int8": "int8"}.get(self.precision, "float32")

    @property
    def files(self) -> tuple[str, ...]:
        """Endings of the files that it runs."""
        return BACKENDS[self.backend].files

    @property
    def times_layers(self) -> bool:
        """Whether the runtime's own profiler tells the time of every layer of an ONNX file."""
        return BACKENDS[self.backend].times_layers

    def where_it_trains(self, device: str) -> Target:
        """Returns the target on the device that networks are trained on, where its backend runs there."""
        return replace(self, device=device) if BACKENDS[self.backend].where_it_trains(device) else self

    def keeping(self, path: Path) -> Target:
        """Returns the target whose builds keep what they learn beside a profile, where they learn something."""
        return replace(self, options={**self.options, **BACKENDS[self.backend].kept_beside(path)})

    def opened(self) -> Backend:
        """Returns the backend; it sets threads and arithmetic of PyTorch, which the caller puts back.

        Raises:
            MissingError: the device or the runtime is not there.
        """
        return load(self.backend, threads=self.threads, settings=self.settings)

    def of(self, structure: Structure) -> Structure:
        """Returns the structure with ops in this target's precision and layout, which name the tables."""
        return _with_ops(structure, self.dtype, "nhwc" if self.channels_last else "nchw")

    def ready(self, model: nn.Module, example_inputs: tuple[Any, ...], *, forwards: int = 1) -> Runner:
        """Returns a network in the form in which it is deployed here, for ``compare``."""
        with restored():
            backend = self.opened()
            return backend.network(backend.deployed(model, example_inputs), example_inputs, forwards=forwards)

    def compare(
        self,
        networks: Mapping[str, Any],
        example_inputs: tuple[Any, ...],
        *,
        rounds: int,
        seconds: float = 60.0,
    ) -> Comparison:
        """Times what ``ready`` returned, or files, in turns; fewer rounds, but nine, beyond ``seconds``."""
        with restored():
            return compare(
                networks,
                example_inputs=example_inputs,
                backend=self.opened(),
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
