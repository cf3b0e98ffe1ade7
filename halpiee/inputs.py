"""What a network reads: one image, or several inputs, as they are typed (``--input``) and as batches hold them.

A batch of several inputs is a tuple of tensors in the order of forward's arguments, or a dictionary by their names.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from halpiee.errors import UsageError, unknown

if TYPE_CHECKING:
    from torch import Tensor, nn


INPUTS = "Input by forward's argument, without the batch: image=3x128x128, ids=64:int64; several times."
"""Help of the option."""

TYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int8", "uint8", "bool")

MOST = 2**26
"""Numbers of one input at most: 0.25 GB."""


@dataclass(frozen=True)
class Input:
    """One input of a network."""

    name: str  # of forward's argument; empty where a plan tells the shape alone
    shape: tuple[int, ...]  # without the batch
    dtype: str = "float32"  # its element type, as PyTorch names it

    def __str__(self) -> str:
        size = "x".join(map(str, self.shape))
        return f"{self.name}={size}" + ("" if self.dtype == "float32" else f":{self.dtype}")

    def drawn(self, batch: int) -> Tensor:
        """Returns an example: normal numbers, zeros of integers (a token that every network has), or flags."""
        import torch

        size, dtype = (batch, *self.shape), getattr(torch, self.dtype)
        if self.dtype == "bool":
            return torch.ones(size, dtype=dtype)
        return torch.randn(size).to(dtype) if dtype.is_floating_point else torch.zeros(size, dtype=dtype)


Shape = tuple[int, ...] | tuple[Input, ...]
"""(channels, height, width) of the one image that a network takes, or its inputs."""


def parse_inputs(texts: Sequence[str]) -> tuple[Input, ...]:
    """Returns the inputs that ``--input`` names."""
    found: list[Input] = []
    for text in texts:
        match = re.fullmatch(r"([A-Za-z_]\w*)=(\d{1,9}(?:x\d{1,9})*)(?::(\w+))?", text.strip())
        if match is None:
            raise UsageError(
                f"--input {text[:60]} was asked; give the name of forward's argument and its shape without the batch: "
                "--input image=3x128x128, or --input ids=64:int64"
            )
        name, size, dtype = match[1], tuple(int(n) for n in match[2].split("x")), match[3] or "float32"
        if dtype not in TYPES:
            hint = unknown(dtype, TYPES, f"give one of {', '.join(TYPES)}")
            raise UsageError(f"--input {text} was asked; {hint}")
        if not 0 < (n := math.prod(size)) <= MOST:
            raise UsageError(f"--input {text} was asked, of {n:,} numbers; give between 1 and {MOST:,}")
        if name in (one.name for one in found):
            raise UsageError(f"--input {name} was given twice; give every input once")
        found.append(Input(name, size, dtype))
    return tuple(found)


def shapes_of(shape: Shape) -> list[list[int]]:
    """Returns the shape of every input, without the batch."""
    named = [one for one in shape if isinstance(one, Input)]
    return [list(one.shape) for one in named] if named else [[int(n) for n in shape if isinstance(n, int)]]


def spelled(shape: Shape) -> str:
    """Returns the shapes in words: ``3×128×128 and 1×128×128``."""
    return " and ".join("×".join(map(str, one)) for one in shapes_of(shape))


def example_of(model: nn.Module, shape: Shape, batch: int = 1) -> tuple[Any, ...]:
    """Returns example inputs of a network, in the order of forward's arguments.

    Args:
        model: the network.
        shape: of its one image, or its inputs by name. An argument between them that is not named has its default.
        batch: first dimension of every input.

    Raises:
        UsageError: forward has no such argument, or one without a default that is not given.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        drawn = [one.drawn(batch) for one in shape if isinstance(one, Input)]
        if not drawn:
            return (torch.randn(batch, *(n for n in shape if isinstance(n, int))),)
    names = [one.name for one in shape if isinstance(one, Input)]
    return tuple(drawn) if "" in names else _placed(model, dict(zip(names, drawn, strict=True)))


def at_batch(example: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """Returns example inputs with another batch: the first of each, so many times."""
    from latency.backends.torch.modules import filled, tensors_in

    return filled(
        example, [x[:1].expand(batch, *x.shape[1:]).clone() if x.dim() else x for x in tensors_in(example)]
    )


def called(model: nn.Module, x: Any) -> Any:
    """Returns what a network answers to a batch, of one input or several."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple) else model(x)


def count(x: Any) -> int:
    """Returns how many examples a batch has."""
    while not hasattr(x, "shape"):
        x = next(iter(x.values() if isinstance(x, Mapping) else x))
    return len(x)


def split(x: Any, n: int) -> list[Any]:
    """Returns a batch in parts of at most ``n`` examples."""
    from torch.utils._pytree import tree_map

    return [tree_map(lambda one, at=at: one[at : at + n], x) for at in range(0, count(x), n)]


def ordered(model: nn.Module, x: Any) -> tuple[Any, ...]:
    """Returns a batch as the arguments of forward, in their order; between them stand defaults."""
    if not isinstance(x, Mapping):
        return x if isinstance(x, tuple) else (x,)
    return _placed(model, x)


def _placed(model: nn.Module, named: Mapping[str, Any]) -> tuple[Any, ...]:
    """Returns values by the names of forward's arguments in the order of these.

    Raises:
        UsageError: forward has no such argument, or one without a default that is not given.
    """
    known = [
        one
        for one in inspect.signature(model.forward).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
    ]
    names = [one.name for one in known]
    what = type(model).__name__
    for name in named:
        if name not in names:
            hint = unknown(name, names, f"its arguments are {', '.join(names)}")
            raise UsageError(f"--input {name} was asked, and forward of {what} has no such argument; {hint}")
    last = max(names.index(name) for name in named)
    needed = [one.name for one in known if one.default is one.empty and one.name not in named]
    if needed:
        raise UsageError(
            f"{what} was to be called with {', '.join(named)}, and needs {', '.join(needed)} too; add "
            + " ".join(f"--input {name}=SHAPE" for name in needed)
        )
    return tuple(named.get(one.name, one.default) for one in known[: last + 1])
