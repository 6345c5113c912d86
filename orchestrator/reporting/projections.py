"""Maps of gallery codes: t-SNE in two dimensions, coloured by class, as CSCH's Fig. 9.

A map takes seconds, so that it is kept in the study's folder under the digest of all that it is
made of: the codes' stage, the sample and the versions.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.reporting.charts import Series, cloud_chart
from orchestrator.reporting.curves import validation_by_epoch
from orchestrator.reporting.panels import Entry, Panel
from orchestrator.reporting.sections import Section
from orchestrator.reporting.templates import render
from orchestrator.store import digest, read_json, write_json

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup
    from numpy.typing import NDArray

    from orchestrator.plan import Plan
    from orchestrator.reporting.results import TrialResult
    from retrieval.datasets import Dataset

    Floats = NDArray[np.float64]
    Ints = NDArray[np.int64]

_log = logging.getLogger(__name__)

SAMPLE = 600
"""Images of a map."""

CLASSES = 10
"""Classes of a map; more colours cannot be told apart."""

MAPS = 12
"""Maps of a page."""

PERPLEXITY = 30.0
"""Neighbours that count; fewer where the sample is small."""

STEPS = 500
"""Steps of gradient descent, the first 250 of them with early exaggeration."""

LEAST = 20
"""Images below which there is no map."""


@dataclass(frozen=True)
class Sample:
    """The images of a map.

    Attributes:
        places: (n,) in the gallery split, increasing.
        classes: (n,) numbers.
        names: class number -> name.
        told: how they were drawn.
    """

    places: Ints
    classes: Ints
    names: dict[int, str]
    told: str


def projections_section(plan: Plan, panels: Sequence[Panel], folder: Path) -> Section:
    """Return maps of the best setting of each method.

    The best is by validation mAP; where none was measured it is the first setting of the study.
    Of several code lengths the longest is shown, of several seeds the first.

    Args:
        plan: of the study.
        panels: what is done.
        folder: where maps are kept, if it can be written.
    """
    title = "Maps of the codes"
    wanted = [(panel, *one) for panel in _longest(panels) for one in galleries(panel)]
    samples = {dataset.label: _sample(dataset) for dataset in plan.datasets} if wanted else {}
    known = [(*one, s) for one in wanted if (s := samples[one[0].column.dataset]) is not None]
    if not known:
        why = "no trial is scored yet" if not wanted else "too few gallery images of one class"
        return Section("maps", title, why=why)
    shown: dict[int, tuple[Panel, list[tuple[str, Markup]], str]] = {}
    for panel, name, one, sample in known[:MAPS]:
        chart = _chart(name, sample, _kept(folder, one, sample, panel.column.bits))
        shown.setdefault(panel.number, (panel, [], sample.told))[1].append((name, chart))
    left = [name for _, name, _, _ in known[MAPS:]]
    return Section("maps", title, render("maps", panels=list(shown.values()), left=left))


def galleries(panel: Panel) -> list[tuple[str, TrialResult]]:
    """Return the galleries of a panel: the methods that rank it, and a trial that has it.

    Several methods may share one; a map is the same for all of them.
    """
    shared: dict[str, list[Entry]] = {}
    for entry in best_settings(panel):
        shared.setdefault(_gallery(entry.first), []).append(entry)
    return [
        (", ".join(entry.method for entry in entries), entries[0].first)
        for entries in shared.values()
    ]


def _gallery(one: TrialResult) -> str:
    """Return the id of the stage that made a trial's gallery codes."""
    return one.trial.stages.get("joint") or one.trial.stages["gallery"]


def _longest(panels: Sequence[Panel]) -> list[Panel]:
    """Return the panel with the longest codes of each dataset and pair."""
    found: dict[tuple[str, str, str, str], Panel] = {}
    for panel in panels:
        column = panel.column
        found[panel.pair, column.dataset, column.protocol, column.at] = panel
    return list(found.values())


def best_settings(panel: Panel) -> list[Entry]:
    """Return one entry a method: that of the highest mean validation mAP, else the first."""
    methods: dict[str, list[Entry]] = {}
    for entry in panel.entries:
        methods.setdefault(entry.first.trial.method, []).append(entry)
    return [max(entries, key=_validation) for entries in methods.values()]


def _validation(entry: Entry) -> float:
    """Return the mean validation mAP at the end over seeds; -1 where it was not measured."""
    curves = [validation_by_epoch(one) for one in entry.trials]
    last = [curve[max(curve)] for curve in curves if curve]
    return sum(last) / len(last) if last else -1.0


def _sample(dataset: Dataset) -> Sample | None:
    """Return the images of a dataset's maps; None where too few have one class."""
    import numpy as np

    from retrieval import streams

    index = dataset.index()
    labels = np.asarray(index.labels)[dataset.splits().gallery]
    single = np.ones(len(labels), bool) if labels.ndim == 1 else (labels != 0).sum(axis=1) == 1
    classes = labels if labels.ndim == 1 else np.argmax(labels != 0, axis=1)
    present = np.unique(classes[single])
    seed = dataset.protocol.split_seed
    order = streams.permutation(seed, "classes mapped", len(present))
    chosen = np.sort(present[order[:CLASSES]])
    rows = np.flatnonzero(single & np.isin(classes, chosen))
    drawn = np.sort(rows[streams.permutation(seed, "images mapped", len(rows))[:SAMPLE]])
    if len(drawn) < LEAST:
        return None
    names = {int(number): index.classes[int(number)] for number in chosen}
    told = f"{len(drawn):,} of {len(labels):,} gallery images, drawn by the split's seed"
    told += "" if len(chosen) == len(present) else f", of {CLASSES} of {len(present)} classes"
    told += "" if labels.ndim == 1 else ", each with one class"
    return Sample(drawn, classes[drawn].astype(np.int64), names, told)


def _chart(name: str, sample: Sample, points: Floats) -> Markup:
    series = []
    for style, (number, title) in enumerate(sample.names.items()):
        own = points[sample.classes == number].tolist()
        if own:
            series.append(Series(title, style, tuple((x, y) for x, y in own)))
    return cloud_chart(f"Gallery codes of {name}", "A dot an image.", series)


def _kept(folder: Path, one: TrialResult, sample: Sample, bits: int) -> Floats:
    """Return a map, from the folder where it is known already."""
    import numpy as np
    import sklearn

    stage = _gallery(one)
    made_of = {
        "stage": stage,
        "places": sample.places.tolist(),
        "options": [PERPLEXITY, STEPS],
        "versions": [np.__version__, sklearn.__version__],
    }
    path = folder / f"tsne-{digest(made_of)[:32]}.json"
    found = _points(read_json(path), len(sample.places))
    if found is None:
        file = one.store.read(stage, "gallery_codes.npy")
        packed = np.load(file, allow_pickle=False)[sample.places]
        found = project(np.unpackbits(packed, axis=1, count=bits))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, found.tolist())
        except OSError as error:  # of a home that is only read: the page has its map all the same
            _log.warning("the map %s is not kept: %s", path, error)
    return found


def _points(kept: object, count: int) -> Floats | None:
    """Return what a file holds as (n, 2) points; None where it is no such thing."""
    import numpy as np

    try:
        points = np.asarray(kept, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return points if points.shape == (count, 2) and np.isfinite(points).all() else None


def project(bits: NDArray[np.uint8]) -> Floats:
    """Return codes in two dimensions by t-SNE on Hamming distances.

    Args:
        bits: (n, B) of 0 and 1.

    Returns:
        (n, 2) to three digits; the same for the same codes.
    """
    import numpy as np
    from sklearn.manifold import TSNE

    perplexity = min(PERPLEXITY, (len(bits) - 1) / 3)
    signs = 2.0 * bits.astype(np.float32) - 1.0
    limits = importlib.import_module("threadpoolctl").threadpool_limits
    with limits(1):  # sums depend on the number of threads
        made = TSNE(
            metric="hamming",
            init=_start(signs),
            perplexity=perplexity,
            max_iter=STEPS,
            random_state=0,
        ).fit_transform(signs)
    points: Floats = np.asarray(made, dtype=np.float64).round(3)
    return points


def _start(signs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return where t-SNE begins: the first two principal components, 1e-4 wide.

    Kobak and Berens, "The art of using t-SNE for single-cell transcriptomics", 2019. A component's
    sign is that of its largest entry, so that it is one whatever computes it; codes of one bit or
    without variance have components of zeros.
    """
    import numpy as np

    centred = signs.astype(np.float64) - signs.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    made = np.zeros((len(signs), 2))
    for place, axis in enumerate(axes.T[::-1][:2]):
        made[:, place] = centred @ (axis * np.sign(axis[np.argmax(np.abs(axis))]))
    spread = made[:, 0].std()
    return (made * (1e-4 / spread if spread > 0 else 0.0)).astype(np.float32)
