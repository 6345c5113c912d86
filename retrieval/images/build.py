"""Building an image store: decoded block by block on every core, stopped and continued anywhere.

A block is a fixed range of images. Whoever decodes one writes it at its own place in
``images.npy`` and answers with its checksum; only then it goes into the journal beside the file.
A build that was interrupted or killed reads the journal, checks every block in it against the
file, and decodes the others. The bytes are a function of the images alone: not of who decoded
them, how many did, in which order, or how often the build was stopped.
"""

from __future__ import annotations

import errno
import io
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.errors import DatasetError
from retrieval.images.decoding import Decoder, square

BLOCK = 32
"""Images in a block; part of the journal's format."""

JOURNAL = "journal"
"""Name of the journal, beside the pixels."""

PIXELS = "images.npy"
"""Name of the file with the pixels."""

_SHOWN = 5
"""Unreadable images that a message names."""

_TRIAL_SECONDS = 0.5
"""Decoding in threads goes on for so long before it is known how long the rest takes."""

_WORTH_SECONDS = 3.0
"""Processes are started where threads would need more than this for the rest."""

_MOST_WORKERS = 64

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from retrieval.images.worker import main; main()"
)


class UnreadableImagesError(DatasetError):
    """Images of a dataset cannot be read.

    Attributes:
        problems: image number -> its name and what is wrong with it, in order of numbers.
    """

    def __init__(self, problems: Mapping[int, str], n: int) -> None:
        self.problems = dict(sorted(problems.items()))
        first = "; ".join(list(self.problems.values())[:_SHOWN])
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        count = "1 image" if len(problems) == 1 else f"{len(problems)} images"
        super().__init__(
            f"{count} of {n} cannot be read: {first}{more}",
            hint="`asymbench prepare` lists all of them, and says how to leave them out",
        )


@dataclass(frozen=True)
class Reopening:
    """How another process opens the same images.

    Attributes:
        dataset: what ``open_dataset`` takes, JSON values only.
        home: ASYMBENCH_HOME.
    """

    dataset: Mapping[str, Any]
    home: str


@dataclass(frozen=True)
class Layout:
    """What is stored of each image.

    Attributes:
        images: how many there are.
        size: side of a stored square, in pixels.
        common: height and width that all images have, or None where they differ.
    """

    images: int
    size: int
    common: tuple[int, int] | None

    @property
    def header(self) -> bytes:
        """The first bytes of the .npy file."""
        stream = io.BytesIO()
        shape = (self.images, self.size, self.size, 3)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        return stream.getvalue()

    @property
    def blocks(self) -> int:
        """How many blocks there are; the last may be shorter."""
        return -(-self.images // BLOCK)

    def span(self, block: int) -> tuple[int, int]:
        """Return the first image of a block, and the one after its last."""
        return block * BLOCK, min(self.images, (block + 1) * BLOCK)

    def place(self, block: int) -> tuple[int, int]:
        """Return where a block's bytes begin in the file, and how many they are."""
        first, last = self.span(block)
        image = 3 * self.size * self.size
        return len(self.header) + first * image, (last - first) * image


class MixedSizesError(Exception):
    """Images have more than one size."""


@dataclass
class Done:
    """What became of a block.

    Attributes:
        block: its number.
        crc: CRC-32 of its bytes, as they were written.
        errors: image number -> why it could not be decoded; such a block was not written.
    """

    block: int
    crc: int
    errors: dict[int, str] = field(default_factory=dict)


def decode_block(decode: Decoder, layout: Layout, block: int, file: int) -> Done:
    """Decode a block and write it to its place.

    Args:
        decode: of the dataset.
        layout: of the store.
        block: its number.
        file: descriptor of the file with the pixels.

    Raises:
        MixedSizesError: an image is not of the common size.
        OSError: the disk is full.
    """
    first, last = layout.span(block)
    done = Done(block, 0)
    pixels = np.empty((last - first, layout.size, layout.size, 3), dtype=np.uint8)
    for number in range(first, last):
        try:
            image = decode(number)
        except DatasetError as error:
            done.errors[number] = error.problem
            continue
        if layout.common is not None and image.shape[:2] != layout.common:
            raise MixedSizesError
        pixels[number - first] = square(image, layout.size)
    if not done.errors:
        # Written and not through a memory map: a full disk is then an OSError, where a map would
        # kill the process.
        done.crc = zlib.crc32(pixels.data)
        _write_all(file, pixels.data.cast("B"), layout.place(block)[0])
    return done


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


# ---- the journal -----------------------------------------------------------------------------


class Journal:
    """Which blocks of a build are done; every line carries its own checksum.

    Args:
        folder: of the build.
        mark: what the build is of; a journal of anything else is not continued.
    """

    def __init__(self, folder: Path, mark: Mapping[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.pixels = folder / PIXELS
        self.mark = {**mark, "block": BLOCK}
        self.done: set[int] = set()

    def resume(self) -> Layout | None:
        """Return the layout of the build to go on with, its blocks checked; None starts anew."""
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
            entries = list(map(_parsed, lines))
            head = entries[0]
            if head is None or head["mark"] != self.mark:
                return None
            common = head["common"]
            layout = Layout(head["images"], head["size"], None if common is None else (*common,))
            whole = entries[: entries.index(None)] if None in entries else entries
            crcs = {entry["done"]: entry["crc"] for entry in whole[1:] if entry is not None}
            self.done = self._checked(layout, crcs)
            # What follows a line cut short would be glued to it.
            os.truncate(self.path, sum(map(len, lines[: len(whole)])))
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        return layout

    def _checked(self, layout: Layout, crcs: Mapping[int, int]) -> set[int]:
        good = set()
        with self.pixels.open("rb") as stream:
            if stream.read(len(layout.header)) != layout.header:
                raise ValueError("other pixels")
            for block, crc in sorted(crcs.items()):
                if not 0 <= block < layout.blocks:
                    raise ValueError("no such block")
                offset, size = layout.place(block)
                stream.seek(offset)
                if zlib.crc32(stream.read(size)) == crc:
                    good.add(block)
        return good

    def start(self, layout: Layout) -> None:
        """Begin anew, with new files: a worker of a killed build may still write to the old."""
        self.done = set()
        for path in (self.path, self.pixels):
            path.unlink(missing_ok=True)
        with self.pixels.open("xb") as stream:
            stream.write(layout.header)
            offset, size = layout.place(layout.blocks - 1) if layout.blocks else (0, 0)
            stream.truncate(max(len(layout.header), offset + size))
        self._append({"mark": self.mark, **asdict(layout)})

    def note(self, done: Done) -> None:
        """Note a block that was written."""
        self.done.add(done.block)
        self._append({"done": done.block, "crc": done.crc})

    def _append(self, entry: Mapping[str, Any]) -> None:
        body = json.dumps(entry).encode()
        with self.path.open("ab") as stream:
            stream.write(b"%08x %s\n" % (zlib.crc32(body), body))


def _parsed(line: bytes) -> Any:
    """Return a journal's entry; None where the line is not whole."""
    crc, _, body = line.removesuffix(b"\n").partition(b" ")
    if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
        return None
    return json.loads(body)


# ---- the build -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Build:
    """What to build, and how.

    Attributes:
        folder: where, exists.
        images: how many.
        decoder: opens the decoder in this process.
        store_size: greatest side of a stored square, in pixels.
        mark: what identifies the images, for the journal.
        reopening: how another process opens the images; None keeps to threads.
        workers: decoding processes; 0 keeps to threads, None starts as many as there are cores
            where the work is worth it.
        progress: called with the images done and all.
    """

    folder: Path
    images: int
    decoder: Callable[[], AbstractContextManager[Decoder]]
    store_size: int
    mark: Mapping[str, Any]
    reopening: Reopening | None = None
    workers: int | None = None
    progress: Callable[[int, int], None] | None = None

    def run(self) -> None:
        """Decode what the folder does not have yet.

        Raises:
            UnreadableImagesError: some images cannot be read.
            OSError: the disk is full.
        """
        from PIL import __version__ as pillow

        # Another Pillow may decode to other bytes: no store is made of both.
        mark = {**self.mark, "store_size": self.store_size, "pillow": pillow}
        journal = Journal(self.folder, mark)
        layout = journal.resume()
        if layout is None:
            layout = self._first_layout()
            journal.start(layout)
        try:
            self._fill(journal, layout)
        except MixedSizesError:
            layout = Layout(self.images, self.store_size, None)
            journal.start(layout)
            self._fill(journal, layout)
        with journal.pixels.open("rb+") as stream:
            os.fsync(stream.fileno())

    def _first_layout(self) -> Layout:
        """Suppose that all images have the first one's size."""
        with self.decoder() as decode:
            for number in range(self.images):
                with suppress(DatasetError):
                    height, width = decode(number).shape[:2]
                    size = min(self.store_size, height, width)
                    return Layout(self.images, size, (height, width))
        return Layout(self.images, 1, None)

    def _fill(self, journal: Journal, layout: Layout) -> None:
        waiting = [block for block in range(layout.blocks) if block not in journal.done]
        self._check_space(journal, layout, waiting)
        problems: dict[int, str] = {}
        done = self.images - sum(_length(layout, block) for block in waiting)

        def take(finished: Generator[Done]) -> None:
            nonlocal done
            self._tell(done)
            with closing(finished):  # whatever happens, nobody goes on decoding
                for block in finished:
                    problems.update(block.errors)
                    if not block.errors:
                        journal.note(block)
                    done += _length(layout, block.block)
                    self._tell(done)

        if self.workers or not waiting:
            rest = waiting
        else:
            trial = _Trial(waiting, endless=self.workers == 0 or self.reopening is None)
            take(self._in_threads(journal.pixels, layout, trial))
            rest = trial.rest
        if rest:
            try:
                take(self._in_processes(journal.pixels, layout, rest))
            except _NotReopenedError:
                take(self._in_threads(journal.pixels, layout, iter(rest)))
        if problems:
            raise UnreadableImagesError(problems, self.images)

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, self.images)

    def _check_space(self, journal: Journal, layout: Layout, waiting: Sequence[int]) -> None:
        """Refuse before hours of decoding what cannot fit."""
        needed = sum(layout.place(block)[1] for block in waiting)
        if shutil.disk_usage(self.folder).free < needed:
            reason = f"{os.strerror(errno.ENOSPC)}, {needed / 1e9:.2f} GB are needed"
            raise OSError(errno.ENOSPC, reason, str(journal.pixels))

    def _in_threads(self, pixels: Path, layout: Layout, blocks: Iterator[int]) -> Generator[Done]:
        with ExitStack() as stack:
            decode = stack.enter_context(self.decoder())
            file = os.open(pixels, os.O_WRONLY)
            stack.callback(os.close, file)

            def lane(block: int) -> Done:
                return decode_block(decode, layout, block, file)

            threads = min(16, cores())
            yield from _drive([lane] * threads, blocks, stop=lambda: None)

    def _in_processes(
        self, pixels: Path, layout: Layout, blocks: Sequence[int]
    ) -> Generator[Done]:
        if self.reopening is None:
            raise _NotReopenedError
        wanted = min(self.workers or cores(), _MOST_WORKERS, len(blocks))
        order = {
            "dataset": dict(self.reopening.dataset),
            "home": self.reopening.home,
            "fingerprint": self.mark["fingerprint"],
            "pixels": str(pixels),
            "layout": asdict(layout),
        }
        try:
            json.dumps(order)
        except (TypeError, ValueError):  # an option that only this process understands
            raise _NotReopenedError from None
        with _workers(wanted, order) as workers:

            def stop() -> None:
                for worker in workers:
                    worker.kill()

            yield from _drive([worker.decode for worker in workers], iter(blocks), stop=stop)


def _length(layout: Layout, block: int) -> int:
    first, last = layout.span(block)
    return last - first


def cores() -> int:
    """Return how many cores this process may use, by its affinity and its control group."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    available = available or os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        available = min(available, max(1, round(int(quota) / int(period))))
    return available


class _Trial:
    """Blocks that are handed out until the rest is known to be worth processes.

    Args:
        blocks: to hand out.
        endless: hand out all.
    """

    def __init__(self, blocks: Sequence[int], *, endless: bool) -> None:
        self._blocks = list(blocks)
        self._endless = endless
        self._given = 0
        self._started: float | None = None

    @property
    def rest(self) -> list[int]:
        """Blocks that were not handed out."""
        return self._blocks[self._given :]

    def __iter__(self) -> _Trial:
        return self

    def __next__(self) -> int:
        left = len(self._blocks) - self._given
        now = time.monotonic()
        self._started = self._started or now  # opening the decoder is no part of it
        spent = now - self._started
        # What was handed out is not all done: the estimate is too low, which only delays.
        slow = spent > _TRIAL_SECONDS and spent * left > _WORTH_SECONDS * self._given
        if not left or (slow and not self._endless):
            raise StopIteration
        self._given += 1
        return self._blocks[self._given - 1]


def _drive(
    lanes: Sequence[Callable[[int], Done]], blocks: Iterator[int], *, stop: Callable[[], None]
) -> Generator[Done]:
    """Have each lane work on one block after the other in a thread; yield what is done.

    Args:
        lanes: what decodes a block.
        blocks: numbers of blocks.
        stop: called when no more is wanted, to end what lanes wait for.
    """
    answers: queue.SimpleQueue[Done | BaseException | None] = queue.SimpleQueue()
    hand_out, over = threading.Lock(), threading.Event()

    def serve(lane: Callable[[int], Done]) -> None:
        try:
            while not over.is_set():
                with hand_out:
                    block = next(blocks, None)
                if block is None:
                    break
                answers.put(lane(block))
        except BaseException as error:  # raised again where the answers are read
            answers.put(error)
        answers.put(None)

    threads = [threading.Thread(target=serve, args=(lane,), daemon=True) for lane in lanes]
    for thread in threads:
        thread.start()
    try:
        running = len(threads)
        while running:
            answer = answers.get()
            if answer is None:
                running -= 1
            elif isinstance(answer, BaseException):
                raise answer
            else:
                yield answer
    finally:
        over.set()
        stop()
        for thread in threads:
            thread.join()


# ---- processes -------------------------------------------------------------------------------


class _NotReopenedError(Exception):
    """The dataset cannot be opened in another process, or is another one there."""


class _Worker:
    """A process that decodes blocks, asked and answering in lines of JSON.

    A program of its own rather than a fork: this process may have threads, a GPU in use, or a
    main module that must not run twice. It ends when its input does, so also when this process is
    killed.

    Args:
        order: what to open and where to write.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            # Ctrl-C is for this process alone, which then ends its workers in order.
            process_group=0,
        )
        self._order = order

    def ready(self) -> None:
        """Wait until the dataset is open.

        Raises:
            _NotReopenedError: it cannot be.
        """
        try:
            answer = self._ask(self._order)
        except _WorkerDiedError:
            raise _NotReopenedError from None
        if answer.get("ready") is not True:
            raise _NotReopenedError

    def decode(self, block: int) -> Done:
        """Decode a block.

        Raises:
            MixedSizesError: an image is not of the common size.
            OSError: the disk is full.
            DatasetError: the process ended.
        """
        try:
            answer = self._ask({"block": block})
        except _WorkerDiedError as error:
            raise DatasetError(
                f"the process that decoded images {block * BLOCK} to {(block + 1) * BLOCK - 1} "
                f"ended with {error}",
                hint="its memory may not have sufficed; run again to go on",
            ) from None
        if "mixed" in answer:
            raise MixedSizesError
        if "errno" in answer:
            raise OSError(answer["errno"], os.strerror(answer["errno"]), self._order["pixels"])
        if "failed" in answer:
            raise RuntimeError(f"decoding failed: {answer['failed']}")
        errors = {int(number): problem for number, problem in answer["errors"].items()}
        return Done(block, answer["crc"], errors)

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps(question).encode() + b"\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:
            line = b""
        if not line.endswith(b"\n"):
            raise _WorkerDiedError(f"exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        """End the process; what waits for its answer is told that it died."""
        self._process.kill()

    def close(self) -> None:
        """End the process and wait for it."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with suppress(OSError):
                stream.close()


class _WorkerDiedError(Exception):
    """A worker's answers ended."""


@contextmanager
def _workers(count: int, order: Mapping[str, Any]) -> Iterator[list[_Worker]]:
    workers: list[_Worker] = []
    try:
        for _ in range(count):
            try:
                workers.append(_Worker(order))
            except OSError:  # there can be no more processes
                break
        for worker in workers:
            worker.ready()
        if not workers:
            raise _NotReopenedError
        yield workers
    finally:
        for worker in workers:
            worker.close()
