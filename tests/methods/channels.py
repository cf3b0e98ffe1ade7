"""IEE on the hand-written network of channels: attached, stepped, and what its elements are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from halpiee.methods.iee import IEE
from halpiee.saliency import Taylor
from halpiee.sparsity import Channels, Uniform
from halpiee.structure.groups import Structure

Batches = list[tuple[Tensor, Tensor]]


def attach(net: nn.Module, structure: Structure, optimizer: Optimizer, **extra: object) -> IEE:
    options = {
        "budget": Uniform(0.5),
        "total_steps": 40,
        "h": 3,
        "j": 2,
        "q": 3,
        "end": 0.8,
        "omega": 0.34,
        **extra,
    }
    return IEE(net, optimizer, units=Channels(net, structure), criterion=Taylor(), **options)


def step(net: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor]) -> None:
    optimizer.zero_grad()
    torch.autograd.backward(cross_entropy(net(batch[0]), batch[1]))
    optimizer.step()


def sgd(net: nn.Module) -> Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def everything(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """All parameters, float buffers and optimizer state, by name."""
    found = {n: t.detach().clone() for n, t in net.state_dict().items() if t.is_floating_point()}
    for name, p in net.named_parameters():
        for key, value in optimizer.state.get(p, {}).items():
            if isinstance(value, Tensor) and value.shape == p.shape:
                found[f"{name}/{key}"] = value.detach().clone()
    return found


def active_elements(net: nn.Module, iee: IEE, name: str) -> Tensor:
    """By hand: an element is active when its output unit and its input unit both are."""
    a, b = iee.alive["a"], iee.alive["b"]
    image, classes = torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    sides = {
        "conv1.weight": (a, image),
        "conv2.weight": (b, a),
        "fc.weight": (classes, b),
        "fc.bias": (classes, None),
        **{f"bn1.{t}": (a, None) for t in ("weight", "bias", "running_mean", "running_var")},
        **{f"bn2.{t}": (b, None) for t in ("weight", "bias", "running_mean", "running_var")},
    }
    out, into = sides[name]
    tensor = net.state_dict()[name]
    mask = out if into is None else out[:, None] & into[None, :]
    return mask.reshape(mask.shape + (1,) * (tensor.dim() - mask.dim())).expand(tensor.shape)
