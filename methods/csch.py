"""CSCH: both networks learn to the same hash centers, the query also to the gallery's codes."""

from __future__ import annotations

from typing import Literal

from methods.base import (
    METHODS,
    Assignment,
    Batch,
    CentersKind,
    CentersSpec,
    HashMethod,
    Hyperparameters,
    LossTerms,
    Schedule,
    Source,
    State,
    hyperparameter,
)
from methods.centers import check_centers
from methods.losses import (
    binary_center_loss,
    central_similarity,
    centroids,
    contrastive,
    l2,
    margin_label_smoothing,
    similar,
)
from methods.tensors import Tensor
from retrieval.errors import InputError

Instance = Literal["binary_sg", "cont_sg", "contr_sg", "released_code", "contr_grad", "none"]


class CSCHParams(Hyperparameters):
    """The weights and switches of CSCH; defaults are the paper's for CIFAR-10 and MS-COCO."""

    gamma: float = hyperparameter(
        100.0,
        ge=0,
        reads=("query",),
        search=(0.0, 0.1, 1.0, 10.0, 100.0, 1000.0),
        space={"type": "log_float", "low": 0.1, "high": 1000.0, "points": 5},
        range_from="CSCH, Fig. 7, but for its 0, which is no instance term",
        when={"instance": ("binary_sg", "cont_sg", "contr_sg", "released_code", "contr_grad")},
        doc="weight of the instance term, for its mean over bits; the paper has 10 on ImageNet",
    )
    margin: float = hyperparameter(
        0.2,
        ge=0,
        le=2,
        reads=("gallery", "query"),
        search=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        space={"type": "float", "low": 0.0, "high": 0.5, "points": 6},
        range_from="CSCH, Fig. 7",
        when={"center_loss": ("csch", "label_smoothing")},
        doc="margin m on the true center's cosine; the paper has 0.3 on CIFAR-10",
    )
    tau: float = hyperparameter(
        0.125,
        gt=0,
        reads=("gallery", "query"),
        search=(0.0625, 0.125, 0.25, 0.5, 1.0),
        space={"type": "log_float", "low": 0.0625, "high": 1.0, "points": 5},
        range_from="CSCH, Fig. 7",
        when={"center_loss": ("csch", "label_smoothing")},
        doc="temperature of the cosines",
    )
    instance: Instance = hyperparameter(
        "binary_sg",
        reads=("query",),
        search=("binary_sg", "cont_sg", "contr_sg", "released_code", "contr_grad", "none"),
        tunable=False,
        range_from="CSCH, Tables 4 and 5",
        doc="instance term: to the gallery's binary code (Eq. 11), its continuous code, or "
        "contrastive; released_code and contr_grad also send gradients to the gallery (Table 4)",
    )
    contrastive_margin: float = hyperparameter(
        0.7,
        gt=0,
        le=2,
        reads=("query",),
        search=(0.5, 0.7, 1.0, 1.5),
        space={"type": "float", "low": 0.5, "high": 1.5, "step": 0.2},
        range_from="ours: around the 0.7 of AML's code; the paper is silent",
        when={"instance": ("contr_sg", "contr_grad")},
        doc="distance of unit vectors beyond which dissimilar pairs rest, in contr_sg, contr_grad",
    )
    query_center: bool = hyperparameter(
        True,
        reads=("query",),
        search=(True, False),
        tunable=False,
        range_from="CSCH, Table 5",
        doc="whether the query network has the center term L_q too (Table 5)",
    )
    center_loss: Literal["csch", "label_smoothing", "bce"] = hyperparameter(
        "csch",
        reads=("gallery", "query"),
        search=("csch", "label_smoothing", "bce"),
        tunable=False,
        range_from="CSCH, Table 7",
        doc="center term: the paper's, or one of the alternatives of Table 7",
    )
    centers: CentersKind = hyperparameter(
        "greedy",
        reads=("centers",),
        search=("greedy", "bernoulli", "hadamard_ext"),
        tunable=False,
        range_from="ours: other generators of centers that are here",
        doc="generator of the hash centers",
    )
    assign: Assignment = hyperparameter(
        "A_q",
        reads=("centers",),
        search=("A_r", "A_q", "A_g", "A_b"),
        tunable=False,
        range_from="CSCH, Table 6",
        doc="how centers are given to classes: at random, or by the query network, the gallery "
        "network, or both",
    )
    assign_cost: Literal["inner", "norm"] = hyperparameter(
        "inner",
        reads=("centers",),
        search=("inner", "norm"),
        tunable=False,
        range_from="the authors' code, and CSCH, Eq. 3",
        doc="cost of a center for a class: -t.c (released code) or ||t - c|| (Eq. 3)",
    )
    normalize_first: bool = hyperparameter(
        True,
        reads=("centers",),
        search=(True, False),
        tunable=False,
        range_from="the authors' code does; the paper does not say",
        doc="whether outputs are L2-normalised before the class mean",
    )


@METHODS.register("csch")
class CSCH(HashMethod):
    """Central similarity for each network, and consistency of the query with the gallery.

    L = L_q + L_g + gamma L_I. L_g reads the gallery alone and L_I stops its gradient, so the
    gallery trains as if there were no query; gamma and ``instance`` leave it untouched.
    """

    Params = CSCHParams
    params: CSCHParams
    quantization_weights = ("gamma",)
    source = Source(
        title="Central similarity consistency hashing for asymmetric image retrieval",
        venue="Xuan et al.",
        year=2024,
        settings_from="section 4.3 of the paper; github.com/dubanx/CSCH where it is silent",
        note="the margin is on the true center only, as in the released code; as printed in "
        "Eq. 9 and 14 it cancels. The released instance term, instance: released_code, is "
        "continuous and reaches the gallery; the default is Eq. 11",
    )

    @property
    def schedule(self) -> Schedule:
        """Simultaneous, unless the instance term's gradient reaches the gallery."""
        reaches_gallery = self.params.instance in ("released_code", "contr_grad")
        return Schedule.JOINT if reaches_gallery else Schedule.SIMULTANEOUS

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Signs are enough for Eq. 11, and for no instance term at all."""
        return "sign" if self.params.instance in ("binary_sg", "none") else "float"

    def centers(self) -> CentersSpec:
        """Far-apart centers, matched to the classes by the initial network."""
        return CentersSpec(
            kind=self.params.centers,
            assign=self.params.assign,
            cost=self.params.assign_cost,
            normalize_first=self.params.normalize_first,
        )

    def centers_for_query(self) -> bool:
        """L_q reads them."""
        return self.params.query_center

    def check(self) -> None:
        """Refuse centers that cannot exist, and a query that would learn nothing."""
        check_centers(self.task.n_classes, self.task.bits, self.centers())
        if not self.params.query_center and self.params.instance == "none":
            raise InputError(
                "with query_center: false and instance: none the query network has no loss",
                key="query_center",
                value=False,
                hint="set query_center: true, or another instance term",
            )

    def _center(self, h: Tensor, batch: Batch, centers: Tensor) -> Tensor:
        """L_q or L_g of h (n, B): Eq. 9 for one label an image, Eq. 14 for several."""
        p = self.params
        if p.center_loss == "bce":
            return binary_center_loss(h, centroids(batch.labels, centers, batch.tie_bits))
        if p.center_loss == "label_smoothing":
            return margin_label_smoothing(
                h, centers, batch.labels, margin=p.margin, scale=1 / p.tau
            )
        return central_similarity(h, centers, batch, margin=p.margin, tau=p.tau)

    def _instance(self, h_q: Tensor, g: Tensor, batch: Batch) -> Tensor:
        """L_I of h_q (n, B) and g (n, B); a gradient reaches g where g carries one."""
        if self.params.instance in ("contr_sg", "contr_grad"):
            margin = self.params.contrastive_margin
            return contrastive(h_q, g, similar(batch.labels), margin=margin)
        return l2(h_q, g, target="binary" if self.params.instance == "binary_sg" else "continuous")

    def gallery_loss(self, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L_g of h_g (n, B)."""
        return {"center": self._center(h_g, batch, state["centers"])}

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L_q + gamma L_I of h_q (n, B) and the gallery's codes g (n, B)."""
        terms: LossTerms = {}
        if self.params.query_center:
            terms["center"] = self._center(h_q, batch, state["centers"])
        if self.params.instance != "none":
            terms["instance"] = self.params.gamma * self._instance(h_q, g, batch)
        return terms

    def joint_loss(self, h_q: Tensor, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L_q + L_g + gamma L_I, the gradient of L_I reaching both networks."""
        query = self.query_loss(h_q, h_g, batch, state)
        gallery = self.gallery_loss(h_g, batch, state)
        return {f"query_{k}": v for k, v in query.items()} | {
            f"gallery_{k}": v for k, v in gallery.items()
        }
