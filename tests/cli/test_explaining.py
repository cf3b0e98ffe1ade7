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
