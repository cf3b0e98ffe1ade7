"""Which sides of ops never change."""

from __future__ import annotations

from halpiee.selection.options import fixed_sides

from .fakes import conv, group, residual, structure


def test_the_image_and_the_classes_are_fixed_and_nothing_else() -> None:
    net = residual()
    found = {timed.layer: fixed_sides(net)[timed.op] for timed in net.ops}
    assert found["stem"] == (True, False)
    assert found["head"] == (False, True)
    assert {sides for layer, sides in found.items() if layer not in ("stem", "head")} == {(False, False)}


def test_an_op_that_occurs_twice_is_fixed_where_both_are() -> None:
    sizes = {"a": 8, "b": 8, "c": 8}
    ops = [conv("one", (("a", 1),), (("b", 1),), sizes), conv("two", (("b", 1),), (("c", 1),), sizes)]
    assert ops[0].op == ops[1].op
    net = structure([group("a", 8, prunable=False), group("b", 8), group("c", 8, prunable=False)], ops)
    assert fixed_sides(net) == {ops[0].op: (False, False)}
