"""Ranks of a distributed run decide alike, or the run stops."""

from __future__ import annotations

import torch

from halpiee.errors import PromiseError
from halpiee.sparsity.mask import Mask

__all__ = ["check_ranks"]


def check_ranks(alive: Mask, step: int) -> None:
    """Refuses to go on when the ranks of a distributed run have chosen different units.

    Raises:
        PromiseError: the masks differ.
    """
    dist = torch.distributed
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    digests: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(digests, alive.digest())
    if len(set(digests)) > 1:
        raise PromiseError(
            f"at step {step} the ranks chose different units ({len(set(digests))} different masks of "
            f"{len(digests)}); give every rank the same seed and reduced gradients (DistributedDataParallel)"
        )
