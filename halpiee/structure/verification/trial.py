"""Verifies a trace at other widths: shrinks the model on paper, traces it again, and freezes groups that disagree.

A quick run comes first, without labels or values: a cut model that runs the same ops on the same tensors follows its
channels. Where it does not, a full trace finds the difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from halpiee.errors import StructureError
from halpiee.structure.assemble import assemble
from halpiee.structure.forward import Subject, record
from halpiee.structure.groups import ChannelGroup, Structure
from halpiee.structure.labels import Atoms, CheckedUnits, Finding, together
from halpiee.structure.recorder import Decisions, Recorder
from halpiee.structure.records import Move, Step, parting, tensors_of, wired
from halpiee.structure.rules.movement import FOLLOWING
from halpiee.structure.shrink import Cut, cut_for
from halpiee.structure.state import Constants, take_training_branches
from halpiee.structure.verification.probe import (
    ANOTHER_PATH,
    CHECKS,
    FAILS,
    Misplaced,
    differences,
    irregular_keeps,
    moved_differently,
    unit_range,
)
from halpiee.structure.watching import Path, Tensors, Watch, copied_for_trace, recorded_run


class RowsError(Exception):
    """A reshape does not fit the pruned channels; it may fit if units are whole rows."""

    def __init__(self, places: frozenset[int]) -> None:
        super().__init__(places)
        self.places = places  # the reshapes, by their numbers among the moves


@dataclass(frozen=True)
class Misfit:
    """A difference that shows which units do not follow the channels."""

    found: list[Finding]  # none where the two forwards are only known to differ
    module: str  # that it was found in
    parted: str | None  # the module in which the forward begins to run other ops or to read other tensors


def misfit_of(found: list[Finding], module: str, parted: str | None) -> Misfit | None:
    """Returns the misfit, or ``None``; that the forwards differ is said by ``parted`` alone."""
    found = [(units, reason) for units, reason in found if parted is None or reason != ANOTHER_PATH]
    return Misfit(found, module, parted) if found or parted is not None else None


@dataclass(frozen=True)
class Trial:
    """A model and its recorded trace, which smaller models are compared with."""

    subject: Subject
    recorder: Recorder  # record of its forward; groups that do not follow the channels are frozen in it
    real: bool  # whether to run on real tensors
    # what to run it on without labels first. A model that follows its channels on the meta device follows them; one
    # that does not may still do so on fake tensors, as torch runs some ops otherwise there: then meta is left out
    quick: list[Tensors] = field(default_factory=lambda: ["meta", "fake"])

    def run(self, structure: Structure, keep: Mapping[str, Tensor]) -> tuple[Recorder, Exception | None]:
        """Records the pruned model on fake tensors; returns the record and the error of its forward."""
        cut = cut_for(structure, keep)
        stay = together(unit_range(g) for g in structure.groups if not g.prunable)
        small = Recorder({}, self.recorder.positions, CheckedUnits(cut.n_units, stay))
        small.idle_ops = self.recorder.idle_ops
        small.answers = None if self.recorder.answers is None else self.recorder.answers.again()
        small.real, small.constants = self.real, self.recorder.constants and not self.real
        small.decisions = Decisions(self.recorder.decisions) if self.real else None
        try:
            record(self.subject, small, cut, training=self.recorder.training)
        except StructureError as raised:
            error = raised.__cause__ if isinstance(raised.__cause__, Exception) else raised
            return small, error.with_traceback(None)  # whose frames hold the smaller model
        finally:
            small.modules.clear()
        return small, None

    def misfit(self, structure: Structure, keep: Mapping[str, Tensor]) -> Misfit | None:
        """Returns the first difference of the pruned model from the full one, or ``None``.

        Raises:
            RowsError: a reshape does not fit that has not been tried by rows.
        """
        recorder = self.recorder
        cut = cut_for(structure, keep)
        steps = wired(recorder.events, recorder.given)
        if (recorder.idle_ops or recorder.answers) and "meta" in self.quick:
            self.quick.remove("meta")  # ops have other numbers there
        quick: Watched | None = None
        for tensors in () if self.real else tuple(self.quick):
            quick = self.watched(cut, tensors)
            if quick is None and tensors == "meta":
                break  # mostly because the forward fails at these widths, which a full trace explains
            if quick is None:
                continue
            misplaced = moved_differently(structure, recorder, quick.moves, cut)
            if misplaced is None and quick.is_that_of(recorder, steps):
                if tensors != self.quick[0]:
                    self.quick.remove(self.quick[0])
                return None
            if misplaced is not None and tensors == "fake":
                self.retry_by_rows(misplaced)
                found = [(misplaced.units, misplaced.reason)]
                return misfit_of(found, recorder.moves[misplaced.place].module, parting(steps, quick.steps))
        small, error = self.run(structure, keep)
        if error is None and quick is None and self.quick[:1] == ["meta"] and not self.real:
            self.quick.remove("meta")  # which failed for a reason of its own
            return self.misfit(structure, keep)
        misplaced = moved_differently(
            structure,
            recorder,
            small.moves,
            cut,
            # the op that failed may be one that moves channels otherwise
            lambda move: error is None or move.at < len(small.events) or small.failed_at == move.where,
        )
        module = small.last_module
        if misplaced is not None:
            self.retry_by_rows(misplaced)
            module = recorder.moves[misplaced.place].module
        found = differences(structure, recorder, small, error, misplaced)
        return misfit_of(
            found, module, parting(steps, wired(small.events, small.given)) if error is None else None
        )

    def watched(self, cut: Cut, tensors: Tensors) -> Watched | None:
        """Runs the model, cut on paper, without labels or values; returns None where its forward fails."""
        whole, around = self.recorder, self.subject.around
        answers = None if whole.answers is None else whole.answers.again()
        path = Path(answers, Constants() if whole.constants else None)
        made = list[tuple[Any, ...]]()
        try:
            with around.kept():
                copied = copied_for_trace(self.subject.model, self.subject.inputs, cut, tensors=tensors)
                around.watch(copied.fake_mode)
                given = {f"input#{n}": x for n, x in enumerate(tensors_of(copied.inputs), start=1)}
                watch = Watch(path, copied.tensors | given, whole.idle_ops)
                with recorded_run(copied, path, made, watch):
                    results = [copied.model(*copied.inputs)]
                    if whole.training:
                        take_training_branches(copied.model)
                        results.append(copied.model(*copied.inputs))
        except Exception:  # whatever it was, the full probe finds out
            return None
        shapes = [tuple(tensor.shape) for tensor in tensors_of(results)]
        return Watched(wired(watch.events, watch.given), watch.moves, watch.numbers, made, shapes)

    def retry_by_rows(self, misplaced: Misplaced) -> None:
        """Raises a RowsError where the misplaced move is a reshape that has not been tried by rows."""
        recorder, place = self.recorder, misplaced.place
        if any(spread.place == place for spread in recorder.spreads) and place not in recorder.by_rows:
            raise RowsError(same_spreads(recorder, place) - recorder.by_rows)

    def verified(self, structure: Structure, enough: Callable[[], bool]) -> Structure:
        """Returns the structure with every group frozen that does not follow the channels.

        ``enough`` says whether another trace is needed anyway, so that this one can end.
        """
        fitted = 0
        while fitted < len(keeps := irregular_keeps(structure)):
            keep = keeps[fitted]
            misfit = self.misfit(structure, keep)
            if misfit is None:
                fitted += 1
                continue
            fitted = 0  # a keep that fitted beside a group that is cut need not fit beside one that stays
            parted = misfit.parted is not None and self.recorder.unfollow(misfit.parted, FOLLOWING)
            if parted or self.unfollowed(structure, keep, misfit):
                structure = assemble(self.recorder)
                continue
            prunable = structure.prunable
            for units, reason in misfit.found:
                # whole groups: the units that were removed on paper cannot be among those found
                touched = [g for g in structure.groups if np.isin(unit_range(g), units).any()]
                if CHECKS in reason or FAILS in reason:
                    touched = self.at_fault(structure, keep, misfit.module, touched)
                for group in touched:
                    self.recorder.units.freeze(roots_of(structure, group), reason)
                for group in siblings(structure, self.recorder, misfit.module, touched):
                    alike = f"as in {misfit.module}: {reason}" if CHECKS in reason else reason
                    self.recorder.units.freeze(roots_of(structure, group), alike)
            structure = assemble(self.recorder)
            if structure.prunable == prunable:  # the units that were found are frozen anyway
                reason = misfit.found[0][1] if misfit.found else ANOTHER_PATH
                for group in bisected(prunable, self.fails(structure, keep)):
                    self.recorder.units.freeze(roots_of(structure, group), reason)
                structure = assemble(self.recorder)
            if enough():
                break
        return structure

    def at_fault(
        self, structure: Structure, keep: Mapping[str, Tensor], module: str, seen: list[ChannelGroup]
    ) -> list[ChannelGroup]:
        """Returns the groups at fault where the forward of a module failed at no op that is recorded.

        ``seen`` are the groups on its inputs and outputs, which it may check.
        """
        fails = self.fails(structure, keep)
        tried = [g for g in structure.prunable if g.name in keep]
        inside = [g for g in tried if any((layer + ".").startswith(module + ".") for layer, _ in g.members)]
        pool = next((groups for groups in (seen, inside) if groups and fails(groups)), tried)
        return [*bisected(pool, fails)]

    def unfollowed(self, structure: Structure, keep: Mapping[str, Tensor], misfit: Misfit) -> bool:
        """Forgets that attributes follow the channels where the misfit ends without them; returns whether any did.

        The width of an image, say, may happen to equal the number of channels.
        """
        followed = self.recorder.attributes
        names = sorted({a.name for a in followed if a.module == misfit.module and a.name in FOLLOWING})
        for tried in [*([name] for name in names), *([names] if len(names) > 1 else [])]:
            self.recorder.unfollow(misfit.module, tried)
            left = self.misfit(assemble(self.recorder), keep)
            if left is None or left.module != misfit.module:
                return True
            self.recorder.attributes = followed
        return False

    def fails(
        self, structure: Structure, keep: Mapping[str, Tensor]
    ) -> Callable[[Sequence[ChannelGroup]], bool]:
        """Returns a function of some groups: whether there is a misfit where only they are cut."""

        def fails(groups: Sequence[ChannelGroup]) -> bool:
            part = {g.name: keep[g.name] for g in groups}
            runs = self.real or self.watched(cut_for(structure, part), "fake") is not None
            return not runs or self.misfit(structure, part) is not None

        return fails


def same_spreads(recorder: Recorder, place: int) -> frozenset[int]:
    """Returns the same reshape in all modules of its module's class."""
    ordinals: Counter[str] = Counter()
    kinds: dict[int, tuple[Any, ...]] = {}
    for at in sorted({spread.place for spread in recorder.spreads}):
        module = recorder.moves[at].module
        kinds[at] = (type(recorder.modules.get(module)), ordinals[module])
        ordinals[module] += 1
    return frozenset(at for at, kind in kinds.items() if kind == kinds[place])


def bisected(
    groups: Sequence[ChannelGroup], fails: Callable[[Sequence[ChannelGroup]], bool]
) -> Sequence[ChannelGroup]:
    """Returns a part of the groups that is at fault: bisection, O(log groups) trials."""
    while len(groups) > 1:
        halves = groups[: len(groups) // 2], groups[len(groups) // 2 :]
        at_fault = next((half for half in halves if fails(half)), None)
        if at_fault is None:
            break
        groups = at_fault
    return groups


def roots_of(structure: Structure, group: ChannelGroup) -> Atoms:
    """Returns the roots of a group's units."""
    roots: Atoms = structure.details["roots"][group.start : group.start + group.size]
    return roots


def siblings(
    structure: Structure, recorder: Recorder, failed: str, touched: list[ChannelGroup]
) -> list[ChannelGroup]:
    """Returns the prunable groups of the same names in other modules of the class whose forward failed.

    They would fail next, one trace each; so they are frozen with the first.
    """
    kind = type(recorder.modules.get(failed))
    if not failed or kind.__module__.startswith("torch.nn"):
        return []
    parts = {g.name.removeprefix(failed) for g in touched if g.name.startswith(failed + ".")}
    others = [
        path
        for path, module in recorder.modules.items()
        if type(module) is kind and path != failed
        if (path in recorder.positions) == (failed in recorder.positions)
    ]
    names = {path + part for path in others for part in parts}
    return [g for g in structure.prunable if g.name in names]


@dataclass(frozen=True)
class Watched:
    """The record of a quick run."""

    steps: list[Step]  # its ops, and their inputs
    moves: list[Move]  # its ops that move elements
    numbers: list[tuple[Any, ...]]  # the numbers of the pointwise ops
    made: list[tuple[Any, ...]]  # numbers that became tensors
    shapes: list[tuple[int, ...]]  # shapes of the outputs

    def is_that_of(self, full: Recorder, steps: list[Step]) -> bool:
        """Returns whether the given ops equal those of the full model, on the same tensors and numbers."""
        return (
            self.made == full.made
            and self.steps == steps
            and self.numbers == [scalars for _, scalars, _ in full.scalars]
            and self.shapes == full.output_shapes
        )
