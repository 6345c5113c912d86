"""Time the search of one query in millions of codes against numpy's plain way and faiss.

Codes are drawn at random, which is the hardest case for what leaves far ones out early: distances
crowd around B / 2. One query is searched at a time for its ten nearest. Columns:

- ``index``: `retrieval.index.HammingIndex`, from a memory-mapped file.
- ``numpy``: XOR, `np.bitwise_count` and a stable argsort of all distances.
- ``faiss``: `IndexBinaryFlat`, exact too (pip install faiss-cpu).

Times are medians over the queries, on the clock (``ms``) and of processor time (``cpu ms``), which
a busy machine does not stretch. Distances are compared in the same run, and rows with numpy's.

    python -m benchmarks.search
    python -m benchmarks.search --codes 1000000 --bits 48 --threads 1 --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.engines.scan import words_of
from retrieval.index import FaissIndex, HammingIndex, Hits

K = 10


def plain(queries: NDArray[np.uint8], codes: NDArray[np.uint8]) -> Hits:
    """Return the K nearest of one query by numpy, ties by row."""
    query, items = words_of(queries), words_of(codes)
    if len(query) == 1:
        distances = np.bitwise_count(items ^ query[0])
    else:
        distances = np.bitwise_count(items.reshape(-1, len(query)) ^ query).sum(1, dtype=np.uint16)
    best = np.argsort(distances, kind="stable")[:K]
    return Hits(best, distances[best].astype(np.int64))


def timed(
    search: Callable[[NDArray[np.uint8]], Hits], queries: NDArray[np.uint8]
) -> tuple[list[Hits], dict[str, float]]:
    """Return what each query finds, and the median milliseconds of one; the first is a warm-up."""
    found, clock, cpu = [], [], []
    search(queries[:1])
    for place in range(len(queries)):
        started = time.perf_counter(), time.process_time()
        found.append(search(queries[place : place + 1]))
        clock.append(time.perf_counter() - started[0])
        cpu.append(time.process_time() - started[1])
    return found, {
        "ms": statistics.median(clock) * 1e3,
        "cpu ms": statistics.median(cpu) * 1e3,
    }


def measure(count: int, bits: int, threads: int, queries: int) -> dict[str, Any]:
    """Time all ways on the same codes; refuse ways that differ."""
    rng = np.random.default_rng(bits)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "codes.npy"
        np.save(path, rng.integers(0, 256, (count, bits // 8), dtype=np.uint8))
        codes = np.load(path, mmap_mode="r")
        asked = rng.integers(0, 256, (queries, bits // 8), dtype=np.uint8)
        index = HammingIndex(codes, bits, threads=threads, lasting=True)
        found, ours = timed(lambda one: index.search(one, K)[0], asked)
        row = {"codes": count, "bits": bits, "threads": threads, "index": ours}
        sorted_, row["numpy"] = timed(lambda one: plain(one, codes), asked[:3])
        for mine, other in zip(found, sorted_, strict=False):
            assert np.array_equal(mine.rows, other.rows)
            assert np.array_equal(mine.distances, other.distances)
        if importlib.util.find_spec("faiss") is not None:
            flat = FaissIndex(np.asarray(codes), bits, threads=threads)
            others, row["faiss"] = timed(lambda one: flat.search(one, K)[0], asked)
            for mine, other in zip(found, others, strict=True):
                assert np.array_equal(mine.distances, other.distances)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Return the measurements as text."""
    lines = [f"{'codes':>12} {'bits':>5} {'threads':>7} {'way':>6} {'ms':>9} {'cpu ms':>9} ratio"]
    for row in rows:
        for way in ("index", "numpy", "faiss"):
            if way in row:
                cost, ratio = row[way], row[way]["cpu ms"] / row["index"]["cpu ms"]
                lines.append(
                    f"{row['codes']:>12,} {row['bits']:>5} {row['threads']:>7} {way:>6} "
                    f"{cost['ms']:>9.2f} {cost['cpu ms']:>9.2f} {ratio:>5.1f}"
                )
    return "\n".join([*lines, "ratio: of processor time to that of the index"])


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--codes", type=int, default=10_000_000)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 48, 64, 128])
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}),
        help="by default one, and all processors",
    )  # fmt: skip
    parser.add_argument("--queries", type=int, default=20, help="numpy searches three of them")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min([options.codes, options.queries, *options.threads]) < 1 or options.codes < K:
        parser.error(f"--codes is at least {K}, --queries and --threads at least 1")
    if any(bits < 8 or bits % 8 for bits in options.bits):
        parser.error("--bits are multiples of 8")
    if importlib.util.find_spec("faiss") is None:
        print("faiss is not installed: it is left out", file=sys.stderr)
    rows = [
        measure(options.codes, bits, threads, options.queries)
        for bits in options.bits
        for threads in options.threads
    ]
    print(json.dumps(rows, indent=2) if options.json else table(rows))


if __name__ == "__main__":
    main()
