"""Made-up latency tables: random, seeded, and no more monotone than measured ones."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from latency.op import Op

__all__ = ["Staircases"]


class Staircase:
    """A made-up table: blocks of channels cost, each block pair a little more or less than its share."""

    def __init__(self, op: Op, quantum: int, seed: int) -> None:
        key = zlib.crc32(op.table_key().encode())
        jitter = np.random.default_rng([seed, key])
        self.quantum = quantum
        area = op.h * op.w * op.batch * float(np.prod(op.kernel or (1,)))
        blocks = [-(-(max(c, 1)) // quantum) + 1 for c in (16 * op.c_in, 16 * op.c_out)]
        self.noise = 1 + 0.05 * (2 * jitter.random((min(blocks[0], 512), min(blocks[1], 512))) - 1)
        self.paired = op.kind in ("conv", "conv_transpose", "linear") and not op.depthwise
        self.rate_us = area * quantum * (quantum if self.paired else 4) / 2e4
        self.base_us = 1.0 + 0.02 * area / 1e3

    def lookup(self, c_in: NDArray[np.int64], c_out: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns µs; the arguments broadcast."""
        rows, columns = -(-np.asarray(c_in) // self.quantum), -(-np.asarray(c_out) // self.quantum)
        noise = self.noise[rows % self.noise.shape[0], columns % self.noise.shape[1]]
        blocks = rows * columns if self.paired else np.maximum(rows, columns)
        return np.asarray(self.base_us + self.rate_us * blocks * noise)

    def measured(self, c_in: NDArray[np.int64], c_out: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns True everywhere: a made-up table interpolates nothing."""
        return np.ones(np.broadcast_shapes(np.shape(c_in), np.shape(c_out)), dtype=np.bool_)


class Staircases:
    """A made-up profile."""

    def __init__(self, quantum: int, seed: int) -> None:
        self.quantum, self.seed = quantum, seed

    def table(self, op: Op) -> Staircase:
        """Returns the table of an op; the same op always gets the same one."""
        return Staircase(op, self.quantum, self.seed)
