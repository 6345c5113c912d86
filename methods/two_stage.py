"""The asymmetric use of symmetric methods: train the gallery, freeze it, distil it by L2."""

from __future__ import annotations

from typing import ClassVar, Literal

from methods.base import Batch, HashMethod, Hyperparameters, LossTerms, State, hyperparameter
from methods.losses import l2
from methods.tensors import Tensor


class TwoStageParams(Hyperparameters):
    """The query's part of the hyperparameters of a method that was made for one network."""

    distill_weight: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.1, 1.0, 10.0),
        range_from="ours: a decade around 1; not published",
        doc="weight of the query's L2 loss",
    )
    distill_target: Literal["continuous", "binary"] = hyperparameter(
        "continuous",
        reads=("query",),
        search=("continuous", "binary"),
        tunable=False,
        range_from="ours: the CSCH paper does not say which",
        doc="what the query is drawn to: the gallery's squashed outputs, or their signs",
    )


class TwoStage(HashMethod):
    """A method for one network, used asymmetrically as in the CSCH paper's section 4.2.

    The method's own loss trains the gallery; the query learns the frozen gallery's outputs by L2,
    in the method's output space (:meth:`squash`), without labels. The paper leaves the target and
    its weight open.
    """

    labels_needed: ClassVar[bool] = False
    params: TwoStageParams

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Signs are enough for binary targets."""
        return "sign" if self.params.distill_target == "binary" else "float"

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L2 from the squashed h_q (n, B) to the gallery's squashed outputs or codes g (n, B)."""
        p = self.params
        distance = l2(self.squash(h_q), self.squash(g), target=p.distill_target)
        return {"distill": p.distill_weight * distance}
