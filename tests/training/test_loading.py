"""A compact network is loaded in two lines, with torch and halpiee alone, and nothing that a file names is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import halpiee
from halpiee.errors import HalpieeError, StructureError, UsageError
from halpiee.structure import Plan, shrink, trace
from halpiee.structure.plan import Selection
from halpiee.tasks.task import named
from halpiee.training.checkpoint import save_settings
from halpiee.training.config import Settings
from halpiee.zoo import build

IMAGE = torch.zeros(1, 3, 32, 32)


def half(model: nn.Module, name: str = "resnet8") -> tuple[Plan, nn.Module]:
    """A plan of every second unit, and the network that is left by shrink."""
    structure = trace(model, (IMAGE,))
    keep = {g.name: torch.arange(g.size) % 2 == 0 for g in structure.prunable}
    selection = Selection(keep)
    arguments = {"num_classes": 7}
    return Plan.from_selection(structure, selection, model=name, arguments=arguments), shrink(
        model, structure, keep
    )


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module]:
    """A folder as a finished run leaves it, and its compact network."""
    torch.manual_seed(0)
    plan, compact = half(build("resnet8", num_classes=7).eval())
    folder = tmp_path / "run"
    folder.mkdir()
    save_settings(folder, Settings(model="resnet8", data="cifar10:elsewhere", budget="0.5"))
    plan.save(folder / "plan.json")
    save_file(compact.state_dict(), folder / "pruned.safetensors")
    return folder, compact.eval()


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)))
    return found


def test_a_run_is_loaded_as_it_was_trained(run: tuple[Path, nn.Module]) -> None:
    folder, compact = run
    loaded = halpiee.load(folder)
    assert not loaded.training
    assert torch.equal(outputs(loaded), outputs(compact))


def test_two_lines_are_enough_where_only_torch_and_halpiee_are(run: tuple[Path, nn.Module]) -> None:
    folder, compact = run
    lines = f"""
import sys
for name in ("torchvision", "onnx", "onnxruntime", "onnxscript", "sklearn", "pyarrow", "PIL", "matplotlib", "timm"):
    sys.modules[name] = None
import halpiee
model = halpiee.load({str(folder)!r})
import torch
x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
print(model.training, float(model(x).double().sum()))
"""
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mode, total = done.stdout.split()
    assert mode == "False"
    assert float(total) == pytest.approx(float(outputs(compact).double().sum()), rel=1e-6)


def test_a_run_without_a_plan_has_the_classes_of_its_weights(run: tuple[Path, nn.Module]) -> None:
    folder, _ = run
    torch.manual_seed(2)
    whole = build("resnet8", num_classes=7).eval()
    (folder / "plan.json").unlink()
    save_file(whole.state_dict(), folder / "pruned.safetensors")
    assert torch.equal(outputs(halpiee.load(folder)), outputs(whole))


def test_a_plan_takes_the_weights_of_the_model_that_is_given(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build("resnet8", num_classes=7).eval()
    plan, compact = half(model)
    plan.save(tmp_path / "half.json")
    assert torch.equal(outputs(halpiee.load(tmp_path / "half.json", model=model)), outputs(compact.eval()))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize("dense", [True, False])
def test_a_plan_takes_weights_of_the_dense_network_or_of_the_compact_one(
    tmp_path: Path, dense: bool, ending: str
) -> None:
    torch.manual_seed(0)
    model = build("resnet8", num_classes=7).eval()
    plan, compact = half(model)
    plan.save(tmp_path / "half.json")
    save = save_file if ending == "safetensors" else torch.save
    save((model if dense else compact).state_dict(), tmp_path / f"weights.{ending}")
    loaded = halpiee.load(tmp_path / "half.json", weights=tmp_path / f"weights.{ending}")
    assert torch.equal(outputs(loaded), outputs(compact.eval()))


def test_nothing_that_a_file_names_is_run_unless_it_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(
        "from pathlib import Path\nfrom halpiee.zoo import build\n"
        f"Path({str(tmp_path / 'ran')!r}).touch()\n"
        "def net(num_classes):\n    return build('resnet8', num_classes=num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    plan, _ = half(build("resnet8", num_classes=7).eval(), "theirs:net")
    plan.save(tmp_path / "plan.json")
    with pytest.raises(UsageError, match=r"'theirs:net', which is code to import and call.*give trust=True"):
        halpiee.load(tmp_path / "plan.json")
    assert not (tmp_path / "ran").exists()
    assert isinstance(halpiee.load(tmp_path / "plan.json", trust=True), nn.Module)
    assert (tmp_path / "ran").exists()


def test_a_run_from_elsewhere_that_names_code_is_refused(run: tuple[Path, nn.Module]) -> None:
    folder, _ = run
    values = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(values | {"model": "os:getcwd"}))
    with pytest.raises(UsageError, match="which is code to import and call"):
        halpiee.load(folder)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("settings.json", "was named as the folder of a run, and holds none"),
        ("pruned.safetensors", "holds no finished run; finish it with `halpiee train --resume"),
    ],
)
def test_a_folder_that_lacks_something_is_refused(
    run: tuple[Path, nn.Module], missing: str, said: str
) -> None:
    (run[0] / missing).unlink()
    with pytest.raises(UsageError) as raised:
        halpiee.load(run[0])
    assert said in str(raised.value)


def test_a_plan_of_another_network_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    plan, _ = half(build("resnet8", num_classes=7).eval())
    plan.save(tmp_path / "plan.json")
    with pytest.raises(StructureError):
        halpiee.load(tmp_path / "plan.json", model=build("resnet8", num_classes=9))
    with pytest.raises(HalpieeError):
        halpiee.load(tmp_path / "nothing.json")


@pytest.mark.parametrize("given", [False, True])
def test_a_run_of_another_task_is_loaded_as_the_task_trains_it(tmp_path: Path, given: bool) -> None:
    """A segmenter gives logits alone where torchvision's network gives a dictionary, and its weights have a prefix."""
    name = "lraspp_mobilenet_v3_large"
    torch.manual_seed(0)
    model = build(name, num_classes=7).eval()
    plan, compact = half(named("segmentation").network(model).eval(), name)
    save_settings(tmp_path, Settings(model=name, task="segmentation", data="a:b", budget="0.5"))
    plan.save(tmp_path / "plan.json")
    save_file(compact.state_dict(), tmp_path / "pruned.safetensors")
    loaded = halpiee.load(tmp_path, model=model) if given else halpiee.load(tmp_path)
    answer = outputs(loaded)
    assert answer.shape == (2, 7, 32, 32)
    assert torch.equal(answer, outputs(compact.eval()))
