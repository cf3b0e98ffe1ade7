"""IEE under a latency: never over its budget but while exploring, and never with room left for another step."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from halpiee.errors import BudgetError, UsageError
from halpiee.methods.allocator import LatencyPool, bind
from halpiee.methods.iee import IEE
from halpiee.selection.cost import LatencyCost
from halpiee.sparsity import Channels, Latency, Mask
from halpiee.structure.groups import Structure, TimedOp
from latency.op import Op

Batches = list[tuple[Tensor, Tensor]]


class Product:
    """T(c_in, c_out) = 1 + c_in · ⌈c_out / 2⌉ · 2 µs: a staircase of 2 on the output axis."""

    def lookup(self, c_in: ArrayLike, c_out: ArrayLike) -> NDArray[np.float64]:
        i, o = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        return np.where((i == 0) | (o == 0), 0.0, 1.0 + i * (-(-o // 2) * 2.0))

    def measured(self, c_in: ArrayLike, c_out: ArrayLike) -> NDArray[np.bool_]:
        return np.ones(np.broadcast(c_in, c_out).shape, dtype=np.bool_)


class Tables:
    """Every op has the same closed-form table."""

    def table(self, op: Op) -> Product:
        return Product()


@pytest.fixture
def timed(structure: Structure) -> Structure:
    """conv1 3→a, conv2 a→b, fc b→2: R = 3 + 3·⌈a⌉₂ + a·⌈b⌉₂ + 2·b; dense (a = 4, b = 6): 3 + 12 + 24 + 12 = 51."""
    ops = tuple(
        TimedOp(Op(kind=layer.kind, c_in=i, c_out=o), layer.name, layer.in_groups, layer.out_groups)
        for layer, (i, o) in zip(structure.layers, ((3, 4), (4, 6), (6, 2)), strict=True)
    )
    return dataclasses.replace(structure, ops=ops)


def latency_by_hand(a: int, b: int) -> float:
    def up(n: int) -> int:
        return math.ceil(n / 2) * 2

    return 3 + 3 * up(a) + a * up(b) + b * 2


def test_the_cost_is_what_is_worked_out_by_hand(timed: Structure) -> None:
    cost = LatencyCost(timed, Tables())
    assert cost.dense_us == 51
    for a in range(1, 5):
        for b in range(1, 7):
            assert cost.total_us({"a": a, "b": b}) == latency_by_hand(a, b)


def test_the_start_fills_the_budget_and_is_random_but_seeded(timed: Structure, net: nn.Module) -> None:
    cost = LatencyCost(timed, Tables())
    pool = bind(Latency(fraction=0.7), Channels(net, timed), cost)
    assert pool.total == pytest.approx(0.7 * 51)
    starts = [pool.start(torch.Generator().manual_seed(s)) for s in (0, 0, 1, 2, 3)]
    assert Mask.of(starts[0].keep).digest() == Mask.of(starts[1].keep).digest()
    assert len({Mask.of(s.keep).digest() for s in starts}) > 1
    for start in starts:
        assert start.latency_us <= pool.total


def run(net: nn.Module, timed: Structure, batches: Batches, **extra: object) -> IEE:
    cost = LatencyCost(timed, Tables())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    options = {
        "budget": Latency(fraction=0.6),
        "total_steps": 40,
        "h": 3,
        "j": 1,
        "q": 2,
        "end": 0.9,
        **extra,
    }
    iee = IEE(net, optimizer, structure=timed, cost=cost, **options)
    for x, y in batches:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        optimizer.step()
    return iee


@pytest.mark.parametrize(("end", "cycles"), [(None, 7), (0.1, 1)])
def test_updates_end_after_three_quarters_or_where_it_is_asked(
    timed: Structure, net: nn.Module, batches: Batches, end: float | None, cycles: int
) -> None:
    """Of 100 steps 75 hold seven cycles of 3, 1 and 6, and a tenth holds one."""
    iee = run(net, timed, batches[:12], total_steps=100, h=3, j=1, q=6, end=end)
    assert len(iee.recipe) == 1 + 5 * cycles
    assert [(e.step, e.event) for e in iee.reports][:3] == [(0, "init"), (3, "prune"), (10, "grow")]
    assert iee.finished == (cycles == 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_after_every_event_the_budget_holds_and_no_next_step_fits(
    timed: Structure, net: nn.Module, batches: Batches, seed: int
) -> None:
    iee = run(net, timed, batches, seed=seed)
    candidates = iee.pool.cost.candidates  # type: ignore[attr-defined]
    assert {e.event for e in iee.reports} == {"init", "prune", "grow"}
    for event in iee.reports:
        now = latency_by_hand(event.counts["a"], event.counts["b"])
        assert event.used == pytest.approx(now)
        capacity = event.budget - event.omega if event.event == "prune" else event.budget
        assert now <= capacity + 1e-9
        assert event.slack == pytest.approx(capacity - now)
        if event.event == "prune":
            continue
        for name in ("a", "b"):
            wider = [k for k in candidates[name] if k > event.counts[name]]
            if wider:
                grown = {**event.counts, name: wider[0]}
                assert latency_by_hand(grown["a"], grown["b"]) > event.budget + 1e-9


def test_omega_decays_geometrically_to_its_floor(timed: Structure, net: nn.Module, batches: Batches) -> None:
    iee = run(net, timed, batches)
    shares = [e.omega / e.budget for e in iee.reports if e.event == "prune"]
    assert len(shares) == 6  # 36 / (3 + 1 + 2)
    assert shares[0] == pytest.approx(0.3)
    ratios = [b / a for a, b in itertools.pairwise(shares)]
    assert ratios == pytest.approx([ratios[0]] * 5)


def test_a_budget_below_the_smallest_network_names_what_is_reachable(
    timed: Structure, net: nn.Module
) -> None:
    # smallest: one candidate unit each; 2-steps make the narrowest candidates a = 2 … or 1 where it is cheaper
    cost = LatencyCost(timed, Tables())
    smallest = latency_by_hand(cost.candidates["a"][0], cost.candidates["b"][0])
    with pytest.raises(BudgetError, match=f"needs {smallest:.0f} µs") as caught:
        bind(Latency(us=5.0), Channels(net, timed), cost)
    assert caught.value.minimum == pytest.approx(smallest)


def test_a_latency_without_a_cost_says_what_to_pass(timed: Structure, net: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"pass cost=halpiee\.LatencyCost"):
        bind(Latency(fraction=0.5), Channels(net, timed), None)


def test_pretrained_starts_dense_scores_h_steps_and_solves_once(
    timed: Structure, net: nn.Module, batches: Batches
) -> None:
    iee = run(net, timed, batches[:3], start="pretrained")
    assert [(e.event, e.step) for e in iee.reports] == [("init", 3)]
    assert iee.reports[0].used <= iee.reports[0].budget


def test_a_corrected_cost_solves_the_last_cycle_again(
    timed: Structure, net: nn.Module, batches: Batches
) -> None:
    iee = run(net, timed, batches)
    pool = iee.pool
    assert isinstance(pool, LatencyPool)

    from latency.predict import Calibration

    before, before_mask = iee.reports[-1], iee.alive
    event = iee.choose_again(pool.with_cost(pool.cost.with_calibration(Calibration(0.0, 1.3))))
    assert event.event == "grow"
    assert event.used <= event.budget == before.budget
    assert event.used == pytest.approx(1.3 * latency_by_hand(event.counts["a"], event.counts["b"]))
    assert iee.adopt(before_mask, before).counts == before.counts
    assert iee.alive.digest() == before_mask.digest()


def test_shrinking_gives_the_same_pair_again_and_records_it(
    timed: Structure, net: nn.Module, batches: Batches
) -> None:
    import halpiee

    model = net
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    structure = halpiee.trace(model, (batches[0][0][:1],))
    iee = IEE(
        model,
        optimizer,
        budget=Latency(fraction=0.6),
        structure=structure,
        cost=LatencyCost(structure, Tables()),
        total_steps=20,
        end=0.75,
        h=3,
        j=1,
        q=2,
    )
    for x, y in batches[:20]:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(model(x), y))
        optimizer.step()
        if iee.finished:
            break
    model.eval()
    dense_shaped = model(batches[0][0])
    compact, compact_optimizer = iee.shrink()
    assert iee.shrink() == (compact, compact_optimizer)
    assert iee.reports[-1].event == "shrink"
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    assert iee.rebind(scheduler).optimizer is compact_optimizer
    torch.testing.assert_close(compact.eval()(batches[0][0]), dense_shaped, rtol=1e-5, atol=1e-6)
    assert compact.get_parameter("conv2.weight").shape == (
        int(iee.alive["conv2"].sum()),
        int(iee.alive["conv1"].sum()),
        3,
        3,
    )
    momentum = compact_optimizer.state[compact.get_parameter("conv2.weight")]["momentum_buffer"]
    assert momentum.shape == compact.get_parameter("conv2.weight").shape


def test_rebinding_before_shrinking_is_refused_and_ends_nothing(
    timed: Structure, net: nn.Module, batches: Batches
) -> None:
    iee = run(net, timed, batches[:2])
    scheduler = torch.optim.lr_scheduler.StepLR(iee.optimizer, 1)
    with pytest.raises(UsageError, match=r"before shrink\(\).*call it right after"):
        iee.rebind(scheduler)
    assert not iee.finished


def test_masks_that_differ_between_pools_of_weights_stay_exact() -> None:
    # Global keeps at least one unit a layer and exactly the asked total.
    from halpiee.methods.allocator import LayerPools
    from halpiee.sparsity import NM, Global, Weights

    net = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    units = Weights(net)
    scores = {"0.weight": torch.arange(16.0).reshape(4, 4), "1.weight": torch.full((2, 4), -1.0)}
    none = Mask.full(units.sizes, False)
    alive = Mask.of(LayerPools(units, Global(0.25)).choose(scores, must=none, may=~none, level=1.0).keep)
    assert alive.counts == {"0.weight": 5, "1.weight": 1}  # 6 of 24
    assert alive["0.weight"].flatten().nonzero().flatten().tolist() == [11, 12, 13, 14, 15]
    assert alive["1.weight"].flatten().tolist() == [True] + [False] * 7  # ties go to the lower index
    two_of_four = LayerPools(units, NM(2, 4)).choose(scores, must=none, may=~none, level=1.0).keep
    assert two_of_four["0.weight"].tolist() == [[False, False, True, True]] * 4
    assert two_of_four["1.weight"].tolist() == [[True, True, False, False]] * 2


class Staircase:
    """T = 2 + c_in·⌈c_out⌉₁₆ · positions · 1e-5 µs: steps of 16 channels on both sides, as AVX-512 has them."""

    def __init__(self, op: Op) -> None:
        self.work = op.h * op.w * math.prod(op.kernel or (1,)) / math.prod(op.stride or (1,)) * 1e-5

    def lookup(self, c_in: ArrayLike, c_out: ArrayLike) -> NDArray[np.float64]:
        i, o = np.broadcast_arrays(np.asarray(c_in), np.asarray(c_out))
        return np.where((i == 0) | (o == 0), 0.0, 2.0 + np.ceil(i / 16) * np.ceil(o / 16) * 256 * self.work)

    def measured(self, c_in: ArrayLike, c_out: ArrayLike) -> NDArray[np.bool_]:
        return np.ones(np.broadcast(c_in, c_out).shape, dtype=np.bool_)


class Staircases:
    def table(self, op: Op) -> Staircase:
        return Staircase(op)


@pytest.mark.slow  # traces ResNet-50 and solves it a few times
@pytest.mark.parametrize("fraction", [0.55, 0.3])
def test_on_resnet50_less_than_half_a_percent_of_the_budget_is_left(fraction: float) -> None:
    from torchvision.models import resnet50

    import halpiee

    model = resnet50()
    structure = halpiee.trace(model, (torch.zeros(1, 3, 64, 64),))
    cost = LatencyCost(structure, Staircases())
    pool = bind(Latency(fraction=fraction), Channels(model, structure), cost)
    assert isinstance(pool, LatencyPool)
    generator = torch.Generator().manual_seed(0)

    def scores() -> dict[str, Tensor]:
        return {name: torch.rand(size, generator=generator) for name, size in pool.units.sizes.items()}

    alive = Mask.of(pool.start(generator).keep)
    none = Mask.full(pool.units.sizes, False)
    for omega in (0.3, 0.1, 0.02):
        pruned = pool.choose(scores(), must=none, may=alive, level=1 - omega)
        kept = Mask.of(pruned.keep)
        assert pruned.latency_us <= (1 - omega) * pool.total * (1 + 1e-9)
        grown = pool.choose(scores(), must=kept, may=~kept, level=1.0)
        alive = Mask.of(grown.keep)
        assert grown.latency_us <= pool.total * (1 + 1e-9)
        assert grown.slack <= 0.005 * pool.total
        assert all(bool(alive[name][mask].all()) for name, mask in kept.items())
        base = cost.total_us(alive.counts)
        for name, count in alive.counts.items():
            wider = [k for k in cost.candidates[name] if k > count]
            if wider:
                assert cost.total_us({**alive.counts, name: wider[0]}) > pool.total * (1 - 1e-9), name
        assert base == pytest.approx(grown.latency_us)
