"""Numbers that papers printed, beside ours only where they are about the same thing.

A published number belongs to a trial whose dataset, split sizes, cut-off, code length, networks,
image size, method and variant of the method are those of the paper: of another trial nothing is
said. What else can be told apart (epochs, learning rates, initial weights, weights of loss terms,
the convention by which mAP is counted) is listed where it differs, and then no difference of the
two numbers is given. `data/published_tables.yaml` has the numbers and their conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from methods.base import METHODS
from methods.pairs import PAIRS

if TYPE_CHECKING:
    from orchestrator.plan import Plan, Trial

SIDES = ("query", "gallery")


@dataclass(frozen=True)
class Published:
    """What a paper printed for a cell: same dataset, protocol, networks, method and code length.

    Attributes:
        value: mAP as a fraction.
        tables: where it stands: "Table 2", or "Tables 2, 4, 5" where several print it.
        paper: short name of the paper.
        dagger: whether the paper marks it as its authors' own run of another paper's method.
        differs: in what the trial departs from what was published, as far as can be told: "epochs
            8, not 150". Where it is not empty, a difference of the two numbers says nothing.
    """

    value: float
    tables: str
    paper: str
    dagger: bool = False
    differs: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether a difference to this number may be shown."""
        return not self.differs

    @property
    def source(self) -> str:
        """Where it stands: ``CSCH, Table 2``."""
        return f"{self.paper}, {self.tables}"


@dataclass(frozen=True)
class Conditions:
    """All of a trial that a published number can be compared by.

    Attributes:
        dataset: its registered name.
        sizes: split -> images, of "query", "gallery" and "train".
        at: cut-off of mAP.
        bits: code length.
        method: its name.
        params: all its hyperparameters.
        sides: side -> identity of its network, of "query" and "gallery".
        recipes: side -> recipe.
        augmentation: whether it is the dataset's own.
    """

    dataset: str
    sizes: Mapping[str, int]
    at: str
    bits: int
    method: str
    params: Mapping[str, Any]
    sides: Mapping[str, Mapping[str, Any]]
    recipes: Mapping[str, Mapping[str, Any]]
    augmentation: bool = True


def conditions_of(plan: Plan, trial: Trial) -> Conditions | None:
    """Return a trial's conditions; None where no number of its dataset is known."""
    dataset = next((one for one in plan.datasets if one.label == trial.dataset), None)
    if dataset is None or dataset.name not in _paper()["protocols"]:
        return None
    own = {kind: plan.stages[i].identity for kind, i in trial.stages.items()}
    if "joint" in own:
        sides, recipes = own["joint"]["sides"], own["joint"]["recipes"]
    else:
        sides = {side: own[side]["side"] for side in SIDES}
        recipes = {side: own[side]["recipe"] for side in SIDES}
    trained = own.get("joint") or own["query"]
    splits = dataset.splits()
    return Conditions(
        dataset=dataset.name,
        sizes={name: len(getattr(splits, name)) for name in ("query", "gallery", "train")},
        at=str(trial.at),
        bits=trial.bits,
        method=trial.method,
        params=trial.params,
        sides=sides,
        recipes=recipes,
        augmentation=trained["augmentation"]
        == dataset.default_augmentation.model_dump(mode="json"),
    )


def find_published(own: Conditions, score: str) -> Published | None:
    """Return what a paper printed for a trial, or None.

    Args:
        own: the trial's conditions.
        score: the score that stands beside it.
    """
    paper = _paper()
    if not _same_protocol(paper, own):
        return None
    found = [row for row in _rows() if _same_cell(row, own)]
    if not found:
        return None
    first = found[0]
    value = first.value_of(own)
    tables = sorted({row.table for row in found if row.value_of(own) == value})
    many = "s" if len(tables) > 1 else ""
    return Published(
        value=value,
        tables=f"Table{many} {', '.join(map(str, tables))}",
        paper=paper["paper"]["name"],
        dagger=first.dagger,
        differs=tuple(_differences(paper, first, own, score)),
    )


def published_score() -> str:
    """Return the score that published numbers are counted as."""
    return str(_paper()["paper"]["score"])


def paper_title() -> str:
    """Return the paper whose numbers these are, with its year."""
    about = _paper()["paper"]
    return f"{about['title']}, {about['year']}"


# ---- the file -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """One row of a printed table.

    Attributes:
        table: its number.
        pair: registered name of its networks.
        size: of images in px, on both sides.
        method, params: what was trained, and in what it is not the paper's usual setting.
        bits: code lengths of ``map``.
        map: dataset -> numbers.
        dagger: as in :class:`Published`.
        unclear: what the paper leaves open; "" is nothing.
    """

    table: int
    pair: str
    size: int
    method: str
    bits: tuple[int, ...]
    map: Mapping[str, tuple[float, ...]]
    params: Mapping[str, Any] = field(default_factory=dict)
    dagger: bool = False
    unclear: str = ""

    def value_of(self, own: Conditions) -> float:
        return self.map[own.dataset][self.bits.index(own.bits)]


@cache
def _paper() -> dict[str, Any]:
    import yaml

    file = files("orchestrator.reporting") / "data" / "published_tables.yaml"
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return data


@cache
def _rows() -> tuple[_Row, ...]:
    return tuple(_read_rows(_paper()))


def _read_rows(paper: Mapping[str, Any]) -> Iterator[_Row]:
    for table in paper["tables"]:
        bits = tuple(table.get("bits", paper["bits"]))
        for row in table["rows"]:
            values = {name: tuple(numbers) for name, numbers in row["map"].items()}
            given = {"size": paper["size"], **row, "bits": bits, "map": values}
            yield _Row(table=table["table"], **given)


@cache
def _expected(method: str, dataset: str, params: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Return all hyperparameters behind a printed number."""
    settings = _paper()["settings"].get(method, {}).get(dataset, {})
    parsed = METHODS.get(method).Params.parse({**settings, **dict(params)})
    values: dict[str, Any] = parsed.model_dump(mode="json")
    return values


# ---- what is the same, and what differs -----------------------------------------------------


def _same_protocol(paper: Mapping[str, Any], own: Conditions) -> bool:
    printed = paper["protocols"].get(own.dataset)
    if printed is None or str(printed["at"]) != own.at:
        return False
    return all(own.sizes.get(name) == n for name, n in printed.items() if name != "at")


def _same_cell(row: _Row, own: Conditions) -> bool:
    """Whether a row is about the trial's networks, image size, code length and method."""
    if row.method != own.method or own.dataset not in row.map or own.bits not in row.bits:
        return False
    pair = PAIRS.get(row.pair)
    for side in SIDES:
        identity = own.sides[side]
        printed = getattr(pair, side).backbone
        if _bare(identity["backbone"]) != _bare(printed) or identity["size"] != row.size:
            return False
    expected = _expected(row.method, own.dataset, tuple(row.params.items()))
    return all(
        _is_number(value) or own.params.get(name) == value for name, value in expected.items()
    )


def _differences(
    paper: Mapping[str, Any], row: _Row, own: Conditions, score: str
) -> Iterator[str]:
    """Yield in what a trial departs from the paper's, a phrase each."""
    if row.unclear:
        yield f"the paper's network is not clear: {row.unclear}"
    if score != paper["paper"]["score"]:
        yield "mAP as this benchmark counts it, not as the paper's code (evaluate.legacy)"
    expected = _expected(row.method, own.dataset, tuple(row.params.items()))
    for name, value in expected.items():
        if _is_number(value) and own.params.get(name) != value:
            yield _phrase(name, own.params.get(name), value)
    pair = PAIRS.get(row.pair)
    for side in SIDES:
        yield from _of_side(side, own.sides[side], getattr(pair, side).identity())
        recipe = dict(paper["recipe"])
        if side == "query":
            slower = paper["query_recipe"].get(_bare(own.sides[side]["backbone"]), {})
            recipe |= slower.get(own.dataset, {})
        for name, value in recipe.items():
            if own.recipes[side].get(name) != value:
                yield f"{side}: {_phrase(name, own.recipes[side].get(name), value)}"
    if not own.augmentation:
        yield "another augmentation"


def _of_side(side: str, own: Mapping[str, Any], printed: Mapping[str, Any]) -> Iterator[str]:
    for name, value in printed.items():
        if name not in ("backbone", "size") and own.get(name) != value:
            yield f"{side}: {_phrase(name, own.get(name), value)}"


def _phrase(name: str, own: Any, printed: Any) -> str:
    return f"{name} {_short(own)}, not {_short(printed)}"


def _short(value: Any) -> str:
    if isinstance(value, str) and value.startswith("sha256:"):
        return f"{value[:14]}..."
    return f"{value:g}" if _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bare(backbone: str) -> str:
    """Return a backbone without its tag."""
    return backbone.partition(".")[0]
