"""The loss and the figures of classification, of single classes, of shares of them, and of several per image."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch.nn import functional

from halpiee.data.tensors import TensorData
from halpiee.tasks import named
from halpiee.tasks.classification import Classification

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.5]])


def test_single_classes_have_the_cross_entropy() -> None:
    by_hand = -(2 - math.log(math.exp(2) + 1 + math.exp(-1))) - (
        0.5 - math.log(1 + math.exp(1) + math.exp(0.5))
    )
    assert float(Classification().loss(LOGITS, torch.tensor([0, 2]))) == pytest.approx(by_hand / 2, abs=1e-6)


def test_shares_of_classes_have_the_cross_entropy_weighted_by_them() -> None:
    shares = torch.tensor([[0.25, 0.75, 0.0], [0.0, 0.5, 0.5]])
    by_hand = -(shares * LOGITS.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(Classification().loss(LOGITS, shares), by_hand)


def test_several_classes_per_image_have_the_binary_cross_entropy() -> None:
    classes = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    p = LOGITS.sigmoid()
    by_hand = -(classes * p.log() + (1 - classes) * (1 - p).log()).mean()
    torch.testing.assert_close(Classification().loss(LOGITS, classes), by_hand)


def test_one_look_at_the_data_tells_several_classes_from_shares() -> None:
    """The second batch alone could be either."""
    x = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
    y = torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    task, one = Classification(), y[2:]
    task.prepare(TensorData("several", x, y, x, y, ("a", "b")), torch.nn.Identity())
    expected = functional.binary_cross_entropy_with_logits(LOGITS[:, :2], one)
    torch.testing.assert_close(task.loss(LOGITS[:, :2], one), expected)
    metric = task.metric(2)
    metric.add(LOGITS[:, :2], one)  # said: a, b; true: a, b
    assert metric.figures() == {"accuracy": 1.0}


def test_accuracy_counts_first_places_and_adds_up_over_batches_and_processes() -> None:
    metric, other = (named("classification").metric(3) for _ in range(2))
    metric.add(LOGITS, torch.tensor([0, 2]))
    other.add(LOGITS[:1], torch.tensor([1]))
    metric.merge([pickle.loads(pickle.dumps(other))])
    assert metric.figures() == {"accuracy": pytest.approx(1 / 3)}


def test_beyond_five_classes_the_five_best_are_counted_too() -> None:
    logits = torch.arange(7.0).repeat(4, 1)
    metric = named("classification").metric(7)
    metric.add(logits, torch.tensor([6, 2, 1, 0]))
    assert metric.figures() == {"accuracy": 0.25, "top5": 0.5}


def test_f1_is_that_of_all_labels() -> None:
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
    metric = named("classification").metric(3)
    metric.add(torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]), several)  # 3 right, 1 extra, 1 lacking
    assert metric.figures() == {"accuracy": pytest.approx(2 * 3 / (2 * 3 + 1 + 1))}


def test_the_distance_to_a_teacher_is_zero_at_the_teacher_and_the_divergence_elsewhere() -> None:
    task = Classification()
    assert float(task.distance(LOGITS, LOGITS)) == pytest.approx(0, abs=1e-7)
    p, q = (LOGITS / 2).softmax(1), (LOGITS / 2).flip(1).softmax(1)
    torch.testing.assert_close(task.distance(LOGITS, LOGITS.flip(1)), 4 * (q * (q / p).log()).sum(1).mean())
