"""From a sum of ops to a network's own latency: ``e2e = a + b·Σ``, in µs.

A sum of layers is not a network: what a call costs once is in no layer (a), and layers run beside each other a little
slower or faster than alone (b). Both are fitted on a few networks that were measured whole.

The dense network may lie off the line of its shrunk ones, where its weights do not fit in a cache that holds theirs. So
where enough shrunk networks were measured the line is theirs, and bends to the dense network beyond the largest (0059).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from latency.errors import UsageError

FloatArray = NDArray[np.float64]


FEWEST, SPREAD, NEAR = 3, 0.2, 0.95
"""Shrunk networks that have a line of their own: so many, their sums this share of the dense network's apart.

One beyond `NEAR` of the dense network's sum is not among them.
"""


@dataclass(frozen=True)
class Calibration:
    """The line ``e2e = a_us + b · sum_us``, with a second slope up to the dense network where it lies off the line.

    Attributes:
        a_us: what a call costs beside its ops.
        b: how much slower the ops are inside a network.
        points: the pairs ``(sum_us, measured_us)`` the line was drawn through.
        bend: from the first pair ``(sum_us, us)`` on, which lies on the line, latencies are those on the way to the
            second, the dense network; beyond it they rise as before. None where the line goes on.

    Raises:
        UsageError: latencies that do not rise with the sum.
    """

    a_us: float = 0.0
    b: float = 1.0
    points: tuple[tuple[float, float], ...] = ()
    bend: tuple[tuple[float, float], tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        if not (np.isfinite(self.a_us) and np.isfinite(self.b) and self.b > 0):
            raise UsageError(
                f"a calibration e2e = {self.a_us:g} + {self.b:g}·Σ was asked for; the slope must be positive and "
                "both finite; measure the networks again, on a quieter machine or more widely spread"
            )
        if self.bend is not None and not (
            self.bend[0][0] < self.bend[1][0] and self.bend[0][1] < self.bend[1][1]
        ):
            raise UsageError(
                f"a calibration that bends from (Σ, µs) = {self.bend[0]} to {self.bend[1]} was asked for; both must "
                "rise; measure the networks again, on a quieter machine"
            )
        if self.bend is not None and not np.isclose(
            self.a_us + self.b * self.bend[0][0], self.bend[0][1], rtol=1e-6
        ):
            raise UsageError(
                f"a calibration that bends at (Σ, µs) = {self.bend[0]} was asked for, a point off its line "
                f"{self.a_us:g} + {self.b:g}·Σ; give the line's own latency there, or measure the networks again"
            )

    @classmethod
    def identity(cls) -> Calibration:
        """Returns the line that changes no sum."""
        return cls()

    def apply(self, sum_us: float) -> float:
        """Returns the latency of a network whose ops add up to ``sum_us``."""
        if self.bend is not None and sum_us > self.bend[0][0]:
            (near, near_us), (far, far_us) = self.bend
            if sum_us > far:
                return far_us + self.b * (sum_us - far)
            return near_us + (far_us - near_us) * (sum_us - near) / (far - near)
        return self.a_us + self.b * sum_us

    @property
    def residuals(self) -> tuple[float, ...]:
        """Prediction over measurement, minus one, at every point."""
        return tuple(self.apply(x) / y - 1.0 for x, y in self.points)

    @property
    def worst(self) -> float:
        """The largest residual, without its sign; 0 without points."""
        return max((abs(r) for r in self.residuals), default=0.0)


def fit(points: Sequence[tuple[float, float]], anchor: tuple[float, float] | None = None) -> Calibration:
    """Draws the line through networks that were measured whole.

    Least squares of relative errors. With an anchor (the dense network) it ends there exactly: where enough networks
    are spread widely enough the line is theirs, and bends to the anchor beyond the largest; else it goes through the
    anchor, and the points decide its slope alone. A slope that comes out below a tenth or above ten is noise of points
    that lie together: then the line goes through the origin.

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
    given = [(float(x), float(y)) for x, y in [*points, *([anchor] if anchor else [])]]
    wrong = [pair for pair in given if not (0 < pair[0] < np.inf and 0 < pair[1] < np.inf)]
    if wrong:
        raise UsageError(
            f"a calibration was asked for with the point {wrong[0]}; sums and latencies are positive µs; "
            "measure that network again"
        )
    x, y = (np.array(column) for column in zip(*given, strict=True))
    if anchor is not None:
        return _two_slopes(given) or _through(given)
    if len(given) == 1 or np.ptp(x) < 1e-3 * x.max():
        return Calibration(0.0, _proportion(x, y), tuple(given))
    return Calibration(*_line(x, y), tuple(given))


def _proportion(x: FloatArray, y: FloatArray) -> float:
    """Returns the slope of the line through the origin."""
    return float(np.sum(x / y) / np.sum((x / y) ** 2))


def _line(x: FloatArray, y: FloatArray) -> tuple[float, float]:
    """Returns the line that is relatively nearest to some points."""
    origin = _proportion(x, y)
    a, b = np.linalg.lstsq(np.stack([1.0 / y, x / y], axis=1), np.ones(len(y)), rcond=None)[0]
    return (float(a), float(b)) if 0.1 < b / origin < 10.0 else (0.0, origin)


def _through(given: Sequence[tuple[float, float]]) -> Calibration:
    """Returns the line through the last point that is relatively nearest to the others."""
    x, y = (np.array(column) for column in zip(*given, strict=True))
    x0, y0 = given[-1]
    u, v = (x - x0) / y, (y - y0) / y
    spread = float(np.sum(u * u))
    slope = float(np.sum(u * v)) / spread if spread > 1e-4 else y0 / x0
    if not 0.1 < slope * x0 / y0 < 10.0:
        slope = y0 / x0
    return Calibration(y0 - slope * x0, slope, tuple(given))


def _two_slopes(given: Sequence[tuple[float, float]]) -> Calibration | None:
    """Returns the line through all points but the last, continued to the last; None where none is determined."""
    x0, y0 = given[-1]
    inner = [(x, y) for x, y in given[:-1] if x <= NEAR * x0]
    if len(inner) < FEWEST or max(inner)[0] - min(inner)[0] < SPREAD * x0:
        return None
    x, y = (np.array(column) for column in zip(*inner, strict=True))
    a, b = _line(x, y)
    end = float(x.max())
    rise = (y0 - a - b * end) / (x0 - end)
    if not 0.1 < rise / b < 10.0 or a + b * float(x.min()) <= 0:
        return None
    return Calibration(a, b, tuple(given), ((end, a + b * end), (x0, y0)))


PRIOR = 4
"""The held-out cells weigh as much as this many networks measured whole; without such cells, none."""


@dataclass(frozen=True)
class Interval:
    """A predicted latency, and the range that holds the measured one in a share of cases."""

    us: float
    low_us: float
    high_us: float
    share: float

    def holds(self, us: float) -> bool:
        """Whether a measured latency lies within."""
        return self.low_us <= us <= self.high_us


def interval(line: Calibration | None, sum_us: float, *, cells: float | None, share: float = 0.9) -> Interval:
    """Returns the prediction interval of a network.

    ``us · (1 ± t · s · √(1 + h))``: s² pools the relative residuals r of the n networks that the line was fitted to
    with what the held-out cells let expect, ``s² = (ν₀·cells² + Σ r²) / (ν₀ + n − p)`` with ν₀ = ``PRIOR``, which is
    the mean of the conjugate (scaled inverse χ²) posterior's scale; t is Student's quantile with as many degrees of
    freedom; h is the leverage of the network in the line's weighted least squares (Draper & Smith, Applied
    Regression Analysis, §3.1), p its free numbers.

    Args:
        line: the calibration; None: the sum itself, whose overhead per call is then in no interval.
        sum_us: sum of the network's ops.
        cells: relative standard deviation of the sum that follows from the errors of held-out cells; None: none was
            held out, and the networks alone tell (ν₀ = 0).
        share: of cases that it is to hold.

    Raises:
        UsageError: a share that is not between 0 and 1, a spread that is not finite, or nothing that tells: neither
            cells nor more networks than the line has free numbers.
    """
    if not 0 < share < 1 or not 0 <= (cells or 0.0) < np.inf:
        raise UsageError(
            f"an interval of {share:g} with cells off by {cells:g} was asked; give a share between 0 and 1, such as "
            "0.9, and a spread of 0 or more"
        )
    us = sum_us if line is None else line.apply(sum_us)
    residuals, free, leverage = ([], 0, 0.0) if line is None else _fitted(line, sum_us)
    prior = 0 if cells is None else PRIOR
    freedom = prior + max(0, len(residuals) - free)
    if not freedom:
        raise UsageError(
            "an interval was asked of a line that was fitted to no more networks than it has free numbers, without "
            "held-out cells; measure more networks whole"
        )
    variance = (prior * (cells or 0.0) ** 2 + float(np.sum(np.square(residuals)))) / freedom
    half = student(share, freedom) * float(np.sqrt(variance * (1.0 + leverage))) * us
    return Interval(us, max(0.0, us - half), us + half, share)


def _fitted(line: Calibration, sum_us: float) -> tuple[list[float], int, float]:
    """Returns the residuals that a line was fitted to, its free numbers, and the leverage of another network.

    A line that ends in the dense network, its last point, has no residual there. One that bends to it is free in two
    numbers below the bend, one through it in one.
    """
    points = list(line.points)
    if len(points) < 2:
        return [], 0, 0.0
    through = abs(line.apply(points[-1][0]) / points[-1][1] - 1.0) < 1e-9
    inner = points[:-1] if through else points
    residuals = [line.apply(x) / y - 1.0 for x, y in inner]
    x, y = (np.array(column) for column in zip(*inner, strict=True))
    us = line.apply(sum_us)
    if through and line.bend is None:
        x0 = points[-1][0]
        spread = float(np.sum(np.square((x - x0) / y)))
        return residuals, 1, ((sum_us - x0) / us) ** 2 / spread if spread > 0 else 0.0
    rows = np.stack([1.0 / y, x / y], axis=1)
    own = np.array([1.0 / us, sum_us / us])
    if len(inner) < 3 or np.linalg.matrix_rank(rows) < 2:
        return residuals, 2, 0.0
    return residuals, 2, float(own @ np.linalg.inv(rows.T @ rows) @ own)


@cache
def student(share: float, freedom: int) -> float:
    """Returns t with P(|T| < t) = share, of Student's distribution.

    With T = √ν·tan θ the density of θ is proportional to cos^(ν−1) θ, which is summed over 40,000 steps.
    """
    angle = np.linspace(0.0, np.pi / 2, 40_001)
    density = np.cos(angle) ** (freedom - 1)
    area = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return float(np.sqrt(freedom) * np.tan(np.interp(share, area / area[-1], angle)))
