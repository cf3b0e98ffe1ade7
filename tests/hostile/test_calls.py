"""Mistakes in Python calls: one sentence that says what was given and what to give, no traceback of our own."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import halpiee
import latency
from halpiee.errors import HalpieeError, StructureError
from halpiee.structure import Plan
from halpiee.structure.plan import Selection
from tests.selection.fakes import FormulaProfile, residual

pruning: Any = halpiee  # called with what its types do not allow
timing: Any = latency
saved: Any = Plan

STRUCTURE = residual()
COST: Any = halpiee.LatencyCost(STRUCTURE, FormulaProfile(conv=lambda i, o: i * o, linear=lambda i, o: i * o))
SCORES = {group.name: torch.arange(1.0, group.size + 1) for group in STRUCTURE.prunable}
SMALL: Any = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
TRACED = halpiee.trace(SMALL, (torch.zeros(1, 4),))
KEEP = {"0": torch.arange(8) < 5}


def optimizer(model: Any = SMALL) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def iee(**given: Any) -> Any:
    arguments = {"budget": halpiee.Global(0.5), "total_steps": 40, "h": 4, "j": 2, "q": 4} | given
    return halpiee.IEE(SMALL, optimizer(), **arguments)


PAIR = torch.zeros(2, 4)
PAIRS = "give [(inputs, targets), …], or a data loader"


def scored(batches: Any) -> Any:
    return pruning.score(SMALL, batches, "taylor", units="weights")


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "a list as keep": (lambda: pruning.shrink(SMALL, TRACED, [KEEP]), "a keep of type list"),
    "a state dict as model": (
        lambda: pruning.shrink(SMALL.state_dict(), TRACED, KEEP),
        "a model of type OrderedDict",
    ),
    "no structure": (lambda: pruning.masked(SMALL, None, KEEP), "a structure of type NoneType"),
    "an optimizer's class": (
        lambda: pruning.shrink(SMALL, TRACED, KEEP, torch.optim.SGD),
        "an optimizer of type type",
    ),
    "another model's optimizer": (
        lambda: pruning.shrink(SMALL, TRACED, KEEP, optimizer(nn.Linear(4, 8))),
        "trains no parameter of this model",
    ),
    "a dict as selection": (lambda: saved.from_selection(TRACED, KEEP), "a keep of type NoneType"),
    "a list as counts": (lambda: COST.total_us([3]), "counts of type list"),
    "a path as calibration": (
        lambda: pruning.LatencyCost(STRUCTURE, COST.profile, "x"),
        "a calibration of type str",
    ),
    "text as gap": (lambda: pruning.select(SCORES, COST, 90, gap="x"), "a gap of type str"),
    "a tensor as inputs": (
        lambda: timing.measure(SMALL, torch.zeros(1, 4)),
        "example inputs of type Tensor",
    ),
    "text as threads": (
        lambda: timing.measure(SMALL, (torch.zeros(1, 4),), threads="2"),
        "threads of type str",
    ),
    "a structure as ops": (lambda: timing.sweep(TRACED), "ops to time of type Structure"),
    "an end of nothing": (lambda: iee(end=0), "end=0; give more than 0 and at most 1"),
    "an end behind the end": (lambda: iee(end=2), "end=2; give more than 0 and at most 1"),
    "steps as text": (lambda: iee(total_steps="40"), "total_steps=40; give"),
    "steps without end": (lambda: iee(total_steps=10**12), "total_steps=1000000000000; give"),
    "parts of a step": (lambda: iee(total_steps=2.5), "total_steps=2.5; give"),
    "a seed as text": (lambda: iee(seed="a"), "seed=a; give at least 0 and at most 2,147,483,647"),
    "a seed below 0": (lambda: iee(seed=-1), "seed=-1; give"),
    "a model as units": (
        lambda: pruning.score(SMALL, [(torch.zeros(1, 4), torch.tensor([1]))], "taylor", units=SMALL),
        "units=Sequential was asked",
    ),
    "rounds as text": (
        lambda: pruning.prune_once(SMALL, "magnitude", pruning.Global(0.5), rounds="3"),
        "rounds='3' was asked",
    ),
    "a list of shapes": (lambda: pruning.sparsity.erk([(3, 4)], 0.5), "shapes of type list"),
    "truth as a number": (lambda: pruning.sparsity.NM(True, 4), "integers with 0 < N <= M"),
    "inputs in a tuple": (lambda: scored((PAIR,)), PAIRS),
    "inputs in a list": (lambda: scored([PAIR, PAIR]), PAIRS),
    "inputs alone in a batch": (lambda: scored([(PAIR,)]), PAIRS),
    "no targets": (lambda: scored((PAIR, None)), PAIRS),
    "no targets in a batch": (lambda: scored([(PAIR, None)]), PAIRS),
    "no density": (lambda: pruning.Uniform(None), "density is the share that is kept"),
    "no plan": (lambda: saved.load(None), "give the path of the file that halpiee plan writes"),
    "a name for ops": (
        lambda: timing.sweep("conv"),
        "an op to time of type str was given; give [timed.op",
    ),
    "no op among ops": (lambda: timing.sweep([None]), "an op to time of type NoneType was given"),
    "a number for a plan": (lambda: saved.load(3), "give the path of the file"),
    "no ops": (lambda: timing.sweep([]), "no ops to time were given; give [timed.op"),
    "classes as floats": (lambda: scored((PAIR, torch.tensor([0.0, 1.0]))), "of dtype int64 from 0 on"),
    "a class too many": (lambda: scored((PAIR, torch.tensor([0, 3]))), "Target 3 is out of bounds"),
    "a class too few": (
        lambda: scored((PAIR, torch.tensor([0]))),
        "give as targets the class of each example",
    ),
    "a budget that no float holds": (
        lambda: pruning.prune_once(SMALL, "magnitude", 10**400),
        "a budget of 1000",
    ),
    "a latency that no float holds": (lambda: pruning.Latency(us=10**400), "give a positive number"),
    "a folder as history": (
        lambda: pruning.analysis.History.load("."),
        "give a file that History.save wrote",
    ),
    "a file that is not there": (
        lambda: pruning.deploy.stamp(Path("gone.onnx"), {}),
        "'gone.onnx'); give the path of another file, as help(stamp) says",
    ),
    "networks to compare with none": (lambda: timing.compare({}), "give {name: model}, one or more"),
    "bytes that are no model": (lambda: timing.measure(b"x"), "1 bytes were given, which are no ONNX model"),
    "a plan of no model": (
        lambda: saved.from_selection(TRACED, Selection(KEEP)).apply(None),
        "a model of type NoneType",
    ),
    "a plan to nowhere": (
        lambda: saved.from_selection(TRACED, Selection(KEEP)).save(None),
        "a plan's path of type NoneType",
    ),
    "a ramp from nowhere": (
        lambda: pruning.GMP(SMALL, optimizer(), budget=0.5, total_steps=40, interval=4, first=float("nan")),
        "resizes every 4 steps between nan% and",
    ),
    "a method of no model": (
        lambda: pruning.GMP(None, optimizer(), budget=0.5, total_steps=40, interval=4),
        " was called with model of type NoneType",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_a_call_cannot_take_is_one_sentence(name: str) -> None:
    call, says = CALLS[name]
    with pytest.raises(HalpieeError) as caught:
        call()
    assert says in str(caught.value)
    assert ";" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_second_method_on_the_same_weights_is_refused_until_the_first_is_detached() -> None:
    """As where a cell of a notebook runs twice."""
    trained = optimizer()
    given: dict[str, Any] = {"budget": halpiee.Global(0.5), "total_steps": 40, "h": 4, "j": 2, "q": 4}
    first = halpiee.IEE(SMALL, trained, **given)
    with pytest.raises(HalpieeError, match="IEE masks the same weights already through this SGD"):
        halpiee.GMP(SMALL, trained, budget=halpiee.Global(0.3), total_steps=40, interval=4)
    first.detach()
    halpiee.GMP(SMALL, trained, budget=halpiee.Global(0.3), total_steps=40, interval=4)


def test_scores_may_be_arrays_and_lists() -> None:
    wanted = pruning.select(SCORES, COST, 90).counts
    assert pruning.select({k: v.numpy() for k, v in SCORES.items()}, COST, 90).counts == wanted
    assert pruning.select({k: v.tolist() for k, v in SCORES.items()}, COST, 90).counts == wanted


def test_steps_of_numpy_are_steps() -> None:
    assert iee(total_steps=np.int64(40)).finished is False


def test_an_error_of_torch_within_a_forward_is_told_by_its_first_line() -> None:
    with pytest.raises(StructureError, match="check the inputs") as caught:
        pruning.trace(nn.Conv2d(3, 8, 1), (np.zeros((1, 3, 8, 8)),))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"slots": {}}, "unit 5 is cut, and lies in no tensor"),
        ({"latency_us": float("nan")}, "latency_us is nan"),
        ({"gap": float("inf")}, "gap is inf"),
    ],
)
def test_a_plan_whose_parts_do_not_belong_together_is_refused(
    change: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """Units 5, 6 and 7 of the first layer go; by hand."""

    class Selection:
        keep = KEEP

    saved.from_selection(TRACED, Selection()).save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "changed.json").write_text(json.dumps(record | change))
    with pytest.raises(StructureError, match=says):
        saved.load(tmp_path / "changed.json")


def test_a_plan_without_groups_is_refused_and_not_taken_for_the_dense_network(tmp_path: Path) -> None:
    saved.from_selection(TRACED, Selection(KEEP)).save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(record | {"groups": []}))
    said = "no group, and so would cut nothing; write it again with halpiee plan"
    with pytest.raises(StructureError, match=said):
        saved.load(tmp_path / "none.json")


FACES = (
    "halpiee", "halpiee.analysis", "halpiee.deploy", "halpiee.report", "halpiee.saliency", "halpiee.sparsity",
    "halpiee.structure", "halpiee.studies", "halpiee.tasks", "halpiee.zoo", "latency",
)  # fmt: skip
WRONG: tuple[Any, ...] = (None, "x", 3.5, {}, [None], torch.zeros(2), object())


def public() -> Iterator[tuple[str, Any]]:
    """Yields the functions and classes of every face."""
    for face in FACES:
        home = import_module(face)
        for name in home.__all__:
            found = getattr(home, name)
            if inspect.isfunction(found) or (isinstance(found, type) and not issubclass(found, Exception)):
                yield f"{face}.{name}", found


CALLABLE = dict(public())


@pytest.mark.parametrize("name", CALLABLE)
def test_what_a_public_name_cannot_take_is_one_sentence_that_names_the_argument(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every parameter without a default is given a value of a type that few of them take."""
    monkeypatch.chdir(tmp_path)
    needed = [p for p in inspect.signature(CALLABLE[name]).parameters.values() if p.default is p.empty]
    plain = [p.name for p in needed if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    named = [p.name for p in needed if p.kind is p.KEYWORD_ONLY]
    for value in WRONG if plain or named else ():
        said = message(lambda: CALLABLE[name](*(value for _ in plain), **dict.fromkeys(named, value)))  # noqa: B023
        assert said is None or "\n" not in said
        told = re.search(r" was called with (\w+) of type ", said or "")
        assert told is None or told[1] in plain + named


def message(call: Callable[[], object]) -> str | None:
    """Returns what a call is refused with, or says of an argument of no such name; any other error comes through."""
    try:
        call()
    except HalpieeError as error:
        return str(error)
    except TypeError as error:
        if "argument" not in str(error):
            raise
        return str(error)
    return None


def test_an_error_of_what_was_rightly_given_comes_through() -> None:
    """A criterion, a loss or a data loader of the user's own fails as it does anywhere."""

    def broken(*_: object) -> Any:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pruning.score(SMALL, [(PAIR, torch.tensor([0, 1]))], "taylor", units="weights", loss_fn=broken)
