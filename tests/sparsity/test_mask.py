"""Masks as values."""

from __future__ import annotations

import torch

from halpiee.sparsity import Mask


def mask(*bits: int) -> Mask:
    return Mask({"a": torch.tensor(bits, dtype=torch.bool)})


def test_iou_counts_units_in_both_over_units_in_either() -> None:
    assert mask(1, 1, 0, 0).iou(mask(0, 1, 1, 0)) == 1 / 3
    assert mask(0, 0).iou(mask(0, 0)) == 1.0


def test_density_and_counts_are_shares_of_all_units() -> None:
    assert mask(1, 1, 0, 1).density == 0.75
    assert mask(1, 1, 0, 1).counts == {"a": 3}


def test_digest_tells_masks_apart_and_equal_ones_together() -> None:
    assert mask(1, 0).digest() == mask(1, 0).digest()
    assert mask(1, 0).digest() != mask(0, 1).digest()


def test_complement_and_union_are_elementwise() -> None:
    assert (~mask(1, 0))["a"].tolist() == [False, True]
    assert (mask(1, 0, 0) | mask(0, 0, 1))["a"].tolist() == [True, False, True]
    assert (mask(1, 0, 1) & mask(0, 0, 1))["a"].tolist() == [False, False, True]
