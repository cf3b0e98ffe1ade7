"""Batches are reproducible and resumable, augmentation is a shift and a flip, and bad sources are named."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor

from halpiee.errors import DataError, UsageError
from halpiee.training.data import Augmentation, Data, check, load, shift_and_flip

CIFAR_NAMES = ["airplane", "frog"]


def numbered(n: int, h: int = 4, w: int = 4, *, classes: int = 2, **kwargs: object) -> Data:
    """Image i is filled with the value i, so that a batch tells which images it holds."""
    x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, h, w).contiguous()
    y = torch.arange(n) % classes
    return Data("numbered", x, y, x[:3], y[:3], tuple(str(i) for i in range(classes)), **kwargs)  # type: ignore[arg-type]


def indices(batch: Tensor, data: Data) -> list[int]:
    raw = (batch * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)) * 255  # type: ignore[union-attr]
    return [round(float(v)) for v in raw[:, 0, 0, 0]]


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


# --- batches


def test_an_epoch_shows_every_image_once_when_the_batch_size_divides() -> None:
    data = numbered(12)
    seen = [i for x, _ in data.batches(0, 4, augment=False) for i in indices(x, data)]
    assert sorted(seen) == list(range(12))


def test_labels_stay_with_their_images() -> None:
    data = numbered(12, classes=3)
    for x, y in data.batches(1, 4, augment=False):
        assert [i % 3 for i in indices(x, data)] == y.tolist()


def test_the_last_incomplete_batch_is_left_out() -> None:
    data = numbered(11)
    assert [len(x) for x, _ in data.batches(0, 4)] == [4, 4]
    assert data.steps_per_epoch(4) == 2


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    data = numbered(5)
    assert [len(x) for x, _ in data.batches(0, 8)] == [5]
    assert data.steps_per_epoch(8) == 1


@pytest.mark.parametrize("start", [0, 1, 3, 5])
def test_skipping_batches_leaves_the_rest_bit_equal(start: int) -> None:
    data = numbered(25, 8, 8, augmentation=Augmentation(shift=2))
    whole = list(data.batches(3, 5, seed=7))
    tail = list(data.batches(3, 5, seed=7, start=start))
    assert len(tail) == 5 - start
    for (a, la), (b, lb) in zip(whole[start:], tail, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(la, lb)


def test_batches_do_not_touch_the_global_generator() -> None:
    data = numbered(8)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.batches(0, 4))
    assert torch.equal(torch.rand(3), expected)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    data = numbered(32)

    def order(epoch: int, seed: int) -> list[int]:
        return indices(next(data.batches(epoch, 32, seed=seed, augment=False))[0], data)

    orders = [order(epoch, seed) for epoch in (0, 1) for seed in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4
    assert order(1, 1) == orders[3]


def test_test_batches_hold_all_images_in_order() -> None:
    data = numbered(7)
    batches = list(data.test_batches(2))
    assert [i for x, _ in batches for i in indices(x, data)] == [0, 1, 2]
    assert [len(x) for x, _ in batches] == [2, 1]


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(UsageError, match="batch size 0 was asked; it must be at least 1"):
        next(numbered(4).batches(0, 0))
    with pytest.raises(UsageError, match="batch size -1 was asked"):
        next(numbered(4).test_batches(-1))


# --- normalisation


def test_uint8_statistics_are_those_of_the_training_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (9, 3, 5, 5), dtype=torch.uint8, generator=generator)
    y = torch.zeros(9, dtype=torch.int64)
    data = Data("random", x, y, x, y, ("a",))
    pixels = x.double() / 255
    torch.testing.assert_close(data.mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(data.std, pixels.std((0, 2, 3), correction=0).float())


def test_normalised_training_images_have_mean_zero_and_variance_one() -> None:
    x = torch.rand(50, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = torch.zeros(50, dtype=torch.int64)
    data = Data("floats", x, y, x, y, ("a",))
    z = data.normalised(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_normalising_leaves_float_images_alone() -> None:
    x = torch.rand(4, 1, 2, 2)
    before = x.clone()
    y = torch.zeros(4, dtype=torch.int64)
    next(Data("floats", x, y, x, y, ("a",)).test_batches(4))
    assert torch.equal(x, before)


def test_a_constant_channel_is_centred_and_stays_finite() -> None:
    x = torch.full((4, 3, 2, 2), 7, dtype=torch.uint8)
    y = torch.zeros(4, dtype=torch.int64)
    z, _ = next(Data("flat", x, y, x, y, ("a",)).test_batches(4))
    torch.testing.assert_close(z, torch.zeros_like(z), atol=1e-6, rtol=0)


# --- augmentation


def test_an_image_is_shifted_down_and_right_with_black_coming_in() -> None:
    x = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8).view(1, 1, 3, 3)
    out = shift_and_flip(x, torch.tensor([[1], [1]]), None, "zero")
    assert out[0, 0].tolist() == [[0, 0, 0], [0, 1, 2], [0, 4, 5]]


def test_an_image_is_shifted_up_and_left_with_its_mirror_coming_in() -> None:
    x = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.uint8).view(1, 1, 3, 3)
    out = shift_and_flip(x, torch.tensor([[-1], [-2]]), None, "reflect")
    assert out[0, 0].tolist() == [[6, 5, 4], [9, 8, 7], [6, 5, 4]]


def test_each_image_is_flipped_on_its_own() -> None:
    x = torch.tensor([[1, 2, 3]], dtype=torch.uint8).view(1, 1, 1, 3).repeat(2, 1, 1, 1)
    out = shift_and_flip(x, torch.zeros(2, 2, dtype=torch.int64), torch.tensor([True, False]), "zero")
    assert out[:, 0, 0].tolist() == [[3, 2, 1], [1, 2, 3]]


@pytest.mark.parametrize("padding", ["zero", "reflect"])
def test_a_shift_equals_padding_and_cropping_each_image(padding: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 2, 7, 9, generator=generator)
    shifts = torch.randint(-3, 4, (2, 20), generator=generator)
    flip = torch.rand(20, generator=generator) < 0.5
    out = shift_and_flip(x, shifts, flip, padding)
    mode = "constant" if padding == "zero" else "reflect"
    for i in range(20):
        # Shifting right moves what was cropped from the left: crop at 3 − shift. The flip comes last.
        padded = torch.nn.functional.pad(x[i], (3, 3, 3, 3), mode=mode)
        top, left = (3 - int(s) for s in shifts[:, i])
        cropped = padded[:, top : top + 7, left : left + 9]
        assert torch.equal(out[i], cropped.flip(-1) if flip[i] else cropped)


def test_shifts_reach_every_distance_up_to_the_limit_and_none_beyond() -> None:
    x = torch.zeros(400, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4] = 255
    y = torch.zeros(400, dtype=torch.int64)
    data = Data("dot", x, y, x, y, ("a",), Augmentation(flip=False, shift=2))
    batch, _ = next(data.batches(0, 400))
    rows = batch[:, 0].flatten(1).argmax(1) // 9
    assert sorted(set((rows - 4).tolist())) == [-2, -1, 0, 1, 2]


def test_about_half_of_the_images_are_flipped_and_digits_never() -> None:
    x = torch.zeros(1000, 1, 1, 3, dtype=torch.uint8)
    x[..., 0] = 255
    y = torch.zeros(1000, dtype=torch.int64)
    data = Data("left", x, y, x, y, ("a",), Augmentation(shift=0))
    batch, _ = next(data.batches(0, 1000))
    flipped = int((batch[:, 0, 0].argmax(1) == 2).sum())
    assert 430 < flipped < 570  # 500 ± 4.4 standard deviations
    assert not load("digits").augmentation.flip


# --- validation


@pytest.mark.parametrize(("label", "text"), [(2, "label 2"), (-1, "label -1")])
def test_labels_out_of_range_are_refused_with_the_first_image(label: int, text: str) -> None:
    x = torch.zeros(3, 3, 2, 2, dtype=torch.uint8)
    y = torch.tensor([0, label, 1])
    with pytest.raises(DataError, match=f"train image 1 has the {text}, but the 2 classes are 0 to 1"):
        Data("bad", x, y, x, torch.zeros(3, dtype=torch.int64), ("a", "b"))


def test_splits_of_different_shape_are_refused() -> None:
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(
        DataError, match=r"training images are uint8 \[1, 3, 2, 2\], test images uint8 \[1, 3, 2, 3\]"
    ):
        Data("bad", x, y, torch.zeros(1, 3, 2, 3, dtype=torch.uint8), y, ("a",))


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
    with pytest.raises(DataError, match="the module 'no_such_module' cannot be imported"):
        check("no_such_module:make")
    with pytest.raises(DataError, match="'json' has no function 'nothing'"):
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
