"""From a sum of ops to a network's own latency: ``e2e = a + b·Σ``, in µs.

A sum of layers is not a network: what a call costs once is in no layer (a), and layers run beside each other a
little slower or faster than alone (b). Both are fitted on a few networks that were measured whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latency.errors import UsageError

__all__ = ["Calibration", "fit"]


@dataclass(frozen=True)
class Calibration:
    """The line ``e2e = a_us + b · sum_us``.

    Attributes:
        a_us: what a call costs beside its ops.
        b: how much slower the ops are inside a network.
        points: the pairs ``(sum_us, measured_us)`` the line was drawn through.
    """

    a_us: float = 0.0
    b: float = 1.0
    points: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if not (np.isfinite(self.a_us) and np.isfinite(self.b) and self.b > 0):
            raise UsageError(
                f"a calibration e2e = {self.a_us:g} + {self.b:g}·Σ was asked for; the slope must be positive and "
                "both finite; measure the networks again, on a quieter machine or more widely spread"
            )

    @classmethod
    def identity(cls) -> Calibration:
        """Returns the line that leaves every sum as it is."""
        return cls()

    def apply(self, sum_us: float) -> float:
        """Returns the latency of a network whose ops add up to ``sum_us``."""
        return self.a_us + self.b * sum_us

    def invert(self, us: float) -> float:
        """Returns the sum of ops at which a network takes ``us``."""
        return (us - self.a_us) / self.b

    def scaled(self, factor: float) -> Calibration:
        """Returns the line with every latency multiplied by a factor."""
        return Calibration(self.a_us * factor, self.b * factor, self.points)

    @property
    def residuals(self) -> tuple[float, ...]:
        """Prediction over measurement minus one, of every point."""
        return tuple(self.apply(x) / y - 1.0 for x, y in self.points)

    @property
    def worst(self) -> float:
        """The largest residual, without its sign; 0 without points."""
        return max((abs(r) for r in self.residuals), default=0.0)


def fit(points: Sequence[tuple[float, float]], anchor: tuple[float, float] | None = None) -> Calibration:
    """Draws the line through networks that were measured whole.

    Least squares of relative errors. With an anchor the line goes exactly through it (the dense network), and the
    points decide its slope alone. A slope that comes out below a tenth or above ten is noise of points that lie
    together: then the line goes through the origin.

    Args:
        points: pairs ``(sum_us, measured_us)``.
        anchor: the dense network's pair.

    Raises:
        UsageError: neither points nor anchor, or a time that is not positive.
    """
    if not points and anchor is None:
        raise UsageError(
            "a calibration was asked for without any measured network; pass points or the dense one as anchor"
        )
    told = [(float(x), float(y)) for x, y in [*points, *([anchor] if anchor else [])]]
    wrong = [pair for pair in told if not (0 < pair[0] < np.inf and 0 < pair[1] < np.inf)]
    if wrong:
        raise UsageError(
            f"a calibration was asked for with the point {wrong[0]}; sums and latencies are positive µs; "
            "measure that network again"
        )
    x, y = (np.array(column) for column in zip(*told, strict=True))
    origin = float(np.sum(x / y) / np.sum((x / y) ** 2))
    if anchor is not None:
        x0, y0 = float(anchor[0]), float(anchor[1])
        u, v = (x - x0) / y, (y - y0) / y
        spread = float(np.sum(u * u))
        slope = float(np.sum(u * v)) / spread if spread > 1e-4 else y0 / x0
        if not 0.1 < slope * x0 / y0 < 10.0:
            slope = y0 / x0
        return Calibration(y0 - slope * x0, slope, tuple(told))
    if len(told) == 1 or np.ptp(x) < 1e-3 * x.max():
        return Calibration(0.0, origin, tuple(told))
    design = np.stack([1.0 / y, x / y], axis=1)
    a, b = np.linalg.lstsq(design, np.ones(len(y)), rcond=None)[0]
    if not 0.1 < b / origin < 10.0:
        a, b = 0.0, origin
    return Calibration(float(a), float(b), tuple(told))
