"""Checkpoints of a stage in work: safetensors files, whole or absent, the newest that reads."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEEP = 2
"""Checkpoints kept, so that one that does not read leaves another."""


class Checkpoints:
    """The checkpoints in a stage's work folder.

    Args:
        folder: the work folder.
        every: least seconds between two checkpoints; 0 takes one after each epoch.
    """

    def __init__(self, folder: Path, *, every: float = 0.0) -> None:
        self.folder = folder
        self.every = every
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another."""
        return time.monotonic() - self._last >= self.every

    def save(self, epochs: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        """Save the state after ``epochs`` whole epochs, atomically; forget the oldest.

        Args:
            epochs: epochs trained.
            tensors: everything training goes on from.
            notes: JSON values kept beside them.
        """
        from safetensors.torch import save_file

        path = self.folder / f"checkpoint-{epochs:05d}.safetensors"
        temporary = path.with_suffix(".tmp")
        contiguous = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        save_file(contiguous, temporary, metadata={"notes": json.dumps(notes)})
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
        for old in self._paths()[:-KEEP]:
            old.unlink()
        self._last = time.monotonic()

    def load(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """Return (epochs, tensors, notes) of the newest checkpoint that reads, or None.

        One that does not read (a torn write, a damaged disk) is removed, and the one before is
        used: the epochs between are trained again, to the same bits.
        """
        from safetensors import SafetensorError, safe_open

        for path in reversed(self._paths()):
            try:
                with safe_open(path, framework="pt") as opened:
                    notes = json.loads((opened.metadata() or {})["notes"])
                    tensors = {name: opened.get_tensor(name) for name in opened.keys()}
            except (SafetensorError, KeyError, json.JSONDecodeError):
                path.unlink()
                continue
            return int(path.stem.removeprefix("checkpoint-")), tensors, notes
        return None

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("checkpoint-*.safetensors"))
