"""What repair gives back, in networks where the right weights are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.errors import UsageError
from halpiee.reconstruction.repair import RepairedLayer, Settings, repair


def twins(layer: Any, dim: int = 0) -> None:
    """Makes the second half of a layer's outputs a copy of the first half."""
    half = layer.weight.shape[dim] // 2
    with torch.no_grad():
        first = layer.weight.narrow(dim, 0, half)
        layer.weight.narrow(dim, half, half).copy_(first)
        layer.bias[half:] = layer.bias[:half]


def half(structure: halpiee.Structure, name: str) -> dict[str, Tensor]:
    size = structure.by_name[name].size
    return {name: torch.arange(size) < size // 2}


def error_of(net: nn.Module, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        y = model(x)
        return float((net(x) - y).norm() / y.norm())


READERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(8, 4, 3, padding=1, stride=2),
    "dilated": lambda: nn.Conv2d(8, 4, (3, 1), dilation=(2, 1), padding=(2, 0)),
    "same": lambda: nn.Conv2d(8, 4, 3, padding="same"),
    "transposed": lambda: nn.ConvTranspose2d(8, 4, 3, stride=2, padding=1, output_padding=1),
    "without a bias": lambda: nn.Conv2d(8, 4, 1, bias=False),
}


@pytest.mark.parametrize("kind", READERS)
def test_a_channel_that_is_a_copy_of_another_is_removed_without_loss(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), READERS[kind](), nn.Flatten(), nn.LazyLinear(3)
    )
    x = torch.randn(40, 3, 8, 8)
    model(x[:2])
    model.eval()
    twins(model[0])
    structure = halpiee.trace(model, (x[:1],))
    keep = half(structure, "0")
    cut = halpiee.shrink(model, structure, keep)
    mended = repair(model, structure, keep, [x])
    fresh = torch.randn(10, 3, 8, 8)
    assert error_of(cut, model, fresh) > 0.1
    assert error_of(mended, model, fresh) < 2e-3


@pytest.mark.parametrize("dims", [1, 3])
def test_convolutions_over_lines_and_volumes_are_solved(dims: int) -> None:
    conv = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    torch.manual_seed(1)
    model = nn.Sequential(conv(2, 6, 3), nn.ReLU(), conv(6, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(60, 2, *[7] * dims)
    model(x[:2])
    model.eval()
    twins(model[0])
    structure = halpiee.trace(model, (x[:1],))
    mended = repair(model, structure, half(structure, "0"), [x])
    assert error_of(mended, model, torch.randn(10, 2, *[7] * dims)) < 2e-3


def test_a_linear_layer_gets_numpys_least_squares_solution() -> None:
    torch.manual_seed(2)
    model: Any = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).eval()
    x = torch.randn(400, 5)
    structure = halpiee.trace(model, (x[:1],))
    keep = {"0": torch.tensor([True, True, False, True, False, True])}
    mended: Any = repair(model, structure, keep, [x], settings=Settings(ridges=(1e-12,)))
    with torch.no_grad():
        hidden = torch.tanh(x @ model[0].weight[keep["0"]].T + model[0].bias[keep["0"]]).double()
        wanted = model(x).double()
    rows = np.concatenate([hidden.numpy(), np.ones((400, 1))], 1)
    solution = np.linalg.lstsq(rows, wanted.numpy(), rcond=None)[0]
    np.testing.assert_allclose(mended[2].weight.detach().numpy(), solution[:-1].T, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mended[2].bias.detach().numpy(), solution[-1], rtol=1e-3, atol=1e-4)


def test_depthwise_and_grouped_layers_are_solved_group_by_group() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.ReLU(),
        nn.Conv2d(12, 6, 3, groups=3),
        nn.Flatten(),
        nn.LazyLinear(2),
    )
    x = torch.randn(60, 3, 7, 7)
    model(x[:2])
    model.eval()
    structure = halpiee.trace(model, (x[:1],))
    mended = repair(model, structure, {}, [x])
    assert error_of(mended, model, x) < 1e-5
    name = next(g.name for g in structure.prunable if ("1", "out") in g.members)
    twins(model[0])
    twins(model[1])
    mended = repair(model, structure, half(structure, name), [x])
    assert error_of(mended, model, torch.randn(9, 3, 7, 7)) < 2e-3


def test_a_branch_makes_up_for_what_the_residual_lost() -> None:
    """The stream loses a factor behind a cut; the branch beside it can see what is missing."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(4, 6)
            self.first = nn.Linear(6, 5)
            self.branch = nn.Linear(5, 5)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Any:
            y = self.first(torch.tanh(self.stem(x)))
            return self.head(y + self.branch(torch.relu(y)))

    torch.manual_seed(4)
    model = Net().eval()
    x = torch.randn(2000, 4)
    structure = halpiee.trace(model, (x[:1],))
    keep = {"stem": torch.arange(6) < 3}
    with_it = repair(model, structure, keep, [x], settings=Settings(images=2000))
    without = repair(model, structure, keep, [x], settings=Settings(images=2000, residuals=False))

    def sum_error(net: Any) -> float:
        sums = []
        for each in (net, model):
            y = each.first(torch.tanh(each.stem(x)))
            sums.append((y + each.branch(torch.relu(y))).detach())
        return float((sums[0] - sums[1]).norm())

    assert sum_error(with_it) < 0.97 * sum_error(without)


def test_batch_norms_get_the_statistics_of_what_reaches_them() -> None:
    torch.manual_seed(5)
    parts = (nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.Flatten())
    model: Any = nn.Sequential(*parts, nn.Linear(4 * 16, 2)).eval()
    x = torch.randn(32, 3, 4, 4)
    structure = halpiee.trace(model, (x[:1],))
    mended: Any = repair(model, structure, half(structure, "0"), [x])
    with torch.no_grad():
        reaches = mended[2](torch.relu(mended[0](x)))
    torch.testing.assert_close(mended[3].running_mean, reaches.mean((0, 2, 3)))
    torch.testing.assert_close(mended[3].running_var, reaches.var((0, 2, 3), correction=0))
    assert torch.equal(model[3].running_mean, torch.zeros(4))


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_is_solved_image_by_image_whatever_its_layout(batch_first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
            self.head = nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Any:
            y = x if batch_first else x.transpose(0, 1)
            y = self.attention(y, y, y, need_weights=False)[0]
            return self.head(y if batch_first else y.transpose(0, 1)).mean(1)

    torch.manual_seed(6)
    model = Net().eval()
    x = torch.randn(300, 6, 16)
    structure = halpiee.trace(model, (x[:1],))
    keep = {g.name: torch.arange(g.size) < (g.size + 1) // 2 for g in structure.prunable}
    assert keep
    told: list[RepairedLayer] = []
    mended = repair(model, structure, keep, [x], report=told.append)
    by_name = {layer.name: layer for layer in told}
    # its input is the network's own: what is kept of it says what it said
    assert by_name["attention.in_proj_weight"].before == pytest.approx(0.0, abs=1e-3)
    out = by_name["attention.out_proj.weight"]
    assert out.skipped is None
    assert out.after < out.before
    cut = halpiee.shrink(model, structure, keep)
    assert error_of(mended, model, x) < 0.9 * error_of(cut, model, x)


def test_a_layer_called_twice_stays_and_says_so() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.shared, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Any:
            return self.head(self.shared(torch.relu(self.shared(torch.relu(self.a(x))))))

    torch.manual_seed(7)
    model = Net().eval()
    x = torch.randn(50, 4)
    structure = halpiee.trace(model, (x[:1],))
    told: list[RepairedLayer] = []
    mended: Any = repair(model, structure, {}, [x], report=told.append)
    assert {r.name: r.skipped for r in told}["shared.weight"] == "it is called more than once"
    assert torch.equal(mended.shared.weight, model.shared.weight)


def test_the_model_that_is_given_stays_as_it_is() -> None:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).train()
    before = [p.clone() for p in model.parameters()]
    x = torch.randn(30, 4)
    structure = halpiee.trace(model, (x[:1],))
    mended = repair(model, structure, half(structure, "0"), [x])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert model.training
    assert mended.training


def test_labels_are_not_read_and_few_images_are_refused() -> None:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    x = torch.randn(30, 4)
    structure = halpiee.trace(model, (x[:1],))
    keep = half(structure, "0")
    one: Any = repair(model, structure, keep, [x])
    other: Any = repair(model, structure, keep, [(x[:20], "no label"), (x[20:], None)])
    assert torch.equal(one[2].weight, other[2].weight)
    with pytest.raises(UsageError, match="repair was given 4 images"):
        repair(model, structure, keep, [x[:4]])
