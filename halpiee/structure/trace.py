"""Traces a model: one forward on fake tensors, with a label beside every tensor, finds which channels belong together.

The model is copied with fake parameters (no memory, no arithmetic, any device) and run once in eval mode, and once more
as it trains where its code branches on the mode. Below autograd every op is seen, and its rule (``rules``) does to the
labels what the op does to the elements.

A group may vanish where a parallel path stays. A branch without inner channels is a constant, the bias of the layer
that read them. It may go where an addition or a concatenation joins it with a tensor that is still computed, so that no
layer and no output is left with a constant alone. The modules stay, with tensors of size 0 and a forward that computes
nothing.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from halpiee.errors import HalpieeError, StructureError
from halpiee.structure.assemble import assemble, collapsed, rectangular
from halpiee.structure.forward import ForwardError, NeedsValuesError, Subject, python_answers, record
from halpiee.structure.groups import ChannelGroup, Structure
from halpiee.structure.labels import Atoms, no_atoms
from halpiee.structure.modules import computing_hook, heads_of
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import needed, random_like
from halpiee.structure.state import Answers, ConstantError
from halpiee.structure.verification.trial import RowsError, Trial
from latency.backends.torch.modules import copy_of
from latency.op import CONTRACTIONS

MAX_ROUNDS = 6
"""Most traces of one model: without ops that feed nothing, and by positions where a layer's groups are one unit."""


def trace(model: nn.Module, example_inputs: tuple[Any, ...], *, vanish: bool = False) -> Structure:
    """Finds the layers, groups, timed ops and slots of a model.

    Nothing of the model changes: not its mode, gradients or buffers, not the random states of torch, NumPy and
    Python, not what its forward and its hooks keep elsewhere (globals, class attributes, closures, lists); caches
    by ``functools.lru_cache`` that its forward reads are emptied.

    Args:
        model: any module that runs on the example inputs.
        example_inputs: positional arguments of its forward; tensors may be nested. Only shapes, types and
            devices count.
        vanish: whether whole branches may be removed: groups that a parallel path makes dispensable get ``may_vanish``.
            It is off by default, because a network that loses blocks is another decision than one that gets narrower.

    Raises:
        StructureError: the model cannot be traced: its forward fails, or its parameters are quantised or parametrised.
    """
    if not isinstance(example_inputs, tuple):
        raise StructureError(
            f"trace takes the example inputs as a tuple, found {type(example_inputs).__name__}; "
            "write trace(model, (x,))"
        )
    refuse_foreign(model)
    subject = Subject.of(model, example_inputs)
    with warnings.catch_warnings(
        action="ignore"
    ):  # torch's own, raised as an error, leak the tensors of an op
        structure = of_subject(subject, vanish=vanish)
    subject.around.clear()
    refuse_empty(model, structure)
    inputs = [list(x.shape[1:]) for x in example_inputs if isinstance(x, Tensor)]
    return replace(structure, details={**structure.details, "inputs": inputs})


def of_subject(subject: Subject, *, vanish: bool) -> Structure:
    """Traces a model; where it runs and its trace does not, the fault is of the trace."""
    try:
        return fake_or_real(subject, vanish=vanish)
    except ForwardError as failure:
        if not runs(subject):
            raise
        raise own_fault(subject.model, failure.where, failure.__cause__ or failure) from failure
    except HalpieeError:
        raise
    except Exception as error:
        raise own_fault(subject.model, "", error) from error


@dataclass(frozen=True)
class Attempt:
    """How to trace a model: on which tensors, and what earlier traces of it have shown."""

    real: bool = False  # on real tensors
    constants: bool = False  # what depends on no input, parameter or buffer is computed with its values
    answers: Answers | None = None  # values that the forward reads in Python without effect on what counts
    # grouped layers, norms and attention modules whose units are positions across groups
    positions: frozenset[str] = frozenset()
    by_rows: frozenset[int] = frozenset()  # reshapes that keep whole rows of the channels they spread
    heads: bool = True  # attention modules that cannot lose heads are tried once more by positions


def fake_or_real(subject: Subject, *, vanish: bool) -> Structure:
    """Traces on fake tensors; where the forward needs values, on real ones, and once more on others."""

    def faked(attempt: Attempt) -> Structure:
        with uncollected():
            return traced(subject, attempt, vanish=vanish)

    try:
        try:
            return faked(Attempt(constants=True))
        except ConstantError:  # the forward writes a tensor without values into a constant
            return faked(Attempt())
    except NeedsValuesError:
        pass
    except ForwardError:  # tensors without values know less than real ones: of devices, of extensions
        if not runs(subject):
            raise
    answers = python_answers(subject)
    if answers is not None:
        with suppress(NeedsValuesError, ForwardError):
            return faked(Attempt(answers=answers))
    real = Attempt(real=True, answers=answers)
    structure = traced(subject, real, vanish=vanish)
    structure = replace(structure, details={**structure.details, "real": True})
    others = random_like(subject.inputs, torch.Generator().manual_seed(0))
    again = traced(replace(subject, inputs=others), real, vanish=vanish)
    for one, other in zip_longest(structure.groups, again.groups):
        if one is None or other is None or bare(one) != bare(other):
            differing = one.name if one is not None and other is not None else "the number of groups"
            raise StructureError(
                f"the forward of {type(subject.model).__name__} takes another path for other inputs (two traces "
                f"disagree on {differing}); trace the part of it that always runs alike, for example its backbone"
            )
    # what a trace can see depends on how many objects a detector finds: a group that is frozen in one stays frozen
    groups = (
        other
        if one.prunable and not other.prunable
        else replace(one, may_vanish=one.may_vanish and other.may_vanish)
        for one, other in zip(structure.groups, again.groups, strict=True)
    )
    return replace(structure, groups=tuple(groups))


def runs(subject: Subject) -> bool:
    """Returns whether a copy of the model runs on copies of the inputs, outside any trace."""
    copied, inputs = copy_of(subject.model).eval(), copy_of(subject.inputs)
    try:
        with subject.around.kept(), torch.no_grad():
            copied(*inputs)
    except Exception:  # whatever a forward raises
        return False
    return True


def own_fault(model: nn.Module, where: str, error: BaseException) -> StructureError:
    """Returns the error that says that a model runs and its trace does not."""
    return StructureError(
        f"{type(model).__name__} was to be traced{f' and failed at {where}' if where else ''} "
        f"({type(error).__name__}: {error}); the model runs on these inputs, so this is a fault of halpiee and not of "
        "the model: report it with this message, and meanwhile trace the part of the model without that layer"
    )


def bare(group: ChannelGroup) -> ChannelGroup:
    """Returns a group without the fields that may depend on values: whether it is frozen, and why."""
    return replace(
        group, prunable=False, reason=None, may_vanish=False, trainable=False, untrainable_reason=None
    )


@contextmanager
def uncollected() -> Iterator[None]:
    """Pauses the search for reference cycles: tensors without values are small, many and all still needed."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def traced(subject: Subject, attempt: Attempt, *, vanish: bool) -> Structure:
    """Traces and verifies; traces again where verification shows that units lie otherwise."""
    recorder = recorded(subject, attempt)
    structure = assemble(recorder)
    before = frozen_heads(recorder) | recorder.positions

    def newly_frozen() -> frozenset[str]:
        return frozen_heads(recorder) - before if attempt.heads else frozenset()

    try:
        trial = Trial(subject, recorder, attempt.real)
        structure = trial.verified(structure, lambda: bool(newly_frozen()))
    except RowsError as turn:
        attempt = replace(attempt, positions=recorder.positions, by_rows=attempt.by_rows | turn.places)
        return traced(subject, attempt, vanish=vanish)
    if whole := newly_frozen():
        attempt = replace(attempt, positions=recorder.positions | whole, heads=False)
        return traced(subject, attempt, vanish=vanish)
    return with_vanishing(subject, recorder, structure) if vanish else structure


def recorded(subject: Subject, attempt: Attempt = Attempt()) -> Recorder:
    """Records a forward; again without ops that feed no output, and by positions where channels need it.

    The ops are those of the trace; whether the groups hold at other widths is for a trial to say.
    """
    single = [path for path, module in subject.model.named_modules() if (heads_of(module) or ("", 0))[1] == 1]
    positions, idle_ops = attempt.positions | frozenset(single), frozenset[int]()
    for _ in range(MAX_ROUNDS):
        recorder = Recorder({}, positions, by_rows=attempt.by_rows)
        recorder.idle_ops, recorder.constants, recorder.real = idle_ops, attempt.constants, attempt.real
        recorder.answers = None if attempt.answers is None else attempt.answers.again()
        record(subject, recorder, training=subject.branches)
        count = needed(recorder.events, recorder.given, {*recorder.outputs, *recorder.read_by_python})
        idle = {e.number for place, e in enumerate(recorder.events) if place not in count and e.changed}
        if idle:  # ops that do not count have united or frozen units, or compute with numbers
            idle_ops |= idle
            continue
        refuse_originals(recorder, count)
        rectangular(recorder)
        found = collapsed(recorder) - positions
        if not found:
            break
        positions |= found
    return recorder


def refuse_originals(recorder: Recorder, count: set[int]) -> None:
    """Refuses a copy that computes its outputs with the parameters of the model that it was copied from."""
    read = {value for place in count for value in recorder.events[place].reads}
    name = next((name for value, name in recorder.foreign.items() if value in read), None)
    if name is not None:
        raise StructureError(
            f"a copy of the model computes with the model's own parameter {name!r}: its forward, or a hook, is a "
            "function that holds on to the model or to one of its modules; write it as a method of the class, with "
            "self, so that a copy runs its own modules"
        )


def frozen_heads(recorder: Recorder) -> frozenset[str]:
    """Returns the attention modules that can lose no head."""
    reasons = recorder.units.reasons()
    return frozenset(
        name
        for name, atoms in recorder.grouped.items()
        if heads_of(recorder.modules.get(name)) and int(recorder.units.find(atoms[:1])[0]) in reasons
    )


def with_vanishing(subject: Subject, recorder: Recorder, structure: Structure) -> Structure:
    """Marks the groups that may vanish: a parallel path stays, and the forward runs without them."""
    roots = structure.details["roots"]
    candidates = [roots[g.start : g.start + g.size] for g in structure.prunable]
    verdicts = vanishable(recorder, candidates)
    legal = [g.name for g, may in zip(structure.prunable, verdicts, strict=True) if may]
    # on real tensors: some ops, such as resizing, refuse tensors without channels, which fake ones do not show
    trial = Trial(subject, recorder, real=True)

    def marked(names: list[str]) -> Structure:
        return replace(
            structure, groups=tuple(replace(g, may_vanish=g.name in names) for g in structure.groups)
        )

    def runs_without(names: list[str]) -> bool:
        keep = {name: torch.zeros(structure.by_name[name].size, dtype=torch.bool) for name in names}
        return trial.run(marked(names), keep)[1] is None

    if legal and not runs_without(legal):
        legal = [name for name in legal if runs_without([name])]
    return marked(legal)


def refuse_empty(model: nn.Module, structure: Structure) -> None:
    """Refuses a model with weights of which the trace has found no layer."""
    weights = [name for name, p in model.named_parameters() if p.dim() > 1]
    if structure.layers or not weights:
        return
    unread = set(weights) & set(structure.details["unread"])
    why = (
        "its forward reads none of them"
        if len(unread) == len(weights)
        else "what its forward does with them is none of the ops that a trace knows as a layer"
    )
    raise StructureError(
        f"no layer was found in {type(model).__name__}, though it has {len(weights)} weights ({weights[0]!r} …): "
        f"{why}; trace the float model, in PyTorch's own ops, before it is quantised, compiled or wrapped"
    )


def refuse_foreign(model: nn.Module) -> None:
    """Refuses modules whose parameters are not plain tensors of the module."""
    if not isinstance(model, nn.Module):
        raise StructureError(
            f"trace takes a torch.nn.Module, found {type(model).__name__}; build the network first"
        )
    for name, module in model.named_modules():
        if (fault := foreign_part(module)) is not None:
            part, why = fault
            raise StructureError(f"the {part} {name or type(module).__name__!r} {why}")


def foreign_part(module: nn.Module) -> tuple[str, str] | None:
    """Returns the part of a module that cannot be traced, and why; None where all of it can."""
    if hasattr(module, "parametrizations"):
        return "module", (
            "is parametrised, its weight is computed from other tensors; "
            "call torch.nn.utils.parametrize.remove_parametrizations first"
        )
    if "quantized" in type(module).__module__:
        return "module", "is quantised; prune the float model, then quantise it"
    if isinstance(module, torch.jit.ScriptModule):
        return "module", (
            "is compiled to TorchScript, whose forward cannot be watched; trace the module it was made from"
        )
    if (hook := computing_hook(module)) is not None:
        how = f"computes its weight from other tensors before each forward ({hook[0]})"
        return "module", f"{how}; call {hook[1]} first"
    for name, parameter in module.named_parameters(recurse=False):
        if isinstance(parameter, UninitializedParameter):
            return f"parameter {name!r} of", "has no shape yet; run the model once first"
        if type(parameter) not in (nn.Parameter, nn.Buffer) or type(parameter.data) is not torch.Tensor:
            return f"parameter {name!r} of", (
                f"is a {type(parameter.data).__name__}, not a plain tensor (quantised or distributed); trace the model "
                "before it is converted"
            )
    return None


JOINS = ("add", "add_", "cat")


def vanishable(recorder: Recorder, candidates: Sequence[Atoms]) -> list[bool]:
    """Returns for each group of candidates (its roots) whether it may vanish together with the others that may.

    Groups are taken in order; one that would leave a layer or an output with a constant alone, given those
    already taken, is left out, and tried again when others are taken: the first group of a bottleneck may vanish with
    the second. O(groups² · ops) at worst.
    """
    taken = no_atoms()
    verdicts = [False] * len(candidates)
    while True:
        before = sum(verdicts)
        for i, roots in enumerate(candidates):
            together = np.concatenate([taken, roots])
            if not verdicts[i] and still_computes(recorder, together):
                verdicts[i], taken = True, together
        if sum(verdicts) == before:
            return verdicts


def still_computes(recorder: Recorder, roots: Atoms) -> bool:
    """Returns whether every layer and output still depends on the input without the given units."""
    constant: set[int] = set()
    void: set[int] = set()
    gone = set(roots.tolist())
    for event in recorder.events:
        reads = [v for v in event.reads if v not in recorder.parameter_values]
        timing = event.timing
        if timing is not None and timing.kind in CONTRACTIONS:
            ins = set(recorder.units.find(timing.ins).tolist())
            outs = set(recorder.units.find(timing.outs).tolist())
            if any(v in constant for v in reads):
                return False
            if outs and outs <= gone:
                void.update(event.writes)
            elif ins and ins <= gone:
                constant.update(event.writes)
            continue
        dead = [v for v in reads if v in constant or v in void]
        if not dead:
            continue
        if len(dead) == len(reads):
            # a sum over no channels is 0
            ended = any(v in constant for v in dead) or not recorder.summed.isdisjoint(event.writes)
            (constant if ended else void).update(event.writes)
        elif any(v in constant for v in dead) and event.name not in JOINS:
            return False
        if any(v in recorder.averages for v in event.writes) and len(dead) == len(reads):
            return False  # an average of nothing is not a number
    return not any(v in constant or v in void for v in recorder.outputs)
