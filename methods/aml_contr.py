"""AML-Contr: asymmetric metric learning with labels, by contrast with the gallery's features."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.base import (
    METHODS,
    Batch,
    LossTerms,
    Source,
    State,
    TrainedStage,
    TrainingSplit,
    hyperparameter,
)
from methods.distilled import Distilled, DistilledParams
from methods.losses import contrastive, cosine, hinge, l2, similar, unit
from methods.tensors import Tensor, torch

__all__ = [
    "AMLContr",
    "contrastive_per_type",
    "draw_positives",
    "hard_negatives",
    "tuple_contrastive",
]

_CHUNK = 2**20  # similarities held at a time while negatives are looked for, 4 MB


class AMLContrParams(DistilledParams):
    """Which pairs are contrasted, the margin, and how tuples are drawn."""

    form: Literal["all_pairs", "tuples"] = hyperparameter(
        "all_pairs",
        reads=("query",),
        search=("all_pairs", "tuples"),
        tunable=False,
        range_from="all pairs: CSCH, Table 4; tuples: the authors' code",
        doc="all pairs of the batch (CSCH, Table 4), or each image with one positive and hard "
        "negatives among the gallery's embeddings of the training split (AML)",
    )
    margin: float = hyperparameter(
        0.7,
        gt=0,
        le=2,
        reads=("query",),
        search=(0.5, 0.7, 1.0, 1.5),
        space={"type": "float", "low": 0.5, "high": 1.5, "step": 0.2},
        range_from="ours: around the 0.7 of the authors' code",
        doc="distance of unit vectors beyond which dissimilar images cost nothing",
    )
    reduce: Literal["all_pairs", "per_type"] = hyperparameter(
        "all_pairs",
        reads=("query",),
        search=("all_pairs", "per_type"),
        tunable=False,
        range_from="ours: the paper does not say which",
        when={"form": ("all_pairs",)},
        doc="with form all_pairs: mean over all of them, or the sum of the means over similar and "
        "over dissimilar ones, of which there are many more",
    )
    weight: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.1, 1.0, 10.0),
        range_from="ours: a decade around 1",
        doc="weight of all terms",
    )
    reg_weight: float = hyperparameter(
        1.0,
        ge=0,
        reads=("query",),
        search=(0.0, 0.1, 1.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around 1, the authors' Contr+; their Contr has 0",
        when={"form": ("tuples",)},
        doc="with form tuples: weight of the image's own gallery output as one more positive, 1 "
        "in the authors' Contr+ and 0 without it; all pairs have it among them",
    )
    negatives: int = hyperparameter(
        5,
        ge=1,
        reads=("query",),
        search=(5, 10),
        range_from="ours: the authors' 5, and twice that",
        when={"form": ("tuples",)},
        doc="with form tuples: negatives of an image, of different classes where it has only one",
    )
    pool: int = hyperparameter(
        20000,
        ge=1,
        reads=("query",),
        search=(2000, 20000),
        range_from="ours: the authors' 20 000, and a tenth of that",
        when={"form": ("tuples",)},
        doc="with form tuples: images drawn each epoch that its negatives are among; at most all",
    )


@METHODS.register("aml_contr")
class AMLContr(Distilled):
    """Contrastive loss between the query's features and the frozen gallery's, L2-normalised.

    Similar images cost d^2 / 2, dissimilar ones max(0, margin - d)^2 / 2. In ``form: tuples`` an
    epoch's tuples are a function of the seed and the epoch, drawn from the gallery's embeddings.
    With a gradient to the gallery all pairs are ``csch`` with ``instance: contr_grad``.
    """

    Params = AMLContrParams
    params: AMLContrParams
    labels_needed = True
    embeddings = True
    source = Source(
        title="Asymmetric metric learning for knowledge transfer",
        venue="CVPR",
        year=2021,
        url="https://arxiv.org/abs/2006.16331",
        settings_from="github.com/budnikm/aml: margin 0.7, 5 negatives, a pool of 20 000",
        note="the paper is unread; tuples are the authors' code, all pairs the CSCH paper's "
        "Table 4, which leaves margin and normalisation open. The authors look for the negatives "
        "nearest to the query network's features and draw 2 000 tuples an epoch, we take those "
        "nearest to the gallery's and a tuple for every image, with its augmentation; they sum "
        "over tuples, we take the mean. The re-implementation in github.com/MCC-WH/SSP is not "
        "followed: there the positive is among the negatives, and these are not hinged",
    )

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Tuples are of embeddings: without ``reg_weight`` they read no code of the batch."""
        p = self.params
        return "sign" if p.form == "tuples" and p.reg_weight == 0 else "float"

    @property
    def reads_embeddings(self) -> bool:
        """Tuples have positives and negatives beyond the batch."""
        return self.params.form == "tuples"

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """Return the unit embeddings of the training split (N, B)."""
        if stage != "query" or self.params.form != "tuples":
            return {}
        if split.embeddings is None:
            raise ValueError("tuples need the gallery's embeddings of the split")
        return {"bank": unit(self.squash(split.embeddings))}

    def begin_epoch(self, epoch: int, split: TrainingSplit, state: State) -> None:
        """Draw the epoch's tuples (N, 1 + negatives): a positive, then negatives or -1."""
        p = self.params
        if p.form != "tuples":
            return
        labels = split.labels.cpu().numpy() > 0
        positives = draw_positives(labels, split.generator("positives", epoch))
        order = split.generator("pool", epoch).permutation(len(split))
        pool = np.sort(order[: p.pool])  # of equally near images the lowest is taken
        device = split.labels.device
        negatives = hard_negatives(
            state["bank"],
            split.labels if split.classes is None else split.classes,
            torch.from_numpy(pool).to(device),
            p.negatives,
        )
        first = torch.from_numpy(positives).to(device)
        state["tuples"] = torch.cat([first[:, None], negatives], dim=1)

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Contrast of h_q (n, B) with the gallery's outputs g (n, B), or with embeddings."""
        p = self.params
        h_q = self.squash(h_q)
        if p.form == "tuples":
            rows = state["tuples"][batch.rows]
            given = state["bank"][rows.clamp_min(0)]  # (n, 1 + negatives, B)
            loss = tuple_contrastive(
                h_q, given[:, 0], given[:, 1:], rows[:, 1:] >= 0, margin=p.margin
            )
            terms = {"contrast": p.weight * loss}
            if p.reg_weight > 0:
                own = l2(h_q, self.squash(g), reduce="sum_bits", normalize=True) / 2
                terms["regression"] = p.weight * p.reg_weight * own
            return terms
        # An image without any label is still similar to itself.
        similarity = similar(batch.labels).fill_diagonal_(1)
        over = contrastive if p.reduce == "all_pairs" else contrastive_per_type
        return {"contrast": p.weight * over(h_q, self.squash(g), similarity, margin=p.margin)}


# ---- losses --------------------------------------------------------------------------


def contrastive_per_type(h_q: Tensor, h_g: Tensor, similarity: Tensor, *, margin: float) -> Tensor:
    """Contrastive loss of the batch with similar and dissimilar pairs averaged separately.

    With unit-length rows and d_ij their distances: the mean of d^2 / 2 over pairs with S = 1 and
    that of max(0, margin - d)^2 / 2 over those with S = 0, added. A type without pairs counts 0.

    Args:
        h_q: (n, B) outputs of the query network.
        h_g: (n, B) outputs of the gallery network.
        similarity: S (n, n), 1 where image i and image j are similar, else 0.
        margin: distance between unit vectors beyond which a dissimilar pair costs nothing.

    Raises:
        ValueError: the two have different numbers of bits.
    """
    squared = (2 - 2 * cosine(h_q, h_g)).clamp_min(0)
    s = similarity.to(h_q.dtype)
    alike = (s * squared).sum() / s.sum().clamp_min(1)
    unlike = ((1 - s) * hinge(squared, margin)).sum() / (1 - s).sum().clamp_min(1)
    return (alike + unlike) / 2


def tuple_contrastive(
    h_q: Tensor, positive: Tensor, negatives: Tensor, present: Tensor, *, margin: float
) -> Tensor:
    """Contrastive loss of anchors with a positive and some negatives each (AML, authors' code).

    With unit-length rows and d their distances to the anchor: d^2 / 2 of the positive and the sum
    of max(0, margin - d)^2 / 2 over the negatives, mean over the anchors.

    Args:
        h_q: (n, B) outputs of the query network, the anchors.
        positive: (n, B) unit vectors of the gallery.
        negatives: (n, k, B) unit vectors of the gallery.
        present: (n, k) bool; a negative where it is false counts 0.
        margin: distance between unit vectors beyond which a negative costs nothing.

    Raises:
        ValueError: anchors and gallery have different numbers of bits.
    """
    if h_q.shape[1] != positive.shape[1]:
        raise ValueError(f"outputs have {h_q.shape[1]} bits and their tuples {positive.shape[1]}")
    anchor = unit(h_q)
    near = (anchor - positive.to(h_q.dtype)).square().sum(dim=1)
    squared = (anchor[:, None] - negatives.to(h_q.dtype)).square().sum(dim=2)
    apart = (hinge(squared, margin) * present).sum(dim=1)
    return (near + apart).mean() / 2


# ---- tuples --------------------------------------------------------------------------


def draw_positives(labels: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw for each image another one that shares a label with it.

    First one of its labels is drawn, then one of that label's other images, so that with several
    labels a frequent one does not crowd out the rest. An image that shares no label with any other
    is its own positive.

    Args:
        labels: (N, C), whether an image has a label.
        rng: of the draws.

    Returns:
        (N,) row numbers.
    """
    members = labels.sum(axis=0)
    shared = labels & (members > 1)
    choices = shared.sum(axis=1)
    which = rng.integers(np.maximum(choices, 1))  # of the image's shared labels, 0-based
    label = (shared & (shared.cumsum(axis=1) == which[:, None] + 1)).argmax(axis=1)
    # An image's place among its label's images; those at and after it move up by one.
    rows = np.arange(len(labels))
    place = labels.cumsum(axis=0, dtype=np.int64)[rows, label] - 1
    other = rng.integers(np.maximum(members[label] - 1, 1))
    other += other >= place
    images = np.nonzero(labels.T)[1]  # by label, then by row
    starts = np.cumsum(members) - members
    lonely = choices == 0
    positives: NDArray[np.int64] = rows.astype(np.int64)
    positives[~lonely] = images[(starts[label] + other)[~lonely]]
    return positives


def hard_negatives(bank: Tensor, labels: Tensor, pool: Tensor, count: int) -> Tensor:
    """Find the images of the pool that are nearest to each image without sharing a label with it.

    Where images have one label, no two negatives of an image have the same.

    Args:
        bank: (N, B) unit vectors.
        labels: (N,) classes, or (N, C) multi-hot where images have several labels.
        pool: (P,) row numbers of the images that may be negatives.
        count: how many negatives.

    Returns:
        (N, count) int64 row numbers, nearest first, of equally near ones the first in the pool;
        -1 where there are no more. The N x P similarities are never held together.
    """
    features, theirs = bank[pool], labels[pool]
    one_label = labels.ndim == 1
    step = max(1, _CHUNK // len(pool))
    blocks = []
    for first in range(0, len(bank), step):
        rows = torch.arange(first, min(first + step, len(bank)), device=bank.device)
        similarity = bank[rows] @ features.T
        if one_label:
            barred = labels[rows][:, None] == theirs
        else:  # an image without labels shares none with itself either
            barred = (labels[rows] @ theirs.T > 0) | (rows[:, None] == pool)
        similarity.masked_fill_(barred, -torch.inf)
        slots = []
        for _ in range(count):
            best, column = similarity.max(dim=1)  # the first of equals
            slots.append(torch.where(best == -torch.inf, -1, pool[column]))
            if one_label:
                similarity.masked_fill_(theirs[column][:, None] == theirs, -torch.inf)
            else:
                similarity.scatter_(1, column[:, None], -torch.inf)
        blocks.append(torch.stack(slots, dim=1))
    return torch.cat(blocks)
