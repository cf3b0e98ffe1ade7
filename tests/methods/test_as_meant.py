"""Budgets, criteria, units, optimizers and paths as a user writes them: taken as meant, or one sentence."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import halpiee
from halpiee.analysis import History
from halpiee.errors import BudgetError, HalpieeError, ProfileError, ScoreWarning, UsageError
from halpiee.saliency import InMode, Magnitude, Taylor, named
from halpiee.sparsity import ERK, NM, Channels, Filters, Global, Latency, PerLayer, Uniform, Weights
from halpiee.sparsity.distribution import as_budget
from halpiee.structure.groups import Structure
from latency import Profile

from .small import batches, conv, gradient, linear, sgd, train

METHODS: dict[str, dict[str, Any]] = {
    "IEE": {"h": 2, "j": 1, "q": 2},
    "GMP": {"interval": 2},
    "GraNet": {"interval": 2},
    "RigL": {"interval": 2},
    "SET": {"interval": 2},
    "SNFS": {"interval": 2},
    "Static": {},
    "SNIP": {"batches": "given"},
    "SynFlow": {"rounds": 5},
}


def attach(name: str, net: nn.Module, optimizer: object = None, **more: Any) -> Any:
    options = {"budget": Global(0.5), "total_steps": 20, **METHODS[name], **more}
    if options.get("batches") == "given":
        options["batches"] = batches(net, 1)
    return getattr(halpiee, name)(net, sgd(net) if optimizer is None else optimizer, **options)


# -- budgets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("latency", [False, True])
@pytest.mark.parametrize("asked", [0.5, "0.5", "50%", " 50 % "])
def test_a_share_is_a_density_without_a_cost_and_one_of_the_latency_with_one(
    asked: object, latency: bool
) -> None:
    assert as_budget(asked, latency=latency) == (Latency(fraction=0.5) if latency else Global(0.5))


def test_a_time_as_text_is_a_latency_and_a_budget_stays_what_it_is() -> None:
    assert as_budget("12.5ms", latency=True) == Latency(us=12500.0)
    assert as_budget("800us", latency=False) == Latency(us=800.0)
    assert as_budget(1, latency=False) == Global(1.0)
    for budget in (Uniform(0.5), NM(2, 4), PerLayer({"a": 0.5}), Latency(us=3)):
        assert as_budget(budget, latency=True) is budget


@pytest.mark.parametrize(
    "asked", [0, 1.5, -0.1, True, None, float("nan"), "half", "50 percent", [0.5], {"a": 1}]
)
def test_what_is_no_budget_is_refused_with_the_forms_of_one(asked: object) -> None:
    with pytest.raises(UsageError, match=r"the budget|a budget of .* was asked.*give a share"):
        as_budget(asked, latency=False)


def test_milliseconds_are_a_thousand_microseconds() -> None:
    assert Latency(ms=1.5) == Latency(us=1500.0)
    assert dataclasses.replace(Latency(ms=1.5), us=2.0) == Latency(us=2.0)
    assert Latency(ms=1.5).us == 1500.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Latency(2),
            r"Latency\(2\) was asked, a number without its unit; give Latency\(us=…\), Latency\(ms",
        ),
        (lambda: Latency(), "nothing was asked; give exactly one"),
        (lambda: Latency(us=1, ms=2), "us and ms was asked; give exactly one"),
        (lambda: Latency(us="5ms"), "us='5ms' was asked; give a positive number"),  # type: ignore[arg-type]
        (lambda: Latency(us=True), "us=True was asked; give a positive number"),
        (lambda: Latency(fraction=1.5), "a share above 0 and up to 1"),
        (lambda: Global("50%"), "a density of '50%' was asked"),  # type: ignore[arg-type]
        (lambda: Uniform(50), "a density of 50 was asked"),
        (lambda: ERK(None), "a density of None was asked"),  # type: ignore[arg-type]
        (lambda: NM(2.0, 4), "integers"),  # type: ignore[arg-type]
        (lambda: PerLayer(0.5), "give a density by layer"),  # type: ignore[arg-type]
    ],
)
def test_a_budget_of_another_type_is_refused_in_one_sentence(make: Callable[[], object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        make()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_a_share_as_a_number_or_a_percentage(name: str) -> None:
    for asked in (0.5, "50%"):
        net = linear()
        method = attach(name, net, budget=asked)
        for _ in train(net, method.optimizer, batches(net, 20)):
            pass
        assert method.alive.density == 0.5


def test_once_takes_them_too() -> None:
    assert halpiee.prune_once(linear(), "magnitude", "50%").density == 0.5


# -- latencies ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Structure, str]:
    from halpiee.zoo import build

    torch.manual_seed(0)
    model = build("resnet20", num_classes=10, width=1)
    structure = halpiee.trace(model, (torch.zeros(1, 3, 32, 32),))
    return model, structure, str(next(Path("profiles").glob("*/resnet20-32-b1.jsonl")))


def test_a_path_stands_for_the_profile_in_it(resnet: tuple[nn.Module, Structure, str]) -> None:
    _, structure, path = resnet
    expected = halpiee.LatencyCost(structure, Profile.load(path)).dense_us
    assert halpiee.LatencyCost(structure, path).dense_us == expected
    assert halpiee.LatencyCost(structure, Path(path)).dense_us == expected
    with pytest.raises(ProfileError):
        halpiee.LatencyCost(structure, "nowhere.jsonl")
    with pytest.raises(UsageError, match=r"LatencyCost\(Structure, dict\) was asked; give the structure"):
        halpiee.LatencyCost(structure, {})  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"LatencyCost\(Sequential, Profile\)"):
        halpiee.LatencyCost(nn.Sequential(), path)  # type: ignore[arg-type]


def test_a_selection_takes_a_share_as_text(resnet: tuple[nn.Module, Structure, str]) -> None:
    _, structure, path = resnet
    cost = halpiee.LatencyCost(structure, path)
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in structure.prunable}
    expected = halpiee.select(scores, cost, 0.7 * cost.dense_us)
    for asked in ("70%", Latency(fraction=0.7), f"{0.7 * cost.dense_us}us"):
        assert halpiee.select(scores, cost, asked).counts == expected.counts
    with pytest.raises(UsageError, match="densities are for"):
        halpiee.select(scores, cost, Global(0.6))  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match=r"a budget of 0.6 µs .* as text: '60%'"):
        halpiee.select(scores, cost, 0.6)


def test_a_share_with_a_cost_is_one_of_the_latency(resnet: tuple[nn.Module, Structure, str]) -> None:
    import copy

    model, structure, path = resnet
    model = copy.deepcopy(model)
    cost = halpiee.LatencyCost(structure, path)
    iee = halpiee.IEE(
        model,
        sgd(model),
        budget=0.7,
        criterion="taylor",
        total_steps=40,
        end=0.75,
        h=4,
        j=2,
        q=4,
        structure=structure,
        cost=cost,
    )
    assert iee.pool.total == pytest.approx(0.7 * cost.dense_us)
    with pytest.raises(UsageError, match=r"a latency budget was given for weights, .* \(units=structure\)"):
        halpiee.prune_once(model, "magnitude", "70%", cost=cost)


# -- criteria, units, names ---------------------------------------------------------------------------------------


def test_a_criterion_is_taken_by_name_where_it_is_taken_at_all() -> None:
    net = linear()
    by_name = attach("GMP", net, criterion="inverted-magnitude")
    assert by_name.criterion == named("inverted-magnitude")
    assert type(attach("IEE", linear(), criterion="taylor").criterion).__name__ == "Taylor"
    with pytest.raises(UsageError, match="did you mean 'taylor'"):
        attach("IEE", linear(), criterion="tailor")
    with pytest.raises(UsageError, match="training step"):
        attach("IEE", linear(), criterion="synflow")


def test_a_criterion_is_taken_by_its_class_and_other_things_are_refused() -> None:
    assert attach("IEE", linear(), criterion=Taylor).criterion == Taylor()
    by_class = halpiee.score(linear(), [], Magnitude, units="weights")  # type: ignore[arg-type]
    assert torch.equal(
        by_class["0.weight"], halpiee.score(linear(), [], "magnitude", units="weights")["0.weight"]
    )
    for other in (3, InMode):
        with pytest.raises(
            UsageError, match=r"the criterion (3|InMode) was asked; give a name such as 'taylor'"
        ):
            attach("GMP", linear(), criterion=other)


def test_a_cost_is_taken_by_the_path_of_its_profile(resnet: tuple[nn.Module, Structure, str]) -> None:
    import copy

    model, structure, path = resnet
    model = copy.deepcopy(model)
    halp = halpiee.HALP(
        model, sgd(model), budget="70%", total_steps=40, prunes=2, interval=4, structure=structure, cost=path
    )
    assert halp.pool.total == pytest.approx(0.7 * halpiee.LatencyCost(structure, path).dense_us)
    with pytest.raises(UsageError, match=r"a cost of type str was given; pass structure="):
        halpiee.IEE(model, sgd(model), budget="70%", total_steps=40, cost=path)
    with pytest.raises(
        UsageError, match=r"a structure of type tuple was given; pass structure=halpiee.trace"
    ):
        halpiee.IEE(model, sgd(model), budget=Latency(us=9), total_steps=40, structure=(1,))


def test_a_mask_or_a_size_of_another_type_is_refused_in_one_sentence(
    resnet: tuple[nn.Module, Structure, str],
) -> None:
    model, structure, _ = resnet
    with pytest.raises(UsageError, match=r"whose '0.weight' is no bool tensor"):
        halpiee.Static(linear(), sgd(linear()), mask={"0.weight": 1})
    with pytest.raises(UsageError, match="params='50%' was asked; give a number"):
        halpiee.small_dense(model, structure, params="50%")  # type: ignore[arg-type]


def test_units_are_taken_by_word_or_by_structure(structure: Structure, net: nn.Module) -> None:
    assert isinstance(attach("IEE", net, units="weights").units, Weights)
    assert isinstance(attach("IEE", net, units=structure, criterion="taylor").units, Channels)
    assert isinstance(attach("GMP", conv(), units="filters").units, Filters)
    for other, shown in (("layers", "layers"), ((1, 2), "tuple")):
        with pytest.raises(UsageError, match=f"units='{shown}' was asked; give 'weights', 'filters'"):
            attach("GMP", conv(), units=other)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_what_is_protected_whole(name: str) -> None:
    for protect in ("5.weight", {"5"}, ["5.weight"]):
        method = attach(name, linear(), protect=protect)
        assert set(method.alive) == {"0.weight", "3.weight"}
    with pytest.raises(UsageError, match=r"the weight '6.weight' was asked to stay whole.* did you mean"):
        attach(name, linear(), protect={"6.weight"})
    units = Weights(linear())
    with pytest.raises(UsageError, match=r"protect= was given beside units .*: Weights\(…\)"):
        attach(name, linear(), protect={"5.weight"}, units=units)


def test_protected_channels_and_filters_are_checked_by_name(structure: Structure, net: nn.Module) -> None:
    assert set(Channels(net, structure, protect="a").sizes) == {"b"}
    with pytest.raises(UsageError, match="the group 'c' was asked to stay whole"):
        Channels(net, structure, protect={"c"})
    net = conv()
    assert set(halpiee.FilterPruning(net, sgd(net), budget=0.5, total_steps=4, protect="0").alive) == {"3"}


# -- optimizers ---------------------------------------------------------------------------------------------------


class SAM(Optimizer):
    """Sharpness-aware minimisation: two steps around another optimizer's."""

    def __init__(self, params: Any, base: type[Optimizer], **options: Any) -> None:
        super().__init__(params, {"rho": 0.05, **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        norm = torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]).norm() + 1e-12
        for p in (p for g in self.param_groups for p in g["params"]):
            self.state[p]["old"] = p.detach().clone()
            p.add_(p.grad, alpha=0.05 / float(norm))

    @torch.no_grad()
    def second_step(self) -> None:
        for p in (p for g in self.param_groups for p in g["params"]):
            p.copy_(self.state[p]["old"])
        self.base_optimizer.step()


class Lookahead(Optimizer):
    """Slow weights that take the fast ones' place every other step."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})
        self.inner, self.steps = inner, 0
        self.slow = [p.detach().clone() for g in inner.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.steps += 1
        if self.steps % 2 == 0:
            for slow, p in zip(self.slow, self.param_groups[0]["params"], strict=True):
                p.copy_(slow.lerp_(p, 0.5))


@pytest.mark.parametrize("name", ["Lookahead", "LookAhead", "AdamSWA", "EMAOptimizer", "Remapped", "Swap"])
def test_a_wrapper_that_writes_weights_after_the_inner_step_does_not_point_at_the_inner_one(
    name: str,
) -> None:
    net = linear()
    told = "attach to that one: optimizer.inner, or" if name in ("Remapped", "Swap") else "writes the weights"
    with pytest.raises(UsageError, match=f"{name} wraps another one, SGD, .*{told} .* SGD alone"):
        attach("RigL", net, type(name, (Lookahead,), {})(sgd(net)))


def test_removed_weights_come_back_under_an_optimizer_that_averages_after_the_step() -> None:
    # why the message does not name the inner one
    net = linear()
    outer = Lookahead(sgd(net))
    method = attach("RigL", net, outer.inner)
    for x, y in batches(net, 2):
        net.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        outer.step()
    assert method.foreign()


def test_an_optimizer_that_wraps_one_is_named_and_its_inner_one_trains() -> None:
    net = linear()
    sam = SAM(net.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    with pytest.raises(
        UsageError, match=r"SAM wraps another one, SGD, .* attach to that one: optimizer.base_optimizer"
    ):
        attach("RigL", net, sam)
    assert not sam._optimizer_step_pre_hooks
    method = attach("RigL", net, sam.base_optimizer)
    for x, y in batches(net, 10):
        for step in (sam.first_step, sam.second_step):
            net.zero_grad()
            torch.autograd.backward(cross_entropy(net(x), y))
            step()
    assert method.step == 10
    assert len([e for e in method.reports if e.event == "grow"]) > 2
    for name, p in net.named_parameters():
        if name in method.alive:
            assert not p[~method.alive[name]].any()


def test_a_list_of_optimizers_or_something_else_is_refused_with_a_way_out() -> None:
    net = linear()
    two = [torch.optim.SGD(net[:3].parameters(), lr=0.1), torch.optim.AdamW(net[3:].parameters())]
    with pytest.raises(
        UsageError, match=r"2 optimizers were given \(SGD, AdamW\).* a parameter group .*protect="
    ):
        attach("RigL", net, two)
    with pytest.raises(UsageError, match=r"an optimizer of type generator was given.* torch.optim.SGD"):
        attach("RigL", net, net.parameters())
    with pytest.raises(UsageError, match=r"SparseAdam cannot be masked: .*does not support dense gradients"):
        attach("RigL", net, torch.optim.SparseAdam(net.parameters()))


@pytest.mark.parametrize("name", METHODS)
def test_an_optimizer_over_a_part_names_what_to_protect_and_that_works(name: str) -> None:
    net = linear()
    head = torch.optim.SGD(net[3:].parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(
        UsageError, match=r"does not hold '0.weight' \(and 0 more of 3 .* protect=\{'0.weight'\}"
    ):
        attach(name, net, head)
    assert not head._optimizer_step_pre_hooks
    method = attach(name, net, head, protect={"0.weight"})
    for _ in train(net, head, batches(net, 4)):
        pass
    assert method.step == 4


def test_channels_to_protect_are_named_by_group(structure: Structure, net: nn.Module) -> None:
    head = torch.optim.SGD(
        [p for name in ("conv2", "bn2", "fc") for p in net.get_submodule(name).parameters()], lr=0.1
    )
    with pytest.raises(UsageError, match=r"does not hold 'conv1.weight' .* protect=\{'a'\}"):
        halpiee.IEE(net, head, budget=0.6, units=structure, criterion="taylor", total_steps=20, h=2, j=1, q=2)
    found = halpiee.IEE(
        net,
        head,
        budget=0.6,
        units=structure,
        criterion="taylor",
        total_steps=20,
        h=2,
        j=1,
        q=2,
        protect={"a"},
    )
    assert set(found.alive) == {"b"}


# -- frozen and flat ----------------------------------------------------------------------------------------------


def test_frozen_layers_are_refused_where_scores_come_from_training_steps() -> None:
    net = linear()
    net[0].requires_grad_(False)
    with pytest.raises(
        UsageError,
        match=r"Gradient reads gradients .* '0.weight' \(and 0 more of 3\) gets none.* protect=\{'0.weight'\}",
    ):
        attach("RigL", net)
    attach("RigL", net, protect={"0.weight"})
    attach("GMP", net)  # magnitude needs none


def test_a_frozen_norm_leaves_the_score_to_the_weights_and_a_frozen_backbone_is_refused(
    structure: Structure, net: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    net.get_submodule("bn1").eval().requires_grad_(False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    options: dict[str, Any] = {
        "budget": 0.6,
        "units": structure,
        "total_steps": 40,
        "interval": 2,
        "prunes": 2,
    }
    method = halpiee.HALP(net, optimizer, **options)
    expected = torch.zeros(4)
    for x, y in batches[:2]:
        optimizer.zero_grad()
        torch.autograd.backward(cross_entropy(net(x), y))
        weight = net.get_parameter("conv1.weight")
        expected += (weight * gradient(net, "conv1.weight")).sum((1, 2, 3)).detach().abs() / 2
        optimizer.step()
    assert method.last_drop is not None
    torch.testing.assert_close(method.last_drop[1]["a"], expected)
    net.conv1.requires_grad_(False)
    with pytest.raises(
        UsageError, match=r"Taylor reads gradients of training steps, and 'a' .* protect=\{'a'\}"
    ):
        halpiee.HALP(net, torch.optim.SGD(net.parameters(), lr=0.0), **options)


def test_a_frozen_norm_in_training_mode_is_told_not_ranked_by_rounding(
    structure: Structure, net: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    net.bn1.requires_grad_(False)  # still normalises by the batch: Σ w·g in front of it is zero
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    method = halpiee.HALP(net, optimizer, budget=0.6, units=structure, total_steps=40, interval=2, prunes=1)

    def run() -> None:
        for x, y in batches[:2]:
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(net(x), y))
            optimizer.step()

    with pytest.warns(
        ScoreWarning, match="Taylor does not tell the units of 'a' apart: all their scores are 0"
    ):
        run()
    assert method.reports[-1].flat == ("a",)


def test_a_warning_as_an_error_stops_at_a_tie_with_the_change_done_and_training_can_go_on(
    structure: Structure, net: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> None:
    other = copy.deepcopy(net)
    states = []
    ways: list[tuple[nn.Module, Literal["error", "ignore"]]] = [(net, "error"), (other, "ignore")]
    for model, how in ways:
        model.bn1.requires_grad_(False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        method = halpiee.HALP(
            model, optimizer, budget=0.6, units=structure, total_steps=40, interval=2, prunes=2
        )
        raised = []
        for step in range(8):
            x, y = batches[step % len(batches)]
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(model(x), y))
            with warnings.catch_warnings():
                warnings.simplefilter(how, ScoreWarning)
                try:
                    optimizer.step()
                except ScoreWarning:
                    raised.append((step, method.step, len(method.reports), method.reports[-1].flat))
                    # what was removed is removed: the event is recorded and its mask is that of the weights
                    assert not model.get_parameter("conv1.weight")[~method.alive["a"]].any()
                    assert method.foreign() == []
        states.append({**method.alive, **model.state_dict()})
        assert raised == ([(1, 2, raised[0][2], ("a",))] if how == "error" else [])
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_what_could_not_be_attached_leaves_model_and_optimizer_as_they_were() -> None:
    net = linear()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    optimizer = sgd(net)
    bad = [(torch.full((4, 8), float("nan")), torch.zeros(4).long())]
    with pytest.raises(HalpieeError, match="no batch gave finite scores"):
        halpiee.SNIP(net, optimizer, budget=0.5, batches=bad)
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())


# -- files --------------------------------------------------------------------------------------------------------


def test_a_history_is_saved_under_a_path_as_text(tmp_path: Path) -> None:
    net = linear()
    history = History.of(attach("Static", net))
    history.save(str(tmp_path / "h.npz"))
    again = History.load(str(tmp_path / "h.npz"))
    assert again.mask(0).digest() == history.mask(0).digest()
