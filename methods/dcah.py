"""DCAH: the query learns similarities to the gallery, and to keep them when its sign is taken."""

from __future__ import annotations

from typing import Literal

from methods.base import METHODS, Batch, LossTerms, Source, State, hyperparameter
from methods.csd import contextual_similarity
from methods.distilled import Distilled, DistilledParams
from methods.losses import cosine, same_shape, sgn
from methods.quantizers import caq, caq_temperatures, straight_through
from methods.tensors import Tensor, torch
from retrieval.errors import InputError

__all__ = ["DCAH", "cross_correlation", "row_correlation"]

_VARIANCE = 1e-12  # below it a column counts as constant
_SQUARES = 1e-8  # likewise the sum of squares of a row of cosines, which float32 rounds to 1e-14


class DCAHParams(DistilledParams):
    """The two terms' weights and temperatures, and which reading of "correlation" they take."""

    variant: Literal["published", "cross_correlation", "similarity_correlation"] = hyperparameter(
        "published",
        reads=("query",),
        search=("published", "cross_correlation", "similarity_correlation"),
        tunable=False,
        range_from="ours: reconstructions beside the published losses",
        doc="published: cosines, as in the authors' code; the others are reconstructions of ours "
        "by Pearson correlation, of code bits in place of CAQ, or of similarity rows in place of "
        "both terms",
    )
    distill_weight: float = hyperparameter(
        1.0,
        ge=0,
        reads=("query",),
        search=(0.0, 0.1, 1.0, 10.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around 1, the published weight",
        doc="weight of the distillation; 0 leaves the quantisation alone",
    )
    quant_weight: float = hyperparameter(
        1.0,
        ge=0,
        reads=("query",),
        search=(0.0, 0.1, 1.0, 10.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around 1, the published weight",
        doc="weight of the quantisation; 0 leaves the distillation alone",
    )
    k: int = hyperparameter(
        96,
        ge=1,
        reads=("query",),
        search=(16, 32, 64, 96),
        space={"type": "int", "low": 16, "high": 96, "step": 16},
        range_from="ours: up to AIR-Distiller's 96, which a batch of 64 makes 64",
        when={"variant": ("published", "cross_correlation")},
        doc="neighbours of an image in the batch, itself included, at most the batch's size; not "
        "in similarity_correlation",
    )
    t_q: float = hyperparameter(
        1.0,
        gt=0,
        reads=("query",),
        search=(0.05, 0.1, 0.5, 1.0),
        space={"type": "log_float", "low": 0.05, "high": 1.0, "points": 4},
        range_from="ours: a decade below AIR-Distiller's 1, towards t_g",
        when={"variant": ("published", "cross_correlation")},
        doc="distillation: temperature of the query's cosines; not in similarity_correlation",
    )
    t_g: float = hyperparameter(
        0.01,
        gt=0,
        reads=("query",),
        search=(0.005, 0.01, 0.05, 0.1),
        space={"type": "log_float", "low": 0.005, "high": 0.1, "points": 4},
        range_from="ours: around AIR-Distiller's 0.01",
        when={"variant": ("published", "cross_correlation")},
        doc="distillation: temperature of the gallery's cosines; not in similarity_correlation",
    )
    t0: float | None = hyperparameter(
        None,
        gt=0,
        reads=("query",),
        search=(None, 0.1, 1.0),
        range_from="null: the authors' code, 0.5 at every length; ours beside it",
        when={"variant": ("published",)},
        doc="CAQ: temperature of the binary similarities; null takes that of the code length, 0.5",
    )
    t1: float | None = hyperparameter(
        None,
        gt=0,
        reads=("query",),
        search=(None, 0.005, 0.05, 0.1),
        range_from="the authors' code has these by length, and null the one of the length",
        when={"variant": ("published",)},
        doc="CAQ: temperature of the continuous similarities; null takes that of the code length, "
        "0.1 to 16 bits, 0.05 to 48, 0.005 beyond",
    )
    lam: float = hyperparameter(
        0.005,
        ge=0,
        reads=("query",),
        search=(0.0, 0.005, 0.1, 1.0),
        space={"type": "log_float", "low": 5e-4, "high": 0.5, "points": 4},
        range_from="ours: decades around the 0.005 of Barlow Twins",
        when={"variant": ("cross_correlation",)},
        doc="cross_correlation: weight of the pairs of different bits; ours, near that of Barlow "
        "Twins",
    )


@METHODS.register("dcah")
class DCAH(Distilled):
    """Correlation alignment: distil similarities, and quantise so that they stay as they are.

    L = distill_weight L_CSD(h_q, h_g) + quant_weight CAQ(h_q, b_g). A small query network is not
    drawn to the gallery's bits: CAQ asks that sgn(h_q) be as similar to the gallery's codes as
    h_q itself is.
    """

    Params = DCAHParams
    params: DCAHParams
    quantization_weights = ("quant_weight",)
    source = Source(
        title="Discretization is not always better: rethinking deep quantization for asymmetric "
        "image retrieval",
        venue="AAAI",
        year=2026,
        settings_from="github.com/Xinze919/DCAH for CAQ; AIR-Distiller (github.com/SCY-X/D3still) "
        "for k, t_q and t_g",
        note="the losses of the published variant are those of the authors' code, which is losses "
        "only; the paper is unread beyond its abstract. k and the temperatures of the "
        "distillation, CAQ's at other lengths than 16, 32, 48 and 64 bits, the gallery's "
        "training, the optimiser and all results are not public. The variants cross_correlation "
        "and similarity_correlation are reconstructions of ours, for comparison, not DCAH",
    )

    @property
    def recording(self) -> Literal["sign", "float"]:
        """Signs are enough where nothing is distilled and only CAQ or the bits are compared."""
        return "float" if self.params.distill_weight > 0 else "sign"

    @property
    def straight_through(self) -> bool:
        """CAQ does, and its likeness among the reconstructions; that of the bits does not."""
        p = self.params
        return super().straight_through or (
            p.quant_weight > 0 and p.variant != "cross_correlation"
        )

    def check(self) -> None:
        """Refuse a query without a loss, CAQ counted twice, and what the teacher refuses."""
        super().check()
        p = self.params
        if p.distill_weight == p.quant_weight == 0 and p.quantizer is None:
            raise InputError(
                "with distill_weight and quant_weight both 0 the query network has no loss",
                key="distill_weight",
                value=p.distill_weight,
                hint="set one of them above 0",
            )
        if p.quantizer is not None and p.variant == "published" and p.quant_weight > 0:
            raise InputError(
                "DCAH quantises by CAQ already, which would count twice",
                key="quantizer",
                value=p.quantizer.name,
                hint="remove it, and change quant_weight, t0 or t1",
            )

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Distillation and quantisation terms of h_q (n, B) and the gallery's outputs g (n, B)."""
        p = self.params
        h_q, g = self.squash(h_q), self.squash(g)
        terms: LossTerms = {}
        if p.distill_weight > 0:
            terms["distill"] = p.distill_weight * self._distillation(h_q, g, batch)
        if p.quant_weight > 0:
            terms["quant"] = p.quant_weight * self._quantisation(h_q, sgn(g))
        return terms

    def _distillation(self, h_q: Tensor, h_g: Tensor, batch: Batch) -> Tensor:
        p = self.params
        if p.variant == "similarity_correlation":
            return row_correlation(cosine(h_q, h_g), cosine(h_g, h_g).to(h_q.dtype))
        return contextual_similarity(h_q, h_g, batch.rows, k=p.k, t_q=p.t_q, t_g=p.t_g)

    def _quantisation(self, h_q: Tensor, b_g: Tensor) -> Tensor:
        p = self.params
        if p.variant == "cross_correlation":
            return cross_correlation(h_q, b_g, lam=p.lam)
        if p.variant == "similarity_correlation":
            # As in CAQ, the continuous similarities are what the binary ones are drawn to.
            return row_correlation(cosine(straight_through(h_q), b_g), cosine(h_q, b_g).detach())
        t0, t1 = caq_temperatures(self.task.bits)
        return caq(h_q, b_g, t0=p.t0 or t0, t1=p.t1 or t1)


def row_correlation(given: Tensor, aim: Tensor) -> Tensor:
    """One minus the mean Pearson correlation of the rows of two similarity matrices.

    The inter-relation loss of DIST (Huang et al., NeurIPS 2022, released code), between
    similarities to images where DIST has probabilities of classes. Rows may be shifted and scaled
    freely; a constant row correlates 0 with everything. DIST adds its 1e-8 to the product of two
    rows' lengths; here each row's sum of squares has it, above what rounding makes of a constant.

    Args:
        given: (n, m) similarities of the query network.
        aim: (n, m) similarities that they should follow.

    Raises:
        ValueError: rows of fewer than two columns, whose correlation is undefined.
    """
    if given.shape[1] < 2:
        raise ValueError(f"correlation needs two images or more, the batch has {given.shape[1]}")
    a, b = (x - x.mean(dim=1, keepdim=True) for x in (given, aim))
    squares = (a.square().sum(dim=1) + _SQUARES) * (b.square().sum(dim=1) + _SQUARES)
    correlation: Tensor = (a * b).sum(dim=1) / squares.sqrt()  # (n,)
    return 1 - correlation.mean()


def cross_correlation(h_q: Tensor, b_g: Tensor, *, lam: float) -> Tensor:
    """Draw each bit of the query to correlate with the gallery's bits as these do with each other.

    With R_qg and R_gg the Pearson correlations (B, B) over the batch, of the query's bits with the
    gallery's and of the gallery's among themselves: mean_k (1 - R_qg,kk)^2 + lam times the mean
    over k != l of (R_qg,kl - R_gg,kl)^2, after the form of Barlow Twins (Zbontar et al., ICML
    2021). Free of each bit's scale and shift. Bits in which the gallery's codes of this batch are
    all alike correlate with nothing and are left out; without any other the loss is 0.

    Args:
        h_q: (n, B) outputs of the query network; n well above B, or the correlations are noise.
        b_g: (n, B) in {-1, +1}, codes of the gallery network.
        lam: weight of the pairs of different bits, dimensionless.

    Raises:
        ValueError: the two have different shapes, or there are fewer than two images, whose
            correlation is undefined.
    """
    same_shape(h_q, b_g)
    if len(h_q) < 2:
        raise ValueError(f"correlation needs two images or more, the batch has {len(h_q)}")
    varying = (b_g != b_g[0]).any(dim=0)
    q, g = (_standardised(x[:, varying].to(h_q.dtype)) for x in (h_q, b_g))
    if not q.shape[1]:
        return 0 * h_q.sum()
    r_qg, r_gg = q.T @ g / len(q), g.T @ g / len(g)
    bits = len(r_qg)
    same = torch.eye(bits, dtype=torch.bool, device=h_q.device)
    others = (r_qg - r_gg).square().masked_fill(same, 0).sum() / max(bits * (bits - 1), 1)
    return (1 - r_qg.diagonal()).square().mean() + lam * others


def _standardised(x: Tensor) -> Tensor:
    """Return the columns of x (n, B) with mean 0 and variance 1 over the batch, or all 0."""
    centred = x - x.mean(dim=0)
    return centred / (centred.square().mean(dim=0, keepdim=True) + _VARIANCE).sqrt()
