"""The examples run, and what they show is true."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

import halpiee
import latency
from halpiee.methods.registry import METHODS
from halpiee.saliency.registry import REGISTRY as CRITERIA
from halpiee.tasks.task import REGISTRY as TASKS
from latency.backends import BACKENDS
from latency.backends.onnxruntime.ops import BUILDERS
from latency.op import OPS
from latency.timing.benchmark import Comparison
from tests.forgetting import forgetting

from ..latency.fakes import FakeBackend, staircase

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


def example(name: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What an example registers is gone after it."""
    kinds, builders = dict(OPS), dict(BUILDERS)
    with forgetting(CRITERIA, METHODS, BACKENDS, TASKS):
        yield
    OPS.clear()
    OPS.update(kinds)
    BUILDERS.clear()
    BUILDERS.update(builders)


@pytest.fixture
def imagined_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles of a device that needs no time: steps of eight channels; what is tested is not how long ops take."""
    sweep = functools.partial(latency.sweep, backend=FakeBackend(staircase(8)))
    monkeypatch.setattr(latency, "sweep", sweep)


def test_every_example_stands_in_the_list_and_is_run_here() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    here = Path(__file__).read_text(encoding="utf-8")
    for name in names:
        assert f"[{name}.py]({name}.py)" in listed
        assert f'example("{name}")' in here


def test_the_new_criterion_is_the_square_of_taylors_gate_on_one_batch() -> None:
    shown = example("new_criterion")
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.BatchNorm2d(6),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(96, 4),
    )
    structure = halpiee.trace(model, (torch.zeros(1, 3, 6, 6),))
    batches = [(torch.randn(8, 3, 6, 6), torch.randint(4, (8,)))]
    fisher = halpiee.score(model, batches, shown.Fisher(), units=structure)
    taylor = halpiee.score(model, batches, "taylor", units=structure)
    assert fisher.keys() == taylor.keys()
    for name in taylor:
        torch.testing.assert_close(fisher[name], taylor[name] ** 2)


def test_the_new_criterion_ranks_channels_and_prunes_weights(capsys: pytest.CaptureFixture[str]) -> None:
    scores = example("new_criterion").main()
    assert {tuple(values.shape) for values in scores.values()} == {(8,)}
    weights = 3 * 8 * 9 + 8 * 8 * 9 + 8 * 4
    assert f"weights kept: {weights // 2}\n" in capsys.readouterr().out


@pytest.mark.slow  # trains a small network twice
@pytest.mark.usefixtures("imagined_device")
def test_the_own_loop_interrupted_twice_ends_where_the_uninterrupted_one_does(tmp_path: Path) -> None:
    loop = example("own_loop")
    whole = loop.train(tmp_path / "whole")
    parts = tmp_path / "parts"
    loop.train(parts, stop_at=23)  # within a cycle
    loop.train(parts, stop_at=85)  # after the cut
    resumed = loop.train(parts)
    expected = whole.state_dict()
    assert expected.keys() == resumed.state_dict().keys()
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, expected[name]), name
    dense = loop.network()
    assert sum(p.numel() for p in whole.parameters()) < sum(p.numel() for p in dense.parameters())
    assert loop.accuracy(whole) > 0.6


class Counting:
    """Stands for a target on which a network takes 1 µs a weight and 2,000 µs a call."""

    threads = 2

    def ready(self, model: torch.nn.Module, example: Any) -> float:
        return 2000.0 + sum(p.numel() for p in model.parameters())

    def compare(self, networks: dict[str, float], example: Any, *, rounds: int) -> Comparison:
        return Comparison({name: [us] * 30 for name, us in networks.items()}, "cpu", {})


@pytest.mark.slow  # trains a small network, exports and times it
@pytest.mark.usefixtures("imagined_device")
def test_the_unet_interrupted_twice_is_the_one_that_was_not_and_meets_half_its_latency(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = example("unet")
    clock = Counting()
    monkeypatch.setattr(shown, "ON", clock)
    parts = tmp_path / "parts"
    for at in (15, 50):  # within a cycle, and after the cut
        assert shown.main(parts, stop_at=at) == {"stopped at": at}
    found = shown.main(parts)
    assert found["masked_vs_compact"] < 1e-5
    assert found["onnx_rel_l2"] < 1e-5
    assert found["error_pruned"] < found["error_noisy"] / 2

    (tmp_path / "whole").mkdir()
    whole, _ = shown.train(parts / "dense.pt", tmp_path / "whole")
    # what was saved loads into what the plan leaves of a fresh network, with two calls
    again = halpiee.load(parts / "plan.json", model=shown.UNet(), weights=parts / "pruned.pt")
    assert whole.state_dict().keys() == again.state_dict().keys()
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name
    assert 0.4 < clock.ready(whole, None) / clock.ready(shown.UNet(), None) <= 0.51


@pytest.mark.slow  # trains a small network, exports and times it
@pytest.mark.usefixtures("imagined_device")
def test_a_timm_network_is_fine_tuned_under_its_budget(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the example is of timm's networks")
    found = example("timm_network").main("test_resnet", tmp_path)
    assert found["predicted_share"] <= 0.6
    assert found["onnx_rel_l2"] < 1e-5
    assert (tmp_path / "test_resnet.onnx").exists()


@pytest.mark.slow  # trains a small network twice, exports and times it
def test_photos_as_they_come_train_a_timm_network_that_is_loaded_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("timm", reason="the example is of a network of timm's")
    from halpiee.cli.app import program
    from halpiee.training import pipeline as price
    from halpiee.training import stage

    shown, sweep = example("photos"), latency.sweep

    def imagined(ops: Any, **how: Any) -> latency.Profile:
        return sweep(ops, backend=FakeBackend(staircase(8)), path=how["path"], fixed=how["fixed"])

    def here(words: list[str], **how: Any) -> SimpleNamespace:
        done = CliRunner().invoke(program, words[3:])
        said.append(done.stderr + str(done.exception or ""))
        return SimpleNamespace(returncode=done.exit_code)

    said: list[str] = []
    monkeypatch.setattr(latency, "sweep", imagined)
    monkeypatch.setattr(price, "calibrate", lambda *_, **__: latency.Calibration())
    monkeypatch.setattr(stage, "close_loop", lambda model, cost, example, candidate, **_: (cost, []))
    monkeypatch.setattr(shown, "subprocess", SimpleNamespace(run=here))

    photos = shown.make_photos(tmp_path / "photos")
    (photos / "train" / "unsorted").mkdir()
    with pytest.raises(SystemExit):
        shown.main(tmp_path / "refused", photos=photos)
    assert "train/ has no image of the class 'unsorted'" in said.pop()
    (photos / "train" / "unsorted").rmdir()

    answers = shown.main(tmp_path, photos=photos)
    assert answers == {"cat": "cat", "dog": "dog", "owl": "owl"}
    assert all(
        name in said[0] for name in ("torn.png", "empty.jpg", "'module.'", "the head fc is drawn anew")
    )
    assert {"half.onnx", "int8.onnx"} <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") == 5
    tuned, first = halpiee.load(tmp_path / "tuned"), halpiee.load(tmp_path / "elsewhere")
    assert {k: v.shape for k, v in tuned.state_dict().items()} == {
        k: v.shape for k, v in first.state_dict().items()
    }


def test_a_criterion_and_a_schedule_of_ones_own_decide_what_is_exchanged() -> None:
    shown = example("methods_compared")
    model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(1, 2, bias=False))
    for layer, row in zip(model, ([[3.0, -4.0]], [[6.0], [8.0]]), strict=True):
        layer.weight.data = torch.tensor(row)
    scores = halpiee.score(model, [], "relative", units="weights")
    torch.testing.assert_close(scores["0.weight"], torch.tensor([[0.6, 0.8]]))  # over ‖(3, 4)‖ = 5
    torch.testing.assert_close(scores["1.weight"], torch.tensor([[0.6], [0.8]]))  # over ‖(6, 8)‖ = 10

    _, explored, method = shown.train(shown.CONTESTANTS["mine"], seed=0)
    weights = 16 * 9 + 32 * 16 * 9 + 4 * 128
    active = round(0.1 * weights)
    drops = [event for event in method.reports if event.event == "prune"]
    assert [event.step for event in drops] == list(range(10, 120, 10))
    # half of the active weights in a straight line to none at step 120
    gone = [active - event.used for event in drops]
    assert gone == pytest.approx([0.5 * (1 - step / 120) * active for step in range(10, 120, 10)], abs=1)
    assert {event.used for event in method.reports if event.event == "grow"} == {active}
    assert 0.1 < explored < 1


@pytest.mark.slow  # trains five small networks
def test_methods_are_compared_at_one_density_and_one_length() -> None:
    shown = example("methods_compared")
    found = shown.main(seeds=1)
    assert found.keys() == shown.CONTESTANTS.keys()
    assert all(accuracy > 0.6 for [accuracy] in found.values())


def test_the_new_method_keeps_the_same_ratio_in_every_round() -> None:
    shown = example("new_method")
    # of 640 weights: 640 · 0.1^(1/4) = 359.9, 640 · 0.1^(2/4) = 202.4, 640 · 0.1^(3/4) = 113.8, 64
    assert shown.main() == [360, 202, 114, 64]


def test_the_new_backend_times_ops_and_networks_and_its_plan_is_faster() -> None:
    said: list[str] = []
    found = example("new_backend").main(said.append)
    assert found["predicted"] <= 0.5
    assert found["measured"] > 1.2
    assert len(said) == 2


def test_a_backend_and_a_kind_of_op_take_forty_lines_each_at_most() -> None:
    lines = (EXAMPLES / "new_backend.py").read_text(encoding="utf-8").splitlines()
    begun, ended = (lines.index(line) for line in ('@latency.backend("numpy")', 'OPS["square"] = OpSpec()'))
    assert (
        sum(bool(line.strip()) for line in lines[begun : lines.index("class Perceptron(latency.Runner):")])
        <= 40
    )
    assert lines.index("def main(say: Callable[[str], object] = print) -> dict[str, float]:") - ended <= 40


def test_the_new_task_has_a_name_and_its_network_counts() -> None:
    from halpiee.tasks import named

    shown = example("new_task")
    assert type(named("counting")) is shown.Counting
    task = shown.Counting()
    assert float(task.loss(torch.tensor([[1.0], [3.0]]), torch.tensor([2, 3]))) == 0.5
    metric = task.metric(6)
    metric.add(torch.tensor([[1.0], [3.4], [0.6]]), torch.tensor([2, 3, 0]))
    assert metric.figures() == {"near": pytest.approx(1 / 3)}
    assert shown.main()["near"] > 0.9


def test_a_task_takes_forty_lines_at_most() -> None:
    lines = (EXAMPLES / "new_task.py").read_text(encoding="utf-8").splitlines()
    begun, ended = (
        lines.index(line) for line in ("class Near(halpiee.Metric):", "def dots() -> tuple[Pair, Pair]:")
    )
    assert sum(bool(line.strip()) for line in lines[begun:ended]) <= 40


@pytest.mark.slow  # trains, reloads and exports a YOLO
@pytest.mark.usefixtures("imagined_device")
@pytest.mark.filterwarnings("default")  # Ultralytics uses what its own dependencies will drop
@pytest.mark.parametrize(
    ("name", "method"), [("yolov8n", "iee"), ("yolo11n-seg", "iee"), ("yolo26n-cls", "halp")]
)
def test_a_yolo_cut_in_ultralytics_training_is_the_one_that_ultralytics_loads(
    name: str, method: str, tmp_path: Path
) -> None:
    ultralytics = pytest.importorskip("ultralytics", reason="needs pip install 'halpiee[yolo]'")
    shown = example("yolo")
    found = shown.main(name, tmp_path, method=method)
    assert found["cut_at"] < 12, "16 images in batches of 8, six times"
    assert found["predicted_share"] <= 0.5
    assert found["difference"] == 0
    assert found["onnx_rel_l2"] < 1e-5

    fresh = ultralytics.YOLO(f"{name}.yaml").model.yaml
    dense = type(ultralytics.YOLO(found["checkpoint"]).model)(fresh, nc=3, verbose=False)
    planned = halpiee.Plan.load(found["plan"]).apply(dense)
    assert found["parameters"] == sum(p.numel() for p in planned.parameters())
    assert found["dense_parameters"] == sum(p.numel() for p in dense.parameters()) > found["parameters"]


@pytest.mark.slow  # trains a YOLO of the smallest images, twice
@pytest.mark.usefixtures("imagined_device")
@pytest.mark.filterwarnings("default")
def test_a_pruned_yolo_trains_on_at_its_widths(tmp_path: Path) -> None:
    ultralytics = pytest.importorskip("ultralytics", reason="needs pip install 'halpiee[yolo]'")
    shown = example("yolo")
    data = shown.images(tmp_path / "images", "classify", 32)
    pruning = shown.Pruning(0.5, tmp_path / "profile.jsonl")
    place = {"project": str(tmp_path), "exist_ok": True, "data": str(data), "imgsz": 32, "batch": 8, "nbs": 8}
    model = pruning.attach(ultralytics.YOLO("yolov8n-cls.yaml"))
    model.train(epochs=6, name="first", **shown.SETTINGS, **place)
    first = model.trainer.last
    shapes = {k: v.shape for k, v in ultralytics.YOLO(first).model.state_dict().items()}
    before = {k: v.clone() for k, v in ultralytics.YOLO(first).model.state_dict().items()}
    shown.train_on(first, epochs=1, name="second", **place)
    after = ultralytics.YOLO(tmp_path / "second" / "weights" / "last.pt").model.state_dict()
    assert {k: v.shape for k, v in after.items()} == shapes
    assert any(not torch.equal(v, before[k]) for k, v in after.items())


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The example's package as pip would leave it: its module and its entry points on the path, which is returned."""
    home = EXAMPLES / "own_package"
    project = tomllib.loads((home / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1\n")
    groups = (
        f"[{group}]\n" + "".join(f"{name} = {module}\n" for name, module in points.items())
        for group, points in project["entry-points"].items()
    )
    (told / "entry_points.txt").write_text("\n".join(groups))
    for path in (tmp_path, home):
        monkeypatch.syspath_prepend(str(path))
    yield os.pathsep.join([str(EXAMPLES.parent), str(home), str(tmp_path)])
    sys.modules.pop("own_pruning", None)


@pytest.mark.usefixtures("own_package")
def test_the_criterion_of_the_own_package_is_found_by_name_and_prefers_no_large_filters() -> None:
    import halpiee

    assert "own_pruning" not in sys.modules
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 1, bias=False), torch.nn.Conv2d(3, 2, 1, bias=False))
    model[0].weight.data = torch.tensor([2.5, -1.75, 1.0]).reshape(3, 1, 1, 1)
    model[1].weight.data = torch.tensor([[3.0, -3.0, 0.0], [1.0, 1.0, 1.0]]).reshape(2, 3, 1, 1)
    scores = halpiee.score(model, [], "mean-magnitude", units="filters")
    assert [found.flatten().tolist() for found in scores.values()] == [[2.5, 1.75, 1.0], [2.0, 1.0]]
    kept = halpiee.prune_once(model, "mean-magnitude", halpiee.Global(0.6), units="filters")
    # by Σ|w| both filters of the second layer, 6 and 3, would come before the 1.75
    assert [mask.flatten().tolist() for mask in kept.values()] == [[True, True, False], [True, False]]


@pytest.mark.usefixtures("own_package")
def test_the_backend_of_the_own_package_tells_every_op_and_network_by_its_formula() -> None:
    from own_pruning import network  # type: ignore[import-not-found]

    import halpiee

    model, example = network(), (torch.zeros(1, 3, 8, 8),)
    ops = [timed.op for timed in halpiee.trace(model, example).ops]
    profile = latency.sweep(ops, backend="formula", holdout=0)
    # 27,648 and 294,912 multiplications, 2,048 numbers to average, 128 weights of 4 bytes to read; half a µs each
    expected = [0.5 + 2.7648, 0.5 + 29.4912, 0.5 + 0.2048, 0.5 + 0.0512]
    found = [float(profile.table(op).lookup(op.c_in, op.c_out)) for op in ops]
    assert found == pytest.approx(expected, abs=1e-3)
    measured = latency.measure(model, example_inputs=example, backend="formula", rounds=9)
    assert measured.median_us == pytest.approx(34.512, abs=1e-3)


@pytest.mark.slow  # ten seconds: whole trainings, exports and proofs
def test_the_parts_of_the_own_package_are_those_of_a_run(own_package: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (
        "train own_pruning:network --data own_pruning:data --backend formula --method early --epochs 2 --json"
    )
    asked = [*command.split(), "--criterion", "mean-magnitude", "--budget", "0.5", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "halpiee", *asked],
        env={**os.environ, "PYTHONPATH": own_package},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["settings"]["masks"]["criterion"] == "mean-magnitude"
    assert report["dense_us"] == pytest.approx(34.512, abs=1e-3)
    assert report["measured_us"] <= 1.03 * 0.5 * report["dense_us"]
