"""Images in tars, in Parquet files of many row groups, in Hugging Face's folders, and in TinyImageNet's."""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from halpiee.data.loading import Loading
from halpiee.data.opening import check, find, load, open_data
from halpiee.data.source import ParquetSplit
from halpiee.errors import DataError

from .folders import class_folder, encoded, sixteen_bit, tar_folder


def test_tars_are_read_without_being_unpacked(tmp_path: Path) -> None:
    data = load(str(tar_folder(tmp_path)))
    assert data.train_x[:, 0, 0, 0].tolist() == [3, 4, 5]
    assert data.train_y.tolist() == [1, 0, 1]
    assert data.classes == ("0", "1")
    (tmp_path / "classes.txt").write_text("even\nodd\n")
    assert load(str(tmp_path)).classes == ("even", "odd")


def test_members_of_tars_are_found_in_any_order(tmp_path: Path) -> None:
    splits = find(str(tar_folder(tmp_path))).splits()
    assert splits is not None
    assert [splits.train.read(i)[0].getpixel((0, 0))[0] for i in (2, 0, 1)] == [5, 3, 4]


@pytest.mark.parametrize("act", [check, load])
def test_what_is_wrong_with_a_tar_is_named(tmp_path: Path, act: object) -> None:
    assert callable(act)
    with pytest.raises(DataError, match=r"train-000\.tar is not a readable tar .* unpack a compressed one"):
        act(str(tar_folder(tmp_path / "gz", compress=True)))
    folder = tar_folder(tmp_path / "lone")
    (folder / "classes.txt").write_text("even\n")
    with pytest.raises(DataError, match="has the label 1; labels must be 0 to 0"):
        act(str(folder))
    with tarfile.open(folder / "train-000.tar", "w") as tar:
        file = tmp_path / "a.png"
        file.write_bytes(encoded(1))
        tar.add(file, "a.png")
    with pytest.raises(DataError, match=r"has an image 'a' without \.cls or \.json"):
        act(str(folder))


def test_an_epoch_of_many_row_groups_shows_every_row_once_and_shuffles_beyond_a_group(tmp_path: Path) -> None:
    for split, n in (("train", 40), ("test", 4)):
        blobs = [encoded(i) for i in range(n)]
        table = pa.table({"image": blobs, "label": [i % 2 for i in range(n)]})
        pq.write_table(table, tmp_path / f"{split}.parquet", row_group_size=4)
    data = open_data(find(str(tmp_path)), Loading(keep="files", workers=0, augment="none"))
    index = data.train.order(torch.Generator().manual_seed(0))  # type: ignore[attr-defined]
    assert sorted(index.tolist()) == list(range(40))
    window = 4 * ParquetSplit.KEPT
    assert len({i // 4 for i in index[:window].tolist()}) == ParquetSplit.KEPT
    assert index[:window].tolist() != sorted(index[:window].tolist())
    assert sum(len(x) for x, _ in data.batches(0, 8)) == 40


def test_a_data_set_that_hugging_face_saved_is_read_with_its_class_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def split(values: list[int]) -> object:
        cells = [{"bytes": encoded(v), "path": None} for v in values]
        return datasets.Dataset.from_dict(
            {"image": cells, "label": [v % 2 for v in values]}, features=features
        )

    datasets.DatasetDict({"train": split([7, 8, 9]), "test": split([10])}).save_to_disk(tmp_path / "saved")
    data = load(str(tmp_path / "saved"))
    assert data.classes == ("cat", "dog")
    assert data.train_x[:, 0, 0, 0].tolist() == [7, 8, 9]
    assert data.train_y.tolist() == [1, 0, 1]


def test_tiny_imagenet_is_read_as_its_archive_unpacks(tmp_path: Path) -> None:
    class_folder(tmp_path, train=4, test=0)
    for name in ("class0", "class1"):  # the archive has a folder of images in every class
        folder = tmp_path / "train" / name
        shutil.move(folder, tmp_path / "moved")
        (folder).mkdir()
        shutil.move(tmp_path / "moved", folder / "images")
    for split in ("val", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
    (tmp_path / "val/images/v0.png").write_bytes(encoded(30))
    (tmp_path / "val/images/v1.png").write_bytes(encoded(31))
    (tmp_path / "test/images/t0.png").write_bytes(encoded(99))
    annotations = tmp_path / "val/val_annotations.txt"
    annotations.write_text("v0.png\tclass1\t0\t0\t8\t8\nv1.png\tclass0\t0\t0\t8\t8\n")
    data = load(str(tmp_path))
    assert data.test_x[:, 0, 0, 0].tolist() == [30, 31]
    assert data.test_y.tolist() == [1, 0]
    annotations.write_text("v0.png\tclass7\t0\t0\t8\t8\n")
    with pytest.raises(DataError, match=r"line 1 of .*val_annotations\.txt names"):
        check(str(tmp_path))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_class_without_images_in_one_split_is_named(tmp_path: Path, split: str) -> None:
    folder = class_folder(tmp_path)
    for file in (folder / split / "class1").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=f"{split}/ has no image of the class 'class1'; put some into"):
        check(str(folder))


def test_images_of_every_mode_become_three_channels_of_eight_bits(tmp_path: Path) -> None:
    folder = class_folder(tmp_path, train=6, test=2)
    first = sorted((folder / "train").rglob("*.png"))
    sixteen_bit(first[0], 100 * 257)
    Image.new("L", (8, 8), 101).save(first[1])
    Image.new("RGBA", (8, 8), (102, 102, 102, 10)).save(first[2])
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 103, 103, 103])
    palette.save(first[3], transparency=b"\x00\xff")
    Image.fromarray(np.full((8, 8), 104 * 257, dtype=np.int32)).save(first[4].with_suffix(".tif"))
    first[4].unlink()
    Image.new("1", (8, 8), 1).save(first[5])
    data = load(str(folder))
    assert data.train_x[:, :, 0, 0].tolist() == [[v] * 3 for v in (100, 101, 102, 103, 104, 255)]


def test_a_truncated_jpeg_is_named(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    noise.save(folder / "train/class0/0000.jpg", quality=95)
    blob = (folder / "train/class0/0000.jpg").read_bytes()
    (folder / "train/class0/0000.jpg").write_bytes(blob[: len(blob) // 2])
    with pytest.raises(DataError, match=r"0000\.jpg is not a readable image \(.*truncated"):
        load(str(folder), size=8)
