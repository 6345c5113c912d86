"""From a study to a graph of stages: pure, fast, without Ray, torch or MLflow.

A trial is a path through stages; a stage's id is the digest of everything that determines its
output and of the ids it consumes. Trials that need the same stage get the same id, and with it the
same work.

    centers -> gallery -> query -> metrics          the sides train in the same steps, replayed
    centers -> gallery -> recording -> query -> ... two stages, the frozen gallery recorded once
    centers -> joint -> metrics                     the sides depend on each other
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cluster.resources import Request, ResourceError
from methods.base import HashMethod, Schedule, Task, build_method
from methods.pairs import PAIRS, PairSpec, SideSpec
from methods.recipe import Recipe
from orchestrator.store import FORMAT, digest
from orchestrator.study import Resources, Study
from retrieval.augmentation import Augmentation
from retrieval.datasets import DATASETS, SHORTHANDS, Dataset, open_dataset
from retrieval.errors import InputError
from retrieval.validation import explain_validation
from search_spaces.grid import expand, setting_text, varied

Side = Literal["query", "gallery"]
SIDES: tuple[Side, Side] = ("query", "gallery")
StageKind = Literal["centers", "gallery", "recording", "query", "joint", "metrics"]
KINDS: tuple[StageKind, ...] = ("centers", "gallery", "recording", "query", "joint", "metrics")

METRICS_VERSION = 2
"""Raised whenever the evaluation's numbers may change."""

CENTERS_VERSION = 1
"""Raised whenever hash centers or their assignment may change."""


@dataclass(frozen=True)
class Stage:
    """A unit of work.

    Attributes:
        id: digest of ``identity``.
        kind: what it does.
        identity: all that determines its output, the inputs' ids included.
        inputs: role -> id of the stages it consumes.
        setup: what a worker needs to do it: the identity's values plus paths of this machine.
        request: the resources it asks for; None takes the default of its kind on the cluster.
        label: readable, for progress lines.
        images: (training, forward-only) image passes, for estimates.
    """

    id: str
    kind: StageKind
    identity: dict[str, Any]
    inputs: dict[str, str]
    setup: dict[str, Any]
    request: Request | None
    label: str
    images: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Trial:
    """One cell of the table.

    Attributes:
        id: the id of its metrics stage.
        method, dataset, pair, bits, seed: its coordinates.
        params: all hyperparameters.
        setting: the hyperparameters that the study varies, as text ("gamma=10"), or "".
        query_backbone, gallery_backbone: timm names.
        protocol: the protocol's id.
        at: the cut-off of its mAP.
        stages: kind -> id of the stages on its path.
    """

    id: str
    method: str
    dataset: str
    pair: str
    bits: int
    seed: int
    params: dict[str, Any]
    setting: str
    query_backbone: str
    gallery_backbone: str
    protocol: str
    at: int | str
    stages: dict[str, str]

    @property
    def label(self) -> str:
        """A readable name: ``csch · mnetv3s→rn50 · 32 bit · cifar10 · s0``."""
        method = f"{self.method} {self.setting}" if self.setting else self.method
        return f"{method} · {self.pair} · {self.bits} bit · {self.dataset} · s{self.seed}"


@dataclass
class Plan:
    """All trials of a study and the distinct stages they are made of, inputs before users.

    Attributes:
        study: the study's name.
        trials: in the order of the study.
        stages: id -> stage.
        datasets: opened and split; their images are not decoded.
    """

    study: str
    trials: list[Trial] = field(default_factory=list)
    stages: dict[str, Stage] = field(default_factory=dict)
    datasets: list[Dataset] = field(default_factory=list)
    _known: set[str] = field(default_factory=set, repr=False)

    def add(self, trial: Trial) -> None:
        """Add a trial, unless another spelling of the same one is there already."""
        if trial.id not in self._known:
            self._known.add(trial.id)
            self.trials.append(trial)

    @cached_property
    def uses(self) -> Counter[str]:
        """Stage id -> number of trials that need it."""
        return Counter(i for trial in self.trials for i in trial.stages.values())

    @cached_property
    def users(self) -> dict[str, list[str]]:
        """Stage id -> ids of the stages that consume it."""
        table: dict[str, list[str]] = {stage_id: [] for stage_id in self.stages}
        for stage in self.stages.values():
            for parent in stage.inputs.values():
                table[parent].append(stage.id)
        return table

    def of_kind(self, kind: StageKind) -> list[Stage]:
        """Return the stages of one kind."""
        return [stage for stage in self.stages.values() if stage.kind == kind]

    def trials_of(self, stage_id: str) -> list[Trial]:
        """Return the trials whose path holds the stage."""
        return [trial for trial in self.trials if stage_id in trial.stages.values()]


def build_plan(study: Study, *, folder: Path, home: Path, cwd: Path | None = None) -> Plan:
    """Plan a study.

    Args:
        study: the validated study.
        folder: the study file's folder; a relative path that does not exist from the working
            directory is looked for there.
        home: ASYMBENCH_HOME, where datasets keep their listings.
        cwd: the working directory that relative paths start from; this process' by default, and
            that of the run for a study that was run before.

    Raises:
        InputError: a name, option or combination is wrong; ``key`` is the study's key.
    """
    plan = Plan(study=study.study)
    for kind in KINDS:  # also of kinds that this study does not have: a wrong request stays wrong
        _request(study, kind)
    places = (cwd or Path.cwd(), folder)
    datasets = _datasets(study, places, home)
    plan.datasets = [dataset for _, dataset in datasets]
    pairs = _pairs(study, places)
    settings = _settings(study)
    for given, dataset in datasets:
        augmentation = _augmentation(study, dataset)
        built = [
            (_build(setting, bits, dataset, study), setting.text)
            for setting in settings
            for bits in study.bits
        ]
        for pair in pairs:
            for method, setting in built:
                for seed in study.seeds:
                    _Cell(study, dataset, given, augmentation, pair, method, setting, seed).add_to(
                        plan
                    )
    order = {kind: place for place, kind in enumerate(KINDS)}
    plan.stages = dict(sorted(plan.stages.items(), key=lambda item: order[item[1].kind]))
    return plan


def resolve(path: str, places: tuple[Path, ...]) -> str:
    """Return ``path`` as an absolute one: below the first of the places where it exists."""
    given = Path(path).expanduser()
    found = [place / given for place in places if (place / given).exists()]
    return str((found or [places[0] / given])[0].absolute())


def _datasets(
    study: Study, places: tuple[Path, ...], home: Path
) -> list[tuple[str | dict[str, Any], Dataset]]:
    opened = []
    for index, given in enumerate(study.datasets):
        key = f"datasets.{index}"
        try:
            given = _placed(given, places)
        except InputError as error:
            raise error.located(prefix=key) from None
        try:
            dataset = open_dataset(given, home=home)
            dataset.identity()
            dataset.splits()
            dataset.check_study(at=study.evaluate.at, legacy=study.evaluate.legacy)
            if not dataset.label.isprintable():
                raise InputError("must be printable text", key="label", value=dataset.label)
        except InputError as error:
            raise error.located(prefix=key) from None
        opened.append((given, dataset))
    _refuse_repeats("datasets", [dataset.label for _, dataset in opened], "label")
    return opened


def _placed(given: str | dict[str, Any], places: tuple[Path, ...]) -> str | dict[str, Any]:
    """Return a dataset as a study gives it, with its paths made absolute."""
    if not isinstance(given, dict):
        return given
    given = dict(given)
    name = given.get("name", next((short for short in SHORTHANDS if short in given), None))
    known = DATASETS.get(name) if isinstance(name, str) and name in DATASETS else Dataset
    for option in (*SHORTHANDS, *known.path_options):
        if isinstance(given.get(option), str):
            given[option] = resolve(given[option], places)
    for option in known.dataset_options:
        if isinstance(given.get(option), dict):
            try:
                given[option] = _placed(given[option], places)
            except InputError as error:
                raise error.located(prefix=option) from None
    protocol = given.get("protocol", {})
    if not isinstance(protocol, dict):
        raise InputError("must be a mapping of keys to values", key="protocol", value=protocol)
    if isinstance(protocol.get("split_file"), str):
        given["protocol"] = {**protocol, "split_file": resolve(protocol["split_file"], places)}
    return given


_LONGEST_NAME = 200
"""Characters of a pair's name: two names of timm with their tags fit."""


def _pairs(study: Study, places: tuple[Path, ...]) -> list[PairSpec]:
    pairs = []
    for index, given in enumerate(study.pairs):
        key = f"pairs.{index}"
        try:
            pair = PAIRS.get(given) if isinstance(given, str) else _pair(given, places)
            for side, spec in (("query", pair.query), ("gallery", pair.gallery)):
                try:
                    spec.check()
                except InputError as error:
                    raise error.located(prefix=side) from None
            if len(pair.name) > _LONGEST_NAME:
                raise InputError(
                    f"must have at most {_LONGEST_NAME} characters, this has {len(pair.name)}",
                    key="name",
                )
        except InputError as error:
            raise error.located(prefix=key) from None
        pairs.append(pair)
    _refuse_repeats("pairs", [pair.name for pair in pairs], "name")
    return pairs


def _pair(given: Mapping[str, Any], places: tuple[Path, ...]) -> PairSpec:
    data = dict(given)
    for side in ("query", "gallery"):
        value = data.get(side)
        if isinstance(value, str):
            data[side] = {"backbone": value}
        elif value is not None and not isinstance(value, dict):
            raise InputError(
                "must be a backbone's name, or a mapping with 'backbone'", key=side, value=value
            )
        elif value and isinstance(value.get("weights"), str):
            if not value["weights"]:
                raise InputError("must be a path, this is empty", key=f"{side}.weights")
            data[side] = {**value, "weights": resolve(value["weights"], places)}
        elif value is None:
            data.pop(side, None)  # `query:` with nothing behind it is a missing side
    try:
        return PairSpec(**data)
    except ValidationError as error:
        raise explain_validation(error, PairSpec) from None


def _refuse_repeats(key: str, names: list[str], field: str) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(
                f"{name!r} is there {count} times; tables tell them apart by name, so give each a "
                f"{field!r} of its own",
                key=key,
            )


def _augmentation(study: Study, dataset: Dataset) -> Augmentation:
    base = dataset.default_augmentation.model_dump()
    try:
        return Augmentation(**{**base, **study.train.augmentation})
    except ValidationError as error:
        explained = explain_validation(error, Augmentation)
        if not explained.key:  # a rule about several fields: show those given, not the defaults
            explained.value = study.train.augmentation
        raise explained.located(prefix="train.augmentation") from None


@dataclass(frozen=True)
class _Setting:
    """A method with one point of its grid, the text that tells it apart, and where it stands."""

    method: str
    params: dict[str, Any]
    text: str
    key: str


def _settings(study: Study) -> list[_Setting]:
    settings = []
    grids = study.method_grids()
    for place, grid in enumerate(grids):
        others = [
            other.given
            for at, other in enumerate(grids)
            if other.name == grid.name and at != place
        ]
        names = varied(grid.given, others)
        try:
            for params in expand(grid.name, grid.given):
                values = params.model_dump(mode="json")
                text = setting_text(values, names)
                settings.append(_Setting(grid.name, values, text, grid.key))
        except InputError as error:
            raise error.located(prefix=grid.key) from None
    return settings


def _build(setting: _Setting, bits: int, dataset: Dataset, study: Study) -> HashMethod:
    name = setting.method
    index = dataset.index()
    n_train = len(dataset.splits().train)
    task = Task(
        bits=bits,
        n_classes=len(index.classes),
        n_train=n_train,
        multi_label=index.multi_label,
    )
    try:
        method = build_method(name, setting.params, task)
    except InputError as error:
        if error.key == "bits":
            raise InputError(
                f"{error.problem} (method {name!r} on {dataset.name!r})",
                key="bits",
                value=bits,
                hint=error.hint,
            ) from None
        raise error.located(prefix=setting.key) from None
    query, gallery = study.train.side("query"), study.train.side("gallery")
    together = method.schedule is not Schedule.FROZEN
    for shared in ("epochs", "batch_size"):
        if together and getattr(query, shared) != getattr(gallery, shared):
            raise InputError(
                f"method {name!r} trains both sides in the same steps: {shared} must be equal, "
                f"query has {getattr(query, shared)} and gallery {getattr(gallery, shared)}",
                key=_train_key(study, shared, "query", "gallery"),
            )
    for side in SIDES:
        batch_size = study.train.side(side).batch_size
        if n_train < batch_size:
            raise InputError(
                f"the training split of {dataset.label!r} has {n_train} images, which is less "
                "than one batch",
                key=_train_key(study, "batch_size", side),
                value=batch_size,
            )
    return method


def _train_key(study: Study, field: str, *sides: Side) -> str:
    """Return the key under which the study gives a field of the recipe for one of the sides."""
    for side in sides:
        if field in getattr(study.train, side):
            return f"train.{side}.{field}"
    return f"train.{field}"


def _request(study: Study, kind: StageKind) -> Request | None:
    asked: Resources | None = getattr(study.resources, kind)
    if asked is None:
        return None
    try:
        return Request(
            cpus=1.0 if asked.cpus is None else asked.cpus,
            gpus=asked.gpus or 0.0,
        )
    except ResourceError as error:
        raise InputError(str(error), key=f"resources.{kind}") from None


@dataclass
class _Cell:
    """One trial on its way into the plan."""

    study: Study
    dataset: Dataset
    given: str | dict[str, Any]
    augmentation: Augmentation
    pair: PairSpec
    method: HashMethod
    setting: str
    seed: int

    @property
    def bits(self) -> int:
        return self.method.task.bits

    def add_to(self, plan: Plan) -> None:
        study, method = self.study, self.method
        at = study.evaluate.at or self.dataset.protocol.at
        stages: dict[str, str] = {}
        gallery_method = method.gallery_method()
        joint = method.schedule is Schedule.JOINT or (
            method.schedule is Schedule.SIMULTANEOUS and not study.replay
        )
        centers = self._centers(plan, gallery_method, stages)
        if joint:
            scored = {"joint": self._joint(plan, centers, stages)}
        else:
            gallery = self._gallery(plan, gallery_method, centers, stages)
            inputs = {"gallery": gallery}
            if method.schedule is Schedule.FROZEN and study.replay:
                inputs["recording"] = self._recording(plan, gallery, stages)
            if method.centers_for_query() and centers is not None:
                inputs["centers"] = centers
            scored = {"query": self._query(plan, inputs, stages), "gallery": gallery}
        identity: dict[str, Any] = {
            "kind": "metrics",
            "format": FORMAT,
            "version": METRICS_VERSION,
            "dataset": self.dataset.identity(),
            "at": at,
            "inputs": scored,
        }
        setup: dict[str, Any] = {
            "dataset": self.given,
            "at": at,
            "bits": self.bits,
            "threads": study.train.threads,
        }
        if study.evaluate.legacy:
            legacy = {"legacy": sorted(study.evaluate.legacy)}
            identity |= legacy
            setup |= legacy
        by_values = [mode for mode in study.evaluate.retrieval if mode != "hamming"]
        if by_values:  # these rank in the method's output space
            values: dict[str, Any] = {
                "retrieval": sorted(by_values),
                "method": method.name,
                "method_version": method.version,
                "params": method.params.model_dump(mode="json"),
            }
            identity |= values
            setup |= values
        stages["metrics"] = self._add(plan, "metrics", identity, scored, setup, (0, 0))
        trial = Trial(
            id=stages["metrics"],
            method=method.name,
            dataset=self.dataset.label,
            pair=self.pair.name,
            bits=self.bits,
            seed=self.seed,
            params=method.params.model_dump(mode="json"),
            setting=self.setting,
            query_backbone=self.pair.query.backbone,
            gallery_backbone=self.pair.gallery.backbone,
            protocol=self.dataset.protocol.id,
            at=at,
            stages=stages,
        )
        plan.add(trial)

    # ---- stages --------------------------------------------------------------------------

    @cached_property
    def _common(self) -> dict[str, Any]:
        """What every training stage reads."""
        return {
            "format": FORMAT,
            "dataset": self.dataset.identity(),
            "view_size": self._view_size,
            "augmentation": self.augmentation.model_dump(mode="json"),
            "seed": self.seed,
            "bits": self.bits,
            "threads": self.study.train.threads,
        }

    @property
    def _view_size(self) -> int:
        return max(self.pair.query.size, self.pair.gallery.size)

    def _setup(self, **more: Any) -> dict[str, Any]:
        return {**self._common, "dataset": self.given, **more}

    def _centers(
        self, plan: Plan, gallery_method: HashMethod, stages: dict[str, str]
    ) -> str | None:
        spec = gallery_method.centers()
        if spec is None:
            return None
        identity: dict[str, Any] = {
            "kind": "centers",
            "format": FORMAT,
            "version": CENTERS_VERSION,
            "spec": asdict(spec),
            "bits": self.bits,
            "n_classes": gallery_method.task.n_classes,
            "seed": self.seed,
        }
        setup = {**identity, "dataset": self.given, "threads": self.study.train.threads}
        images = 0
        if spec.needs:  # the assignment looks at the initial networks' outputs on the images
            identity |= {
                "dataset": self.dataset.identity(),
                "head": gallery_method.head,
                "threads": self.study.train.threads,
                "sides": {side: self._side(side).identity() for side in spec.needs},
            }
            setup |= {
                "head": gallery_method.head,
                "sides": {side: self._side(side).model_dump(mode="json") for side in spec.needs},
            }
            images = gallery_method.task.n_train * len(spec.needs)
        stages["centers"] = self._add(plan, "centers", identity, {}, setup, (0, images))
        return stages["centers"]

    def _gallery(
        self, plan: Plan, method: HashMethod, centers: str | None, stages: dict[str, str]
    ) -> str:
        recipe = self.study.train.side("gallery")
        simultaneous = method.schedule is Schedule.SIMULTANEOUS
        inputs = {"centers": centers} if centers is not None else {}
        values = {
            "head": method.head,
            "recipe": recipe.model_dump(mode="json"),
            "validate_every": self.study.train.validate_every,
            "recording": method.recording if simultaneous else None,
            "method": method.name,
            "method_version": method.version,
            "params": method.params.read_by("gallery"),
        }
        identity = {
            "kind": "gallery",
            **self._common,
            **values,
            "side": self.pair.gallery.identity(),
            "inputs": inputs,
        }
        setup = self._setup(**values, side=self.pair.gallery.model_dump(mode="json"))
        passes = self._passes(recipe)
        forward = len(self.dataset.splits().gallery)
        stages["gallery"] = self._add(plan, "gallery", identity, inputs, setup, (passes, forward))
        return stages["gallery"]

    def _recording(self, plan: Plan, gallery: str, stages: dict[str, str]) -> str:
        recipe = self.study.train.side("query")
        teacher = self.method.gallery_method()
        inputs = {"gallery": gallery}
        values = {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "precision": self.study.train.side("gallery").precision,
            "recording": self.method.recording,
        }
        identity = {"kind": "recording", **self._common, **values, "inputs": inputs}
        setup = self._setup(
            **values, side=self.pair.gallery.model_dump(mode="json"), head=teacher.head
        )
        images = (0, self._passes(recipe))
        stages["recording"] = self._add(plan, "recording", identity, inputs, setup, images)
        return stages["recording"]

    def _query(self, plan: Plan, inputs: dict[str, str], stages: dict[str, str]) -> str:
        recipe = self.study.train.side("query")
        method = self.method
        values = {
            "head": method.head,
            "recipe": recipe.model_dump(mode="json"),
            "validate_every": self.study.train.validate_every,
            "recording": method.recording,
            "method": method.name,
            "method_version": method.version,
            "params": method.params.read_by("query"),
        }
        identity = {
            "kind": "query",
            **self._common,
            **values,
            "side": self.pair.query.identity(),
            "inputs": inputs,
        }
        setup = self._setup(
            **values,
            side=self.pair.query.model_dump(mode="json"),
            gallery_side=self.pair.gallery.model_dump(mode="json"),
            gallery_head=method.gallery_method().head,
            gallery_precision=self.study.train.side("gallery").precision,
            all_params=method.params.model_dump(mode="json"),
        )
        images = (self._passes(recipe), len(self.dataset.splits().query))
        stages["query"] = self._add(plan, "query", identity, inputs, setup, images)
        return stages["query"]

    def _joint(self, plan: Plan, centers: str | None, stages: dict[str, str]) -> str:
        recipes = {side: self.study.train.side(side) for side in SIDES}
        inputs = {"centers": centers} if centers is not None else {}
        values = {
            "head": self.method.head,
            "recipes": {side: recipe.model_dump(mode="json") for side, recipe in recipes.items()},
            "validate_every": self.study.train.validate_every,
            "method": self.method.name,
            "method_version": self.method.version,
            "params": self.method.params.model_dump(mode="json"),
        }
        identity = {
            "kind": "joint",
            **self._common,
            **values,
            "sides": {side: self._side(side).identity() for side in ("query", "gallery")},
            "inputs": inputs,
        }
        setup = self._setup(
            **values,
            sides={
                side: self._side(side).model_dump(mode="json") for side in ("query", "gallery")
            },
        )
        splits = self.dataset.splits()
        trained = self._passes(recipes["gallery"])
        answered = trained * (len(self.method.phases) - 1)  # one side trains, the other answers
        images = (trained, answered + len(splits.gallery) + len(splits.query))
        stages["joint"] = self._add(plan, "joint", identity, inputs, setup, images)
        return stages["joint"]

    def _side(self, name: str) -> SideSpec:
        return self.pair.query if name == "query" else self.pair.gallery

    def _passes(self, recipe: Recipe) -> int:
        n_train = self.method.task.n_train
        return recipe.epochs * (n_train // recipe.batch_size) * recipe.batch_size

    def _add(
        self,
        plan: Plan,
        kind: StageKind,
        identity: dict[str, Any],
        inputs: dict[str, str],
        setup: dict[str, Any],
        images: tuple[int, int],
    ) -> str:
        stage_id = digest(identity)
        if stage_id not in plan.stages:
            plan.stages[stage_id] = Stage(
                id=stage_id,
                kind=kind,
                identity=identity,
                inputs=dict(inputs),
                setup=setup,
                request=_request(self.study, kind),
                label=self._label(kind),
                images=images,
            )
        return stage_id

    def _label(self, kind: StageKind) -> str:
        teacher = self.method.gallery_method().name
        where = f"{self.bits} bit · {self.dataset.label} · s{self.seed}"
        if kind in ("gallery", "recording"):
            return f"{kind} {teacher} · {self.pair.gallery.backbone} · {where}"
        if kind == "centers":
            return f"centers {teacher} · {where}"
        method = f"{self.method.name} {self.setting}".strip()
        return f"{kind} {method} · {self.pair.name} · {where}"
