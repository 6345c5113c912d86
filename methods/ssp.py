"""SSP: the query is as similar to anchor points, subspace by subspace, as the gallery is."""

from __future__ import annotations

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
from methods.losses import same_shape
from methods.product_quantizer import fit_subspaces
from methods.tensors import F, Tensor, torch
from retrieval.errors import InputError

__all__ = ["SSP", "default_centroids", "default_subspaces", "structure_similarity"]

_TINY = 1e-12
_POINTS = 39  # training images that a centroid needs at least: the limit that faiss warns below
_ITERATIONS = 25


class SSPParams(DistilledParams):
    """How the gallery's outputs are quantised into anchors, and the temperature."""

    subspaces: int | None = hyperparameter(
        None,
        ge=1,
        reads=("query",),
        search=(None, 2, 4),
        range_from="ours: by the length, and coarser",
        doc="parts M that an output is split into, a divisor of the code length; null is by the "
        "length, 3 or 4 bits a part: 4 of 12 and 16 bits, 8 of 24 and 32, 12 of 48",
    )
    centroids: int | None = hyperparameter(
        None,
        ge=2,
        reads=("query",),
        search=(None, 16, 64, 256),
        range_from="ours: up to the authors' 256, and by the number of images",
        doc="anchors of each part; null is 256, or a 39th of the training images if that is fewer",
    )
    scale: float = hyperparameter(
        10.0,
        gt=0,
        reads=("query",),
        search=(5.0, 10.0, 20.0),
        space={"type": "log_float", "low": 5.0, "high": 20.0, "points": 3},
        range_from="ours: half and twice the authors' 10",
        doc="factor on the cosines to the anchors, 1 / temperature, dimensionless",
    )
    weight: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.1, 1.0, 10.0),
        range_from="ours: a decade around 1",
        doc="weight of the loss",
    )


@METHODS.register("ssp")
class SSP(Distilled):
    """Structure similarity to the centroids of a product quantiser of the gallery's outputs.

    L = mean_im KL(softmax(scale cos(g_im, a_m)) || softmax(scale cos(h_q,im, a_m))) over images i
    and parts m of their outputs, a_m the part's anchors. The anchors are made once, of the frozen
    gallery's outputs for the training images without augmentation.
    """

    Params = SSPParams
    params: SSPParams
    embeddings = True
    source = Source(
        title="Structure similarity preservation learning for asymmetric image retrieval",
        venue="IEEE Transactions on Multimedia",
        year=2024,
        settings_from="github.com/MCC-WH/SSP",
        note="the loss and its scale are those of the authors' code; of the paper only the "
        "abstract was read. The adaptation to hash codes is ours: the authors quantise landmark "
        "features of 2048 dimensions into 32 or 64 parts of 256 anchors (faiss, a million other "
        "images), here it is the continuous hash outputs of the training images, into parts of 3 "
        "or 4 bits, with a k-means of our own (k-means++, 25 iterations)",
    )

    @property
    def reads_embeddings(self) -> bool:
        """The anchors are centroids of the gallery's outputs."""
        return True

    @property
    def _subspaces(self) -> int:
        return self.params.subspaces or default_subspaces(self.task.bits)

    @property
    def _centroids(self) -> int:
        return self.params.centroids or default_centroids(self.task.n_train)

    def check(self) -> None:
        """Refuse parts and anchors that cannot be, and what the teacher refuses."""
        super().check()
        bits, n_train = self.task.bits, self.task.n_train
        if bits % self._subspaces:
            divisors = [m for m in range(1, bits + 1) if bits % m == 0]
            raise InputError(
                f"codes of {bits} bits do not split into {self._subspaces} equal parts",
                key="subspaces",
                value=self.params.subspaces,
                hint=f"one of {', '.join(map(str, divisors))}",
            )
        if self._centroids > n_train:
            raise InputError(
                f"{n_train} training images do not make {self._centroids} anchors",
                key="centroids",
                value=self.params.centroids,
                hint=f"set it to at most {n_train}",
            )

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """Return the anchors (M, K, B / M) of the gallery's squashed outputs."""
        if stage != "query":
            return {}
        if split.embeddings is None:
            raise ValueError("the anchors need the gallery's embeddings of the split")
        anchors = fit_subspaces(
            self.squash(split.embeddings.cpu().double()).numpy(),
            self._subspaces,
            self._centroids,
            lambda part: split.generator("anchors", part),
            iterations=_ITERATIONS,
        )
        return {"anchors": torch.from_numpy(anchors).to(split.embeddings)}

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """KL between the similarities of g (n, B) and of h_q (n, B) to the anchors."""
        p = self.params
        loss = structure_similarity(
            self.squash(h_q), self.squash(g), state["anchors"], scale=p.scale
        )
        return {"structure": p.weight * loss}


def default_subspaces(bits: int) -> int:
    """Return the parts that codes of ``bits`` are split into where nothing is given.

    The most equal parts of at least 3 bits, or 4 where 16 divides the length: 4 parts of 12 and
    of 16 bits, 8 of 24 and of 32, 12 of 48, 16 of 64. A length without such a divisor is one part.
    """
    least = 3 if bits % 16 else 4
    return max((m for m in range(1, bits + 1) if bits % m == 0 and bits // m >= least), default=1)


def default_centroids(n_train: int) -> int:
    """Return the anchors of a part where nothing is given: 256, or fewer for a small split."""
    return max(2, min(256, n_train // _POINTS))


def structure_similarity(h_q: Tensor, g: Tensor, anchors: Tensor, *, scale: float) -> Tensor:
    """KL(P_g || P_q) of the softmax over each part's anchors, mean over images and parts.

    SSP, the authors' code. A part that is zero is equally similar to all anchors; it has no
    direction, and gets no gradient.

    Args:
        h_q: (n, B) outputs of the query network.
        g: (n, B) outputs of the gallery network, without gradient.
        anchors: (M, K, B / M), K anchors of each of M parts.
        scale: factor on the cosines of parts and anchors.

    Raises:
        ValueError: the outputs have different shapes, or the anchors are of another length.
    """
    same_shape(h_q, g)
    parts, _, dimensions = anchors.shape
    if h_q.shape[1] != parts * dimensions:
        raise ValueError(
            f"outputs have {h_q.shape[1]} bits and their anchors {parts * dimensions}"
        )
    directions = _directions(anchors.to(h_q.dtype))

    def log_similarity(h: Tensor) -> Tensor:
        cosines = torch.einsum(
            "nmd,mkd->nmk", _directions(h.view(-1, parts, dimensions)), directions
        )
        return F.log_softmax(scale * cosines, dim=2)

    aim, given = log_similarity(g.to(h_q.dtype).detach()), log_similarity(h_q)
    return F.kl_div(given, aim, log_target=True, reduction="none").sum(dim=2).mean()


def _directions(x: Tensor) -> Tensor:
    """Return x (..., d) over its lengths in the last dimension; 0, without gradient, where 0."""
    length: Tensor = x.norm(dim=-1, keepdim=True)
    return x * ((length > _TINY) / length.clamp_min(_TINY))
