"""Augmented views: torchvision as the oracle, and the same bits in any batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as reference

from retrieval import streams
from retrieval.augmentation import Augmentation, Views
from retrieval.validation import explain_validation

PLAIN = {"flip": False, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}


def pixels(n: int, h: int, w: int | None = None) -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (n, h, w or h, 3), dtype=np.uint8)


def as_floats(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(("side", "size"), [(32, 64), (32, 32), (8, 32), (64, 24), (50, 7)])
def test_eval_equals_torchvision_antialiased_resize(side, size):
    array = pixels(4, side)
    views = Views(array, size, Augmentation(), seed=0).eval(np.array([3, 0]))
    expected = reference.resize(as_floats(array[[3, 0]]), [size, size], antialias=True)
    assert views.shape == (2, 3, size, size)
    assert views.dtype == torch.float32
    assert (views - expected).abs().max() < 0.1 / 255


def test_eval_of_oblong_images_is_the_centre():
    array = pixels(2, 20, 30)
    views = Views(array, 20, Augmentation(), seed=0).eval(np.arange(2))
    assert torch.allclose(views, as_floats(array[:, :, 5:25]), atol=1e-6)


def test_random_resized_crop_equals_torchvision_on_the_same_box():
    array = pixels(6, 40)
    augmentation = Augmentation(crop="random_resized", **PLAIN)
    maker = Views(array, 24, augmentation, seed=3)
    rows = np.arange(6)
    views = maker.train(rows, epoch=2)
    draws = streams.uniform(3, "augmentation", rows, 26, epoch=2)
    boxes = np.stack(maker._boxes(draws), axis=1)
    assert len(np.unique(boxes, axis=0)) == 6
    for number, (top, left, height, width) in enumerate(boxes.tolist()):
        assert 0 <= top <= 40 - height
        assert 0 <= left <= 40 - width
        assert 0.18 < height * width / 1600 <= 1.0
        assert 0.7 < width / height < 1.43
        expected = reference.resized_crop(
            as_floats(array[[number]]), top, left, height, width, [24, 24], antialias=True
        )
        assert (views[number] - expected[0]).abs().max() < 0.1 / 255


def test_random_crop_is_a_shift_with_repeated_edges():
    array = pixels(40, 16)
    views = Views(array, 16, Augmentation(crop="random", **PLAIN), seed=1).train(np.arange(40), 0)
    shifts = set()
    for number in range(40):
        padded = np.pad(array[number], ((2, 2), (2, 2), (0, 0)), mode="edge")
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.allclose(
                views[number],
                as_floats(padded[None, top : top + 16, left : left + 16])[0],
                atol=1e-6,
            )
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 12  # of 25 that are possible


@pytest.mark.parametrize("size", [9, 40])
def test_random_crop_of_another_size_is_the_resized_box_of_the_padded_image(size):
    array = pixels(12, 24)
    maker = Views(array, size, Augmentation(crop="random", padding=0.5, **PLAIN), seed=1)
    rows = np.arange(12)
    views = maker.train(rows, 0)
    boxes = np.stack(maker._boxes(streams.uniform(1, "augmentation", rows, 6)), axis=1)
    assert boxes[:, :2].min() < 0  # some reach beyond the image, where a wide filter shows it
    for number, (top, left, height, width) in enumerate(boxes.tolist()):
        padded = np.pad(array[number], ((12, 12), (12, 12), (0, 0)), mode="edge")
        expected = reference.resized_crop(
            as_floats(padded[None]), top + 12, left + 12, height, width, [size, size]
        )
        assert (views[number] - expected[0]).abs().max() < 0.1 / 255


def test_flip_mirrors_about_half_of_the_images_and_no_others():
    array = pixels(300, 8)
    options = {**PLAIN, "flip": True}
    views = Views(array, 8, Augmentation(crop="none", **options), seed=0).train(np.arange(300), 0)
    plain = as_floats(array)
    same = [(view - image).abs().max() < 1e-6 for view, image in zip(views, plain, strict=True)]
    mirrored = [
        (view - image.flip(-1)).abs().max() < 1e-6
        for view, image in zip(views, plain, strict=True)
    ]
    assert all(a != b for a, b in zip(same, mirrored, strict=True))
    assert 110 < sum(map(bool, mirrored)) < 190


@pytest.mark.parametrize(
    ("option", "adjust"),
    [
        ("brightness", reference.adjust_brightness),
        ("contrast", reference.adjust_contrast),
        ("saturation", reference.adjust_saturation),
    ],
)
def test_jitter_equals_torchvision_with_the_same_factor(option, adjust):
    array = pixels(5, 12)
    column = ["brightness", "contrast", "saturation"].index(option) + 1
    views = Views(array, 12, Augmentation(**{**PLAIN, option: 0.4}), seed=9).train(np.arange(5), 1)
    draws = streams.uniform(9, "augmentation", np.arange(5), 6, epoch=1)
    for number in range(5):
        factor = 1 + 0.4 * (2 * draws[number, column] - 1)
        assert 0.6 <= factor <= 1.4
        expected = adjust(as_floats(array[[number]]), factor)
        # torchvision weights grey with .2989, .587, .114
        assert (views[number] - expected[0]).abs().max() < 1e-3


UNVARIED = Augmentation(crop="none", **PLAIN)

OPTIONS = [
    Augmentation(),
    UNVARIED,
    Augmentation(crop="random", padding=0.25),
    Augmentation(crop="random_resized"),
    Augmentation(crop="random_resized", scale=(0.05, 0.3), ratio=(0.3, 3.0), saturation=0.5),
    Augmentation(crop="random_resized", brightness=1.0, contrast=1.0, saturation=1.0),
]


@pytest.mark.parametrize("augmentation", OPTIONS)
@pytest.mark.parametrize(("side", "size"), [(32, 64), (32, 20)])
def test_an_image_gives_the_same_bits_alone_in_any_batch_and_with_any_threads(
    augmentation, side, size
):
    views = Views(pixels(70, side), size, augmentation, seed=4)
    rows = np.random.default_rng(0).permutation(70)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        together = views.train(rows, epoch=7)
        torch.set_num_threads(4)
        again = views.train(rows, epoch=7)
        parts = torch.cat([views.train(rows[:13], 7), views.train(rows[13:], 7)])
        alone = torch.cat([views.train(rows[i : i + 1], 7) for i in range(70)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, again)
    assert torch.equal(together, parts)
    assert torch.equal(together, alone)
    assert together.min() >= 0
    assert together.max() <= 1
    varies = augmentation != UNVARIED
    assert torch.equal(together, views.train(rows, epoch=8)) != varies
    other = Views(pixels(70, side), size, augmentation, seed=5).train(rows, epoch=7)
    assert torch.equal(together, other) != varies


def test_one_large_view_has_the_same_bits_with_any_threads():
    # From 2^15 pixels on torch splits a sum among threads, if it is the only one.
    augmentation = Augmentation(brightness=0.4, contrast=0.4, saturation=0.4)
    views = Views(pixels(12, 32), 224, augmentation, seed=1)
    threads = torch.get_num_threads()
    made = []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            made.append(torch.cat([views.train(np.array([row]), 3) for row in range(12)]))
        torch.set_num_threads(1)
        together = views.train(np.arange(12), 3)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(together, alone) for alone in made)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("augmentation", OPTIONS)
def test_a_gpu_makes_the_same_bits_as_the_cpu(augmentation):
    array = pixels(20, 32)
    made = [
        Views(array, 48, augmentation, seed=2, device=device).train(np.arange(20), 3).cpu()
        for device in ("cpu", "cuda")
    ]
    assert torch.equal(*made)


def test_eval_gives_the_same_bits_alone():
    views = Views(pixels(30, 32), 48, Augmentation(), seed=0)
    together = views.eval(np.arange(30))
    assert torch.equal(together[7:8], views.eval(np.array([7])))


def test_no_rows_give_an_empty_batch():
    views = Views(pixels(3, 8), 16, Augmentation(), seed=0)
    assert views.train(np.empty(0, dtype=np.int64), 0).shape == (0, 3, 16, 16)
    assert views.eval(np.empty(0, dtype=np.int64)).shape == (0, 3, 16, 16)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"crop": "randomresized"}, "did you mean 'random_resized'?"),
        ({"contrst": 0.1}, "did you mean 'contrast'?"),
        ({"scale": [0.5, 0.2]}, "scale must be 0 < low <= high <= 1, got (0.5, 0.2)"),
        ({"ratio": [0.0, 1.0]}, "ratio must be two numbers with 0 < low <= high"),
        ({"brightness": 1.5}, "less than or equal to 1 (given: 1.5)"),
        ({"flip": "yes"}, "should be a valid boolean (given: 'yes')"),
        ({"padding": "0.1"}, "write it without quotes"),
    ],
)
def test_a_wrong_option_is_explained(given, part):
    with pytest.raises(ValidationError) as caught:
        Augmentation(**given)
    assert part in str(explain_validation(caught.value, Augmentation))


def test_lists_stand_for_pairs():
    assert Augmentation(scale=[0.3, 1]).scale == (0.3, 1.0)
