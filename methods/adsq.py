"""ADSQ, reconstructed: a network of labels guides two image networks that train in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.base import (
    METHODS,
    Batch,
    Hyperparameters,
    LossTerms,
    Outputs,
    Source,
    State,
    TrainedStage,
    TrainingSplit,
    hyperparameter,
)
from methods.losses import cosine, l2, sgn, similar
from methods.pairwise import (
    Alternating,
    bit_balance,
    full_likelihood,
    pairwise_likelihood,
    phase_codes,
    remember_codes,
)
from methods.tensors import F, Tensor, torch
from retrieval.errors import InputError
from retrieval.streams import permutation, torch_stream

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ADSQ",
    "dissimilar_target",
    "feature_likelihood",
    "label_loss",
    "semantic_codes",
    "semantic_difference",
]


class ADSQParams(Hyperparameters):
    """Weights of the two steps, and the label network; all ours."""

    likelihood_weight: float = hyperparameter(
        1.0,
        ge=0,
        reads=("gallery", "query"),
        search=(0.1, 1.0, 10.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around our own value",
        doc="weight of the pairwise likelihood between the two image networks",
    )
    difference_weight: float = hyperparameter(
        1.0,
        ge=0,
        reads=("gallery", "query"),
        search=(0.1, 1.0, 10.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around our own value",
        doc="weight of the difference between similarities to the label codes and those wanted",
    )
    soft_similarity: bool = hyperparameter(
        False,
        reads=("gallery", "query"),
        search=(False, True),
        tunable=False,
        range_from="ADSH's code has it, and there is no other",
        doc="difference: dissimilar pairs are drawn to minus the split's ratio of similar to "
        "dissimilar pairs (at most 1), as in ADSH, not to -1; for many classes",
    )
    eta: float = hyperparameter(
        0.1,
        ge=0,
        reads=("gallery", "query"),
        search=(0.01, 0.1, 1.0),
        space={"type": "log_float", "low": 0.01, "high": 1.0, "points": 3},
        range_from="ours: a decade around our own value",
        doc="weight of the distance to the codes b",
    )
    nu: float = hyperparameter(
        0.01,
        ge=0,
        reads=("gallery", "query"),
        search=(1e-3, 1e-2, 0.1),
        space={"type": "log_float", "low": 0.001, "high": 0.1, "points": 3},
        range_from="ours: a decade around our own value",
        doc="weight of the bits' balance",
    )
    mu: float = hyperparameter(
        1.0,
        ge=0,
        reads=("gallery", "query"),
        search=(0.1, 1.0, 10.0),
        space={"type": "log_float", "low": 0.1, "high": 10.0, "points": 3},
        range_from="ours: a decade around our own value",
        doc="weight of the label codes in the update of b, where each image network counts 1",
    )
    a1: float = hyperparameter(
        0.1,
        ge=0,
        reads=("gallery", "query"),
        search=(0.01, 0.1, 1.0),
        space={"type": "log_float", "low": 0.01, "high": 1.0, "points": 3},
        range_from="ours: a decade around our own value",
        doc="label network: weight of the distance of its codes to their signs",
    )
    a2: float = hyperparameter(
        0.01,
        ge=0,
        reads=("gallery", "query"),
        search=(1e-3, 1e-2, 0.1),
        space={"type": "log_float", "low": 0.001, "high": 0.1, "points": 3},
        range_from="ours: a decade around our own value",
        doc="label network: weight of its bits' balance",
    )
    label_hidden: int = hyperparameter(
        4096, ge=1, reads=("gallery", "query"), doc="label network: units of the first layer"
    )
    label_features: int = hyperparameter(
        512, ge=1, reads=("gallery", "query"), doc="label network: units of the second layer"
    )
    label_epochs: int = hyperparameter(
        15,
        ge=1,
        reads=("gallery", "query"),
        search=(15, 60),
        space={"type": "int", "low": 15, "high": 60, "log": True, "points": 3},
        range_from="ours: our own value, to four times that",
        doc="label network: passes over the different label rows of the training split",
    )
    label_lr: float = hyperparameter(
        3e-4,
        gt=0,
        le=1,
        reads=("gallery", "query"),
        search=(1e-4, 3e-4, 1e-3),
        space={"type": "log_float", "low": 1e-4, "high": 1e-3, "points": 3},
        range_from="ours: around our own value; 1e-3 saturates short codes",
        doc="label network: learning rate of Adam, per step; at 1e-3 a layer of 4096 units "
        "saturates short codes within its first steps",
    )
    label_batch: int = hyperparameter(
        256,
        ge=2,
        reads=("gallery", "query"),
        doc="label network: label rows in a step; all of them where there are fewer",
    )


@METHODS.register("adsq")
class ADSQ(Alternating):
    """A label network gives codes of labels; then two image networks train in turn towards them.

    Step 1, before training: :func:`semantic_codes` gives every image the code h_l of its labels.
    Step 2, with u = tanh h_q, v = tanh h_g, in the query's phase: NLL(u v^T / 2, S) + mean (u_i .
    h_l,j / B - (2 S_ij - 1))^2 + eta mean (u - b)^2 + nu mean_k (mean_i u_ik)^2; in the gallery's
    phase the same of v. After both, b = sgn(U + V + mu H_l), where U and V keep the last u and v
    of every training image.
    """

    Params = ADSQParams
    params: ADSQParams
    memory = ("U", "V", "b", "H_l")  # H_l, lest a resumed run depend on training it again
    quantization_weights = ("eta",)
    source = Source(
        title="Asymmetric deep semantic quantization for image retrieval",
        venue="IEEE Access",
        year=2019,
        url="https://arxiv.org/abs/1903.12493",
        settings_from="ours; nothing of the paper's settings is known to us",
        status="reconstructed",
        note="the paper is unread beyond its abstract: equations, weights and results are not "
        "available. The losses are our reconstruction from its list of ingredients: a label "
        "network of three layers, two image networks with weights of their own, and, from a "
        "survey, likelihood and difference losses, quantisation with alternation, bit balance, "
        "two steps. The paper's image networks have one architecture; here each is its side's",
    )

    def check(self) -> None:
        """Refuse image networks that would learn nothing of the labels."""
        p = self.params
        if p.likelihood_weight == p.difference_weight == p.eta == 0:
            raise InputError(
                "with likelihood_weight, difference_weight and eta all 0 no loss reads the labels",
                key="likelihood_weight",
                value=p.likelihood_weight,
                hint="set one of them above 0 (a quantizer with mode: replace sets eta to 0)",
            )

    # ---- state ---------------------------------------------------------------------------

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """Train the label network; H_l its codes (N, B), U = V = 0, b = sgn(H_l).

        Also the labels (N, C), for the monitor, and the target of dissimilar pairs, a scalar.
        """
        p = self.params
        codes = semantic_codes(split, self.task.bits, p)
        soft = dissimilar_target(split.labels) if p.soft_similarity else -1.0
        return {
            "H_l": codes,
            "U": torch.zeros_like(codes),
            "V": torch.zeros_like(codes),
            "b": sgn(codes).to(torch.int8),
            "labels": split.labels,
            "dissimilar": torch.tensor(soft, device=codes.device, dtype=torch.float64),
        }

    def remember(self, stage: TrainedStage, outputs: Outputs, batch: Batch, state: State) -> None:
        """Keep both networks' codes in both phases; of the one at rest those of its eval mode."""
        remember_codes(state["U"], outputs["query"], batch.rows)
        remember_codes(state["V"], outputs["gallery"], batch.rows)

    def end_epoch(self, stage: TrainedStage, state: State) -> dict[str, float]:
        """Update b; return terms over the whole split, as weighted here, and b's agreement."""
        p = self.params
        u, v, h_l = state["U"], state["V"], state["H_l"]
        state["b"] = sgn(u + v + p.mu * h_l).to(torch.int8)
        agreeing = state["b"] == sgn(h_l)
        return {
            "likelihood": p.likelihood_weight * full_likelihood(u, v, state["labels"]),
            "quant": p.eta * float(l2(u, state["b"]) + l2(v, state["b"])),
            "label_bits": float(agreeing.double().mean()),
        }

    # ---- losses --------------------------------------------------------------------------

    def joint_loss(self, h_q: Tensor, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """The phase's terms of h_q and h_g (n, B); a gradient only to the phase's network."""
        p = self.params
        u, v = phase_codes(h_q, h_g, batch)
        code = u if batch.phase == "query" else v
        similarity = similar(batch.labels)
        terms: LossTerms = {}
        if p.likelihood_weight > 0:
            terms["likelihood"] = p.likelihood_weight * pairwise_likelihood(u, v, similarity)
        if p.difference_weight > 0:
            terms["difference"] = p.difference_weight * semantic_difference(
                code, state["H_l"][batch.rows], similarity, state["dissimilar"]
            )
        if p.eta > 0:
            terms["quant"] = p.eta * l2(code, state["b"][batch.rows])
        if p.nu > 0:
            terms["balance"] = p.nu * bit_balance(code, "mean")
        return terms


# ---- image networks --------------------------------------------------------------------


def semantic_difference(
    u: Tensor, label_codes: Tensor, similarity: Tensor, dissimilar: Tensor | float = -1.0
) -> Tensor:
    """Squared difference between the similarities to the label codes and those wanted.

    With t_ij = 1 for similar and ``dissimilar`` for other pairs: the mean over all pairs of
    (u_i . h_l,j / B - t_ij)^2. With -1, t = 2 S - 1.

    Args:
        u: (n, B) codes of the network whose phase it is.
        label_codes: h_l (m, B), codes of the labels.
        similarity: S (n, m), 1 where images share a label, else 0.
        dissimilar: what dissimilar pairs are drawn to, in [-1, 0].

    Raises:
        ValueError: the two have different numbers of bits.
    """
    if u.shape[1] != label_codes.shape[1]:
        raise ValueError(
            f"codes of images have {u.shape[1]} bits, of labels {label_codes.shape[1]}"
        )
    aim = torch.where(similarity > 0, 1.0, dissimilar).to(u.dtype)
    return (u @ label_codes.to(u.dtype).T / u.shape[1] - aim).square().mean()


def dissimilar_target(labels: Tensor) -> float:
    """Return minus the ratio of similar to dissimilar pairs of labels (N, C), not below -1.

    ADSH (Jiang and Li, AAAI 2018, released code) draws dissimilar pairs to -r, so that the few
    similar ones weigh as much; where they are the majority, -r could not be reached by codes.
    Without dissimilar pairs it is -1, which no pair reads.
    """
    alike = 0
    for first in range(0, len(labels), 512):
        part = labels[first : first + 512]
        alike += int((part @ labels.T > 0).sum())
    others = len(labels) ** 2 - alike
    return -min(1.0, alike / others) if others else -1.0


# ---- label network ---------------------------------------------------------------------


def feature_likelihood(features: Tensor, similarity: Tensor, bits: int) -> Tensor:
    """Pairwise likelihood of the label network's features, on the scale of B-bit codes.

    theta = B / 2 cos(f_i, f_j): inner products of 512 unbounded features would saturate it.

    Args:
        features: f (n, d).
        similarity: S (n, n).
        bits: B.
    """
    theta = bits / 2 * cosine(features, features)
    return F.binary_cross_entropy_with_logits(theta, similarity.to(theta.dtype))


def label_loss(
    features: Tensor, codes: Tensor, similarity: Tensor, *, a1: float, a2: float
) -> Tensor:
    """Loss of the label network: two likelihoods, distance to the signs, bit balance.

    NLL(B/2 cos(f, f), S) + NLL(h_l h_l^T / 2, S) + a1 mean (h_l - sgn h_l)^2 + a2 mean_k (mean_i
    h_l,ik)^2.

    Args:
        features: f (n, d), outputs of the second layer.
        codes: h_l (n, B), tanh outputs of the third.
        similarity: S (n, n), 1 where two label rows share a class, else 0.
        a1: weight of the distance to the signs.
        a2: weight of the balance.
    """
    likelihood = feature_likelihood(features, similarity, codes.shape[1])
    likelihood = likelihood + pairwise_likelihood(codes, codes, similarity)
    return likelihood + a1 * l2(codes, codes, target="binary") + a2 * bit_balance(codes, "mean")


def semantic_codes(split: TrainingSplit, bits: int, p: ADSQParams) -> Tensor:
    """Train the label network on the split's different label rows; return each image's code.

    C -> ``label_hidden`` ReLU -> ``label_features`` ReLU (f) -> B tanh (h_l). Its first weights
    are N(0, 1), its others He et al.'s, its biases 0: with torch's defaults, made for dense
    inputs, all one-hot rows begin with nearly one code, and from about 80 classes on they keep it.

    Args:
        split: of which the labels and the seed are read.
        bits: B.
        p: sizes, weights, and how it is trained.

    Returns:
        H_l (N, B) in (-1, 1), float32, without gradient.
    """
    rows, inverse = torch.unique(split.labels, dim=0, return_inverse=True)
    with torch_stream(split.seed, "labelnet"), torch.enable_grad():
        trunk, last = _label_network(rows.shape[1], bits, p)
        trunk, last = trunk.to(rows.device), last.to(rows.device)
        weights = [*trunk.parameters(), *last.parameters()]
        optimizer = torch.optim.Adam(weights, lr=p.label_lr)
        for epoch in range(p.label_epochs):
            order = permutation(split.seed, "labelnet", len(rows), epoch=epoch)
            for part in torch.split(torch.from_numpy(order).to(rows.device), p.label_batch):
                features = trunk(rows[part])
                codes = last(features).tanh()
                loss = label_loss(features, codes, similar(rows[part]), a1=p.a1, a2=p.a2)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    with torch.no_grad():
        parts = torch.split(rows, p.label_batch)
        codes = torch.cat([last(trunk(part)).tanh() for part in parts])
    return codes[inverse]


def _label_network(classes: int, bits: int, p: ADSQParams) -> tuple[nn.Sequential, nn.Linear]:
    """Return the layers (n, C) -> f and f -> the input of the last tanh, on the CPU."""
    nn = torch.nn
    first = nn.Linear(classes, p.label_hidden)
    second = nn.Linear(p.label_hidden, p.label_features)
    last = nn.Linear(p.label_features, bits)
    nn.init.normal_(first.weight)  # a row of labels has one 1, or a few: nothing to average over
    for layer in (second, last):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    for layer in (first, second, last):
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU()), last
