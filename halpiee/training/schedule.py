"""How a network is trained: the optimizer, and the learning rate of every step, which has no state."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim import Optimizer

from halpiee.training.config import Settings

START, END = 1 / 25, 1e-4
"""Rates of the one-cycle policy at its first and last step, as shares of the peak and of the first."""


def learning_rate(step: int, settings: Settings, total_steps: int) -> float:
    """Returns the rate of a step.

    A linear warm-up, then ``cosine``: half a cosine to zero at the end; ``steps``: the drops; or ``constant``.
    ``onecycle`` rises by half a cosine to the peak instead of the warm-up and falls by another one (Smith &
    Topin 2017).
    """
    s = settings
    warmup = max(1, round(s.warmup * total_steps))
    if s.kind_of_schedule == "onecycle":
        first = START * s.lr
        if step < warmup:
            return first + (s.lr - first) * (1 - math.cos(math.pi * step / warmup)) / 2
        done = (step - warmup) / max(1, total_steps - 1 - warmup)
        return END * first + (s.lr - END * first) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    if step < warmup:
        return s.lr * (step + 1) / warmup
    if s.kind_of_schedule == "constant":
        return s.lr
    if s.kind_of_schedule == "steps":
        passed = sum(step >= round(share * total_steps) for share in s.drops)
        return s.lr * math.prod(s.factors[:passed])
    done = (step - warmup) / max(1, total_steps - warmup)
    return s.lr * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(model: nn.Module, settings: Settings) -> Optimizer:
    """Returns the optimizer of a network; weight decay on matrices and kernels only.

    On a CUDA device all parameters are stepped by one kernel where the optimizer has one.
    """
    s = settings
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = True if any(p.is_cuda for p in decayed) else None
    if s.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=s.lr, fused=fused)
    if s.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=s.lr, momentum=s.momentum)
    nesterov = s.nesterov and s.momentum > 0
    return torch.optim.SGD(groups, lr=s.lr, momentum=s.momentum, nesterov=nesterov, fused=fused)
