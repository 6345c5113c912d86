from __future__ import annotations

import numpy as np
import pytest

from retrieval import streams


# Known answers published with Random123 (kat_vectors, philox4x32, 10 rounds). The key is two
# words, of which the first is the low word of our 64-bit key.
@pytest.mark.parametrize(
    ("counter", "key_words", "expected"),
    [
        ([0] * 4, [0, 0], [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        (
            [0xFFFFFFFF] * 4,
            [0xFFFFFFFF, 0xFFFFFFFF],
            [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        ),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_published_words(counter, key_words, expected):
    key = key_words[0] | key_words[1] << 32
    words = streams.philox4x32(np.array([counter], dtype=np.uint64), key)
    assert words.tolist() == [expected]
    assert words.dtype == np.uint32


def test_philox_of_many_counters_equals_one_at_a_time():
    counters = np.random.default_rng(0).integers(0, 2**32, (50, 4)).astype(np.uint64)
    together = streams.philox4x32(counters, 7)
    alone = np.concatenate([streams.philox4x32(counter[None], 7) for counter in counters])
    assert np.array_equal(together, alone)


def test_derive_tells_order_type_and_borders_of_parts_apart():
    assert streams.derive(1, "a") == streams.derive(1, "a")
    values = [
        streams.derive(*parts)
        for parts in [
            (1, "a"),
            ("a", 1),
            ("1", "a"),
            (1, "b"),
            (2, "a"),
            ("1a",),
            (1, "a", ""),
            (),
        ]
    ]
    assert len(set(values)) == len(values)
    assert all(0 <= value < 2**64 for value in values)


@pytest.mark.parametrize("draw", [streams.words, streams.uniform, streams.signs])
def test_draws_of_a_subset_in_any_order_equal_those_of_the_whole(draw):
    ids = np.arange(100)
    whole = draw(3, "crop", ids, 6)
    subset = np.array([99, 4, 4, 17])
    draw(3, "other", ids, 6)  # a call in between leaves no trace
    assert np.array_equal(draw(3, "crop", subset, 6), whole[subset])


def test_fewer_words_are_a_prefix_of_more():
    ids = np.array([5, 2**40 + 3])
    assert np.array_equal(streams.words(0, "p", ids, 3), streams.words(0, "p", ids, 9)[:, :3])
    assert streams.words(0, "p", ids, 0).shape == (2, 0)


def test_seed_purpose_epoch_and_both_words_of_the_id_move_the_draw():
    base = streams.words(0, "p", np.array([1]), 4)
    others = [
        streams.words(1, "p", np.array([1]), 4),
        streams.words(0, "q", np.array([1]), 4),
        streams.words(0, "p", np.array([1]), 4, epoch=1),
        streams.words(0, "p", np.array([2]), 4),
        streams.words(0, "p", np.array([1 + 2**32]), 4),
    ]
    assert not any(np.array_equal(base, other) for other in others)


def test_uniform_is_in_range_and_flat():
    draw = streams.uniform(0, "u", np.arange(20000), 2)
    assert draw.min() >= 0.0
    assert draw.max() < 1.0
    # Each of 10 cells expects 4,000 with sd 60; six sd on either side.
    counts = np.histogram(draw, bins=10, range=(0, 1))[0]
    assert np.abs(counts - 4000).max() < 360


def test_signs_are_balanced_and_of_both_values():
    draw = streams.signs(0, "tie", np.arange(10000), 1)
    assert set(np.unique(draw).tolist()) == {-1, 1}
    assert abs(int(draw.sum())) < 600  # sd 100


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutation_holds_each_index_once(n):
    order = streams.permutation(0, "order", n)
    assert sorted(order.tolist()) == list(range(n))


def test_permutation_differs_by_epoch_and_repeats_by_seed():
    first = streams.permutation(0, "order", 100, epoch=0)
    assert np.array_equal(first, streams.permutation(0, "order", 100, epoch=0))
    assert not np.array_equal(first, streams.permutation(0, "order", 100, epoch=1))
    assert not np.array_equal(first, streams.permutation(1, "order", 100, epoch=0))


def test_generator_repeats_and_depends_on_purpose():
    first = streams.generator(0, "mds", 3).random(8)
    assert np.array_equal(first, streams.generator(0, "mds", 3).random(8))
    assert not np.array_equal(first, streams.generator(0, "mds", 4).random(8))


def test_torch_stream_repeats_inside_and_leaves_no_trace_outside():
    torch = pytest.importorskip("torch")
    torch.manual_seed(11)
    undisturbed = torch.rand(6)
    torch.manual_seed(11)
    before = torch.rand(3)
    with streams.torch_stream(0, "query", 2):
        first = torch.rand(4)
    after = torch.rand(3)
    with streams.torch_stream(0, "query", 2):
        second = torch.rand(4)
    with streams.torch_stream(0, "gallery", 2):
        other = torch.rand(4)
    assert torch.equal(torch.cat([before, after]), undisturbed)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_torch_stream_restores_the_state_after_an_exception():
    torch = pytest.importorskip("torch")
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="boom"), streams.torch_stream(0, "x"):
        torch.rand(1)
        raise RuntimeError("boom")
    assert torch.equal(torch.get_rng_state(), state)
