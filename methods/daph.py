"""DAPH: two networks trained in turn, so that their codes are alike where labels are shared."""

from __future__ import annotations

from typing import Literal

from methods.base import (
    METHODS,
    Batch,
    CentersKind,
    CentersSpec,
    Hyperparameters,
    LossTerms,
    Outputs,
    Source,
    State,
    TrainedStage,
    TrainingSplit,
    hyperparameter,
)
from methods.centers import check_centers
from methods.losses import central_similarity, l2, sgn, similar
from methods.pairwise import (
    Alternating,
    bit_balance,
    full_likelihood,
    pairwise_likelihood,
    phase_codes,
    remember_codes,
)
from methods.tensors import Tensor, torch

__all__ = ["DAPH", "bit_independence", "update_codes"]


class DAPHParams(Hyperparameters):
    """The weights of DAPH as in the public code, and those of DAPH + T."""

    alpha: float = hyperparameter(
        10.0,
        ge=0,
        reads=("gallery", "query"),
        search=(0.1, 1.0, 10.0, 100.0),
        space={"type": "log_float", "low": 0.1, "high": 100.0, "points": 4},
        range_from="ours: decades around the public code's 10",
        doc="weight of the distance to the codes B and H, and of U and Z in their update; at 0 "
        "these codes stay at random and no loss reads them",
    )
    gamma: float = hyperparameter(
        10.0,
        ge=0,
        reads=("gallery", "query"),
        search=(0.1, 1.0, 10.0, 100.0),
        space={"type": "log_float", "low": 0.1, "high": 100.0, "points": 4},
        range_from="ours: decades around the public code's 10",
        doc="weight of the agreement of B and H in their update; not below alpha, as in the "
        "public code, B and H remain the random signs that H begins with, because |tanh| < 1",
    )
    lambda_i: float = hyperparameter(
        0.01,
        ge=0,
        reads=("gallery", "query"),
        search=(1e-4, 1e-3, 1e-2, 0.1),
        space={"type": "log_float", "low": 1e-4, "high": 0.1, "points": 4},
        range_from="ours: decades around the public code's 0.01",
        doc="weight of the bits' independence",
    )
    beta: float = hyperparameter(
        0.01,
        ge=0,
        reads=("gallery", "query"),
        search=(1e-4, 1e-3, 1e-2, 0.1),
        space={"type": "log_float", "low": 1e-4, "high": 0.1, "points": 4},
        range_from="ours: decades around the public code's 0.01",
        doc="weight of the bits' balance",
    )
    balance: Literal["sum", "mean"] = hyperparameter(
        "sum",
        reads=("gallery", "query"),
        search=("sum", "mean"),
        tunable=False,
        range_from="sum: the public code; mean: ours",
        doc="balance of each bit's sum over the batch (the public code; it grows with the square "
        "of the batch) or of its mean, whose beta is batch_size squared times larger",
    )
    center_weight: float = hyperparameter(
        0.0,
        ge=0,
        reads=("centers", "gallery", "query"),
        search=(0.0, 0.1, 1.0, 10.0),
        tunable=False,
        range_from="DAPH + T, CSCH, Fig. 6; its weights are ours",
        doc="DAPH + T: weight of CSCH's center term, 0 without centers; not published, 1 is ours",
    )
    assign: Literal["A_r", "A_q"] = hyperparameter(
        "A_q",
        reads=("centers",),
        search=("A_r", "A_q"),
        tunable=False,
        range_from="CSCH, Fig. 6: T_r and T_q",
        doc="DAPH + T: centers given to classes at random (T_r) or by the query network (T_q)",
    )
    centers: CentersKind = hyperparameter(
        "greedy",
        reads=("centers",),
        search=("greedy", "bernoulli", "hadamard_ext"),
        tunable=False,
        range_from="ours: other generators of centers that are here",
        doc="DAPH + T: generator of the hash centers",
    )
    margin: float = hyperparameter(
        0.2,
        ge=0,
        le=2,
        reads=("gallery", "query"),
        search=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5),
        tunable=False,
        range_from="of DAPH + T; CSCH, Fig. 7",
        doc="DAPH + T: margin on the true center's cosine; CSCH has 0.3 on CIFAR-10",
    )
    tau: float = hyperparameter(
        0.125,
        gt=0,
        reads=("gallery", "query"),
        search=(0.0625, 0.125, 0.25, 0.5, 1.0),
        tunable=False,
        range_from="of DAPH + T; CSCH, Fig. 7",
        doc="DAPH + T: temperature of the cosines, as in CSCH",
    )


@METHODS.register("daph")
class DAPH(Alternating):
    """Pairwise likelihood between two networks that train in turn, one epoch each.

    With u = tanh h_q, z = tanh h_g: in the query's phase NLL(u z^T / 2, S) + alpha ||u - B||^2 +
    lambda ||u^T u / n - I||^2 + beta ||u^T 1||^2, each averaged over its entries; in the gallery's
    phase the same of z and H. After both, B = sgn(alpha U + gamma H) and then H = sgn(alpha Z +
    gamma B), where U and Z keep the last u and z of every training image.
    """

    Params = DAPHParams
    params: DAPHParams
    memory = ("U", "Z", "B", "H")
    quantization_weights = ("alpha",)
    source = Source(
        title="Deep asymmetric pairwise hashing",
        venue="ACM Multimedia",
        year=2017,
        settings_from="github.com/swuxyj/DeepHash-pytorch, DAPH.py: alpha, gamma, lambda, beta",
        note="follows a public re-implementation, whose authors call it incomplete; the paper is "
        "unread. Departures: the gallery's backbone starts as the pair says (there untrained), "
        "database codes are the gallery's and query codes the query's (there one network's), and "
        "sgn(0) is +1 (there 0, which frees a code that a saturated output contradicts). With the "
        "public alpha = gamma the networks are drawn to random codes; alpha > gamma, for instance "
        "1 and 0.1, lets the codes follow. DAPH + T (CSCH paper, Fig. 6): the center term's "
        "weight and what it is applied to, tanh of the outputs, are ours",
    )

    def centers(self) -> CentersSpec | None:
        """The centers of DAPH + T; none where their weight is 0."""
        if self.params.center_weight == 0:
            return None
        return CentersSpec(kind=self.params.centers, assign=self.params.assign)

    def check(self) -> None:
        """Refuse centers that cannot exist, where there are any."""
        spec = self.centers()
        if spec is not None:
            check_centers(self.task.n_classes, self.task.bits, spec)

    # ---- state ---------------------------------------------------------------------------

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """U = Z = 0, random signs B and H, each (N, B); the labels (N, C), for the monitors."""
        shape, device = (len(split), self.task.bits), split.labels.device
        draws = split.generator("daph").integers(0, 2, (2, *shape), dtype="int8")
        signs = torch.from_numpy(2 * draws - 1).to(device)
        return {
            "U": torch.zeros(shape, device=device),
            "Z": torch.zeros(shape, device=device),
            "B": signs[0].clone(),
            "H": signs[1].clone(),
            "labels": split.labels,
        }

    def remember(self, stage: TrainedStage, outputs: Outputs, batch: Batch, state: State) -> None:
        """Keep both networks' codes in both phases; of the one at rest those of its eval mode."""
        remember_codes(state["U"], outputs["query"], batch.rows)
        remember_codes(state["Z"], outputs["gallery"], batch.rows)

    def end_epoch(self, stage: TrainedStage, state: State) -> dict[str, float]:
        """Update B and H; return the objective's terms over the whole split, as weighted here."""
        p = self.params
        u, z = state["U"], state["Z"]
        state["B"] = update_codes(u, state["H"], alpha=p.alpha, gamma=p.gamma)
        state["H"] = update_codes(z, state["B"], alpha=p.alpha, gamma=p.gamma)
        b, h = state["B"], state["H"]
        independence = bit_independence(u) + bit_independence(z)
        balance = bit_balance(u, p.balance) + bit_balance(z, p.balance)
        return {
            "likelihood": full_likelihood(u, z, state["labels"]),
            "quant": p.alpha * float(l2(u, b) + l2(z, h)),
            "codes_apart": p.gamma * float(l2(b.float(), h)),
            "independence": p.lambda_i * float(independence),
            "balance": p.beta * float(balance),
        }

    # ---- losses --------------------------------------------------------------------------

    def joint_loss(self, h_q: Tensor, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """The phase's terms of h_q and h_g (n, B); a gradient only to the phase's network."""
        p = self.params
        u, z = phase_codes(h_q, h_g, batch)
        code, memory = (u, "B") if batch.phase == "query" else (z, "H")
        terms = {"likelihood": pairwise_likelihood(u, z, similar(batch.labels))}
        if p.alpha > 0:
            terms["quant"] = p.alpha * l2(code, state[memory][batch.rows])
        if p.lambda_i > 0:
            terms["independence"] = p.lambda_i * bit_independence(code)
        if p.beta > 0:
            terms["balance"] = p.beta * bit_balance(code, p.balance)
        if p.center_weight > 0:
            center = central_similarity(code, state["centers"], batch, margin=p.margin, tau=p.tau)
            terms["center"] = p.center_weight * center
        return terms


def bit_independence(u: Tensor) -> Tensor:
    """Return the mean over all B x B entries of (u^T u / n - I)^2, of codes u (n, B).

    It is 0 where the bits are uncorrelated and of length 1 over the batch, which takes n >= B.
    """
    gram = u.T @ u / len(u)
    return (gram - torch.eye(len(gram), dtype=u.dtype, device=u.device)).square().mean()


def update_codes(outputs: Tensor, other: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Return sgn(alpha outputs + gamma other), int8 in {-1, +1}.

    A saturated tanh is exactly 1 in float32, so that 10 - 10 = 0 does happen; it counts as +1.

    Args:
        outputs: (N, B) U or Z.
        other: (N, B) the other side's codes, in {-1, +1}.
        alpha: weight of the outputs.
        gamma: weight of the other side's codes.
    """
    return sgn(alpha * outputs + gamma * other.to(outputs.dtype)).to(torch.int8)
