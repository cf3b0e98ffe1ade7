"""Where does the time go, layer by layer, before and after? From the runtime's own profiler, in µs.

ONNX Runtime times every kernel to 1 µs, and timing slows a network of 0.4 ms by about 18 %: these numbers are for
attribution, the end-to-end latency is measured without them.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latency.backends.onnxruntime import feeds, session

__all__ = ["layer_times", "side_by_side"]

RUNS = 30
"""Runs of each network that count."""

WARM_UP = 5

PASSED = (
    "Relu", "Clip", "Add", "Mul", "HardSwish", "HardSigmoid", "Sigmoid", "LeakyRelu", "Gelu", "Cast",
)  # fmt: skip
"""Ops that the runtime fuses into the layer before them, so that its kernel carries their output's name."""


def layer_times(
    paths: Mapping[str, Path], *, batch: int = 1, threads: int = 1, runs: int = RUNS
) -> dict[str, dict[str, float]]:
    """Returns name → layer → median µs of its kernels in one inference; networks run in turns.

    Args:
        paths: ONNX files by name.
        batch: images per inference.
        threads: of the runtime.
        runs: inferences of each that count.

    Layers are named by their module paths; what belongs to none by its op in brackets, summed.
    """
    with tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: session(path, threads=threads, trace_to=Path(folder) / str(i))
            for i, (name, path) in enumerate(paths.items())
        }
        inputs = {name: feeds(runtime, batch=batch) for name, runtime in sessions.items()}
        for _ in range(WARM_UP + runs):
            for name, runtime in sessions.items():
                runtime.run(None, inputs[name])
        found = {}
        for name, runtime in sessions.items():
            events = json.loads(Path(runtime.end_profiling()).read_text())
            found[name] = _by_layer(events, _Names(paths[name]), runs)
    return found


def side_by_side(times: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Returns a row per layer, ``dense`` beside ``pruned``, in the order of the dense network; ops come last.

    A layer that the pruned network no longer has takes 0 µs.
    """
    dense, pruned = times["dense"], times["pruned"]
    names = sorted([*dense, *(name for name in pruned if name not in dense)], key=lambda n: n.startswith("("))
    return [{"layer": n, "dense_us": dense.get(n, 0.0), "pruned_us": pruned.get(n, 0.0)} for n in names]


def _by_layer(events: Iterable[Any], names: _Names, runs: int) -> dict[str, float]:
    """Returns layer → median over the last runs of its kernels' summed time, in the order they run."""
    kernels: dict[str, list[float]] = defaultdict(list)
    ops: dict[str, str] = {}
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            kernels[name].append(float(event["dur"]))
            ops[name] = str(event.get("args", {}).get("op_name", "other"))
    layers: dict[str, Any] = {}
    for name, durations in kernels.items():
        # A kernel without a name of its own (a change of layout) has several in one inference: summed per inference.
        per_run = (
            np.array(durations[-(len(durations) // (runs + WARM_UP)) * runs :]).reshape(runs, -1).sum(axis=1)
        )
        layer = names.layer(name) or f"({ops[name]})"
        layers[layer] = layers.get(layer, 0.0) + per_run
    return {layer: float(np.median(us)) for layer, us in layers.items()}


class _Names:
    """Finds the module behind a kernel's name: that of a node, or of the tensor that a fused chain ends in.

    Args:
        path: the ONNX file that the session was made from.
    """

    def __init__(self, path: Path) -> None:
        import onnx

        graph = onnx.load(str(path)).graph
        self._weights = {tensor.name for tensor in graph.initializer}
        self._nodes = {node.name: node for node in graph.node}
        self._makers = {output: node for node in graph.node for output in node.output}

    def layer(self, kernel: str) -> str | None:
        """Returns the module path of a kernel, None where it belongs to no layer."""
        name = re.sub(r"_nchwc$|_nhwc$", "", kernel.removeprefix("fused "))
        node = self._nodes.get(name) or self._makers.get(name)
        while node is not None:
            weights = [i for i in node.input[1:] if i in self._weights and i.endswith(".weight")]
            if weights:
                return str(weights[0]).removesuffix(".weight")
            if node.op_type not in PASSED:
                return self._scope(node) if node.op_type in ("Conv", "Gemm", "MatMul") else None
            node = self._makers.get(node.input[0])
        return None

    @staticmethod
    def _scope(node: Any) -> str | None:
        """Returns the module that a node was exported from, as PyTorch's exporter notes it."""
        scopes = next((p.value for p in node.metadata_props if p.key.endswith("name_scopes")), "")
        modules = [name for name in re.findall(r"'([^']*)'", scopes)[:-1] if name]
        return modules[-1] if modules else None
