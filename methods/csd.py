"""CSD: the query orders its gallery neighbours as the gallery itself orders them."""

from __future__ import annotations

from typing import Literal

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
from methods.losses import cosine, same_shape, sgn, unit
from methods.tensors import F, Tensor, torch
from retrieval.errors import InputError

__all__ = ["CSD", "contextual_divergence", "contextual_similarity", "nearest"]

_TINY = 1e-12
_CHUNK = 2**22  # similarities held at a time while neighbours are listed, 16 MB


class CSDParams(DistilledParams):
    """Where the neighbours come from, how many there are, and the two temperatures."""

    form: Literal["batch", "offline"] = hyperparameter(
        "batch",
        reads=("query",),
        search=("batch", "offline"),
        tunable=False,
        range_from="batch: AIR-Distiller; offline: the paper's abstract",
        doc="an image's neighbours: the batch's images (public code), or those of the whole "
        "training split by the gallery's embeddings without augmentation (the paper)",
    )
    features: Literal["continuous", "binary"] = hyperparameter(
        "continuous",
        reads=("query",),
        search=("continuous", "binary"),
        tunable=False,
        range_from="ours: hash codes have signs",
        doc="what the gallery's similarities are of: its outputs, or their signs",
    )
    k: int = hyperparameter(
        96,
        ge=1,
        reads=("query",),
        search=(16, 32, 64, 96),
        space={"type": "int", "low": 16, "high": 96, "step": 16},
        range_from="ours: up to AIR-Distiller's 96, which a batch of 64 makes 64",
        doc="neighbours of an image, itself included; in the batch at most its size; offline 64 "
        "to 4096, since neighbours of one class alone do not tell the classes apart",
    )
    t_q: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.01, 0.1, 1.0),
        space={"type": "log_float", "low": 0.01, "high": 1.0, "points": 3},
        range_from="ours: two decades below AIR-Distiller's 1, towards t_g",
        doc="temperature of the query's cosines, dimensionless",
    )
    t_g: float = hyperparameter(
        0.01,
        gt=0,
        reads=("query",),
        search=(0.005, 0.01, 0.05, 0.1),
        space={"type": "log_float", "low": 0.005, "high": 0.1, "points": 4},
        range_from="ours: around AIR-Distiller's 0.01",
        doc="temperature of the gallery's cosines, dimensionless",
    )
    weight: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.1, 1.0, 10.0),
        range_from="ours: a decade around 1, AIR-Distiller's default",
        doc="weight of the loss; 20 in the public configurations, beside label losses",
    )


@METHODS.register("csd")
class CSD(Distilled):
    """Contextual similarity: of each image's neighbours, the query tells how near the gallery is.

    L = mean_i KL(softmax(cos(g_i, g_j) / t_g) || softmax(cos(h_q,i, g_j) / t_q)) over the k
    neighbours j of image i by the gallery's features g.
    """

    Params = CSDParams
    params: CSDParams
    embeddings = True
    source = Source(
        title="Contextual similarity distillation for asymmetric image retrieval",
        venue="CVPR",
        year=2022,
        settings_from="AIR-Distiller, github.com/SCY-X/D3still",
        note="written from the public code and the paper's abstract; the rest of the paper is "
        "unread. The paper lists neighbours offline, its K and temperatures are not known to us; "
        "the public code takes them in the batch, with k 96, t_q 1 and t_g 0.01, beside "
        "cross-entropy and triplet losses that are not here",
    )

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Offline the loss reads no codes of the batch; binary features are signs."""
        p = self.params
        return "float" if p.form == "batch" and p.features == "continuous" else "sign"

    @property
    def reads_embeddings(self) -> bool:
        """Offline the neighbours are those among the whole training split."""
        return self.params.form == "offline"

    def check(self) -> None:
        """Refuse more neighbours than there are images, and what the teacher refuses."""
        super().check()
        if self.params.form == "offline" and self.params.k > self.task.n_train:
            raise InputError(
                f"there are only {self.task.n_train} training images to be neighbours",
                key="k",
                value=self.params.k,
                hint=f"set k to at most {self.task.n_train}, or form: batch",
            )

    def _features(self, g: Tensor) -> Tensor:
        """Return what the gallery's similarities are of: g (n, B) squashed, or its signs."""
        return sgn(g) if self.params.features == "binary" else self.squash(g)

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """Return the features of the training split (N, B), and each image's k nearest (N, k)."""
        if stage != "query" or self.params.form != "offline":
            return {}
        if split.embeddings is None:
            raise ValueError("the offline form needs the gallery's embeddings of the split")
        bank = self._features(split.embeddings)
        return {"bank": bank, "neighbours": nearest(bank, self.params.k)}

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """KL over each image's neighbours in the batch by g (n, B), or in the bank."""
        p = self.params
        h_q = self.squash(h_q)
        if p.form == "batch":
            loss = contextual_similarity(
                h_q, self._features(g), batch.rows, k=p.k, t_q=p.t_q, t_g=p.t_g
            )
        else:
            bank = state["bank"]
            near = bank[state["neighbours"][batch.rows].long()]  # (n, k, B)
            loss = contextual_divergence(
                _cosines_of_lists(h_q, near),
                _cosines_of_lists(bank[batch.rows].to(h_q.dtype), near),
                t_q=p.t_q,
                t_g=p.t_g,
            )
        return {"context": p.weight * loss}


def contextual_divergence(student: Tensor, teacher: Tensor, *, t_q: float, t_g: float) -> Tensor:
    """KL(softmax(teacher / t_g) || softmax(student / t_q)), mean over rows.

    Args:
        student: (n, k) similarities of the query network's outputs to k neighbours each.
        teacher: (n, k) the gallery's, without gradient.
        t_q: temperature of the student's similarities, dimensionless.
        t_g: temperature of the teacher's similarities, dimensionless.
    """
    # Of logarithms: at t_g = 0.005 a probability underflows in float32.
    aim = F.log_softmax(teacher.detach() / t_g, dim=1)
    given = F.log_softmax(student / t_q, dim=1)
    return F.kl_div(given, aim, log_target=True, reduction="batchmean")


def contextual_similarity(
    h_q: Tensor, g: Tensor, rows: Tensor, *, k: int, t_q: float, t_g: float
) -> Tensor:
    """Contextual similarity distillation over the k nearest images of the batch.

    The in-batch form of AIR-Distiller. With k beyond the batch all of it are neighbours; a batch
    of one has a loss of 0.

    Args:
        h_q: (n, B) outputs of the query network.
        g: (n, B) outputs of the gallery network, or its codes.
        rows: (n,) distinct numbers of the images. Of neighbours equally near, the lowest count,
            in whatever order the batch is.
        k: neighbours, the image itself among them.
        t_q: temperature of cos(h_q, g), dimensionless.
        t_g: temperature of cos(g, g), dimensionless.

    Raises:
        ValueError: the two have different shapes.
    """
    same_shape(h_q, g)
    g = g.to(h_q.dtype)
    columns = g[rows.argsort()]
    teacher = _exact_cosine(g, columns)
    kept = _largest(teacher, k)
    student = cosine(h_q, columns)
    return contextual_divergence(
        student.gather(1, kept), teacher.gather(1, kept), t_q=t_q, t_g=t_g
    )


def nearest(features: Tensor, k: int) -> Tensor:
    """Return the k nearest rows of each row by cosine, itself or its equals among them.

    Args:
        features: (N, B), continuous or binary.
        k: at most N.

    Returns:
        (N, k) int32 row numbers, nearest first, of equally near ones the lower first. The N x N
        similarities are never held together.
    """
    step = max(1, _CHUNK // len(features))
    lists = [
        _largest(_exact_cosine(features[first : first + step], features), k).int()
        for first in range(0, len(features), step)
    ]
    return torch.cat(lists)


def _largest(similarity: Tensor, k: int) -> Tensor:
    """Return the columns (n, min(k, m)) of the largest entries of each row, ties to the first."""
    order: Tensor = similarity.sort(dim=1, descending=True, stable=True).indices
    return order[:, :k]


def _exact_cosine(h: Tensor, other: Tensor) -> Tensor:
    """Return the cosines (n, m) of rows (n, B) and (m, B), exactly equal for equally near codes.

    Unit vectors would round before they are multiplied, and ties of codes with them. Rows are
    brought to a largest entry of 1 instead, which codes have, and products of codes are whole.
    """
    h, other = (x / x.abs().amax(dim=1, keepdim=True).clamp_min(_TINY) for x in (h, other))
    lengths = h.norm(dim=1)[:, None] * other.norm(dim=1)
    cosines: Tensor = h @ other.T / lengths.clamp_min(_TINY)
    return cosines


def _cosines_of_lists(h: Tensor, near: Tensor) -> Tensor:
    """Return the cosines (n, k) of each row of h (n, B) with the k rows of its list (n, k, B)."""
    if h.shape[1] != near.shape[2]:
        raise ValueError(f"outputs have {h.shape[1]} bits and their neighbours {near.shape[2]}")
    lists = unit(near.flatten(0, 1).to(h.dtype)).view(near.shape)
    cosines: Tensor = torch.einsum("nb,nkb->nk", unit(h), lists)
    return cosines
