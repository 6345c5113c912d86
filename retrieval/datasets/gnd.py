"""Ground truth of ROxford5k and RParis6k: the pickles as given out, or the same as JSON.

Both hold ``{"imlist": [...], "qimlist": [...], "gnd": [{"bbx": [left, top, right, lower],
"easy": [...], "hard": [...], "junk": [...]}, ...]}``: names of gallery and query images without
".jpg", and for each query numbers into the former.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.datasets.pickles import Array, read_pickle
from retrieval.metrics.landmarks import Ints, Landmark

LARGEST = 16 << 20
"""Bytes of the largest file that is read; those given out have less than one thirtieth."""

_MOST = 10_000_000
"""Judgements, of all queries together; a file may name one list for many queries."""

_KINDS = ("easy", "hard", "junk")


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """What one file says.

    Attributes:
        gallery: (N,) names of gallery images; `landmarks` hold numbers into it.
        queries: (Q,) names of query images.
        landmarks: (Q,) what is known of each query.
    """

    gallery: list[str]
    queries: list[str]
    landmarks: list[Landmark]

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain values in the structure of the file."""
        return {
            "imlist": self.gallery,
            "qimlist": self.queries,
            "gnd": [
                {
                    **({} if known.box is None else {"bbx": list(known.box)}),
                    **{kind: getattr(known, kind).tolist() for kind in _KINDS},
                }
                for known in self.landmarks
            ],
        }

    def digest(self) -> str:
        """Return the SHA-256 of the content, the same for a pickle and for JSON."""
        return hashlib.sha256(json.dumps(self.to_json()).encode()).hexdigest()


def read_ground_truth(data: bytes) -> GroundTruth:
    """Read a ground truth file; nothing in it is executed.

    Args:
        data: a pickle of any protocol, or JSON.

    Raises:
        ValueError: neither, or not of that structure, or it contradicts itself; says where.
    """
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST >> 20} MiB, which no ground truth has")
    if data.lstrip()[:1] in (b"{", b"["):  # neither is an instruction of a pickle
        try:
            raw = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is no JSON: {error}") from None
    else:
        try:
            raw = read_pickle(data)
        except ValueError as error:
            raise ValueError(f"it is no pickle that can be read safely: {error}") from None
    return _checked(raw)


def read_ground_truth_file(path: str | os.PathLike[str]) -> GroundTruth:
    """Read ground truth from a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: see `read_ground_truth`.
    """
    with Path(path).open("rb") as stream:
        return read_ground_truth(stream.read(LARGEST + 1))


def write_ground_truth(truth: GroundTruth, path: str | os.PathLike[str]) -> None:
    """Write ground truth as JSON, which any program can read and none can execute.

    Raises:
        OSError: the file cannot be written.
    """
    Path(path).write_text(json.dumps(truth.to_json()), encoding="utf-8")


def _checked(raw: Any) -> GroundTruth:
    if not isinstance(raw, Mapping):
        raise ValueError(f"it must hold 'imlist', 'qimlist' and 'gnd', found {_shown(raw)}")
    if missing := [key for key in ("imlist", "qimlist", "gnd") if key not in raw]:
        found = ", ".join(map(repr, list(raw)[:8]))
        raise ValueError(f"it has no {missing[0]!r}, only {found or 'nothing'}")
    gallery, queries = _names(raw["imlist"], "imlist"), _names(raw["qimlist"], "qimlist")
    if both := set(gallery) & set(queries):
        raise ValueError(
            f"{len(both)} images are in 'imlist' and in 'qimlist', the first is {min(both)!r}; "
            "the benchmark takes queries out of the gallery"
        )
    entries = raw["gnd"]
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        raise ValueError(f"'gnd' must be a list, found {_shown(entries)}")
    if len(entries) != len(queries):
        raise ValueError(f"'gnd' has {len(entries)} entries for {len(queries)} queries")
    judged = sum(map(_judgements, entries))
    if judged > _MOST:
        raise ValueError(f"'gnd' has {judged:,} judgements, which no ground truth has")
    landmarks = [
        _landmark(entry, len(gallery), f"gnd[{number}]") for number, entry in enumerate(entries)
    ]
    if not any(len(known.easy) or len(known.hard) for known in landmarks):
        raise ValueError("no query has an easy or a hard image")
    return GroundTruth(gallery, queries, landmarks)


def _judgements(entry: Any) -> int:
    """Return how many numbers an entry has, as far as it is one."""
    count = 0
    for kind in _KINDS if isinstance(entry, Mapping) else ():
        value = entry.get(kind)
        listed = value.values if isinstance(value, Array) else value
        count += len(listed) if isinstance(listed, list | tuple | np.ndarray) else 0
    return count


def _names(value: Any, key: str) -> list[str]:
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"{key!r} must be a list of names, found {_shown(value)}")
    names = []
    for number, given in enumerate(value):
        name = given.decode("utf-8", "replace") if isinstance(given, bytes) else given
        if (
            not isinstance(name, str)
            or not name
            or not name.isprintable()
            or "\N{REPLACEMENT CHARACTER}" in name
            or "/" in name
            or "\\" in name
            or name.startswith(".")
        ):
            raise ValueError(f"{key}[{number}] is no name of an image: {_shown(given)}")
        names.append(name)
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{key!r} has {twice!r} twice")
    return names


def _landmark(entry: Any, items: int, where: str) -> Landmark:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must hold 'easy', 'hard' and 'junk', found {_shown(entry)}")
    if "ok" in entry and "easy" not in entry:
        raise ValueError(
            f"{where} has 'ok' instead of 'easy' and 'hard': this is ground truth of the original "
            "Oxford or Paris, the revisited one is needed"
        )
    found: dict[str, Ints] = {}
    for kind in _KINDS:
        if kind not in entry and kind != "junk":
            raise ValueError(f"{where} has no {kind!r}")
        found[kind] = _numbers(entry.get(kind, []), items, f"{where}.{kind}")
    together, counts = np.unique(np.concatenate(list(found.values())), return_counts=True)
    if np.any(counts > 1):
        twice = int(together[np.argmax(counts > 1)])
        raise ValueError(f"{where} lists image {twice} twice among easy, hard and junk")
    box = entry.get("bbx")
    return Landmark(**found, box=None if box is None else _box(box, f"{where}.bbx"))


def _numbers(value: Any, items: int, where: str) -> Ints:
    """Return increasing numbers into the gallery."""
    numbers = _values(value, where)
    for number in numbers:
        whole = isinstance(number, int) or (isinstance(number, float) and number.is_integer())
        if not whole or isinstance(number, bool):
            raise ValueError(f"{where} must be a list of whole numbers, it has {_shown(number)}")
        if not 0 <= number < items:
            raise ValueError(f"{where} has {_shown(number)}, but there are {items} gallery images")
    return np.sort(np.array(numbers, dtype=np.int64))


def _box(value: Any, where: str) -> tuple[float, float, float, float]:
    numbers = _values(value, where)
    good = len(numbers) == 4 and all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)
        for n in numbers
    )
    if not good or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]):
        raise ValueError(
            f"{where} must be left, top, right and lower edge in pixels, found {_shown(numbers)}"
        )
    left, top, right, lower = map(float, numbers)
    return left, top, right, lower


def _values(value: Any, where: str) -> list[Any]:
    if isinstance(value, Array):
        return list(value.values.tolist())
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list of numbers, found {_shown(value)}")
    return list(value)


def _shown(value: object) -> str:
    """Return a value for a message, whatever its size or depth."""
    if value is None:
        return "nothing"
    if isinstance(value, Array):
        return f"{len(value.values)} numbers"
    if isinstance(value, dict | tuple | list):
        short = isinstance(value, list) and len(value) <= 6
        if short and all(isinstance(item, int | float) for item in value):
            return str(value)
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
