"""What is missing or of no use as an argument is refused in one sentence that says what to give."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import halpiee
import latency
from halpiee.errors import StructureError, UsageError
from halpiee.structure import Plan, trace
from halpiee.structure.plan import Selection

X = torch.zeros(2, 3)
PAIRS = "give [(inputs, targets), …], or a data loader"


def scored(batches: Any) -> Any:
    return halpiee.score(nn.Linear(3, 2), batches, "taylor", units="weights")


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "inputs in a tuple": (lambda: scored((X,)), PAIRS),
    "inputs in a list": (lambda: scored([X, X]), PAIRS),
    "inputs alone in a batch": (lambda: scored([(X,)]), PAIRS),
    "no targets": (lambda: scored((X, None)), PAIRS),
    "no targets in a batch": (lambda: scored([(X, None)]), PAIRS),
    "no density": (lambda: halpiee.Uniform(None), "density is the share that is kept"),  # type: ignore[arg-type]
    "no plan": (lambda: Plan.load(None), "give the path of the file that halpiee plan writes"),  # type: ignore[arg-type]
    "a name for ops": (
        lambda: latency.sweep(cast(Any, "conv")),
        "an op to time of type str was given; give [timed.op",
    ),
    "no op among ops": (lambda: latency.sweep([cast(Any, None)]), "an op to time of type NoneType was given"),
    "a number for a plan": (lambda: Plan.load(3), "give the path of the file"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_missing_is_named_and_the_sentence_says_what_to_give(name: str) -> None:
    call, advice = CALLS[name]
    with pytest.raises(UsageError) as raised:
        call()
    assert advice in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_plan_without_groups_is_refused_and_not_taken_for_the_dense_network(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    structure = trace(net, (X,))
    keep = {g.name: torch.arange(g.size) > 2 for g in structure.prunable}
    Plan.from_selection(structure, Selection(keep)).save(tmp_path / "plan.json")
    record = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "none.json").write_text(json.dumps(record | {"groups": []}))
    with pytest.raises(
        StructureError, match="no group, and so would cut nothing; write it again with halpiee plan"
    ):
        Plan.load(tmp_path / "none.json")
