"""Malformed and hostile recipes: one sentence, exit 2, nothing executed, nothing written, and no waiting."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from halpiee.cli.app import program
from halpiee.errors import UsageError
from halpiee.options import nested
from halpiee.recipes import read
from halpiee.training.config import Settings

from .conftest import content, one_sentence, refusal
from .mutations import mutated, spoiled
from .test_plans import DRAWS, MANY

VALID: dict[str, Any] = {
    "about": "GraNet on CIFAR",
    "source": "a paper",
    "open": ["the first", "the second"],
    "method": "granet",
    "sparsity": 0.9,
    "distribution": "erk",
    "initial": 0.5,
    "epochs": 160,
    "batch-size": 128,
    "lr": 0.1,
    "drops": ["80/160", 0.75],
    "drop": 0.1,
    "weight-decay": "5e-4",
    "nesterov": False,
    "interval": 1000,
}
ODD_TEXTS = (
    b"- *a\n", b"&a [", b"<<: *x\n", b"? [a]\n: b\n", b"!!python/object/apply:os.system ['touch owned']\n",
    b"!!python/name:os.system\n", b"epochs: !!binary x\n", b"epochs: 2001-99-99\n", b"epochs: 1:1:1:1\n",
    b"epochs: 0x" + b"f" * 400 + b"\n", b"seed: " + b"9" * 5000 + b"\n", b"\x85", b"\xef\xbb\xbf", b"%YAML 9.9\n",
    b"---\n---\n",
    b"model: forbidden_code:call\n", b"data: forbidden_code:call\n", b"[" * 3000, b"{a: " * 3000,
    b"!!int x: 1\n", b"!!float []\n",
    b"epochs: !!timestamp x\n", b"? !!set {a, b}\n",
)  # fmt: skip


@st.composite
def yamls(draw: st.DrawFn) -> bytes:
    """Draws the bytes of a malformed recipe."""
    if draw(st.booleans()):
        return json.dumps(draw(mutated(VALID))).encode()
    text = yaml.safe_dump(VALID).encode()
    if draw(st.booleans()):
        return draw(spoiled(text))
    lines = text.splitlines(keepends=True)
    at = draw(st.integers(0, len(lines)))
    return b"".join([*lines[:at], draw(st.sampled_from(ODD_TEXTS)), *lines[at:]])


@DRAWS
def test_a_malformed_recipe_is_refused_in_one_sentence_or_is_a_recipe(tmp_path: Path, n: int) -> None:
    refused: list[str] = []
    path = tmp_path / "mine.yaml"

    def use() -> Settings:
        return Settings.from_dict(
            nested(Settings, {"model": "resnet20", "data": "digits", **read(path).options})
        )

    @settings(MANY, max_examples=n)
    @given(yamls())
    def one(text: bytes) -> None:
        if text not in known:
            path.write_bytes(text)
            said = refusal(use)
            assert said is None or one_sentence(said), said
            known[text] = [said] if said else []
            assert content(tmp_path) == {"mine.yaml": text}
        refused.extend(known[text])

    known: dict[bytes, list[str]] = {}  # a quarter is drawn twice
    one()
    assert len(refused) > 0.6 * n


@pytest.mark.parametrize("key", ["model", "data"])
def test_a_recipe_names_code_only_where_it_is_typed(key: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"{key}: forbidden_code:call\nbudget: 0.5\n")
    given = {"model": ["resnet20"], "data": ["--data", "digits"]}
    typed = [word for name, words in given.items() if name != key for word in words]
    done = CliRunner().invoke(
        program, ["train", *typed, "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]
    )
    assert isinstance(done.exception, UsageError)
    assert f"names the {key} 'forbidden_code:call', which is code to import and call" in str(done.exception)
    assert not (tmp_path / "run").exists()


def test_anchors_that_multiply_are_refused_at_once(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "r.yaml").write_text("\n".join(levels))
    said = refusal(lambda: read(tmp_path / "r.yaml")) or ""
    assert "is nested more than 16 deep, has more than 16 aliases or more than 10,000 parts" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epochs: 3\nepochs: 4\n", "is not YAML: 'epochs' stands twice"),
        (
            "epochs: nan\n",
            "hold 'epochs': 'nan' (str); it takes a whole number, at least 1 and at most 1,000,000",
        ),
        (
            "lr: .nan\n",
            "hold 'lr': nan (float); it takes a number or a share such as 80/160, more than 0 and at most",
        ),
        ("lr: 1e300\n", "hold 'lr': '1e300' (str)"),
        ("width: -1\n", "hold 'width': -1 (int)"),
        ("open: 3\n", "holds 3 at open, where"),
        (
            "!!python/object/apply:os.system ['true']\n",
            "is not YAML: could not determine a constructor for the tag",
        ),
        ("[" * 5000, "is nested more than 16 deep"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert said in (refusal(lambda: read(tmp_path / "r.yaml")) or "")
