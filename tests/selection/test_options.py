"""Which sides of ops never change, and which groups stay whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from halpiee.selection.options import first_group, fixed_sides, protected
from halpiee.structure.groups import Layer

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


def network(layers: Sequence[Layer]) -> Any:
    groups = [group("input", 3, prunable=False), group("stem", 8), group("a", 8)]
    net = structure(groups, [])
    return type(net)(layers=tuple(layers), groups=net.groups, ops=(), slots=())


STEM = Layer("stem", "conv", (("input", 1),), (("stem", 1),))


def test_a_stem_of_its_own_is_protected() -> None:
    assert first_group(network([STEM, Layer("a", "conv", (("stem", 1),), (("a", 1),))])) == "stem"


def test_a_stem_that_shares_a_residual_stream_is_not() -> None:
    back = Layer("a2", "conv", (("a", 1),), (("stem", 1),))
    assert first_group(network([STEM, Layer("a", "conv", (("stem", 1),), (("a", 1),)), back])) is None


def test_a_network_without_layers_protects_nothing() -> None:
    assert first_group(network([])) is None


OWN = [STEM, Layer("a", "conv", (("stem", 1),), (("a", 1),))]


def test_a_depthwise_layer_behind_the_stem_hands_its_channels_on() -> None:
    # MobileNet-V1: the first pointwise layer reads the stem through a depthwise one.
    depthwise = Layer("dw", "conv", (("stem", 1),), (("stem", 1),))
    assert first_group(network([STEM, depthwise, OWN[1]])) == "stem"


def test_the_recipes_protect_resnet50_and_mobilenet_v1_alone() -> None:
    net = network(OWN)
    assert protected(net, "resnet50") == ("stem",)
    assert protected(net, "mobilenet_v1") == ("stem",)
    assert protected(net, "resnet18") == ()


def test_protection_can_be_asked_for_and_be_refused() -> None:
    net = network(OWN)
    assert protected(net, "resnet50", asked=False) == ()
    assert protected(net, "vgg16_bn", asked=True) == ("stem",)
    back = Layer("a2", "conv", (("a", 1),), (("stem", 1),))
    assert protected(network([*OWN, back]), "resnet50", asked=True) == ()
