"""The quick answer to whether a model follows its channels: cut on paper, it runs through the same ops.

It runs without labels or values, which is quicker than a trace. What differs is then looked for by ``trial.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from halpiee.structure.answers import Answers
from halpiee.structure.branches import taken
from halpiee.structure.calls import tensors_of
from halpiee.structure.modes import Path, Watch
from halpiee.structure.moves import Move
from halpiee.structure.probe import Cut
from halpiee.structure.recorder import Recorder
from halpiee.structure.stand_ins import Tensors, looked_on, stand_in_for
from halpiee.structure.surroundings import Surroundings
from halpiee.structure.wiring import Step, wired

__all__ = ["Watched", "watched"]


@dataclass(frozen=True)
class Watched:
    """What ran of a model.

    Attributes:
        steps: its ops, and what they read.
        moves: what moved elements.
        numbers: the numbers of the pointwise ops.
        made: numbers that became tensors.
        shapes: shapes of the outputs.
    """

    steps: list[Step]
    moves: list[Move]
    numbers: list[tuple[Any, ...]]
    made: list[tuple[Any, ...]]
    shapes: list[tuple[int, ...]]

    def is_that_of(self, full: Recorder, steps: list[Step]) -> bool:
        """Returns whether the full model, whose ops these are, runs the same on the same tensors and numbers."""
        return (
            self.made == full.made
            and self.steps == steps
            and self.numbers == [scalars for _, scalars, _ in full.scalars]
            and self.shapes == full.output_shapes
        )


def watched(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    around: Surroundings,
    cut: Cut,
    *,
    training: bool,
    tensors: Tensors,
    idle: frozenset[int] = frozenset(),
    answers: Answers | None = None,
) -> Watched | None:
    """Runs a model, cut on paper, without values; returns what ran, or None where its forward fails.

    Args:
        model: the model.
        example_inputs: its inputs.
        around: what the model shares with its copies, which stays as it is.
        cut: what to leave out.
        training: whether to run it once more with the branches that it takes in training.
        tensors: what to run it on.
        idle: numbers of the ops that feed nothing and are left out.
        answers: what the forward reads in Python and what feeds nothing either.
    """
    path, made = Path(None if answers is None else answers.again()), list[tuple[Any, ...]]()
    try:
        with around.kept():
            copied = stand_in_for(model, example_inputs, cut, tensors=tensors)
            around.watch(copied.fake_mode)
            given = {f"input#{n}": tensor for n, tensor in enumerate(tensors_of(copied.inputs), start=1)}
            watch = Watch(path, copied.tensors | given, idle)
            with looked_on(copied, path, made, watch):
                results = [copied.model(*copied.inputs)]
                if training:
                    taken(copied.model)
                    results.append(copied.model(*copied.inputs))
    except Exception:  # whatever it was, the full probe finds out
        return None
    shapes = [tuple(tensor.shape) for tensor in tensors_of(results)]
    return Watched(wired(watch.events, watch.given), watch.moves, watch.numbers, made, shapes)
