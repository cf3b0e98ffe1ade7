"""Malformed and hostile plans: one sentence, exit 2, nothing executed, nothing written."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings

import halpiee
from halpiee.cli.app import program
from halpiee.cli.networks import from_plan
from halpiee.errors import UsageError
from halpiee.structure import Plan
from halpiee.zoo import build
from latency import Profile

from .conftest import content, one_sentence, refusal
from .mutations import files

MANY = settings(
    max_examples=500,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
    derandomize=True,
)
DRAWS = pytest.mark.parametrize("n", [100, pytest.param(500, marks=pytest.mark.slow)])
ARGUMENTS = {"width": 0.25, "num_classes": 4}


@cache
def record() -> dict[str, Any]:
    """Returns a plan of a narrow ResNet-8 as JSON values."""
    structure = halpiee.trace(build("resnet8", **ARGUMENTS).eval(), (torch.zeros(1, 3, 8, 8),))
    keep = {g.name: torch.arange(g.size) % 2 == 0 for g in structure.prunable}
    chosen: Any = SimpleNamespace(keep=keep, latency_us=77.0)
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "plan.json"
        target = {"device": "a CPU", "backend": "onnxruntime", "dtype": "float32", "batch": 1, "threads": 1}
        Plan.from_selection(structure, chosen, model="resnet8", arguments=ARGUMENTS, target=target).save(path)
        found: dict[str, Any] = json.loads(path.read_text())
    return found


def exported(folder: Path, *options: object) -> Result:
    arguments = ["export", "--out", folder / "net.onnx", "--plan", folder / "plan.json", *options]
    return CliRunner().invoke(program, [str(option) for option in arguments])


def written(folder: Path, **changes: object) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps({**record(), **changes}))
    return path


@DRAWS
def test_a_malformed_plan_is_refused_in_one_sentence_or_is_a_plan(tmp_path: Path, n: int) -> None:
    refused: list[str] = []

    @settings(MANY, max_examples=n)
    @given(files(record()))
    def one(text: bytes) -> None:
        if text not in known:
            path = tmp_path / "plan.json"
            path.write_bytes(text)
            said = refusal(lambda: Plan.load(path))
            assert said is None or (one_sentence(said) and str(path) in said), said
            known[text] = [said] if said else []
            assert content(tmp_path) == {"plan.json": text}
        refused.extend(known[text])

    known: dict[bytes, list[str]] = {}  # a fifth is drawn twice
    one()
    assert len(refused) > 0.6 * n  # the others are plans still: an unknown target, another latency


@pytest.mark.slow
def test_what_a_malformed_plan_leaves_is_a_proved_network_or_one_sentence(tmp_path: Path) -> None:
    @settings(MANY, max_examples=150)
    @given(files(record()))
    def one(text: bytes) -> None:
        path = tmp_path / "plan.json"
        path.write_bytes(text)
        said = refusal(lambda: from_plan(path, (3, 8, 8)))
        assert said is None or one_sentence(said), said

    one()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("subprocess:getoutput", {"cmd": "touch owned"}),
        ("os:system", {"command": "touch owned"}),
        ("forbidden_code:call", {}),
        ("builtins:exec", {"source": "open('owned', 'w')"}),
        ("hf-hub:someone/something", {}),
        ("local-dir:/tmp/x", {}),
    ],
)
@pytest.mark.parametrize("verb", ["export", "bench"])
def test_a_plan_runs_no_code(
    verb: str, name: str, arguments: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, model=name, arguments=arguments)
    before = content(tmp_path)
    done = exported(tmp_path) if verb == "export" else CliRunner().invoke(program, ["bench", str(path)])
    assert isinstance(done.exception, UsageError), done.output
    assert str(done.exception) == (
        f"the plan {path} names the network {name!r}, which is code to import and call; files may name networks of the "
        "zoo, torchvision and timm only: if you know the file, type the name as MODEL before --plan, or --trust-plan"
    )
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights", "DEFAULT"),
        ("pretrained", True),
        ("checkpoint_path", "evil.pth"),
        ("pretrained_cfg_overlay", None),
        ("num_classes", 1e12),
        ("num_classes", float("nan")),
        ("num_classes", 10**400),
        ("norm_layer", "os.system"),
        ("layers", [[1]]),
    ],
)
def test_a_plan_makes_a_known_network_load_nothing_and_grow_no_further(
    key: str, value: object, tmp_path: Path
) -> None:
    path = written(tmp_path, model="torchvision/resnet18", arguments={key: value})
    for typed in ((), ("torchvision/resnet18",)):
        done = exported(tmp_path, *typed)
        assert isinstance(done.exception, UsageError), done.output
        assert f"the plan {path} builds 'torchvision/resnet18' with {key!r}" in str(done.exception)
        assert str(done.exception).endswith("if you know the file, type --trust-plan")


def test_a_function_that_is_typed_or_trusted_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_of_plans.py").write_text(
        "from halpiee.zoo import build\ndef net(**kwargs): return build('resnet8', **kwargs)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    written(tmp_path, model="mine_of_plans:net")
    assert exported(tmp_path).exception is not None
    done = exported(tmp_path, "mine_of_plans:net")
    assert done.exception is None, done.exception
    (tmp_path / "net.onnx").unlink()
    done = exported(tmp_path, "--trust-plan")
    assert done.exception is None, done.exception


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_units": True}, "holds True at n_units, where int is expected"),
        ({"n_units": 2**65}, "holds 36893488147419103232 at n_units, where int <= 67108864 is expected"),
        ({"groups": {}}, "holds {} at groups, where array is expected"),
        ({"groups": [{"name": "a", "start": 0, "size": 2}]}, "lacks the field 'kept' at groups[0]"),
        (
            {"groups": [{"name": "a", "start": 0, "size": 2, "kept": [0, "1"]}]},
            "holds '1' at groups[0].kept[1], where int is expected",
        ),
        (
            {"groups": [{"name": "a", "start": 0, "size": 2, "kept": [1, 0]}]},
            "contradicts itself: group 'a' of 2 units keeps 0 behind 1",
        ),
        ({"latency_us": "77"}, "holds '77' at latency_us, where float | null is expected"),
        ({"slots": {"conv1.weight": {"9": []}}}, "holds another name at slots[...]"),
        (
            {"slots": {"nowhere": {"0": [[0, 1, 4]]}}},
            "contradicts itself: dimension 0 of tensor 'nowhere' is sliced, which has 0",
        ),
        ({"slots": {"conv1.weight": {"0": [[0, 1, 2**26]]}}}, "dimension 0 of tensor 'conv1.weight' has 4 positions"),
        ({"attributes": [["conv1", "__class__", None, [], 1, 1]]}, "'__class__' of module 'conv1' is no attribute"),
        ({"attributes": [["conv1", "in_channels", None, [], 1, 0]]}, "at attributes[0][5], where int >= 1"),
        ({"model": 3}, "holds 3 at model, where str is expected"),
        ({"inputs": [[3, 2**25, 4]]}, "contradicts itself: inputs are of shape"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_with_its_place(changes: dict[str, object], said: str, tmp_path: Path) -> None:
    path = written(tmp_path, **changes)
    found = refusal(lambda: Plan.load(path)) or ""
    assert said in found
    assert found.startswith(f"the plan {path} ")
    assert found.endswith("; write it again with halpiee plan")


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(UsageError, match="is larger than 64 MiB, which no such file is"):
        Plan.load("/dev/zero")


def test_a_pipe_is_read_to_its_end_and_not_waited_for_where_nobody_writes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match=r"is not JSON \(Expecting value"):
        Plan.load(tmp_path / "pipe")
    plan = written(tmp_path)
    reader, writer = os.pipe()
    slow = subprocess.Popen(["sh", "-c", f"sleep 0.2; cat '{plan}'"], stdout=writer)
    os.close(writer)
    try:
        assert Plan.load(f"/dev/fd/{reader}") == Plan.load(plan)
    finally:
        os.close(reader)
        slow.wait()


@pytest.mark.parametrize(
    "path", ["", "folder", "empty", "huge", "loop", "folder/gone", "empty/below", "a\0b"]
)
def test_what_holds_no_plan_is_refused_in_one_sentence(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for name, size in (("empty", 0), ("huge", 2**31)):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, size)
    (tmp_path / "loop").symlink_to("loop")
    for load in (Plan.load, Profile.load):
        with pytest.raises(UsageError) as refused:
            load(path)
        assert one_sentence(str(refused.value))


def test_a_plan_of_another_network_is_said_before_memory_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, model="torchvision/vgg16", arguments={"num_classes": 4})
    done = exported(tmp_path)
    assert isinstance(done.exception, UsageError)
    assert f"the plan {path}" in str(done.exception)
