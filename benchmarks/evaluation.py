"""Time evaluation against the loop of public code bases, faiss, and the limit of popcount.

Three workloads: 1,000 queries against 59,000 items of 32 and of 64 bits in 10 classes, and 5,000
against 117,218 of 48 bits with 80 multi-hot labels, 2.9 an image and as unequally frequent as in
photographs of everyday scenes. Each is timed on one thread and on all:

- ``loop``: what public code bases do for each query: a float product for the distances, a product
  of labels for the ground truth, ``np.argsort``, cumulative sums. It gives mAP alone. On the large
  workload it is timed on some queries and the time is multiplied; the table says so.
- ``evaluate``: `retrieval.metrics.evaluate`, every metric with its defaults.
- ``count``: the ranking part of it, histograms and AP with ties in gallery order.
- ``nearest``: the first 1,000 items, and ``faiss`` the same of IndexBinaryFlat (pip install
  faiss-cpu). faiss leaves the order of ties open; distances are compared.
- ``popcount``: XOR, popcount and sum of the same arrays in a compiled loop, which is what no
  evaluation can be faster than; ``count/limit`` says how far from it we are.
- ``numpy``: ``count`` by the numpy engine.

Times are medians of the repeats. Numbers are compared in the same run: the engines' counts byte
for byte, and the loop's mAP with the bounds over all orders of ties.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --workloads small64 --repeats 3 --json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import pack
from retrieval.metrics import evaluate
from retrieval.ranking import Counts, Relevance, count, nearest

NEAREST = 1000


class Workload(NamedTuple):
    """Sizes; ``loop_queries`` are timed by the loop."""

    queries: int
    gallery: int
    bits: int
    classes: int
    multi_hot: bool
    loop_queries: int


WORKLOADS = {
    "small32": Workload(1000, 59_000, 32, 10, False, 1000),
    "small64": Workload(1000, 59_000, 64, 10, False, 1000),
    "large48": Workload(5000, 117_218, 48, 80, True, 100),
}


class Data(NamedTuple):
    """Codes in {-1, +1}, labels, and the codes packed."""

    query: NDArray[np.float32]
    gallery: NDArray[np.float32]
    query_labels: NDArray[np.generic]
    gallery_labels: NDArray[np.generic]
    query_packed: NDArray[np.uint8]
    gallery_packed: NDArray[np.uint8]


def synthetic(workload: Workload) -> Data:
    """Return codes that are noisy sums of the centers of an image's classes."""
    rng = np.random.default_rng(workload.bits)
    centers = np.where(rng.random((workload.classes, workload.bits)) < 0.5, -1.0, 1.0)

    def side(items: int) -> tuple[NDArray[np.float32], NDArray[np.generic]]:
        if workload.multi_hot:
            hot = rng.random((items, workload.classes)) < _frequencies(workload.classes)
            # No image is without a label, as in the public splits.
            bare = np.flatnonzero(~hot.any(axis=1))
            hot[bare, rng.integers(0, workload.classes, len(bare))] = True
            signal, labels = hot @ centers, hot.astype(np.int64)
        else:
            labels = rng.integers(0, workload.classes, items)
            signal = centers[labels]
        continuous = signal + rng.normal(0.0, 1.5, signal.shape)
        return np.where(continuous >= 0, 1, -1).astype(np.float32), labels

    query, query_labels = side(workload.queries)
    gallery, gallery_labels = side(workload.gallery)
    return Data(query, gallery, query_labels, gallery_labels, pack(query), pack(gallery))


def _frequencies(classes: int) -> NDArray[np.float64]:
    """Share of images that carry each class: 0.45 for the first, 2.9 labels an image in all."""
    tail = 1.0 / np.arange(2, classes + 1)
    return np.concatenate([[0.45], tail * (2.45 / tail.sum())])


def loop_map(data: Data, queries: int) -> float:
    """Return mAP over the first queries, each by float products and one unstable sort."""
    bits = data.query.shape[1]
    single = data.query_labels.ndim == 1
    classes = int(data.gallery_labels.max()) + 1 if single else 0
    one_hot = np.eye(classes, dtype=np.int64)
    query_labels, gallery_labels = (
        one_hot[labels] if single else labels
        for labels in (data.query_labels, data.gallery_labels)
    )
    total = 0.0
    for code, labels in zip(data.query[:queries], query_labels[:queries], strict=True):
        truth = (labels @ gallery_labels.T > 0).astype(np.float32)
        distance = 0.5 * (bits - code @ data.gallery.T)
        truth = truth[np.argsort(distance)]
        hits = int(truth.sum())
        if hits:
            ranks = np.flatnonzero(truth) + 1.0
            total += float(np.mean(np.linspace(1, hits, hits) / ranks))
    return total / queries


def popcount_limit(data: Data) -> Callable[[], int] | None:
    """Return a call that adds all distances in a compiled loop; None where numba is missing."""
    if importlib.util.find_spec("numba") is None:
        return None
    from numba import njit

    from retrieval.engines.numba_engine import _popcount
    from retrieval.ranking import widen

    def loop(query: Any, gallery: Any) -> Any:
        total = np.uint64(0)
        for code in query:
            # By number: an iterator would keep the compiler from vectors.
            for i in range(len(gallery)):
                total += _popcount(code ^ gallery[i])
        return total

    add: Any = njit(nogil=True)(loop)
    query, gallery = (widen(part, 8)[0] for part in (data.query_packed, data.gallery_packed))
    expected = int(np.bitwise_count(query[:3, None] ^ gallery).sum(dtype=np.int64))
    if int(add(query[:3], gallery)) != expected:
        raise AssertionError("the popcount loop adds up to something else than numpy")
    return lambda: int(add(query, gallery))


def faiss_search(data: Data) -> Callable[[int], NDArray[np.int32]] | None:
    """Return a call that gives faiss' nearest distances on some threads; None if missing."""
    if importlib.util.find_spec("faiss") is None:
        return None
    import faiss

    index = faiss.IndexBinaryFlat(data.query.shape[1])
    index.add(data.gallery_packed)

    def search(threads: int) -> NDArray[np.int32]:
        faiss.omp_set_num_threads(threads)
        distances: NDArray[np.int32] = index.search(data.query_packed, NEAREST)[0]
        return distances

    return search


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median wall time in seconds over the repeats, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def libraries(threads: int) -> AbstractContextManager[Any]:
    """Hold the linear algebra of numpy to as many threads."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return nullcontext()
    threadpoolctl: Any = importlib.import_module("threadpoolctl")
    limits: AbstractContextManager[Any] = threadpoolctl.threadpool_limits(threads)
    return limits


def measure(name: str, threads: int, repeats: int) -> dict[str, Any]:
    """Time one workload on some threads, and compare the numbers."""
    workload = WORKLOADS[name]
    data = synthetic(workload)
    packed = data.query_packed, data.gallery_packed
    labels = data.query_labels, data.gallery_labels
    bits, items = workload.bits, workload.gallery
    row: dict[str, Any] = {"workload": name, "threads": threads, **workload._asdict()}

    def counts(engine: Any) -> Counts:
        relevance = Relevance(*labels)
        return count(*packed, relevance, bits, cutoff=items, engine=engine, threads=threads)

    def search() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return nearest(*packed, bits, NEAREST, threads=threads)

    with libraries(threads):
        start = time.perf_counter()
        counts("auto")
        row["first_call_seconds"] = time.perf_counter() - start
        seconds, value = timed(lambda: loop_map(data, workload.loop_queries), 1)
        row["loop_seconds"] = seconds * (workload.queries / workload.loop_queries)
        row["loop_extrapolated"] = workload.loop_queries < workload.queries
        row["loop_map"] = value
        search()
        row["evaluate_seconds"], result = timed(
            lambda: evaluate(*packed, *labels, bits, threads=threads), repeats
        )
        row["count_seconds"], ours = timed(lambda: counts("auto"), repeats)
        row["nearest_seconds"], found = timed(search, repeats)
        row["numpy_seconds"], theirs = timed(lambda: counts("numpy"), 1)
        row["faiss_seconds"] = row["popcount_seconds"] = None
        if faiss := faiss_search(data):
            row["faiss_seconds"], distances = timed(lambda: faiss(threads), repeats)
            if not np.array_equal(distances, found[1]):
                raise AssertionError("faiss finds other distances")
    if limit := popcount_limit(data):
        row["popcount_seconds"], _ = timed(limit, repeats)
    check(data, workload, result, ours, theirs, value)
    row |= {"map": result.map, "map_worst": result.map_worst, "map_best": result.map_best}
    row["loop/evaluate"] = row["loop_seconds"] / row["evaluate_seconds"]
    row["loop/count"] = row["loop_seconds"] / row["count_seconds"]
    row["faiss/nearest"] = _ratio(row["faiss_seconds"], row["nearest_seconds"])
    row["faiss/count"] = _ratio(row["faiss_seconds"], row["count_seconds"])
    # The loop of the limit runs on one thread.
    row["limit/count"] = _ratio(row["popcount_seconds"], row["count_seconds"] * threads)
    row["numpy/count"] = row["numpy_seconds"] / row["count_seconds"]
    return row


def check(
    data: Data, workload: Workload, result: Any, ours: Counts, theirs: Counts, loop: float
) -> None:
    """Compare the engines byte for byte, and the loop with the bounds over orders of ties.

    Raises:
        AssertionError: they disagree.
    """
    for field in ("n", "r", "stable"):
        if getattr(ours, field).tobytes() != getattr(theirs, field).tobytes():
            raise AssertionError(f"the engines disagree in {field}")
    if workload.loop_queries < workload.queries:
        result = evaluate(
            data.query_packed[: workload.loop_queries],
            data.gallery_packed,
            data.query_labels[: workload.loop_queries],
            data.gallery_labels,
            workload.bits,
        )
    if not result.map_worst - 1e-9 <= loop <= result.map_best + 1e-9:
        raise AssertionError(
            f"the loop's mAP {loop} is outside of {result.map_worst} .. {result.map_best}"
        )


def _ratio(numerator: float | None, denominator: float) -> float | None:
    return None if numerator is None else numerator / denominator


COLUMNS = {
    "workload": "", "threads": "d", "loop_seconds": ".2f", "evaluate_seconds": ".3f",
    "count_seconds": ".3f", "nearest_seconds": ".3f", "faiss_seconds": ".3f",
    "popcount_seconds": ".4f", "numpy_seconds": ".2f", "loop/evaluate": ".1f",
    "loop/count": ".1f", "faiss/nearest": ".1f", "faiss/count": ".1f", "limit/count": ".3f",
    "numpy/count": ".1f", "map": ".5f", "loop_map": ".5f",
}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as aligned text; what was not measured is a dash."""
    head = [name.removesuffix("_seconds") for name in COLUMNS]
    lines = [head]
    for row in rows:
        line = ["-" if row[key] is None else format(row[key], f) for key, f in COLUMNS.items()]
        if row["loop_extrapolated"]:
            line[2] += "*"
        lines.append(line)
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in lines
    )


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument(
        "--threads", type=int, nargs="+", default=sorted({1, os.cpu_count() or 1}),
        help="by default one, and all processors",
    )  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="the loop and numpy run once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if min([*options.threads, options.repeats]) < 1:
        parser.error("--threads and --repeats are at least 1")
    missing = [name for name in ("numba", "faiss") if importlib.util.find_spec(name) is None]
    for name in missing:
        print(f"{name} is not installed: its columns are left out", file=sys.stderr)
    rows = [
        measure(workload, threads, options.repeats)
        for workload in options.workloads
        for threads in options.threads
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print("seconds, medians; * from a part of the queries, multiplied")
    print(table(rows))


if __name__ == "__main__":
    main()
