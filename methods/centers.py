"""Hash centers: one code in {-1, +1}^B for each class, far apart from the others.

Five generators: rows of a Hadamard matrix (``hadamard``, and ``hadamard_ext`` for orders that are
no power of two), coin flips (``bernoulli``), rejection sampling at a falling distance
(``greedy``), and an optimisation that starts from those (``mds``). Whatever the generator, the
centers that come out are distinct; where it cannot give distinct ones, or far enough ones, the
next in the chain takes over and the report says so.

Only numpy here: ``asymbench plan`` calls :func:`check_centers` for every trial.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from methods.base import CentersSpec
from methods.mds import plotkin_distance, separate, target_distance
from retrieval.errors import InputError
from retrieval.streams import generator

__all__ = [
    "CentersReport",
    "check_centers",
    "describe_centers",
    "hadamard_matrix",
    "make_centers",
    "nearest_orders",
]

Codes = NDArray[np.int8]

_DRAWS = 1000  # tries at distinct rows before another generator takes over
_PATIENCE = 10_000  # rejections after which greedy lowers its threshold
_FIRST_PERCENT, _LAST_PERCENT = 61, 20  # greedy's thresholds, in percent of the bits
_RESTARTS = 5  # of mds, from each of its two starting points
_MOVES, _MOVES_A_START = 300, 200  # centers that mds moves at most, a fraction of a second each


class CentersReport(TypedDict):
    """What came out of :func:`make_centers`.

    Attributes:
        kind_used: the generator whose rows these are.
        min, mean, max, var: of the Hamming distances of all pairs, in bits; None for one class.
        n_duplicate_pairs: pairs of equal centers; always 0 in what ``make_centers`` returns.
        n_constant_bits: bits that are the same in all centers, and so tell no classes apart.
        n_distinct_columns: different columns; fewer than B means that bits repeat each other.
        threshold: the distance in bits that greedy ended at; None for the other generators.
        fallback: why and to what the generator was changed, or None.
        target_d: the smallest distance in bits that mds is after; None for the other generators.
    """

    kind_used: str
    min: int | None
    mean: float | None
    max: int | None
    var: float | None
    n_duplicate_pairs: int
    n_constant_bits: int
    n_distinct_columns: int
    threshold: int | None
    fallback: str | None
    target_d: int | None


# ---- Hadamard matrices ---------------------------------------------------------------


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))


def _jacobsthal(q: int) -> NDArray[np.int64]:
    """Return Q (q, q), Q_ij = chi(i - j), the quadratic character modulo the odd prime q."""
    chi = np.full(q, -1, dtype=np.int64)
    chi[(np.arange(1, q, dtype=np.int64) ** 2) % q] = 1
    chi[0] = 0
    index = np.arange(q)
    table: NDArray[np.int64] = chi[(index[:, None] - index[None, :]) % q]
    return table


def _paley_one(order: int) -> NDArray[np.int64]:
    """Paley's first construction, for order = q + 1 with a prime q = 3 mod 4."""
    q = order - 1
    h: NDArray[np.int64] = np.ones((order, order), dtype=np.int64)
    h[1:, 0] = -1
    h[1:, 1:] = _jacobsthal(q) + np.eye(q, dtype=np.int64)
    return h


def _paley_two(order: int) -> NDArray[np.int64]:
    """Paley's second construction, for order = 2 (q + 1) with a prime q = 1 mod 4."""
    q = order // 2 - 1
    s = np.ones((q + 1, q + 1), dtype=np.int64)
    s[0, 0] = 0
    s[1:, 1:] = _jacobsthal(q)
    zero_block = np.array([[1, -1], [-1, -1]])
    sign_block = np.array([[1, 1], [1, -1]])
    identity = np.eye(q + 1, dtype=np.int64)
    return np.kron(s, sign_block) + np.kron(identity, zero_block)


@lru_cache(maxsize=256)
def _plan(order: int) -> tuple[str, int] | None:
    """Return how a Hadamard matrix of this order is built: (construction, left factor)."""
    if order in (1, 2):
        return "seed", order
    if order < 1 or order % 4:
        return None
    if _plan(order // 2) is not None:  # doubling first: orders 2^r are then Sylvester's
        return "kronecker", 2
    if _is_prime(order - 1):
        return "paley one", order
    half = order // 2 - 1
    if half % 4 == 1 and _is_prime(half):
        return "paley two", order
    for left in range(4, order // 3, 4):
        if order % left == 0 and _plan(left) is not None and _plan(order // left) is not None:
            return "kronecker", left
    return None


def hadamard_matrix(order: int) -> Codes:
    """Return a Hadamard matrix H of this order, H H^T = order * I, entries in {-1, +1}.

    Orders 2^r give Sylvester's matrix, 12 Paley's, 24 and 48 Kronecker products of the two.

    Args:
        order: rows and columns.

    Returns:
        (order, order) int8.

    Raises:
        InputError: no construction here reaches this order; ``key`` is "bits".
    """
    plan = _plan(order)
    if plan is None:
        near = " and ".join(str(n) for n in nearest_orders(order))
        raise InputError(
            f"no Hadamard matrix of order {order} can be constructed (doubling, Paley with a "
            f"prime, and products of these); the nearest orders that can are {near}",
            key="bits",
            value=order,
        )
    construction, left = plan
    if construction == "seed":
        h = np.array([[1]]) if order == 1 else np.array([[1, 1], [1, -1]])
    elif construction == "kronecker":
        h = np.kron(hadamard_matrix(left), hadamard_matrix(order // left))
    else:
        h = _paley_one(order) if construction == "paley one" else _paley_two(order)
    return h.astype(np.int8)


def nearest_orders(order: int) -> list[int]:
    """Return the nearest constructible orders below and above ``order``, where there are any."""
    below = next((n for n in range(order - 1, 0, -1) if _plan(n) is not None), None)
    above = next(
        n for n in range(max(order, 0) + 1, 2 * max(order, 1) + 9) if _plan(n) is not None
    )
    return [n for n in (below, above) if n is not None]


# ---- checks and reports --------------------------------------------------------------


def check_centers(n_classes: int, bits: int, spec: CentersSpec) -> None:
    """Refuse centers that cannot exist, without making any.

    Raises:
        InputError: with ``key="bits"``: more classes than codes of that length, or a length that
            the generator ``spec.kind`` has no Hadamard matrix for.
    """
    if bits < 1:
        raise InputError("a code needs at least 1 bit", key="bits", value=bits)
    if n_classes > 2**bits:
        least = (n_classes - 1).bit_length()
        raise InputError(
            f"{n_classes} classes cannot have different centers: there are only {2**bits} codes "
            f"of {bits} bits; at least {least} bits are needed",
            key="bits",
            value=bits,
        )
    if spec.kind == "hadamard" and bits & (bits - 1):
        wider = ", hadamard_ext" if _plan(bits) is not None else ""
        raise InputError(
            "hadamard centers need a number of bits that is a power of two",
            key="bits",
            value=bits,
            hint=f"for {bits} bits, set centers to one of: bernoulli, greedy{wider}",
        )
    if spec.kind == "hadamard_ext" and _plan(bits) is None:
        near = " or ".join(str(n) for n in nearest_orders(bits))
        raise InputError(
            f"hadamard_ext centers need a Hadamard matrix of order {bits}, which the doubling, "
            f"Paley and product constructions do not reach; the nearest that they do are {near}",
            key="bits",
            value=bits,
            hint=f"for {bits} bits, set centers to one of: bernoulli, greedy",
        )


def _distances(codes: Codes) -> NDArray[np.int64]:
    """Return the Hamming distances of all pairs of rows, (C (C - 1) / 2,)."""
    wide = codes.astype(np.float32)  # inner products of up to 2^24 bits are exact in float32
    matrix = (codes.shape[1] - wide @ wide.T) / 2
    pairs: NDArray[np.int64] = matrix[np.triu_indices(len(codes), 1)].astype(np.int64)
    return pairs


def describe_centers(
    codes: Codes,
    kind_used: str,
    *,
    threshold: int | None = None,
    fallback: str | None = None,
    target_d: int | None = None,
) -> CentersReport:
    """Return the report on ``codes`` (C, B); see :class:`CentersReport`."""
    distances = _distances(codes)
    some = distances.size > 0
    return CentersReport(
        kind_used=kind_used,
        min=int(distances.min()) if some else None,
        mean=float(distances.mean()) if some else None,
        max=int(distances.max()) if some else None,
        var=float(distances.var()) if some else None,
        n_duplicate_pairs=int((distances == 0).sum()),
        n_constant_bits=int((codes == codes[:1]).all(axis=0).sum()),
        n_distinct_columns=len(np.unique(codes, axis=1).T),
        threshold=threshold,
        fallback=fallback,
        target_d=target_d,
    )


# ---- generators ----------------------------------------------------------------------


def _balanced_rows(n: int, bits: int, rng: np.random.Generator) -> Codes:
    """Return n random rows with exactly bits // 2 entries of -1, (n, bits)."""
    ranks = rng.random((n, bits)).argsort(axis=1).argsort(axis=1)
    return np.where(ranks < bits // 2, -1, 1).astype(np.int8)


def _hadamard(n_classes: int, bits: int, spec: CentersSpec, rng: np.random.Generator) -> Codes:
    """Rows of [H; -H], then balanced random rows (CSQ: Yuan et al., CVPR 2020).

    ``row_choice`` permutes within H and within -H, so that up to B classes never get a row and
    its negative; ``flip_rows`` flips a row of H together with its negative, so that none repeats.
    """
    h = hadamard_matrix(bits)
    upper, lower = np.arange(bits), np.arange(bits)
    if spec.row_choice == "random":
        upper, lower = rng.permutation(bits), rng.permutation(bits)
    if spec.flip_rows:
        h = h * rng.choice(np.array([-1, 1], dtype=np.int8), size=(bits, 1))
    rows = np.concatenate([h[upper], -h[lower]])
    if n_classes <= 2 * bits:
        return rows[:n_classes]
    best, best_score = rows, (-1.0, -1.0)
    for _ in range(_DRAWS):
        fill = _balanced_rows(n_classes - 2 * bits, bits, rng)
        codes = np.concatenate([rows, fill])
        distances = _distances(codes)
        score = (float(distances.min()), float(distances.mean()))
        if score > best_score:
            best, best_score = codes, score
        if score[0] > bits / 4 and score[1] >= bits / 2:  # the published acceptance test
            break
    return best


def _bernoulli(n_classes: int, bits: int, rng: np.random.Generator) -> Codes:
    """Independent fair signs (OrthoHash's default), all redrawn while two rows are equal."""
    for _ in range(_DRAWS):
        codes = np.where(rng.integers(0, 2, size=(n_classes, bits)) > 0, 1, -1).astype(np.int8)
        if len(np.unique(codes, axis=0)) == n_classes:
            break
    return codes


def _greedy(n_classes: int, bits: int, rng: np.random.Generator) -> tuple[Codes, int]:
    """Accept random rows that are far from all accepted ones; lower the bar when that stalls.

    The bar starts at 61 % of the bits and falls by one point after 10 000 rejections, which are
    not counted anew after an acceptance (CSCH, Eq. 1; OrthoHash's codebook ``O``). The published
    loop gives up below 20 %; here it goes on to a distance of one bit, so that it always ends.

    Returns:
        (C, B) int8 and the distance in bits that it ended at.
    """
    accepted = np.empty((n_classes, bits), dtype=np.float32)
    count, rejected, percent = 0, 0, _FIRST_PERCENT
    while count < n_classes:
        need = max(1, -(-percent * bits // 100))  # integers: the bar has no rounding to drift
        lowest = percent <= _LAST_PERCENT and need == 1
        # As many candidates as could be rejected before the bar falls, then one by one.
        candidates = np.where(rng.standard_normal((_PATIENCE - rejected, bits)) >= 0, 1.0, -1.0)
        candidates = candidates.astype(np.float32)
        allowed = np.float32(bits - 2 * need)  # D_H >= need is an inner product <= B - 2 need
        closest = np.full(len(candidates), -np.inf, dtype=np.float32)
        if count:
            closest = (candidates @ accepted[:count].T).max(axis=1)
        position = 0
        while count < n_classes:
            hits = np.flatnonzero(closest[position:] <= allowed)
            if not hits.size:
                rejected += len(candidates) - position
                break
            rejected += int(hits[0])
            position += int(hits[0])
            accepted[count] = candidates[position]
            count += 1
            position += 1
            rest = candidates[position:] @ accepted[count - 1]
            np.maximum(closest[position:], rest, out=closest[position:])
        if rejected >= _PATIENCE:
            rejected = 0
            percent -= 0 if lowest else 1
    codes = accepted.astype(np.int8)
    return codes[rng.permutation(n_classes)], need


def _mds_starts(
    n_classes: int, bits: int, spec: CentersSpec, seed: int, greedy: Codes
) -> Iterator[tuple[str, int, Codes]]:
    """Yield what mds starts from: its kind, the number of the restart, and centers (C, B).

    The first are CSQ's centers, as in the released code. That has random signs at 48 bits; here
    these stand in only where no Hadamard matrix can be built. The second are ``greedy``.
    """
    for restart in range(_RESTARTS):
        rng = generator(seed, "centers", "mds", "start", restart)
        if _plan(bits) is None:
            yield "bernoulli", restart, _bernoulli(n_classes, bits, rng)
        else:
            rows = replace(spec, row_choice="random", flip_rows=True) if restart else spec
            yield "hadamard_ext", restart, _hadamard(n_classes, bits, rows, rng)
        yield "greedy", restart, _greedy(n_classes, bits, rng)[0] if restart else greedy


def _mds(n_classes: int, bits: int, spec: CentersSpec, seed: int) -> tuple[Codes, CentersReport]:
    """Move centers apart to MDSH's distance, or to that of kind greedy where it is larger.

    One start after another is tried, with a bounded number of moves in all; where none gets
    there, the distance asked for falls by one. The classes then get their centers in an order of
    its own stream, as in the released code.
    """
    greedy, bar = _greedy(n_classes, bits, generator(seed, "centers", "greedy"))
    if n_classes == 1:
        why = "one center has no distance to keep; greedy instead"
        return greedy, describe_centers(greedy, "greedy", threshold=bar, fallback=why)
    target = target_distance(n_classes, bits)
    asked = min(max(target, _least(greedy)), plotkin_distance(n_classes, bits))
    best, best_least, origin, notes = greedy, 0, "greedy", ""
    moves = _MOVES
    for distance in range(asked, 0, -1):
        if best_least >= distance:
            break
        for kind, restart, start in _mds_starts(n_classes, bits, spec, seed, greedy):
            rng = generator(seed, "centers", "mds", kind, restart, distance)
            most = min(moves, _MOVES_A_START)
            codes, tried = separate(start, distance, rng, most=most)
            moves -= tried
            least = _least(codes)
            if least > best_least:
                best, best_least = codes, least
                origin = kind if np.array_equal(codes, start) else "mds"
                first = kind != "greedy" and not restart
                notes = (
                    "" if first else f"moved from {kind} (restart {restart}), others fell short"
                )
            if least >= distance or not moves:
                break
    if origin != "mds":
        notes = f"no move improved the centers of {origin}"
    if best_least < target:
        notes += f"{'; ' if notes else ''}distance {best_least} instead of the target {target}"
    order = generator(seed, "centers", "mds", "order").permutation(n_classes)
    threshold = bar if best is greedy else None
    return best[order], describe_centers(
        best[order], origin, threshold=threshold, fallback=notes or None, target_d=target
    )


def _least(codes: Codes) -> int:
    return int(_distances(codes).min())


def make_centers(
    n_classes: int, bits: int, spec: CentersSpec, seed: int
) -> tuple[Codes, CentersReport]:
    """Make one center a class; the same arguments give the same centers anywhere.

    Those of mds are the outcome of floating-point iterations, the same wherever numpy's linear
    algebra gives the same bits.

    Args:
        n_classes: C.
        bits: B.
        spec: which generator, and its options; the assignment to classes is not done here.
        seed: the trial's seed.

    Returns:
        T (C, B) int8 in {-1, +1}, all rows different, and the report.

    Raises:
        InputError: as :func:`check_centers`.
    """
    check_centers(n_classes, bits, spec)
    if spec.kind == "mds":
        return _mds(n_classes, bits, spec, seed)
    rng = generator(seed, "centers", spec.kind)
    if spec.kind == "greedy":
        codes, need = _greedy(n_classes, bits, rng)
        return codes, describe_centers(codes, "greedy", threshold=need)
    if spec.kind == "bernoulli":
        codes = _bernoulli(n_classes, bits, rng)
    else:
        codes = _hadamard(n_classes, bits, spec, rng)
    report = describe_centers(codes, spec.kind)
    if not report["n_duplicate_pairs"]:
        return codes, report
    fallback = f"{spec.kind} gave equal centers in {_DRAWS} draws; greedy instead"
    codes, need = _greedy(n_classes, bits, generator(seed, "centers", "greedy"))
    return codes, describe_centers(codes, "greedy", threshold=need, fallback=fallback)
