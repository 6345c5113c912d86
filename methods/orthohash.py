"""OrthoHash: one cosine-margin classification loss to fixed centers; the query distils it."""

from __future__ import annotations

from typing import Literal

from methods.base import (
    METHODS,
    Batch,
    CentersKind,
    CentersSpec,
    LossTerms,
    Source,
    State,
    hyperparameter,
)
from methods.centers import check_centers
from methods.losses import margin_cross_entropy, margin_label_smoothing, sign_gap
from methods.tensors import Tensor
from methods.two_stage import TwoStage, TwoStageParams


class OrthoHashParams(TwoStageParams):
    """Scale, margin and centers of the gallery's loss; target and weight of the distillation."""

    scale: float = hyperparameter(
        8.0,
        gt=0,
        reads=("gallery",),
        search=(4.0, 8.0, 16.0, 32.0),
        range_from="ours: doublings around the authors' 8",
        doc="factor s on the cosines",
    )
    margin: float = hyperparameter(
        0.2,
        ge=0,
        le=2,
        reads=("gallery",),
        search=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        range_from="ours: around the authors' 0.2 and 0.3, as in CSCH, Fig. 7",
        doc="margin m on the true center, of the cosine (cos) or in radians (arc); 0.3 for CIFAR",
    )
    kind: Literal["cos", "arc"] = hyperparameter(
        "cos",
        reads=("gallery",),
        search=("cos", "arc"),
        tunable=False,
        range_from="the authors' code has both",
        doc="where the margin applies",
    )
    centers: CentersKind = hyperparameter(
        "bernoulli",
        reads=("centers",),
        search=("bernoulli", "greedy"),
        tunable=False,
        range_from="the authors' code has both",
        doc="generator of the hash centers",
    )
    quant_weight: float = hyperparameter(
        0.0,
        ge=0,
        reads=("gallery",),
        search=(0.0, 0.1, 1.0),
        tunable=False,
        range_from="ours: the authors' code has the term, at 0",
        doc="weight of the quantisation term",
    )
    quant: Literal["cos", "l1", "l2"] = hyperparameter(
        "cos",
        reads=("gallery",),
        search=("cos", "l1", "l2"),
        tunable=False,
        range_from="the authors' code has these",
        doc="distance from h to sgn(h) in the quantisation term",
    )


@METHODS.register("orthohash")
class OrthoHash(TwoStage):
    """The gallery classifies by cosine to the centers; the frozen gallery then teaches the query.

    Asymmetric use as in the CSCH paper's section 4.2: the paper's own loss trains the gallery, and
    the query learns its raw outputs by L2, without labels.
    """

    Params = OrthoHashParams
    params: OrthoHashParams
    quantization_weights = ("quant_weight",)
    source = Source(
        title="One loss for all: deep hashing with a single cosine similarity based learning "
        "objective",
        venue="NeurIPS",
        year=2021,
        settings_from="github.com/kamwoh/orthohash",
        note="of the losses for several labels only label smoothing is here, not the BCE "
        "variants; the query's stage follows the CSCH paper, which leaves target and weight open",
    )

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
