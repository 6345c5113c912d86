"""From a study to a graph of stages: pure, fast, without Ray, torch or MLflow.

A trial is a path through stages; a stage's id is the digest of everything that determines its
output and of the ids it consumes. Trials that need the same stage get the same id, and with it the
same work.

    centers -> gallery -> query -> metrics          the sides train in the same steps, replayed
    centers -> gallery -> recording -> query -> ... two stages, the frozen gallery recorded once
    centers -> joint -> metrics                     the sides depend on each other
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from cluster.resources import Asked, ResourceError, parse_memory
from methods.base import METHODS, HashMethod, Schedule, Task, build_method
from methods.pairs import PAIRS, PairSpec, SideSpec
from orchestrator.store import FORMAT, canonical, digest
from orchestrator.study import MethodGrid, Resources, Study
from retrieval.augmentation import Augmentation
from retrieval.datasets import DATASETS, SHORTHANDS, Dataset, open_dataset
from retrieval.errors import InputError, UnknownNameError
from retrieval.validation import explain_validation
from search_spaces.defaults import space_of
from search_spaces.grid import expand, setting_text, varied
from search_spaces.space import Fixed, Space

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
        request: the resources that the study asks for; what it leaves open takes the default of
            the stage's networks on the cluster.
        label: readable, for progress lines.
        images: (training, forward-only) image passes, for estimates.
    """

    id: str
    kind: StageKind
    identity: dict[str, Any]
    inputs: dict[str, str]
    setup: dict[str, Any]
    request: Asked | None
    label: str
    images: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Trial:
    """One cell of the table.

    Attributes:
        id: the id of its last stage: metrics, or the training of its query network.
        method, dataset, pair, bits, seed: its coordinates.
        params: all hyperparameters.
        setting: the hyperparameters that the study varies, as text ("gamma=10"), or "".
        query_backbone, gallery_backbone: timm names.
        protocol: the protocol's id.
        at: the cut-off of its mAP.
        stages: kind -> id of the stages on its path; without "metrics" where a search only reads
            the validation split.
        cell: number of the study's cell that it searches; None in a benchmark.
        number: of its point in that search; None in a benchmark, and for what the search chose.
        values: of the dimensions that are searched.
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
    cell: int | None = None
    number: int | None = None
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def scored(self) -> bool:
        """Whether its test queries are scored; else it ends with its validation mAP."""
        return "metrics" in self.stages

    @property
    def trained(self) -> str:
        """Id of the stage that trains its query network."""
        return self.stages.get("joint") or self.stages["query"]

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
            for grown in ("uses", "users"):
                self.__dict__.pop(grown, None)

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
    """Plan a study; see :class:`Planner`.

    Raises:
        InputError: a name, option or combination is wrong; ``key`` is the study's key.
    """
    return Planner(study, folder=folder, home=home, cwd=cwd).plan


@dataclass(frozen=True)
class SearchCell:
    """Where one search of a sensitivity or tuning study happens: what its points have in common.

    Attributes:
        number: its place in the study.
        dataset, pair, method: names; ``pair`` is "" where the space has it.
        bits: code length; None where the space has it.
        base: hyperparameters as given under ``methods``.
        space: what is searched.
        key: where the method stands in the study.
        places: of the dataset, the pair (None as above) and the method in the study's lists.
    """

    number: int
    dataset: str
    pair: str
    method: str
    bits: int | None
    base: dict[str, Any]
    space: Space
    key: str
    places: tuple[int, int | None, int]

    @property
    def name(self) -> str:
        """A readable name: ``csch · mnetv3s→rn50 · 32 bit · cifar10``."""
        bits = "" if self.bits is None else f"{self.bits} bit"
        return " · ".join(part for part in (self.method, self.pair, bits, self.dataset) if part)


class Planner:
    """Makes a study's plan; that of a search grows by the points that are tried.

    Args:
        study: the validated study.
        folder: the study file's folder; a relative path that does not exist from the working
            directory is looked for there.
        home: ASYMBENCH_HOME, where datasets keep their listings.
        cwd: the working directory that relative paths start from; this process' by default, and
            that of the run for a study that was run before.

    Attributes:
        plan: all trials of a benchmark; of a search, those that were added.
        cells: where the searches of a study happen; none in a benchmark.
        cwd: as given.

    Raises:
        InputError: a name, option or combination is wrong; ``key`` is the study's key.
    """

    def __init__(self, study: Study, *, folder: Path, home: Path, cwd: Path | None = None) -> None:
        self.study = study
        self.plan = Plan(study=study.study)
        # A wrong one is wrong without stages too.
        self._asked = {kind: _asked(study, kind) for kind in KINDS}
        self.cwd = cwd or Path.cwd()
        places = (self.cwd, folder)
        datasets = _datasets(study, places, home)
        self.plan.datasets = [dataset for _, dataset in datasets]
        self._pairs = [_Pair(pair) for pair in _pairs(study, places)]
        self._data = [
            _Data(given, dataset, _augmentation(study, dataset).model_dump(mode="json"))
            for given, dataset in datasets
        ]
        self._studies: dict[str, Study] = {}
        self._builders: dict[int, _Builder] = {}
        self.cells: tuple[SearchCell, ...] = ()
        if study.kind == "benchmark":
            self._add_all()
        else:
            self.cells = tuple(
                replace(cell, number=number)
                for number, cell in enumerate(
                    cell
                    for cell in _search_cells(study, self._data, self._pairs)
                    if cell.bits is None
                    or not cell.pair
                    or self._local(cell.dataset, cell.pair, cell.bits, cell.method) is not None
                )
            )
            if not self.cells:
                raise _nothing_is_run()
            for cell in self.cells:  # what cannot be is refused before anything runs
                for point in cell.space.corners():
                    self._method(cell, point)

    def _add_all(self) -> None:
        settings = _settings(self.study)
        for data in self._data:
            built: dict[tuple[int, int, str], _Method] = {}
            for pair in self._pairs:
                for place, setting in enumerate(settings):
                    for bits in self.study.bits:
                        here = self._local(data.dataset.label, pair.name, bits, setting.method)
                        if here is None:
                            continue
                        key = (place, bits, here.text)
                        if key not in built:
                            own = here.setting(setting)
                            method = _build(own, bits, data.dataset, here.study)
                            built[key] = _Method(method, own.text)
                        for seed in self.study.seeds:
                            _Cell(here.builder, data, pair, built[key], seed).add()
        if not self.plan.trials:
            raise _nothing_is_run()
        order = {kind: place for place, kind in enumerate(KINDS)}
        stages = sorted(self.plan.stages.items(), key=lambda item: order[item[1].kind])
        self.plan.stages = dict(stages)

    def _local(self, dataset: str, pair: str, bits: int, method: str) -> _Local | None:
        """Return what holds in a cell; None where the method is not run there."""
        places = [
            (place, where)
            for place, where in enumerate(self.study.where)
            if where.holds(dataset, pair, bits)
        ]
        if any(where.only is not None and method not in where.only for _, where in places):
            return None
        params: dict[str, Any] = {}
        train: dict[str, Any] = {}
        key = ""
        for place, where in places:
            if method in where.methods:
                params |= where.methods[method]
                key = f"where.{place}.methods.{method}"
            train = _merged(train, where.train)
        text = canonical([params, train]) if places else ""
        study = self._trained(train)
        return _Local(study, self._builder(study), params, train, text, key)

    def _trained(self, train: Mapping[str, Any]) -> Study:
        text = canonical(dict(train)) if train else ""
        if text not in self._studies:
            self._studies[text] = self.study.trained(train) if train else self.study
        return self._studies[text]

    def _builder(self, study: Study) -> _Builder:
        """Return what adds stages of a recipe to the plan."""
        known = self._builders.get(id(study.train))
        if known is None:
            known = self._builders[id(study.train)] = _Builder(study, self.plan, self._asked)
        return known

    # ---- searches ------------------------------------------------------------------------

    def add(
        self,
        cell: SearchCell,
        values: Mapping[str, Any],
        seeds: Sequence[int],
        *,
        number: int | None = None,
        scored: bool = False,
    ) -> list[Trial]:
        """Add the trials of one point of a search; return them, one a seed.

        Args:
            cell: where.
            values: of the dimensions that count.
            seeds: of the trials.
            number: of the point in its search.
            scored: whether their test queries are scored. Only what a search chose in the end is.

        Raises:
            InputError: the values are impossible together; ``key`` is as if the study gave them.
        """
        study, method = self._method(cell, values)
        data = self._data[cell.places[0]]
        pair = self._pair_of(cell, values)
        builder = self._builder(study)
        about = {"cell": cell.number, "number": number, "values": dict(values)}
        return [_Cell(builder, data, pair, method, seed, scored, about).add() for seed in seeds]

    def values_of(self, cell: SearchCell, *, inactive: bool = False) -> dict[str, Any]:
        """Return the study's own values of what is searched: those given, else the published ones.

        Args:
            cell: where.
            inactive: whether to return the values of dimensions too that do not count there.
        """
        bits = self.study.bits[0] if cell.bits is None else cell.bits
        pair = cell.pair or self._pairs[0].name
        here = self._local(cell.dataset, pair, bits, cell.method)
        given = {**cell.base, **({} if here is None else here.params)}
        study = self.study if here is None else here.study
        params = METHODS.get(cell.method).Params.parse(given).model_dump(mode="json")
        point: dict[str, Any] = {}
        for name, dimension in cell.space.dimensions.items():
            if not inactive and name not in cell.space.active({**point, name: None}):
                continue
            if name == "bits":
                value: Any = self.study.bits[0]
            elif name == "pair":
                value = self._pairs[0].name
            elif name.startswith("train."):
                value = _recipe_value(study, name)
            else:
                value = params[name]
            if not dimension.has(value) and isinstance(dimension, Fixed):
                value = dimension.value
            point[name] = value
        return point

    def shared(self, cell: SearchCell) -> frozenset[str]:
        """Return the dimensions that change the gallery, as the ids of its stage tell.

        Points that differ in the others only are served by one gallery.
        """
        every = list(cell.space.corners())
        found = set()
        for name in cell.space.searched:
            ids: dict[str, set[str]] = {}
            for point in every:
                if name in point:
                    rest = {n: v for n, v in point.items() if n != name}
                    stages = self._stages_of(cell, point, 0)
                    gallery = stages.get("joint") or stages["gallery"]
                    ids.setdefault(canonical(rest), set()).add(gallery)
            if any(len(different) > 1 for different in ids.values()):
                found.add(name)
        return frozenset(found)

    def measured(self, cell: SearchCell) -> str:
        """Return what tells apart searches of one space whose numbers do not go together.

        That is the digest of all that the trainings at the space's corners are made of, seeds left
        out: data, recipe, hyperparameters that are not searched, versions of the code.
        """
        points = cell.space.corners()
        return digest([self._stages_of(cell, point, 0) for point in points])

    def _stages_of(self, cell: SearchCell, values: Mapping[str, Any], seed: int) -> dict[str, str]:
        """Return the ids of a point's stages; the plan does not grow."""
        study, method = self._method(cell, values)
        builder = _Builder(study, Plan(study=study.study), self._asked)
        data, pair = self._data[cell.places[0]], self._pair_of(cell, values)
        return _Cell(builder, data, pair, method, seed, scored=False).add().stages

    def sides_of(self, cell: SearchCell, values: Mapping[str, Any]) -> PairSpec:
        """Return the pair of a point."""
        return self._pair_of(cell, values).spec

    def bits_of(self, cell: SearchCell, values: Mapping[str, Any]) -> int:
        """Return the code length of a point."""
        return int(values.get("bits", cell.bits))

    def study_of(self, cell: SearchCell, values: Mapping[str, Any]) -> Study:
        """Return the study with a point's recipe."""
        return self._method(cell, values)[0]

    def params_of(self, cell: SearchCell, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return a point's hyperparameters as far as the study or the point gives them."""
        pair = self._pair_of(cell, values).name
        here = self._local(cell.dataset, pair, self.bits_of(cell, values), cell.method)
        own = METHODS.get(cell.method).Params.model_fields
        local = {} if here is None else here.params
        return {**cell.base, **local, **{n: v for n, v in values.items() if n in own}}

    def dataset_of(self, cell: SearchCell) -> str | dict[str, Any]:
        """Return a cell's dataset as the study gives it, its paths made absolute."""
        return self._data[cell.places[0]].given

    def head_of(self, cell: SearchCell, values: Mapping[str, Any]) -> str:
        """Return the hash head of a point's query network."""
        _, method = self._method(cell, values)
        return method.method.head

    def gallery_size(self, cell: SearchCell) -> int:
        """Return the number of gallery images."""
        return self._data[cell.places[0]].sizes["gallery"]

    def _pair_of(self, cell: SearchCell, values: Mapping[str, Any]) -> _Pair:
        if cell.places[1] is not None:
            return self._pairs[cell.places[1]]
        return next(pair for pair in self._pairs if pair.name == values["pair"])

    def _method(self, cell: SearchCell, values: Mapping[str, Any]) -> tuple[Study, _Method]:
        """Return the study with a point's recipe, and the point's method."""
        bits, pair = self.bits_of(cell, values), self._pair_of(cell, values).name
        here = self._local(cell.dataset, pair, bits, cell.method)
        if here is None:
            raise InputError(
                f"{cell.method} is not run on {pair} with {bits} bits there, and the search has "
                "such points",
                key="where",
            )
        own = METHODS.get(cell.method).Params.model_fields
        given = {**cell.base, **here.params, **{n: v for n, v in values.items() if n in own}}
        try:
            params = METHODS.get(cell.method).Params.parse(given).model_dump(mode="json")
        except InputError as error:
            raise error.located(
                prefix=here.key if error.key in here.params else cell.key
            ) from None
        shown = [name for name in values if name not in ("bits", "pair")]
        text = setting_text({name: _brief(v) for name, v in {**values, **params}.items()}, shown)
        setting = _Setting(cell.method, params, text, cell.key)
        recipe = _recipe_of(values)
        study = self._trained(_merged(here.train, recipe)) if recipe else here.study
        dataset = self._data[cell.places[0]].dataset
        return study, _Method(_build(setting, bits, dataset, study), text)


@dataclass(frozen=True)
class _Local:
    """What holds in a cell.

    Attributes:
        study: with the recipe of the cell.
        builder: of its stages.
        params: hyperparameters that take the place of those given.
        train: fields of the recipe that do.
        text: tells cells apart in which something else holds.
        key: where the study says the hyperparameters.
    """

    study: Study
    builder: _Builder
    params: dict[str, Any]
    train: dict[str, Any]
    text: str
    key: str

    def setting(self, given: _Setting) -> _Setting:
        """Return a setting as it is in the cell.

        Raises:
            InputError: a hyperparameter is refused; ``key`` is the study's.
        """
        if not self.params:
            return given
        try:
            cls = METHODS.get(given.method).Params
            for name, value in self.params.items():
                cls.parse({name: value})
            params = cls.parse({**given.params, **self.params}).model_dump(mode="json")
        except InputError as error:
            raise error.located(prefix=self.key) from None
        return _Setting(given.method, params, given.text, given.key)


def _nothing_is_run() -> InputError:
    return InputError("what is under 'only' leaves no method in any cell", key="where")


def _brief(value: Any) -> Any:
    """Return a number as a label shows it: a sampler's have sixteen digits."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _search_cells(
    study: Study, data: Sequence[_Data], pairs: Sequence[_Pair]
) -> tuple[SearchCell, ...]:
    """Return where a study searches: datasets, pairs, methods and bits that no space has."""
    spaces = [_space(study, grid, pairs) for grid in study.method_grids()]
    cells: list[SearchCell] = []
    for at_data, opened in enumerate(data):
        for grid, (at_method, space) in zip(study.method_grids(), enumerate(spaces), strict=True):
            own_pairs = [None] if "pair" in space.dimensions else list(range(len(pairs)))
            own_bits = [None] if "bits" in space.dimensions else study.bits
            for at_pair in own_pairs:
                for bits in own_bits:
                    cells.append(
                        SearchCell(
                            number=len(cells),
                            dataset=opened.dataset.label,
                            pair="" if at_pair is None else pairs[at_pair].name,
                            method=grid.name,
                            bits=bits,
                            base=grid.given,
                            space=space,
                            key=grid.key,
                            places=(at_data, at_pair, at_method),
                        )
                    )
    names = Counter(cell.name for cell in cells)
    for name, count in names.items():
        if count > 1:
            raise InputError(
                f"{name!r} would be searched {count} times; give a method once in a "
                f"{study.kind} study, and what differs under 'search'",
                key="methods",
            )
    return tuple(cells)


def _space(study: Study, grid: MethodGrid, pairs: Sequence[_Pair]) -> Space:
    """Return the space of one of the study's methods."""
    for name, value in grid.given.items():
        if isinstance(value, list):
            raise InputError(
                f"in a {study.kind} study a method has one value here; what is varied stands "
                "under 'search'",
                key=f"{grid.key}.{name}",
                value=value,
            )
    methods = {other.name for other in study.method_grids()}
    given: Any = study.search
    key = "search"
    if isinstance(given, dict) and given.keys() <= set(METHODS.names()):
        if grid.name not in given:
            raise InputError(
                f"has spaces of {', '.join(given)}, and none of {grid.name}; 'default' takes what "
                "the method declares",
                key="search",
            )
        stray = [name for name in given if name not in methods]
        if stray:
            raise UnknownNameError("method of this study", stray[0], methods, key="search")
        given, key = given[grid.name], f"search.{grid.name}"
    try:
        return space_of(
            grid.name,
            given,
            pairs=[pair.name for pair in pairs],
            base=grid.given,
        )
    except InputError as error:
        raise error.located(prefix=key) from None


def _merged(train: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Return fields of a recipe with those of another in their place, side by side."""
    sides = {side: {**train.get(side, {}), **more.get(side, {})} for side in SIDES}
    return {**train, **more, **{side: values for side, values in sides.items() if values}}


def _recipe_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the recipe among a point's values: ``train.query.epochs`` and such."""
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name.startswith("train."):
            side, _, field_name = name.removeprefix("train.").rpartition(".")
            fields = _merged(fields, {side: {field_name: value}} if side else {field_name: value})
    return fields


def _recipe_value(study: Study, name: str) -> Any:
    """Return the study's value of ``train.lr_head`` or ``train.query.lr_head``."""
    parts = name.split(".")
    side: Side = "gallery" if parts[1] == "gallery" else "query"
    return getattr(study.train.side(side), parts[-1])


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
    shared_fields: tuple[str, ...] = ()
    if method.schedule is not Schedule.FROZEN:
        shared_fields = ("epochs", "batch_size")
    if _in_one_stage(method, study):  # the stage's workers train both
        shared_fields = (*shared_fields, "workers")
    for shared in shared_fields:
        if getattr(query, shared) != getattr(gallery, shared):
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


def _in_one_stage(method: HashMethod, study: Study) -> bool:
    """Whether one stage trains both sides."""
    return method.schedule is Schedule.JOINT or (
        method.schedule is Schedule.SIMULTANEOUS and not study.replay
    )


def _train_key(study: Study, field: str, *sides: Side) -> str:
    """Return the key under which the study gives a field of the recipe for one of the sides."""
    for side in sides:
        if field in getattr(study.train, side):
            return f"train.{side}.{field}"
    return f"train.{field}"


def _asked(study: Study, kind: StageKind) -> Asked | None:
    given: Resources | None = getattr(study.resources, kind)
    if given is None:
        return None
    try:
        return Asked(
            cpus=given.cpus,
            gpus=given.gpus,
            memory=None if given.memory is None else parse_memory(given.memory),
            custom=given.custom,
            labels=given.labels,
        )
    except ResourceError as error:
        key = ".".join(part for part in ("resources", kind, error.key) if part)
        raise InputError(str(error), key=key) from None


# ---- what cells have in common, worked out once: a plan may have many thousands of them --------


@dataclass(eq=False)
class _Data:
    """A dataset, as given and opened, and the augmentation of its training images."""

    given: str | dict[str, Any]
    dataset: Dataset
    augmentation: dict[str, Any]

    @cached_property
    def identity(self) -> dict[str, Any]:
        return self.dataset.identity()

    @cached_property
    def sizes(self) -> dict[str, int]:
        splits = self.dataset.splits()
        return {"query": len(splits.query), "gallery": len(splits.gallery)}


class _Pair:
    """A pair with its sides as JSON values."""

    def __init__(self, spec: PairSpec) -> None:
        self.spec = spec
        self.name = spec.name
        self.view_size = max(spec.query.size, spec.gallery.size)
        sides: dict[Side, SideSpec] = {"query": spec.query, "gallery": spec.gallery}
        self.identities = {side: given.identity() for side, given in sides.items()}
        self.values = {side: given.model_dump(mode="json") for side, given in sides.items()}


@dataclass(eq=False)
class _Method:
    """A method with its hyperparameters and task, and the text that tells its setting apart."""

    method: HashMethod
    setting: str

    @cached_property
    def teacher(self) -> HashMethod:
        """The method that trains the gallery."""
        return self.method.gallery_method()

    @cached_property
    def centers(self) -> dict[str, Any] | None:
        """The spec of the teacher's hash centers."""
        spec = self.teacher.centers()
        return None if spec is None else asdict(spec)

    @cached_property
    def centers_need(self) -> tuple[Side, ...]:
        """The sides whose initial networks place the centers."""
        spec = self.teacher.centers()
        return () if spec is None else spec.needs

    @cached_property
    def params(self) -> dict[str, Any]:
        return self.method.params.model_dump(mode="json")

    @cached_property
    def of_query(self) -> dict[str, Any]:
        """What the query stage reads."""
        return self.method.params.read_by("query")

    @cached_property
    def of_gallery(self) -> dict[str, Any]:
        """What the gallery's stage reads of the teacher."""
        return self.teacher.params.read_by("gallery")


class _Builder:
    """Adds stages to a plan.

    A stage's identity is mostly made of values that many stages have in common. Their canonical
    text is made once, and an id is the digest of the texts put together: the same as the digest of
    the canonical text of all of it.
    """

    def __init__(self, study: Study, plan: Plan, asked: dict[StageKind, Asked | None]) -> None:
        self.study = study
        self.plan = plan
        self.asked = asked
        self.recipes = {side: study.train.side(side) for side in SIDES}
        self.recipe_values = {s: r.model_dump(mode="json") for s, r in self.recipes.items()}
        self._texts: dict[int, tuple[Any, str]] = {}
        self._words: dict[str, str] = {}
        self._commons: dict[tuple[int, int, int, int], tuple[dict[str, Any], dict[str, Any]]] = {}

    def common(
        self, data: _Data, pair: _Pair, bits: int, seed: int
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what every training stage reads: as part of its identity, and for a worker."""
        key = (id(data), pair.view_size, bits, seed)
        if key not in self._commons:
            identity = {
                "format": FORMAT,
                "dataset": data.identity,
                "view_size": pair.view_size,
                "augmentation": data.augmentation,
                "seed": seed,
                "bits": bits,
                "threads": self.study.train.threads,
            }
            self._commons[key] = (identity, {**identity, "dataset": data.given})
        return self._commons[key]

    def add(
        self,
        kind: StageKind,
        identity: dict[str, Any],
        inputs: dict[str, str],
        setup: Callable[[], dict[str, Any]],
        images: tuple[int, int],
        label: Callable[[StageKind], str],
    ) -> str:
        """Add a stage, unless the plan has it; return its id.

        Args:
            kind: what it does.
            identity: all that determines its output. Containers in it that are shared by several
                stages must be the same objects each time, and stay as they are.
            inputs: role -> id of the stages it consumes.
            setup: makes what a worker needs.
            images: (training, forward-only) image passes.
            label: makes its name, given the kind.
        """
        stage_id = self._digest(identity)
        if stage_id not in self.plan.stages:
            self.plan.stages[stage_id] = Stage(
                id=stage_id,
                kind=kind,
                identity=identity,
                inputs=dict(inputs),
                setup=setup(),
                request=self.asked[kind],
                label=label(kind),
                images=images,
            )
        return stage_id

    def _digest(self, identity: dict[str, Any]) -> str:
        """Return ``digest(identity)``."""
        items = ",".join(f'"{key}":{self._text(key, identity[key])}' for key in sorted(identity))
        return hashlib.sha256(f"{{{items}}}".encode()).hexdigest()

    def _text(self, key: str, value: Any) -> str:
        if type(value) is int:
            return str(value)
        if type(value) is str:
            if value not in self._words:
                self._words[value] = canonical(value)
            return self._words[value]
        if not isinstance(value, dict) or key == "inputs":  # inputs are hardly ever the same
            return canonical(value)
        known = self._texts.get(id(value))
        if known is None:
            # The value is kept beside its text: no other object can get its number.
            known = self._texts[id(value)] = (value, canonical(value))
        return known[1]


@dataclass
class _Cell:
    """One trial on its way into the plan."""

    builder: _Builder
    data: _Data
    pair: _Pair
    built: _Method
    seed: int
    scored: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study = self.builder.study
        self.method = self.built.method
        self.bits = self.method.task.bits
        self.common, self.common_setup = self.builder.common(
            self.data, self.pair, self.bits, self.seed
        )

    def add(self) -> Trial:
        """Add the trial and its stages to the plan; return it."""
        study, method = self.study, self.method
        at = study.evaluate.at or self.data.dataset.protocol.at
        stages: dict[str, str] = {}
        joint = _in_one_stage(method, study)
        centers = self._centers(stages)
        if joint:
            scored = {"joint": self._joint(centers, stages)}
        else:
            gallery = self._gallery(centers, stages)
            inputs = {"gallery": gallery}
            if method.schedule is Schedule.FROZEN and study.replay:
                inputs["recording"] = self._recording(gallery, stages)
            if method.centers_for_query() and centers is not None:
                inputs["centers"] = centers
            scored = {"query": self._query(inputs, stages), "gallery": gallery}
        if self.scored:
            self._metrics(at, scored, stages)
        trial = Trial(
            id=stages["metrics" if self.scored else "joint" if joint else "query"],
            method=method.name,
            dataset=self.data.dataset.label,
            pair=self.pair.name,
            bits=self.bits,
            seed=self.seed,
            params=self.built.params,
            setting=self.built.setting,
            query_backbone=self.pair.spec.query.backbone,
            gallery_backbone=self.pair.spec.gallery.backbone,
            protocol=self.data.dataset.protocol.id,
            at=at,
            stages=stages,
            **self.about,
        )
        self.builder.plan.add(trial)
        return trial

    # ---- stages --------------------------------------------------------------------------

    def _metrics(self, at: int | str, scored: dict[str, str], stages: dict[str, str]) -> None:
        asked = self.study.evaluate
        more: dict[str, Any] = {}
        if asked.legacy:
            more["legacy"] = sorted(asked.legacy)
        by_values = [mode for mode in asked.retrieval if mode != "hamming"]
        if by_values:  # these rank in the method's output space
            more |= {
                "retrieval": sorted(by_values),
                "method": self.method.name,
                "method_version": self.method.version,
                "params": self.built.params,
            }
        identity: dict[str, Any] = {
            "kind": "metrics",
            "format": FORMAT,
            "version": METRICS_VERSION,
            "dataset": self.data.identity,
            "at": at,
            "inputs": scored,
            **more,
        }

        def setup() -> dict[str, Any]:
            return {
                "dataset": self.data.given,
                "at": at,
                "bits": self.bits,
                "threads": self.study.train.threads,
                **more,
            }

        stages["metrics"] = self._add("metrics", identity, scored, setup, (0, 0))

    def _centers(self, stages: dict[str, str]) -> str | None:
        spec = self.built.centers
        if spec is None:
            return None
        teacher, needed = self.built.teacher, self.built.centers_need
        threads = self.study.train.threads
        identity: dict[str, Any] = {
            "kind": "centers",
            "format": FORMAT,
            "version": CENTERS_VERSION,
            "spec": spec,
            "bits": self.bits,
            "n_classes": teacher.task.n_classes,
            "seed": self.seed,
        }
        setup = {**identity, "dataset": self.data.given, "threads": threads}
        images = 0
        if needed:  # the assignment looks at the initial networks' outputs on the images
            identity |= {
                "dataset": self.data.identity,
                "head": teacher.head,
                "threads": threads,
                "sides": {side: self.pair.identities[side] for side in needed},
            }
            setup |= {
                "head": teacher.head,
                "sides": {side: self.pair.values[side] for side in needed},
            }
            images = teacher.task.n_train * len(needed)
        stages["centers"] = self._add("centers", identity, {}, lambda: setup, (0, images))
        return stages["centers"]

    def _gallery(self, centers: str | None, stages: dict[str, str]) -> str:
        method = self.built.teacher
        simultaneous = method.schedule is Schedule.SIMULTANEOUS
        inputs = {"centers": centers} if centers is not None else {}
        values = {
            "head": method.head,
            "recipe": self.builder.recipe_values["gallery"],
            "validate_every": self.study.train.validate_every,
            "recording": method.recording if simultaneous else None,
            "method": method.name,
            "method_version": method.version,
            "params": self.built.of_gallery,
        }
        identity = {
            "kind": "gallery",
            **self.common,
            **values,
            "side": self.pair.identities["gallery"],
            "inputs": inputs,
        }
        images = (self._passes("gallery"), self.data.sizes["gallery"])

        def setup() -> dict[str, Any]:
            return {**self.common_setup, **values, "side": self.pair.values["gallery"]}

        stages["gallery"] = self._add("gallery", identity, inputs, setup, images)
        return stages["gallery"]

    def _recording(self, gallery: str, stages: dict[str, str]) -> str:
        recipe = self.builder.recipes["query"]
        inputs = {"gallery": gallery}
        values = {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "precision": self.builder.recipes["gallery"].precision,
            "recording": self.method.recording,
        }
        identity = {"kind": "recording", **self.common, **values, "inputs": inputs}

        def setup() -> dict[str, Any]:
            return {
                **self.common_setup,
                **values,
                "side": self.pair.values["gallery"],
                "head": self.built.teacher.head,
            }

        images = (0, self._passes("query"))
        stages["recording"] = self._add("recording", identity, inputs, setup, images)
        return stages["recording"]

    def _query(self, inputs: dict[str, str], stages: dict[str, str]) -> str:
        method = self.method
        values = {
            "head": method.head,
            "recipe": self.builder.recipe_values["query"],
            "validate_every": self.study.train.validate_every,
            "recording": method.recording,
            "method": method.name,
            "method_version": method.version,
            "params": self.built.of_query,
        }
        identity = {
            "kind": "query",
            **self.common,
            **values,
            "side": self.pair.identities["query"],
            "inputs": inputs,
        }

        def setup() -> dict[str, Any]:
            return {
                **self.common_setup,
                **values,
                "side": self.pair.values["query"],
                "gallery_side": self.pair.values["gallery"],
                "gallery_head": self.built.teacher.head,
                "gallery_precision": self.builder.recipes["gallery"].precision,
                "all_params": self.built.params,
                "live": method.schedule is Schedule.FROZEN and "recording" not in inputs,
            }

        images = (self._passes("query"), self.data.sizes["query"])
        stages["query"] = self._add("query", identity, inputs, setup, images)
        return stages["query"]

    def _joint(self, centers: str | None, stages: dict[str, str]) -> str:
        inputs = {"centers": centers} if centers is not None else {}
        values = {
            "head": self.method.head,
            "recipes": self.builder.recipe_values,
            "validate_every": self.study.train.validate_every,
            "method": self.method.name,
            "method_version": self.method.version,
            "params": self.built.params,
        }
        identity = {
            "kind": "joint",
            **self.common,
            **values,
            "sides": self.pair.identities,
            "inputs": inputs,
        }

        def setup() -> dict[str, Any]:
            return {**self.common_setup, **values, "sides": self.pair.values}

        trained = self._passes("gallery")
        answered = trained * (len(self.method.phases) - 1)  # one side trains, the other answers
        images = (trained, answered + sum(self.data.sizes.values()))
        stages["joint"] = self._add("joint", identity, inputs, setup, images)
        return stages["joint"]

    def _passes(self, side: Side) -> int:
        """Return the images that the training of a side sees in all."""
        recipe = self.builder.recipes[side]
        steps = self.method.task.n_train // recipe.batch_size
        return recipe.epochs * steps * recipe.batch_size

    def _add(
        self,
        kind: StageKind,
        identity: dict[str, Any],
        inputs: dict[str, str],
        setup: Callable[[], dict[str, Any]],
        images: tuple[int, int],
    ) -> str:
        return self.builder.add(kind, identity, inputs, setup, images, self._label)

    def _label(self, kind: StageKind) -> str:
        teacher = self.built.teacher.name
        where = f"{self.bits} bit · {self.data.dataset.label} · s{self.seed}"
        if kind in ("gallery", "recording"):
            return f"{kind} {teacher} · {self.pair.spec.gallery.backbone} · {where}"
        if kind == "centers":
            return f"centers {teacher} · {where}"
        method = f"{self.method.name} {self.built.setting}".strip()
        return f"{kind} {method} · {self.pair.name} · {where}"
