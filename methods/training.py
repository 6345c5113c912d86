"""Train what a method declares: a gallery alone, a query on recorded or live codes, or both.

The loop is written once for all methods. Everything random is a function of (seed, epoch, step or
sample): the order of the samples and their augmentation come from the data's stream, dropout and
the like from one stream for each side. What a query network sees therefore does not depend on
whether the gallery is trained beside it, replayed from a recording, or queried live; the three end
with the same bits.

Several workers may train a stage together, see ``methods.parallel``: each sends its share of a
batch through the networks, and everything else sees the whole batch. With one worker, which is the
default, a share is the batch.

Nothing here touches files or knows where it runs.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from methods.base import (
    Batch,
    HashMethod,
    LossTerms,
    Phase,
    Schedule,
    State,
    TrainedStage,
    TrainingSplit,
)
from methods.parallel import ALONE, PROBE_IMAGES, Group
from methods.recipe import Recipe
from retrieval import streams
from retrieval.augmentation import Views

SideName = Literal["query", "gallery"]


class TrainingDiverged(RuntimeError):
    """A loss became NaN or infinite; the epoch and the term are in the message."""


class CodeSource(Protocol):
    """Where a query's training gets the gallery's codes from."""

    def codes(self, epoch: int, positions: NDArray[np.int64], views: Tensor) -> Tensor:
        """Return the gallery's codes (n, B) of these training samples in this epoch.

        Args:
            epoch: 0-based.
            positions: (n,) rows of the split, of the whole batch.
            views: (n / k, 3, S, S) of this worker's share.
        """


class CodeSink(Protocol):
    """Where a gallery's codes go while it trains."""

    def begin(self, epoch: int) -> None:
        """An epoch begins; what was written of it before (an interrupted try) is forgotten."""

    def write(self, positions: NDArray[np.int64], h_g: Tensor) -> None:
        """Keep the codes (n, B) of these training samples."""

    def end(self, epoch: int) -> None:
        """The epoch is complete; make it durable."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to.

    Attributes:
        epoch: 0-based.
        metrics: mean loss terms by name, learning rates; deterministic.
        seconds: wall time of the epoch's training steps.
        images: images trained on.
    """

    epoch: int
    metrics: dict[str, float]
    seconds: float
    images: int


class TrainingData:
    """The training split as a method's losses see it.

    Args:
        views: augmented views of the dataset's images.
        rows: (N,) rows of the image store that form the training split.
        labels: (N,) int64 classes, or (N, C) multi-hot, of those rows.
        n_classes: C.
        bits: B, for the tie bits.
        seed: the trial's seed.
        device: where batches live.
    """

    def __init__(
        self,
        views: Views,
        rows: NDArray[np.int64],
        labels: NDArray[np.generic],
        *,
        n_classes: int,
        bits: int,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.views = views
        self.rows = np.asarray(rows, dtype=np.int64)
        self.seed = seed
        self.device = device
        labels = np.asarray(labels)
        self._classes: Tensor | None = None
        if labels.ndim == 1:
            self._classes = torch.from_numpy(labels.astype(np.int64)).to(device)
            self._labels = nn.functional.one_hot(self._classes, n_classes).float()
        else:
            self._labels = torch.from_numpy(labels.astype(np.float32)).to(device)
        ties = streams.signs(seed, "tie bits", self.rows, bits)
        self._ties = torch.from_numpy(ties.astype(np.float32)).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def steps(self, batch_size: int) -> int:
        """Return the optimiser steps in one epoch."""
        return len(self) // batch_size

    def batches(self, epoch: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions (rows of the split) of each full batch of the epoch, in order."""
        order = streams.permutation(self.seed, "order", len(self), epoch=epoch)
        for step in range(self.steps(batch_size)):
            yield order[step * batch_size : (step + 1) * batch_size]

    def view(self, positions: NDArray[np.int64], epoch: int) -> Tensor:
        """Return the augmented images (n, 3, S, S) of these positions in this epoch."""
        return self.views.train(self.rows[positions], epoch)

    def split(self, embeddings: NDArray[np.float32] | None = None) -> TrainingSplit:
        """Return the whole split as methods may see it, with the gallery's embeddings if given."""
        given = None if embeddings is None else torch.from_numpy(embeddings).to(self.device)
        return TrainingSplit(
            labels=self._labels, classes=self._classes, seed=self.seed, embeddings=given
        )

    def batch(self, positions: NDArray[np.int64], epoch: int, phase: Phase = "both") -> Batch:
        """Return labels and identities of these positions."""
        index = torch.from_numpy(positions).to(self.device)
        return Batch(
            rows=index,
            labels=self._labels[index],
            classes=None if self._classes is None else self._classes[index],
            tie_bits=self._ties[index],
            epoch=epoch,
            phase=phase,
        )


class Learner:
    """One side in training: its network, optimiser, recipe and random stream.

    Args:
        side: which side; names its random stream.
        network: the network, already on its device.
        groups: parameters by group, "backbone" and "head", as of ``methods.networks``.
        recipe: how it is trained.
        steps_per_epoch: optimiser steps in an epoch.
        seed: the trial's seed.
        momentum: share of itself that a momentum encoder keeps at each step; None: none is kept.
        group: the workers that train the side together.

    Attributes:
        draws: whether a forward pass in training may draw random numbers, as dropout does.
    """

    def __init__(
        self,
        side: SideName,
        network: nn.Module,
        groups: Mapping[str, list[nn.Parameter]],
        recipe: Recipe,
        *,
        steps_per_epoch: int,
        seed: int,
        momentum: float | None = None,
        group: Group = ALONE,
    ) -> None:
        self.group = group
        self.draws = True
        self.side = side
        self.network = network
        self.recipe = recipe
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self._rates = {"backbone": recipe.lr_backbone, "head": recipe.lr_head}
        self._names = list(groups)
        self.optimizer = _optimizer(
            recipe, [{"params": groups[name], "lr": self._rates[name]} for name in self._names]
        )
        self.momentum = momentum
        self.shadow = None if momentum is None else copy.deepcopy(network).requires_grad_(False)

    def forward(self, views: Tensor, epoch: int, step: int) -> Tensor:
        """Return h (n, B) of the whole batch in float32, of this worker's share of the views.

        Dropout is drawn from this side's own stream.
        """
        return self._forward(self.network, views, "forward", epoch, step)

    def forward_momentum(self, views: Tensor, epoch: int, step: int) -> Tensor | None:
        """Move the momentum encoder towards the network and return its h (n, B), if there is one.

        Parameters are averaged; batch statistics are its own, of its own training-mode passes.
        """
        if self.shadow is None or self.momentum is None:
            return None
        with torch.no_grad():
            pairs = zip(self.shadow.parameters(), self.network.parameters(), strict=True)
            for kept, new in pairs:
                kept.mul_(self.momentum).add_(new, alpha=1 - self.momentum)
            return self._forward(self.shadow.train(), views, "momentum", epoch, step)

    def _forward(
        self, network: nn.Module, views: Tensor, purpose: str, epoch: int, step: int
    ) -> Tensor:
        device = views.device.type
        reduced = self.recipe.precision == "bf16"
        with (
            streams.torch_stream(self.seed, self.side, purpose, epoch, step),
            torch.autocast(device, dtype=torch.bfloat16, enabled=reduced),
            self.group.spread(draws=self.draws),
        ):
            output: Tensor = network(views)
        return self.group.gather(output.float() if reduced else output)

    def step(self, loss: Tensor, epoch: int, step: int) -> None:
        """Back-propagate ``loss`` and take one optimiser step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.apply(epoch, step)

    def apply(self, epoch: int, step: int) -> None:
        """Take one optimiser step with the gradients that are there, of all workers."""
        self.group.sum_gradients(self.network.parameters())
        factor = self.factor(epoch, step)
        for name, group in zip(self._names, self.optimizer.param_groups, strict=True):
            group["lr"] = self._rates[name] * factor
        if self.recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.recipe.clip_norm)
        self.optimizer.step()

    def factor(self, epoch: int, step: int) -> float:
        """Return the learning-rate factor of this step."""
        return self.recipe.lr_factor(epoch * self.steps_per_epoch + step, self.steps_per_epoch)

    def tensors(self) -> dict[str, Tensor]:
        """Return everything that training goes on from, by name."""
        saved = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.shadow is not None:
            saved |= {f"momentum.{k}": v for k, v in self.shadow.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                saved[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
        return saved

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`tensors` returned."""
        self.network.load_state_dict(_below("network.", saved))
        if self.shadow is not None:
            self.shadow.load_state_dict(_below("momentum.", saved))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in saved.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value.clone()
        current = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": state, "param_groups": current["param_groups"]})


def _below(prefix: str, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in saved.items() if k.startswith(prefix)}


def _optimizer(recipe: Recipe, groups: list[dict[str, object]]) -> torch.optim.Optimizer:
    decay = recipe.weight_decay
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, weight_decay=decay, fused=True)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, momentum=recipe.momentum, nesterov=recipe.momentum > 0, weight_decay=decay
        )
    return torch.optim.RMSprop(groups, momentum=recipe.momentum, weight_decay=decay)


class LiveTeacher:
    """A frozen gallery network asked anew for every batch.

    Args:
        network: the gallery network; put into eval mode and frozen here.
        kind: "float" gives h_g, "sign" gives b_g in {-1, +1}.
        precision: of the forward pass.
        group: the workers that train together; each asks about its share.
    """

    def __init__(
        self,
        network: nn.Module,
        kind: Literal["sign", "float"],
        precision: str = "fp32",
        group: Group = ALONE,
    ) -> None:
        self._group = group
        self.network = network.eval().requires_grad_(False)
        self.kind = kind
        self._reduced = precision == "bf16"

    def codes(self, epoch: int, positions: NDArray[np.int64], views: Tensor) -> Tensor:
        """Return the codes (n, B) of the whole batch, of this worker's share of the views."""
        device = views.device.type
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=self._reduced):
            h_g: Tensor = self._group.gather(self.network(views).float())
        return binarize(h_g) if self.kind == "sign" else h_g


def binarize(h: Tensor) -> Tensor:
    """Return sgn(h) in {-1, +1} with sgn(0) = +1, without gradient, in h's dtype."""
    return torch.where(h.detach() >= 0, 1.0, -1.0).to(h.dtype)


class Trainer:
    """Trains one stage: a gallery, a query, or both.

    Args:
        method: whose losses are optimised.
        data: the training split.
        query: the query side, where this stage trains it.
        gallery: the gallery side, where this stage trains it.
        source: the gallery's codes, where the query trains and the gallery does not.
        sink: where the gallery's codes are recorded while it trains, if they are.
        state: what other stages gave (centers), on the device; the method adds its own.
        embeddings: (N, B) the frozen gallery's outputs for the split, for methods that read them.
        validate: called after each epoch with the epoch; its values join the report.

    Attributes:
        epoch: the next epoch to train, 0-based.
    """

    def __init__(
        self,
        method: HashMethod,
        data: TrainingData,
        *,
        query: Learner | None = None,
        gallery: Learner | None = None,
        source: CodeSource | None = None,
        sink: CodeSink | None = None,
        state: State | None = None,
        embeddings: NDArray[np.float32] | None = None,
        validate: Callable[[int], dict[str, float]] | None = None,
    ) -> None:
        if query is None and gallery is None:
            raise ValueError("a trainer needs a side to train")
        if query is not None and (gallery is None) == (source is None):
            raise ValueError("a query trains beside its gallery or on its codes, exactly one")
        self.method = method
        self.data = data
        self.query = query
        self.gallery = gallery
        self.source = source
        self.sink = sink
        self.stages = self._stages()
        self.split = data.split(embeddings)
        self.state: State = dict(state or {})
        for stage, owner in self.stages.items():
            self.state |= owner.initial_state(stage, self.split)
        self.validate = validate
        self.epoch = 0
        lead = query or gallery
        assert lead is not None
        self._recipe = lead.recipe
        self.group = lead.group

    @property
    def learners(self) -> list[Learner]:
        """The sides in training, gallery first."""
        return [side for side in (self.gallery, self.query) if side is not None]

    def run(self) -> Iterator[EpochReport]:
        """Train from :attr:`epoch` to the recipe's last, yielding a report after each epoch.

        Raises:
            TrainingDiverged: a loss term is not finite.
            InputError: several workers train, and a network cannot be divided over them.
            WorkersDisagree: several workers train, and no longer the same network.
        """
        if self.epoch < self._recipe.epochs and self.group.size > 1:
            self._verify()
        while self.epoch < self._recipe.epochs:
            epoch = self.epoch
            started = time.perf_counter()
            metrics, images = self._train_epoch(epoch)
            seconds = time.perf_counter() - started
            self.epoch = epoch + 1
            self.group.agree(self._shared())
            if self.validate is not None:
                metrics |= self.validate(epoch)
            yield EpochReport(epoch=epoch, metrics=metrics, seconds=seconds, images=images)

    def _verify(self) -> None:
        """Try out on a few training images whether the networks can be divided."""
        first = next(self.data.batches(0, self._recipe.batch_size))
        images = self.data.view(first[: PROBE_IMAGES * self.group.size], 0)
        for learner in self.learners:
            learner.draws = self.group.verify(learner.network, images, learner.side)

    def _shared(self) -> dict[str, Tensor]:
        """Return what must be equal on all workers: what a checkpoint has, but the optimisers'.

        A difference of those is one of the networks, one step later.
        """
        if self.group.size == 1:
            return {}
        return {k: v for k, v in self.tensors().items() if ".optimizer." not in k}

    def _stages(self) -> dict[TrainedStage, HashMethod]:
        """Return whose losses are optimised here: one stage, or two side by side."""
        if self.gallery is not None and self.query is not None:
            if self.method.schedule is Schedule.JOINT:
                return {"joint": self.method}
            return {"gallery": self.method.gallery_method(), "query": self.method}
        if self.gallery is not None:
            return {"gallery": self.method.gallery_method()}
        return {"query": self.method}

    def _train_epoch(self, epoch: int) -> tuple[dict[str, float], int]:
        for owner in self.stages.values():
            owner.begin_epoch(epoch, self.split, self.state)
        if self.sink is not None:
            self.sink.begin(epoch)
        phases = self.method.phases if "joint" in self.stages else ("both",)
        sums: dict[str, Tensor] = {}
        steps: Counter[str] = Counter()
        images = last = 0
        for phase in phases:
            for learner in self.learners:
                learner.network.train(phase in ("both", learner.side))
            batches = self.data.batches(epoch, self._recipe.batch_size)
            for step, positions in enumerate(batches):
                terms = self._step(epoch, step, positions, phase)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0.0) + value.detach().double()
                    steps[name] += 1
                images += len(positions)
                last = step
        if self.sink is not None:
            self.sink.end(epoch)
        means = {name: float(total) / steps[name] for name, total in sums.items()}
        for stage, owner in self.stages.items():
            watched = owner.end_epoch(stage, self.state)
            means |= {f"monitor/{name}": value for name, value in watched.items()}
        for name, mean in means.items():
            if not np.isfinite(mean):
                raise TrainingDiverged(
                    f"{name} is {mean} in epoch {epoch + 1} of {self._recipe.epochs}; "
                    "lower the learning rates, or set train.clip_norm"
                )
        for learner in self.learners:
            factor = learner.factor(epoch, last)
            means[f"lr/{learner.side}/backbone"] = learner.recipe.lr_backbone * factor
            means[f"lr/{learner.side}/head"] = learner.recipe.lr_head * factor
        return means, images

    def _step(
        self, epoch: int, step: int, positions: NDArray[np.int64], phase: Phase
    ) -> LossTerms:
        views = self.data.view(self.group.share(positions), epoch)
        batch = self.data.batch(positions, epoch, phase)
        if "joint" in self.stages:
            return self._joint_step(epoch, step, views, batch)
        logged: LossTerms = {}
        codes: Tensor | None = None
        if self.gallery is not None:
            h_g = self.gallery.forward(views, epoch, step)
            if self.sink is not None:
                self.sink.write(positions, h_g.detach())
            outputs = {"gallery": h_g.detach()}
            averaged = self.gallery.forward_momentum(views, epoch, step)
            if averaged is not None:
                outputs["momentum"] = averaged
            owner = self.stages["gallery"]
            owner.remember("gallery", outputs, batch, self.state)
            terms = owner.gallery_loss(h_g, batch, self.state)
            self.gallery.step(_total(terms), epoch, step)
            logged |= {f"loss/gallery/{name}": value for name, value in terms.items()}
            sign = self.method.recording == "sign"
            codes = binarize(h_g) if sign else h_g.detach()
        elif self.source is not None:
            codes = self.source.codes(epoch, positions, views)
        if self.query is not None:
            assert codes is not None
            h_q = self.query.forward(views, epoch, step)
            outputs = {"query": h_q.detach(), "gallery": codes}
            self.method.remember("query", outputs, batch, self.state)
            terms = self.method.query_terms(h_q, codes, batch, self.state)
            self.query.step(_total(terms), epoch, step)
            logged |= {f"loss/query/{name}": value for name, value in terms.items()}
        return logged

    def _joint_step(self, epoch: int, step: int, views: Tensor, batch: Batch) -> LossTerms:
        """Step the networks whose phase it is; the other, in eval mode, only answers."""
        outputs: dict[str, Tensor] = {}
        trained = [side for side in self.learners if batch.phase in ("both", side.side)]
        for learner in self.learners:
            with torch.set_grad_enabled(learner in trained):
                outputs[learner.side] = learner.forward(views, epoch, step)
        answers = {side: h.detach() for side, h in outputs.items()}
        self.method.remember("joint", answers, batch, self.state)
        terms = self.method.joint_terms(outputs["query"], outputs["gallery"], batch, self.state)
        for learner in trained:
            learner.optimizer.zero_grad(set_to_none=True)
        _total(terms).backward()  # type: ignore[no-untyped-call]
        for learner in trained:
            learner.apply(epoch, step)
        where = "joint" if batch.phase == "both" else batch.phase
        return {f"loss/{where}/{name}": value for name, value in terms.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return a checkpoint: both sides, and the method's memory."""
        saved = {f"state.{name}": self.state[name] for name in self._memory()}
        for learner in self.learners:
            saved |= {f"{learner.side}.{k}": v for k, v in learner.tensors().items()}
        return saved

    def load(self, saved: Mapping[str, Tensor], epoch: int) -> None:
        """Go on from a checkpoint taken after ``epoch`` epochs."""
        for learner in self.learners:
            learner.load(_below(f"{learner.side}.", saved))
        for name in self._memory():
            self.state[name] = saved[f"state.{name}"].to(self.state[name].device)
        self.epoch = epoch

    def _memory(self) -> list[str]:
        return [
            name for method in self.stages.values() for name in method.memory if name in self.state
        ]


def _total(terms: LossTerms) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def record(
    teacher: LiveTeacher, data: TrainingData, recipe: Recipe, sink: CodeSink, *, start: int = 0
) -> Iterator[int]:
    """Record a frozen gallery's codes of the very views that the query will train on.

    The batches are those of the query's training, so that every forward pass here is the one that
    live training would have made. Yields each epoch when it is complete.

    Args:
        teacher: the frozen gallery.
        data: the training split.
        recipe: the query's recipe (epochs, batch size).
        sink: where the codes go.
        start: the first epoch to record, 0-based.
    """
    for epoch in range(start, recipe.epochs):
        sink.begin(epoch)
        for positions in data.batches(epoch, recipe.batch_size):
            views = data.view(positions, epoch)
            sink.write(positions, teacher.codes(epoch, positions, views))
        sink.end(epoch)
        yield epoch


def encode(
    network: nn.Module,
    views: Views,
    rows: NDArray[np.int64],
    *,
    batch_size: int = 256,
    progress: Callable[[int], None] | None = None,
    group: Group = ALONE,
) -> NDArray[np.float32]:
    """Encode images without augmentation, in eval mode and float32.

    Args:
        network: of either side; left in eval mode.
        views: the dataset's views.
        rows: (N,) rows of the image store.
        batch_size: images in a forward pass; fixed, since it can move the last bit of an output.
        progress: called with the images done after each batch.
        group: the workers that encode together. Whole batches are dealt to them, so that the
            bytes are those of one worker; each gets all of them.

    Returns:
        (N, B) continuous codes h, float32.
    """
    if len(rows) == 0:
        raise ValueError("there is nothing to encode: rows is empty")
    network.eval()
    blocks = []
    with torch.inference_mode():
        for first in group.deal(range(0, len(rows), batch_size)):
            h = network(views.eval(rows[first : first + batch_size]))
            blocks.append(h.float().cpu().numpy())
            if progress is not None:
                progress(min(len(rows), first + batch_size))
    return np.concatenate(group.collect(blocks))
