"""Other quantities priced like latency: multiply-accumulates, parameters, activation memory.

Each is a table per op, by formula instead of measured, so that the same cost model turns them into limits
beside a latency. Units: MACs of one input, parameters of conv and linear weights, bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halpiee.selection.cost import Cost
from halpiee.selection.terms import FloatArray, IntArray
from halpiee.structure.groups import Structure
from latency.op import CONTRACTIONS, Op

__all__ = ["Quantity", "peak_bytes", "resource"]

Quantity = Literal["macs", "params", "peak_bytes"]

UNITS: Mapping[Quantity, str] = {"macs": "MACs", "params": "parameters", "peak_bytes": "bytes"}

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def resource(structure: Structure, quantity: Quantity, *, above: float = 0.0) -> Cost:
    """Returns the cost of a quantity that is counted, not measured.

    Args:
        structure: ops and groups of the network.
        quantity: ``macs`` and ``params`` of conv and linear layers, or ``peak_bytes``: how far the input and
            output of each op together exceed ``above``, added over ops. Limit it to 0 to keep every op within
            ``above``; what a skip connection holds meanwhile is not counted.
        above: bytes, for ``peak_bytes``.
    """
    return Cost(structure, _Formulas(quantity, above, structure.batch), unit=UNITS[quantity])


def peak_bytes(structure: Structure, counts: Mapping[str, int] | None = None) -> float:
    """Returns how much the input and output of the largest op hold together.

    Args:
        structure: ops and groups of the network.
        counts: group name → units that stay; a missing group is whole.
    """
    sizes = [0.0]
    for timed in structure.ops:
        sides = structure.sides(timed, counts or {})
        formula = _Formula(timed.op, "peak_bytes", 0.0, structure.batch)
        sizes.append(float(formula.lookup(*(np.array(n) for n in sides))))
    return max(sizes)


class _Formulas:
    """Tables by formula."""

    def __init__(self, quantity: Quantity, above: float, batch: int) -> None:
        self.quantity: Quantity = quantity
        self.above, self.batch = above, batch

    def table(self, op: Op) -> _Formula:
        return _Formula(op, self.quantity, self.above, self.batch)


class _Formula:
    """One op's quantity as a function of its channels."""

    def __init__(self, op: Op, quantity: Quantity, above: float, batch: int) -> None:
        self.op, self.quantity, self.above, self.batch = op, quantity, above, batch
        self.contraction = op.kind in CONTRACTIONS
        self.out_positions = math.prod(_output_size(op))
        self.in_positions = op.d * op.h * op.w

    def lookup(self, c_in: IntArray, c_out: IntArray) -> FloatArray:
        """Returns the quantity; the arguments broadcast."""
        c_in, c_out = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        if self.quantity == "peak_bytes":
            elements = c_in * self.in_positions + c_out * self.out_positions
            size = BYTES[self.op.dtype] * self.op.batch * elements
            return np.asarray(np.maximum(0.0, size - self.above))
        if not self.contraction:
            return np.zeros(c_in.shape)
        per_output = c_in if self.op.groups == 1 else self.op.c_in // self.op.groups
        weights = c_out * per_output * math.prod(self.op.kernel)
        if self.quantity == "params":
            return np.asarray(weights, dtype=np.float64)
        positions = self.in_positions if self.op.kind == "conv_transpose" else self.out_positions
        return np.asarray(weights * (positions * self.op.batch) // self.batch, dtype=np.float64)

    def measured(self, c_in: IntArray, c_out: IntArray) -> NDArray[np.bool_]:
        """Returns True everywhere: formulas interpolate nothing."""
        return np.ones(np.broadcast_shapes(np.shape(c_in), np.shape(c_out)), dtype=np.bool_)


def _output_size(op: Op) -> tuple[int, ...]:
    """Returns the output's spatial size."""
    if op.kind == "global_avg_pool":
        return (1,)
    if not op.kernel:
        return (op.d, op.h, op.w)
    size = op.spatial
    none, one = (0,) * len(size), (1,) * len(size)
    sides = zip(size, op.kernel, op.stride or one, op.padding or none, op.dilation or one, strict=False)
    if op.kind == "conv_transpose":
        return tuple((n - 1) * s - 2 * p + d * (k - 1) + 1 for n, k, s, p, d in sides)
    return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
