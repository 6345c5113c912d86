"""What ``asymbench list`` shows: the registries' entries, as plain rows."""

from __future__ import annotations

from typing import Any

import yaml

from methods.base import METHODS, Task
from methods.pairs import PAIRS, backbone_gmacs
from retrieval.datasets import DATASETS
from search_spaces.presets import presets

HIDDEN = {"hyperparameters", "note", "url", "settings_from", "fields"}
"""Keys that only ``--json`` shows."""

_TASK = Task(bits=32, n_classes=10, n_train=1000, multi_label=False)


def entries(what: str) -> list[dict[str, Any]]:
    """Return one mapping an entry of "methods", "datasets", "pairs" or "studies"."""
    table = {"methods": _methods, "datasets": _datasets, "pairs": _pairs, "studies": _studies}
    return table[what]()


def broken(what: str) -> dict[str, Exception]:
    """Return the entries of the registry that cannot be imported."""
    registries: dict[str, Any] = {"methods": METHODS, "datasets": DATASETS, "pairs": PAIRS}
    return registries[what].broken() if what in registries else {}


def _methods() -> list[dict[str, Any]]:
    found = []
    for name in METHODS.names():
        cls = METHODS.get(name)
        method = cls(cls.Params(), _TASK)
        fields = cls.Params.model_fields
        found.append(
            {
                **method.describe(),
                "hyperparameters": {
                    key: {
                        "default": field.get_default(call_default_factory=True),
                        "reads": list(cls.Params.readers(key)),
                        "search": (field.json_schema_extra or {}).get("search", []),  # type: ignore[union-attr]
                        "doc": field.description,
                    }
                    for key, field in fields.items()
                },
                "url": cls.source.url,
                "settings_from": cls.source.settings_from,
                "note": cls.source.note,
            }
        )
    return found


def _datasets() -> list[dict[str, Any]]:
    return [DATASETS.get(name).describe() for name in DATASETS.names()]


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
