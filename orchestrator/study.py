"""A study: the YAML file that describes many trials, read strictly.

Every mistake is refused before anything runs, with the file and line, the key, the value as given,
what is allowed, and the nearest valid name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from methods.pairs import PAIRS, default_pair_name
from methods.recipe import Recipe
from orchestrator.tracking_uri import check_uri
from retrieval.datasets import SHORTHANDS
from retrieval.errors import InputError, UnknownNameError
from retrieval.validation import explain_validation
from search_spaces.options import Sensitivity, Tuning

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Resources(_Strict):
    """What one kind of stage asks for; each worker of it, where it has several.

    Attributes:
        cpus: CPU cores; null takes the trial's threads.
        gpus: GPUs; a fraction shares one; null takes the default of the stage's networks.
        memory: "16GB" or "512MiB" of main memory that is kept free for it.
        custom: amounts of a cluster's own resources, by name.
        labels: what the node's labels must be, by name: "A100", "!A100" or "in(A100,H100)".
    """

    cpus: float | None = Field(None, ge=0)
    gpus: float | None = Field(None, ge=0)
    memory: str | int | None = None  # a number without a unit is told which units there are
    custom: dict[str, float] = {}
    labels: dict[str, str] = {}


class ResourcesByStage(_Strict):
    """Resources of each kind of stage. Operational: changes no number and no stage id.

    Attributes:
        device: "auto" uses a GPU where the stage was given one, "cpu" and "cuda" insist.
        centers, gallery, recording, query, joint, metrics: requests; null takes the default: a
            core for each thread, and a share of a GPU by the networks where the cluster has any.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    centers: Resources | None = None
    gallery: Resources | None = None
    recording: Resources | None = None
    query: Resources | None = None
    joint: Resources | None = None
    metrics: Resources | None = None


class Faults(_Strict):
    """How often a stage is tried again, by kind of failure, and how long it may take. Operational.

    Every try goes on from the stage's last checkpoint. A try that got further than the one before
    starts the count anew: what is counted are failures without progress.

    Attributes:
        out_of_memory: of the GPU or of main memory; each time with more of it to itself.
        lost_worker: the process died.
        lost_node: the machine died, or cannot be reached.
        timeout: a limit below was passed.
        system: the disk, the network or the store failed.
        diverged: a loss is not finite; the same computation gives the same result.
        bug: the code raised an error; likewise.
        stage_minutes: longest time of one try; null: no limit.
        stall_minutes: longest time without a report; null: no limit.
        wait_seconds: before the first repetition; doubled each time, to ten minutes at most.
    """

    out_of_memory: int = Field(2, ge=0, le=1000)
    lost_worker: int = Field(3, ge=0, le=1000)
    lost_node: int = Field(10, ge=0, le=1000)
    timeout: int = Field(1, ge=0, le=1000)
    system: int = Field(3, ge=0, le=1000)
    diverged: int = Field(0, ge=0, le=1000)
    bug: int = Field(0, ge=0, le=1000)
    stage_minutes: float | None = Field(None, gt=0)
    stall_minutes: float | None = Field(None, gt=0)
    wait_seconds: float = Field(1.0, ge=0, le=600)


class Checkpointing(_Strict):
    """When a stage in work saves what it can go on from. Operational.

    Attributes:
        epochs: after every so many epochs.
        seconds: but not sooner than this after the one before.
    """

    epochs: int = Field(1, ge=1)
    seconds: float = Field(0.0, ge=0)


class Training(_Strict):
    """How all methods of the study are trained; the same budget for each.

    Attributes:
        recipe: the recipe's fields at the top level hold for both sides.
        query, gallery: fields of the recipe that differ on that side.
        augmentation: fields that differ from the dataset's default augmentation.
        threads: torch threads of every stage. It can move the last bit of a result, so it belongs
            to the identity of a trial, and is not taken from the resources.
        validate_every: epochs between two validations; 0 validates never.
        drop_last: always true; the last, smaller batch of an epoch is dropped.
    """

    query: dict[str, Any] = {}
    gallery: dict[str, Any] = {}
    augmentation: dict[str, Any] = {}
    threads: int = Field(1, ge=1, le=256)
    validate_every: int = Field(1, ge=0)
    recipe: dict[str, Any] = {}

    def side(self, name: Literal["query", "gallery"]) -> Recipe:
        """Return the recipe of one side."""
        return Recipe(**{**self.recipe, **getattr(self, name)})


Retrieval = Literal["hamming", "cosine", "asymmetric"]
Legacy = Literal["deephash_pytorch", "orthohash"]


class Evaluation(_Strict):
    """How trials are scored.

    Attributes:
        at: cut-off of mAP; null takes the protocol's own.
        retrieval: how the gallery is ranked. "hamming", binary against binary, is always there and
            is what ``map`` means; "cosine" of the continuous codes of both sides adds
            ``map_cosine``, "asymmetric", the continuous query against the binary gallery, adds
            ``map_asymmetric``.
        legacy: public code bases whose mAP is computed too, by their conventions; adds
            ``map_deephash_pytorch`` and ``map_orthohash``.
    """

    at: Literal["all"] | int | None = None
    retrieval: list[Retrieval] = Field(["hamming"], min_length=1)
    legacy: list[Legacy] = []

    @field_validator("legacy")
    @classmethod
    def _once(cls, value: list[Legacy]) -> list[Legacy]:
        if len(set(value)) != len(value):
            raise ValueError("must not repeat a value")
        return value

    @field_validator("retrieval")
    @classmethod
    def _with_hamming(cls, value: list[Retrieval]) -> list[Retrieval]:
        if len(set(value)) != len(value):
            raise ValueError("must not repeat a value")
        if "hamming" not in value:
            raise ValueError("must contain 'hamming', which the tables rank by")
        return value

    @field_validator("at", mode="before")  # before the union, which would name one arm's rule only
    @classmethod
    def _positive(cls, value: Any) -> Any:
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not (value is None or value == "all" or (whole and value >= 1)):
            raise ValueError("must be 'all' or a whole number of at least 1")
        return value


class Where(_Strict):
    """What is different in some of a study's cells, as papers have it for some datasets.

    Attributes:
        dataset, pair, bits: where it holds: one or several of the study's; null is all of them.
        methods: method -> hyperparameters that take the place of those given under ``methods``.
        only: methods that are run there; null is all of them, an empty list none.
        train: fields of the recipe that take the place of those under ``train``, also in ``query``
            and ``gallery``.
    """

    dataset: str | list[str] | None = None
    pair: str | list[str] | None = None
    bits: int | list[int] | None = None
    methods: dict[str, dict[str, Any]] = {}
    only: list[str] | None = None
    train: dict[str, Any] = {}

    def holds(self, dataset: str, pair: str, bits: int) -> bool:
        """Whether a cell is meant."""
        asked = ((self.dataset, dataset), (self.pair, pair), (self.bits, bits))
        return all(given is None or here in _several(given) for given, here in asked)

    def missing(self, names: Mapping[str, Sequence[Any]]) -> str | None:
        """Return the place without which it holds nowhere, ``dataset coco``; None if it holds.

        Args:
            names: of a study, see ``Study.names``.
        """
        for part in ("dataset", "pair", "bits"):
            given = getattr(self, part)
            if given is not None and not _left(_several(given), names[_LIST_OF[part]]):
                return f"{part} {' or '.join(map(str, _several(given)))}"
        return None

    def within(self, names: Mapping[str, Sequence[Any]]) -> Where:
        """Return it without the places and methods that a study has not.

        Args:
            names: of a study where it holds somewhere, see ``Study.names``.
        """
        places = {
            part: _left(given, names[_LIST_OF[part]])
            for part in ("dataset", "pair", "bits")
            if isinstance(given := getattr(self, part), list)
        }
        kept = _left(self.methods, names["methods"])
        only = None if self.only is None else _left(self.only, names["methods"])
        methods = {name: self.methods[name] for name in kept}
        return self.model_copy(update={**places, "methods": methods, "only": only})


_LIST_OF = {
    "dataset": "datasets",
    "pair": "pairs",
    "bits": "bits",
    "methods": "methods",
    "only": "methods",
}
"""Field of `Where` -> the study's list that it takes its names from."""


def _several(value: Any) -> list[Any]:
    """Return the names that a field of `Where` gives: none, one, several, or a mapping's keys."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | dict) else [value]


def _left(given: Iterable[Any], names: Sequence[Any]) -> list[Any]:
    return [name for name in given if name in names]


class Tracking(_Strict):
    """Where runs are mirrored. Operational.

    Attributes:
        enabled: false keeps MLflow out of it.
        uri: an MLflow tracking URI; null is SQLite in ASYMBENCH_HOME.
    """

    enabled: bool = True
    uri: str | None = None


class Study(_Strict):
    """A study as validated; the field names are the keys of the YAML file.

    Attributes:
        study: its name; also the MLflow experiment's.
        kind: "benchmark": every combination is one trial, scored on the test queries.
            "sensitivity": the points of a design over ``search``, and "tuning": those that a
            sampler proposes, all scored on the validation split; what they choose is scored on the
            test queries, once, at the end.
        description: free text.
        datasets: names, or mappings with ``name`` and the dataset's options.
        pairs: names, or mappings with ``query`` and ``gallery`` sides.
        methods: names, or name -> hyperparameters, or a list of both, where a method may come
            again with other hyperparameters; a list as a value spans a grid.
        bits: code lengths B.
        seeds: trial seeds; the split has a seed of its own in the protocol.
        where: what is different in some of the cells; of two that say otherwise, the later holds.
        search: what a sensitivity or tuning study varies: name -> dimension of the search space
            (see ``search_spaces.space``), or "default" for what the method declares; with several
            methods, name of the method -> that. Names are hyperparameters, ``bits``, ``pair``, and
            fields of the recipe, ``train.lr_head`` or ``train.query.lr_head``.
        sensitivity, tuning: how.
        train, evaluate, resources, faults, checkpoint, tracking: see there.
        replay: false trains both sides together, or asks the frozen gallery live. The numbers are
            the same bit for bit, the work is not.
    """

    study: str
    kind: Literal["benchmark", "sensitivity", "tuning"] = "benchmark"
    description: str = ""
    datasets: list[str | dict[str, Any]] = Field(min_length=1)
    pairs: list[str | dict[str, Any]] = Field(min_length=1)
    methods: list[str | dict[str, dict[str, Any] | None]] | dict[str, dict[str, Any] | None] = (
        Field(min_length=1)
    )
    bits: list[int] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)
    train: Training = Training()
    evaluate: Evaluation = Evaluation()
    where: list[Where] = []
    search: Literal["default"] | dict[str, Any] | None = None
    sensitivity: Sensitivity = Sensitivity()
    tuning: Tuning = Tuning()
    replay: bool = True
    resources: ResourcesByStage = ResourcesByStage()
    faults: Faults = Faults()
    checkpoint: Checkpointing = Checkpointing()
    tracking: Tracking = Tracking()

    @field_validator("study")
    @classmethod
    def _name(cls, value: str) -> str:
        if not NAME.fullmatch(value):
            raise ValueError(
                "must be 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
            )
        return value

    @field_validator("bits")
    @classmethod
    def _bits(cls, value: list[int]) -> list[int]:
        for bits in value:
            if not 1 <= bits <= 1024:
                raise ValueError(f"must be whole numbers from 1 to 1024, got {bits}")
        return value

    @field_validator("bits", "seeds")
    @classmethod
    def _distinct(cls, value: list[int]) -> list[int]:
        if len(set(value)) != len(value):
            raise ValueError("must not repeat a value")
        return value

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, value: list[int]) -> list[int]:
        if any(seed < 0 for seed in value):
            raise ValueError("must be whole numbers of at least 0")
        return value

    def as_written(self) -> dict[str, Any]:
        """Return the study as a YAML file holds it: read again, it is this study.

        What is under ``where`` for cells that only the file has, and not the study as ``--set``
        left it, is not there.
        """
        values = self.model_dump(mode="json")
        training = values["train"]
        values["train"] = {**training.pop("recipe"), **training}
        for kind in ("sensitivity", "tuning"):
            if self.kind != kind:
                del values[kind]
        if self.search is None:
            del values["search"]
        names = self.names()
        values["where"] = [
            where.within(names).model_dump(mode="json")
            for where in self.where
            if where.missing(names) is None
        ]
        if not values["where"]:
            del values["where"]
        return values

    def names(self) -> dict[str, list[Any]]:
        """Return what ``where`` calls the study's datasets, pairs, methods and code lengths."""
        return _names(vars(self))

    def idle(self) -> list[str]:
        """Return what is under ``where`` for cells that only the file has, as text.

        ``--set datasets=[...]`` leaves such behind: "where.1 (dataset coco)".
        """
        names = self.names()
        missing = [(place, where.missing(names)) for place, where in enumerate(self.where)]
        return [f"where.{place} ({what})" for place, what in missing if what is not None]

    def trained(self, values: Mapping[str, Any]) -> Study:
        """Return the study with other fields of its recipe.

        Args:
            values: fields as under ``train``, ``lr_head`` or ``query: {lr_head: ...}``.

        Raises:
            InputError: a field is unknown, or a value is refused; ``key`` is below ``train``.
        """
        own: dict[str, dict[str, Any]] = {"query": {}, "gallery": {}}
        known = {*Recipe.model_fields, *own}
        for name, value in values.items():
            if name not in known:
                raise UnknownNameError("field of the recipe", name, known, key=f"train.{name}")
            if name in own and not isinstance(value, dict):
                raise InputError("must be a mapping", key=f"train.{name}", value=value)
        recipe = {**self.train.recipe, **{n: v for n, v in values.items() if n not in own}}
        for side in own:
            own[side] = {**getattr(self.train, side), **values.get(side, {})}
            check_recipe({**recipe, **own[side]}, side, own[side])
        changed = self.train.model_copy(update={"recipe": recipe, **own})
        return self.model_copy(update={"train": changed})

    def method_grids(self) -> list[MethodGrid]:
        """Return the methods with the hyperparameters as given; lists span a grid."""
        if isinstance(self.methods, dict):
            return [
                MethodGrid(f"methods.{name}", name, dict(given or {}))
                for name, given in self.methods.items()
            ]
        grids = []
        for place, entry in enumerate(self.methods):
            name, given = (entry, None) if isinstance(entry, str) else next(iter(entry.items()))
            inside = "" if isinstance(entry, str) else f".{name}"
            grids.append(MethodGrid(f"methods.{place}{inside}", name, dict(given or {})))
        return grids


@dataclass(frozen=True)
class MethodGrid:
    """One entry of a study's methods.

    Attributes:
        key: where it stands in the study.
        name: of the method.
        given: hyperparameter -> value, or list of values.
    """

    key: str
    name: str
    given: dict[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but ``1e-4`` is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


@dataclass(frozen=True)
class Source:
    """A study's text, where it came from, and the line of each of its keys."""

    text: str
    where: str
    folder: Path
    lines: dict[str, int]

    def locate(self, key: str | None) -> str:
        """Return ``file:line`` of the key or of its nearest ancestor that the file has."""
        parts = (key or "").split(".")
        spellings = [parts]
        for alias, name in _ALIASES.items():
            if parts[0] == name:  # `pair: {...}` stands for `pairs: [{...}]`: it has no index
                spellings += [[alias, *parts[2:]], [name, *parts[2:]]]
        found = [
            (n, self.lines[".".join(path[:n])])
            for path in spellings
            for n in range(1, len(path) + 1)
            if ".".join(path[:n]) in self.lines
        ]
        return f"{self.where}:{max(found)[1]}" if found else self.where


def parse_yaml(text: str, where: str) -> tuple[Any, dict[str, int]]:
    """Parse YAML safely; also return the 1-based line of every dotted key.

    Raises:
        InputError: the text is no YAML; the message has the line.
    """
    lines: dict[str, int] = {}
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        value = loader.construct_document(node) if node else None
        _note_lines(node, "", lines, where)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise InputError(f"not valid YAML: {error.problem}", where=f"{where}{line}") from None
    except yaml.YAMLError as error:
        raise InputError(f"not valid YAML: {error}", where=where) from None
    except RecursionError:
        raise InputError("nested too deeply, or an alias of itself", where=where) from None
    except ValueError as error:  # a date with a month of 13, a number of 5,000 digits
        raise InputError(f"not valid YAML: {error}", where=where) from None
    return value, lines


def _note_lines(node: yaml.Node | None, path: str, lines: dict[str, int], where: str) -> None:
    """Put the line of every dotted key below ``node`` into ``lines``."""
    if isinstance(node, yaml.MappingNode):
        for key, child in node.value:
            name = f"{path}.{key.value}" if path else str(key.value)
            lines[name] = key.start_mark.line + 1
            _note_lines(child, name, lines, where)
    elif isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            name = f"{path}.{index}" if path else str(index)
            lines[name] = child.start_mark.line + 1
            _note_lines(child, name, lines, where)
    elif isinstance(node, yaml.ScalarNode) and not _is_text(node.value):
        line = node.start_mark.line + 1
        raise InputError("half of a surrogate pair is no text", where=f"{where}:{line}", key=path)


def _is_text(value: str) -> bool:
    """Whether a string can be written to a file at all."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def apply_override(raw: dict[str, Any], assignment: str) -> str:
    """Apply one ``key=value`` (dotted key, YAML value) to the raw study; return the key.

    Raises:
        InputError: there is no ``=``, the value is no YAML, or the path runs through a value that
            holds no keys.
    """
    key, separator, text = assignment.partition("=")
    key = key.strip()
    if not separator or not key:
        raise InputError("write --set key=value", key="--set", value=assignment)
    value, _ = parse_yaml(text, f"--set {key}")
    parts = key.split(".")
    if not all(parts):
        raise InputError(
            "a part of the key is empty; write it as in train.query.epochs",
            key="--set",
            value=assignment,
        )
    target: Any = raw
    for part in parts[:-1]:
        if isinstance(target, list):
            target = _item(target, part, key)
        elif isinstance(target, dict):
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
        else:
            raise InputError(f"{part!r} lies in a value that holds no keys", key=f"--set {key}")
    if isinstance(target, list):
        _item(target, parts[-1], key)
        target[int(parts[-1])] = value
    elif isinstance(target, dict):
        target[parts[-1]] = value
    else:
        raise InputError(f"{parts[-1]!r} lies in a value that holds no keys", key=f"--set {key}")
    return key


def _item(values: list[Any], part: str, key: str) -> Any:
    if not re.fullmatch("[0-9]{1,9}", part) or int(part) >= len(values):
        raise InputError(
            f"{part!r} is no place in a list of {len(values)}; count from 0", key=f"--set {key}"
        )
    return values[int(part)]


_ALIASES = {"dataset": "datasets", "pair": "pairs", "method": "methods", "seed": "seeds"}


def load_study(
    text: str, where: str, folder: Path, overrides: Sequence[str] = ()
) -> tuple[Study, Source]:
    """Validate a study's text.

    ``dataset``, ``pair``, ``method`` and ``seed`` may be given for lists of one; ``bits: 32`` too.
    The fields of the recipe stand directly under ``train``. Where an override replaces datasets,
    pairs, methods or code lengths, ``where`` may still name those that the text has.

    Raises:
        InputError: the first mistake, with file, line, key, value and what is allowed.
    """
    raw, lines = parse_yaml(text, where)
    source = Source(text=text, where=where, folder=folder, lines=lines)
    if not isinstance(raw, dict):
        raise InputError("a study is a mapping of keys to values", where=where)
    written = copy.deepcopy(raw)
    set_keys = [apply_override(raw, assignment) for assignment in overrides]
    try:
        study = _validate(raw, folder)
        _check_where(study, _replaced(written, set_keys))
        return study, source
    except InputError as error:
        key = error.key or ""
        if any(key == given or key.startswith(f"{given}.") for given in set_keys):
            raise error.located(where=f"{where} with --set") from None
        raise error.located(where=source.locate(error.key)) from None


def _validate(raw: dict[str, Any], folder: Path) -> Study:
    data = dict(raw)
    _text_keys(data, "")
    for alias, name in _ALIASES.items():
        if alias in data:
            if name in data:
                raise InputError(f"give {alias!r} or {name!r}, not both", key=alias)
            value = data.pop(alias)
            if value is None:
                raise InputError("nothing is given", key=alias)
            whole = alias == "method" and isinstance(value, dict)
            data[name] = value if whole or isinstance(value, list) else [value]
    for name in ("bits", "seeds"):
        if isinstance(data.get(name), int) and not isinstance(data.get(name), bool):
            data[name] = [data[name]]
    for name in ("datasets", "pairs", "methods"):
        if isinstance(data.get(name), str) or (
            name != "methods" and isinstance(data.get(name), dict)
        ):
            data[name] = [data[name]]
    _check_shapes(data)
    train = data.get("train")
    if isinstance(train, dict):
        data["train"] = _split_recipe(train)
    try:
        study = Study(**data)
    except ValidationError as error:
        raise explain_validation(error, Study) from None
    if study.tracking.uri is not None:
        check_uri(study.tracking.uri)
    _check_kind(study, set(data))
    for side in ("query", "gallery"):
        own = getattr(study.train, side)
        check_recipe({**study.train.recipe, **own}, side, own)
    return study


def _names(given: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what ``where`` calls the entries of a study's lists; what is no entry is left out.

    Args:
        given: the study, also as its file has it.
    """
    found: dict[str, list[Any]] = {}
    for name in ("datasets", "pairs", "methods", "bits"):
        alias = next((alias for alias, plural in _ALIASES.items() if plural == name), name)
        value = given.get(name, given.get(alias))
        several = isinstance(value, list) or (name == "methods" and isinstance(value, dict))
        called = [_called(name, entry) for entry in (value if several else [value])]
        found[name] = list(dict.fromkeys(name for name in called if name is not None))
    return found


def _called(kind: str, entry: Any) -> Any:
    """Return what one entry of a study's list is called; None where it is no such entry."""
    if kind == "bits":
        return entry if isinstance(entry, int) else None
    if isinstance(entry, str):
        return PAIRS.get(entry).name if kind == "pairs" and entry in PAIRS else entry
    if not isinstance(entry, dict) or not entry:
        return None
    if kind == "methods":
        called: Any = next(iter(entry))
    elif kind == "pairs":
        called = entry.get("name") or default_pair_name(entry)
    else:
        own = next((short for short in SHORTHANDS if short in entry), None)
        called = entry.get("label") or entry.get("name", own)
    return called if isinstance(called, str) else None


def _replaced(written: Mapping[str, Any], set_keys: Sequence[str]) -> dict[str, list[Any]]:
    """Return the names that a study's file has in lists that ``--set`` puts other entries into.

    ``--set datasets=[coco]`` and ``--set datasets.0=coco`` do; ``--set datasets.0.label=mine``
    calls the same one otherwise, and what is under ``where`` for it has to follow.
    """
    keys = {re.sub(r"\.[0-9]+$", "", key) for key in set_keys}
    return {
        name: names
        for name, names in _names(written).items()
        if keys & {name, *(alias for alias, plural in _ALIASES.items() if plural == name)}
    }


def _check_where(study: Study, replaced: Mapping[str, Sequence[Any]]) -> None:
    """Refuse a cell that the study has not, a method that it has not, and a wrong recipe.

    Args:
        study: with what ``--set`` says.
        replaced: list of the study -> names that its file has there too.
    """
    names = study.names()
    for place, where in enumerate(study.where):
        key = f"where.{place}"
        for part, name in _LIST_OF.items():
            known = list(dict.fromkeys([*names[name], *replaced.get(name, [])]))
            for one in _several(getattr(where, part)):
                if one in known:
                    continue
                if part == "bits":
                    allowed = ", ".join(map(str, known))
                    raise InputError(f"the study has {allowed}", key=f"{key}.bits", value=one)
                kind = f"{name.removesuffix('s')} of this study"
                raise UnknownNameError(kind, one, known, key=f"{key}.{part}")
        for method, values in where.methods.items():
            for name, value in values.items():
                if isinstance(value, list):
                    raise InputError(
                        "has one value in a cell; a list spans a grid, under 'methods'",
                        key=f"{key}.methods.{method}.{name}",
                        value=value,
                    )
        try:
            study.trained(where.train)
        except InputError as error:
            raise error.located(prefix=key) from None


def _check_kind(study: Study, given: set[str]) -> None:
    """Refuse what does not go together with the kind of the study."""
    searching = study.kind != "benchmark"
    for key in ("search", "sensitivity", "tuning"):
        if key in given and not (searching if key == "search" else study.kind == key):
            wanted = "sensitivity or tuning" if key == "search" else key
            raise InputError(
                f"only a study of kind {wanted} has this; this one is of kind {study.kind}",
                key=key,
                hint=f"set kind: {wanted.split()[0]}, or leave {key!r} out",
            )
    if not searching:
        return
    if not study.search:
        raise InputError(
            f"a {study.kind} study says what it varies: a mapping of names to dimensions, or "
            "'default'",
            key="search",
            value=study.search,
        )
    if study.train.validate_every == 0:
        raise InputError(
            f"a {study.kind} study is told the validation mAP, so it validates; set it to 1, or "
            "to the epochs between two validations",
            key="train.validate_every",
            value=0,
        )


def _text_keys(value: Any, path: str) -> None:
    """Refuse keys that YAML reads as numbers, dates or nothing: no key of a study is such."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                raise InputError(f"every key must be text, {key!r} is not", key=path or None)
            _text_keys(child, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _text_keys(child, f"{path}.{index}" if path else str(index))


_MAPPINGS = (
    "train",
    "evaluate",
    "sensitivity",
    "tuning",
    "resources",
    "faults",
    "checkpoint",
    "tracking",
)
_LISTS = {
    "where": "mappings, each with where it holds and what is different there",
    "datasets": "names of datasets, or mappings with 'name' (or 'folder') and options",
    "pairs": "names of pairs, or mappings with 'query' and 'gallery'",
    "methods": "names of methods, or mappings of a name to its hyperparameters",
    "bits": "whole numbers from 1 to 1024",
    "seeds": "whole numbers of at least 0",
}


def _check_shapes(data: dict[str, Any]) -> None:
    """Refuse what is no list or mapping where one is needed, in the study's own words.

    A model's complaint about a union names the first of its arms, which may not be what was meant.
    """

    def refuse(key: str, wanted: str, value: Any) -> InputError:
        if value is None or value in ([], {}):
            hint = "give a value, or leave out a key that may be left out"
            return InputError(f"nothing is given; it must be {wanted}", key=key, hint=hint)
        return InputError(f"must be {wanted}", key=key, value=value)

    def mapping(key: str, value: Any) -> None:
        if not isinstance(value, dict):
            raise refuse(key, "a mapping of keys to values", value)

    for name, items in _LISTS.items():
        if name not in data:
            continue
        value = data[name]
        if not value or not isinstance(value, list | dict if name == "methods" else list):
            raise refuse(name, f"a list: {items}", value)
    for name in _MAPPINGS:
        if name in data:
            mapping(name, data[name])
    search = data.get("search", "default")
    if (search != "default" and not isinstance(search, dict)) or search == {}:
        raise refuse("search", "'default', or a mapping of names to dimensions", search)
    for index, item in enumerate(data.get("datasets", [])):
        if not isinstance(item, str | dict):
            raise InputError(
                "must be the name of a dataset, or a mapping with 'name' or 'folder'",
                key=f"datasets.{index}",
                value=item,
            )
    for index, item in enumerate(data.get("pairs", [])):
        if not isinstance(item, str | dict):
            raise InputError(
                "must be the name of a pair, or a mapping with 'query' and 'gallery'",
                key=f"pairs.{index}",
                value=item,
            )
    _check_methods(data.get("methods", []))
    for side in ("query", "gallery", "augmentation"):
        if side in data.get("train", {}):
            mapping(f"train.{side}", data["train"][side])
    for kind, value in data.get("resources", {}).items():
        if kind != "device" and value is not None:
            mapping(f"resources.{kind}", value)
            for part in ("custom", "labels"):
                if part in value:
                    mapping(f"resources.{kind}.{part}", value[part])


def _check_methods(methods: Any, key: str = "methods") -> None:
    if isinstance(methods, dict):
        for name, params in methods.items():
            if params is not None and not isinstance(params, dict):
                raise InputError(
                    "must be a mapping of hyperparameters to values; {} or nothing takes the "
                    "defaults",
                    key=f"{key}.{name}",
                    value=params,
                )
        return
    for index, entry in enumerate(methods):
        if isinstance(entry, dict) and len(entry) == 1:
            _check_methods(entry, f"methods.{index}")
        elif not isinstance(entry, str):
            raise InputError(
                "must be the name of a method, or a mapping of one name to its hyperparameters",
                key=f"methods.{index}",
                value=entry,
                hint="write - csch: {gamma: 10.0}",
            )
        if entry in methods[:index]:
            shown = repr(entry) if isinstance(entry, str) else repr(next(iter(entry)))
            raise InputError(f"{shown} is there twice", key=f"methods.{index}")


def _split_recipe(train: dict[str, Any]) -> dict[str, Any]:
    """Move the recipe's fields from under ``train`` to ``train.recipe``."""
    own = set(Training.model_fields) - {"recipe"}
    fields = set(Recipe.model_fields)
    for key in train:
        if key not in own | fields:
            raise UnknownNameError("key", str(key), own | fields, key=f"train.{key}")
    return {
        **{key: value for key, value in train.items() if key in own},
        "recipe": {key: value for key, value in train.items() if key in fields},
    }


def check_recipe(given: Mapping[str, Any], side: str, own: Mapping[str, Any]) -> None:
    """Refuse a recipe that cannot be.

    Args:
        given: all fields of one side's recipe.
        side: which.
        own: those that the study gives for that side only.

    Raises:
        InputError: with the key under which the study gives it.
    """
    try:
        Recipe(**given)
    except ValidationError as error:
        explained = explain_validation(error, Recipe)
        of_side = (explained.key or "").split(".")[0] in own
        raise explained.located(prefix=f"train.{side}" if of_side else "train") from None
