"""What ``asymbench list`` shows: the registries' entries, as plain rows."""

from __future__ import annotations

import inspect
import json
import re
import sys
import typing
from typing import Any

import yaml
from pydantic import BaseModel

from methods.base import METHODS, Hyperparameters, Task
from methods.pairs import PAIRS, backbone_gmacs
from retrieval.datasets import DATASETS
from retrieval.datasets.base import ProtocolOptions
from search_spaces.defaults import declared_range, default_ranges, read_with
from search_spaces.presets import presets
from search_spaces.space import dimension_of, range_text

_HIDDEN = {
    "methods": {
        "default_space",
        "hyperparameters",
        "memory",
        "note",
        "settings_from",
        "url",
        "version",
        "what",
    },
    "datasets": {"options", "details", "licence", "obtain", "version"},
    "pairs": {"note"},
    "studies": {"what"},
}
"""Keys that only ``--json`` and the documents show."""

_TASK = Task(bits=32, n_classes=10, n_train=5000, multi_label=False)


def entries(what: str) -> list[dict[str, Any]]:
    """Return one mapping an entry of "methods", "datasets", "pairs" or "studies"."""
    table = {"methods": _methods, "datasets": _datasets, "pairs": _pairs, "studies": _studies}
    return table[what]()


def columns(what: str, rows: list[dict[str, Any]]) -> list[str]:
    """Return the keys that a table for people shows."""
    return [key for key in (rows[0] if rows else ()) if key not in _HIDDEN[what]]


def broken(what: str) -> dict[str, Exception]:
    """Return the entries of the registry that cannot be imported."""
    registries: dict[str, Any] = {"methods": METHODS, "datasets": DATASETS, "pairs": PAIRS}
    return registries[what].broken() if what in registries else {}


def _methods() -> list[dict[str, Any]]:
    found = []
    for name in METHODS.names():
        cls = METHODS.get(name)
        method = cls(cls.Params(), _TASK)
        schemas = cls.Params.model_json_schema()["properties"]
        found.append(
            {
                **method.describe(),
                "what": inspect.getdoc(cls) or "",
                "hyperparameters": {
                    key: _hyperparameter(cls.Params, key, schemas[key])
                    for key in cls.Params.model_fields
                },
                "default_space": default_ranges(name),
                "url": cls.source.url,
                "settings_from": cls.source.settings_from,
                "note": cls.source.note,
            }
        )
    return found


def _hyperparameter(
    params: type[Hyperparameters], key: str, schema: dict[str, Any]
) -> dict[str, Any]:
    field = params.model_fields[key]
    extra = field.json_schema_extra
    arms = [schema, *schema.get("anyOf", ())]  # of `float | None` the limits are in an arm
    choices = [value for arm in arms for value in arm.get("enum", ())]
    limits = {
        sign: arm[name]
        for name, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        for arm in arms
        if name in arm
    }
    return {
        "default": field.get_default(call_default_factory=True),
        "allowed": choices or " and ".join(f"{sign} {limit}" for sign, limit in limits.items()),
        "reads": list(params.readers(key)),
        "search": extra.get("search", []) if isinstance(extra, dict) else [],
        **_range(params, key),
        "doc": field.description,
    }


def _range(params: type[Hyperparameters], key: str) -> dict[str, Any]:
    """Return the range that a hyperparameter declares, and where it is from."""
    given = declared_range(params, key) or {}
    extra = params.model_fields[key].json_schema_extra
    return {
        "range": {field: value for field, value in given.items() if field != "source"} or None,
        "range_from": given.get("source", ""),
        "tunable": bool(given) and isinstance(extra, dict) and extra.get("tunable") is True,
        "read_with": read_with(params, key),
    }


def _datasets() -> list[dict[str, Any]]:
    found = []
    for name in DATASETS.names():
        cls = DATASETS.get(name)
        options = {
            key: _option(cls.Options, key)
            for key in sorted(cls.Options.model_fields, key=lambda key: key != "root")
        }
        text = (inspect.getdoc(cls) or "").partition("\n\nArgs:")[0]
        found.append({**cls.describe(), "details": text, "options": options})
    return found


def _option(options: type[BaseModel], key: str) -> dict[str, Any]:
    field = options.model_fields[key]
    values = typing.get_args(field.annotation)
    literals = typing.get_origin(field.annotation) is typing.Literal
    return {
        "default": None if field.is_required() else _plain(field.get_default()),
        "required": field.is_required(),
        "allowed": list(values) if literals else None,
        "doc": _attributes(options).get(key, ""),
    }


def _plain(value: Any) -> Any:
    """Return a default as JSON holds it; a model whose fields all have defaults is empty."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return value


def _attributes(cls: type) -> dict[str, str]:
    """Return what the docstrings of a class and of those above it say of each attribute."""
    found: dict[str, str] = {}
    for parent in reversed(cls.__mro__):
        text = inspect.cleandoc(parent.__doc__ or "").partition("Attributes:\n")[2]
        for entry in re.split(r"\n(?=    \w)", f"\n{text}"):
            names, colon, meaning = entry.strip().partition(":")
            if colon and re.fullmatch(r"[\w, ]+", names):
                words = " ".join(meaning.split())
                found |= dict.fromkeys((name.strip() for name in names.split(",")), words)
    return found


def _pairs() -> list[dict[str, Any]]:
    found = []
    for name in PAIRS.names():
        pair = PAIRS.get(name)
        found.append(
            {
                "name": name,
                **{
                    f"{title}{key}": value
                    for title, side in (("query ", pair.query), ("gallery ", pair.gallery))
                    for key, value in (
                        ("backbone", side.backbone),
                        ("size", side.size),
                        ("GMACs", round(backbone_gmacs(side.backbone, side.size), 3)),
                        ("weights", side.identity()["weights"].split(":")[0]),
                    )
                },
                "note": pair.note,
            }
        )
    return found


def _studies() -> list[dict[str, Any]]:
    found = []
    for name, path in presets().items():
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        found.append(
            {
                "name": name,
                "kind": raw.get("kind", "benchmark"),
                "what": raw.get("description", "").strip(),
            }
        )
    return found


_INTRODUCTION = """\
# Methods

Generated from the methods' own declarations by `make docs`; `asymbench list methods --json` holds
the same. *Labels* says which trainings read labels. *Schedule* says how the two networks depend on
each other: *simultaneous* (same steps, nothing flows back to the gallery, so that it is trained
once and replayed), *frozen gallery* (two stages), or *joint* (one stage). *Shares* says what its
trials have in common with others. A *reconstructed* method was filled in by us where its paper is
not public; the notes say what is unknown.

*Default space* is what `search: default` of a sensitivity or tuning study varies, around the
*default*, which lies in it; *from* says where the range, or the values worth trying, are from. The
default space has a method's settings: numbers that weigh, scale or bound something. Where it says
*not by default*, another value makes another method: a choice of loss, head or centers that an
ablation turns, or the weight of a term that the published loss has not. A study searches that only
where it names it. *Only with* says with which values of another hyperparameter one is read at all;
without them it is not in the default space either. The weight of a loss's only term moves little
under Adam, which is free of scale: it weighs the loss against the weight decay.

A change of a hyperparameter trains anew only the stages that read it. Every method also takes
`quantizer: {name: caq, mode: add}` (or `replace`, `weight`, `t0`, `t1`), the correlation-aware
quantisation of DCAH.
"""


def methods_markdown() -> str:
    """Return ``docs/methods.md``: every method, from its declarations."""
    methods = _methods()
    head = ["method", "labels", "schedule", "heads", "shares", "status", "paper"]
    rows = [
        [
            f"[{m['name']}](#{m['name']})",
            m["labels"],
            m["schedule"],
            ", ".join(m["heads"]),
            m["shares"],
            m["status"],
            m["paper"],
        ]
        for m in methods
    ]
    return "\n".join([_INTRODUCTION, _pipes(head, rows), *map(_section, methods)])


_DATASETS = """\
# Datasets

Generated from the datasets' own declarations by `make docs`; `asymbench list datasets --json`
holds the same. Nothing is fetched: a dataset is read from the files as their authors give them
out. `asymbench prepare NAME --root DIR` says whether they are whole, and decodes them once;
`asymbench describe NAME --root DIR` shows splits, labels and a contact sheet.

Images of one's own take one line, `datasets: [{folder: /my/photos}]` or
`datasets: [{manifest: /my/list.csv}]`.

What is checked, what is refused and what is dropped with a count: [data.md](data.md).

Every dataset takes `label` (its name in tables) and `protocol`, a mapping that changes the split:

"""


def datasets_markdown() -> str:
    """Return ``docs/datasets.md``: every dataset, from its declarations."""
    protocol = _attributes(ProtocolOptions)
    rows = [[f"`{key}`", protocol.get(key, "")] for key in ProtocolOptions.model_fields]
    sections = []
    for d in _datasets():
        options = [
            [
                f"`{key}`",
                "needed" if o["required"] else _value(o["default"]),
                ", ".join(map(_value, o["allowed"] or ())),
                o["doc"],
            ]
            for key, o in d["options"].items()
            if key not in ("label", "protocol")
        ]
        lines = [
            f"\n## {d['name']}\n",
            f"{d['what']}. *{d['source']}*; licence: {d['licence']}.\n",
            f"{d['details']}\n",
            f"To obtain: {d['obtain']}.\n",
        ]
        table = [_pipes(["option", "default", "allowed", "meaning"], options)] if options else []
        sections.append("\n".join([*lines, *table]))
    return "\n".join([_DATASETS + _pipes(["key", "meaning"], rows), *sections])


def _section(m: dict[str, Any]) -> str:
    facts = [f"*{m['paper']}*"]
    if m["url"]:
        facts.append(f"<{m['url']}>")
    lines = [f"\n## {m['name']}\n", ", ".join(facts) + f": {m['status']}.\n", m["what"] + "\n"]
    if m["settings_from"]:
        lines.append(f"Defaults: {m['settings_from']}.\n")
    if m["note"]:
        lines.append(f"Note: {m['note']}.\n")
    if m["memory"]:
        lines.append(
            f"Kept from step to step, and in every checkpoint: {', '.join(m['memory'])}.\n"
        )
    if m["embeddings"]:
        lines.append("Made for continuous embeddings: see `evaluate.retrieval`.\n")
    rows = [
        [
            f"`{name}`",
            _value(h["default"]),
            ", ".join(map(_value, h["allowed"]))
            if isinstance(h["allowed"], list)
            else h["allowed"],
            ", ".join(map(_value, h["search"])),
            _default_range(h),
            h["range_from"],
            ", ".join(h["reads"]),
            h["doc"],
        ]
        for name, h in m["hyperparameters"].items()
        if name != "quantizer"
    ]
    head = [
        "hyperparameter",
        "default",
        "allowed",
        "worth trying",
        "default space",
        "from",
        "moves",
        "meaning",
    ]
    return "\n".join([*lines, _pipes(head, rows)]) if rows else "\n".join(lines)


def _default_range(h: dict[str, Any]) -> str:
    """Return a cell: the range in the default space, and when there is one."""
    if h["range"] is None:
        return ""
    text = range_text(dimension_of(h["range"])) if h["tunable"] else "not by default"
    conditions = [
        f"{parent} {' or '.join(map(_value, values))}" for parent, values in h["read_with"].items()
    ]
    return f"{text}; only with {' and '.join(conditions)}" if conditions else text


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _pipes(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [
        [
            re.sub(r"([|*_<>])", r"\\\1", cell) if "`" not in cell and "](" not in cell else cell
            for cell in line
        ]
        for line in lines
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


if __name__ == "__main__":
    pages = {"methods": methods_markdown, "datasets": datasets_markdown}
    sys.stdout.write(pages[sys.argv[1]]())
