"""Recordings: the gallery's codes for every training sample in every epoch, one file an epoch.

Where the query's loss reads only the sign, a file holds packed bits, B bits a sample; where it
reads the continuous code, float32. A file appears by one rename when its epoch is complete, so an
interrupted gallery goes on after its last whole epoch. A checkpoint holds the digests of the
epochs before it, so that what is gone on from is what was recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.atomic import open_atomic
from retrieval.codes import pack, packed_width, unpack

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["sign", "float"]


def epoch_name(epoch: int) -> str:
    """Return the file name of an epoch's codes."""
    return f"recording/epoch-{epoch:05d}.npy"


@dataclass(frozen=True)
class _Writer:
    write: Callable[[bytes], int]


def save_array(path: Path, array: NDArray[np.generic]) -> None:
    """Write an array as a .npy file that is there whole, and on the disk, or not at all."""
    path.parent.mkdir(exist_ok=True)
    with open_atomic(path, size=array.nbytes) as stream:
        # Given a file, NumPy does not say what the system said of a disk that is full.
        np.save(_Writer(stream.write), array, allow_pickle=False)


class Recorder:
    """Writes a recording into a stage's work folder.

    Args:
        folder: the work folder.
        kind: "sign" or "float".
        n: training samples.
        bits: code length.
    """

    def __init__(self, folder: Path, kind: Kind, n: int, bits: int) -> None:
        self.folder = folder
        self.kind = kind
        width = packed_width(bits) if kind == "sign" else bits
        self._shape = (n, width)
        self._dtype = np.uint8 if kind == "sign" else np.float32
        self._epoch: NDArray[np.generic] | None = None

    def begin(self, epoch: int) -> None:
        """Start an epoch's codes from nothing; samples that no batch holds stay 0."""
        self._epoch = np.zeros(self._shape, dtype=self._dtype)

    def write(self, positions: NDArray[np.int64], h_g: Tensor) -> None:
        """Keep the codes (n, B) of these samples."""
        assert self._epoch is not None
        values = h_g.detach().float().cpu().numpy()
        self._epoch[positions] = pack(values) if self.kind == "sign" else values

    def end(self, epoch: int) -> None:
        """Make the epoch durable."""
        assert self._epoch is not None
        save_array(self.folder / epoch_name(epoch), self._epoch)
        self._epoch = None


class Replay:
    """Reads a recording back, epoch by epoch.

    Args:
        folder: the folder of the finished stage that recorded.
        kind: as recorded.
        bits: code length.
        device: where the codes go.
        check: called with an epoch's file name before the file is opened; raises if it is damaged.
    """

    def __init__(
        self,
        folder: Path,
        kind: Kind,
        bits: int,
        device: str = "cpu",
        *,
        check: Callable[[str], object] | None = None,
    ) -> None:
        self.folder = folder
        self.kind = kind
        self.bits = bits
        self.device = device
        self.check = check
        self._loaded: tuple[int, NDArray[np.generic]] | None = None

    def codes(self, epoch: int, positions: NDArray[np.int64], views: Tensor) -> Tensor:
        """Return the recorded codes (n, B) of these samples: h_g, or b_g in {-1, +1}."""
        import torch

        if self._loaded is None or self._loaded[0] != epoch:
            if self.check is not None:
                self.check(epoch_name(epoch))
            path = self.folder / epoch_name(epoch)
            self._loaded = (epoch, np.load(path, mmap_mode="r", allow_pickle=False))
        rows = np.asarray(self._loaded[1][positions])
        values = unpack(rows, self.bits) if self.kind == "sign" else rows
        return torch.from_numpy(values.astype(np.float32)).to(self.device)
