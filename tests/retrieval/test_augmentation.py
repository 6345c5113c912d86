"""Augmented views: torchvision as the oracle, and the same bits in any batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torchvision.transforms.v2 import functional as reference

from retrieval import augmentation as module
from retrieval import streams
from retrieval.augmentation import Augmentation, Views
from retrieval.images import open_images
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
@pytest.mark.parametrize("engine", ["torch", "numba"])
def test_an_image_gives_the_same_bits_alone_in_any_batch_and_with_any_threads(
    augmentation, side, size, engine
):
    views = Views(pixels(70, side), size, augmentation, seed=4, engine=engine)
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
    other = Views(pixels(70, side), size, augmentation, seed=5, engine=engine).train(rows, epoch=7)
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


@st.composite
def augmentations(draw):
    low = draw(st.floats(0.01, 1.0))
    narrow = draw(st.floats(0.2, 2.0))
    strength = st.sampled_from([0.0, 0.05, 0.5, 1.0])
    return Augmentation(
        crop=draw(st.sampled_from(["none", "random_resized", "random"])),
        scale=(low, draw(st.floats(low, 1.0))),
        ratio=(narrow, draw(st.floats(narrow, 4.0))),
        padding=draw(st.floats(0.0, 1.0)),
        flip=draw(st.booleans()),
        brightness=draw(strength),
        contrast=draw(strength),
        saturation=draw(strength),
    )


@settings(max_examples=150, deadline=None)
@given(
    augmentation=augmentations(),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_compiled_views_have_the_bits_of_torchs(augmentation, height, width, size, seed):
    array = np.random.default_rng(seed).integers(0, 256, (7, height, width, 3), dtype=np.uint8)
    rows = np.array([5, 0, 0, 6, 3])
    made = []
    for engine in ("torch", "numba"):
        views = Views(array, size, augmentation, seed, engine=engine)
        made.append([views.train(rows, 2), views.eval(rows)])
    for one, other in zip(*made, strict=True):
        assert one.numpy().tobytes() == other.numpy().tobytes()


def test_black_and_white_images_have_the_same_bits_compiled():
    array = np.zeros((3, 20, 20, 3), dtype=np.uint8)
    array[1], array[2] = 255, np.arange(20)[:, None, None] * 13
    for augmentation in OPTIONS:
        made = [
            Views(array, 30, augmentation, 1, engine=engine).train(np.arange(3), 0)
            for engine in ("torch", "numba")
        ]
        assert made[0].numpy().tobytes() == made[1].numpy().tobytes()


def test_an_unknown_engine_makes_no_views():
    with pytest.raises(ValueError, match="engine must be one of auto, numba, torch, got 'nunba'"):
        Views(pixels(2, 8), 8, UNVARIED, 0, engine="nunba")


def test_the_compiled_engine_is_loaded_when_there_is_enough_to_do(monkeypatch):
    monkeypatch.setattr(module, "_WORTH_LOADING", 3 * 16 * 16 * 4)
    array = pixels(4, 8)
    views = Views(array, 16, Augmentation(), seed=0)
    by_torch = []
    original = views._by_torch
    monkeypatch.setattr(views, "_by_torch", lambda *a: (by_torch.append(1), original(*a)))
    made = [views.train(np.arange(4), 0) for _ in range(3)]
    assert by_torch == [1]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_without_numba_torch_makes_all_views(monkeypatch):
    monkeypatch.setitem(sys.modules, "retrieval.resampling", None)
    monkeypatch.setattr(module, "_WORTH_LOADING", 0)
    array = pixels(4, 8)
    auto = Views(array, 16, Augmentation(), seed=0).train(np.arange(4), 0)
    assert torch.equal(
        auto, Views(array, 16, Augmentation(), 0, engine="torch").train(np.arange(4), 0)
    )
    with pytest.raises(ImportError):
        Views(array, 16, Augmentation(), 0, engine="numba").train(np.arange(4), 0)


@pytest.mark.parametrize("kept", ["tensor", "part of a tensor", "array", "part of an array"])
def test_views_that_are_kept_are_never_written_to_again(kept):
    keep = {
        "tensor": lambda made: made,
        "part of a tensor": lambda made: made[1:, 0].detach(),
        "array": lambda made: made.numpy(),
        "part of an array": lambda made: made.numpy()[1:, 0],
    }[kept]
    views = Views(pixels(8, 16), 16, Augmentation(crop="random"), seed=0, engine="numba")
    rows = np.arange(8)
    held = [keep(views.train(rows, epoch)) for epoch in range(6)]
    fresh = [Views(pixels(8, 16), 16, Augmentation(crop="random"), 0, engine="torch") for _ in "x"]
    for epoch, one in enumerate(held):
        expected = keep(fresh[0].train(rows, epoch))
        assert np.array_equal(np.asarray(one), np.asarray(expected))
        for later in held[epoch + 1 :]:
            assert not np.shares_memory(np.asarray(one), np.asarray(later))


def test_memory_of_views_that_nobody_keeps_is_used_again():
    views = Views(pixels(8, 16), 16, Augmentation(), seed=0, engine="numba")
    places = {views.eval(np.arange(8)).data_ptr() for _ in range(10)}
    assert len(places) <= 2


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


# ---- a store larger than memory --------------------------------------------------------------

LARGE = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
from torch import nn
from methods.training import encode
from retrieval.augmentation import Augmentation, Views
from retrieval.images import open_images

folder, chunk = Path(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)
n = 5000
def never():
    raise AssertionError("the store is there")
store = open_images(folder, never, keys=[f"k{i}" for i in range(n)], labels=np.zeros(n, np.int64),
                    classes=["a"], fingerprint="f", store_size=160)
assert store.array.nbytes > 360 << 20, store.array.nbytes

def resident():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()

class Grey(nn.Module):
    def forward(self, views):
        peak[0] = max(peak[0], resident())
        return views.mean(dim=(2, 3))

peak = [0]
views = Views(store, 64, Augmentation(), seed=0)
encode(Grey(), views, np.arange(chunk), batch_size=chunk)
views.train(np.arange(chunk), 0)
views = Views(store, 64, Augmentation(), seed=0, engine=sys.argv[3])
encode(Grey(), views, np.arange(chunk), batch_size=chunk)
before, peak = resident(), [0]
codes = encode(Grey(), views, np.arange(n), batch_size=chunk)
for first in range(0, n, 3 * chunk):  # in any order, as training does
    views.train(np.random.default_rng(first).integers(0, n, chunk), 0)
    peak[0] = max(peak[0], resident())
np.save(folder / f"codes-{chunk}-{sys.argv[3]}.npy", codes)
print(peak[0] - before)
"""


@pytest.fixture(scope="module")
def large_store(tmp_path_factory):
    """5,000 images of 160 pixels, 384 MB: each a brightness of its own, with some noise."""
    noise = np.random.default_rng(0).integers(0, 6, (160, 160, 3), dtype=np.uint8)
    n = 5000

    class Opened:
        def __enter__(self):
            return lambda number: noise + np.uint8(number % 250)

        def __exit__(self, *exception):
            return None

    folder = tmp_path_factory.mktemp("large") / "x"
    open_images(
        folder,
        Opened,
        keys=[f"k{i}" for i in range(n)],
        labels=np.zeros(n, np.int64),
        classes=["a"],
        fingerprint="f",
        store_size=160,
        workers=0,
    )
    yield folder
    (folder / "images.npy").unlink()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_store_larger_than_memory_is_encoded_and_trained_on_batch_by_batch(large_store):
    codes = []
    for chunk, engine in ((50, "numba"), (173, "torch")):
        ran = subprocess.run(
            [sys.executable, "-c", LARGE, str(large_store), str(chunk), engine],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
        )
        assert ran.returncode == 0, ran.stderr
        assert int(ran.stdout) < 64 << 20
        codes.append(np.load(large_store / f"codes-{chunk}-{engine}.npy"))
    assert np.array_equal(*codes)
    # Brightness goes round every 250 images.
    assert np.array_equal(codes[0][:2500], codes[0][2500:])
    assert len(np.unique(codes[0][:, 0])) == 250
