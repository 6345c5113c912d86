"""What each kind of stage does, in whatever process it is asked to.

A stage reads its inputs from the store and its images from the shared image store, trains or
computes, and commits files and numbers under its id. It is interrupted anywhere and goes on from
its last checkpoint, to the same bytes.

A stage that trains with several workers runs in as many processes. All do the same; the first of
them, which has the lease, reports, writes and commits, and the others only compute.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from cluster.accelerators import cpu_model
from cluster.peers import DISCONNECTED, PeerFailed, node_address, node_id, start_peers
from methods.base import METHODS, CentersSpec, HashMethod, Schedule, Task
from methods.pairs import SideSpec
from methods.recipe import Recipe
from orchestrator.checkpoints import Checkpoints, save_tensors
from orchestrator.errors import StageBusy
from orchestrator.recording import Recorder, Replay, epoch_name, save_array
from orchestrator.store import Manifest, StageStore, open_store, write_json
from orchestrator.versions import installed
from retrieval.augmentation import Augmentation, Views
from retrieval.codes import pack
from retrieval.datasets import Dataset, open_dataset
from retrieval.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from methods.networks import HashNetwork
    from methods.parallel import Group
    from methods.training import EpochReport, Learner, Trainer, TrainingData
    from retrieval.datasets.base import Score

Report = Callable[[dict[str, Any]], None]
"""Called after each epoch (and now and then while encoding) with progress for the driver."""

Side = Literal["query", "gallery"]

_CAUSE_SECONDS = 30.0
"""How long a worker that lost the others waits for one of them to say why."""


@dataclass(frozen=True)
class Work:
    """One stage as handed to a worker; plain JSON values all through.

    Attributes:
        id, kind, identity, inputs, setup: of the plan's stage.
        home: ASYMBENCH_HOME.
        device: "auto", "cpu" or "cuda".
        store: where the stage store is, a path or URI; "" is below the home.
        checkpoint_epochs: epochs between two checkpoints.
        checkpoint_seconds: least seconds between two checkpoints.
        attempt: which start of the stage this is in its run, from 1.
        run: the id of the run that started it.
        watched: whether a search may stop it at the end of an epoch.
    """

    id: str
    kind: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    setup: dict[str, Any]
    home: str
    device: str = "auto"
    store: str = ""
    checkpoint_epochs: int = 1
    checkpoint_seconds: float = 0.0
    attempt: int = 1
    run: str = ""
    watched: bool = False

    @property
    def workers(self) -> int:
        """How many processes do the stage together."""
        recipes = self.setup.get("recipes") or {"own": self.setup.get("recipe") or {}}
        return max(int(recipe.get("workers", 1)) for recipe in recipes.values())


@dataclass
class Outcome:
    """What a stage's code hands to the store: numbers, and what they cost."""

    result: dict[str, Any]
    cost: dict[str, Any] = field(default_factory=dict)


def run_stage(work: Work, report: Report, *, wait: float = -1) -> Manifest:
    """Do a stage, or wait for whoever is doing it; return its manifest.

    Args:
        work: the stage.
        report: receives progress.
        wait: seconds to wait for another who is at it; negative waits for ever.

    Raises:
        StageBusy: somebody else is at it.
        Exception: whatever the stage's code raises; the work folder keeps its checkpoints.
    """
    store = open_store(Path(work.home), work.store)
    with ExitStack() as held:
        try:
            held.enter_context(store.lease(work.id, wait=wait))
        except TimeoutError:
            raise StageBusy(f"somebody else is at work on stage {work.id[:12]}") from None
        if store.is_done(work.id):
            return store.manifest(work.id)
        started = time.perf_counter()
        place = {"host": platform.node(), "pid": os.getpid(), "node": node_id()}
        report({"event": "placed", **place, "attempt": work.attempt})
        with _workers(work) as group:
            runner = _Runner(work, store, report, group)
            outcome = runner.run()
        cost = {
            "seconds": round(time.perf_counter() - started + runner.earlier_seconds, 3),
            "device": runner.device_name,
            "threads": work.setup.get("threads", 1),
            "workers": work.workers,
            "cpu": cpu_model(),
            "attempt": work.attempt,
            "resumed": runner.earlier_seconds > 0,
            "peak_memory_mb": runner.peak_memory_mb(),
            "versions": installed(),
            **outcome.cost,
        }
        return store.commit(work.id, work.kind, work.identity, outcome.result, cost)


# ---- several workers ---------------------------------------------------------------------


@contextmanager
def _workers(work: Work) -> Iterator[Group | None]:
    """Start the other workers of a stage, and connect with them; None where there are none.

    Raises:
        PeerFailed: one of them failed, and how; the others, this one too, end with it.
    """
    size = work.workers
    if size == 1:
        yield None
        return
    from methods import parallel

    host = node_address()
    meeting = parallel.listen(host, size)
    given = {"address": f"{host}:{meeting.port}", "work": asdict(work)}
    with start_peers(
        "orchestrator.stages:run_beside",
        [{"rank": rank, **given} for rank in range(1, size)],
        on_failure=parallel.abort,
    ) as peers:
        while not parallel.arrived(meeting, size):
            peers.check()
            time.sleep(0.05)
        try:
            with parallel.joined(meeting, 0, size, _take_device(work.device, 0)) as group:
                yield group
        except parallel.Disconnected as error:
            cause = peers.cause(_CAUSE_SECONDS)
            if cause is None:
                raise
            raise PeerFailed(cause) from error


def run_beside(rank: int, address: str, work: dict[str, Any]) -> dict[str, Any] | None:
    """Do a stage as one of its other workers, which writes nothing.

    Args:
        rank: of this worker, from 1.
        address: where the workers meet.
        work: the fields of the :class:`Work`.

    Returns:
        None, or how it failed.
    """
    from methods import parallel
    from orchestrator.faults import explain_failure

    given = Work(**work)
    size = given.workers
    try:
        device = _take_device(given.device, rank)
        with parallel.joined(parallel.reach(address, size), rank, size, device) as group:
            store = open_store(Path(given.home), given.store)
            _Runner(given, store, lambda note: None, group).run()
    except parallel.Disconnected as error:
        return {"kind": DISCONNECTED, "reason": str(error), "detail": ""}
    except Exception as error:  # told to the first worker, which raises it
        failure = explain_failure(error)
        return {**failure, "reason": f"worker {rank + 1} of {size}: {failure['reason']}"}
    return None


def _take_device(wanted: str, rank: int) -> str:
    """Return "cuda" or "cpu"; of several GPUs that this process sees, the rank's becomes current.

    Raises:
        InputError: a GPU is wanted and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(rank % torch.cuda.device_count())
        return "cuda"
    if wanted == "cuda":
        raise InputError(
            "this stage was given no GPU; set resources.<stage>.gpus, or device: auto",
            key="resources.device",
            value="cuda",
        )
    return "cpu"


class _Runner:
    """One stage in work: its dataset, device, folder, and the code of each kind."""

    def __init__(
        self, work: Work, store: StageStore, report: Report, group: Group | None = None
    ) -> None:
        self.work = work
        self._group = group
        self.setup = work.setup
        self.store = store
        self.report = report
        self.folder = store.work_folder(work.id)
        self.home = Path(work.home)
        self.earlier_seconds = 0.0
        self.history: list[dict[str, Any]] = []
        self._started = time.perf_counter()

    def run(self) -> Outcome:
        if self.work.kind != "metrics":
            self._settle_process()
        steps = {
            "centers": self.centers,
            "gallery": self.gallery,
            "recording": self.recording,
            "query": self.query,
            "joint": self.joint,
            "metrics": self.metrics,
        }
        return steps[self.work.kind]()

    # ---- surroundings --------------------------------------------------------------------

    def _settle_process(self) -> None:
        """Put a worker that other stages may have used into one known state."""
        import gc

        import torch

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        gc.collect()
        try:  # restart the peak of resident memory, which a reused worker brings along
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            pass  # not on Linux, or not allowed: the peak is then that of the worker's life
        torch.set_num_threads(int(self.setup.get("threads", 1)))
        torch.set_default_dtype(torch.float32)
        torch.set_grad_enabled(True)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # On CPU every operation that we use has a deterministic form; on CUDA a backbone may hold
        # one that has not, and then says so instead of stopping.
        torch.use_deterministic_algorithms(True, warn_only=self.device == "cuda")
        if self.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @cached_property
    def device(self) -> str:
        return _take_device(self.work.device, self.group.rank)

    @property
    def group(self) -> Group:
        """The workers that do this stage together."""
        from methods.parallel import ALONE

        return self._group or ALONE

    @property
    def leads(self) -> bool:
        """Whether this is the worker that writes and reports."""
        return self._group is None or self._group.leads

    @property
    def device_name(self) -> str:
        if self.work.kind == "metrics" or self.device == "cpu":
            return "cpu"
        import torch

        return str(torch.cuda.get_device_name())

    def peak_memory_mb(self) -> float:
        """Peak of the GPU's allocations, or of this process' resident memory."""
        if self.work.kind != "metrics" and self.device == "cuda":
            import torch

            return round(torch.cuda.max_memory_allocated() / 2**20, 1)
        status = Path("/proc/self/status")
        for line in status.read_text().splitlines() if status.exists() else ():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
        import resource

        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)

    @cached_property
    def dataset(self) -> Dataset:
        dataset = open_dataset(self.setup["dataset"], home=self.home)
        planned = self.work.identity.get("dataset")
        if planned is not None and dataset.identity() != planned:
            raise InputError(
                f"dataset {dataset.name!r} changed on disk since the study was planned",
                key="datasets",
                hint="run the study again: changed data are another trial",
            )
        return dataset

    def views(self, size: int) -> Views:
        """Return the dataset's views at ``size`` pixels."""
        augmentation = Augmentation(**self.setup.get("augmentation") or {})
        seed = int(self.setup["seed"])
        return Views(self.dataset.images(), size, augmentation, seed, device=self.device)

    def data(self) -> TrainingData:
        from methods.training import TrainingData

        train = self.dataset.splits().train
        index = self.dataset.index()
        return TrainingData(
            self.views(int(self.setup["view_size"])),
            train,
            index.labels[train],
            n_classes=len(index.classes),
            bits=int(self.setup["bits"]),
            seed=int(self.setup["seed"]),
            device=self.device,
        )

    def method(self, params: dict[str, Any]) -> HashMethod:
        index = self.dataset.index()
        cls = METHODS.get(self.setup["method"])
        task = Task(
            bits=int(self.setup["bits"]),
            n_classes=len(index.classes),
            n_train=len(self.dataset.splits().train),
            multi_label=index.multi_label,
        )
        return cls(cls.Params.parse(params), task)

    def network(self, side: dict[str, Any], head: str, name: Side) -> HashNetwork:
        from methods.networks import build_network

        spec = SideSpec(**side)
        network = build_network(
            spec,
            head,  # type: ignore[arg-type]
            int(self.setup["bits"]),
            int(self.setup["seed"]),
            name,
        )
        return network.to(self.device)

    def learner(
        self,
        network: HashNetwork,
        recipe: Recipe,
        name: Side,
        steps: int,
        momentum: float | None = None,
    ) -> Learner:
        from methods.networks import parameter_groups
        from methods.training import Learner

        return Learner(
            name,
            network,
            parameter_groups(network),
            recipe,
            steps_per_epoch=steps,
            seed=int(self.setup["seed"]),
            momentum=momentum,
            group=self.group,
        )

    def state(self) -> dict[str, Tensor]:
        """Return what other stages give to the method: the centers, where it consumes any."""
        import torch

        if "centers" not in self.work.inputs:
            return {}
        centers = np.load(self.store.read(self.work.inputs["centers"], "centers.npy"))
        return {"centers": torch.from_numpy(centers.astype(np.float32)).to(self.device)}

    # ---- training ------------------------------------------------------------------------

    def checkpoints(self) -> Checkpoints:
        """Return what this stage goes on from, and saves for the next to go on from."""
        return self.store.checkpoints(
            self.work.id,
            epochs=self.work.checkpoint_epochs,
            seconds=self.work.checkpoint_seconds,
        )

    def train(self, trainer: Trainer, epochs: int) -> dict[str, Any]:
        """Run a trainer to its end, with checkpoints and reports; return its speed."""
        import torch

        checkpoints = self.checkpoints() if self.leads else None  # the lease's holder has them
        images = seconds = 0.0
        found = checkpoints.load() if checkpoints is not None else None
        given = {**found[1], "epoch": torch.tensor(found[0])} if found else None
        tensors = self.group.broadcast(given)
        if tensors is not None:
            trainer.load(tensors, int(tensors["epoch"]))
        if found is not None:
            notes = found[2]
            self.history = notes["history"]
            self.earlier_seconds = notes["seconds"]
            images, seconds = notes["images"], notes["training_seconds"]
            self.report({"event": "resumed", "epoch": found[0]})
            self._tell_again(epochs)
        for report in trainer.run():
            images += report.images
            seconds += report.seconds
            self.history.append({"epoch": report.epoch, **report.metrics})
            # After the last epoch in any case: encoding a gallery can take long.
            if checkpoints is not None and checkpoints.due(trainer.epoch, epochs):
                spent = time.perf_counter() - self._started + self.earlier_seconds
                notes = {
                    "history": self.history,
                    "seconds": spent,
                    "images": images,
                    "training_seconds": seconds,
                }
                checkpoints.save(trainer.epoch, trainer.tensors(), notes)
            self._report_epoch(report, epochs)  # after the checkpoint: what is told is kept
        if self.leads:
            write_json(self.folder / "history.json", self.history)
        return {
            "training_seconds": round(seconds, 3),
            "images_per_second": round(images / seconds, 1) if seconds else 0.0,
        }

    def _report_epoch(self, report: EpochReport, epochs: int) -> None:
        speed = report.images / report.seconds if report.seconds else 0.0
        self._tell(report.epoch, epochs, {**report.metrics, "images_per_second": speed})

    def _tell_again(self, epochs: int) -> None:
        """Tell a search the epochs before: it may not have heard of them, or not as this trial."""
        for entry in self.history if self.work.watched else ():
            done = int(entry["epoch"]) + 1
            self.report({"event": "again", "epoch": done, "epochs": epochs, "metrics": entry})

    def _tell(self, epoch: int, epochs: int, metrics: dict[str, float]) -> None:
        """Tell the driver, and whoever asks for the status, that this 0-based epoch is done."""
        if not self.leads:
            return
        note = {"epoch": epoch + 1, "epochs": epochs, "metrics": metrics}
        write_json(
            self.folder / "progress.json", {**note, "pid": os.getpid(), "time": time.time()}
        )
        self.report({"event": "epoch", **note})

    def embed(self, network: HashNetwork, side: dict[str, Any], split: str) -> NDArray[np.float32]:
        """Return the continuous codes h (n, B) of a split, each side at its own input size."""
        from methods.training import encode

        rows = getattr(self.dataset.splits(), split)
        h = encode(network, self.views(int(side["size"])), rows, group=self.group)
        if not np.isfinite(h).all():
            from methods.training import TrainingDiverged

            raise TrainingDiverged(f"the network's outputs on the {split} split are not finite")
        return h

    def encode(self, network: HashNetwork, side: dict[str, Any], split: str) -> NDArray[np.uint8]:
        """Return packed codes of a split."""
        return pack(self.embed(network, side, split))

    def save_codes(self, network: HashNetwork, side: dict[str, Any], split: Side) -> None:
        """Keep a split's codes twice: packed, and continuous for retrieval by embeddings."""
        h = self.embed(network, side, split)
        self.save(f"{split}_codes.npy", pack(h))
        self.save(f"{split}_embeddings.npy", h)

    def validation_map(
        self, query_codes: NDArray[np.uint8], gallery_codes: NDArray[np.uint8]
    ) -> float:
        from retrieval.metrics import expected_map

        splits, labels = self.dataset.splits(), self.dataset.index().labels
        return expected_map(
            query_codes,
            gallery_codes,
            labels[splits.validation_query],
            labels[splits.validation_gallery],
            bits=int(self.setup["bits"]),
        )

    def validates(self, epoch: int, epochs: int) -> bool:
        """Whether to validate after this 0-based epoch: every few, and the last."""
        every = int(self.setup["validate_every"])
        return every > 0 and ((epoch + 1) % every == 0 or epoch + 1 == epochs)

    def save(self, name: str, array: NDArray[np.generic]) -> None:
        if self.leads:
            save_array(self.folder / name, array)

    def save_weights(self, network: HashNetwork, name: str) -> None:
        if self.leads:
            save_tensors(self.folder / name, network.state_dict())

    def frozen_gallery(self, side: dict[str, Any], head: str) -> HashNetwork:
        """Return the network of the gallery stage that this stage consumes."""
        from safetensors.torch import load_file

        network = self.network(side, head, "gallery")
        weights = self.store.read(self.work.inputs["gallery"], "weights.safetensors")
        network.load_state_dict(load_file(weights))
        return network

    def training_embeddings(self) -> NDArray[np.float32]:
        """Return the frozen gallery's h_g (N, B) of the training images without augmentation."""
        splits = self.dataset.splits()
        if not np.isin(splits.train, splits.gallery).all():  # a protocol that keeps them apart
            side = self.setup["gallery_side"]
            return self.embed(self.frozen_gallery(side, self.setup["gallery_head"]), side, "train")
        path = self.store.read(self.work.inputs["gallery"], "gallery_embeddings.npy")
        # Training images are gallery images, so they have been encoded already.
        rows = np.searchsorted(splits.gallery, splits.train)
        return np.asarray(np.load(path, mmap_mode="r")[rows])

    # ---- the kinds -----------------------------------------------------------------------

    def centers(self) -> Outcome:
        """Draw hash centers and give them to the classes."""
        from methods.assignment import assign_centers, class_centers
        from methods.centers import make_centers
        from methods.training import encode

        spec = CentersSpec(**self.setup["spec"])
        seed, bits = int(self.setup["seed"]), int(self.setup["bits"])
        centers, notes = make_centers(int(self.setup["n_classes"]), bits, spec, seed)
        by_side: dict[Side, NDArray[np.float64]] = {}
        if spec.needs:
            splits, index = self.dataset.splits(), self.dataset.index()
            for name in spec.needs:
                side = self.setup["sides"][name]
                network = self.network(side, self.setup["head"], name)
                outputs = encode(network, self.views(int(side["size"])), splits.train)
                by_side[name] = class_centers(
                    [(outputs, index.labels[splits.train])],
                    len(index.classes),
                    bits,
                    normalize_first=spec.normalize_first,
                    class_names=index.classes,
                )
        n_classes = int(self.setup["n_classes"])
        assigned, assignment = assign_centers(
            centers, spec, by_side, n_classes=n_classes, seed=seed
        )
        self.save("centers.npy", assigned)
        return Outcome(result={"centers": dict(notes), "assignment": assignment})

    def gallery(self) -> Outcome:
        """Train a gallery network; record its codes; encode the gallery."""
        from methods.training import Trainer

        setup = self.setup
        recipe, data = Recipe(**setup["recipe"]), self.data()
        network = self.network(setup["side"], setup["head"], "gallery")
        method = self.method(setup["params"])
        steps = data.steps(recipe.batch_size)
        learner = self.learner(network, recipe, "gallery", steps, method.momentum)
        kind = setup["recording"]
        sink = None
        if kind and self.leads:
            sink = Recorder(self.folder, kind, len(data), int(setup["bits"]))

        def validate(epoch: int) -> dict[str, float]:
            if not self.validates(epoch, recipe.epochs):
                return {}
            gallery_codes = self.encode(network, setup["side"], "validation_gallery")
            query_codes = self.encode(network, setup["side"], "validation_query")
            if not self.leads:
                return {}
            if kind:
                self.save(f"validation/epoch-{epoch:05d}.npy", gallery_codes)
            return {"validation/map_symmetric": self.validation_map(query_codes, gallery_codes)}

        trainer = Trainer(
            method,
            data,
            gallery=learner,
            sink=sink,
            state=self.state(),
            validate=validate,
        )
        speed = self.train(trainer, recipe.epochs)
        self._finish_gallery(network, setup["side"], "weights.safetensors")
        result = {"final": self.history[-1], **_sizes(network, setup["side"])}
        return Outcome(result=result, cost=speed)

    def _finish_gallery(self, network: HashNetwork, side: dict[str, Any], weights: str) -> None:
        self.save_weights(network, weights)
        self.report({"event": "encoding"})
        self.save_codes(network, side, "gallery")
        self.save("gallery_network_query_codes.npy", self.encode(network, side, "query"))
        self.save("validation_gallery.npy", self.encode(network, side, "validation_gallery"))

    def recording(self) -> Outcome:
        """Record a frozen gallery's codes of the views that query networks will train on."""
        from methods.training import LiveTeacher, record

        setup, data = self.setup, self.data()
        recipe = Recipe(epochs=setup["epochs"], batch_size=setup["batch_size"])
        network = self.frozen_gallery(setup["side"], setup["head"])
        teacher = LiveTeacher(network, setup["recording"], setup["precision"])
        sink = Recorder(self.folder, setup["recording"], len(data), int(setup["bits"]))
        checkpoints = self.checkpoints()
        found = checkpoints.load()
        for epoch in record(teacher, data, recipe, sink, start=found[0] if found else 0):
            if checkpoints.due(epoch + 1, recipe.epochs):
                checkpoints.save(epoch + 1, {}, {})
            self._tell(epoch, recipe.epochs, {})
        return Outcome(result={"epochs": recipe.epochs})

    def query(self) -> Outcome:
        """Train a query network on recorded codes, or on a live frozen gallery."""
        from methods.training import CodeSource, LiveTeacher, Trainer

        setup, inputs = self.setup, self.work.inputs
        recipe, data = Recipe(**setup["recipe"]), self.data()
        method = self.method(setup["all_params"])
        network = self.network(setup["side"], setup["head"], "query")
        learner = self.learner(network, recipe, "query", data.steps(recipe.batch_size))
        simultaneous = method.schedule is Schedule.SIMULTANEOUS
        recorded = inputs["gallery"] if simultaneous else inputs.get("recording")
        source: CodeSource
        if recorded is not None:
            for epoch in range(recipe.epochs):  # before training, so that nothing is in vain
                self.store.read(recorded, epoch_name(epoch))

            def check(name: str) -> None:  # and again when it is read, which can be days later
                self.store.read(recorded, name)

            folder, bits = self.store.folder(recorded), int(setup["bits"])
            source = Replay(folder, setup["recording"], bits, self.device, check=check)
        else:
            teacher = self.frozen_gallery(setup["gallery_side"], setup["gallery_head"])
            source = LiveTeacher(
                teacher, setup["recording"], setup["gallery_precision"], self.group
            )

        def validate(epoch: int) -> dict[str, float]:
            if not self.validates(epoch, recipe.epochs):
                return {}
            name = (
                f"validation/epoch-{epoch:05d}.npy" if simultaneous else "validation_gallery.npy"
            )
            gallery_codes = np.load(self.store.read(inputs["gallery"], name))
            query_codes = self.encode(network, setup["side"], "validation_query")
            if not self.leads:
                return {}
            return {"validation/map": self.validation_map(query_codes, gallery_codes)}

        embeddings = self.training_embeddings() if method.reads_embeddings else None
        trainer = Trainer(
            method,
            data,
            query=learner,
            source=source,
            state=self.state(),
            embeddings=embeddings,
            validate=validate,
        )
        speed = self.train(trainer, recipe.epochs)
        self.save_weights(network, "weights.safetensors")
        self.save_codes(network, setup["side"], "query")
        result = {"final": self.history[-1], **_sizes(network, setup["side"])}
        return Outcome(result=result, cost=speed)

    def joint(self) -> Outcome:
        """Train both networks in the same steps."""
        from methods.training import Trainer

        setup, data = self.setup, self.data()
        recipes = {name: Recipe(**values) for name, values in setup["recipes"].items()}
        epochs = recipes["query"].epochs
        networks = {
            name: self.network(setup["sides"][name], setup["head"], name)
            for name in ("query", "gallery")
        }
        learners = {
            name: self.learner(
                networks[name],
                recipes[name],
                name,  # type: ignore[arg-type]
                data.steps(recipes[name].batch_size),
            )
            for name in networks
        }

        def validate(epoch: int) -> dict[str, float]:
            if not self.validates(epoch, epochs):
                return {}
            sides = setup["sides"]
            gallery_codes = self.encode(
                networks["gallery"], sides["gallery"], "validation_gallery"
            )
            symmetric = self.encode(networks["gallery"], sides["gallery"], "validation_query")
            query_codes = self.encode(networks["query"], sides["query"], "validation_query")
            if not self.leads:
                return {}
            return {
                "validation/map": self.validation_map(query_codes, gallery_codes),
                "validation/map_symmetric": self.validation_map(symmetric, gallery_codes),
            }

        trainer = Trainer(
            self.method(setup["params"]),
            data,
            query=learners["query"],
            gallery=learners["gallery"],
            state=self.state(),
            validate=validate,
        )
        speed = self.train(trainer, epochs)
        self._finish_gallery(
            networks["gallery"], setup["sides"]["gallery"], "gallery_weights.safetensors"
        )
        self.save_weights(networks["query"], "weights.safetensors")
        self.save_codes(networks["query"], setup["sides"]["query"], "query")
        result: dict[str, Any] = {"final": self.history[-1]}
        for name, network in networks.items():
            prefix = "gallery_" if name == "gallery" else ""
            sizes = _sizes(network, setup["sides"][name])
            result |= {f"{prefix}{key}": value for key, value in sizes.items()}
        return Outcome(result=result, cost=speed)

    def metrics(self) -> Outcome:
        """Score the test queries, once."""
        inputs = self.work.inputs
        query_stage = inputs.get("joint") or inputs["query"]
        gallery_stage = inputs.get("joint") or inputs["gallery"]
        query_codes = np.load(self.store.read(query_stage, "query_codes.npy"))
        gallery_codes = np.load(self.store.read(gallery_stage, "gallery_codes.npy"))
        both = np.load(self.store.read(gallery_stage, "gallery_network_query_codes.npy"))
        scored, symmetric = self._scores(query_codes, both, gallery_codes)
        evaluation = scored.to_json()
        write_json(self.folder / "evaluation.json", evaluation)
        self.save("average_precision.npy", scored.average_precision)
        result = {
            name: value
            for name, value in evaluation.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        legacy = {f"map_{name}": value for name, value in evaluation.get("legacy", {}).items()}
        by_values = (
            self._by_values(query_stage, gallery_stage) if "retrieval" in self.setup else {}
        )
        return Outcome(result={**result, "map_symmetric": symmetric, **legacy, **by_values})

    def _scores(
        self,
        query_codes: NDArray[np.uint8],
        both: NDArray[np.uint8],
        gallery_codes: NDArray[np.uint8],
    ) -> tuple[Score, float]:
        """Score codes of the query network, and return mAP of the gallery network's beside it.

        A dataset with ground truth of its own scores them; otherwise labels tell who matches.
        """
        from retrieval.metrics import evaluate, expected_map

        bits, at = int(self.setup["bits"]), self.setup["at"]
        own = self.dataset.score(query_codes, gallery_codes, bits)
        if own is not None:
            symmetric = self.dataset.score(both, gallery_codes, bits)
            assert symmetric is not None
            return own, float(symmetric.to_json()["map"])
        splits, labels = self.dataset.splits(), self.dataset.index().labels
        truth = (labels[splits.query], labels[splits.gallery])
        scored = evaluate(
            query_codes,
            gallery_codes,
            *truth,
            bits=bits,
            at=at,
            legacy=self.setup.get("legacy", ()),
            threads=int(self.setup["threads"]),
        )
        return scored, expected_map(both, gallery_codes, *truth, bits=bits, at=at)

    def _by_values(self, query_stage: str, gallery_stage: str) -> dict[str, float]:
        """Score rankings by continuous codes, in the output space that the method works in."""
        import torch

        method = self.method(self.setup["params"])

        def embeddings(stage: str, name: str) -> NDArray[np.float32]:
            h = np.load(self.store.read(stage, name))
            squashed: NDArray[np.float32] = method.squash(torch.from_numpy(h)).numpy()
            return squashed

        query = embeddings(query_stage, "query_embeddings.npy")
        gallery = embeddings(gallery_stage, "gallery_embeddings.npy")
        return {
            f"map_{mode}": self._map_by_values(query, gallery, mode)
            for mode in self.setup["retrieval"]
        }

    def _map_by_values(
        self,
        query: NDArray[np.float32],
        gallery: NDArray[np.float32],
        mode: Literal["cosine", "asymmetric"],
    ) -> float:
        from retrieval.metrics.embeddings import expected_map_embeddings

        own = self.dataset.score_embeddings(query, gallery, mode)
        if own is not None:
            return own
        splits, labels = self.dataset.splits(), self.dataset.index().labels
        return expected_map_embeddings(
            query,
            gallery,
            labels[splits.query],
            labels[splits.gallery],
            at=self.setup["at"],
            mode=mode,
        )


def _sizes(network: HashNetwork, side: dict[str, Any]) -> dict[str, int]:
    """Return the parameters of a network, and the operations of one image at its input size."""
    from methods.networks import count_flops, count_parameters

    return {
        "parameters": count_parameters(network),
        "flops": count_flops(network, int(side["size"])),
    }
