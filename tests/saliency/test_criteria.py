"""Each criterion against its formula, written out: Hessians by brute force, flows by path products."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import halpiee
from halpiee.errors import ScoreWarning, UsageError
from halpiee.saliency import (
    CRITERIA,
    GraSP,
    InMode,
    Inverted,
    LossPreservation,
    ScaleChange,
    SynFlow,
    Taylor,
    named,
)
from halpiee.saliency.gradient import SNIP
from halpiee.sparsity import Filters, Weights

Batches = list[tuple[Tensor, Tensor]]


def grad(parameter: Tensor | nn.Module) -> Tensor:
    """Returns the gradient of a parameter."""
    assert isinstance(parameter, Tensor)
    assert parameter.grad is not None
    return parameter.grad


class Small(nn.Module):
    """A convolution with batch norm, one without, a linear layer; smooth, so that Hessians are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(2, 3, 2, bias=False), nn.BatchNorm2d(3)
        self.b = nn.Conv2d(3, 2, 2)
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.fc(self.b(self.bn(self.a(x)).tanh()).tanh().mean((2, 3)))
        return found


@pytest.fixture
def net() -> Small:
    torch.manual_seed(0)
    net = Small().double()
    nn.init.uniform_(net.bn.weight, 0.5, 1.5)
    nn.init.normal_(net.bn.bias)
    assert net.bn.running_mean is not None
    nn.init.normal_(net.bn.running_mean)
    return net


def batches(n: int, size: int = 6) -> Batches:
    g = torch.Generator().manual_seed(3)
    return [
        (torch.randn(size, 2, 4, 4, generator=g).double(), torch.randint(0, 2, (size,), generator=g))
        for _ in range(n)
    ]


def gradients(net: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Loss gradients of a copy, so that the running statistics of ``net`` stay."""
    net = copy.deepcopy(net)
    torch.autograd.backward(cross_entropy(net(x) / temperature, y))
    return {name: grad(p) for name, p in net.named_parameters() if p.grad is not None}


def hessian_product(
    net: nn.Module, x: Tensor, y: Tensor, v: dict[str, Tensor], t: float
) -> dict[str, Tensor]:
    """H·v by central differences of the gradient along v."""
    step = 1e-5 / max(float(value.abs().max()) for value in v.values())
    sides = []
    for sign in (1, -1):
        moved = copy.deepcopy(net)
        with torch.no_grad():
            for name, p in moved.named_parameters():
                p.add_(sign * step * v[name])
        sides.append(gradients(moved, x, y, t))
    return {name: (sides[0][name] - sides[1][name]) / (2 * step) for name in v}


def close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, score in found.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(score, expected[name], rtol=1e-4, atol=1e-4 * scale)


WEIGHTS = ("a.weight", "b.weight", "fc.weight")


def test_gradient_is_its_absolute_value_averaged_over_batches(net: Small) -> None:
    data = batches(2)
    g = [gradients(net, x, y) for x, y in data]
    expected = {n: (g[0][n].abs() + g[1][n].abs()) / 2 for n in WEIGHTS}
    close(halpiee.score(net, data, "gradient", units="weights"), expected)
    filters = halpiee.score(net, data, "gradient", units="filters")
    close(filters, {"a": expected["a.weight"].sum((1, 2, 3)), "b": expected["b.weight"].sum((1, 2, 3))})


def test_snip_is_weight_times_gradient_with_batch_statistics_whatever_the_mode(net: Small) -> None:
    ((x, y),) = data = batches(1)
    g = gradients(net.train(), x, y)
    expected = {n: (dict(net.named_parameters())[n] * g[n]).abs().detach() for n in WEIGHTS}
    close(halpiee.score(net.eval(), data, "snip", units="weights"), expected)
    assert not net.bn.training
    with_running = {
        n: (dict(net.named_parameters())[n] * grad).abs().detach()
        for n, grad in gradients(net, x, y).items()
        if n in WEIGHTS
    }
    close(halpiee.score(net, data, SNIP(norms="given"), units="weights"), with_running)
    assert not torch.allclose(with_running["a.weight"], expected["a.weight"])


@pytest.mark.parametrize(("name", "temperature"), [("grasp", 200.0), ("grasp-plain", 1.0)])
def test_grasp_is_weight_times_the_hessian_gradient_product(
    net: Small, name: str, temperature: float
) -> None:
    ((x, y),) = data = batches(1)
    product = hessian_product(net, x, y, gradients(net, x, y, temperature), temperature)
    w = {n: p.detach() for n, p in net.named_parameters()}
    close(halpiee.score(net, data, name, units="weights"), {n: w[n] * product[n] for n in WEIGHTS})
    theta = {n: (w[f"{n}.weight"] * product[f"{n}.weight"]).sum((1, 2, 3)) for n in ("a", "b")}
    close(halpiee.score(net, data, name, units="filters"), theta)


def test_magnitude_grasp_is_graspss_absolute_value(net: Small) -> None:
    data = batches(1)
    signed = halpiee.score(net, data, "grasp", units="weights")
    assert (signed["a.weight"] < 0).any()
    expected = {n: s.abs() for n, s in signed.items()}
    close(halpiee.score(net, data, "grasp-magnitude", units="weights"), expected)


def test_grasp_takes_the_gradient_of_each_batch_or_of_all_together(net: Small) -> None:
    (one, other) = data = batches(2)
    w = {n: p.detach() for n, p in net.named_parameters()}
    g = [gradients(net, *batch, 200.0) for batch in data]
    mean = {n: (g[0][n] + g[1][n]) / 2 for n in g[0]}
    for pooled, along in ((False, g), (True, [mean, mean])):
        h = [hessian_product(net, *batch, v, 200.0) for batch, v in zip((one, other), along, strict=True)]
        expected = {n: w[n] * (h[0][n] + h[1][n]) / 2 for n in WEIGHTS}
        close(halpiee.score(net, data, GraSP(pooled=pooled), units="weights"), expected)


def test_the_released_grasp_pools_two_halves_and_draws_linear_weights_again(net: Small) -> None:
    ((x, y),) = data = batches(1)
    before = copy.deepcopy(net.state_dict())
    found = halpiee.score(net, data, GraSP.released(seed=5), units="weights")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    drawn = torch.randn(2, 2, generator=torch.Generator().manual_seed(5)) * (2 / 4) ** 0.5
    with torch.no_grad():
        net.fc.weight.copy_(drawn)
    halves = [(x[:3], y[:3]), (x[3:], y[3:])]
    close(found, halpiee.score(net, halves, GraSP(pooled=True), units="weights"))


def test_a_pooled_gradient_leaves_out_batches_that_are_not_finite(net: Small) -> None:
    good = batches(2)
    bad = (torch.full((6, 2, 4, 4), float("inf")).double(), good[0][1])
    found = halpiee.score(net, [good[0], bad, good[1]], GraSP(pooled=True), units="weights")
    close(found, halpiee.score(net, good, GraSP(pooled=True), units="weights"))
    assert (found.batches, found.skipped) == (2, 1)


def test_synflow_is_the_sum_of_path_products_through_each_weight() -> None:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 4, bias=False))
    a, b = (p.detach().double().abs() for p in net.parameters())
    expected = {
        # a path goes input i → hidden j → output k; its product is |a_ji|·|b_kj|
        "0.weight": torch.stack([torch.stack([a[j, i] * b[:, j].sum() for i in range(3)]) for j in range(2)]),
        "2.weight": torch.stack([torch.stack([b[k, j] * a[j].sum() for j in range(2)]) for k in range(4)]),
    }
    torch.testing.assert_close(dict(halpiee.score(net, [], "synflow", units="weights")), expected)


class Two(nn.Module):
    """Two answers: 3x and −2x."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            self.a.weight.fill_(3.0)
            self.b.weight.fill_(-2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


def test_networks_of_several_answers_are_scored_by_a_loss_of_all_of_them() -> None:
    """L = ½ (a/T − 1)² + ½ (b/T)² of a = wx, x = 2: g = (wx/T − y) x/T, H = (x/T)², and a flow of |w|."""

    def loss(answers: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        return 0.5 * (answers[0] - targets).square().sum() + 0.5 * answers[1].square().sum()

    batches = [(torch.tensor([[2.0]]), torch.tensor([[1.0]]))]
    for temperature in (1.0, 4.0):
        found = halpiee.score(Two(), batches, GraSP(temperature), units="weights", loss_fn=loss)
        share = 2 / temperature
        assert float(found["a.weight"]) == pytest.approx(3 * (3 * share - 1) * share**3)
        assert float(found["b.weight"]) == pytest.approx(-2 * -2 * share * share**3)
    flows = halpiee.score(Two(), batches, "synflow", units="weights")
    assert {name: float(flow) for name, flow in flows.items()} == {"a.weight": 3.0, "b.weight": 2.0}


def test_synflow_uses_running_statistics_of_the_absolute_network_and_leaves_the_model(net: Small) -> None:
    before = copy.deepcopy(net.state_dict())
    found = halpiee.score(net.train(), batches(1), "synflow", units="weights")
    assert net.training
    assert net.bn.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    positive = copy.deepcopy(net).eval()
    with torch.no_grad():
        assert positive.bn.running_mean is not None
        for tensor in (*positive.parameters(), positive.bn.running_mean):
            tensor.abs_()
    torch.autograd.backward(positive(torch.ones(1, 2, 4, 4).double()).sum())
    w = dict(positive.named_parameters())
    close(found, {n: w[n].detach() * grad(w[n]) for n in WEIGHTS})


def test_synflow_takes_its_input_from_a_shape_a_batch_or_the_first_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    data = [(torch.zeros(5, 2, 9, 9), torch.zeros(5).long())]
    given = halpiee.score(net, [], SynFlow(shape=(2, 9, 9)), units="weights")
    assert given.keys() == {"0.weight", "4.weight"}
    assert torch.equal(given["0.weight"], halpiee.score(net, data, "synflow", units="weights")["0.weight"])
    guessed = halpiee.score(net, [], "synflow", units="weights")
    expected = halpiee.score(net, [], SynFlow(shape=(2, 32, 32)), units="weights")
    assert torch.equal(guessed["0.weight"], expected["0.weight"])


def test_synflow_overflows_32_bits_where_64_still_hold() -> None:
    layers = [nn.Linear(2, 2, bias=False) for _ in range(50)]
    for layer in layers:
        nn.init.constant_(layer.weight, 10.0)
    net = nn.Sequential(*layers)
    with pytest.raises(UsageError, match="no batch gave finite scores"):
        halpiee.score(net, [], SynFlow(double=False), units="weights")
    with pytest.warns(ScoreWarning, match=r"SynFlow .* '0.weight', '1.weight', '2.weight' and 47 more apart"):
        flow = halpiee.score(net, [], "synflow", units="weights")["7.weight"]  # a constant network
    assert flow[0, 0].item() == pytest.approx(20.0**50 * 2 / 4)  # a quarter of all paths, two outputs


def test_filter_norms_are_over_the_weights_of_a_filter(net: Small) -> None:
    w = net.a.weight.detach().flatten(1)
    assert torch.allclose(halpiee.score(net, [], "l1", units="filters")["a"], w.abs().sum(1))
    assert torch.allclose(halpiee.score(net, [], "l2", units="filters")["a"], w.square().sum(1).sqrt())
    assert torch.allclose(halpiee.score(net, [], "magnitude", units="filters")["a"], w.abs().sum(1))


def test_loss_preservation_is_the_dot_product_of_a_filter_and_its_gradient(net: Small) -> None:
    ((x, y),) = data = batches(1)
    net.eval()
    g = gradients(net, x, y)["a.weight"].flatten(1)
    w = net.a.weight.detach().flatten(1)
    dot, norm = (w * g).sum(1).abs(), w.square().sum(1).sqrt()

    def found(criterion: LossPreservation | str) -> Tensor:
        return halpiee.score(net, data, criterion, units="filters")["a"]

    assert torch.allclose(found("loss"), dot)
    assert torch.allclose(found("loss-magnitude"), norm * dot)
    assert torch.allclose(found(LossPreservation(elementwise=True)), (w * g).abs().sum(1))
    released = LossPreservation(magnitude=True, elementwise=True)
    assert torch.allclose(found(released), (w.square() * g).abs().sum(1))


def test_loss_preservation_over_batches_is_of_their_mean_gradient() -> None:
    """θ = (2, 3), g = (1, 1) and (−1, 3), mean (0, 2): |θᵀg| is (0, 6), where the mean of |θᵀg| would be (2, 6)."""
    net = nn.Conv2d(1, 2, 1, bias=False)
    net.weight.data.copy_(torch.tensor([2.0, 3.0]).reshape(2, 1, 1, 1))

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.flatten(1) * targets).sum(1).mean()

    one, infinite = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), torch.inf)
    data = [(one, torch.tensor([g])) for g in ([1.0, 1.0], [-1.0, 3.0])]
    data.insert(1, (infinite, torch.ones(1, 2)))

    def found(criterion: LossPreservation | str) -> list[float]:
        scores = halpiee.score(nn.Sequential(net), data, criterion, units="filters", loss_fn=loss)
        assert (scores.batches, scores.skipped) == (1, 1)
        return [float(score) for score in scores["0"]]

    assert found("loss") == [0, 6]
    assert found(LossPreservation(signed=True)) == [0, 6]
    assert found("loss-magnitude") == [0, 18]
    assert found(LossPreservation(elementwise=True)) == [0, 6]


def test_a_criterion_in_a_mode_scores_as_if_the_model_were_in_it_and_leaves_it(net: Small) -> None:
    data = batches(2)
    expected = halpiee.score(net.eval(), data, "loss", units="filters")
    close(halpiee.score(net.train(), data, InMode(named("loss")), units="filters"), expected)
    assert net.bn.training
    batch_norms = halpiee.score(net, data, "taylor", units="weights")
    close(halpiee.score(net.eval(), data, InMode(Taylor(), "train"), units="weights"), batch_norms)


def test_scale_change_is_read_off_the_norm_behind_the_filter(net: Small) -> None:
    ((x, y),) = data = batches(1)
    units = Filters(net, x, pinned=frozenset({"b"}))
    g = gradients(net, x, y)["bn.weight"]
    found = halpiee.score(net, data, "scale-change", units=units)
    close(found, {"a": (net.bn.weight * g).abs().detach()})
    before = {"bn.weight": net.bn.weight.detach().clone()}
    with torch.no_grad():
        net.bn.weight.sub_(0.1 * g)  # a step of plain SGD: Δσ = −η·g
    moved = halpiee.score(net, [], ScaleChange(before), units=units)
    close(moved, {"a": (net.bn.weight * 0.1 * g).abs().detach()})


def test_scale_change_names_the_filter_that_no_norm_follows(net: Small) -> None:
    with pytest.raises(UsageError, match=r"asked of 'b' \(and 0 more\), which no batch norm follows"):
        halpiee.score(net, batches(1), "scale-change", units="filters")
    with pytest.raises(UsageError, match="asked of Weights; it lives on the batch norm behind a filter"):
        halpiee.score(net, batches(1), "scale-change", units="weights")


def test_inverted_is_the_negative(net: Small) -> None:
    data = batches(1)
    for name in ("magnitude", "snip", "grasp", "synflow"):
        plain = halpiee.score(net, data, name, units="weights")
        close(
            halpiee.score(net, data, f"inverted-{name}", units="weights"), {n: -s for n, s in plain.items()}
        )
        close(
            halpiee.score(net, data, Inverted(named(name)), units="weights"),
            {n: -s for n, s in plain.items()},
        )


@pytest.mark.parametrize("criterion", [GraSP(), SynFlow()])
def test_a_criterion_with_passes_of_its_own_refuses_to_be_read_off_a_step(
    net: Small, criterion: GraSP | SynFlow
) -> None:
    assert not criterion.per_step
    with pytest.raises(UsageError, match="training step"):
        criterion(Weights(net), dict(net.named_parameters()).get, lambda _: None)


def test_every_name_scores_every_weight_or_filter_and_leaves_the_model(net: Small) -> None:
    data = batches(1)
    before = copy.deepcopy(net.state_dict())
    filters = Filters(net, data[0][0], pinned=frozenset({"b"}))
    for name in CRITERIA:
        # θᵀg is zero in front of a batch norm in training mode
        untold = name.removeprefix("inverted-") in ("loss", "loss-magnitude")
        with pytest.warns(ScoreWarning, match="'a' apart") if untold else nullcontext():
            found = halpiee.score(net, data, name, units=filters)
        assert {n: tuple(s.shape) for n, s in found.items()} == {"a": (3,)}, name
        assert torch.isfinite(found["a"]).all(), name
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_skipped_batches_are_counted(net: Small) -> None:
    good = batches(2)
    bad = (torch.full((6, 2, 4, 4), float("nan")).double(), good[0][1])
    found = halpiee.score(net, [good[0], bad, good[1]], "snip", units="weights")
    assert (found.batches, found.skipped) == (2, 1)


def test_weights_that_are_not_finite_are_refused(net: Small) -> None:
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match="finite weights"):
        halpiee.score(net, [], "magnitude", units="weights")


def test_a_frozen_weight_is_scored_as_if_it_were_not_and_stays_frozen(net: Small) -> None:
    for name in ("snip", "taylor", "gradient", "grasp"):
        expected = halpiee.score(net, batches(1), name, units="weights")
        net.b.weight.requires_grad_(False)
        close(halpiee.score(net, batches(1), name, units="weights"), expected)
        assert not net.b.weight.requires_grad
        assert net.a.weight.requires_grad
        net.b.weight.requires_grad_(True)


def test_a_misspelt_criterion_gets_the_closest_name(net: Small) -> None:
    with pytest.raises(UsageError, match="did you mean 'synflow'"):
        halpiee.score(net, [], "synflw", units="weights")
    assert named("grasp_magnitude") == GraSP(magnitude=True)
