"""Ops of one's own: frozen without a rule, prunable with one, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import halpiee
from halpiee.errors import StructureError
from halpiee.structure import explain, trace, verify
from halpiee.structure.rules import RULES


@torch.library.custom_op("halpiee_tests::gate", mutates_args=())
def gate(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@torch.library.custom_op("halpiee_tests::fold", mutates_args=())
def fold(x: Tensor) -> Tensor:
    """Adds the right half of an image to the left one."""
    return x[..., : x.shape[-1] // 2] + x[..., x.shape[-1] // 2 :]


@torch.library.custom_op("halpiee_tests::turn", mutates_args=())
def turn(x: Tensor) -> Tensor:
    return x.flip(1)


gate.register_fake(lambda x: torch.empty_like(x))
fold.register_fake(lambda x: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)))
turn.register_fake(lambda x: torch.empty_like(x))


@pytest.fixture(autouse=True)
def rules_given_back() -> Iterator[None]:
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


class Net(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.a, self.b, self.name = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), name

    def forward(self, x: Tensor) -> Any:
        y: Tensor = getattr(torch.ops.halpiee_tests, self.name)(self.a(x))
        return self.b(y).mean((2, 3))


IMAGE = torch.zeros(2, 3, 12, 14)


def test_an_op_of_ones_own_freezes_what_it_touches() -> None:
    structure = trace(Net("gate").eval(), (IMAGE,))
    assert structure.prunable == ()
    assert structure.by_name["a"].reason == "gate"
    assert structure.details["untimed"] == {"gate": 1}


@pytest.mark.parametrize(("name", "kind"), [("gate", "pointwise"), ("fold", "spatial"), ("gate", "same")])
def test_with_a_rule_its_channels_can_go_exactly(name: str, kind: str) -> None:
    halpiee.add_rule(f"halpiee_tests::{name}", kind)  # type: ignore[arg-type]
    model = Net(name).eval()
    structure = trace(model, (IMAGE,))
    assert [g.name for g in structure.prunable] == ["a"]
    keep = {"a": torch.tensor([True, False, True, True, False, False, True, False])}
    assert verify(model, structure, keep, (IMAGE,)) <= 1e-5


def test_a_pointwise_op_takes_no_time_of_its_own() -> None:
    halpiee.add_rule("halpiee_tests::gate", "pointwise")
    assert trace(Net("gate").eval(), (IMAGE,)).details["untimed"] == {}


def test_a_rule_may_be_a_function() -> None:
    def turned(recorder: halpiee.structure.Recorder, call: halpiee.structure.Call) -> None:
        """Channels in reverse order."""
        tag = recorder.tag(call.tensors[0])
        recorder.set(call.out, tag.with_axes([axis[:, ::-1] for axis in tag.axes]))

    halpiee.add_rule("halpiee_tests::turn", turned)
    model = Net("turn").eval()
    structure = trace(model, (IMAGE,))
    assert [g.name for g in structure.prunable] == ["a"]
    columns = next(s for s in structure.slots if s.tensor == "b.weight" and s.side == "in")
    rows = next(s for s in structure.slots if s.tensor == "a.weight" and s.side == "out")
    assert columns.units.tolist() == rows.units.tolist()[::-1]
    keep = {"a": torch.tensor([True, False, True, True, False, False, True, False])}
    assert verify(model, structure, keep, (IMAGE,)) <= 1e-5


def test_a_wrong_rule_is_found_out_by_the_proof() -> None:
    halpiee.add_rule("halpiee_tests::turn", "same")
    model = Net("turn").eval()
    structure = trace(model, (IMAGE,))
    keep = {"a": torch.tensor([True, False, True, True, False, False, True, False])}
    with pytest.raises(halpiee.HalpieeError, match="a fault of the pruning"):
        verify(model, structure, keep, (IMAGE,))


@pytest.mark.parametrize(
    ("name", "rule", "said"),
    [
        ("gate", "pointwise", "add_rule takes the name of an op as namespace::op, found 'gate'"),
        ("a::b::c", "pointwise", "add_rule takes the name of an op as namespace::op, found 'a::b::c'"),
        ("halpiee_tests::gate", "pointwse", "did you mean 'pointwise'"),
        (
            "aten::cat",
            "pointwise",
            "'aten::cat' was given a rule, and it has one already; leave out the second",
        ),
    ],
)
def test_what_is_no_rule_is_refused(name: str, rule: str, said: str) -> None:
    with pytest.raises(StructureError) as raised:
        halpiee.add_rule(name, rule)  # type: ignore[arg-type]
    assert said in str(raised.value)


def test_the_same_rule_may_be_added_twice_and_another_one_not() -> None:
    halpiee.add_rule("halpiee_tests::gate", "pointwise")
    halpiee.add_rule("halpiee_tests::gate", "pointwise")
    with pytest.raises(StructureError, match="it has one already"):
        halpiee.add_rule("halpiee_tests::gate", "same")


def test_a_printed_structure_is_a_table() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.Linear(144, 10)
    )
    structure = trace(model.eval(), (torch.zeros(1, 3, 8, 8),))
    assert str(structure).splitlines() == [
        "layer  kind     in  out   MACs  output channels",
        "0      conv      3    8  7,776  group 0",
        "2      conv      8    4  1,152  group 2",
        "4      linear  144   10  1,440  stay: feeds the network's output",
        "3 layers, 10,368 MACs for one input; 2 of 4 groups can lose units",
    ]
    assert explain(structure).layers[0].macs == 7776
