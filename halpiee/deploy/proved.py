"""The proof that an exported graph computes what the network does: with a free batch, else with that of its inputs.

A network that keeps what it made for one batch (anchors, a grid, a state) has that batch in its graph, or computes
something else for others. Its graph is made once more for the batch of its example inputs, and compared on that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from halpiee.deploy.verify import Arrays, Comparison, compare, outputs, random_batches
from halpiee.errors import HalpieeError, MismatchError, UsageError
from halpiee.structure.verify import redraw, silent
from latency.backends.onnxruntime import fixed_batch
from latency.backends.torch.values import batch_of, is_batched, tensors_in
from latency.copies import copy_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Build", "Proved", "proved"]

Build = Callable[[nn.Module, bool], tuple["onnx.ModelProto", int]]
"""Makes a graph of a network, with a free batch or with that of the examples; and counts its lone batch norms."""

Run = Callable[["onnx.ModelProto"], Callable[[tuple[Any, ...]], Arrays]]
"""Makes what runs a graph: inputs → outputs."""


@dataclass(frozen=True)
class Proved:
    """A graph, and how far it is from its network.

    Attributes:
        graph: as it will be written.
        comparison: with PyTorch.
        lone_norms: batch norms that became layers of their own.
        batch: the only batch that it takes; None: any.
    """

    graph: onnx.ModelProto
    comparison: Comparison
    lone_norms: int
    batch: int | None


def proved(
    build: Build,
    run: Run,
    trusted: nn.Module,
    inputs: tuple[Any, ...],
    sizes: Sequence[int],
    allowed: float,
    seed: int,
) -> Proved:
    """Returns a network's graph with a comparison, which is within what is allowed if there is a graph with such.

    Args:
        build: makes the graph.
        run: runs it.
        trusted: the network, in float32.
        inputs: its example inputs, in float32.
        sizes: batch sizes to compare on; of a graph with a batch of its own, so many random batches of that.
        allowed: largest relative L2 error.
        seed: of the random inputs.

    Raises:
        UsageError: the network cannot be exported, or its graph cannot be run.
        MismatchError: its outputs are the same for every input, whatever the weights.
    """
    found: Proved | None = None
    failure: Exception | None = None
    for free in (True, False):
        try:
            graph, lone = build(trusted, free)
            batch = fixed_batch(graph)
            pair = _Pair(
                build, run, inputs, tuple(sizes) if batch is None else (batch,) * len(sizes), free, seed
            )
            comparison = pair.compared(graph, trusted)
            if not comparison.tells and comparison.within(allowed):
                comparison = pair.told_apart(graph, trusted)
        except (
            Exception
        ) as error:  # the exporter, the runtime and the network at other batches raise what they raise
            failure = failure or error
            continue
        this = Proved(graph, comparison, lone, batch)
        if comparison.within(allowed):
            return this
        found = found or this
        if batch is not None:
            break
    if found is not None:
        return found
    assert failure is not None
    if isinstance(failure, HalpieeError):
        raise failure
    raise UsageError(
        f"{type(trusted).__name__} was exported, and the graph was to be compared with it, which raised "
        f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}; rewrite what it names, or export a "
        "part of the network"
    ) from failure


@dataclass(frozen=True)
class _Pair:
    """A network and its graph side by side."""

    build: Build
    run: Run
    inputs: tuple[Any, ...]
    sizes: tuple[int, ...]
    free: bool
    seed: int

    def compared(self, graph: onnx.ModelProto, network: nn.Module, *, wider: bool = False) -> Comparison:
        """Returns how far they are apart on random batches."""
        tensors = tensors_in(self.inputs)
        batched = [is_batched(x, batch_of(tensors)) for x in tensors]
        batches = random_batches(self.inputs, self.sizes, seed=self.seed, batched=batched, wider=wider)
        return compare(self.run(graph), lambda x: outputs(network, x), batches)

    def told_apart(self, graph: onnx.ModelProto, trusted: nn.Module) -> Comparison:
        """Compares them where outputs differ: for other integers, or with weights that let something through.

        Raises:
            MismatchError: the outputs are the same for every input, whatever the weights.
        """
        try:
            result = self.compared(graph, trusted, wider=True)
        except Exception:  # integers that the network does not take
            pass
        else:
            if result.tells:
                return result
        for names in (silent(trusted), [name for name, _ in trusted.named_parameters()]):
            other = copy_of(trusted)
            redraw(other, names, self.seed)
            result = self.compared(self.build(other, self.free)[0], other)
            if result.tells:
                return result
        raise MismatchError(
            f"{type(trusted).__name__} was to be exported and gives the same outputs for every input, with other "
            "weights too, so that equal outputs of the file would prove nothing; export a network whose outputs hang "
            "on its inputs"
        )
