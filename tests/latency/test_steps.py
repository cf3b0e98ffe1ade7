"""Steps and patterns, told from times of known form."""

from __future__ import annotations

import numpy as np
import pytest

from latency.op import Op
from latency.sweeping.steps import (
    found_pattern,
    found_slow,
    found_step,
    kind_of,
    probe,
    widths_for_pattern,
    widths_for_step,
)

from .fakes import conv, staircase


@pytest.mark.parametrize("step", [2, 4, 8, 16, 32])
def test_a_staircase_shows_its_step(step: int) -> None:
    assert found_step({w: 2.0 + -(-w // step) * step for w in widths_for_step()}) == step


def test_a_slope_has_no_steps() -> None:
    assert found_step({w: 2.0 + w for w in widths_for_step()}) == 1


def test_one_per_cent_of_noise_seldom_hides_a_step_of_eight() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        {w: (5.0 + -(-w // 8) * 8) * rng.normal(1.0, 0.01) for w in widths_for_step()} for _ in range(100)
    ]
    assert sum(found_step(us) == 8 for us in noisy) >= 97


def test_widths_inside_a_step_may_be_slower_than_its_edge() -> None:
    # Numbers of a CPU with blocks of 8, whose kernels need multiples of 4 to be fast.
    us = {64: 211, 63: 285, 62: 280, 61: 272, 60: 208, 57: 247, 56: 184, 49: 213, 48: 160, 33: 140, 32: 105}
    us |= {44: 158, 40: 134, 28: 106, 24: 80, 16: 54}
    assert found_step(us) == 8
    expected: tuple[int, object] = (4, pytest.approx(1.308, abs=0.001))
    assert found_slow(us, 8) == expected


def test_a_flat_step_has_no_slow_widths() -> None:
    assert found_slow({w: 2.0 + -(-w // 8) * 8 for w in widths_for_step()}, 8) is None


def test_a_step_in_which_every_width_is_slow_is_aligned_to_itself() -> None:
    assert found_slow({w: 64.0 if w == 64 else 128.0 for w in widths_for_step()}, 8) == (8, 2.0)


def test_equal_steps_have_no_pattern() -> None:
    assert found_pattern({w: 3.0 + w for w in widths_for_pattern(8)}, 8) == (1.0,)


def test_a_kernel_of_four_blocks_shows_its_pattern() -> None:
    # Measured: 3×3, 64 → 8 … 128.
    us = [
        58.8,
        71.5,
        86.1,
        105.3,
        162.1,
        175.3,
        190.7,
        208.1,
        263.4,
        279.9,
        296.8,
        314.8,
        369.7,
        384.4,
        407.1,
        414.2,
    ]
    shape = found_pattern(dict(zip(range(8, 129, 8), us, strict=True)), 8)
    assert shape == pytest.approx((0.55, 0.68, 0.83, 1.0), abs=0.02)


def test_steps_without_a_period_are_told_as_such() -> None:
    us = {w: float(w + 40 * (w % 40 == 0)) for w in widths_for_pattern(8)}
    assert found_pattern(us, 8) is None


def test_each_kind_is_probed_once_and_the_rest_takes_the_resolution() -> None:
    asked: list[Op] = []

    def us(op: Op) -> float:
        asked.append(op)
        return staircase(16)(op)

    ops = [conv(32, 32), conv(64, 64, kernel=(1, 1), padding=(0, 0)), Op(kind="linear", c_in=64, c_out=10)]
    found, resolution = probe(ops, us)
    assert found[kind_of(ops[0])].steps == (16, 16)
    assert resolution == 16
    assert {op.kind for op in asked} == {"conv"}
    assert {op.kernel for op in asked} == {(3, 3)}


def test_a_depthwise_op_is_probed_along_its_diagonal() -> None:
    op = conv(32, 32, groups=32)
    found, _ = probe([op], lambda asked: 1.0 + -(-asked.c_in // 8) if asked.depthwise else 1e9)
    assert found[kind_of(op)].steps == (8, 8)


def test_an_uneven_staircase_shows_its_smaller_step() -> None:
    # Measured: 3×3 at 14×14, 64 → n, kernels of four blocks; the last block of four costs little.
    us = {
        64: 157.7,
        63: 160.4,
        62: 161.0,
        61: 160.4,
        60: 160.1,
        57: 160.5,
        56: 143.5,
        49: 145.0,
        48: 131.8,
        33: 121.5,
        32: 78.9,
        44: 132.4,
        40: 121.1,
        28: 80.0,
        24: 63.6,
        16: 52.0,
    }
    assert found_step(us) == 8


@pytest.mark.parametrize(
    ("around_64", "below"),
    [
        # Measured: 1×1 at 14×14, 64 → n, in µs; from 56 to 64 is 64 % of a proportional rise, the last block of four.
        (
            {64: 18.79, 63: 21.65, 62: 21.67, 61: 21.45, 60: 21.59, 57: 21.38, 56: 17.39, 49: 19.15},
            {48: 15.82, 44: 17.39, 40: 14.87, 33: 15.92, 32: 10.03, 28: 11.12, 24: 7.91, 16: 6.46},
        ),
        # The same, n → 64; a neighbour slowed what 60 to 56 channels took.
        (
            {64: 19.0, 63: 22.48, 62: 22.36, 61: 22.04, 60: 20.62, 57: 27.23, 56: 19.87, 49: 18.2},
            {48: 14.9, 44: 14.91, 40: 12.69, 33: 13.74, 32: 10.24, 28: 10.37, 24: 7.96, 16: 5.56},
        ),
    ],
)
def test_a_step_that_only_one_edge_shows_is_none(
    around_64: dict[int, float], below: dict[int, float]
) -> None:
    assert found_step(around_64 | below) == 8


def test_one_run_that_was_too_fast_or_too_slow_hides_no_step() -> None:
    us = {w: 5.0 + -(-w // 8) * 8 for w in widths_for_step()}
    for wrong in (60, 44, 28):
        assert [found_step(us | {wrong: us[wrong] * factor}) for factor in (0.9, 1.1)] == [8, 8]
