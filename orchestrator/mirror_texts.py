"""What MLflow says of a trial in words: its name, its description, its model's card."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.plan import Plan, Trial
from orchestrator.study import Study

_SCORES = {
    "map": "mAP",
    "map_stable": "stable",
    "map_symmetric": "symmetric",
    "validation/map": "validation",
    "precision_at_k/100": "P@100",
    "p_at_hamming_2": "P, radius 2",
}


_MEANING = (
    "the expectation over orders of equal distances; stable: ties by gallery order; symmetric: "
    "queries by the gallery's network; validation: of the last epoch."
)


def run_name(trial: Trial) -> str:
    """Return a readable name: ``csch · mnv3s→rn50 · 32 bit · cifar10 · s0``.

    A pair whose name joins its sides with one hyphen is shown with an arrow, from the query to the
    gallery; any other name is shown as the study has it.
    """
    sides = trial.pair.split("-")
    if len(sides) != 2 or not all(sides) or "→" in trial.pair or ">" in trial.pair:
        return trial.label
    return trial.label.replace(f" · {trial.pair} · ", f" · {'→'.join(sides)} · ", 1)


def trial_row(trial: Trial, metrics: Mapping[str, float]) -> str:
    """Return a finished trial's row of the table, in Markdown."""
    shown = {title: metrics[name] for name, title in _SCORES.items() if name in metrics}
    where = {
        "method": f"{trial.method} {trial.setting}".strip(),
        "dataset": trial.dataset,
        "pair": trial.pair,
        "bits": str(trial.bits),
        "seed": str(trial.seed),
    }
    row = {**where, **{title: f"{value:.4f}" for title, value in shown.items()}}
    values = _row(escape(value) for value in row.values())
    return "\n".join([_row(row), _row("---" for _ in row), values])


def trial_more(trial: Trial, study: str, given: Study | None, plan: Plan) -> str:
    """Return what the numbers of a trial mean, and how to make it again, in Markdown."""
    # A code block does not wrap, and a page as wide as its line hides the rest.
    command = f"``{again(trial, study, given, plan)}``"
    return f"mAP@{trial.at}: {_MEANING}\n\nTo make it again, in the home of the study: {command}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def again(trial: Trial, study: str, given: Study | None, plan: Plan) -> str:
    """Return the command that makes a trial again, by itself where the study is a benchmark."""
    if given is None or given.kind != "benchmark":
        return shlex.join(["asymbench", "run", study])
    names = given.names()
    labels = [dataset.label for dataset in plan.datasets]
    settings = {
        "study": f"{study[:59]}-one",
        "datasets": [given.datasets[labels.index(trial.dataset)]],
        "pairs": [given.pairs[names["pairs"].index(trial.pair)]],
        "methods": [{trial.method: trial.params}],
        "bits": [trial.bits],
        "seeds": [trial.seed],
    }
    words = ["asymbench", "run", study]
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        words += ["--set", f"{key}={text}"]
    return shlex.join(words)


def model_card(
    trial: Trial, study: str, side: Mapping[str, Any], metrics: Mapping[str, float]
) -> str:
    """Return the card of a trial's query network, in Markdown."""
    scores = [
        f"| {title} | {metrics[name]:.4f} |" for name, title in _SCORES.items() if name in metrics
    ]
    size = side["size"]
    about = (
        f"The query network of a trial of the study {escape(study)}: `{side['backbone']}` with "
        f"the hash head `{side['head']}`, {trial.bits} bits, trained by {escape(trial.method)} "
        f"on {escape(trial.dataset)} (protocol {escape(trial.protocol)})."
    )
    lines = [
        f"# {escape(run_name(trial))}",
        "",
        about,
        "",
        f"- Input `views`: float32 (n, 3, {size}, {size}), RGB in [0, 1]; normalised inside.",
        f"- Output `codes`: float32 (n, {trial.bits}) before the sign; the signs are the bits.",
        f"- Gallery: codes of `{trial.gallery_backbone}`, compared by Hamming distance.",
        "- `weights.safetensors`, among the artifacts of the run; it holds tensors and no code.",
        f"- `input_example.npy`: float32 (1, 3, {size}, {size}), a ramp and no image.",
        "",
        f"| score (mAP@{trial.at}) | |",
        "| --- | ---: |",
        *scores,
        "",
        "Hyperparameters:",
        "",
        *(f"- {name}: {escape(str(value))}" for name, value in trial.params.items()),
        "",
    ]
    return "\n".join(lines)


def study_note(study: str, table: str) -> str:
    """Return an experiment's description: where everything is, and the study's table."""
    name = shlex.quote(study)
    open_it = (
        f"- `asymbench ui {name}` opens this page with its views; `asymbench report {name}` has "
        "the table in every format, and the page to send."
    )
    old_runs = (
        "- Runs of trials that the study no longer has are marked; "
        "`tags.superseded_by IS NULL` leaves them out."
    )
    lines = [
        f"The study {escape(study)}, mirrored from its stage store, which has everything.",
        "",
        open_it,
        old_runs,
        "- Stages that trials share are in the experiment `asymbench-stages`.",
        "",
        table,
    ]
    return "\n".join(lines)


def escape(text: str) -> str:
    """Return text that Markdown shows as it is."""
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|\[\]#])", r"\\\1", plain)
