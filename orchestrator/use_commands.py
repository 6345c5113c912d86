"""``asymbench encode``, ``index`` and ``search``: put a finished trial to use."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.command_line import (
    EXIT_INTERRUPTED,
    Choice,
    check_home,
    check_output,
    echo_json,
    interrupt,
    json_option,
    table,
)
from retrieval.errors import InputError

if TYPE_CHECKING:
    from orchestrator.serving.gallery import Gallery
    from orchestrator.serving.pages import Answer
    from orchestrator.serving.trained import Device, SideName, TrainedTrial

_PERIOD = 10.0
"""Where there is no terminal, progress is told at most this often, in seconds."""

device_option = click.option(
    "--device",
    type=Choice("device", ["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where networks run; auto is a GPU where there is one.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 256),
    help="Torch threads; default: as the trial was trained, which gives the bits of the study.",
)
batch_option = click.option(
    "--batch-size",
    type=click.IntRange(1, 65536),
    default=256,
    show_default=True,
    help="Images in a forward pass; 256 as at evaluation.",
)
skip_option = click.option(
    "--skip-unreadable", is_flag=True, help="Go on without images that cannot be read; list them."
)


def open_named(trial: str, device: Device) -> TrainedTrial:
    """Return the finished trial that a command's argument names.

    Raises:
        InputError: there is none, or no such home.
    """
    from orchestrator.serving.trained import open_trial
    from orchestrator.session import home_folder

    check_home(home_folder())
    return open_trial(None, trial, device=device)


def show_progress(noun: str) -> Callable[[int, int], None]:
    """Return what shows on standard error how far something is."""
    started = last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if not terminal and now - last < _PERIOD:
            return
        last = now
        rate = done / max(now - started, 1e-9)
        text = f"{noun}: {done:,} of {total:,} images, {rate:,.0f} a second"
        click.echo(f"\r{text}\033[K" if terminal else text, err=True, nl=not terminal)
        if terminal and done == total:
            click.echo(err=True)

    return show


# ---- encode --------------------------------------------------------------------------------


@click.command()
@click.argument("trial")
@click.argument("images", nargs=-1, required=True)
@click.option(
    "--side",
    type=Choice("side", ["query", "gallery"]),
    default="query",
    show_default=True,
    help="Which of the two networks.",
)
@click.option("-o", "--output", required=True, help=".npy to write; a .json beside it says more.")
@click.option("--float", "as_float", is_flag=True, help="Continuous codes h before the sign.")
@device_option
@batch_option
@threads_option
@skip_option
@json_option
def encode(
    trial: str,
    images: tuple[str, ...],
    side: SideName,
    output: str,
    as_float: bool,
    device: Device,
    batch_size: int,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Encode images with a finished trial: packed codes as .npy, names beside it as .json.

    TRIAL is an id, its first digits, or a label, as of `asymbench logs`; STUDY:TRIAL looks in one
    study only. IMAGES are files, folders, zips and patterns. Row i is the image `images[i]` of
    the .json; a code's first bit is the highest of its first byte.
    """
    from orchestrator.serving.encoding import beside, encode_photos, write_codes
    from orchestrator.serving.photos import PhotoReader, find_photos

    path = check_output(output)
    assert path is not None
    if path.suffix != ".npy":
        raise InputError("must end with .npy", key="--output", value=output)
    photos = find_photos(images)
    trained = open_named(trial, device)
    with PhotoReader() as reader:
        encoded = encode_photos(
            trained.side(side),
            photos,
            reader,
            batch_size=batch_size,
            threads=threads,
            skip_unreadable=skip_unreadable,
            progress=show_progress("encoding"),
        )
    if not encoded.photos:
        raise InputError("none of the images can be read", key="IMAGES")
    write_codes(path, trained.side(side), encoded, as_float=as_float)
    if as_json:
        echo_json(
            {
                "codes": str(path),
                "names": str(beside(path)),
                "trial": trained.id,
                "side": side,
                "bits": trained.bits,
                "images": len(encoded.photos),
                "skipped": [{"image": name, "reason": why} for name, why in encoded.skipped],
            }
        )
        return
    _tell_skipped(encoded.skipped)
    kind = "embeddings" if as_float else "codes"
    click.echo(
        f"{len(encoded.photos):,} {kind} of {trained.bits} bits by the {side} network of "
        f"{trained.trial.label}: {path}, names in {beside(path)}"
    )


def _tell_skipped(skipped: list[tuple[str, str]]) -> None:
    from orchestrator.wording import printable

    for name, why in skipped:
        click.echo(f"skipped {printable(name)}: {printable(why)}", err=True)


# ---- index ---------------------------------------------------------------------------------


@click.command()
@click.argument("trial")
@click.argument("images", nargs=-1)
@click.option("-o", "--output", required=True, help="The folder to build it in.")
@click.option("--add", is_flag=True, help="Add what an index does not have yet, by name.")
@device_option
@batch_option
@threads_option
@skip_option
@json_option
def index(
    trial: str,
    images: tuple[str, ...],
    output: str,
    add: bool,
    device: Device,
    batch_size: int,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Build a gallery to search in, from images of one's own or from the study's.

    IMAGES as of `asymbench encode`, encoded by the gallery's network; without any it is the
    study's own gallery, whose codes are there already. Stopped at any time, the same command goes
    on where it was.
    """
    from orchestrator.serving.building import build_gallery
    from orchestrator.serving.photos import find_photos

    folder = Path(output).expanduser()
    if add and not images:
        raise InputError("name the images to add", key="--add")
    photos = find_photos(images) if images else None
    trained = open_named(trial, device)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        built = build_gallery(
            trained,
            photos,
            folder,
            add=add,
            batch_size=batch_size,
            threads=threads,
            skip_unreadable=skip_unreadable,
            progress=show_progress("encoding"),
        )
    except KeyboardInterrupt:
        click.echo("\ninterrupted; the same command goes on from here", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    bits, total = built.manifest.bits, built.manifest.images
    if as_json:
        found = {"index": str(folder), "trial": trained.id, "bits": bits, "images": total}
        lists = {"skipped": built.skipped, "changed": built.changed}
        echo_json({**found, "added": built.added, **lists})
        return
    _tell_skipped([(entry["image"], entry["reason"]) for entry in built.skipped])
    _tell_changed(built.changed)
    said = f"{built.added:,} added" if built.added else "nothing to add"
    click.echo(f"{folder}: {total:,} images of {bits} bits, {said}")


def _tell_changed(names: list[str]) -> None:
    from orchestrator.wording import printable

    for name in names:
        click.echo(f"changed {printable(name)}: the index keeps what it was", err=True)
    if names:
        click.echo("an index that is built anew in another folder has them as they are", err=True)


# ---- search --------------------------------------------------------------------------------


@click.command()
@click.argument("trial")
@click.argument("images", nargs=-1, required=True)
@click.option("--index", "folder", help="A folder of `asymbench index`; default: the study's own.")
@click.option("-k", "k", type=click.IntRange(1), help="So many matches [default: 10].")
@click.option("--radius", type=click.IntRange(0), help="Only matches at most so many bits away.")
@click.option(
    "--side",
    type=Choice("side", ["query", "gallery"]),
    default="query",
    show_default=True,
    help="Which network encodes the images.",
)
@click.option(
    "--engine",
    type=Choice("engine", ["exact", "faiss", "faiss-ivf"]),
    default="exact",
    show_default=True,
    help="exact and faiss look at every code; faiss-ivf at the nearest cells of a k-means.",
)
@click.option("--nprobe", type=click.IntRange(1), help="Cells of faiss-ivf [default: 8].")
@click.option("--html", help="Write a page with pictures.")
@click.option("--picture", help="Write a .png with pictures.")
@device_option
@threads_option
@skip_option
@json_option
def search(
    trial: str,
    images: tuple[str, ...],
    folder: str | None,
    k: int | None,
    radius: int | None,
    side: SideName,
    engine: Any,
    nprobe: int | None,
    html: str | None,
    picture: str | None,
    device: Device,
    threads: int | None,
    skip_unreadable: bool,
    as_json: bool,
) -> None:
    """Find the nearest images of a gallery by Hamming distance.

    IMAGES as of `asymbench encode`. Matches at one distance come in the order of the gallery's
    rows. --radius without -k finds all within it.
    """
    from cluster.resources import visible_cpus
    from orchestrator.serving.encoding import encode_photos
    from orchestrator.serving.gallery import shrunk
    from orchestrator.serving.pages import Answer
    from orchestrator.serving.photos import PhotoReader, find_photos
    from orchestrator.serving.searching import beyond, bits_text, index_of, matches
    from retrieval.codes import pack

    page, drawing = check_output(html, key="--html"), check_output(picture, key="--picture")
    if nprobe is not None and engine != "faiss-ivf":
        raise InputError("is of --engine faiss-ivf", key="--nprobe", value=nprobe)
    if k is None and radius is not None and engine != "exact":
        raise InputError("needs -k too with this engine", key="--radius", value=radius)
    if k is None and radius is None:
        k = 10
    trained = open_named(trial, device)
    gallery = gallery_of(trained, folder)
    index = index_of(gallery, engine, nprobe=nprobe or 8, threads=visible_cpus())
    answers = []
    with PhotoReader() as reader:
        encoded = encode_photos(
            trained.side(side),
            find_photos(images),
            reader,
            threads=threads,
            skip_unreadable=skip_unreadable,
        )
        for photo, h in zip(encoded.photos, encoded.h, strict=True):
            drawn = page is not None or drawing is not None
            image = shrunk(reader.read(photo)) if drawn else None
            code = pack(h[None])
            hits = index.search(code, k, radius)[0]
            found, more = matches(gallery, hits), beyond(index, code, hits, k)
            text = bits_text(code[0], trained.bits)
            answers.append(Answer(photo.name, image, text, found, more))
    if not answers:
        raise InputError("none of the images can be read", key="IMAGES")
    _write(page, drawing, gallery, answers, trained, side)
    if as_json:
        head = {"trial": trained.id, "bits": trained.bits, "side": side, "engine": engine}
        echo_json(
            {
                **head,
                "index": folder,
                "gallery": len(gallery),
                "queries": [
                    {
                        "query": answer.name,
                        "code": answer.code,
                        "matches": [match.to_json() for match in answer.found],
                        "equally_near_beyond": answer.beyond,
                    }
                    for answer in answers
                ],
                "skipped": [{"image": name, "reason": why} for name, why in encoded.skipped],
            }
        )
        return
    _tell_skipped(encoded.skipped)
    click.echo("\n\n".join(_lines(answer) for answer in answers))


def gallery_of(trained: TrainedTrial, folder: str | None) -> Gallery:
    """Return what is searched in: the index in a folder, or the study's own gallery."""
    from orchestrator.serving.gallery import open_gallery, study_gallery

    if folder is None:
        return study_gallery(trained)
    return open_gallery(Path(folder).expanduser(), trained)


def _write(
    page: Path | None,
    drawing: Path | None,
    gallery: Gallery,
    answers: list[Answer],
    trained: TrainedTrial,
    side: SideName,
) -> None:
    """Write the page and the picture that were asked for."""
    from orchestrator.serving.pages import search_page, search_picture
    from retrieval.atomic import write_atomic

    title = f"Nearest by {trained.trial.label}"
    if page is not None:
        caption = (
            f"Codes of {trained.bits} bits; queries by the {side} network, "
            f"{trained.side(side).spec.backbone}, and {len(gallery):,} gallery images by "
            f"{trained.side('gallery').spec.backbone}. Distances in bits; ties in the order of "
            "the gallery."
        )
        write_atomic(page, search_page(gallery, answers, title, caption).encode())
    if drawing is not None:
        write_atomic(drawing, search_picture(gallery, answers, title))


def _lines(answer: Answer) -> str:
    from orchestrator.wording import plural, printable

    known = any(match.classes for match in answer.found)
    header = ["rank", "distance", "row", "name", *(["classes"] if known else [])]
    body = []
    for match in answer.found:
        row: list[Any] = [match.rank, match.distance, match.row, printable(match.name)]
        body.append([*row, printable(", ".join(match.classes or ()))] if known else row)
    lines = [table(header, body) if body else "nothing is within the radius"]
    if answer.beyond:
        distance = plural(answer.found[-1].distance, "bit")
        lines.append(f"and {answer.beyond:,} more at {distance}")
    return "\n".join([printable(answer.name), *lines])
