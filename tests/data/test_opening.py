"""Where images come from: each source tells what it holds before it loads it, and names what is wrong with it."""

import io
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from halpiee.data.opening import check, load
from halpiee.errors import DataError

CIFAR_NAMES = ["airplane", "frog"]


def jpeg(value: int, size: tuple[int, int] = (6, 6), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(
    path: Path,
    blobs: list[bytes],
    labels: list[int],
    *,
    image: str = "img",
    label: str = "label",
    names: bool = False,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = pa.array([{"bytes": b, "path": f"{i}.png"} for i, b in enumerate(blobs)])
    table = pa.table({image: cells, label: pa.array(labels, pa.int64())})
    if names:
        features = {"info": {"features": {label: {"names": CIFAR_NAMES, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=2)


def parquet_folder(tmp_path: Path, **kwargs: object) -> Path:
    write_parquet(tmp_path / "train.parquet", [jpeg(v) for v in (10, 20, 30)], [0, 1, 0], **kwargs)  # type: ignore[arg-type]
    write_parquet(tmp_path / "test.parquet", [jpeg(v) for v in (40, 50)], [1, 0], **kwargs)  # type: ignore[arg-type]
    return tmp_path


def image_folder(tmp_path: Path, test: str = "val") -> Path:
    for split, values in (("train", (10, 20)), (test, (30,))):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for value in values:
                (folder / f"{value}.png").write_bytes(jpeg(value + label))
    return tmp_path


# --- digits


def test_digits_are_split_four_to_one_in_every_class_and_never_overlap() -> None:
    data = load("digits")
    assert data.train_x.shape[1:] == (3, 16, 16)
    assert len(data.train_y) + len(data.test_y) == 1797
    train, test = (torch.bincount(y, minlength=10) for y in (data.train_y, data.test_y))
    assert torch.equal(test, (train + test) // 5)
    assert data.classes == tuple("0123456789")


def test_digits_upsampled_keep_their_brightness() -> None:
    from sklearn.datasets import load_digits

    data = load("digits", size=8)
    images = load_digits().images[load_digits().target == 0]
    zeros = data.test_x[data.test_y == 0][:, 0]
    assert np.array_equal(zeros[0].numpy(), np.round(images[4] * 255 / 16).astype(np.uint8))


def test_the_digits_summary_says_what_is_loaded() -> None:
    summary, data = check("digits"), load("digits")
    assert (summary.n_train, summary.n_test) == (len(data.train_y), len(data.test_y))
    assert (summary.n_classes, summary.shape) == (data.n_classes, data.shape)


# --- Parquet


def test_parquet_rows_are_decoded_in_order(tmp_path: Path) -> None:
    data = load(str(parquet_folder(tmp_path)))
    assert data.train_x[:, 0, 0, 0].tolist() == [10, 20, 30]
    assert data.train_y.tolist() == [0, 1, 0]
    assert data.test_x[:, 2, 5, 5].tolist() == [40, 50]
    assert data.shape == (3, 6, 6)


def test_parquet_parts_in_a_subfolder_and_an_image_column_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", [jpeg(1)], [0], image="image")
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", [jpeg(2)], [1], image="image")
    write_parquet(tmp_path / "data/validation-00000.parquet", [jpeg(3)], [1], image="image")
    data = load(str(tmp_path))
    assert data.train_x[:, 0, 0, 0].tolist() == [1, 2]
    assert data.test_x[:, 0, 0, 0].tolist() == [3]


def test_class_names_come_from_the_schema_or_are_numbers(tmp_path: Path) -> None:
    assert load(str(parquet_folder(tmp_path / "named", names=True))).classes == ("airplane", "frog")
    assert load(str(parquet_folder(tmp_path / "bare"))).classes == ("0", "1")


def test_checking_parquet_tells_counts_classes_and_shape(tmp_path: Path) -> None:
    summary = check(str(parquet_folder(tmp_path)), size=8)
    assert (summary.n_train, summary.n_test, summary.n_classes, summary.shape) == (3, 2, 2, (3, 8, 8))


def test_a_corrupted_image_is_named_by_row_and_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [jpeg(1), jpeg(2), jpeg(3)[:40]], [0, 1, 0])
    write_parquet(tmp_path / "test.parquet", [jpeg(1)], [0])
    for act in (check, load):
        with pytest.raises(DataError, match=r"row 2 of .*train\.parquet is not a readable image"):
            act(str(tmp_path))


def test_a_truncated_parquet_file_is_named(tmp_path: Path) -> None:
    parquet_folder(tmp_path)
    path = tmp_path / "test.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    for act in (check, load):
        with pytest.raises(DataError, match=r"test\.parquet is not a readable Parquet file"):
            act(str(tmp_path))


@pytest.mark.parametrize("act", [check, load])
def test_a_test_label_that_training_lacks_is_named_by_row(tmp_path: Path, act: object) -> None:
    parquet_folder(tmp_path)
    write_parquet(tmp_path / "test.parquet", [jpeg(1), jpeg(1)], [1, 5])
    with pytest.raises(DataError, match=r"row 1 of .*test\.parquet has the label 5; labels must be 0 to 1"):
        act(str(tmp_path))  # type: ignore[operator]


def test_images_of_different_size_ask_for_a_size(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [jpeg(1), jpeg(2, (8, 6))], [0, 1])
    write_parquet(tmp_path / "test.parquet", [jpeg(1)], [0])
    for act in (check, load):
        with pytest.raises(DataError, match=r"images differ in size \(6×6, 6×8 …\); give --size"):
            act(str(tmp_path))
    assert load(str(tmp_path), size=4).shape == (3, 4, 4)


def test_missing_columns_are_listed(tmp_path: Path) -> None:
    parquet_folder(tmp_path, image="picture")
    with pytest.raises(
        DataError, match=r"has the columns picture, label; it needs img \(or image\) and label"
    ):
        check(str(tmp_path))


def test_a_folder_without_a_test_file_says_what_it_found(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [jpeg(1)], [0])
    with pytest.raises(
        DataError, match=r"found the Parquet files train\.parquet; both train\*\.parquet and test"
    ):
        check(str(tmp_path))


def test_an_empty_parquet_split_is_refused(tmp_path: Path) -> None:
    parquet_folder(tmp_path)
    write_parquet(tmp_path / "test.parquet", [jpeg(1)], [0])
    table = pq.read_table(tmp_path / "test.parquet").slice(0, 0)
    pq.write_table(table, tmp_path / "test.parquet")
    with pytest.raises(DataError, match="its test files hold no rows"):
        check(str(tmp_path))


# --- class folders


@pytest.mark.parametrize("test", ["val", "test"])
def test_a_folder_of_classes_is_read_in_sorted_order(tmp_path: Path, test: str) -> None:
    data = load(str(image_folder(tmp_path, test)))
    assert data.classes == ("cat", "dog")
    assert data.train_x[:, 0, 0, 0].tolist() == [10, 20, 11, 21]
    assert data.train_y.tolist() == [0, 0, 1, 1]
    assert data.test_y.tolist() == [0, 1]


def test_a_size_scales_the_shorter_side_and_cuts_the_centre(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    wide = Image.new("RGB", (12, 4))
    wide.paste((200, 200, 200), (4, 0, 8, 4))
    wide.save(folder / "train/cat/0.png")
    data = load(str(folder), size=4)
    assert set(data.train_x[0].flatten().tolist()) == {200}


def test_grey_images_become_three_channels(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "train/cat/10.png").write_bytes(jpeg(10, mode="L"))
    assert load(str(folder)).train_x[0, :, 0, 0].tolist() == [10, 10, 10]


def test_a_corrupted_file_is_named(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "train/dog/20.png").write_bytes(b"not an image")
    for act in (check, load):
        with pytest.raises(DataError, match=r"train/dog/20\.png is not a readable image"):
            act(str(folder))


def test_a_folder_without_splits_says_what_is_needed(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"found pictures; a folder of images needs train/ and val/"):
        check(str(tmp_path))


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found nothing; a folder of images needs"):
        check(str(tmp_path))


def test_a_split_without_images_is_refused(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    for file in (folder / "val").rglob("*.png"):
        file.unlink()
    with pytest.raises(DataError, match="val/ holds no images in class folders"):
        check(str(folder))


def test_a_class_that_training_lacks_is_refused(tmp_path: Path) -> None:
    folder = image_folder(tmp_path)
    (folder / "val/horse").mkdir()
    with pytest.raises(DataError, match="val/ has the class 'horse', which train/ lacks"):
        check(str(folder))


# --- functions and names


def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    (tmp_path / f"{name}.py").write_text(f"import torch\n{body}")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_function_may_return_pairs_of_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "def make():\n    pair = torch.rand(4, 1, 6, 6), torch.arange(4) % 3\n    return pair, pair\n"
    write_module(tmp_path, monkeypatch, "my_pairs", body)
    data = load("my_pairs:make", size=3)
    assert data.shape == (1, 3, 3)
    assert data.classes == ("0", "1", "2")


def test_a_function_may_return_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "class Set(torch.utils.data.Dataset):\n"
        "    classes = ['a', 'b']\n"
        "    def __len__(self): return 3\n"
        "    def __getitem__(self, i): return torch.full((2, 4, 4), float(i)), i % 2\n"
        "def make(): return Set(), Set()\n"
    )
    write_module(tmp_path, monkeypatch, "my_sets", body)
    data = load("my_sets:make")
    assert data.classes == ("a", "b")
    assert data.train_x[:, 0, 0, 0].tolist() == [0.0, 1.0, 2.0]
    assert data.train_y.tolist() == [0, 1, 0]


def test_a_function_that_returns_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_module(tmp_path, monkeypatch, "my_wrong", "def make(): return 3\n")
    with pytest.raises(DataError, match="the function returned int; it must return"):
        load("my_wrong:make")


def test_a_missing_module_or_function_is_named() -> None:
    with pytest.raises(DataError, match="asks for the module 'no_such_module', which does not import"):
        check("no_such_module:make")
    with pytest.raises(DataError, match="asks for 'nothing', which json does not have"):
        check("json:nothing")


def test_an_unknown_name_lists_what_can_be_given() -> None:
    with pytest.raises(
        DataError, match="there is no such folder and no data set of that name; give digits, cifar10"
    ):
        check("nowhere/at/all")


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: object) -> list[str]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", closed)
    with pytest.raises(DataError, match=r"cannot be read \(.*Permission denied\); check its permissions"):
        check(str(tmp_path))


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(DataError, match="is a file, not a folder"):
        check(str(tmp_path / "x.parquet"))


def test_a_missing_network_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing.tar.gz")
    for act in (check, load):
        with pytest.raises(
            DataError, match=r"--data cifar10 is not in .* and could not be downloaded .*connect"
        ):
            act("cifar10")


def test_errors_of_data_end_with_exit_code_two() -> None:
    assert DataError("").exit_code == 2


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        (lambda n: torch.zeros(n, 4, 4, dtype=torch.int64), r"of shape \[4, 4\] per image"),
        (lambda n: torch.full((n,), 0.5), "numbers between classes"),
    ],
)
@pytest.mark.parametrize("as_pairs", [False, True])
def test_labels_of_other_tasks_are_sent_to_a_loop_of_their_own(
    labels: Callable[[int], torch.Tensor],
    kind: str,
    as_pairs: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = types.ModuleType("other_tasks")
    x, y = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), labels(6)
    split = list(zip(x, y, strict=True)) if as_pairs else (x, y)
    monkeypatch.setattr(module, "data", lambda: (split, split), raising=False)
    monkeypatch.setitem(sys.modules, "other_tasks", module)
    with pytest.raises(
        DataError,
        match=rf"the labels are {kind}; `halpiee train` trains classifiers, .* attach halpiee.IEE in your own loop",
    ):
        load("other_tasks:data")
