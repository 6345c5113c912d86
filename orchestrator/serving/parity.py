"""Whether what was exported gives the codes that torch gives, on real images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import pack

Images: TypeAlias = NDArray[Any]
"""What an exported network takes, (n, ...)."""

Network: TypeAlias = Callable[[Images], tuple[NDArray[np.uint8], NDArray[np.float32]]]
"""Images to packed codes (n, ceil(B / 8)) and continuous codes h (n, B)."""

TOLERANCE = 1e-5
"""Outputs nearer to zero than this may change sign: sums are rounded in another order."""

_DRIFT = 1e-3
"""Largest difference of h that is still rounding, as a share of the largest |h|."""

_ALONE = 8
"""Images that are encoded one by one, as on a phone; the others go in batches."""

_BATCH = 64


@dataclass(frozen=True)
class Parity:
    """How the codes of two networks differ on the same images.

    Attributes:
        images: how many were compared.
        bits: B.
        differing: bits that differ.
        near_zero: those of them where the reference's h is within the tolerance of zero.
        images_differing: images with any bit that differs.
        flipped_up_to: the largest |h_reference| of a bit that differs; 0 where none does.
        misplaced: bytes of the packed codes that are not the signs of the network's own h.
        largest_difference: max |h - h_reference|; infinite where an output is not a number.
        largest: max |h_reference|.
        tolerance: as given.
    """

    images: int
    bits: int
    differing: int
    near_zero: int
    images_differing: int
    flipped_up_to: float
    misplaced: int
    largest_difference: float
    largest: float
    tolerance: float

    @property
    def mismatches(self) -> int:
        """Bits that differ though they should not."""
        return self.differing - self.near_zero

    @property
    def rounding(self) -> bool:
        """Whether h differs by no more than sums in another order may."""
        small = self.largest_difference <= _DRIFT * max(self.largest, self.tolerance)
        return small and self.misplaced == 0

    @property
    def equal(self) -> bool:
        """Whether the networks are the same up to rounding."""
        return self.mismatches == 0 and self.rounding

    def to_json(self) -> dict[str, Any]:
        """Return the fields, the mismatches and the verdict."""
        values = asdict(self)
        if not np.isfinite(self.largest_difference):
            values["largest_difference"] = None  # JSON has no infinity
        return {**values, "mismatches": self.mismatches, "equal": self.equal}

    def text(self) -> str:
        """Return one line for people."""
        near = f", where |h| is up to {self.flipped_up_to:.2g}"
        return (
            f"{self.images:,} images, {self.images * self.bits:,} bits: "
            f"{self.differing:,} differ{near if self.differing else ''}; "
            f"largest difference of h {self.largest_difference:.2g} "
            f"(of outputs up to {self.largest:.2g})"
        )


def compare(
    codes: NDArray[np.uint8],
    h: NDArray[np.float32],
    reference: NDArray[np.float32],
    *,
    tolerance: float = TOLERANCE,
) -> Parity:
    """Compare the outputs of a network with those of another.

    Args:
        codes: (n, ceil(B / 8)) packed, of the network.
        h: (n, B) continuous, of the network.
        reference: (n, B) continuous, of the other.
        tolerance: outputs of the other this near to zero may change sign.
    """
    differs = np.unpackbits(codes ^ pack(reference), axis=1, count=reference.shape[1]) > 0
    near = np.abs(reference) <= tolerance
    gap = np.abs(h.astype(np.float64) - reference)
    return Parity(
        images=len(reference),
        bits=reference.shape[1],
        differing=int(differs.sum()),
        near_zero=int((differs & near).sum()),
        images_differing=int(differs.any(axis=1).sum()),
        flipped_up_to=float(np.abs(reference)[differs].max(initial=0.0)),
        misplaced=int((codes != pack(h)).sum()),
        largest_difference=float(gap.max()) if np.isfinite(gap).all() else float("inf"),
        largest=float(np.abs(reference).max()),
        tolerance=tolerance,
    )


def outputs(
    network: Network, n: int, images: Callable[[slice], Images]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return a network's outputs for images, the first of them one by one.

    Args:
        network: which.
        n: how many images there are.
        images: returns those of a range, as the network takes them.

    Returns:
        Packed codes (n, ceil(B / 8)) and h (n, B).
    """
    parts = [network(images(part)) for part in batches(n)]
    codes, h = zip(*parts, strict=True)
    return np.concatenate(codes), np.concatenate(h)


def batches(n: int) -> Iterator[slice]:
    """Yield ranges that cover n images: single ones first, then batches."""
    alone = min(n, _ALONE)
    yield from (slice(place, place + 1) for place in range(alone))
    yield from (slice(first, min(n, first + _BATCH)) for first in range(alone, n, _BATCH))
