"""Malformed files of every kind through the program: one sentence each, nothing executed, nothing written."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from halpiee.cli.networks import Traced, traced
from halpiee.structure import Plan
from halpiee.structure.plan import Selection
from latency import Profile

from . import test_recipes
from .mutations import files, mutated, spoiled
from .program import refusal, stop_at, typed
from .test_plans import MANY

NETWORK = ["resnet8", "--width", "0.25", "--size", "8"]


@cache
def small() -> Traced:
    return traced("resnet8", 1, (3, 8, 8), width=0.25)


def plan() -> Any:
    """Returns a plan of every second unit as JSON values."""
    keep = {g.name: torch.arange(g.size) % 2 == 0 for g in small().structure.prunable}
    path = Path("valid.json")
    Plan.from_selection(small().structure, Selection(keep), model="resnet8", arguments={"width": 0.25}).save(
        path
    )
    found = json.loads(path.read_text())
    path.unlink()
    return found


def profile() -> list[Any]:
    """Returns the lines of a profile of the network, where i → o channels take 1 + i · o / 10 µs."""
    cells = {}
    for op in (timed.op for timed in small().structure.ops):
        for i, o in itertools.product(range(1, op.c_in + 1), range(1, op.c_out + 1)):
            if not op.diagonal or i * op.c_out == o * op.c_in:
                key = op.with_channels(i, o).key()
                cells[json.dumps(key)] = {**key, "us": 1 + i * o / 10, "role": "sweep", "steps": [1, 1]}
    path = Path("valid.jsonl")
    Profile({"backend": "onnxruntime", "dtype": "float32", "threads": 1}, cells.values()).save(path)
    found = [json.loads(line) for line in path.read_text().splitlines()]
    path.unlink()
    return found


def jsonl(lines: list[Any]) -> st.SearchStrategy[bytes]:
    """Draws a file of lines one of whose first five is malformed, or whose bytes are spoiled."""
    whole = [json.dumps(line).encode() for line in lines]

    def with_line(at: int) -> st.SearchStrategy[bytes]:
        changed = mutated(lines[at]).map(lambda value: json.dumps(value).encode())
        return changed.map(lambda line: b"\n".join([*whole[:at], line, *whole[at + 1 :]]) + b"\n")

    broken = st.integers(0, min(4, len(lines) - 1)).flatmap(with_line)
    return st.one_of(broken, broken, spoiled(b"\n".join(whole[:4]) + b"\n"))


def yamls(valid: Any) -> st.SearchStrategy[bytes]:
    """Draws a malformed YAML file."""
    text = yaml.safe_dump(valid).encode()
    lines = text.splitlines(keepends=True)
    odd = st.tuples(st.integers(0, len(lines)), st.sampled_from(test_recipes.ODD_TEXTS)).map(
        lambda drawn: b"".join([*lines[: drawn[0]], drawn[1], *lines[drawn[0] :]])
    )
    return st.one_of(mutated(valid).map(lambda value: json.dumps(value).encode()), spoiled(text), odd)


RECIPE = {**test_recipes.VALID, "epochs": 2, "interval": 3}
STUDY: dict[str, Any] = {
    "about": "a study", "source": "a paper", "open": ["something"], "options": {"model": "resnet8", "width": 0.25},
    "grid": {"method": ["rigl", "set"], "sparsity": [0.5, 0.9]}, "values": ["accuracy"],
    "table": {"rows": ["sparsity"], "columns": ["method"], "values": ["accuracy"]},
    "figure": {"kind": "lines", "y": "accuracy", "x": "sparsity", "series": ["method"]},
    "smallest": {"options": {"epochs": 1}, "grid": {"sparsity": [0.5]}}, "needs": {"pixels": 8, "classes": 10},
}  # fmt: skip
COMPARISON = {
    "network": "resnet8", "width": 0.25, "data": "digits", "size": 8, "budgets": [0.5], "seeds": [0, 1],
    "contestants": ["uniform", "early"], "epochs": 2,
}  # fmt: skip
ENGINE = {
    "library": "tensorrt", "halpiee_version": "0", "onnx_sha256": "ab", "tensorrt": "10", "precision": "fp32",
    "batches": {"smallest": 1, "usual": 2, "largest": 3}, "settings": {"level": 3, "capabilities": []},
    "onnx": "a.onnx", "capabilities": [86], "engine_sha256": "aa", "seal": "b",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of file, and the command that reads it first."""

    file: str
    drawn: Callable[[], st.SearchStrategy[bytes]]
    command: list[str]
    beside: tuple[str, ...] = ()  # other files that must be there


KINDS = {
    "plan": Kind("plan.json", lambda: files(plan()), ["export", "--plan", "plan.json", "--out", "net.onnx"]),
    "profile": Kind(
        "p.jsonl", lambda: jsonl(profile()), ["plan", *NETWORK, "--budget", "0.8", "--profile", "p.jsonl"]
    ),
    "recipe": Kind(
        "r.yaml",
        lambda: yamls(RECIPE),
        ["train", *NETWORK, "--data", "digits", "--recipe", "r.yaml", "--out", "run"],
    ),
    "study": Kind(
        "s.yaml", lambda: yamls(STUDY), ["study", "s.yaml", "--data", "digits", "--size", "8", "--out", "out"]
    ),
    "comparison": Kind("c.yaml", lambda: yamls(COMPARISON), ["compare", "c.yaml", "--out", "out"]),
    "engine": Kind("a.engine.json", lambda: files(ENGINE), ["verify", "a.engine"], ("a.engine", "a.onnx")),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    stop_at(monkeypatch)
    monkeypatch.setattr("halpiee.cli.networks.traced", lambda *_, **__: small())
    return tmp_path


def refusals(kind: Kind, count: int, folder: Path) -> tuple[int, int]:
    """Returns how many of so many malformed files were refused, and how many were taken."""
    for name in kind.beside:
        (folder / name).write_bytes(b"something")
    found: list[str | None] = []

    @settings(MANY, max_examples=count)
    @given(kind.drawn())
    def one(text: bytes) -> None:
        (folder / kind.file).write_bytes(text)
        done = typed(kind.command, folder)
        found.append(refusal(done))
        for path in folder.iterdir():  # what a file that is none the worse has begun
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in {kind.file, *kind.beside}:
                path.unlink()

    one()
    return sum(said is not None for said in found), sum(said is None for said in found)


@pytest.mark.parametrize("name", KINDS)
def test_some_malformed_files_are_refused_in_one_sentence_by_the_program(name: str, here: Path) -> None:
    refused, _ = refusals(KINDS[name], 25, here)
    assert refused >= 10


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_500_malformed_files_are_refused_in_one_sentence_by_the_program(name: str, here: Path) -> None:
    refused, taken = refusals(KINDS[name], 500, here)
    assert refused + taken >= 500
    assert refused >= 200


@pytest.mark.parametrize("name", [name for name in KINDS if name != "engine"])
def test_the_file_itself_is_taken(name: str, here: Path) -> None:
    """So that what is refused is refused for what is wrong with it."""
    kind = KINDS[name]
    valid: Any = {"plan": plan, "profile": profile}.get(name) or {
        "recipe": RECIPE, "study": STUDY, "comparison": COMPARISON,
    }[name]  # fmt: skip
    value = valid() if callable(valid) else valid
    lines = value if name == "profile" else [value]
    (here / kind.file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert refusal(typed(kind.command, here)) is None


@pytest.mark.parametrize(
    ("axis", "value"), [("grid", []), ("grid", {}), ("smallest", {"grid": {"sparsity": []}})]
)
def test_a_study_without_trainings_is_refused(axis: str, value: object, here: Path) -> None:
    changes = {"grid": {**STUDY["grid"], "sparsity": value}} if axis == "grid" else {axis: value}
    (here / "s.yaml").write_text(json.dumps({**STUDY, **changes}))
    said = refusal(typed([*KINDS["study"].command, "--scale", "smallest"], here)) or ""
    assert "is no study: Expected" in said
    assert "of length >= 1" in said


@pytest.mark.parametrize(
    "changes", [{"onnx": "../a.onnx"}, {"batches": {"usual": "x"}}, {"precision": 3}, {"library": "none"}]
)
def test_what_an_engine_says_of_itself_is_checked(changes: dict[str, Any], here: Path) -> None:
    for name in ("a.engine", "a.onnx"):
        (here / name).write_bytes(b"something")
    (here / "a.engine.json").write_text(json.dumps({**ENGINE, **changes}))
    said = refusal(typed(["verify", "a.engine", "--trust-engine"], here)) or ""
    assert said.startswith("a.engine was to be verified, and no a.engine.json beside it says what it is")
