"""Batches are reproducible and resumable, augmentation is a shift and a flip, and wrong tensors are refused."""

import pytest
import torch
from torch import Tensor

from halpiee.data.opening import load
from halpiee.data.tensors import Augmentation, TensorData, shift_and_flip
from halpiee.errors import DataError, UsageError


def numbered(n: int, h: int = 4, w: int = 4, *, classes: int = 2, **kwargs: object) -> TensorData:
    """Image i is filled with the value i, so that a batch tells which images it holds."""
    x = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 3, h, w).contiguous()
    y = torch.arange(n) % classes
    return TensorData("numbered", x, y, x[:3], y[:3], tuple(str(i) for i in range(classes)), **kwargs)  # type: ignore[arg-type]


def indices(batch: Tensor, data: TensorData) -> list[int]:
    raw = (batch * data.std.view(-1, 1, 1) + data.mean.view(-1, 1, 1)) * 255  # type: ignore[union-attr]
    return [round(float(v)) for v in raw[:, 0, 0, 0]]


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
    data = TensorData("random", x, y, x, y, ("a",))
    pixels = x.double() / 255
    torch.testing.assert_close(data.mean, pixels.mean((0, 2, 3)).float())
    torch.testing.assert_close(data.std, pixels.std((0, 2, 3), correction=0).float())


def test_normalised_training_images_have_mean_zero_and_variance_one() -> None:
    x = torch.rand(50, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = torch.zeros(50, dtype=torch.int64)
    data = TensorData("floats", x, y, x, y, ("a",))
    z = data.normalised(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_normalising_leaves_float_images_alone() -> None:
    x = torch.rand(4, 1, 2, 2)
    before = x.clone()
    y = torch.zeros(4, dtype=torch.int64)
    next(TensorData("floats", x, y, x, y, ("a",)).test_batches(4))
    assert torch.equal(x, before)


def test_a_constant_channel_is_centred_and_stays_finite() -> None:
    x = torch.full((4, 3, 2, 2), 7, dtype=torch.uint8)
    y = torch.zeros(4, dtype=torch.int64)
    z, _ = next(TensorData("flat", x, y, x, y, ("a",)).test_batches(4))
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
    data = TensorData("dot", x, y, x, y, ("a",), Augmentation(flip=False, shift=2))
    batch, _ = next(data.batches(0, 400))
    rows = batch[:, 0].flatten(1).argmax(1) // 9
    assert sorted(set((rows - 4).tolist())) == [-2, -1, 0, 1, 2]


def test_about_half_of_the_images_are_flipped_and_digits_never() -> None:
    x = torch.zeros(1000, 1, 1, 3, dtype=torch.uint8)
    x[..., 0] = 255
    y = torch.zeros(1000, dtype=torch.int64)
    data = TensorData("left", x, y, x, y, ("a",), Augmentation(shift=0))
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
        TensorData("bad", x, y, x, torch.zeros(3, dtype=torch.int64), ("a", "b"))


def test_splits_of_different_shape_are_refused() -> None:
    x = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    y = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(
        DataError, match=r"training images are uint8 \[1, 3, 2, 2\], test images uint8 \[1, 3, 2, 3\]"
    ):
        TensorData("bad", x, y, torch.zeros(1, 3, 2, 3, dtype=torch.uint8), y, ("a",))
