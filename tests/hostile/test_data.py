"""Data that no training survives: one sentence each, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from halpiee.cli.app import program
from halpiee.data import functions
from halpiee.data.opening import load
from halpiee.errors import DataError, UsageError

from .conftest import one_sentence

Y = torch.tensor([0, 1, 2, 3] * 3)


def images(channels: int = 3, **changes: float) -> torch.Tensor:
    x = torch.rand(12, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    for place, value in changes.items():
        x[int(place[2:]), 0, 0, 0] = value
    return x


def raising() -> Any:
    raise KeyError("no such\ntable")


class Torn:
    """A dataset that fails at its third image."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i == 2:
            raise OSError("disk\nerror")
        return torch.zeros(3, 8, 8), 0


class Classes(tuple[Any, ...]):
    """Two splits whose first one's class names are a number."""


CASES: list[tuple[Callable[[], Any], str]] = [
    (raising, "the function ended in KeyError ('no such\\ntable'); mend it"),
    (lambda: 3, "the function returned int; it must return (train, test)"),
    (lambda: (Torn(), Torn()), "a split is neither (images, labels) nor a dataset of equally large"),
    (lambda: ((images(ax4=float("nan")), Y),) * 2, "train image 4 holds a value that is NaN or infinite"),
    (
        lambda: ((images(), Y), (images(ax7=float("inf")), Y)),
        "test image 7 holds a value that is NaN or infinite",
    ),
    (lambda: ((images().double() * 1e300, Y),) * 2, "train image 0 holds a value that is NaN or infinite"),
    (
        lambda: ((images(), Y + 2**31 - 4),) * 2,
        "training image 3 has the label 2147483647; classes are numbered from 0",
    ),
    (lambda: ((images(), Y.double() * 1e300),) * 2, "a label is 3e+300; number the classes from 0"),
    (lambda: ((images(), Y - 1),) * 2, "train image 0 has the label -1"),
    (lambda: ((images(), Y.double() + float("nan")),) * 2, "the labels are numbers between classes"),
    (lambda: ((images(), torch.stack([Y, Y], 1)),) * 2, "the labels are of shape [2] per image"),
    (lambda: ((images(), Y.to(torch.complex64)),) * 2, "images or labels are complex numbers"),
    (lambda: ((np.array(["a"] * 12), Y),) * 2, "images and labels are no tensors of numbers"),
    (lambda: ((torch.zeros(12, 3, 0, 0), Y),) * 2, "train images are float32 [12, 3, 0, 0], without a pixel"),
    (lambda: ((torch.zeros(0, 3, 8, 8), Y[:0]),) * 2, "the train split holds no images"),
    (lambda: ((torch.tensor(1.0), Y),) * 2, "train images are float32 []"),
]


@pytest.mark.parametrize(("function", "said"), CASES, ids=[said[:40] for _, said in CASES])
def test_data_that_cannot_be_trained_on_is_refused_in_one_sentence(
    function: Callable[[], Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "named_code", lambda *_: function)
    with pytest.raises(DataError) as refusal:
        load("mine:data")
    assert said in str(refusal.value)
    assert one_sentence(str(refusal.value))


def test_a_module_that_fails_while_it_is_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_on_import.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DataError, match=r"does not import \(ZeroDivisionError: division by zero\)"):
        load("broken_on_import:data")
    done = CliRunner().invoke(program, ["explain", "broken_on_import:net"])
    assert isinstance(done.exception, UsageError)
    assert "does not import (ZeroDivisionError: division by zero)" in str(done.exception)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "x[:, :1], y",
            "has images of 1×8×8 (channels × height × width), which resnet20 does not take (Given groups=1",
        ),
        (
            "x.repeat(1, 2, 1, 1), y",
            "has images of 6×8×8 (channels × height × width), which resnet20 does not take",
        ),
    ],
)
@pytest.mark.parametrize("goal", [("--budget", "0.5"), ("--method", "rigl", "--sparsity", "0.9")])
def test_images_of_other_channels_are_refused_before_training(
    source: str, said: str, goal: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "few_channels.py").write_text(
        "import torch\ndef data():\n    x, y = torch.rand(64, 3, 8, 8), torch.arange(64) % 4\n"
        f"    return ({source}), ({source})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "few_channels", raising=False)
    out = ("--out", str(tmp_path / "run"))
    done = CliRunner().invoke(program, ["train", "resnet20", "--data", "few_channels:data", *goal, *out])
    assert isinstance(done.exception, DataError), done.exception
    assert said in str(done.exception)
    assert one_sentence(str(done.exception))


def test_a_network_of_other_classes_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "seven_outputs.py").write_text(
        "from halpiee.zoo import build\ndef net(**_): return build('resnet20', num_classes=7)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = ("--out", str(tmp_path / "run"))
    done = CliRunner().invoke(
        program, ["train", "seven_outputs:net", "--data", "digits", "--budget", "0.5", *out]
    )
    assert isinstance(done.exception, DataError), done.exception
    assert "digits has 10 classes, and seven_outputs:net answers two images with [2, 7]" in str(
        done.exception
    )
    assert not (tmp_path / "run").exists()


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    columns = [pa.array([b"x"]), pa.array([0]), pa.array([0])]
    for name in ("train.parquet", "test.parquet"):
        parquet.write_table(pa.table(columns, names=["image", "label", "label"]), tmp_path / name)
    with pytest.raises(DataError, match="has two columns named 'label'; name every column once"):
        load(str(tmp_path))


@pytest.mark.parametrize("label", [2**31 - 1, 10**6])
def test_a_label_that_would_fill_the_memory_is_refused(label: int, tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for name in ("train.parquet", "test.parquet"):
        table = pa.table({"image": [b"x", b"x"], "label": [0, label]})
        parquet.write_table(table, tmp_path / name)
    with pytest.raises(DataError, match=f"has the label {label}; labels must be 0 to 999999"):
        load(str(tmp_path))
