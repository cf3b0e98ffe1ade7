"""A backend of your own, in one file: NumPy times the ops of a perceptron and runs it whole.

    python examples/new_backend.py

A backend is a class under ``@latency.backend("name")`` that builds one op, says what times it and on what it ran, and,
where it can, runs whole networks in a ``latency.Runner``. Everything else follows from the name: ``latency.sweep``,
``latency.measure``, ``halpiee profile --backend numpy``, plans, the calibration, ``halpiee bench MODEL@numpy``. A
package of yours offers it as an entry point of the group ``latency.backends``. A new kind of op is one row of
``latency.op.OPS`` and one builder in each backend that times it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import halpiee
import latency
from halpiee.deploy.calibrate import calibrate
from halpiee.deploy.target import Target
from latency.backends.onnxruntime.ops import BUILDERS, Graph
from latency.errors import UnsupportedOpError
from latency.op import OPS, Op, OpSpec
from latency.timing import Clock, CpuClock


@latency.backend("numpy")
class NumPy(latency.Backend):
    """Linear layers and perceptrons on NumPy, one thread."""

    ways = (latency.Way("numpy", ("module",)),)

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads

    def environment(self) -> dict[str, Any]:
        """Returns the circumstances that a profile states."""
        return latency.environment("numpy", self.threads)

    def clock(self) -> Clock:
        """Returns the CPU time of the calling thread."""
        return CpuClock()

    def build(self, op: Op) -> latency.Built:
        """Builds a linear layer; ReLU and addition behind it are part of its time."""
        if op.kind != "linear":
            raise UnsupportedOpError(
                f"an op {op.kind!r} was asked for; this backend has linear; leave it out"
            )
        x, w = np.ones((op.batch, op.c_in), np.float32), np.ones((op.c_in, op.c_out), np.float32)
        return latency.Built(run=lambda: np.maximum(x @ w + 1, 0))

    def network(self, model: nn.Sequential, example_inputs: Any = None, **_: Any) -> latency.Runner:
        """Returns a perceptron: linear layers and ReLU in turn."""
        return Perceptron(model, example_inputs[0])


class Perceptron(latency.Runner):
    """A perceptron in NumPy."""

    runtime = "numpy"

    def __init__(self, model: nn.Sequential, x: torch.Tensor) -> None:
        self._model, self._x = model, x

    def ready(self) -> None:
        """Takes the weights as arrays."""
        layers = [m for m in self._model if isinstance(m, nn.Linear)]
        self._layers = [(m.weight.detach().numpy().T, m.bias.detach().numpy()) for m in layers]

    def start(self) -> object:
        """Returns the answer."""
        y = self._x.numpy()
        for i, (w, b) in enumerate(self._layers):
            y = y @ w + b if i == len(self._layers) - 1 else np.maximum(y @ w + b, 0)
        return y


OPS["square"] = OpSpec()
"""A new kind of op: both of its sides are the same channels."""


def square(graph: Graph, inputs: list[str], tag: str) -> str:
    """Adds the square of the input to a graph of ONNX Runtime."""
    return graph.node("Mul", [inputs[0], inputs[0]], f"y{tag}")


BUILDERS["square"] = square


def main(say: Callable[[str], object] = print) -> dict[str, float]:
    """Profiles a perceptron on NumPy, plans it to half its latency, and measures both."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    example = (torch.randn(16, 256),)
    structure = halpiee.trace(model, example)
    profile = latency.sweep([timed.op for timed in structure.ops], backend="numpy", holdout=0)
    cost = halpiee.LatencyCost(structure, profile)
    target = Target("numpy")
    fitted = calibrate(model, cost, example, networks=3, target=target, rounds=9)
    cost = halpiee.LatencyCost(structure, profile, calibration=fitted)
    scores = halpiee.score(model, [], "magnitude", units=structure)
    chosen = halpiee.select(scores, cost, 0.5 * cost.dense_us)
    small = halpiee.shrink(model, structure, chosen.keep)
    found = target.compare(
        {"dense": target.ready(model, example), "small": target.ready(small, example)}, example, rounds=9
    )
    squared = latency.sweep([Op(kind="square", c_in=8, c_out=8, h=4, w=4)], holdout=0).cells[0]["us"]
    say(
        f"predicted {chosen.latency_us:.0f} µs of {cost.dense_us:.0f}; measured {found['small'].median_us:.0f} µs"
    )
    say(f"a square of 8 channels takes {squared:.2f} µs on ONNX Runtime")
    return {"predicted": chosen.latency_us / cost.dense_us, "measured": found.ratio("dense", "small").median}


if __name__ == "__main__":
    main()
