"""A finished trial as something to use: its networks, and images as they were seen in training.

An image that is no member of the dataset is treated as if it were one: cut to a square of the size
at which the dataset's images are stored, then resized as at evaluation. So an image of the dataset
gets the code that the study scored, bit for bit, on the same machine and with as many threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from methods.base import HeadKind
from methods.pairs import SideSpec
from orchestrator.naming import KEY, named_trial, trial_of
from retrieval.augmentation import Augmentation, Views
from retrieval.codes import pack
from retrieval.datasets import Dataset, open_dataset
from retrieval.errors import InputError, UnknownNameError
from retrieval.images import ImageStore, square

if TYPE_CHECKING:
    from methods.networks import HashNetwork
    from orchestrator.plan import Stage, Trial
    from orchestrator.session import Session

SideName: TypeAlias = Literal["query", "gallery"]
SIDES: tuple[SideName, ...] = ("query", "gallery")

Device: TypeAlias = Literal["auto", "cpu", "cuda"]

BATCH_SIZE = 256
"""Images in a forward pass as at evaluation; another can move the last bit of an output."""


def open_trial(session: Session | None, text: str, *, device: Device = "cpu") -> TrainedTrial:
    """Find a trial whose networks are trained.

    Args:
        session: the study that it is of; None looks in every study that was run in the home, the
            newest first, and takes ``STUDY:TRIAL`` too.
        text: the trial's id, its first four or more digits, or its label, or words of it.
        device: where its networks run; "auto" is a GPU where there is one.

    Raises:
        InputError: no trial has this name, several have, it is not finished, or there is no such
            device.
    """
    if session is None:
        from orchestrator.session import home_folder

        session, trial = named_trial(text, home_folder())
    else:
        trial = trial_of(session, text.removeprefix(f"{session.plan.study}:"))
    missing = [
        kind
        for kind, stage_id in trial.stages.items()
        if kind in ("gallery", "query", "joint") and not session.store.is_done(stage_id)
    ]
    if missing:
        raise InputError(
            f"{trial.label} is not finished: its {' and '.join(missing)} is still to be trained",
            key=KEY,
            value=text,
            hint=f"asymbench run {session.plan.study}",
        )
    return TrainedTrial(session, trial, _take_device(device))


def _take_device(device: str) -> str:
    """Return "cpu" or "cuda".

    Raises:
        InputError: a GPU is wanted and there is none, or it is another word.
    """
    if device == "cpu":
        return device
    if device not in ("auto", "cuda"):
        raise UnknownNameError("device", device, ("auto", "cpu", "cuda"), key="--device")
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "auto":
        return "cpu"
    raise InputError("torch sees no GPU here", key="--device", value=device)


@dataclass(frozen=True)
class TrainedTrial:
    """A trial whose networks are trained.

    Attributes:
        session: the study that it was found in.
        trial: of the plan.
        device: where its networks run.
    """

    session: Session
    trial: Trial
    device: str = "cpu"

    @property
    def id(self) -> str:
        """The trial's id."""
        return self.trial.id

    @property
    def bits(self) -> int:
        """B, the length of its codes."""
        return self.trial.bits

    @property
    def threads(self) -> int:
        """Torch threads that it was trained and evaluated with."""
        return int(self._stage("query").setup["threads"])

    @cached_property
    def dataset(self) -> Dataset:
        """The dataset that it was trained on."""
        return open_dataset(self._stage("query").setup["dataset"], home=self.session.home)

    @property
    def class_names(self) -> list[str]:
        """(C,) what the dataset's classes are called."""
        return self.dataset.index().classes

    @cached_property
    def stored_size(self) -> int:
        """Side of the squares, in pixels, that the dataset's images are stored as."""
        return self.dataset.images().size

    def side(self, name: SideName) -> TrainedSide:
        """Return one of its sides; the network is built when it is first used.

        Raises:
            UnknownNameError: there is no such side.
        """
        if name not in SIDES:
            raise UnknownNameError("side", name, SIDES, key="--side")
        return self._sides[name]

    @cached_property
    def _sides(self) -> dict[str, TrainedSide]:
        return {name: TrainedSide(self, name, self._stage(name)) for name in SIDES}

    def _stage(self, name: SideName) -> Stage:
        """Return the stage that trained a side."""
        stages = self.trial.stages
        return self.session.plan.stages[stages.get("joint") or stages[name]]

    def codes(self, name: SideName) -> NDArray[np.uint8]:
        """Return the codes (N, ceil(B / 8)) of the study's own images of a side, memory-mapped.

        Rows are those of the split of the same name.

        Raises:
            StoreCorrupt: the file is damaged.
        """
        path = self.session.store.read(self._stage(name).id, f"{name}_codes.npy")
        codes: NDArray[np.uint8] = np.load(path, mmap_mode="r", allow_pickle=False)
        return codes

    def rows(self, name: SideName) -> NDArray[np.int64]:
        """Return the rows (N,) of the dataset's images that a side's codes are of."""
        rows: NDArray[np.int64] = getattr(self.dataset.splits(), name)
        return rows


class TrainedSide:
    """One side of a trained trial.

    Args:
        of: the trial.
        name: which side.
        stage: that trained it.

    Attributes:
        name: which side.
        spec: its backbone and input size.
        stage: that trained it.
    """

    def __init__(self, of: TrainedTrial, name: SideName, stage: Stage) -> None:
        self.of = of
        self.name = name
        self.stage = stage
        setup = stage.setup
        self.spec = SideSpec(**(setup["sides"][name] if "sides" in setup else setup["side"]))
        self.head: HeadKind = setup["head"]

    @property
    def size(self) -> int:
        """Side of the network's input, in pixels."""
        return self.spec.size

    @property
    def weights_name(self) -> str:
        """Name of the weights' file in the stage."""
        both = self.stage.kind == "joint" and self.name == "gallery"
        return "gallery_weights.safetensors" if both else "weights.safetensors"

    @property
    def weights_digest(self) -> str:
        """SHA-256 of the weights' file, 64 hex digits."""
        manifest = self.of.session.store.manifest(self.stage.id)
        return str(manifest.files[self.weights_name]["sha256"])

    @property
    def weights(self) -> Path:
        """The weights' file, its digest checked.

        Raises:
            StoreCorrupt: it is damaged.
        """
        return self.of.session.store.read(self.stage.id, self.weights_name)

    @cached_property
    def network(self) -> HashNetwork:
        """The trained network, in eval mode, on the trial's device.

        Raises:
            StoreCorrupt: the weights are damaged.
        """
        from safetensors.torch import load_file

        from methods.networks import build_network

        # All that it starts from is replaced, so that nothing need be fetched for it.
        bare = self.spec.model_copy(update={"pretrained": False, "weights": None})
        seed = int(self.stage.setup["seed"])
        network = build_network(bare, self.head, self.of.bits, seed, self.name)
        network.load_state_dict(load_file(self.weights))
        return network.to(self.of.device).eval().requires_grad_(False)

    def squares(
        self, images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Return images as the dataset would store them.

        Args:
            images: (H, W, 3) uint8 each, of any sizes, or one array of them.

        Returns:
            (n, S, S, 3) uint8, S the size at which the dataset's images are stored; one that has
            this size already is left as it is.
        """
        stored = self.of.stored_size
        made = np.empty((len(images), stored, stored, 3), np.uint8)
        for place, image in enumerate(images):
            made[place] = square(image, stored)
        return made

    def embed(
        self,
        images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | ImageStore,
        rows: NDArray[np.int64] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Return the continuous codes h of images, as at evaluation.

        Args:
            images: (H, W, 3) uint8 each, of any sizes, or one array (n, H, W, 3); or stored
                images, as ``dataset.images()`` has them.
            rows: (n,) which of them, all by default.
            batch_size: images in a forward pass.
            threads: of torch; by default as many as the trial was trained with.
            progress: called with the images done after each batch.

        Returns:
            (n, B) float32.
        """
        from methods.training import encode

        source: Any = images if isinstance(images, ImageStore) else self.squares(images)
        if rows is None:
            rows = np.arange(source.shape[0], dtype=np.int64)
        if len(rows) == 0:
            return np.empty((0, self.of.bits), np.float32)
        views = Views(source, self.size, Augmentation(), seed=0, device=self.of.device)
        with torch_threads(threads or self.of.threads):
            return encode(self.network, views, rows, batch_size=batch_size, progress=progress)

    def encode(
        self,
        images: NDArray[np.uint8] | Sequence[NDArray[np.uint8]] | ImageStore,
        rows: NDArray[np.int64] | None = None,
        *,
        batch_size: int = BATCH_SIZE,
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NDArray[np.uint8]:
        """Return the packed codes (n, ceil(B / 8)) of images; arguments as of :meth:`embed`."""
        h = self.embed(images, rows, batch_size=batch_size, threads=threads, progress=progress)
        return pack(h)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch use so many threads within the block."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
