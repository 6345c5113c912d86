"""Losses as small pure functions of tensors; each names the equation that it was written from.

Shapes: n images in a batch, B bits, C classes. Outputs h are (n, B) raw outputs of the hash layer,
centers T are (C, B) in {-1, +1}. Every function keeps the dtype of the outputs (float32 or
float64) and is to be called with autocast off. sgn(0) = +1 throughout, where the public code
bases' ``torch.sign`` gives 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from methods.tensors import F, Tensor, torch

if TYPE_CHECKING:
    from methods.base import Batch

__all__ = [
    "binary_center_loss",
    "central_similarity",
    "centroid_cross_entropy",
    "centroids",
    "contrastive",
    "cosine",
    "hinge",
    "l2",
    "margin_cross_entropy",
    "margin_label_smoothing",
    "same_shape",
    "sgn",
    "sign_gap",
    "similar",
    "tanh_quantization",
    "unit",
]

_TINY = 1e-12
_ARC_LIMIT = 0.99999  # arccos has an infinite slope at 1


def sgn(h: Tensor) -> Tensor:
    """Take the sign of h in {-1, +1}, 0 counted as +1, in h's dtype and without gradient."""
    codes: Tensor = torch.where(h.detach() >= 0, 1.0, -1.0).to(h.dtype)
    return codes


def unit(h: Tensor) -> Tensor:
    """Return the rows of h (n, B) divided by max(their length, 1e-12)."""
    length: Tensor = h.norm(dim=1, keepdim=True)
    return h / length.clamp_min(_TINY)


def cosine(h: Tensor, other: Tensor) -> Tensor:
    """Return the cosines (n, m) of the rows of h (n, B) with the rows of ``other`` (m, B).

    Raises:
        ValueError: the two have different numbers of bits.
    """
    _same_bits(h, other)
    return unit(h) @ unit(other.to(h.dtype)).T


def similar(labels: Tensor) -> Tensor:
    """Return S (n, n), 1 where two rows of the multi-hot labels (n, C) share a class, else 0."""
    return (labels @ labels.T > 0).to(labels.dtype)


def centroids(labels: Tensor, centers: Tensor, tie_bits: Tensor) -> Tensor:
    """Return each image's hash centroid: the bitwise majority of its classes' centers.

    CSQ (Yuan et al., CVPR 2020, Eq. 3); CSCH Eq. 13. A bit whose vote is even takes the image's
    own tie bit, which is the same for both networks and in all epochs; the published codes draw a
    new one for the whole run, or even for each loss.

    Args:
        labels: (n, C) multi-hot.
        centers: (C, B) in {-1, +1}.
        tie_bits: (n, B) in {-1, +1}.

    Returns:
        z (n, B) in {-1, +1}, in the dtype of ``labels``.
    """
    votes = labels @ centers.to(labels.dtype)  # small integers, exact in float32
    return torch.where(votes == 0, tie_bits.to(labels.dtype), sgn(votes))


# ---- central similarity --------------------------------------------------------------


def _with_margin(
    cosines: Tensor, positive: Tensor, margin: float, kind: Literal["cos", "arc"]
) -> Tensor:
    """Lower the cosines (n, C) where ``positive`` (n, C): cos t - m, or cos(t + m) for "arc"."""
    if kind == "cos":
        return cosines - margin * positive
    angle = torch.arccos(cosines.clamp(-_ARC_LIMIT, _ARC_LIMIT))
    return torch.where(positive > 0, torch.cos(angle + margin), cosines)


def margin_cross_entropy(
    h: Tensor,
    centers: Tensor,
    classes: Tensor,
    *,
    margin: float,
    scale: float,
    kind: Literal["cos", "arc"] = "cos",
) -> Tensor:
    """Cross-entropy of scaled cosines to the centers, the margin on the true class only.

    CSCH Eq. 5-9 with scale = 1 / tau; OrthoHash (Hoe et al., NeurIPS 2021, Eq. 5). Read literally,
    CSCH's Eq. 9 has the margin in every term of the softmax, where it cancels; the released code
    lowers the true class alone.

    Args:
        h: (n, B) raw outputs.
        centers: (C, B) in {-1, +1}.
        classes: (n,) int64.
        margin: subtracted from the cosine ("cos"), or added to the angle in radians ("arc").
        scale: factor on the cosines, dimensionless.
        kind: which of the two margins.

    Returns:
        Mean over the batch, scalar.
    """
    cosines = cosine(h, centers)  # (n, C)
    positive = F.one_hot(classes, len(centers)).to(h.dtype)
    return F.cross_entropy(scale * _with_margin(cosines, positive, margin, kind), classes)


def margin_label_smoothing(
    h: Tensor,
    centers: Tensor,
    labels: Tensor,
    *,
    margin: float,
    scale: float,
    kind: Literal["cos", "arc"] = "cos",
) -> Tensor:
    """Cross-entropy with the target spread evenly over an image's classes, each with the margin.

    OrthoHash for several labels (its released code); "label smoothing" of CSCH's Table 7. An image
    without any label counts 0.

    Args:
        h: (n, B) raw outputs.
        centers: (C, B) in {-1, +1}.
        labels: (n, C) multi-hot.
        margin: subtracted from the cosine ("cos"), or added to the angle in radians ("arc").
        scale: factor on the cosines, dimensionless.
        kind: which of the two margins.

    Returns:
        Mean over the batch, scalar.
    """
    positive = labels.to(h.dtype)
    logits = scale * _with_margin(cosine(h, centers), positive, margin, kind)
    target = positive / positive.sum(dim=1, keepdim=True).clamp_min(1.0)
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def centroid_cross_entropy(
    h: Tensor, centers: Tensor, labels: Tensor, tie_bits: Tensor, *, margin: float, tau: float
) -> Tensor:
    """Cross-entropy of the image's centroid against the centers of all classes it is not in.

    CSCH Eq. 14, the margin on the centroid only and all negatives, as in the released code (the
    paper prints the margin everywhere and speaks of a subset). An image of every class counts 0.

    Args:
        h: (n, B) raw outputs.
        centers: (C, B) in {-1, +1}.
        labels: (n, C) multi-hot.
        tie_bits: (n, B) in {-1, +1}.
        margin: subtracted from the cosine with the centroid.
        tau: temperature, dimensionless.

    Returns:
        Mean over the batch, scalar.
    """
    _same_bits(h, centers)
    z = centroids(labels, centers, tie_bits).to(h.dtype)
    own = ((unit(h) * unit(z)).sum(dim=1, keepdim=True) - margin) / tau  # (n, 1)
    others = cosine(h, centers) / tau
    others = others.masked_fill(labels > 0, -torch.inf)  # (n, C); safe, own is always finite
    return (torch.cat([own, others], dim=1).logsumexp(dim=1) - own[:, 0]).mean()


def central_similarity(
    h: Tensor, centers: Tensor, batch: Batch, *, margin: float, tau: float
) -> Tensor:
    """CSCH's center term: Eq. 9 where images have one label, Eq. 14 where they have several.

    Args:
        h: (n, B) codes of one network.
        centers: (C, B) in {-1, +1}.
        batch: its classes, or its labels and tie bits.
        margin: on the true center, or on the centroid.
        tau: temperature of the cosines, dimensionless.
    """
    if batch.classes is None:
        return centroid_cross_entropy(
            h, centers, batch.labels, batch.tie_bits, margin=margin, tau=tau
        )
    return margin_cross_entropy(h, centers, batch.classes, margin=margin, scale=1 / tau)


def binary_center_loss(h: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy between (1 + tanh h) / 2 and (1 + target) / 2.

    CSQ (Yuan et al., CVPR 2020, Eq. 4). Since (1 + tanh h) / 2 = sigmoid(2 h) it is taken on
    logits, where the published form loses the gradient of saturated outputs.

    Args:
        h: (n, B) outputs before the tanh.
        target: (n, B) centers or centroids in {-1, +1}.

    Returns:
        Mean over batch and bits, scalar.
    """
    _same_bits(h, target)
    return F.binary_cross_entropy_with_logits(2 * h, (1 + target.to(h.dtype)) / 2)


# ---- quantisation --------------------------------------------------------------------


def tanh_quantization(h: Tensor) -> Tensor:
    """Return the mean of (|tanh h| - 1)^2 over batch and bits (CSQ, Eq. 5)."""
    return (h.tanh().abs() - 1).square().mean()


def sign_gap(h: Tensor, kind: Literal["cos", "l1", "l2"]) -> Tensor:
    """Return how far h (n, B) is from sgn(h), as in OrthoHash's released code.

    Args:
        h: (n, B) raw outputs.
        kind: "cos" is 1 - cos(h, sgn h), mean over the batch; "l1" and "l2" are |h - sgn h| and
            its square, mean over batch and bits.
    """
    if kind == "cos":
        return (1 - (unit(h) * unit(sgn(h))).sum(dim=1)).mean()
    gap = h - sgn(h)
    return gap.abs().mean() if kind == "l1" else gap.square().mean()


# ---- between the two networks --------------------------------------------------------


def l2(
    h_q: Tensor,
    g: Tensor,
    *,
    target: Literal["continuous", "binary"] = "continuous",
    reduce: Literal["mean", "sum_bits"] = "mean",
    normalize: bool = False,
) -> Tensor:
    """Squared distance between the query's outputs and the gallery's codes of the same images.

    CSCH Eq. 11 with ``target="binary"``; AML-Reg and plain distillation with "continuous", which
    lets gradients reach g where it carries any.

    Args:
        h_q: (n, B) outputs of the query network.
        g: (n, B) outputs of the gallery network, or its codes.
        target: g itself, or sgn(g).
        reduce: mean over batch and bits, or sum over bits and mean over the batch.
        normalize: L2-normalise the rows of both first.

    Raises:
        ValueError: the two have different shapes.
    """
    same_shape(h_q, g)
    aim = sgn(g).to(h_q.dtype) if target == "binary" else g.to(h_q.dtype)
    if normalize:
        h_q, aim = unit(h_q), unit(aim)
    squared = (h_q - aim).square()
    return squared.mean() if reduce == "mean" else squared.sum(dim=1).mean()


def contrastive(h_q: Tensor, h_g: Tensor, similarity: Tensor, *, margin: float) -> Tensor:
    """Contrastive loss between all queries and all gallery outputs of the batch (AML-Contr).

    With unit-length rows and d_ij their distances, the mean over all n^2 pairs of S d^2 / 2 +
    (1 - S) max(0, margin - d)^2 / 2 (CSCH, Table 4; Budnik and Avrithis, CVPR 2021).

    Args:
        h_q: (n, B) outputs of the query network.
        h_g: (n, B) outputs of the gallery network.
        similarity: S (n, n), 1 where image i and image j share a label, else 0.
        margin: distance between unit vectors beyond which a dissimilar pair costs nothing.

    Raises:
        ValueError: the two have different numbers of bits.
    """
    squared = (2 - 2 * cosine(h_q, h_g)).clamp_min(0)
    apart = hinge(squared, margin)
    s = similarity.to(h_q.dtype)
    return (s * squared + (1 - s) * apart).mean() / 2


def hinge(squared: Tensor, margin: float) -> Tensor:
    """Return max(0, margin - d)^2 of squared distances d^2, elementwise.

    The distance is only needed, and its slope at 0 only finite, where it is not 0.
    """
    return (margin - squared.clamp_min(_TINY).sqrt()).clamp_min(0).square()


def same_shape(h_q: Tensor, g: Tensor) -> None:
    """Refuse query outputs and gallery codes that are not of the same images and bits.

    Raises:
        ValueError: the two have different shapes.
    """
    if h_q.shape != g.shape:
        raise ValueError(f"query outputs {tuple(h_q.shape)} and gallery codes {tuple(g.shape)}")


def _same_bits(h: Tensor, other: Tensor) -> None:
    if h.shape[1] != other.shape[1]:
        raise ValueError(f"outputs have {h.shape[1]} bits and their targets {other.shape[1]}")
