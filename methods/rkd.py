"""RKD: the query learns the distances and angles within a batch, not where its images lie."""

from __future__ import annotations

from methods.base import METHODS, Batch, LossTerms, Source, State, hyperparameter
from methods.distilled import Distilled, DistilledParams
from methods.losses import l2, same_shape
from methods.tensors import F, Tensor, torch
from retrieval.errors import InputError

__all__ = ["RKD", "angle_loss", "distance_loss"]

_NEAREST = 1e-12  # squared distance; images that are nearer count as at one place


class RKDParams(DistilledParams):
    """The weights of the two relations, and of L2 beside them."""

    w_distance: float = hyperparameter(
        1.0,
        ge=0,
        reads=("query",),
        search=(0.0, 1.0, 25.0),
        space={"type": "log_float", "low": 0.1, "high": 100.0, "points": 4},
        range_from="ours: a decade below the authors' 1, beyond AIR-Distiller's 25",
        doc="weight of the distance-wise loss; 1 in the authors' code, 25 in AIR-Distiller",
    )
    w_angle: float = hyperparameter(
        2.0,
        ge=0,
        reads=("query",),
        search=(0.0, 2.0, 50.0),
        space={"type": "log_float", "low": 0.2, "high": 200.0, "points": 4},
        range_from="ours: a decade below the authors' 2, beyond AIR-Distiller's 50",
        doc="weight of the angle-wise loss; 2 in the authors' code, 50 in AIR-Distiller",
    )
    l2_weight: float = hyperparameter(
        0.0,
        ge=0,
        reads=("query",),
        search=(0.0, 0.1, 1.0, 10.0),
        tunable=False,
        range_from="ours: RKD + L2, which is another method",
        doc="weight of the L2 distance to the gallery's outputs, mean over the bits; at 0 nothing "
        "ties the query's space to the gallery's",
    )


@METHODS.register("rkd")
class RKD(Distilled):
    """Relational distillation, by itself a negative control for asymmetric retrieval.

    Distances over their mean and angles are the same after any rotation, reflection, shift and
    scaling of the query's space, so that its codes need not resemble the gallery's: alone it
    retrieves about as well as chance. With ``l2_weight`` it is a regulariser of L2.
    """

    Params = RKDParams
    params: RKDParams
    embeddings = True
    source = Source(
        title="Relational knowledge distillation",
        venue="CVPR",
        year=2019,
        settings_from="github.com/lenscloth/RKD",
        note="made for a student that is used alone. Written from the authors' code and that of "
        "AIR-Distiller (D3still), the paper itself is unread; the sum with L2 is ours. A "
        "direction between two images at one place, undefined, is 0 and has no gradient",
    )

    def check(self) -> None:
        """Refuse a query that would learn nothing, and what the teacher refuses."""
        super().check()
        p = self.params
        if p.w_distance == p.w_angle == p.l2_weight == 0:
            raise InputError(
                "with w_distance, w_angle and l2_weight all 0 the query network has no loss",
                key="w_distance",
                value=p.w_distance,
                hint="set one of them above 0",
            )

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Distance-wise, angle-wise and L2 terms of h_q (n, B) and g (n, B), both squashed."""
        p = self.params
        h_q, g = self.squash(h_q), self.squash(g)
        terms: LossTerms = {}
        if p.w_distance > 0:
            terms["distance"] = p.w_distance * distance_loss(h_q, g)
        if p.w_angle > 0:
            terms["angle"] = p.w_angle * angle_loss(h_q, g)
        if p.l2_weight > 0:
            terms["l2"] = p.l2_weight * l2(h_q, g)
        return terms


def distance_loss(h_q: Tensor, g: Tensor) -> Tensor:
    """Smooth L1 between the two networks' distances, each divided by its own mean.

    L_D of the authors' code: over all n^2 pairs, the mean over the pairs of two different images
    and with gradient. Two images have one distance only, its own mean, so that L_D is 0.

    Args:
        h_q: (n, B) outputs of the query network.
        g: (n, B) outputs of the gallery network.

    Raises:
        ValueError: the two have different shapes, or there are fewer than two images, which have
            no distance.
    """
    _check_pairs(h_q, g)
    aim, given = (_relative_distances(x) for x in (g.to(h_q.dtype).detach(), h_q))
    return F.smooth_l1_loss(given, aim)


def angle_loss(h_q: Tensor, g: Tensor) -> Tensor:
    """Smooth L1 between the two networks' cosines of the angles that images i see j and k under.

    L_A of the authors' code: over all n^3 triples, those that have no angle (j or k is i) being 0
    on both sides. Fewer than three different images have no other angles, so that L_A is 0. Holds
    some n^3 numbers: 64 images are 1 MB of float32 an array, 256 are 64 MB.

    Args:
        h_q: (n, B) outputs of the query network.
        g: (n, B) outputs of the gallery network.

    Raises:
        ValueError: the two have different shapes, or there are fewer than two images, which have
            no direction.
    """
    _check_pairs(h_q, g)
    aim, given = (_angles(x) for x in (g.to(h_q.dtype).detach(), h_q))
    return F.smooth_l1_loss(given, aim)


def _apart(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the differences x_j - x_i (n, n, B) and their squared lengths (n, n)."""
    gaps = x[None] - x[:, None]
    return gaps, gaps.square().sum(dim=2)


def _lengths(squared: Tensor) -> Tensor:
    """Return the roots, at least 1e-6; clamped before, since at 0 a root's slope is infinite."""
    return squared.clamp_min(_NEAREST).sqrt()


def _relative_distances(x: Tensor) -> Tensor:
    """Return the distances (n, n) over their mean, those of an image to itself being 0."""
    n = len(x)
    _, squared = _apart(x)
    itself = torch.eye(n, dtype=torch.bool, device=x.device)
    lengths = _lengths(squared).masked_fill(itself, 0)
    return lengths / (lengths.sum() / (n * (n - 1)))


def _angles(x: Tensor) -> Tensor:
    """Return cosines (n, n, n) between x_j - x_i and x_k - x_i, at [i, j, k]."""
    gaps, squared = _apart(x)
    defined = squared.detach() > _NEAREST
    directions = gaps * (defined / _lengths(squared))[:, :, None]
    return directions @ directions.transpose(1, 2)


def _check_pairs(h_q: Tensor, g: Tensor) -> None:
    same_shape(h_q, g)
    if len(h_q) < 2:
        raise ValueError(f"relations need two images or more, the batch has {len(h_q)}")
