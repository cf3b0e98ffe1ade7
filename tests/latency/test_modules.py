"""Batch norms go into the layers before them where that computes the same; the network itself stays as it is."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from latency.backends.torch.modules import folded

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def with_statistics(model: nn.Module) -> nn.Module:
    """Returns the network with norms that neither scale by one nor shift by zero."""
    generator = torch.Generator().manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, NORMS) and norm.track_running_stats:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 4.0, generator=generator)
        if isinstance(norm, NORMS) and norm.affine:
            nn.init.uniform_(norm.weight, 0.5, 2.0, generator=generator)
            nn.init.normal_(norm.bias, generator=generator)
    return model


def norms_left(model: nn.Module, *inputs: Tensor) -> int:
    """Checks that the folded network computes the same, and returns how many norms it kept."""
    with_statistics(model)
    small = folded(model, inputs)
    with torch.no_grad():
        torch.testing.assert_close(small(*inputs), model.eval()(*inputs))
    return sum(isinstance(m, NORMS) for m in small.modules())


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (2, 3, 8)),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4, eps=0.5)), (2, 4, 8, 8)),
        (nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4, affine=False)), (2, 3, 4, 4, 4)),
        (nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (3, 5)),
    ],
    ids=["1d", "2d", "3d", "linear"],
)
def test_a_norm_behind_a_layer_goes_into_its_weights(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert norms_left(model, torch.randn(shape)) == 0


def test_the_network_keeps_its_mode_and_its_norms() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded(model, (torch.randn(2, 3, 8, 8),))
    assert model.training
    assert model[1].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class Branching(nn.Module):
    """A forward that symbolic tracing cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.norm(self.conv(x)) if x.sum() > -1e9 else x
        return answer


def test_a_forward_that_branches_on_values_keeps_its_norms() -> None:
    assert norms_left(Branching(), torch.randn(2, 3, 8, 8)) == 1


class Shared(nn.Module):
    """One convolution in front of two norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.b(self.conv(self.a(self.conv(x))))
        return answer


class Twice(nn.Module):
    """One norm behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.norm(self.a(x)) + self.norm(self.b(x))
        return answer


class Skips(nn.Module):
    """What the convolution returns is also read without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        answer: Tensor = x + self.norm(x)
        return answer


class Tied(nn.Module):
    """The weights of a layer with a norm are those of another layer too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.norm(self.first(x)), self.first.weight.t())


@pytest.mark.parametrize(
    ("model", "shape", "kept"),
    [
        (Shared(), (2, 3, 8, 8), 2),
        (Twice(), (2, 3, 8, 8), 1),
        (Skips(), (2, 3, 8, 8), 1),
        (Tied(), (2, 4), 1),
    ],
    ids=["a layer called twice", "a norm called twice", "an output read twice", "weights read elsewhere"],
)
def test_a_layer_or_norm_that_serves_elsewhere_too_stays(
    model: nn.Module, shape: tuple[int, ...], kept: int
) -> None:
    assert norms_left(model, torch.randn(shape)) == kept


def test_a_norm_over_positions_is_not_taken_for_one_over_units() -> None:
    assert norms_left(nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), torch.randn(3, 4, 5)) == 1


def test_a_norm_without_running_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms_left(model, torch.randn(2, 3, 8, 8)) == 1


def test_a_layer_whose_hook_changes_its_output_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].register_forward_hook(lambda module, read, out: out * 2)
    assert norms_left(model, torch.randn(2, 3, 8, 8)) == 1


def test_importing_the_deployment_side_warns_of_nothing() -> None:
    code = "import latency.backends.torch.modules, halpiee.deploy.target"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
