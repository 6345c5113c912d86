"""CSQ: each bit is a binary classification towards a Hadamard center; the query distils it."""

from __future__ import annotations

from typing import Literal

from methods.base import (
    METHODS,
    Batch,
    CentersKind,
    CentersSpec,
    HeadKind,
    LossTerms,
    Source,
    State,
    hyperparameter,
)
from methods.centers import check_centers
from methods.losses import binary_center_loss, centroids, tanh_quantization
from methods.tensors import Tensor
from methods.two_stage import TwoStage, TwoStageParams


class CSQParams(TwoStageParams):
    """Quantisation weight, head and centers of the gallery; the distillation's target, weight."""

    lambda_q: float = hyperparameter(
        1e-4,
        ge=0,
        reads=("gallery",),
        search=(0.0, 1e-4, 1e-3, 1e-2, 5e-2),
        space={"type": "log_float", "low": 1e-5, "high": 0.1, "points": 5},
        range_from="ours: a decade beyond the 1e-4, 1e-3 and 0.05 of public codes",
        doc="weight lambda of the quantisation term",
    )
    head: Literal["fc_tanh", "mlp3_tanh"] = hyperparameter(
        "fc_tanh",
        reads=("gallery", "query"),
        search=("fc_tanh", "mlp3_tanh"),
        tunable=False,
        range_from="DeepHash-pytorch, and the authors' code",
        doc="hash head: one linear layer, or the three of the official code",
    )
    centers: CentersKind = hyperparameter(
        "hadamard_ext",
        reads=("centers",),
        search=("hadamard_ext", "bernoulli", "greedy"),
        tunable=False,
        range_from="ours: other generators of centers that are here",
        doc="generator of the hash centers",
    )
    row_choice: Literal["first", "random"] = hyperparameter(
        "first",
        reads=("centers",),
        search=("first", "random"),
        tunable=False,
        range_from="ours: first as in the authors' code",
        when={"centers": ("hadamard", "hadamard_ext")},
        doc="which rows of the Hadamard matrix; the first ones repeat bits at few classes",
    )
    flip_rows: bool = hyperparameter(
        False,
        reads=("centers",),
        search=(False, True),
        tunable=False,
        range_from="ours: the authors' code does not",
        when={"centers": ("hadamard", "hadamard_ext")},
        doc="give each Hadamard row a random sign",
    )


@METHODS.register("csq")
class CSQ(TwoStage):
    """Binary cross-entropy of tanh outputs to each image's center, which the query then distils.

    Asymmetric use as in the CSCH paper's section 4.2: the paper's own loss trains the gallery, and
    the query learns its tanh outputs by L2, without labels.
    """

    Params = CSQParams
    params: CSQParams
    quantization_weights = ("lambda_q",)
    heads = ("fc_tanh", "mlp3_tanh")
    source = Source(
        title="Central similarity quantization for efficient image and video retrieval",
        venue="CVPR",
        year=2020,
        settings_from="github.com/swuxyj/DeepHash-pytorch, CSQ.py",
        note="the centers of the CSCH paper at 12, 24 and 48 bits are not published; here they "
        "are rows of Paley and Kronecker matrices, then balanced random rows, all different",
    )

    @property
    def head(self) -> HeadKind:
        """Outputs of the last linear layer; the losses apply the tanh."""
        return self.params.head

    def centers(self) -> CentersSpec:
        """Rows of a Hadamard matrix in their own order."""
        p = self.params
        return CentersSpec(kind=p.centers, row_choice=p.row_choice, flip_rows=p.flip_rows)

    def squash(self, h: Tensor) -> Tensor:
        """Return tanh h (n, B)."""
        return h.tanh()

    def check(self) -> None:
        """Refuse centers that cannot exist."""
        check_centers(self.task.n_classes, self.task.bits, self.centers())

    def gallery_loss(self, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Central similarity and quantisation of h_g (n, B); one label is its own centroid."""
        target = centroids(batch.labels, state["centers"], batch.tie_bits)
        return {
            "center": binary_center_loss(h_g, target),
            "quantization": self.params.lambda_q * tanh_quantization(h_g),
        }
