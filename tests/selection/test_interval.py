"""The interval of a network's prediction, from the held-out cells of its profile, by hand."""

import math

import pytest
import torch
from torch import nn

import halpiee
from latency import Profile
from latency.predict import PRIOR, student


def test_independent_errors_of_cells_average_out_over_the_ops_of_a_network() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)).eval()
    structure = halpiee.trace(net, (torch.zeros(1, 3, 8, 8),))
    first, last = (timed.op for timed in structure.ops)
    cells = [{**first.key(), "us": 30.0, "role": "sweep"}]
    cells += [{**last.key(), "c_in": k, "us": 5.0 * k, "role": "sweep"} for k in (4, 8)]
    cells += [
        {**last.key(), "c_in": 6, "us": 40.0 / 1.03, "role": "holdout"}
    ]  # the table says 40 there, as for the next wider cell: 3 % off
    cost = halpiee.LatencyCost(structure, Profile({}, cells))
    found = cost.interval({})
    assert found is not None
    assert found.us == pytest.approx(70.0)  # 30 + 40
    spread = 0.03 * math.hypot(30.0, 40.0) / 70.0
    assert found.high_us == pytest.approx(70.0 * (1 + student(0.9, PRIOR) * spread))
    assert halpiee.LatencyCost(structure, Profile({}, cells[:-1])).interval({}) is None
