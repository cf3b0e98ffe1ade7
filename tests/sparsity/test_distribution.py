"""Budgets, and the Erdős–Rényi-kernel densities that the papers print."""

from __future__ import annotations

import math

import pytest

from halpiee.errors import UsageError
from halpiee.sparsity import ERK, NM, Latency, Uniform, erk


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """ResNet-50's weight shapes, from the architecture table of He et al. 2016."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    c_in = 64
    for stage, (channels, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1"] = (channels, c_in, 1, 1)
            shapes[f"{name}.conv2"] = (channels, channels, 3, 3)
            shapes[f"{name}.conv3"] = (4 * channels, channels, 1, 1)
            if block == 0:
                shapes[f"{name}.downsample"] = (4 * channels, c_in, 1, 1)
            c_in = 4 * channels
    shapes["fc"] = (1000, 2048)
    return shapes


def test_erk_of_resnet50_at_90_percent_is_what_granets_appendix_prints() -> None:
    shapes = resnet50_shapes()
    densities = erk(shapes, 0.1)
    assert sum(math.prod(s) for s in shapes.values()) == 25_502_912
    assert [name for name, d in densities.items() if d == 1.0] == ["layer1.0.conv1"]
    assert 1 - densities["conv1"] == pytest.approx(0.57997, abs=5e-6)
    assert 1 - densities["layer4.0.downsample"] == pytest.approx(0.92849, abs=5e-6)
    assert 1 - densities["fc"] == pytest.approx(0.92739, abs=5e-6)


def test_erk_keeps_the_total_density_exactly() -> None:
    shapes = resnet50_shapes()
    total = sum(math.prod(s) for s in shapes.values())
    for density in (0.02, 0.1, 0.35, 0.5, 0.9, 1.0):
        kept = sum(d * math.prod(shapes[name]) for name, d in erk(shapes, density).items())
        assert kept / total == pytest.approx(density, abs=1e-12)


def test_erk_by_hand_on_two_layers() -> None:
    # raw densities (4+4)/16 = 0.5 and (8+8)/64 = 0.25; ε (0.5·16 + 0.25·64) = 0.25 · 80 → ε = 20/24
    densities = erk({"a": (4, 4), "b": (8, 8)}, 0.25)
    assert densities == {"a": pytest.approx(20 / 24 * 0.5), "b": pytest.approx(20 / 24 * 0.25)}


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_an_impossible_density_is_refused(density: float) -> None:
    with pytest.raises(UsageError, match="density is the share that is kept"):
        Uniform(density)
    with pytest.raises(UsageError, match="density"):
        ERK(density)


def test_a_latency_is_either_microseconds_or_a_fraction() -> None:
    with pytest.raises(UsageError, match="exactly one"):
        Latency()
    with pytest.raises(UsageError, match="exactly one"):
        Latency(us=1.0, fraction=0.5)
    with pytest.raises(UsageError, match="share above 0 and up to 1"):
        Latency(fraction=1.2)


def test_n_of_m_needs_n_up_to_m() -> None:
    with pytest.raises(UsageError, match="5:4 was asked"):
        NM(5, 4)
