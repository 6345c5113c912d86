"""What a method is: declared hyperparameters, which stages it has, and its losses.

A method knows nothing about Ray, MLflow, files or devices. It declares; ``methods.training``
trains what it declares, and the orchestrator decides where.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from methods.tensors import Tensor
from retrieval.errors import InputError
from retrieval.registry import Registry
from retrieval.streams import generator
from retrieval.validation import explain_validation

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "METHODS",
    "Batch",
    "CentersSpec",
    "HashMethod",
    "Hyperparameters",
    "LossTerms",
    "Outputs",
    "Phase",
    "Quantizer",
    "Schedule",
    "Source",
    "StageKind",
    "State",
    "Task",
    "TrainedStage",
    "TrainingSplit",
    "build_method",
    "hyperparameter",
]

StageKind = Literal["centers", "gallery", "query"]
TrainedStage = Literal["gallery", "query", "joint"]
Phase = Literal["both", "query", "gallery"]
HeadKind = Literal["fc_bn", "fc_tanh", "fc_bn_tanh", "mlp3_tanh"]
Assignment = Literal["none", "A_r", "A_q", "A_g", "A_b"]
CentersKind = Literal["hadamard", "hadamard_ext", "bernoulli", "greedy", "mds"]

LossTerms = dict[str, Tensor]
"""Loss terms by name, already weighted: what is optimised is their sum."""

State = dict[str, Tensor]
"""What a method keeps between steps (centers, memory rows, anchors), on the training's device."""

Outputs = Mapping[str, Tensor]
"""What the networks said of one batch: h_q under "query", h_g under "gallery", and the gallery's
momentum encoder's under "momentum", each (n, B), where there is such a network."""


class Schedule(StrEnum):
    """How the two sides of a method depend on each other."""

    SIMULTANEOUS = "simultaneous"
    """Both sides train in the same steps, nothing flows from the query back to the gallery: the
    gallery trains alone and records its codes, the query replays them."""

    FROZEN = "frozen gallery"
    """Two stages: the gallery trains first and is frozen; the query learns from its codes."""

    JOINT = "joint"
    """The sides really depend on each other, and train together in one stage."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a method comes from, and how much of it is known.

    Attributes:
        title, venue, year, url: of the paper.
        settings_from: where the default hyperparameters come from.
        status: "published", or "reconstructed" where equations had to be filled in by us.
        note: what is unknown, or departs from the paper.
    """

    title: str
    venue: str
    year: int
    url: str = ""
    settings_from: str = ""
    status: Literal["published", "reconstructed"] = "published"
    note: str = ""


def hyperparameter(
    default: Any,
    *,
    reads: tuple[StageKind, ...],
    doc: str,
    search: tuple[Any, ...] = (),
    space: Mapping[str, Any] | None = None,
    range_from: str = "",
    tunable: bool = True,
    when: Mapping[str, tuple[Any, ...]] | None = None,
    **limits: Any,
) -> Any:
    """Declare one hyperparameter of a method.

    Args:
        default: the published value.
        reads: the stages whose result depends on it; only these are trained anew when it changes.
        doc: meaning and unit, one line.
        search: values worth trying, from the paper where it has them.
        space: the range worth searching, as a study's ``search`` would give it: ``{"type":
            "log_float", "low": 0.1, "high": 1000, "points": 5}``. Without it the range is that of
            ``search``, see ``search_spaces.defaults``. The default lies in it.
        range_from: where these values are from, one line: "CSCH, Fig. 7"; with values it is
            needed.
        tunable: whether it belongs to the space that a method is tuned in by default. False for
            what makes another method of it, such as the choice of a loss that an ablation turns.
        when: other hyperparameter -> values of it with which this one is read at all.
        **limits: ``ge``, ``gt``, ``le``, ``lt`` as in pydantic.

    Raises:
        TypeError: ``space`` says itself when it counts, or where it is from.
    """
    if {"when", "source"} & set(space or ()):
        raise TypeError("when and range_from stand beside space, not in it")
    extra: dict[str, Any] = {
        "reads": list(reads),
        "search": list(search),
        "space": None if space is None else dict(space),
        "range_from": range_from,
        "tunable": tunable,
        "when": {name: list(values) for name, values in (when or {}).items()},
    }
    return Field(default=default, description=doc, json_schema_extra=extra, **limits)


class Quantizer(BaseModel):
    """A quantisation term that any method can be given: ``quantizer: {name: caq}``.

    Attributes:
        name: "caq" is the correlation-aware quantisation of DCAH, see ``methods.quantizers``.
        mode: "add" puts it beside the method's own terms; "replace" sets the weights of the
            method's own explicit quantisation (its ``quantization_weights``) to 0.
        weight: of the term.
        t0, t1: temperatures of the binary and of the continuous similarities; null takes the
            published ones of the code length.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    name: Literal["caq"]
    mode: Literal["add", "replace"] = "add"
    weight: float = Field(1.0, gt=0)
    t0: float | None = Field(None, gt=0)
    t1: float | None = Field(None, gt=0)


class Hyperparameters(BaseModel):
    """Base of every method's hyperparameters: frozen, strict about types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    quantizer: Quantizer | None = hyperparameter(
        None,
        reads=("query",),
        doc="a quantisation term beside the method's own, or in its place: {name: caq, mode: add}",
    )

    @field_validator("quantizer", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """Take ``quantizer: caq`` for ``quantizer: {name: caq}``."""
        if isinstance(value, str):
            return {"name": value}
        if not (value is None or isinstance(value, dict | Quantizer)):
            raise ValueError("must be a name or a mapping, caq or {name: caq, mode: add}")
        return value

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Hyperparameters:
        """Validate ``given``; the fields not given take their defaults.

        Raises:
            InputError: an unknown key (with the nearest known one), a wrong type or a value out of
                range; ``key`` is the hyperparameter's name.
        """
        try:
            return cls(**given)
        except ValidationError as error:
            raise explain_validation(error, cls) from None

    @classmethod
    def readers(cls, name: str) -> tuple[StageKind, ...]:
        """Return the stages that read the hyperparameter ``name``."""
        extra = cls.model_fields[name].json_schema_extra
        if not isinstance(extra, dict) or not extra.get("reads"):
            raise TypeError(f"{cls.__name__}.{name} does not say which stages read it")
        return tuple(extra["reads"])  # type: ignore[arg-type]

    def read_by(self, *stages: StageKind) -> dict[str, Any]:
        """Return the hyperparameters that any of ``stages`` reads, as JSON values."""
        values = self.model_dump(mode="json")
        if self.quantizer is None:  # no quantizer is no setting
            del values["quantizer"]
        return {n: v for n, v in values.items() if set(self.readers(n)) & set(stages)}


@dataclass(frozen=True, kw_only=True)
class CentersSpec:
    """Which hash centers a method asks for, and how they are given to the classes.

    Attributes:
        kind: the generator, see ``methods.centers``.
        assign: "none" keeps the generator's order; A_r permutes at random; A_q, A_g, A_b solve the
            assignment of CSCH (Eq. 2-4) on the initial query network, gallery network, or both.
        cost: "inner" is -t.c (the released code), "norm" is ||t - c|| (Eq. 3).
        normalize_first: L2-normalise each image's output before the class mean.
        row_choice: which Hadamard rows are taken, "first" or "random".
        flip_rows: give each row a random sign.
    """

    kind: CentersKind
    assign: Assignment = "none"
    cost: Literal["inner", "norm"] = "inner"
    normalize_first: bool = True
    row_choice: Literal["first", "random"] = "first"
    flip_rows: bool = False

    @property
    def needs(self) -> tuple[Literal["query", "gallery"], ...]:
        """The sides whose initial network the assignment looks at."""
        table: dict[str, tuple[Literal["query", "gallery"], ...]] = {
            "A_q": ("query",),
            "A_g": ("gallery",),
            "A_b": ("query", "gallery"),
        }
        return table.get(self.assign, ())


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The labels and identities of one batch; what a loss may look at beside the outputs.

    Attributes:
        rows: (n,) int64, row of each sample in the training split, for memory rows.
        labels: (n, C) multi-hot in {0, 1}, floating point of the outputs' dtype.
        classes: (n,) int64 class numbers; None for a multi-label dataset.
        tie_bits: (n, B) in {-1, +1}, one fixed vector an image; decides zero sums of centers.
        epoch: 0-based epoch.
        phase: which side is being trained, in a method that alternates; else "both".
    """

    rows: Tensor
    labels: Tensor
    classes: Tensor | None
    tie_bits: Tensor
    epoch: int = 0
    phase: Phase = "both"


@dataclass(frozen=True, kw_only=True)
class TrainingSplit:
    """What a method may know of the whole training split, before and between epochs.

    Attributes:
        labels: (N, C) multi-hot in {0, 1}, float32, on the training's device.
        classes: (N,) int64 class numbers; None for a multi-label dataset.
        seed: the trial's.
        embeddings: (N, B) raw outputs h_g of the frozen gallery for the training images without
            augmentation, float32; None unless the method :attr:`~HashMethod.reads_embeddings`.
    """

    labels: Tensor
    classes: Tensor | None
    seed: int
    embeddings: Tensor | None = None

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """Return a random generator that is a function of the seed and the purpose alone."""
        return generator(self.seed, "method", *purpose)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method is asked to do; with the hyperparameters, all that it may depend on.

    Attributes:
        bits: code length B.
        n_classes: number of classes C.
        n_train: number of training images N.
        multi_label: whether images carry several labels.
    """

    bits: int
    n_classes: int
    n_train: int
    multi_label: bool


class HashMethod(ABC):
    """A way to train a (query, gallery) pair of networks into one Hamming space.

    A subclass sets the class attributes, answers the properties that depend on its
    hyperparameters, and writes its losses. Losses get the raw outputs of the hash layer, before
    any squashing, in float32 or float64 with autocast off.

    Class attributes:
        name: set by the registry.
        version: raised whenever the method's numbers may change; part of every stage id.
        Params: the hyperparameters' class.
        source: the paper.
        labels_needed: whether the query's stage reads labels.
        heads: hash heads that hyperparameters choose from, where there is more than one.
        embeddings: whether the method is made for continuous embeddings, so that ranking by them
            is its native use and Hamming ranking of their signs is ours.
        memory: names in the state that training changes. They are in every checkpoint; all other
            state is made anew by :meth:`initial_state`, to the same values.
        quantization_weights: hyperparameters that weigh an explicit quantisation; a quantizer with
            ``mode: replace`` sets them to 0.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    Params: ClassVar[type[Hyperparameters]]
    source: ClassVar[Source]
    labels_needed: ClassVar[bool] = True
    heads: ClassVar[tuple[str, ...]] = ()
    embeddings: ClassVar[bool] = False
    memory: ClassVar[tuple[str, ...]] = ()
    quantization_weights: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Hyperparameters, task: Task) -> None:
        if params.quantizer is not None and params.quantizer.mode == "replace":
            params = params.model_copy(update=dict.fromkeys(self.quantization_weights, 0.0))
        self.params = params
        self.task = task

    # ---- what is trained how -------------------------------------------------------------

    @property
    def schedule(self) -> Schedule:
        """How the two sides depend on each other."""
        return Schedule.FROZEN

    @property
    def head(self) -> HeadKind:
        """The hash head of both networks."""
        return "fc_bn"

    @property
    def recording(self) -> Literal["sign", "float"]:
        """What the query loss reads of the gallery's codes: "sign" is b_g, "float" is h_g."""
        return "float"

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What one epoch of a JOINT method is made of, one pass over the training split each.

        "both" steps both networks in the same steps. In a method that alternates, the network
        whose phase it is not is in eval mode and without gradient.
        """
        return ("both",)

    @property
    def momentum(self) -> float | None:
        """The gallery's momentum encoder keeps this share of itself at each step; None: none.

        Its outputs reach :meth:`remember` under "momentum".
        """
        return None

    @property
    def reads_embeddings(self) -> bool:
        """Whether the query's stage reads the frozen gallery's embeddings of the training split.

        Only with schedule FROZEN.
        """
        return False

    @property
    def straight_through(self) -> bool:
        """Whether a loss passes gradients through a sign, so that they are not its own slope."""
        return self.params.quantizer is not None

    def gallery_method(self) -> HashMethod:
        """The method that trains the gallery: itself, or the teacher that it distils from.

        Trials whose gallery methods, their hyperparameters and tasks are equal share the stage.
        """
        return self

    def centers(self) -> CentersSpec | None:
        """The hash centers that the method's own losses read from ``state["centers"]``, if any."""
        return None

    def centers_for_query(self) -> bool:
        """Whether the query loss reads the centers too."""
        return False

    def squash(self, h: Tensor) -> Tensor:
        """Return the output space in which a query that distils from this method's gallery learns.

        The identity, or tanh for methods whose loss squashes h (n, B) first.
        """
        return h

    def check(self) -> None:  # noqa: B027 - a method without such combinations needs none
        """Refuse an impossible combination of hyperparameters and task, before anything runs.

        Raises:
            InputError: with ``key`` set to the hyperparameter to change, or to "bits".
        """

    # ---- state ---------------------------------------------------------------------------

    def initial_state(self, stage: TrainedStage, split: TrainingSplit) -> State:
        """Return what the method keeps during ``stage``, beside the centers, before any step.

        Called once a stage, also when it goes on from a checkpoint; a pure function of ``split``.
        """
        return {}

    def begin_epoch(self, epoch: int, split: TrainingSplit, state: State) -> None:  # noqa: B027
        """Change ``state`` before an epoch, as a function of the epoch, the split and itself."""

    def remember(  # noqa: B027
        self, stage: TrainedStage, outputs: Outputs, batch: Batch, state: State
    ) -> None:
        """Keep what the networks say of a batch in ``state``; called before each loss.

        Outputs carry no gradient here, and are as raw as those that the losses get.
        """

    def end_epoch(self, stage: TrainedStage, state: State) -> dict[str, float]:
        """Change ``state`` after an epoch, its phases included; return what is worth watching."""
        return {}

    # ---- losses --------------------------------------------------------------------------

    def gallery_loss(self, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Loss terms of the gallery network, of h_g (n, B)."""
        raise TypeError(f"method {self.name!r} does not train a gallery of its own")

    def query_loss(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Loss terms of the query network.

        Args:
            h_q: (n, B) raw outputs of the query network.
            g: (n, B) the gallery's codes of the same images without gradient: h_g where
                :attr:`recording` is "float", b_g in {-1, +1} where it is "sign".
            batch: labels and identities.
            state: the method's state.
        """
        raise TypeError(f"method {self.name!r} has no query loss")

    def joint_loss(self, h_q: Tensor, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Loss terms of both networks, where gradients reach both (schedule JOINT)."""
        raise TypeError(f"method {self.name!r} has no joint loss")

    def query_terms(self, h_q: Tensor, g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Return :meth:`query_loss` and the quantizer's term; what the trainer optimises."""
        return self.query_loss(h_q, g, batch, state) | self._quantizer_terms(h_q, g)

    def joint_terms(self, h_q: Tensor, h_g: Tensor, batch: Batch, state: State) -> LossTerms:
        """Return :meth:`joint_loss` and the quantizer's term; what the trainer optimises."""
        terms = self.joint_loss(h_q, h_g, batch, state)
        return terms if batch.phase == "gallery" else terms | self._quantizer_terms(h_q, h_g)

    def _quantizer_terms(self, h_q: Tensor, g: Tensor) -> LossTerms:
        from methods.quantizers import quantizer_loss

        given = self.params.quantizer
        if given is None:
            return {}
        loss = quantizer_loss(given, self.squash(h_q), g, self.task.bits)
        return {given.name: given.weight * loss}

    def describe(self) -> dict[str, Any]:
        """Return what ``asymbench list methods`` shows of the method with these parameters."""
        shared = {
            Schedule.SIMULTANEOUS: "its gallery",
            Schedule.FROZEN: "its gallery",
            Schedule.JOINT: "nothing",
        }[self.schedule]
        distils = self.gallery_method() is not self
        phases = f", {len(self.phases)} phases an epoch" if len(self.phases) > 1 else ""
        return {
            "name": self.name,
            "version": self.version,
            "labels": "query and gallery" if self.labels_needed else "gallery",
            "schedule": f"{self.schedule}{phases}",
            "heads": list(self.heads or (self.head,)),
            "shares": "the teacher's gallery" if distils else shared,
            "embeddings": self.embeddings,
            "memory": list(self.memory),
            "status": self.source.status,
            "paper": f"{self.source.title} ({self.source.venue} {self.source.year})",
        }


METHODS: Registry[type[HashMethod]] = Registry(
    "method",
    package="methods",
    infrastructure={
        "assignment",
        "base",
        "centers",
        "distilled",
        "efficiency",
        "losses",
        "mds",
        "networks",
        "pairs",
        "pairwise",
        "parallel",
        "product_quantizer",
        "quantizers",
        "recipe",
        "tensors",
        "training",
        "two_stage",
    },
    group="asymbench.methods",
)


def build_method(name: str, given: Mapping[str, Any], task: Task) -> HashMethod:
    """Build the method ``name`` with hyperparameters ``given``, checked against ``task``.

    Raises:
        UnknownNameError: no such method.
        InputError: a hyperparameter is unknown, of the wrong type, out of range, or impossible
            with the task.
    """
    cls = METHODS.get(name)
    params = cls.Params.parse(given)
    replaced = params.quantizer is not None and params.quantizer.mode == "replace"
    if replaced and not cls.quantization_weights:
        raise InputError(
            f"method {name!r} has no quantisation term of its own that could be replaced",
            key="quantizer.mode",
            value="replace",
            hint="set mode: add",
        )
    method = cls(params, task)
    method.check()
    return method
