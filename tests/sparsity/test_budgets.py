"""Budgets bound to layers: conventions by name, exact counts, ties by index, what cannot be reached."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from halpiee import analysis
from halpiee.errors import BudgetError, UsageError
from halpiee.methods.allocator import LayerPools
from halpiee.sparsity import ERK, NM, Filters, Global, Mask, PerLayer, Uniform, Weights, erk

from .test_distribution import resnet50_shapes


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 2)
    )


def top(pool: LayerPools, scores: dict[str, torch.Tensor]) -> Mask:
    nothing = Mask.full(pool.units.sizes, False)
    return Mask.of(pool.choose(scores, must=nothing, may=~nothing, level=1.0).keep)


def test_a_map_gives_each_layer_its_count_and_leaves_the_others_dense() -> None:
    pool = LayerPools(Weights(net()), PerLayer({"0": 0.25, "3.weight": 0.5}))
    scores = {name: torch.rand(shape) for name, shape in pool.units.sizes.items()}
    assert top(pool, scores).counts == {"0.weight": 72, "3.weight": 24, "4.weight": 12}


def test_a_name_that_is_no_layer_is_refused_with_the_closest() -> None:
    with pytest.raises(UsageError, match=r"a density for the layer '33' was given, .* did you mean '3'"):
        LayerPools(Weights(net()), PerLayer({"33": 0.5}))


SHAPES = {"first": (10, 10), "middle": (20, 20), "last": (10, 10)}


def test_rigls_uniform_keeps_the_first_layer_dense_and_does_not_make_up_for_it() -> None:
    assert Uniform(0.1, first=1.0).densities(SHAPES) == {"first": 1.0, "middle": 0.1, "last": 0.1}


def test_gales_uniform_also_keeps_a_fifth_of_the_last_layer() -> None:
    found = Uniform(0.1, first=1.0, last=0.2).densities(SHAPES)
    assert found == {"first": 1.0, "middle": 0.1, "last": 0.2}
    assert Uniform(0.5, last=0.2).densities(SHAPES)["last"] == 0.5


def test_granets_uniform_lets_the_other_layers_pay_for_the_last() -> None:
    # 600 weights at 0.1: 60 stay, 20 of them in the last layer, 40 of the 500 others
    found = Uniform(0.1, last=0.2, pinned="inside").densities(SHAPES)
    assert found == {"first": pytest.approx(0.08), "middle": pytest.approx(0.08), "last": 0.2}


def test_layers_pinned_inside_the_total_may_not_exceed_it() -> None:
    with pytest.raises(UsageError, match=r"leaves -0\.08 for the others"):
        Uniform(0.1, first=1.0, pinned="inside").densities(SHAPES)


def test_pinned_layers_are_outside_of_the_equation_or_inside_of_the_total() -> None:
    shapes = resnet50_shapes()
    size = {name: math.prod(shape) for name, shape in shapes.items()}
    rigl = erk(shapes, 0.1, dense={"conv1"}, pinned="outside")
    others = sum(d * size[n] for n, d in rigl.items() if n != "conv1")
    assert rigl["conv1"] == 1.0
    assert others == pytest.approx(0.1 * (sum(size.values()) - size["conv1"]))
    srigl = erk(shapes, 0.1, dense={"conv1"}, pinned="inside")
    assert srigl["conv1"] == 1.0
    assert sum(d * size[n] for n, d in srigl.items()) == pytest.approx(0.1 * sum(size.values()))


def resnet50_macs() -> dict[str, int]:
    side = {"conv1": 112, "layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7, "fc": 1}
    macs = {}
    for name, shape in resnet50_shapes().items():
        stage, _, rest = name.partition(".")
        positions = side[stage] ** 2
        if rest.endswith("0.conv1") and stage not in ("layer1",):  # the stride is in conv2 (v1.5)
            positions *= 4
        macs[name] = math.prod(shape) * positions
    return macs


@pytest.mark.parametrize(("sparsity", "share"), [(0.965, 0.1099), (0.99, 0.0520)])
def test_test_flops_of_erk_with_a_pinned_first_layer_are_the_published_ones(
    sparsity: float, share: float
) -> None:
    densities = ERK(1 - sparsity, dense=frozenset({"conv1"})).densities(resnet50_shapes())
    assert analysis.forward_share(resnet50_macs(), densities) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize(
    ("densities", "megabytes"),
    [
        (Uniform(1.0), 102.122),
        (ERK(0.2), 23.684),
        (ERK(0.1), 13.499),
        (ERK(0.05), 8.399),
        (ERK(0.01, dense=frozenset({"conv1"})), 4.354),
        (Uniform(0.1, first=1.0), 13.532),
        (Uniform(0.05, first=1.0), 8.433),
        (Uniform(0.035, first=1.0), 6.904),
    ],
)
def test_model_sizes_are_those_of_rigls_table(densities: Uniform | ERK, megabytes: float) -> None:
    # 32 bits a weight that is kept, one bit a weight of a sparse layer, a bias of 32 bits a channel
    shapes = resnet50_shapes()
    bits = 0
    for name, density in densities.densities(shapes).items():
        n = math.prod(shapes[name])
        zeros = math.floor((1 - density) * n + 1e-9)
        bits += 32 * (n - zeros) + (n if density < 1 else 0) + 32 * shapes[name][0]
    assert bits / 8e6 == pytest.approx(megabytes, abs=5.1e-4)


def test_power_zero_is_uniform() -> None:
    assert erk(SHAPES, 0.3, power=0.0) == pytest.approx(dict.fromkeys(SHAPES, 0.3))


def test_erk_whose_dense_layers_exceed_the_budget_is_refused() -> None:
    with pytest.raises(UsageError, match=r"ERK at density 0.1 is infeasible: \['middle'\] would be dense"):
        erk(SHAPES, 0.1, dense={"middle"}, pinned="inside")


def test_erk_of_filters_is_refused() -> None:
    with pytest.raises(UsageError, match="ERK was asked of '0' with shape"):
        LayerPools(Filters(net(), torch.zeros(1, 4, 3, 3)), ERK(0.5))
    with pytest.raises(UsageError, match="2:4 was asked of '0', whose units are whole filters"):
        LayerPools(Filters(net(), torch.zeros(1, 4, 3, 3)), NM(2, 4))


def test_fewer_weights_than_layers_is_refused_with_the_least_density() -> None:
    weights = Weights(net())  # 288 + 48 + 12 = 348 weights in three layers
    for budget in (Global(0.005), Uniform(0.005), ERK(0.005)):
        with pytest.raises(
            BudgetError, match=r"1\.7 of 348 units, and each of the 3 layers keeps at least one"
        ) as caught:
            LayerPools(weights, budget)
        assert caught.value.minimum == 3 / 348
    assert LayerPools(weights, Global(3 / 348)).total == 3


def test_ties_go_to_the_lower_index_and_every_layer_keeps_one() -> None:
    pool = LayerPools(Weights(net()), Global(0.1))
    alive = top(pool, {name: torch.zeros(shape) for name, shape in pool.units.sizes.items()})
    assert alive.counts == {"0.weight": 33, "3.weight": 1, "4.weight": 1}  # 35 of 348
    assert alive["0.weight"].flatten()[:33].all()
    assert alive["3.weight"].flatten()[0]


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 10_000),
)
def test_n_of_m_keeps_the_best_n_of_every_run(n: int, m: int, runs: int, kernel: int, seed: int) -> None:
    n = min(n, m)
    layer = nn.Sequential(nn.Conv1d(runs * m, 2, kernel, bias=False))
    pool = LayerPools(Weights(layer), NM(n, m))
    score = torch.randint(0, 4, (2, runs * m, kernel), generator=torch.Generator().manual_seed(seed)).float()
    alive = top(pool, {"0.weight": score})["0.weight"]
    for out, run, position in itertools.product(range(2), range(runs), range(kernel)):
        inputs = range(run * m, run * m + m)
        best = sorted(inputs, key=lambda i: (-score[out, i, position].item(), i))[:n]
        assert [i for i in inputs if alive[out, i, position]] == sorted(best)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=12, max_size=12), st.integers(1, 12), st.booleans())
def test_one_pool_keeps_the_same_units_as_sorting_by_score_and_then_index(
    values: list[int], count: int, wide: bool
) -> None:
    layers = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(6, 1, bias=False))
    pool = LayerPools(Weights(layers), Global(max(count, 2) / 12))
    flat = torch.tensor(values, dtype=torch.float64 if wide else torch.float32)
    alive = top(pool, {"0.weight": flat[:6].reshape(2, 3), "1.weight": flat[6:].reshape(1, 6)})
    order = sorted(range(12), key=lambda i: (-values[i], i))
    # each layer's best is in first; the rest is the ranking over both
    first = [min(range(6), key=lambda i: (-values[i], i)), min(range(6, 12), key=lambda i: (-values[i], i))]
    expected = set(first) | set([i for i in order if i not in first][: max(count, 2) - 2])
    kept = torch.cat([alive["0.weight"].flatten(), alive["1.weight"].flatten()])
    assert set(kept.nonzero().flatten().tolist()) == expected


@pytest.mark.parametrize(("sparsity", "gigaflops"), [(0.5, 5.841), (0.8, 3.384), (0.9, 1.978)])
def test_flops_of_a_sparse_resnet50_are_the_published_ones(sparsity: float, gigaflops: float) -> None:
    macs = resnet50_macs()
    share = analysis.forward_share(macs, erk(resnet50_shapes(), 1 - sparsity))
    assert 2 * sum(macs.values()) == 8_178_368_512
    assert round(share * 2 * sum(macs.values()) / 1e9, 3) == gigaflops


@pytest.mark.parametrize(("sparsity", "flops"), [(0.8, 1.111e8), (0.9, 0.547e8), (0.95, 0.278e8)])
def test_flops_of_a_sparse_wrn22_2_are_the_published_ones(sparsity: float, flops: float) -> None:
    # 16-32-64-128 channels in stages of three blocks at sides 32, 16 and 8; a projection opens each stage
    shapes: dict[str, tuple[int, ...]] = {"conv1": (16, 3, 3, 3)}
    macs = {"conv1": 16 * 3 * 9 * 32 * 32}
    for stage, (c_in, c_out) in enumerate(((16, 32), (32, 64), (64, 128))):
        side = 32 >> stage
        for block in range(3):
            first = c_in if block == 0 else c_out
            shapes |= {f"{stage}.{block}.1": (c_out, first, 3, 3), f"{stage}.{block}.2": (c_out, c_out, 3, 3)}
        shapes[f"{stage}.skip"] = (c_out, c_in, 1, 1)
        macs |= {n: math.prod(s) * side**2 for n, s in shapes.items() if n.startswith(f"{stage}.")}
    shapes["fc"], macs["fc"] = (10, 128), 1280
    assert 2 * sum(macs.values()) == pytest.approx(3.155e8, abs=5e4)
    found = 2 * sum(d * macs[n] for n, d in erk(shapes, 1 - sparsity).items())
    assert found == pytest.approx(flops, abs=5.1e4)
