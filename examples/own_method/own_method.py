"""angle: the query learns the direction of a frozen gallery's outputs, whatever their length."""

from __future__ import annotations

from methods.base import Batch, LossTerms, Source, State, hyperparameter
from methods.distilled import Distilled, DistilledParams
from methods.losses import unit
from methods.tensors import Tensor


class AngleParams(DistilledParams):
    """Teacher, and the power of the loss."""

    power: float = hyperparameter(
        1.0,
        gt=0,
        le=4,
        reads=("query",),
        search=(1.0, 2.0),
        range_from="made up too",
        doc="power of 1 - cosine, no unit",
    )


class Angle(Distilled):
    """Mean over the batch of (1 - cos(h_q, h_g))^power, with any method's gallery as teacher."""

    Params = AngleParams
    params: AngleParams
    embeddings = True
    source = Source(
        title="A method from another package",
        venue="an example",
        year=2026,
        settings_from="made up to show the interface",
    )

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Distil from the gallery's outputs g (n, B) to h_q (n, B)."""
        if h_q.shape != g.shape:
            raise ValueError(f"query outputs {tuple(h_q.shape)}, gallery's {tuple(g.shape)}")
        apart = 1 - (unit(self.squash(h_q)) * unit(self.squash(g).to(h_q.dtype))).sum(dim=1)
        return {"angle": apart.clamp_min(1e-12).pow(self.params.power).mean()}
