"""OrthoHash: one cosine-margin classification loss to fixed centers; the query distils it."""

from __future__ import annotations

from typing import Literal

from methods.base import (
    METHODS,
    Batch,
    CentersKind,
    CentersSpec,
    HashMethod,
    Hyperparameters,
    LossTerms,
    Source,
    State,
    hyperparameter,
)
from methods.centers import check_centers
from methods.losses import l2, margin_cross_entropy, margin_label_smoothing, sign_gap
from methods.tensors import Tensor


class OrthoHashParams(Hyperparameters):
    """Scale, margin and centers of the gallery's loss; target and weight of the distillation."""

    scale: float = hyperparameter(
        8.0, gt=0, reads=("gallery",), search=(4.0, 8.0, 16.0, 32.0), doc="factor s on the cosines"
    )
    margin: float = hyperparameter(
        0.2,
        ge=0,
        le=2,
        reads=("gallery",),
        search=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        doc="margin m on the true center, of the cosine (cos) or in radians (arc); 0.3 for CIFAR",
    )
    kind: Literal["cos", "arc"] = hyperparameter(
        "cos", reads=("gallery",), search=("cos", "arc"), doc="where the margin applies"
    )
    centers: CentersKind = hyperparameter(
        "bernoulli",
        reads=("centers",),
        search=("bernoulli", "greedy"),
        doc="generator of the hash centers",
    )
    quant_weight: float = hyperparameter(
        0.0,
        ge=0,
        reads=("gallery",),
        search=(0.0, 0.1, 1.0),
        doc="weight of the quantisation term",
    )
    quant: Literal["cos", "l1", "l2"] = hyperparameter(
        "cos",
        reads=("gallery",),
        search=("cos", "l1", "l2"),
        doc="distance from h to sgn(h) in the quantisation term",
    )
    distill_weight: float = hyperparameter(
        1.0, gt=0, reads=("query",), search=(0.1, 1.0, 10.0), doc="weight of the query's L2 loss"
    )
    distill_target: Literal["continuous", "binary"] = hyperparameter(
        "continuous",
        reads=("query",),
        search=("continuous", "binary"),
        doc="what the query is drawn to: the gallery's outputs, or their signs",
    )


@METHODS.register("orthohash")
class OrthoHash(HashMethod):
    """The gallery classifies by cosine to the centers; the frozen gallery then teaches the query.

    Asymmetric use as in the CSCH paper's section 4.2: the paper's own loss trains the gallery, and
    the query learns its raw outputs by L2, without labels.
    """

    labels_needed = False
    Params = OrthoHashParams
    params: OrthoHashParams
    source = Source(
        title="One loss for all: deep hashing with a single cosine similarity based learning "
        "objective",
        venue="NeurIPS",
        year=2021,
        settings_from="github.com/kamwoh/orthohash",
        note="of the losses for several labels only label smoothing is here, not the BCE "
        "variants; the query's stage follows the CSCH paper, which leaves target and weight open",
    )

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Signs are enough for binary targets."""
        return "sign" if self.params.distill_target == "binary" else "float"

    def centers(self) -> CentersSpec:
        """Centers in the generator's order."""
        return CentersSpec(kind=self.params.centers)

    def check(self) -> None:
        """Refuse centers that cannot exist."""
        check_centers(self.task.n_classes, self.task.bits, self.centers())

    def gallery_loss(self, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Classification loss of h_g (n, B), and the quantisation term where it has weight."""
        p, centers = self.params, state["centers"]
        if batch.classes is None:
            center = margin_label_smoothing(
                h_g, centers, batch.labels, margin=p.margin, scale=p.scale, kind=p.kind
            )
        else:
            center = margin_cross_entropy(
                h_g, centers, batch.classes, margin=p.margin, scale=p.scale, kind=p.kind
            )
        terms = {"center": center}
        if p.quant_weight:
            terms["quantization"] = p.quant_weight * sign_gap(h_g, p.quant)
        return terms

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L2 from h_q (n, B) to the gallery's outputs or codes g (n, B)."""
        p = self.params
        return {"distill": p.distill_weight * l2(h_q, g, target=p.distill_target)}
