"""AML-Reg: asymmetric metric learning without labels, by regression on the gallery's features."""

from __future__ import annotations

from typing import Literal

from methods.base import METHODS, Batch, LossTerms, Source, State, hyperparameter
from methods.distilled import Distilled, DistilledParams
from methods.losses import l2, same_shape, unit
from methods.tensors import Tensor

__all__ = ["AMLReg", "unit_distance"]

_NEAREST = 1e-6  # squared distance; the public code's bound under the root


class AMLRegParams(DistilledParams):
    """The form of the distance, and its weight."""

    form: Literal["unit", "squared", "norm"] = hyperparameter(
        "unit",
        reads=("query",),
        search=("unit", "squared", "norm"),
        tunable=False,
        range_from="unit: AML; squared: CSCH, Table 4; norm: a public re-implementation",
        doc="squared distance of the L2-normalised outputs (AML), or of the outputs themselves, "
        "mean over the bits (CSCH, Table 4), or the L2-normalised ones' distance, not squared",
    )
    weight: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.1, 1.0, 10.0),
        range_from="ours: a decade around 1",
        doc="weight of the loss",
    )


@METHODS.register("aml_reg")
class AMLReg(Distilled):
    """The distance between the query's and the frozen gallery's features of the same image.

    L = mean_i ||h_q,i / |h_q,i| - g_i / |g_i|||^2, which only compares directions. ``l2`` is
    distillation in the teacher's output space instead, where lengths count too, and can aim at
    the gallery's signs; ``form: squared`` is its default. With a gradient to the gallery this is
    ``csch`` with ``instance: released_code``.
    """

    Params = AMLRegParams
    params: AMLRegParams
    embeddings = True
    source = Source(
        title="Asymmetric metric learning for knowledge transfer",
        venue="CVPR",
        year=2021,
        url="https://arxiv.org/abs/2006.16331",
        settings_from="github.com/budnikm/aml, where the regression has no hyperparameter",
        note="the paper is unread. The default is the authors' code: L2-normalised features and "
        "squared distances, of which it takes half and sums over the batch. Made for embeddings, "
        "its use on hash outputs is the CSCH paper's; form: squared is the row AML-Reg of its "
        "Table 4, as its released code has it, without normalisation. form: norm is the "
        "re-implementation in github.com/MCC-WH/SSP",
    )

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Distance from h_q (n, B) to the gallery's outputs g (n, B), both squashed."""
        p = self.params
        h_q, g = self.squash(h_q), self.squash(g)
        if p.form == "unit":
            loss = l2(h_q, g, reduce="sum_bits", normalize=True)
        elif p.form == "squared":
            loss = l2(h_q, g)
        else:
            loss = unit_distance(h_q, g)
        return {"regression": p.weight * loss}


def unit_distance(h_q: Tensor, g: Tensor) -> Tensor:
    """Return the mean distance, not squared, of the L2-normalised rows.

    The squares are at least 1e-6, as in the public code: a root has an infinite slope at 0. Nearer
    rows count 0.001 and have no gradient.

    Args:
        h_q: (n, B) outputs of the query network.
        g: (n, B) outputs of the gallery network.

    Raises:
        ValueError: the two have different shapes.
    """
    same_shape(h_q, g)
    squared = (unit(h_q) - unit(g.to(h_q.dtype))).square().sum(dim=1)
    return squared.clamp_min(_NEAREST).sqrt().mean()
