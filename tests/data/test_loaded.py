"""Examples read anew every epoch come in a reproducible order; damaged ones are named and left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from halpiee.data.data import Data
from halpiee.data.images import Preprocess
from halpiee.data.loaded import LoadedData
from halpiee.data.loading import Loading
from halpiee.data.opening import find, open_data
from halpiee.data.tensors import TensorData
from halpiee.errors import DataError, UsageError

from .folders import class_folder


def loaded(path: Path, *, size: int | None = None, **options: Any) -> LoadedData:
    options = {"keep": "files", "workers": 0, "augment": "none", **options}
    data = open_data(find(str(path), size), Loading(**options))
    assert isinstance(data, LoadedData)
    return data


def values(x: Tensor, data: LoadedData) -> list[int]:
    """Returns the grey value of each image of a normalised batch."""
    return [round(float(v)) for v in ((x * data.std + data.mean) * 255)[:, 0, 0, 0]]


def test_an_epoch_shows_every_image_once_with_its_label(tmp_path: Path) -> None:
    data = loaded(class_folder(tmp_path, classes=3))
    seen: dict[int, int] = {}
    for x, y in data.batches(0, 4):
        seen |= dict(zip(values(x, data), y.tolist(), strict=True))
    assert seen == {i: i % 3 for i in range(12)}


def test_test_images_come_in_order_of_their_files(tmp_path: Path) -> None:
    data = loaded(class_folder(tmp_path, test=5))
    batches = list(data.test_batches(2))
    assert [v for x, _ in batches for v in values(x, data)] == [0, 2, 4, 1, 3]
    assert [y.tolist() for _, y in batches] == [[0, 0], [0, 1], [1]]


@pytest.mark.parametrize("keep", ["memory", "files"])
@pytest.mark.parametrize("normalise", ["data", "imagenet"])
def test_what_a_network_is_given_can_be_made_of_any_image_alone(
    tmp_path: Path, keep: str, normalise: str
) -> None:
    source = np.random.default_rng(0)
    for split in ("train", "val"):
        for i, (mode, size) in enumerate(
            (("RGB", (21, 40)), ("L", (50, 33)), ("RGBA", (16, 16)), ("P", (17, 90)))
        ):
            place = tmp_path / split / f"class{i % 2}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = source.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(place / f"{i}.png")
    loading = Loading(keep=keep, workers=0, normalise=normalise)  # type: ignore[arg-type]
    data = open_data(find(str(tmp_path), 16), loading)
    prepare = Preprocess(**json.loads(json.dumps(data.preprocess)))
    assert prepare.classes == ["class0", "class1"]
    made = torch.cat([prepare(Image.open(file)) for file in sorted((tmp_path / "val").rglob("*.png"))])
    torch.testing.assert_close(made, torch.cat([x for x, _ in data.test_batches(2)]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_epoch_goes_on_bit_equal_with_any_number_of_workers(
    tmp_path: Path, workers: int
) -> None:
    folder = class_folder(tmp_path, train=20)
    options: dict[str, Any] = {"augment": "flip,crop,jitter,randaugment,shift"}
    whole = list(loaded(folder, **options).batches(3, 4, seed=7))
    data = loaded(folder, workers=workers, **options)
    next(data.batches(3, 4, seed=7))  # begun and left, as an interruption does
    for start in (0, 2, 4):
        tail = list(data.batches(3, 4, seed=7, start=start))
        assert len(tail) == 5 - start
        for (x, y), (again_x, again_y) in zip(whole[start:], tail, strict=True):
            assert torch.equal(x, again_x)
            assert torch.equal(y, again_y)


def test_epochs_change_images_in_ways_of_their_own(tmp_path: Path) -> None:
    data = loaded(class_folder(tmp_path, train=4, side=16), augment="jitter")
    first, second = ({v: x for x, _ in data.batches(epoch, 4) for v, x in enumerate(x)} for epoch in (0, 1))
    assert not all(torch.equal(first[i], second[i]) for i in range(4))


@pytest.mark.parametrize("kind", ["files", "memory"])
def test_the_batches_of_two_processes_are_the_batch_of_one(tmp_path: Path, kind: str) -> None:
    folder = class_folder(tmp_path, train=26)
    options: dict[str, Any] = {"keep": kind, "workers": 0, "augment": "flip,shift"}
    data: Data = open_data(find(str(folder)), Loading(**options))
    assert isinstance(data, LoadedData if kind == "files" else TensorData)
    ranks = [data.sharded(rank, 2) for rank in range(2)]
    assert {rank.steps_per_epoch(4) for rank in ranks} == {data.steps_per_epoch(8)}
    whole = list(data.batches(1, 8, seed=3))
    parts = [list(rank.batches(1, 4, seed=3)) for rank in ranks]
    for step, (x, y) in enumerate(whole):
        assert torch.equal(torch.cat([part[step][0] for part in parts]), x)
        assert torch.equal(torch.cat([part[step][1] for part in parts]), y)
    tested = [y for rank in ranks for _, y in rank.test_batches(2)]
    assert sorted(torch.cat(tested).tolist()) == [0, 0, 1, 1]


def test_reading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    data = loaded(class_folder(tmp_path), augment="flip,crop,mixup")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(data.batches(0, 4))
    list(data.test_batches(4))
    assert torch.equal(torch.rand(3), expected)


def test_a_damaged_image_is_named_counted_and_replaced(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    (folder / "train/class0/0004.png").write_bytes(b"no image")
    (folder / "val/class1/0001.png").write_bytes(b"no image")
    data = loaded(folder)
    seen = [v for epoch in range(2) for x, _ in data.batches(epoch, 4) for v in values(x, data)]
    assert len(seen) == 24
    assert 4 not in seen
    assert seen.count(6) == 4  # the next file takes its place
    assert sum(len(x) for x, _ in data.test_batches(2)) == 3
    assert [note.partition(" is not")[0] for note in data.notes] == [
        str(folder / "train/class0/0004.png"),
        str(folder / "val/class1/0001.png"),
    ]


def test_more_damaged_images_than_allowed_end_the_reading(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    data = loaded(folder, bad_images=1)
    for i in (1, 3):
        (folder / f"train/class1/000{i}.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 examples could not be used, and --bad-images allows 1 \(.*000\d"):
        list(data.batches(0, 4))


def test_in_memory_damaged_images_are_left_out_up_to_the_limit(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    (folder / "train/class0/0004.png").write_bytes(b"no image")
    data = open_data(find(str(folder)), Loading(bad_images=1))
    assert isinstance(data, TensorData)
    assert sorted(data.train_x[:, 0, 0, 0].tolist()) == [i for i in range(12) if i != 4]
    assert "0004.png is not a readable image" in data.notes[0]
    with pytest.raises(DataError, match=r"0004\.png is not a readable image"):
        open_data(find(str(folder)), Loading(bad_images=0))


def test_mixed_images_and_targets_have_the_same_shares(tmp_path: Path) -> None:
    """Classes are 0 and 1, and so are the images' values over 200: the mean value tells the share of class 1."""
    x = (torch.arange(8) % 2).mul(200).to(torch.uint8).view(8, 1, 1, 1).expand(8, 3, 8, 8).contiguous()
    y = torch.arange(8) % 2
    source = TensorData("two", x, y, x, y, ("a", "b"))
    for asked in ("mixup", "cutmix", "mixup,cutmix"):
        from halpiee.data.opening import _in_memory

        data = _in_memory(source, Loading(augment=asked))
        assert data.mean is not None
        assert data.std is not None
        soft_seen = False
        for epoch in range(6):
            for images, targets in data.batches(epoch, 8):
                raw = (images * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)) * 255 / 200
                torch.testing.assert_close(raw.mean((1, 2, 3)), targets[:, 1], atol=1e-4, rtol=0)
                torch.testing.assert_close(targets.sum(1), torch.ones(8))
                soft_seen |= bool(((targets > 0.01) & (targets < 0.99)).any())
        assert soft_seen


def test_images_to_score_on_are_drawn_by_the_seed_a_class_each(tmp_path: Path) -> None:
    for keep in ("files", "memory"):
        data = open_data(find(str(class_folder(tmp_path / keep, train=40))), Loading(keep=keep, workers=0))
        examples = data.few(5, seed=1, batch_size=4)
        assert [len(x) for x, _ in examples] == [4, 4, 2]
        assert torch.cat([y for _, y in examples]).tolist() == [0] * 5 + [1] * 5
        again, other = data.few(5, seed=1, batch_size=10)[0][0], data.few(5, seed=2, batch_size=10)[0][0]
        assert torch.equal(torch.cat([x for x, _ in examples]), again)
        assert not torch.equal(again, other)


def test_images_of_several_sizes_ask_for_a_size_while_training(tmp_path: Path) -> None:
    folder = class_folder(tmp_path)
    data = loaded(folder)
    from .folders import encoded

    (folder / "train/class0/0004.png").write_bytes(encoded(4, (9, 8)))
    with pytest.raises(
        DataError, match=r"images differ in size \(8×8, 8×9 …\); give --size to bring them to one"
    ):
        list(data.batches(0, 12))


def test_a_crop_of_a_constant_image_is_that_image_and_has_the_size(tmp_path: Path) -> None:
    data = loaded(class_folder(tmp_path, side=20), size=8, augment="crop,flip")
    x, _ = next(data.batches(0, 12))
    assert data.shape == (3, 8, 8)
    assert x.shape == (12, 3, 8, 8)
    assert sorted(values(x, data)) == list(range(12))


def test_large_sets_are_read_from_files_and_small_ones_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = class_folder(tmp_path)
    assert isinstance(open_data(find(str(folder))), TensorData)
    monkeypatch.setattr("halpiee.data.opening.SMALL_BYTES", 16 * 3 * 8 * 8 - 1)
    assert isinstance(open_data(find(str(folder))), LoadedData)
    assert isinstance(open_data(find(str(folder)), Loading(keep="memory")), TensorData)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"augment": "flipp"}, "--augment flipp was asked, and 'flipp' is none; did you mean 'flip'?"),
        ({"augment": "none,flip"}, "none stands alone"),
        ({"augment": "crop", "keep": "memory"}, "in memory there are flip, shift, mixup and cutmix"),
        ({"bad_images": -1}, "--bad-images -1 was asked"),
    ],
)
def test_options_that_cannot_be_met_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Loading(**options)
    assert said in str(refusal.value)


def test_measured_statistics_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    data = loaded(class_folder(tmp_path), normalise="data")
    grey = torch.arange(12) / 255
    torch.testing.assert_close(data.mean.flatten(), grey.mean().repeat(3))
    torch.testing.assert_close(data.std.flatten(), grey.std(correction=0).repeat(3))
