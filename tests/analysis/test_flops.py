"""Training FLOPs of the papers' methods: their formulas, and their published numbers on ResNet-50."""

import math

import pytest

from halpiee.analysis import FlopsMeter, forward_share, train_flops
from halpiee.errors import UsageError
from halpiee.sparsity import erk


def resnet50() -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Weight shapes and dense MACs at 224 × 224 of ResNet-50 v1.5 (stride in the 3 × 3)."""
    shapes: dict[str, tuple[int, ...]] = {"conv1": (64, 3, 7, 7)}
    side = {"conv1": 112}
    c_in, resolution = 64, 56
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            before = resolution
            if block == 0 and stage > 1:
                resolution //= 2
            name = f"layer{stage}.{block}"
            parts = {
                "conv1": (width, c_in, 1, 1),
                "conv2": (width, width, 3, 3),
                "conv3": (4 * width, width, 1, 1),
            }
            if block == 0:
                parts["downsample"] = (4 * width, c_in, 1, 1)
            for part, shape in parts.items():
                shapes[f"{name}.{part}"] = shape
                side[f"{name}.{part}"] = before if part == "conv1" else resolution
            c_in = 4 * width
    shapes["fc"] = (1000, 2048)
    side["fc"] = 1
    return shapes, {name: math.prod(shape) * side[name] ** 2 for name, shape in shapes.items()}


SHAPES, MACS = resnet50()
ONE = {"all": 1}


def cubic(t: int, start: float, final: float, begin: int, end: int) -> float:
    """Sparsity of gradual pruning: s_f + (s_i − s_f) (1 − progress)³."""
    progress = min(max((t - begin) / (end - begin), 0.0), 1.0)
    return final + (start - final) * (1 - progress) ** 3


def test_the_dense_network_has_its_known_macs() -> None:
    assert 2 * sum(MACS.values()) == 8_178_368_512
    assert sum(math.prod(s) for s in SHAPES.values()) == 25_502_912


@pytest.mark.parametrize(
    ("sparsity", "share"), [(0.5, 0.7143), (0.8, 0.4138), (0.9, 0.2418), (0.95, 0.1217), (0.965, 0.0852)]
)
def test_forward_share_of_erk(sparsity: float, share: float) -> None:
    assert forward_share(MACS, erk(SHAPES, 1 - sparsity)) == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize(
    ("sparsity", "share"), [(0.8, 0.2231), (0.9, 0.1260), (0.95, 0.0774), (0.965, 0.0628)]
)
def test_forward_share_of_uniform_with_a_dense_first_layer(sparsity: float, share: float) -> None:
    density = {name: 1 - sparsity for name in MACS if name != "conv1"}
    assert forward_share(MACS, density) == pytest.approx(share, abs=5e-5)


def test_a_number_is_the_share_of_every_layer() -> None:
    assert forward_share(MACS, 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["static", "set", "gmp"])
def test_static_costs_its_forward_share(method: str) -> None:
    density = erk(SHAPES, 0.2)
    assert train_flops(MACS, density, method=method, steps=10) == pytest.approx(0.4138, abs=5e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sparsity", "interval", "cost"),
    [(0.8, 100, 0.4157), (0.9, 100, 0.2443), (0.8, 4000, 0.4138), (0.9, 4000, 0.2419)],
)
def test_rigl_pays_one_dense_weight_gradient_per_interval(
    sparsity: float, interval: int, cost: float
) -> None:
    density = erk(SHAPES, 1 - sparsity)
    found = train_flops(MACS, density, method="rigl", steps=3 * (interval + 1), interval=interval)
    assert found == pytest.approx(cost, abs=5e-5)


def test_five_times_longer_rigl_reaches_the_published_multiples() -> None:
    for sparsity, multiple in ((0.8, 2.086), (0.9, 1.228)):
        # the published convention: 2 FLOPs a MAC plus one a output for bias and activation: p = .4153, .2431
        p = {0.8: 0.4153, 0.9: 0.2431}[sparsity]
        assert 5 * train_flops(ONE, p, method="rigl", steps=101) == pytest.approx(multiple, abs=1e-3)


@pytest.mark.parametrize(("sparsity", "cost"), [(0.8, 0.609), (0.9, 0.495)])
def test_snfs_pays_dense_weight_gradients(sparsity: float, cost: float) -> None:
    density = erk(SHAPES, 1 - sparsity)
    assert train_flops(MACS, density, method="snfs", steps=10) == pytest.approx(cost, abs=5e-4)


def test_sr_ste_pays_two_dense_backward_passes() -> None:
    assert train_flops(MACS, 0.5, method="sr-ste", steps=10) == pytest.approx(0.833, abs=5e-4)


@pytest.mark.parametrize(("sparsity", "cost"), [(0.8, 0.559), (0.9, 0.504)])
def test_gmp_pays_the_mean_of_its_schedule(sparsity: float, cost: float) -> None:
    """Pruned from 10k to 25k of 32k steps; first layer dense, the last at most 80 % sparse.

    The published mean samples every 1000th step from 0 to 32,000, both ends included: 33 points.
    """

    def density(t: int) -> dict[str, float]:
        s = cubic(t, 0.0, sparsity, 10_000, 25_000)
        kept = {name: 1 - s for name in MACS if name != "conv1"}
        return kept | {"fc": 1 - min(s, 0.8)}

    grid = [density(t) for t in range(0, 32_001, 1000)]
    assert train_flops(MACS, grid, method="gmp", steps=33) == pytest.approx(cost, abs=5e-4)


@pytest.mark.parametrize(
    ("start", "final", "cost"),
    [
        (1.0, 0.28, 0.34),
        (1.0, 0.163, 0.23),
        (0.7143, 0.35, 0.37),
        (0.7143, 0.2026, 0.25),
        (0.7143, 0.12, 0.17),
    ],
)
def test_granet_pays_the_mean_of_its_schedule(start: float, final: float, cost: float) -> None:
    """Pruned over the first 30 % of training, forward FLOPs taken as linear in the sparsity."""

    def share(t: int) -> float:
        return 1 - cubic(t, 1 - start, 1 - final, 0, 300)

    assert train_flops(ONE, share, method="granet", steps=1000) == pytest.approx(cost, abs=0.01)


def test_granet_strictly_also_pays_its_dense_gradients() -> None:
    paper, strict = (
        train_flops(ONE, 0.1, method="granet", steps=202, accounting=a) for a in ("paper", "strict")
    )
    assert strict - paper == pytest.approx(0.9 / 3 / 101)


@pytest.mark.parametrize(("sparsity", "paper", "strict"), [(0.8, 0.4626, 0.526), (0.9, 0.3050, 0.411)])
def test_iee_on_paper_and_strictly(sparsity: float, paper: float, strict: float) -> None:
    density = erk(SHAPES, 1 - sparsity)
    assert train_flops(MACS, density, method="iee", steps=1800) == pytest.approx(paper, abs=1e-4)
    found = train_flops(MACS, density, method="iee", steps=1800, accounting="strict")
    assert found == pytest.approx(strict, abs=5e-4)


def test_iee_counts_whole_cycles_only() -> None:
    # end · steps = 75: three cycles of 20 with 5 explore steps each, of (1 + 2 · 0.5) instead of 1.5
    found = train_flops(ONE, 0.5, method="iee", steps=100, h=10, j=5, q=5)
    assert found == pytest.approx((85 * 1.5 + 15 * 2.0) / 300)


def test_iee_without_explore_steps_is_static() -> None:
    assert train_flops(ONE, 0.3, method="iee", steps=100, h=10, j=5, q=0) == pytest.approx(0.3)


def test_strictly_exploring_costs_more_the_sparser_the_network() -> None:
    costs = [
        train_flops(ONE, p, method="iee", steps=100, h=0, j=0, q=1, end=1.0, accounting="strict")
        for p in (0.1, 0.9)
    ]
    assert costs == [pytest.approx(2.9 / 3), pytest.approx(2.1 / 3)]


def test_dense_is_one_whatever_the_density() -> None:
    assert train_flops(MACS, 0.1, method="dense", steps=5) == 1.0


def test_a_density_curve_may_be_a_list_or_a_function_of_the_step() -> None:
    curve = [1.0, 0.5, 0.25, 0.25]
    assert train_flops(ONE, curve, method="gmp", steps=4) == pytest.approx(0.5)
    assert train_flops(ONE, lambda t: curve[t], method="gmp", steps=4) == pytest.approx(0.5)


@pytest.mark.parametrize(("forward_gmacs", "multiple"), [(2.0, 0.708), (1.1, 0.392)])
def test_structured_iee_over_130_epochs_against_90_dense_ones(forward_gmacs: float, multiple: float) -> None:
    """Updates end at epoch 5 and a third of them explores: 1.667 epochs, in thirds of an epoch."""
    meter = FlopsMeter()
    meter.explore(5, forward_gmacs, 4.1)
    meter.train(3 * 130 - 5, forward_gmacs)
    assert meter.ratio(4.1, 3 * 90)["paper"] == pytest.approx(multiple, abs=5e-4)


def test_the_meter_charges_an_explore_step_both_ways() -> None:
    meter = FlopsMeter()
    meter.explore(10, active_macs=30.0, dense_macs=100.0)
    assert meter.ratio(100.0, 10) == {"paper": pytest.approx(160 / 300), "strict": pytest.approx(270 / 300)}


def test_the_meter_adds_the_three_parts_of_a_step() -> None:
    meter = FlopsMeter()
    meter.add(2, 5.0, 3.0, 1.0)
    meter.add(1, 1.0, 1.0, 1.0, paper_macs=7.0)
    assert meter.strict_macs == 21.0
    assert meter.paper_macs == 25.0


def test_the_meter_agrees_with_the_formula_of_iee() -> None:
    meter = FlopsMeter()
    meter.train(600 * 3 - 450, 0.25)
    meter.explore(450, 0.25, 1.0)
    for accounting in ("paper", "strict"):
        formula = train_flops(ONE, 0.25, method="iee", steps=1800, accounting=accounting)
        assert meter.ratio(1.0, 1800)[accounting] == pytest.approx(formula)


@pytest.mark.parametrize("density", [-0.1, 1.5, float("nan"), {"all": 2.0}, [0.5, 7.0]])
def test_densities_outside_zero_to_one_are_refused(density: object) -> None:
    with pytest.raises(UsageError, match=r"densities lie between 0 and 1 \(density = 1 − sparsity\)"):
        train_flops(ONE, density, method="static", steps=2)  # type: ignore[arg-type]


def test_a_layer_without_macs_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        UsageError, match=r"the layer 'layer1\.0\.convl', which has no MACs; did you mean 'layer1\.0"
    ):
        forward_share(MACS, {"layer1.0.convl": 0.5})


def test_an_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(
        UsageError, match="the method 'rigle' were asked, which is not known; did you mean 'rigl'"
    ):
        train_flops(ONE, 0.5, method="rigle", steps=1)  # type: ignore[arg-type]


def test_a_list_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match="2 densities were given for 3 steps; give one a step"):
        train_flops(ONE, [0.5, 0.5], method="gmp", steps=3)


def test_a_network_without_macs_is_refused() -> None:
    with pytest.raises(UsageError, match="a network without MACs"):
        forward_share({}, 0.5)


def test_a_negative_phase_is_refused() -> None:
    with pytest.raises(UsageError, match="neither steps nor MACs can be negative"):
        FlopsMeter().explore(1, active_macs=2.0, dense_macs=1.0)
