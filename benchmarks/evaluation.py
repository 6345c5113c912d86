"""Time the complete metric set against the usual numpy loop over queries, in one run.

The loop computes only mAP with unstable ties; ours adds the exact expectation under ties, its
bounds, the stable order, precision and recall at several K, the precision-recall curve and code
statistics. ``map_only`` is our exact mAP alone, which needs no order of the gallery.
Relevance costs the loop one integer comparison a row, which is less than the product of one-hot
labels that public code bases take.

    python -m benchmarks.evaluation --queries 1000 --gallery 59000 --bits 32 64
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.codes import pack
from retrieval.metrics import evaluate, expected_average_precision, mean
from retrieval.ranking import histograms


def loop_map(
    query: NDArray[np.float32],
    gallery: NDArray[np.float32],
    query_labels: NDArray[np.int64],
    gallery_labels: NDArray[np.int64],
) -> float:
    """Return mAP by one float matrix product and one float sort for each query.

    Args:
        query: (Q, B) codes in {-1, +1}.
        gallery: (N, B) codes in {-1, +1}.
        query_labels: (Q,) class numbers.
        gallery_labels: (N,) class numbers.
    """
    bits = query.shape[1]
    total = 0.0
    for code, label in zip(query, query_labels, strict=True):
        distance = 0.5 * (bits - code @ gallery.T)
        hit = (gallery_labels == label)[np.argsort(distance)]
        precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
        total += precision[hit].mean() if hit.any() else 0.0
    return total / len(query)


def synthetic(
    items: int, bits: int, classes: int, rng: np.random.Generator, centers: NDArray[np.float64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return noisy class centers, (items, bits) in {-1, +1}, and their labels, (items,)."""
    labels = rng.integers(0, classes, items)
    continuous = centers[labels] + rng.normal(0.0, 1.5, (items, bits))
    return np.where(continuous >= 0, 1, -1).astype(np.float32), labels


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Return the median wall time in seconds over the repeats, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def measure(
    queries: int, gallery: int, bits: int, classes: int, repeats: int
) -> dict[str, float | int]:
    """Time both on the same codes."""
    rng = np.random.default_rng(bits)
    centers = np.where(rng.random((classes, bits)) < 0.5, -1.0, 1.0)
    query, query_labels = synthetic(queries, bits, classes, rng, centers)
    stored, stored_labels = synthetic(gallery, bits, classes, rng, centers)
    ours, result = timed(
        lambda: evaluate(pack(query), pack(stored), query_labels, stored_labels, bits), repeats
    )
    only, exact = timed(
        lambda: mean(
            expected_average_precision(
                *histograms(pack(query), pack(stored), query_labels, stored_labels, bits)
            )
        ),
        repeats,
    )
    if exact != result.map:
        raise AssertionError(f"two paths to one number: {exact} and {result.map}")
    loop, reference = timed(lambda: loop_map(query, stored, query_labels, stored_labels), 1)
    return {
        "bits": bits,
        "queries": queries,
        "gallery": gallery,
        "ours_seconds": ours,
        "map_only_seconds": only,
        "loop_seconds": loop,
        "ratio": loop / ours,
        "map_only_ratio": loop / only,
        "map": result.map,
        "map_worst": result.map_worst,
        "map_best": result.map_best,
        "loop_map": float(reference),
    }


def main() -> None:
    """Parse the options, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--gallery", type=int, default=59000)
    parser.add_argument("--bits", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the loop runs once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = [
        measure(options.queries, options.gallery, bits, options.classes, options.repeats)
        for bits in options.bits
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    columns = {
        "bits": "d",
        "ours_seconds": ".3f",
        "map_only_seconds": ".3f",
        "loop_seconds": ".3f",
        "ratio": ".1f",
        "map_only_ratio": ".1f",
        "map": ".5f",
        "loop_map": ".5f",
    }
    print("  ".join(f"{name:>16}" for name in columns))
    for row in rows:
        print("  ".join(f"{row[name]:>16{form}}" for name, form in columns.items()))


if __name__ == "__main__":
    main()
