"""A backend whose times follow a formula on a clock that the runs themselves move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from latency.backends import Backend, Built
from latency.errors import UnsupportedOpError
from latency.op import Op


class FakeClock:
    """Time that passes only when a run says so."""

    kind = "cpu"

    def __init__(self) -> None:
        self.now_us = 0.0
        self.wall_us = 0.0

    def passes(self, us: float, wall_us: float | None = None) -> None:
        self.now_us += us
        self.wall_us += us if wall_us is None else wall_us

    def time_us(self, run: Callable[[], object]) -> tuple[float, float]:
        cpu, wall = self.now_us, self.wall_us
        run()
        return self.now_us - cpu, self.wall_us - wall


class FakeBackend(Backend):
    """Ops that take ``formula(op)`` µs; every build is remembered."""

    name = "fake"

    def __init__(
        self,
        formula: Callable[[Op], float],
        *,
        device: str = "imagined",
        refused: tuple[str, ...] = (),
        noise: Callable[[], float] = lambda: 1.0,
    ) -> None:
        self.formula, self.device, self.refused, self.noise = formula, device, refused, noise
        self.time = FakeClock()
        self.built: list[Op] = []

    def environment(self) -> dict[str, Any]:
        return {"backend": self.name, "device": self.device, "threads": 1, "dtype": "float32"}

    def clock(self) -> FakeClock:
        return self.time

    def anchor(self) -> Callable[[], object] | None:
        return None

    def build(self, op: Op) -> Built:
        if op.kind in self.refused:
            raise UnsupportedOpError(f"{op.kind} was asked for")
        self.built.append(op)
        return Built(
            run=lambda: self.time.passes((self.formula(op) + 5.0) * self.noise()),
            minus=lambda: self.time.passes(5.0 * self.noise()),
            method="twin",
        )


def conv(c_in: int, c_out: int, **fields: Any) -> Op:
    """A 3×3 convolution on 8×8."""
    given = {"h": 8, "w": 8, "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1)}
    return Op(kind="conv", c_in=c_in, c_out=c_out, **{**given, **fields})


def blocks(width: int, step: int) -> int:
    """Blocks of ``step`` channels that hold ``width`` channels."""
    return -(-width // step)


def staircase(step: int) -> Callable[[Op], float]:
    """0.3·blocks_in·blocks_out + blocks_out + 2 µs: flat inside every step of both axes."""

    def us(op: Op) -> float:
        ins, outs = blocks(op.c_in, step), blocks(op.c_out, step)
        if op.diagonal:
            return 2.0 + ins
        return 2.0 + outs + 0.3 * ins * outs

    return us
