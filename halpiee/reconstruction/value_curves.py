"""The measured value of a width: the loss of a few forward passes per group, instead of sums of scores.

A sum of scores assumes that units are independent. Here each group is cut alone to a few widths, its best units kept
and all other groups whole; batch norms take the statistics of their new inputs; and
``loss(k) = mean over images of KL(dense ‖ cut)`` is the cost of the width. Between the widths, the value ``−loss`` is
interpolated along its least concave majorant, so that noise of few images makes no width better than its neighbours.
No labels are read. O(groups · widths) forward passes over the images.

The solver maximises the sum over groups, exactly, whatever the curves are (``halpiee.selection.choose.choose``).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.selection.grid import FloatArray
from halpiee.selection.options import blocks
from halpiee.structure.groups import Structure
from halpiee.structure.shrink import shrink

SHARES = (0.1, 0.25, 0.5, 0.75)
"""Widths that are measured, as shares of a group's units."""

BATCH = 128


def measured_values(
    model: nn.Module,
    structure: Structure,
    scores: Mapping[str, Tensor],
    images: Tensor,
    *,
    shares: Sequence[float] = SHARES,
    protect: Collection[str] = (),
) -> dict[str, FloatArray]:
    """Returns group → float ``[size + 1]``: value of keeping its best 0, 1, … units, minus the KL divergence in nats.

    The values of a group end in 0, the whole group's, and fall towards narrow widths. That of width 0 is a share of the
    loss of removing its block; where a group may not vanish it is extrapolated.

    Args:
        model: with trained weights; it is not changed.
        structure: of the model.
        scores: Tensor ``[size]`` per group, which order its units; groups without scores are left out.
        images: ``[N, …]``, where the model lies.
        shares: of its units, the widths to measure; at least one unit each.
        protect: groups to leave out.

    Raises:
        UsageError: the model's answer is no tensor ``[N, classes, …]``, or a share is none.
    """
    if not shares or not all(0 < share < 1 for share in shares):
        raise UsageError(
            f"widths at {list(shares)} of each group were to be measured; give shares between 0 and 1"
        )
    dense = copy.deepcopy(model).eval()
    answers = _answers(dense, images)
    groups = [g for g in structure.prunable if g.name in scores and g.name not in protect]
    found = {}
    for group in groups:
        order = scores[group.name].detach().cpu().double().argsort(descending=True, stable=True)
        points = {group.size: 0.0}
        for k in sorted({max(1, round(share * group.size)) for share in shares} - {group.size}):
            keep = torch.zeros(group.size, dtype=torch.bool)
            keep[order[:k]] = True
            points[k] = -_loss(dense, structure, {group.name: keep}, images, answers)
        found[group.name] = concave(points, group.size)
    for names in blocks(structure):
        if all(name in found for name in names):
            gone = {name: torch.zeros(len(found[name]) - 1, dtype=torch.bool) for name in names}
            removal = _loss(dense, structure, gone, images, answers)
            for name in names:
                found[name][0] = -removal / len(names)
    return found


def concave(points: Mapping[int, float], size: int) -> FloatArray:
    """Returns the least concave majorant of points (width → value) at 0 … size, its first piece extended to 0.

    No point counts for more than the whole group, although noise may measure it so.
    """
    hull: list[tuple[int, float]] = []
    for k, value in sorted((k, min(value, points[size])) for k, value in points.items()):
        while len(hull) > 1 and (hull[-1][1] - hull[-2][1]) * (k - hull[-1][0]) <= (value - hull[-1][1]) * (
            hull[-1][0] - hull[-2][0]
        ):
            hull.pop()
        hull.append((k, value))
    widths, values = (np.array(side, dtype=np.float64) for side in zip(*hull, strict=True))
    curve = np.interp(np.arange(size + 1), widths, values)
    first = int(widths[0])
    slope = (values[1] - values[0]) / (widths[1] - widths[0]) if len(hull) > 1 else 0.0
    curve[:first] = values[0] - slope * (first - np.arange(first))
    return curve


def _answers(model: nn.Module, images: Tensor) -> list[Tensor]:
    """Returns log-probabilities batch by batch."""
    with torch.no_grad():
        found = [model(x) for x in torch.split(images, BATCH)]
    if not all(isinstance(y, Tensor) and y.dim() >= 2 and y.is_floating_point() for y in found):
        raise UsageError(
            f"values were to be measured on a {type(found[0]).__name__} that the model returns; it takes a tensor "
            "[N, classes, …]: wrap the model so that it returns its logits, or use sums of scores"
        )
    return [torch.log_softmax(y.double(), dim=1) for y in found]


def _loss(
    dense: nn.Module,
    structure: Structure,
    keep: Mapping[str, Tensor],
    images: Tensor,
    answers: Sequence[Tensor],
) -> float:
    """Returns the mean over images of KL(dense ‖ cut), with batch norms as the cut network needs them."""
    cut = shrink(dense, structure, keep)
    _renormed(cut, images)
    total = 0.0
    for expected, found in zip(answers, _answers(cut.eval(), images), strict=True):
        total += float((expected.exp() * (expected - found)).sum())
    positions = sum(expected[:, 0].numel() for expected in answers)
    return total / max(positions, 1)


def _renormed(model: nn.Module, images: Tensor) -> None:
    """Gives every batch norm the statistics of its input: the mean over batches."""
    norms = [
        m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms or len(images) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for x in torch.split(images, BATCH):
            if len(x) > 1:
                model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
