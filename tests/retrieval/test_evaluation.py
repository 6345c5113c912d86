from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval.codes import pack
from retrieval.errors import InputError
from retrieval.evaluation import evaluate_files
from retrieval.metrics import evaluate
from retrieval.metrics.literature import LEGACY, legacy_average_precision

KEYS = ["--query-codes", "--gallery-codes", "--query-labels", "--gallery-labels"]
BITS = 12


def arrays():
    rng = np.random.default_rng(0)
    return [
        rng.normal(size=(5, BITS)), rng.normal(size=(20, BITS)),
        rng.integers(0, 3, 5), rng.integers(0, 3, 20),
    ]  # fmt: skip


@pytest.fixture
def save(tmp_path):
    def write(values):
        paths = []
        for key, value in zip(KEYS, values, strict=True):
            path = tmp_path / f"{key[2:]}.npy"
            np.save(path, value)
            paths.append(path)
        return paths

    return write


def refusal(paths, **options):
    with pytest.raises(InputError) as caught:
        evaluate_files(*paths, **options)
    return caught.value


def packed(values):
    return [pack(values[0]), pack(values[1]), *values[2:]]


def test_packed_signs_and_real_codes_give_the_same_evaluation(save):
    values = arrays()
    real = evaluate_files(*save(values))
    assert (real.bits, real.queries, real.gallery, real.at) == (BITS, 5, 20, "all")
    assert 0 < real.map < 1
    signs = [np.where(v >= 0, 1, -1) for v in values[:2]]
    for dtype in (np.int8, np.int64, np.float16, np.float32, ">f8"):
        assert evaluate_files(*save([s.astype(dtype) for s in signs] + values[2:])) == real
    assert evaluate_files(*save(packed(values)), bits=BITS) == real
    assert evaluate_files(*save(values), bits=BITS) == real
    assert evaluate_files(*save([pack(values[0]), *values[1:]]), bits=BITS) == real
    assert evaluate_files(*map(str, save([np.asfortranarray(v) for v in values]))) == real


def test_zero_is_plus_one(save):
    values = arrays()
    zeros = [np.where(v >= 0, 0.0, v) for v in values[:2]]
    assert evaluate_files(*save(zeros + values[2:])) == evaluate_files(*save(values))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_one_hot_labels_equal_integers(save, dtype):
    values = arrays()
    hot = [np.eye(3, dtype=dtype)[v] for v in values[2:]]
    assert evaluate_files(*save(values[:2] + hot)) == evaluate_files(*save(values))


def test_cutoff_reaches_the_evaluation(save):
    assert evaluate_files(*save(arrays()), at=3).at == 3


@pytest.mark.parametrize("at", [0, -1, -7, 2.5, True, "al"])
def test_cutoff_out_of_range_is_refused_and_all_is_named(save, at):
    error = refusal(save(arrays()), at=at)
    assert error.key == "--at"
    assert error.value == at
    assert "'all'" in str(error)


def test_options_reach_the_evaluation(save):
    values = arrays()
    paths = save(values)
    packed_values = packed(values)
    for options in (
        {"bootstrap": 0}, {"bootstrap": 50}, {"engine": "numpy"}, {"threads": 2},
        {"memory_limit": 2**24}, {"legacy": ("orthohash",)},
        {"legacy": ("deephash_pytorch", "orthohash")},
    ):  # fmt: skip
        want = evaluate(*packed_values, BITS, 7, **options)
        got = evaluate_files(*paths, at=7, **options)
        assert got == want
        assert tuple(got.legacy) == options.get("legacy", ())
        assert got.bootstrap == options.get("bootstrap", 1000)


@pytest.mark.parametrize(("option", "value", "key"), [
    ("bootstrap", 38, "--bootstrap"),
    ("bootstrap", -1, "--bootstrap"),
    ("threads", 0, "--threads"),
    ("threads", 1.5, "--threads"),
    ("memory_limit", 1, "--memory-limit"),
    ("memory_limit", 0, "--memory-limit"),
])  # fmt: skip
def test_an_option_out_of_range_is_named_as_on_the_command_line(save, option, value, key):
    error = refusal(save(arrays()), **{option: value})
    assert (error.key, error.value) == (key, value)


@pytest.mark.parametrize(("option", "value", "key", "nearest"), [
    ("legacy", ("deephash_pytorh",), "--legacy", "deephash_pytorch"),
    ("engine", "numpyy", "--engine", "numpy"),
])  # fmt: skip
def test_an_unknown_name_says_the_nearest(save, option, value, key, nearest):
    error = refusal(save(arrays()), **{option: value})
    assert error.key == key
    assert f"did you mean {nearest!r}" in str(error)


@pytest.mark.parametrize("at", ["all", 7])
@pytest.mark.parametrize("side", [0, 1])
def test_literature_modes_keep_the_zeros_of_a_file(save, side, at):
    values = arrays()
    values[side][np.random.default_rng(1).random(values[side].shape) < 0.4] = 0.0
    paths = save(values)
    got = evaluate_files(*paths, at=at, legacy=LEGACY)
    assert got == replace(evaluate_files(*paths, at=at), legacy=got.legacy)
    for mode, score in got.legacy.items():
        want = legacy_average_precision(*values, mode, at)
        assert score == pytest.approx(want.mean(), abs=1e-15)
    signs = [np.where(v >= 0, 1.0, -1.0) for v in values[:2]]
    assert got.legacy != evaluate_files(*save(signs + values[2:]), at=at, legacy=LEGACY).legacy


def test_zeros_of_one_file_are_kept_beside_a_packed_one(save):
    values = arrays()
    values[0][:, ::2] = 0.0
    got = evaluate_files(
        *save([values[0], pack(values[1]), *values[2:]]), bits=BITS, legacy=LEGACY
    )
    assert got.legacy == evaluate_files(*save(values), legacy=LEGACY).legacy


@pytest.mark.parametrize("bits", [0, -8, True, 8.0, "8"])
def test_bits_out_of_range_are_refused(save, bits):
    error = refusal(save(arrays()), bits=bits)
    assert error.key == "--bits"
    assert "at least 1" in str(error)


@pytest.mark.parametrize("which", range(4))
def test_files_that_hold_no_array_are_refused_under_their_option(save, tmp_path, which):
    paths = save(arrays())
    good = paths[which].read_bytes()

    def problem(path):
        changed = list(paths)
        changed[which] = path
        error = refusal(changed)
        assert error.key == KEYS[which]
        assert error.where == os.fspath(path)
        return str(error)

    assert "no such file" in problem(tmp_path / "absent.npy")
    assert "is a folder" in problem(tmp_path)
    bad = tmp_path / "bad.npy"
    for content in (b"", b"1,2,3\n", b"\x93NUMPY", good[:20], b"\x93NUMPY\x09\x00" + good[8:]):
        bad.write_bytes(content)
        assert "is not a .npy file" in problem(bad)
    bad.write_bytes(good[:-3])
    assert "ends before its data do" in problem(bad)
    np.save(bad, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert "object arrays are not read" in problem(bad)
    archive = tmp_path / "archive.npz"
    np.savez(archive, codes=np.ones(3))
    assert ".npz archive" in problem(archive)
    for value in (
        np.array(["a"]),
        np.zeros(3, complex),
        np.zeros(3, "M8[s]"),
        np.zeros(3, "i4,f4"),
    ):
        np.save(bad, value)
        assert "must hold numbers" in problem(bad)
    np.save(bad, np.array(3))
    assert "got shape ()" in problem(bad)
    np.save(bad, np.ones((2, 2, 2)))
    assert "got shape (2, 2, 2)" in problem(bad)


class _Bomb:
    def __reduce__(self):
        return Path.touch, (Path(os.environ["BOMB"]),)


def test_pickle_is_not_executed(save, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    paths = save(arrays())
    paths[0].write_bytes(pickle.dumps(_Bomb()))
    assert refusal(paths).key == "--query-codes"
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(("replace", "bits", "key", "message"), [
    ({0: np.zeros((0, BITS))}, None, 0, r"empty, shape (0, 12)"),
    ({1: np.zeros((20, 0))}, None, 1, r"empty, shape (20, 0)"),
    ({2: np.zeros(0, int)}, None, 2, "empty"),
    ({3: np.zeros((20, 0), int)}, None, 3, "empty"),
    ({0: np.ones(BITS)}, None, 0, "got shape (12,)"),
    ({0: np.ones((5, BITS), bool)}, None, 0, "got bool"),
    ({0: np.ones((5, BITS), np.uint16)}, None, 0, "got uint16"),
    ({0: np.full((5, BITS), np.nan)}, None, 0, "row 0, column 0 is nan"),
    ({1: np.full((20, BITS), -np.inf)}, None, 1, "is -inf"),
    ({0: np.eye(5, BITS)}, None, 0, "every value is 0 or 1"),
    ({0: np.ones((5, 8))}, None, 1, "have 12 bits, the queries' 8"),
    ({}, 8, 0, "12 bits wide, but --bits is 8"),
    ({0: np.zeros((5, 2), np.uint8)}, None, 0, "packed codes need --bits"),
    ({1: np.zeros((20, 3), np.uint8)}, BITS, 1, "packed to 2 bytes, but the array has 3 columns"),
    ({1: np.full((20, 2), 0x0F, np.uint8)}, BITS, 1, "bits after the first 12 are set"),
    ({2: np.zeros(4, int)}, None, 2, "4 labels for the 5 codes of --query-codes"),
    ({3: np.zeros(5, int)}, None, 3, "5 labels for the 20 codes of --gallery-codes"),
    ({2: np.zeros(5)}, None, 2, "must be integers; got float64"),
    ({2: np.zeros(5, bool)}, None, 2, "must be integers; got bool"),
    ({2: np.full(5, 2**63, np.uint64)}, None, 2, "below 2^63"),
    ({3: np.full((20, 2), 2)}, None, 3, "must be multi-hot"),
    ({3: np.full((20, 2), np.nan)}, None, 3, "must be multi-hot"),
    ({3: np.eye(20, 3, dtype=int)}, None, 3, "multi-hot with C = 3, the queries' integers (N,)"),
    ({2: np.eye(5, 4), 3: np.eye(20, 3)}, None, 3, "C = 3, the queries' multi-hot with C = 4"),
])  # fmt: skip
def test_arrays_that_cannot_be_meant_are_refused(save, replace, bits, key, message):
    values = arrays()
    for index, value in replace.items():
        values[index] = value
    error = refusal(save(values), bits=bits)
    assert error.key == KEYS[key]
    assert message in str(error)
    assert error.where.endswith(".npy")
