"""The first layer is protected only where it does not share a residual stream."""

from __future__ import annotations

from halpiee.selection.options import first_group, protected
from halpiee.structure.groups import Layer

from .fakes import group, structure


def network(layers):
    groups = [group("input", 3, prunable=False), group("stem", 8), group("a", 8)]
    net = structure(groups, [])
    return type(net)(layers=tuple(layers), groups=net.groups, ops=(), slots=())


STEM = Layer("stem", "conv", (("input", 1),), (("stem", 1),))


def test_a_stem_of_its_own_is_protected():
    assert first_group(network([STEM, Layer("a", "conv", (("stem", 1),), (("a", 1),))])) == "stem"


def test_a_stem_that_shares_a_residual_stream_is_not():
    back = Layer("a2", "conv", (("a", 1),), (("stem", 1),))
    assert first_group(network([STEM, Layer("a", "conv", (("stem", 1),), (("a", 1),)), back])) is None


def test_a_network_without_layers_protects_nothing():
    assert first_group(network([])) is None


OWN = [STEM, Layer("a", "conv", (("stem", 1),), (("a", 1),))]


def test_a_depthwise_layer_behind_the_stem_hands_its_channels_on():
    # MobileNet-V1: the first pointwise layer reads the stem through a depthwise one.
    depthwise = Layer("dw", "conv", (("stem", 1),), (("stem", 1),))
    assert first_group(network([STEM, depthwise, OWN[1]])) == "stem"


def test_the_recipes_protect_resnet50_and_mobilenet_v1_alone():
    net = network(OWN)
    assert protected(net, "resnet50") == ("stem",)
    assert protected(net, "mobilenet_v1") == ("stem",)
    assert protected(net, "resnet18") == ()


def test_protection_can_be_asked_for_and_be_refused():
    net = network(OWN)
    assert protected(net, "resnet50", asked=False) == ()
    assert protected(net, "vgg16_bn", asked=True) == ("stem",)
    back = Layer("a2", "conv", (("a", 1),), (("stem", 1),))
    assert protected(network([*OWN, back]), "resnet50", asked=True) == ()
