"""What is given as the compact model must equal the masked one, at every batch size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from halpiee.errors import MismatchError
from halpiee.structure import Structure, shrink, trace, verify


def pruned_pair() -> tuple[nn.Module, Structure, dict[str, Tensor], nn.Module]:
    """A traced conv net, a keep that halves its first prunable group, and the compact network."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.Sigmoid(),
        nn.Conv2d(8, 4, 3),
        nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()
    structure = trace(model, (torch.zeros(1, 3, 6, 6),))
    group = structure.prunable[0]
    keep = {group.name: torch.arange(group.size) % 2 == 0}
    return model, structure, keep, shrink(model, structure, keep)


def test_a_compact_model_that_equals_the_masked_one_passes_on_every_batch_size() -> None:
    model, structure, keep, compact = pruned_pair()
    seen: list[int] = []
    compact.train().register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    example = (torch.zeros(2, 3, 6, 6),)
    assert verify(model, structure, keep, example, compact=compact, sizes=(1, 3, 5)) <= 1e-5
    assert seen == [1, 3, 5]
    assert compact.training


def test_a_compact_model_that_differs_is_refused_as_a_fault_of_the_pruning() -> None:
    model, structure, keep, compact = pruned_pair()
    with torch.no_grad():
        next(compact.parameters()).mul_(1.5)
    with pytest.raises(
        MismatchError, match=r"a fault of the pruning, not of an export; keep these"
    ) as caught:
        verify(model, structure, keep, (torch.zeros(1, 3, 6, 6),), compact=compact)
    assert caught.value.error > 1e-5


def test_a_fault_at_one_batch_size_alone_is_found() -> None:
    class AtThree(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner(x)
            return found * 2 if len(x) == 3 else found

    model, structure, keep, compact = pruned_pair()
    example = (torch.zeros(1, 3, 6, 6),)
    assert verify(model, structure, keep, example, compact=AtThree(compact), sizes=(1, 5)) <= 1e-5
    with pytest.raises(MismatchError):
        verify(model, structure, keep, example, compact=AtThree(compact), sizes=(1, 3, 5))
