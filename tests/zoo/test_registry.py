"""What a MODEL string resolves to, and what a wrong one says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from halpiee import zoo
from halpiee.errors import UsageError


def test_a_zoo_name_builds_the_project_network_with_its_arguments() -> None:
    model = zoo.build("resnet20", width=2, num_classes=7)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 7)
    assert isinstance(model.conv1, nn.Conv2d)
    assert model.conv1.out_channels == 32


def test_names_lists_the_zoo() -> None:
    assert zoo.names() == (
        "mobilenet_v1",
        "mobilenet_v1_cifar",
        "resnet18_modified",
        "resnet20",
        "resnet50_cifar",
        "resnet56",
        "resnet8",
        "ssd512_resnet50",
        "vgg11_bn",
        "vgg13_bn",
        "vgg16_bn",
        "vgg19_bn",
        "vgg2_16_bn",
        "wrn14_10",
        "wrn14_8",
        "wrn20_8",
        "wrn22_2",
        "wrn32_2",
    )


def test_a_torchvision_name_builds_it_without_weights() -> None:
    model = zoo.build("squeezenet1_1", num_classes=5)
    assert isinstance(model, torchvision.models.SqueezeNet)
    assert model.num_classes == 5


def test_the_prefix_reaches_a_torchvision_network_of_the_same_name() -> None:
    assert isinstance(zoo.resolve("torchvision/vgg16_bn"), type(lambda: None))
    assert zoo.resolve("vgg16_bn") is zoo.vgg16_bn


def test_an_unknown_name_suggests_the_closest_ones() -> None:
    with pytest.raises(
        UsageError, match=r"the model 'resnet21' is not one of .*did you mean 'resnet.*"
    ) as caught:
        zoo.build("resnet21")
    assert "'resnet20'" in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_argument_that_the_builder_does_not_take_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"'resnet20' was asked for with \(depth=3\).*leave out the arguments"
    ):
        zoo.build("resnet20", depth=3)


def test_a_path_builds_the_network_of_a_users_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_little_net.py").write_text(
        "from torch import nn\ndef make(n=3):\n    return nn.Linear(2, n)\ndef number():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path])
    model = zoo.build("my_little_net:make", n=4)
    assert isinstance(model, nn.Linear)
    assert model.out_features == 4
    with pytest.raises(UsageError, match=r"asks for 'mak', .*did you mean 'make'"):
        zoo.build("my_little_net:mak")
    with pytest.raises(
        UsageError, match=r"must be a function that returns a torch.nn.Module, it returned int"
    ):
        zoo.build("my_little_net:number")


def test_a_module_that_does_not_import_is_named() -> None:
    with pytest.raises(UsageError, match="asks for the module 'no_such_module_here', which does not import"):
        zoo.build("no_such_module_here:make")
