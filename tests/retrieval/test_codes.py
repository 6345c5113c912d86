from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from retrieval.codes import pack, packed_width, sgn, unpack


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.int64])
def test_sgn_of_zero_is_plus_one_in_every_type(dtype):
    signs = sgn(np.array([[-2, 0, 3]], dtype=dtype))
    assert signs.tolist() == [[-1, 1, 1]]
    assert signs.dtype == np.int8


def test_sgn_of_negative_zero_is_plus_one():
    assert sgn(np.array([-0.0])).tolist() == [1]


def test_pack_puts_the_first_bit_highest_and_pads_with_zero():
    # 1 0 1 1 0 0 0 1 | 1 1 then padding: 0xB1, 0xC0
    codes = np.array([[1, -1, 1, 1, -1, -1, -1, 1, 1, 1]])
    assert pack(codes).tolist() == [[0xB1, 0xC0]]


def test_pack_counts_zero_as_plus_one():
    assert pack(np.array([[0.0, -1.0, 0.0]])).tolist() == [[0b10100000]]


@given(
    st.integers(1, 70).flatmap(
        lambda b: arrays(np.bool_, st.tuples(st.integers(1, 5), st.just(b)))
    )
)
def test_unpack_inverts_pack(ones):
    codes = np.where(ones, 1, -1).astype(np.int8)
    bits = codes.shape[1]
    packed = pack(codes)
    assert packed.shape == (len(codes), packed_width(bits))
    assert np.array_equal(unpack(packed, bits), codes)


@pytest.mark.parametrize(("bits", "width"), [(1, 1), (8, 1), (9, 2), (12, 2), (64, 8), (65, 9)])
def test_packed_width_rounds_up(bits, width):
    assert packed_width(bits) == width
