"""Traces a model: one forward on fake tensors, with a label beside every tensor, finds which channels belong together.

The model is copied with fake parameters (no memory, no arithmetic, any device) and run once in eval mode, and once
more as it trains where its code branches on the mode; below autograd, every op passes by and its rule (``rules``)
does to the labels what the op does to the elements.

A group may vanish where a parallel path stays. A branch whose inner channels are all gone is a constant: the bias of
the layer that read them, carried through what follows. It may go where an addition or a concatenation joins it with
something that is still computed, so that no layer and no output is left with a constant alone. The modules stay, with
tensors of size 0 and a forward that computes nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from halpiee.errors import HalpieeError, StructureError
from halpiee.structure.assemble import assemble, collapsed, rectangular
from halpiee.structure.constants import ConstantError
from halpiee.structure.forward import ForwardError, NeedsValuesError, constant_answers, idle_answers, record
from halpiee.structure.groups import ChannelGroup, Structure
from halpiee.structure.labels import Atoms
from halpiee.structure.modules import heads_of
from halpiee.structure.recorder import Recorder
from halpiee.structure.records import idle, needed, random_like
from halpiee.structure.state import Answers, branches_by_mode
from halpiee.structure.surroundings import Surroundings
from halpiee.structure.verification.trial import Trial, TurnError
from latency.backends.torch.modules import copy_of
from latency.op import CONTRACTIONS

__all__ = ["trace", "vanishable"]


MAX_ROUNDS = 6
"""Traces of one model: without ops that feed nothing, and by positions where a layer's groups hang together."""


def trace(model: nn.Module, example_inputs: tuple[Any, ...], *, vanish: bool = False) -> Structure:
    """Finds the layers, groups, timed ops and slots of a model.

    Nothing of the model changes: not its mode, gradients or buffers, not the random states of torch, NumPy and
    Python, not what its forward and its hooks keep elsewhere (globals, class attributes, closures, lists); caches
    by ``functools.lru_cache`` that its forward reads are emptied.

    Args:
        model: any module that runs on the example inputs.
        example_inputs: positional arguments of its forward; tensors may be nested. Only shapes, types and
            devices count.
        vanish: whether whole branches may go: groups that a parallel path makes dispensable get
            ``may_vanish``. It is off by default, because a network that loses blocks is another decision than
            one that gets narrower.

    Raises:
        StructureError: the model cannot be traced: its forward fails, or its parameters are quantised or
            parametrised.
    """
    if not isinstance(example_inputs, tuple):
        raise StructureError(
            f"trace takes the example inputs as a tuple, found {type(example_inputs).__name__}; "
            "write trace(model, (x,))"
        )
    refuse_foreign(model)
    around = Surroundings(model)
    try:
        structure = fake_or_real(model, example_inputs, around, vanish=vanish)
    except ForwardError as failure:
        if not runs(model, example_inputs, around):
            raise
        raise ours(model, failure.where, failure.__cause__ or failure) from failure
    except HalpieeError:
        raise
    except Exception as error:
        raise ours(model, "", error) from error
    around.clear()
    refuse_empty(model, structure)
    inputs = [list(x.shape[1:]) for x in example_inputs if isinstance(x, Tensor)]
    return replace(structure, details={**structure.details, "inputs": inputs})


def fake_or_real(
    model: nn.Module, example_inputs: tuple[Any, ...], around: Surroundings, *, vanish: bool
) -> Structure:
    """Traces on fake tensors; where the forward needs values, on real ones, and once more on others."""
    try:
        with uncollected():
            return with_constants(model, example_inputs, around, vanish=vanish)
    except NeedsValuesError:
        pass
    except ForwardError:  # tensors without values know less than real ones: of devices, of extensions
        if not runs(model, example_inputs, around):
            raise
    training = branches_by_mode(model)
    answers = constant_answers(model, example_inputs, around, training=training)
    if answers is None:
        answers = idle_answers(model, example_inputs, around, training=training)
    if answers is not None:
        try:
            with uncollected():
                return traced(model, example_inputs, around, real=False, vanish=vanish, answers=answers)
        except (NeedsValuesError, ForwardError):
            pass
    structure = traced(model, example_inputs, around, real=True, vanish=vanish, answers=answers)
    structure = replace(structure, details={**structure.details, "real": True})
    again = traced(
        model,
        random_like(example_inputs, torch.Generator().manual_seed(0)),
        around,
        real=True,
        vanish=vanish,
        answers=answers,
    )
    for one, other in zip_longest(structure.groups, again.groups):
        if one is None or other is None or bare(one) != bare(other):
            differing = one.name if one is not None and other is not None else "the number of groups"
            raise StructureError(
                f"the forward of {type(model).__name__} takes another path for other inputs (two traces disagree "
                f"on {differing}); trace the part of it that always runs alike, for example its backbone"
            )
    # how many objects a detector finds, smaller or not, decides what can be seen to follow: what stays in either stays
    groups = (
        other
        if one.prunable and not other.prunable
        else replace(one, may_vanish=one.may_vanish and other.may_vanish)
        for one, other in zip(structure.groups, again.groups, strict=True)
    )
    return replace(structure, groups=tuple(groups))


def with_constants(
    model: nn.Module, example_inputs: tuple[Any, ...], around: Surroundings, *, vanish: bool
) -> Structure:
    """Traces on fake tensors, constants with their values unless the forward writes into them what has none."""
    try:
        attempt = replace(FIRST, constants=True)
        return traced(model, example_inputs, around, real=False, vanish=vanish, attempt=attempt)
    except ConstantError:
        return traced(model, example_inputs, around, real=False, vanish=vanish)


def runs(model: nn.Module, example_inputs: tuple[Any, ...], around: Surroundings) -> bool:
    """Returns whether a copy of the model runs on copies of the inputs, outside any trace."""
    copied, inputs = copy_of(model).eval(), copy_of(example_inputs)
    try:
        with around.kept(), torch.no_grad():
            copied(*inputs)
    except Exception:  # whatever a forward raises
        return False
    return True


def ours(model: nn.Module, where: str, error: BaseException) -> StructureError:
    """Returns the error that says that a model runs and its trace does not."""
    return StructureError(
        f"{type(model).__name__} was to be traced{f' and failed at {where}' if where else ''} "
        f"({type(error).__name__}: {error}); the model runs on these inputs, so this is a fault of halpiee and not of "
        "the model: report it with this message, and meanwhile trace the part of the model without that layer"
    )


def bare(group: ChannelGroup) -> ChannelGroup:
    """Returns a group without what may hang on values: whether it stays, and why."""
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


@dataclass(frozen=True)
class Attempt:
    """What earlier traces of a model have taught."""

    # grouped layers, norms and attention modules whose units are positions across groups
    positions: frozenset[str] = frozenset()
    turned: frozenset[int] = frozenset()  # reshapes that keep whole rows of the channels they spread
    heads: bool = True  # whether attention modules that cannot lose heads are tried once more by positions
    constants: bool = False  # whether what hangs on no input, parameter or buffer is computed with its values


FIRST = Attempt()


def traced(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    around: Surroundings,
    *,
    real: bool,
    vanish: bool,
    answers: Answers | None = None,
    attempt: Attempt = FIRST,
) -> Structure:
    """Traces on fake or on real tensors.

    Args:
        model: the model.
        example_inputs: its inputs.
        around: what the model shares with its copies.
        real: whether on real tensors.
        vanish: whether to look for branches that may go.
        answers: what the forward reads of its tensors in Python, where it feeds no output.
        attempt: what earlier traces have taught.
    """

    def once_more(attempt: Attempt) -> Structure:
        return traced(
            model, example_inputs, around, real=real, vanish=vanish, answers=answers, attempt=attempt
        )

    recorder = recorded(model, example_inputs, around, real=real, answers=answers, attempt=attempt)
    positions, heads = recorder.positions, attempt.heads
    structure = assemble(recorder)
    held = frozen_heads(recorder)
    try:
        structure = Trial(model, example_inputs, around, recorder, real).verified(
            structure, lambda: heads and bool(frozen_heads(recorder) - held - positions)
        )
    except TurnError as turn:
        return once_more(replace(attempt, positions=positions, turned=attempt.turned | turn.places))
    whole = frozen_heads(recorder) - held - positions
    if whole and heads:
        return once_more(replace(attempt, positions=whole | positions, heads=False))
    return with_vanishing(model, example_inputs, around, recorder, structure) if vanish else structure


def recorded(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    around: Surroundings,
    *,
    real: bool = False,
    answers: Answers | None = None,
    attempt: Attempt = FIRST,
) -> Recorder:
    """Records a forward; again without ops that feed no output, and by positions where channels need it.

    The ops are those of the trace; whether the groups hold at other widths is for a trial to say.

    Args:
        model: the model.
        example_inputs: its inputs.
        around: what the model shares with its copies.
        real: whether on real tensors.
        answers: what the forward reads of its tensors in Python, where it feeds no output.
        attempt: what earlier traces have taught.
    """
    single = [path for path, module in model.named_modules() if (heads_of(module) or ("", 0))[1] == 1]
    positions = attempt.positions | frozenset(single)
    training, idle_ops = branches_by_mode(model), frozenset[int]()
    for _ in range(MAX_ROUNDS):
        recorder = Recorder({}, positions, turned=attempt.turned)
        recorder.idle_ops = idle_ops
        recorder.constants = attempt.constants
        recorder.answers = None if answers is None else answers.again()
        record(model, example_inputs, around, positions, None, recorder, real=real, training=training)
        count = needed(recorder.events, recorder.given, {*recorder.outputs, *recorder.read_by_python})
        if feeding_nothing := idle(recorder.events, count):
            idle_ops |= feeding_nothing
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
    found = set()
    for name, atoms in recorder.grouped.items():
        if heads_of(recorder.modules.get(name)) and int(recorder.units.find(atoms[:1])[0]) in reasons:
            found.add(name)
    return frozenset(found)


def with_vanishing(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    around: Surroundings,
    recorder: Recorder,
    structure: Structure,
) -> Structure:
    """Marks the groups that may vanish: a parallel path stays, and the forward runs without them."""
    roots = structure.details["roots"]
    candidates = [roots[g.start : g.start + g.size] for g in structure.prunable]
    verdicts = dict(zip(structure.prunable, vanishable(recorder, candidates), strict=True))
    # on real tensors: some ops, such as resizing, take none without channels, which fake ones do not tell
    trial = Trial(model, example_inputs, around, recorder, real=True)
    for tried in [
        [g for g, legal in verdicts.items() if legal],
        *([g] for g, legal in verdicts.items() if legal),
    ]:
        marked = tuple(replace(g, may_vanish=g in tried) for g in structure.groups)
        without = replace(structure, groups=marked)
        keep = {g.name: torch.zeros(g.size, dtype=torch.bool) for g in tried}
        if trial.run(without, keep)[1] is not None:
            verdicts.update(dict.fromkeys(tried, False) if len(tried) == 1 else {})
            continue
        if len(tried) != 1:
            break
    return replace(
        structure, groups=tuple(replace(g, may_vanish=verdicts.get(g, False)) for g in structure.groups)
    )


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
        where = name or type(module).__name__
        if hasattr(module, "parametrizations"):
            raise StructureError(
                f"the module {where!r} is parametrised, its weight is computed from other tensors; "
                "call torch.nn.utils.parametrize.remove_parametrizations first"
            )
        if "quantized" in type(module).__module__:
            raise StructureError(
                f"the module {where!r} is quantised; prune the float model, then quantise it"
            )
        if isinstance(module, torch.jit.ScriptModule):
            raise StructureError(
                f"the module {where!r} is compiled to TorchScript, whose forward cannot be watched; "
                "trace the module it was made from"
            )
        for hook in module._forward_pre_hooks.values():
            undo = COMPUTED_BY_HOOK.get(type(hook).__name__) or COMPUTED_BY_HOOK.get(type(hook).__module__)
            if undo is not None:
                raise StructureError(
                    f"the module {where!r} computes its weight from other tensors before each forward "
                    f"({type(hook).__name__}); call {undo} first"
                )
        for parameter_name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, UninitializedParameter):
                raise StructureError(
                    f"the parameter {parameter_name!r} of {where!r} has no shape yet; "
                    "run the model once first"
                )
            if type(parameter) not in (nn.Parameter, nn.Buffer) or type(parameter.data) is not torch.Tensor:
                raise StructureError(
                    f"the parameter {parameter_name!r} of {where!r} is a {type(parameter.data).__name__}, not a "
                    "plain tensor (quantised or distributed); trace the model before it is converted"
                )


COMPUTED_BY_HOOK = {
    "WeightNorm": "torch.nn.utils.remove_weight_norm",
    "SpectralNorm": "torch.nn.utils.remove_spectral_norm",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove",
}
"""Class or module of a hook that computes a module's weight → what ends it."""


JOINS = ("add", "add_", "cat")


def vanishable(recorder: Recorder, candidates: Sequence[Atoms]) -> list[bool]:
    """Returns for each group of candidates (its roots) whether it may vanish, all those that may together.

    Groups are taken in order; one that would leave a layer or an output with a constant alone, given those
    already taken, is left out, and asked again when others are taken: the first group of a bottleneck may go with the
    second. O(groups² · ops) at worst.
    """
    taken = np.zeros(0, dtype=np.int64)
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
            # what is summed over no channels is 0 everywhere
            ended = any(v in constant for v in dead) or not recorder.summed.isdisjoint(event.writes)
            (constant if ended else void).update(event.writes)
        elif any(v in constant for v in dead) and event.name not in JOINS:
            return False
    return not any(v in constant or v in void for v in recorder.outputs)
