"""L2 distillation: the query learns the outputs of any method's frozen gallery, without labels."""

from __future__ import annotations

from typing import Literal

from methods.base import METHODS, Batch, LossTerms, Source, State, hyperparameter
from methods.distilled import Distilled, DistilledParams
from methods.losses import l2
from methods.tensors import Tensor


class L2Params(DistilledParams):
    """Teacher, weight and form of the distance."""

    weight: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.1, 1.0, 10.0),
        range_from="ours: a decade around 1",
        doc="weight of the loss",
    )
    target: Literal["continuous", "binary"] = hyperparameter(
        "continuous",
        reads=("query",),
        search=("continuous", "binary"),
        tunable=False,
        range_from="ours: the CSCH paper does not say which",
        doc="what the query is drawn to: the gallery's outputs, or their signs",
    )
    reduce: Literal["mean", "sum_bits"] = hyperparameter(
        "mean",
        reads=("query",),
        search=("mean", "sum_bits"),
        tunable=False,
        range_from="ours: the CSCH paper does not say which",
        doc="mean over the bits, or their sum (bits times larger)",
    )
    normalize: bool = hyperparameter(
        False,
        reads=("query",),
        search=(False, True),
        tunable=False,
        range_from="ours: as AML does",
        doc="whether both outputs are L2-normalised first",
    )


@METHODS.register("l2")
class L2(Distilled):
    """The squared distance to a frozen gallery's outputs, the simplest asymmetric baseline."""

    Params = L2Params
    params: L2Params
    source = Source(
        title="Asymmetric metric learning for knowledge transfer",
        venue="CVPR",
        year=2021,
        settings_from="the two-stage baselines of the CSCH paper, section 4.2",
        note="the regression form (AML-Reg); normalize: true with reduce: sum_bits is the paper's",
    )

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Signs are enough for binary targets."""
        return "sign" if self.params.target == "binary" else "float"

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L2 from h_q (n, B) to the gallery's outputs or codes g (n, B), both squashed."""
        p = self.params
        distance = l2(
            self.squash(h_q),
            self.squash(g),
            target=p.target,
            reduce=p.reduce,
            normalize=p.normalize,
        )
        return {"distill": p.weight * distance}
