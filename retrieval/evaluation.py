"""Evaluate codes and labels stored in ``.npy`` files, refusing what cannot be meant.

Everything that a user can get wrong here raises `InputError` with the option's name: a file that
is silently misread is a wrong number in a table.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import pack, packed_width, unpack
from retrieval.engines import EngineName
from retrieval.errors import InputError
from retrieval.metrics import Evaluation, evaluate, mean, resolve_cutoff
from retrieval.metrics.literature import check_legacy, legacy_average_precision
from retrieval.ranking import MEMORY_LIMIT, has_padding

if TYPE_CHECKING:
    from retrieval.datasets.gnd import GroundTruth
    from retrieval.metrics.landmarks import LandmarkEvaluation

QUERY_CODES, GALLERY_CODES = "--query-codes", "--gallery-codes"
QUERY_LABELS, GALLERY_LABELS = "--query-labels", "--gallery-labels"
GND = "--gnd"

#: Options that are checked where they are used, by the name they have there.
_OPTIONS = {
    "bootstrap": "--bootstrap",
    "engine": "--engine",
    "threads": "--threads",
    "memory_limit": "--memory-limit",
}


class Codes(NamedTuple):
    """Codes of one file.

    Attributes:
        packed: (N, ceil(B / 8)) packed codes.
        bits: B.
        outputs: (N, B) as they are in the file; None of a packed file.
    """

    packed: NDArray[np.uint8]
    bits: int
    outputs: NDArray[Any] | None

    @property
    def zeros(self) -> bool:
        """Whether any value is 0, which has no sign of its own."""
        return self.outputs is not None and not np.all(self.outputs)


def evaluate_files(
    query_codes: str | os.PathLike[str],
    gallery_codes: str | os.PathLike[str],
    query_labels: str | os.PathLike[str],
    gallery_labels: str | os.PathLike[str],
    bits: int | None = None,
    at: int | str = "all",
    *,
    legacy: Sequence[str] = (),
    bootstrap: int = 1000,
    engine: EngineName = "auto",
    threads: int = 1,
    memory_limit: int = MEMORY_LIMIT,
) -> Evaluation:
    """Evaluate the codes and labels of four ``.npy`` files.

    Args:
        query_codes: (Q, B) signed integers or floats, whose sign is the code with sgn(0) = +1;
            or packed codes, (Q, ceil(B / 8)) uint8, most significant bit first, with ``bits``.
        gallery_codes: (N, B) or (N, ceil(B / 8)), likewise.
        query_labels: (Q,) integers, or (Q, C) multi-hot of 0 and 1.
        gallery_labels: (N,) integers, or (N, C) multi-hot of 0 and 1.
        bits: B; needed for packed codes, checked against the others.
        at: cut-off K of AP in ranks, or "all".
        legacy: names of public code bases whose mAP to compute too. They keep sgn(0) = 0: files
            that hold zeros are ranked anew for them, one query after another.
        bootstrap: resamples of the interval of mAP, at least 39; 0 for no interval.
        engine: how to count: "auto", or a name of `retrieval.engines.ENGINES`.
        threads: chunks of queries that are counted at the same time.
        memory_limit: bytes that counting may work in.

    Raises:
        InputError: a file is missing or no such array, two of them do not fit together, or
            an option is out of range; the error's key is the option.
    """
    resolve_cutoff(at, 1, key="--at")
    modes = check_legacy(legacy, key="--legacy")
    query, gallery = load_code_files(query_codes, gallery_codes, bits)
    labels = [
        _load_labels(query_labels, QUERY_LABELS, len(query.packed), QUERY_CODES),
        _load_labels(gallery_labels, GALLERY_LABELS, len(gallery.packed), GALLERY_CODES),
    ]
    if labels[0].shape[1:] != labels[1].shape[1:]:
        raise InputError(
            f"the gallery's labels are {_describe(labels[1])}, the queries' "
            f"{_describe(labels[0])}; both must be integers (N,), or multi-hot with the same C",
            key=GALLERY_LABELS,
            where=os.fspath(gallery_labels),
        )
    from_outputs = bool(modes) and (query.zeros or gallery.zeros)
    try:
        scored = evaluate(
            query.packed,
            gallery.packed,
            labels[0],
            labels[1],
            query.bits,
            at,
            bootstrap=bootstrap,
            legacy=() if from_outputs else modes,
            engine=engine,
            threads=threads,
            memory_limit=memory_limit,
        )
    except InputError as error:
        error.key = _OPTIONS.get(error.key or "", error.key)
        raise
    if not from_outputs:
        return scored
    outputs = _outputs(query), _outputs(gallery)
    return dataclasses.replace(
        scored,
        legacy={
            mode: mean(legacy_average_precision(*outputs, labels[0], labels[1], mode, at))
            for mode in modes
        },
    )


def _outputs(codes: Codes) -> NDArray[Any]:
    """Return (N, B) values whose signs are the codes, zeros included where the file has them."""
    return unpack(codes.packed, codes.bits) if codes.outputs is None else codes.outputs


def evaluate_landmark_files(
    query_codes: str | os.PathLike[str],
    gallery_codes: str | os.PathLike[str],
    gnd: str | os.PathLike[str],
    bits: int | None = None,
) -> LandmarkEvaluation:
    """Evaluate the codes of two ``.npy`` files by a ground truth file.

    Args:
        query_codes: codes as `evaluate_files` takes them, one for each query
            in the order of ``qimlist``.
        gallery_codes: likewise, one for each image in the order of ``imlist``.
        gnd: the pickle as given out, which is read without executing it, or the same as JSON.
        bits: B; needed for packed codes, checked against the others.

    Raises:
        InputError: a file is missing or not what it should be, or two do not fit together; the
            error's key is the option.
    """
    from retrieval.metrics.landmarks import evaluate_landmarks

    query, gallery = load_code_files(query_codes, gallery_codes, bits)
    truth = _load_truth(gnd)
    for key, path, codes, wanted, listed in (
        (QUERY_CODES, query_codes, query, truth.queries, "qimlist"),
        (GALLERY_CODES, gallery_codes, gallery, truth.gallery, "imlist"),
    ):
        if len(codes.packed) != len(wanted):
            raise InputError(
                f"has {len(codes.packed):,} codes; {listed!r} of the ground truth has "
                f"{len(wanted):,} images",
                key=key,
                where=os.fspath(path),
            )
    return evaluate_landmarks(query.packed, gallery.packed, truth.landmarks, query.bits)


def _load_truth(gnd: str | os.PathLike[str]) -> GroundTruth:
    from retrieval.datasets.gnd import read_ground_truth_file

    try:
        return read_ground_truth_file(gnd)
    except ValueError as error:
        raise InputError(str(error), key=GND, where=os.fspath(gnd)) from None
    except OSError as error:
        reason = error.strerror or "it is no file"
        raise InputError(f"cannot be read: {reason}", key=GND, where=os.fspath(gnd)) from None


def load_code_files(
    query_codes: str | os.PathLike[str],
    gallery_codes: str | os.PathLike[str],
    bits: int | None = None,
) -> tuple[Codes, Codes]:
    """Return the codes of two ``.npy`` files, as `evaluate_files` takes them.

    Raises:
        InputError: a file is missing or no such array, or the two have different lengths.
    """
    if bits is not None and not _is_count(bits):
        raise InputError("a code length is a whole number of at least 1", key="--bits", value=bits)
    query = _load_codes(query_codes, QUERY_CODES, bits)
    gallery = _load_codes(gallery_codes, GALLERY_CODES, bits)
    if query.bits != gallery.bits:
        raise InputError(
            f"the gallery's codes have {gallery.bits} bits, the queries' {query.bits}; "
            "both sides must be encoded to the same length",
            key=GALLERY_CODES,
            where=os.fspath(gallery_codes),
        )
    return query, gallery


def _load_codes(path: str | os.PathLike[str], key: str, bits: int | None) -> Codes:
    """Return the codes of a file."""
    where = os.fspath(path)
    codes = _load(path, key)
    if codes.ndim != 2:
        raise InputError(
            f"codes must be of shape (N, B), or (N, bytes) when packed; got shape {codes.shape}",
            key=key,
            where=where,
        )
    _refuse_empty(codes, key, where)
    if codes.dtype == np.uint8:
        return Codes(*_check_packed(codes, bits, key, where), None)
    if codes.dtype.kind not in "if":
        raise InputError(
            f"codes must be signed integers or floats, or uint8 when packed; got {codes.dtype}",
            key=key,
            where=where,
            hint="a code is the sign of its value: write -1 and +1, not 0 and 1 or False and True",
        )
    width = codes.shape[1]
    if bits is not None and bits != width:
        raise InputError(
            f"codes are {width} bits wide, but --bits is {bits}; "
            "--bits can be left out for codes that are not packed",
            key=key,
            where=where,
        )
    if not np.isfinite(codes).all():
        row, column = np.argwhere(~np.isfinite(codes))[0].tolist()
        raise InputError(
            f"codes must be finite; row {row}, column {column} is {codes[row, column]}",
            key=key,
            where=where,
        )
    if np.isin(codes, (0, 1)).all() and np.unique(codes).size == 2:
        raise InputError(
            "every value is 0 or 1, so that every sign would be +1",
            key=key,
            where=where,
            hint="write codes as -1 and +1 (2 * codes - 1), or packed: np.packbits(codes, axis=1)",
        )
    return Codes(pack(codes), width, codes)


def _check_packed(
    codes: NDArray[np.uint8], bits: int | None, key: str, where: str
) -> tuple[NDArray[np.uint8], int]:
    """Return packed codes with their length once the two agree."""
    width = codes.shape[1]
    if bits is None:
        raise InputError(
            f"uint8 arrays are packed codes, and {width} bytes may hold {8 * width - 7} to "
            f"{8 * width} bits: packed codes need --bits",
            key=key,
            where=where,
        )
    if width != packed_width(bits):
        raise InputError(
            f"codes of {bits} bits are packed to {packed_width(bits)} bytes, "
            f"but the array has {width} columns",
            key=key,
            where=where,
            hint="uint8 arrays are taken as packed; save codes of -1 and +1 as int8",
        )
    if has_padding(codes, bits):
        raise InputError(
            f"bits after the first {bits} are set in the last byte; they must be 0",
            key=key,
            where=where,
            hint="codes are packed most significant bit first, as np.packbits does; check --bits",
        )
    return np.ascontiguousarray(codes), bits


def _load_labels(
    path: str | os.PathLike[str], key: str, expected: int, codes_key: str
) -> NDArray[np.generic]:
    """Return labels, one or one row for each of the ``expected`` codes."""
    where = os.fspath(path)
    labels = _load(path, key)
    if labels.ndim not in (1, 2):
        raise InputError(
            f"labels must be integers (N,) or multi-hot (N, C); got shape {labels.shape}",
            key=key,
            where=where,
        )
    _refuse_empty(labels, key, where)
    if len(labels) != expected:
        raise InputError(
            f"{len(labels)} labels for the {expected} codes of {codes_key}", key=key, where=where
        )
    if labels.ndim == 1:
        if labels.dtype.kind not in "iu":
            raise InputError(
                f"labels of shape (N,) must be integers; got {labels.dtype}",
                key=key,
                where=where,
                hint="convert whole numbers with labels.astype(np.int64)",
            )
        if labels.dtype.kind == "u" and int(labels.max()) > np.iinfo(np.int64).max:
            raise InputError("labels must be below 2^63", key=key, where=where)
        return labels
    if labels.dtype.kind not in "biuf" or not np.isin(labels, (0, 1)).all():
        raise InputError(
            "labels of shape (N, C) must be multi-hot, every value 0 or 1",
            key=key,
            where=where,
            hint="one class number for each item goes in an array of shape (N,)",
        )
    multi_hot: NDArray[np.bool_] = labels != 0
    return multi_hot


def load_scores(path: str | os.PathLike[str], key: str) -> NDArray[np.float64]:
    """Read the scores of queries, as ``asymbench evaluate --output`` writes them.

    Args:
        path: a .npy file, (Q,) in [0, 1], NaN where a query has no answer.
        key: the option to name in messages.

    Raises:
        InputError: it cannot be read, or does not hold such scores.
    """
    where = os.fspath(path)
    scores = _load(path, key)
    if scores.ndim != 1:
        raise InputError(
            f"scores must be one a query, (Q,); got shape {scores.shape}", key=key, where=where
        )
    _refuse_empty(scores, key, where)
    values: NDArray[np.float64] = scores.astype(np.float64)
    wrong = np.flatnonzero((values < 0) | (values > 1))
    if wrong.size:
        first = int(wrong[0])
        raise InputError(
            f"scores lie in [0, 1]; query {first} has {values[first]:g}", key=key, where=where
        )
    return values


def _load(path: str | os.PathLike[str], key: str) -> NDArray[Any]:
    """Read one array; nothing in the file is executed."""
    where = os.fspath(path)
    try:
        if Path(path).is_dir():
            raise InputError("is a folder; expected a .npy file", key=key, where=where)
        loaded = np.load(path, allow_pickle=False)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("no such file", key=key, where=where) from None
    except OSError as error:
        reason = error.strerror or "it ends before its data do"
        raise InputError(f"cannot be read: {reason}", key=key, where=where) from error
    except Exception as error:  # numpy parses headers with many kinds of errors
        if _ends_early(path):
            raise InputError("ends before its data do", key=key, where=where) from error
        raise InputError(
            "is not a .npy file of numbers",
            key=key,
            where=where,
            hint="write it with np.save(path, array); pickles and object arrays are not read",
        ) from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise InputError(
            "is an .npz archive; expected a .npy file",
            key=key,
            where=where,
            hint="save the one array with np.save(path, array)",
        )
    if loaded.dtype.kind not in "biuf":
        raise InputError(f"must hold numbers; got {loaded.dtype}", key=key, where=where)
    return loaded


def _ends_early(path: str | os.PathLike[str]) -> bool:
    """Return whether a .npy file of numbers is shorter than its header says."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    try:
        with Path(path).open("rb") as stream:
            shape, _, dtype = readers[np.lib.format.read_magic(stream)](stream)
            held = os.fstat(stream.fileno()).st_size - stream.tell()
    except Exception:  # as above: no header, which the caller says
        return False
    return not dtype.hasobject and held < math.prod(shape) * dtype.itemsize


def _refuse_empty(array: NDArray[Any], key: str, where: str) -> None:
    if not array.size:
        raise InputError(f"the array is empty, shape {array.shape}", key=key, where=where)


def _describe(labels: NDArray[Any]) -> str:
    return "integers (N,)" if labels.ndim == 1 else f"multi-hot with C = {labels.shape[1]}"


def _is_count(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return bool(value >= 1)
