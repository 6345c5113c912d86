"""MDSH: softmax over far-apart hash centers, and a memory bank that draws classes together."""

from __future__ import annotations

from math import sqrt

from methods.base import (
    METHODS,
    Batch,
    CentersKind,
    CentersSpec,
    HeadKind,
    LossTerms,
    Outputs,
    Source,
    State,
    TrainedStage,
    TrainingSplit,
    hyperparameter,
)
from methods.centers import check_centers
from methods.losses import cosine, tanh_quantization
from methods.tensors import F, Tensor, torch
from methods.two_stage import TwoStage, TwoStageParams


class MDSHParams(TwoStageParams):
    """Weights, memory and centers of the gallery; the distillation's target and weight."""

    beta: float = hyperparameter(
        1.0,
        ge=0,
        reads=("gallery",),
        search=(0.0, 0.1, 1.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around 1, the published weight",
        doc="weight of the pairwise term; at 0 there is neither bank nor momentum encoder",
    )
    lambda_q: float = hyperparameter(
        1e-4,
        ge=0,
        reads=("gallery",),
        search=(1e-4, 1e-3),
        space={"type": "log_float", "low": 1e-5, "high": 1e-3, "points": 3},
        range_from="ours: a decade around the authors' 1e-4",
        doc="weight lambda of the quantisation term",
    )
    momentum: float = hyperparameter(
        0.9,
        ge=0,
        lt=1,
        reads=("gallery",),
        search=(0.9, 0.99),
        range_from="ours: the authors' 0.9, and slower",
        doc="share of itself that the momentum encoder keeps at each step",
    )
    epoch_change: int = hyperparameter(
        9,
        ge=0,
        reads=("gallery",),
        search=(1, 5, 9),
        space={"type": "int", "low": 1, "high": 9, "points": 3},
        range_from="ours: up to the authors' 9, of hundreds of epochs",
        doc="0-based epoch from which the pairwise term counts; the published runs have hundreds "
        "of epochs, and a training of no more than this many never sees the term",
    )
    centers: CentersKind = hyperparameter(
        "mds",
        reads=("centers",),
        search=("mds", "hadamard_ext", "greedy", "bernoulli"),
        tunable=False,
        range_from="ours: other generators of centers that are here",
        doc="generator of the hash centers",
    )


def center_softmax(u: Tensor, centers: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy of the softmax of cosines to the centers, class by class.

    With p = softmax(sqrt(B) cos(u, T)) over the classes, the mean over batch and classes of
    -Y log p - (1 - Y) log(1 - p) (MDSH's released code, ``ourLoss.py``). With several labels an
    image it cannot reach 0, since p sums to 1; so it is in the released code. A single class has
    p = 1 whatever u is, and its loss is 0.

    Args:
        u: (n, B) squashed outputs.
        centers: T (C, B) in {-1, +1}.
        labels: Y (n, C) multi-hot.

    Raises:
        ValueError: u and the centers have different numbers of bits.
    """
    logits = sqrt(u.shape[1]) * cosine(u, centers)  # (n, C)
    y = labels.to(u.dtype)
    if len(centers) == 1:
        return 0 * logits.sum()
    log_p = F.log_softmax(logits, dim=1)
    # Only the most likely class can have p near 1, where 1 - p cancels; there it is the sum of
    # the other classes' p. For all others p <= 1/2, and the bound only keeps the unused branch
    # of the choice, and so its gradient, finite.
    top = F.one_hot(logits.argmax(dim=1), len(centers)).bool()
    log_others = log_p.masked_fill(top, -torch.inf).logsumexp(dim=1, keepdim=True)
    log_not_p = torch.where(top, log_others, torch.log1p(-log_p.exp().clamp_max(0.6)))
    return -(y * log_p + (1 - y) * log_not_p).mean()


def bank_attraction(u: Tensor, labels: Tensor, bank: Tensor, bank_labels: Tensor) -> Tensor:
    """Draw outputs to the remembered outputs of all images that they share a label with.

    The sum of S_ij log(1 + exp((1 - cos(u_i, U_j)) / 2)) over batch and bank, divided by the sum
    of S_ij, which is 1 where i and j share a label, else 0 (MDSH's released code). The image
    itself is in the bank. 0 where nothing in the bank shares a label with the batch.

    Args:
        u: (n, B) squashed outputs.
        labels: (n, C) multi-hot.
        bank: U (N, B) squashed outputs of the momentum encoder.
        bank_labels: (N, C) multi-hot; a row of zeros leaves its image out.

    Raises:
        ValueError: u and the bank have different numbers of bits.
    """
    s = (labels.to(u.dtype) @ bank_labels.to(u.dtype).T > 0).to(u.dtype)  # (n, N)
    apart = F.softplus((1 - cosine(u, bank)) / 2)
    return (s * apart).sum() / s.sum().clamp_min(1.0)


@METHODS.register("mdsh")
class MDSH(TwoStage):
    """L_c + beta L_p + lambda L_q for the gallery, whose tanh outputs the query then distils.

    L_c and L_q look at one image at a time, L_p at a bank with a row for each training image,
    which the gallery's momentum encoder writes. Asymmetric use as in the CSCH paper's section 4.2.
    """

    Params = MDSHParams
    params: MDSHParams
    memory = ("bank", "written")
    quantization_weights = ("lambda_q",)
    source = Source(
        title="Deep hashing with minimal-distance-separated hash centers",
        venue="CVPR",
        year=2023,
        settings_from="github.com/Wangld5/Center-Hashing; the recipe is the study's, where that "
        "code has RMSprop at 1e-5, clip_norm 5 and up to 1000 epochs",
        note="written from the released code, the paper is unread. Rows of the bank that were "
        "never written are left out of the pairwise term. Centers start from CSQ's at all lengths "
        "with a Hadamard matrix, where the code has random signs at 48 bits, and are never closer "
        "than those of kind greedy. How the CSCH paper set up its asymmetric use is not published",
    )

    @property
    def head(self) -> HeadKind:
        """Raw outputs after the batch norm; the losses apply the tanh."""
        return "fc_bn_tanh"

    @property
    def momentum(self) -> float | None:
        """The encoder that writes the bank, if anything reads it."""
        return self.params.momentum if self.params.beta > 0 else None

    def centers(self) -> CentersSpec:
        """Centers in the generator's order, which is a random one."""
        return CentersSpec(kind=self.params.centers)

    def squash(self, h: Tensor) -> Tensor:
        """Return tanh h (n, B)."""
        return h.tanh()

    def check(self) -> None:
        """Refuse centers that cannot exist."""
        check_centers(self.task.n_classes, self.task.bits, self.centers())

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """Return the bank U (N, B) of noise, which of its rows are written, and its labels."""
        if stage != "gallery" or self.momentum is None:
            return {}
        noise = split.generator("bank").standard_normal((len(split), self.task.bits))
        device = split.labels.device
        return {
            "bank": torch.from_numpy(noise.astype("float32")).to(device),
            "written": torch.zeros(len(split), 1, device=device),
            "bank_labels": split.labels,
        }

    def remember(self, stage: TrainedStage, outputs: Outputs, batch: Batch, state: State) -> None:
        """Write what the momentum encoder says of the batch into the bank, before its loss."""
        if stage == "gallery" and self.momentum is not None:
            bank = state["bank"]
            bank[batch.rows] = self.squash(outputs["momentum"]).to(bank.dtype)
            state["written"][batch.rows] = 1.0

    def gallery_loss(self, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """L_c, beta L_p from its epoch on, and lambda L_q of h_g (n, B)."""
        p, u = self.params, self.squash(h_g)
        terms = {
            "center": center_softmax(u, state["centers"], batch.labels),
            "quantization": p.lambda_q * tanh_quantization(h_g),
        }
        if p.beta > 0:
            terms["pairwise"] = h_g.new_zeros(())
            if batch.epoch >= p.epoch_change:
                seen = state["bank_labels"] * state["written"]
                pairwise = bank_attraction(u, batch.labels, state["bank"], seen)
                terms["pairwise"] = p.beta * pairwise
        return terms
