"""The commands ``prepare`` and ``describe``: a dataset before anything is trained on it."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from orchestrator.command_line import (
    EXIT_INTERRUPTED,
    check_home,
    check_output,
    echo_json,
    interrupt,
    json_option,
)
from retrieval.errors import InputError

if TYPE_CHECKING:
    from retrieval.datasets import Dataset

_QUIET_SECONDS = 10.0
"""Where there is no terminal, progress is told at most this often."""

_TERMINAL_SECONDS = 0.2
"""The same on a terminal, where the line is written over."""

_root = click.option("--root", metavar="DIR", help="Where the images lie: a folder, zip or file.")
_set = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the dataset, dotted: --set protocol.query_per_class=3.",
)


def _open(given: str, root: str | None, overrides: tuple[str, ...]) -> Dataset:
    """Open the dataset of a command.

    Args:
        given: a name, the path of one's own images, or a YAML mapping as in a study.
        root: its option of that name.
        overrides: ``key=value`` settings.

    Raises:
        InputError: there is no such dataset, or an option is unknown or wrong.
    """
    from orchestrator.session import home_folder
    from orchestrator.study import apply_override, parse_yaml
    from retrieval.datasets import DATASETS, open_dataset

    home = home_folder()
    check_home(home)
    options: Any = {"name": given}
    own = _own(given) if given and given not in DATASETS else None  # "" is no folder, not "."
    if own is not None:
        options = own
    elif given.lstrip().startswith("{"):
        options, _ = parse_yaml(given, "DATASET")
    elif given not in DATASETS and any(mark in given for mark in "/~."):  # no name of a dataset
        raise InputError(
            "there is no such folder, zip or list that can be opened", key="DATASET", value=given
        )
    keys = []
    if root is not None:
        if {"root", "folder", "manifest"} & options.keys():
            raise InputError(
                "DATASET says where the images are, --root is one too many",
                key="--root",
                value=root,
            )
        options["root"] = root
    for assignment in overrides:
        keys.append(apply_override(options, assignment))
    try:
        return open_dataset(options, home=home)
    except InputError as error:
        if any(error.key == key or f"{error.key}".startswith(f"{key}.") for key in keys):
            raise error.located(where="--set") from None
        raise


def _own(given: str) -> dict[str, str] | None:
    """Return the dataset that a path stands for: a folder or zip of images, or a list of them."""
    try:
        path = Path(given).expanduser()
        if path.is_dir() or (path.is_file() and path.suffix.lower() == ".zip"):
            return {"folder": str(path)}
        return {"manifest": str(path)} if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


@click.command()
@click.argument("dataset")
@_root
@_set
@json_option
def prepare(dataset: str, root: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check and decode a dataset's images. Stop it at any time and run again.

    DATASET is a name (see `asymbench list datasets`), a mapping as in a study, or the path of
    images of your own: a folder, a zip, or a CSV or Parquet list. The report, and a list of what
    cannot be read, lie in ASYMBENCH_HOME/prepared.
    """
    from retrieval.prepare import leak_lines, report_text
    from retrieval.prepare import prepare as prepare_dataset

    signal.signal(signal.SIGTERM, interrupt)
    decoding = Decoding(sys.stderr)
    try:
        done = prepare_dataset(_open(dataset, root, overrides), progress=decoding)
    except KeyboardInterrupt:
        decoding.end()
        place = [] if root is None else ["--root", root]
        settings = [word for override in overrides for word in ("--set", override)]
        again = shlex.join(["asymbench", "prepare", dataset, *place, *settings])
        click.echo(f"interrupted; what is decoded is kept. To go on: {again}", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        decoding.end()
    if as_json:
        echo_json({**done.report, "path": str(done.path), "fresh": done.fresh})
        return
    if not done.fresh:
        store = done.report["store"]["folder"]
        click.echo(f"already prepared: {store}")
        for line in leak_lines(done.report["equal_images"]):
            click.echo(line)
        click.echo(f"report: {done.path.with_suffix('.txt')}")
        return
    click.echo(report_text(done.report), nl=False)
    click.echo(f"report: {done.path.with_suffix('.txt')}")


@click.command()
@click.argument("dataset")
@_root
@_set
@json_option
@click.option("-o", "--output", metavar="PICTURE.png", help="Draw some images of some classes.")
@click.option(
    "--classes",
    type=click.IntRange(1, 100),
    default=12,
    show_default=True,
    help="Classes in the picture, at most.",
)
def describe(
    dataset: str,
    root: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
    output: str | None,
    classes: int,
) -> None:
    """Show a dataset's splits, labels and sizes; decodes a few images only.

    DATASET is as for `asymbench prepare`.
    """
    from retrieval.atomic import write_atomic
    from retrieval.describe import describe as describe_dataset
    from retrieval.describe import to_text

    path = check_output(output)
    if path is not None and path.suffix.lower() != ".png":
        raise InputError("the picture is a PNG; let the name end with .png", key="--output",
                         value=output)  # fmt: skip
    opened = _open(dataset, root, overrides)
    found = describe_dataset(opened)
    if path is not None:
        from retrieval.images.contact_sheet import draw

        write_atomic(path, draw(opened, classes=classes))
    if as_json:
        echo_json(found)
    else:
        click.echo(to_text(found), nl=False)


class Decoding:
    """Says how far decoding is: a line that is written over, or lines where there is no terminal.

    Args:
        stream: where to.
        clock: seconds; replaced in tests.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._started: tuple[float, int] | None = None
        self._told: float | None = None
        self._open = False

    def __call__(self, done: int, n: int) -> None:
        """Say that ``done`` of ``n`` images are decoded, if it is time to."""
        now = self._clock()
        if self._started is None or done < self._started[1]:
            self._started = (now, done)
        quiet = _TERMINAL_SECONDS if self._terminal else _QUIET_SECONDS
        if self._told is not None and now - self._told < quiet and done < n:
            return
        self._told = now
        line = f"decoded {done:,} of {n:,} images{self._pace(now, done, n)}"
        if self._terminal:
            self._stream.write(f"\r{line}\x1b[K")
            self._open = True
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _pace(self, now: float, done: int, n: int) -> str:
        from orchestrator.wording import duration

        assert self._started is not None
        seconds, images = now - self._started[0], done - self._started[1]
        if images <= 0 or seconds <= 0:
            return ""
        rate = images / seconds
        left = f", {duration((n - done) / rate)} left" if done < n else ""
        return f", {rate:,.0f} images/s{left}"

    def end(self) -> None:
        """End the line."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False
