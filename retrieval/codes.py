"""Binary codes: the sign with sgn(0) = +1, packing to bytes, unpacking."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sgn(continuous: NDArray[np.generic]) -> NDArray[np.int8]:
    """Take the sign in {-1, +1} with 0 counted as +1; same shape as the input, int8.

    Public code bases use ``torch.sign``, whose 0 gives half-integer Hamming distances.
    """
    return np.where(np.asarray(continuous) >= 0, 1, -1).astype(np.int8)


def pack(codes: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Pack (N, B) codes to (N, ceil(B / 8)) bytes: bit 1 where the code is >= 0, most significant
    bit first, the padding of the last byte 0.
    """
    return np.packbits(np.asarray(codes) >= 0, axis=1)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.int8]:
    """Unpack (N, ceil(B / 8)) bytes to (N, B) codes in {-1, +1}, int8."""
    unpacked = np.unpackbits(packed, axis=1, count=bits).astype(np.int8)
    return (unpacked * 2 - 1).astype(np.int8)


def packed_width(bits: int) -> int:
    """Return the bytes that a code of ``bits`` bits takes."""
    return -(-bits // 8)
