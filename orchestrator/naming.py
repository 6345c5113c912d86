"""Which trial a text means: an id, its first digits, a label, in one study or in all of a home."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from orchestrator.store import read_json
from orchestrator.study import NAME
from retrieval.errors import InputError, nearest

if TYPE_CHECKING:
    from orchestrator.plan import Stage, Trial
    from orchestrator.session import Session

KEY = "TRIAL"

LEAST = 4
"""Digits of an id that are enough."""

_SHOWN = 10
"""Things that an ambiguous name lists."""


class _Named(Protocol):
    @property
    def id(self) -> str: ...

    @property
    def label(self) -> str: ...


T = TypeVar("T", bound=_Named)


def trials(session: Session) -> Sequence[Iterable[Trial]]:
    """Only trials may be meant."""
    return [session.plan.trials]


def trials_and_stages(session: Session) -> Sequence[Iterable[Trial | Stage]]:
    """Trials may be meant, and stages."""
    return [session.plan.trials, session.plan.stages.values()]


def named_trial(text: str, home: Path) -> tuple[Session, Trial]:
    """Find a trial among the studies that were run in a home.

    Args:
        text: as of :func:`named`.
        home: ASYMBENCH_HOME.

    Raises:
        InputError: nothing has this name, or several trials have.
    """
    return named(text, home, trials)


def trial_of(session: Session, text: str) -> Trial:
    """Find a trial of a study.

    Args:
        session: the study.
        text: TRIAL as of :func:`named`.

    Raises:
        InputError: nothing has this name, or several trials have.
    """
    return named_in(session, text, trials)


def named(
    text: str, home: Path, kinds: Callable[[Session], Sequence[Iterable[T]]]
) -> tuple[Session, T]:
    """Find what a text means among the studies that were run in a home.

    Args:
        text: ``STUDY:TRIAL``, or TRIAL alone, which is looked for in the newest study first. TRIAL
            is the id of a trial, its first four or more digits, or its label as tables show it;
            signs between the words and their case do not matter, and words that only one trial
            of the study has are enough.
        home: ASYMBENCH_HOME.
        kinds: of a study, what may be meant, kind after kind: where things of several kinds have
            the name, the first kind's are.

    Raises:
        InputError: nothing has this name, or several things have.
    """
    from orchestrator.command_line import open_study

    study, colon, rest = text.partition(":")
    if colon and NAME.fullmatch(study):
        session = open_study(study, (), ran=True)
        return session, named_in(session, rest, kinds)
    notes = _notes(home)
    wanted = text.lower()
    if len(wanted) >= LEAST:
        # What a study was made of when it was run last is noted: no need to plan every study.
        having = {
            name: ids
            for name, trials in notes.items()
            if (ids := {i for i in trials if i.startswith(wanted)})
        }
        if len(set().union(*having.values())) == 1:
            session = open_study(next(iter(having)), (), ran=True)
            if any(trial.id.startswith(wanted) for trial in session.plan.trials):
                return session, named_in(session, text, kinds)
    return _first(text, (open_study(name, (), ran=True) for name in notes), kinds)


def named_in(session: Session, text: str, kinds: Callable[[Session], Sequence[Iterable[T]]]) -> T:
    """Find what a text means in a study; arguments and errors as of :func:`named`."""
    return _first(text, [session], kinds)[1]


def _first(
    text: str, sessions: Iterable[Session], kinds: Callable[[Session], Sequence[Iterable[T]]]
) -> tuple[Session, T]:
    """Return what has this name, in the first study in which something has."""
    labels: list[str] = []
    for session in sessions:
        found = _matching(text, kinds(session))
        if len(found) == 1:
            return session, found[0]
        if found:
            raise _ambiguous(text, found)
        labels += [trial.label for trial in session.plan.trials]
    close = nearest(text, labels)
    raise InputError(
        "is no id, no first four or more digits of one, and no label of a trial",
        key=KEY,
        value=text,
        hint="\n    ".join(["nearest:", *close]) if close else "see: asymbench status STUDY",
    )


def _matching(text: str, kinds: Sequence[Iterable[T]]) -> list[T]:
    """Return what a text means: by id; else by label; else by words of a label."""
    words = _words(text)
    tests: list[Callable[[T], bool]] = []
    if len(text) >= LEAST:
        tests.append(lambda one: one.id.startswith(text.lower()))
    if words:
        tests.append(lambda one: _words(one.label) == words)
        tests.append(lambda one: set(words) <= set(_words(one.label)))
    for fits in tests:
        for kind in kinds:
            if found := [one for one in kind if fits(one)]:
                return found
    return []


def _words(label: str) -> list[str]:
    return "".join(c if c.isalnum() or c in "._" else " " for c in label.lower()).split()


def _ambiguous(text: str, found: Sequence[_Named]) -> InputError:
    shown = [f"{one.id[:12]}  {one.label}" for one in found[:_SHOWN]]
    more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
    return InputError(
        f"means {len(found)} things; give the first digits of one",
        key=KEY,
        value=text,
        hint="\n    ".join([*shown, *more]),
    )


def _notes(home: Path) -> dict[str, list[str]]:
    """Return the ids of the trials of each study that was run in a home, the newest study first.

    Raises:
        InputError: none was run.
    """
    paths = sorted((home / "studies").glob("*/study.json"), key=lambda p: -p.stat().st_mtime)
    if not paths:
        raise InputError(
            "no study was run in this home; run one, or name one: STUDY:TRIAL",
            key="ASYMBENCH_HOME",
            value=str(home),
        )
    return {path.parent.name: list(_trials(path)) for path in paths}


def _trials(path: Path) -> Iterator[str]:
    note = read_json(path)
    trials = note.get("trials") if isinstance(note, dict) else None
    yield from (i for i in trials or () if isinstance(i, str))
