"""One random state for two networks, of which one is narrower: both draw the same noise.

Two runs from one seed draw alike as long as they ask for the same shapes. Where a network draws noise for channels of
which the other has fewer, the order of the draws would tell them apart; there each draw is made once, without the
dimensions in which the two differ, and spread over them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from halpiee.structure.surroundings import random_states

__all__ = ["drawn_alike"]

LIKE = frozenset({"rand_like", "randn_like", "randint_like", "bernoulli"})
"""Ops that draw a tensor of another one's shape."""


class Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the shapes that are drawn, or draws what two networks share.

    Args:
        seed: of the first draw.
        shared: for every draw its shape without what the networks do not share, or None where they draw alike.
    """

    def __init__(self, seed: int, shared: list[tuple[int, ...] | None] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seed = seed
        self.shared = shared
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the op; one that draws gives what was shared."""
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        place = len(self.shapes)
        shape = self.shared[place] if self.shared is not None and place < len(self.shared) else None
        if self.shared is not None:
            torch.manual_seed(self.seed + place)
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        tensor = out if isinstance(out, Tensor) else None
        self.shapes.append(() if tensor is None else tuple(tensor.shape))
        if tensor is None or shape is None or len(shape) != tensor.dim():
            return out
        torch.manual_seed(self.seed + place)
        if name.endswith("_") or name in LIKE:
            small = args[0]
            for dim, size in enumerate(shape):
                small = small if small.shape[dim] == size else small.narrow(dim, 0, 1)
            small = func(small.clone(), *args[1:], **kwargs)
        else:
            sizes = [list(shape) if isinstance(a, list | tuple) else a for a in args]
            small = func(*sizes, **kwargs)
        return tensor.copy_(small.expand_as(tensor))


def drawn_alike(one: Callable[[], Any], other: Callable[[], Any], *, seed: int) -> tuple[Any, Any]:
    """Runs two networks from one random state of torch, NumPy and Python, which is given back.

    Args:
        one: runs the first and returns its outputs.
        other: runs the second.
        seed: of the state.
    """
    with random_states():
        noted = [Draws(seed), Draws(seed)]
        found = run(one, noted[0]), run(other, noted[1])
        if noted[0].shapes == noted[1].shapes or len(noted[0].shapes) != len(noted[1].shapes):
            return found
        pairs = zip(noted[0].shapes, noted[1].shapes, strict=True)
        shared = [
            tuple(m if m == n else 1 for m, n in zip(a, b, strict=True)) if len(a) == len(b) else None
            for a, b in pairs
        ]
        return run(one, Draws(seed, [*shared])), run(other, Draws(seed, [*shared]))


def run(network: Callable[[], Any], draws: Draws) -> Any:
    """Runs a network from the seed."""
    torch.manual_seed(draws.seed)
    random.seed(draws.seed)
    np.random.seed(draws.seed % 2**32)
    with draws:
        return network()
