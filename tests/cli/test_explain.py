"""``halpiee explain`` says whether a plan leaves the first group whole."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from halpiee.cli.app import program


@pytest.mark.parametrize(
    ("model", "first", "protected"),
    [
        ("mobilenet_v1", "features.0", ["features.0"]),  # the depthwise layer behind it hands its channels on
        ("mobilenet_v1_cifar", "features.0", []),  # of the first layer alone, and no recipe protects it
        ("resnet20", None, []),  # the stem writes into the residual stream
    ],
)
def test_the_first_group_is_shown(model: str, first: str | None, protected: list[str]) -> None:
    shown = CliRunner().invoke(program, ["explain", model, "--size", "32", "--width", "0.25", "--json"])
    assert shown.exception is None, shown.exception
    found = json.loads(shown.stdout)
    assert (found["first_group"], found["protected"]) == (first, protected)


def test_a_network_of_two_inputs_is_asked_for_both_by_name() -> None:
    pytest.importorskip("torchvision")
    shown = CliRunner().invoke(program, ["explain", "raft_small", "--size", "128"])
    assert shown.exit_code != 0
    said = str(shown.exception)
    assert said.startswith("raft_small takes other inputs than 3×128×128 ('image2')")
    assert said.endswith("name each of them: --input NAME=SHAPE --input …")


def test_layers_say_which_side_can_go_and_groups_what_they_weigh() -> None:
    shown = CliRunner().invoke(
        program, ["explain", "mobilenet_v1_cifar", "--size", "32", "--width", "0.25", "--json"]
    )
    found = json.loads(shown.stdout)
    layers = {layer["name"]: layer for layer in found["layers"]}
    first = layers["features.0"]
    assert (first["in_prunable"], first["out_prunable"]) == (False, True)
    group = next(g for g in found["groups"] if g["name"] == first["out_groups"][0])
    macs = sum(layers[name]["macs"] for name in {member.rpartition(".")[0] for member in group["members"]})
    assert group["macs_share"] == pytest.approx(macs / sum(layer["macs"] for layer in layers.values()))
    assert found["unread"] == []
