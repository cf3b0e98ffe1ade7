"""Trainings of networks of several inputs, whose data give a dictionary or a tuple for every example."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy

import halpiee
from halpiee.cli import export_int8
from halpiee.cli.app import program
from halpiee.cli.networks import Network
from halpiee.data.data import Data
from halpiee.data.functions import FunctionSource
from halpiee.data.loading import Loading
from halpiee.data.opening import open_data
from halpiee.errors import DataError, HalpieeError, UsageError
from halpiee.inputs import Input, called, ordered
from halpiee.saliency.score import score
from halpiee.training.config import Settings
from halpiee.training.loop import Trainer, evaluate

HERE = "tests.training.test_inputs"
INPUTS = ("--input", "image=3x6x6", "--input", "depth=1x6x6")


class Both(nn.Module):
    """conv(3→n) of the image plus conv(1→n) of the depth map times a gain, conv(n→n), mean, fc."""

    def __init__(self, num_classes: int, n: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, n, 3, padding=1), nn.Conv2d(1, n, 3, padding=1)
        self.mid, self.fc = nn.Conv2d(n, n, 3, padding=1), nn.Linear(n, num_classes)

    def forward(self, image: Tensor, depth: Tensor, gain: float = 1.0) -> Tensor:
        x = torch.relu(self.a(image) + self.b(depth) * gain)
        answer: Tensor = self.fc(torch.relu(self.mid(x)).mean((2, 3)))
        return answer


def net(num_classes: int = 6) -> Both:
    return Both(num_classes, 8)


def wide(num_classes: int = 6) -> Both:
    return Both(num_classes, 64)


class Scenes(torch.utils.data.Dataset[tuple[Any, int]]):
    """Class 3·d + c: channel c of the image is bright, and the depth map is far where d is 1."""

    def __init__(self, n: int, named: bool) -> None:
        generator = torch.Generator().manual_seed(n)
        self.targets = [i % 6 for i in range(n)]
        self.images = torch.rand(n, 3, 6, 6, generator=generator)
        self.depths = torch.rand(n, 1, 6, 6, generator=generator)
        for i, y in enumerate(self.targets):
            self.images[i, y % 3] += 1.0
            self.depths[i] += y // 3
        self.named = named

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        pair = (self.images[i], self.depths[i])
        return (dict(zip(("image", "depth"), pair, strict=True)) if self.named else pair), self.targets[i]


def named() -> tuple[Scenes, Scenes]:
    return Scenes(120, True), Scenes(36, True)


def placed() -> tuple[Scenes, Scenes]:
    return Scenes(120, False), Scenes(36, False)


def ragged() -> tuple[list[Any], list[Any]]:
    examples = [((torch.zeros(3, side, side), torch.zeros(1, 6, 6)), side % 2) for side in (6, 7, 6, 7)]
    return examples, examples


def opened(function: str, **loading: Any) -> Data:
    return open_data(FunctionSource(f"{HERE}:{function}"), Loading(workers=0, **loading))


def settings(function: str, **more: Any) -> Settings:
    options = {"epochs": 2, "batch_size": 12, "lr": 0.05, "seed": 3, **more}
    options = {"budget": "0.7", **options}
    return Settings.from_dict({"model": f"{HERE}:net", "data": f"{HERE}:{function}", **options})


def test_examples_keep_their_names_and_the_data_say_what_they_are_made_of() -> None:
    data, plain = opened("named"), opened("placed")
    assert data.inputs == (Input("image", (3, 6, 6)), Input("depth", (1, 6, 6)))
    assert [one.shape for one in plain.inputs] == [(3, 6, 6), (1, 6, 6)]
    (x, y), (pair, same) = (next(iter(d.batches(0, 12, seed=3))) for d in (data, plain))
    assert torch.equal(x["image"], pair[0])
    assert torch.equal(x["depth"], pair[1])
    assert torch.equal(y, same)
    # nothing is changed: every example is one that the dataset has
    scenes = Scenes(120, True)
    for image, depth, label in zip(x["image"], x["depth"], y.tolist(), strict=True):
        at = int((scenes.images == image).flatten(1).all(1).nonzero())
        assert torch.equal(scenes.depths[at], depth)
        assert scenes.targets[at] == label
    tail, whole = (list(data.batches(1, 12, seed=3, start=start)) for start in (7, 0))
    assert len(tail) == 3
    assert all(torch.equal(a["depth"], b["depth"]) for (a, _), (b, _) in zip(tail, whole[7:], strict=True))


@pytest.mark.parametrize("function", ["named", "placed"])
def test_a_training_of_two_inputs_is_plain_sgd_on_both(function: str) -> None:
    data, s = opened(function), settings(function, warmup=0.0, schedule="constant", weight_decay=0.0)
    torch.manual_seed(0)
    model = net()
    by_hand = copy.deepcopy(model)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), data, s)
    trainer.run()
    optimizer = torch.optim.SGD(by_hand.parameters(), 0.05, momentum=0.9)
    for epoch in range(2):
        for x, y in data.batches(epoch, 12, seed=3):
            image, depth = (x["image"], x["depth"]) if function == "named" else x
            optimizer.zero_grad()
            torch.autograd.backward(cross_entropy(by_hand(image, depth), y))
            optimizer.step()
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
    test = Scenes(36, True)
    right = (by_hand(test.images, test.depths).argmax(1) == torch.tensor(test.targets)).double().mean()
    assert evaluate(model, data)[0] == pytest.approx(float(right))


def flow_of(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What a convolution of magnitudes gives, never below 0."""
    assert conv.bias is not None
    return conv2d(x, conv.weight.detach().abs(), conv.bias.detach().abs(), padding=1)


def test_scores_of_two_inputs_are_weight_times_gradient() -> None:
    torch.manual_seed(0)
    model, scenes = net(), Scenes(24, True)
    y = torch.tensor(scenes.targets)
    found = score(model, [({"image": scenes.images, "depth": scenes.depths}, y)], "snip", units="weights")
    torch.autograd.backward(cross_entropy(model(scenes.images, scenes.depths), y))
    weights = dict(model.named_parameters())
    for name, value in found.items():
        grad = weights[name].grad
        assert grad is not None
        assert torch.allclose(value, (weights[name].detach() * grad).abs(), atol=1e-7)
    flow = score(model, [((scenes.images, scenes.depths), y)], "synflow", units="weights")
    last = flow_of(model.a, torch.ones(1, 3, 6, 6)) + flow_of(model.b, torch.ones(1, 1, 6, 6))
    last = flow_of(model.mid, last).mean((2, 3))
    # R = Σ |fc| · last + |bias|: the flow through a weight of fc is its magnitude times what reaches it
    assert torch.allclose(flow["fc.weight"].float(), model.fc.weight.detach().abs() * last, rtol=1e-4)


def test_inputs_are_put_where_forward_has_them() -> None:
    model, image, depth = net(), torch.rand(2, 3, 6, 6), torch.rand(2, 1, 6, 6)
    wanted = model(image, depth)
    for x in ((image, depth), {"depth": depth, "image": image}):
        assert torch.equal(called(model, x), wanted)
        assert torch.equal(model(*ordered(model, x)), wanted)


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (
            "named",
            ("--input", "image=3x6x6", "--input", "depth=2x6x6"),
            "gives inputs of 3×6×6 and 1×6×6 .*; ask for these",
        ),
        (
            "named",
            ("--input", "image=3x6x6", "--input", "dept=1x6x6"),
            "no such argument; did you mean 'depth'",
        ),
        ("named", ("--input", "image"), "give the name of forward's argument and its shape"),
        ("named", ("--augment", "flip"), "gives several inputs, which are taken as they come"),
        ("named", ("--size", "8"), "gives several inputs, .* and 8 was asked"),
        ("ragged", (), r"differ in size \(6×6, 7×7 …\); bring each input to one"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_a_sentence(
    function: str, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    words = ["train", f"{HERE}:net", "--data", f"{HERE}:{function}", "--sparsity", "0.5", "--method", "snip"]
    words += ["--no-baseline", "--workers", "0", "--bad-images", "0", "--epochs", "1", "--batch-size", "4"]
    shown = CliRunner().invoke(program, [*words, *options, "--out", str(tmp_path / "run")])
    assert isinstance(shown.exception, UsageError | DataError), shown.output
    with pytest.raises(HalpieeError, match=said):
        raise shown.exception


@pytest.mark.slow  # profiles, trains, exports and times a small network; then cuts and repairs it
def test_train_and_prune_take_a_network_of_two_inputs_to_a_latency(tmp_path: Path) -> None:
    run, cut = tmp_path / "run", tmp_path / "cut"
    common = ["--data", f"{HERE}:named", *INPUTS, "--budget", "0.75", "--workers", "0", "--out"]
    short = ["--method", "early", "--epochs", "4", "--batch-size", "12"]
    words = ["train", f"{HERE}:wide", *short, *common, str(run)]
    shown = CliRunner().invoke(program, [*words, "--json"])
    assert shown.exit_code in (0, 4), shown.exception or shown.output
    report = json.loads((run / "report.json").read_text())
    assert report["settings"]["inputs"] == ["image=3x6x6", "depth=1x6x6"]
    assert report["params_pruned"] < report["params_dense"]
    session = onnxruntime.InferenceSession(str(run / "pruned.onnx"), providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["image", "depth"]
    scenes = Scenes(36, True)
    answers = session.run(None, {"image": scenes.images.numpy(), "depth": scenes.depths.numpy()})[0]
    model = halpiee.load(run, trust=True)
    with torch.no_grad():
        assert np.allclose(answers, model(scenes.images, scenes.depths).numpy(), atol=1e-4)
    given = ["--weights", str(run / "dense.safetensors"), "--images", "64"]
    profile = ["--profile", str(run / "profile.jsonl")]
    options = ["--data", f"{HERE}:named", *INPUTS, "--budget", "0.75", *profile, "--out", str(cut)]
    shown = CliRunner().invoke(program, ["prune", f"{HERE}:wide", *given, *options, "--json"])
    assert shown.exit_code in (0, 4), shown.exception or shown.output
    pruned = json.loads((cut / "report.json").read_text())
    assert pruned["accuracy_pruned"] > 1 / 3
    assert len(pruned["repaired"]) == 4


def test_an_int8_file_is_calibrated_on_one_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(export_int8, "_data", lambda *_: (opened("named"), None))
    network = Network(net().eval(), (torch.zeros(1, 3, 6, 6), torch.zeros(1, 1, 6, 6)))
    given = export_int8.Quantising()
    with pytest.raises(
        UsageError, match="are 3×6×6 and 1×6×6; give --size the size of the images, of one input"
    ):
        export_int8.export_quantised(given, tmp_path / "net.onnx", network, named="net", ends={})
