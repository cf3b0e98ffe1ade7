"""Correlations of measures, by hand and by numpy's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from halpiee.analysis import correlations
from halpiee.analysis.measures import correlation
from halpiee.errors import UsageError


def test_pearson_is_that_of_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    assert correlation(a, b) == pytest.approx(np.corrcoef(a.numpy(), b.numpy())[0, 1], abs=1e-6)
    assert correlation(a, 3 * a + 1) == pytest.approx(1)
    assert math.isnan(correlation(a, torch.ones(50)))


def test_layers_are_correlated_one_by_one_and_together() -> None:
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([1.0, 2.0, 3.0]), "only": torch.ones(2)}
    second = {"a": torch.tensor([2.0, 1.0]), "b": torch.tensor([10.0, 20.0, 30.0])}
    found = correlations(first, second)
    assert set(found) == {"a", "b", ""}
    assert found["a"] == pytest.approx(-1)
    assert found["b"] == pytest.approx(1)
    together = np.corrcoef([1, 2, 1, 2, 3], [2, 1, 10, 20, 30])[0, 1]
    assert found[""] == pytest.approx(together)


def test_measures_of_other_units_are_refused() -> None:
    with pytest.raises(UsageError, match="3 and 2 units"):
        correlation(torch.ones(3), torch.ones(2))
    with pytest.raises(UsageError, match="without a common layer"):
        correlations({"a": torch.ones(2)}, {"b": torch.ones(2)})
