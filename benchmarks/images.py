"""Time augmented batches from the decoded store against torchvision's ImageFolder and DataLoader.

Both give float batches (64, 3, 224, 224), normalised as the training step takes them, from the
same JPEG files, on the same cores, with the same augmentation: a random resized crop or a plain
resize, a flip, and brightness and contrast within 5 per cent. The loader runs in this process and
with one worker a core; the faster of the two is compared with. Beside images a second stands the
processor time of an image where all is done in one process, which other work on the machine moves
less. The store has to be built once: the benchmark says after how many epochs that has paid off.

Without --root the images are 500 x 375 cuts of scikit-learn's two sample photographs.

    python -m benchmarks.images --images 2000
    python -m benchmarks.images --root /data/imagenet100 --cores 8
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.augmentation import Augmentation, Views
from retrieval.datasets import open_dataset
from retrieval.images import ImageStore

SIZE, BATCH = 224, 64
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SETTINGS = {
    "random resized crop": Augmentation(crop="random_resized"),
    "plain resize": Augmentation(),
}


def write_photographs(root: Path, images: int) -> None:
    """Cut scikit-learn's sample photographs into JPEGs of 500 x 375, in ten classes."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    for number in range(images):
        photograph = Image.fromarray(photographs[number % len(photographs)])
        width, height = photograph.size
        scale = rng.uniform(0.5, 1.0)
        w, h = int(width * scale), int(height * scale)
        left, top = (int(rng.integers(0, free + 1)) for free in (width - w, height - h))
        cut = photograph.crop((left, top, left + w, top + h))
        folder = root / f"class{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        cut.resize((500, 375)).save(folder / f"{number:06d}.jpg", quality=90)


def from_store(store: ImageStore, setting: str, epoch: int) -> Iterator[torch.Tensor]:
    """Yield an epoch's batches as a training makes them after its first thousand images."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    views = Views(store, SIZE, SETTINGS[setting], seed=0, engine="numba")
    order = np.random.default_rng(epoch).permutation(len(store))
    for first in range(0, len(order) - BATCH + 1, BATCH):
        yield views.train(order[first : first + BATCH], epoch).sub_(mean).div_(std)


def loader(root: Path, setting: str, workers: int) -> Any:
    """Return torchvision's loader of the same images with the same augmentation."""
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    crop: Any = transforms.Resize((SIZE, SIZE))
    if setting == "random resized crop":
        crop = transforms.RandomResizedCrop(SIZE, scale=(0.2, 1.0))
    steps = [
        crop,
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(brightness=0.05, contrast=0.05),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    return DataLoader(
        ImageFolder(str(root), transforms.Compose(steps)),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )


def rate(
    epoch: Callable[[int], Iterator[torch.Tensor]], batches: int, repeats: int
) -> tuple[float, float]:
    """Return images a second, and milliseconds of this process's processor time an image.

    Each is the median of some runs of ``batches`` batches, after a first that does not count.
    """
    rates, costs = [], []
    for number in range(repeats + 1):
        stream = epoch(number)
        next(stream)  # starting workers, compiling, filling caches: no part of a long training
        started, spent = time.perf_counter(), time.process_time()
        # The range first: it must end before one more batch is made that nobody counts.
        seen = sum(len(batch) for _, batch in zip(range(batches), stream, strict=False))
        rates.append(seen / (time.perf_counter() - started))
        costs.append(1000 * (time.process_time() - spent) / seen)
    return statistics.median(rates[1:]), statistics.median(costs[1:])


def run(root: Path, home: Path, batches: int, repeats: int, cores: int) -> dict[str, Any]:
    """Return images a second of both, and what the store costs."""
    torch.set_num_threads(cores)
    dataset = open_dataset({"folder": str(root), "duplicates": "keep"}, home=home)
    images = len(dataset.index().keys)
    started = time.perf_counter()
    store = dataset.images()
    building = time.perf_counter() - started
    found: dict[str, Any] = {
        "images": images,
        "cores": cores,
        "store_seconds": building,
        "store_images_per_second": images / building,
    }
    for setting in SETTINGS:
        ours, our_cost = rate(lambda n, s=setting: from_store(store, s, n), batches, repeats)  # type: ignore[misc]
        theirs, their_cost = {}, 0.0
        for workers in sorted({0, cores}):
            made = loader(root, setting, workers)
            theirs[workers], cost = rate(
                lambda _, made=made: (views for views, _ in made),  # type: ignore[misc]
                batches,
                repeats,
            )
            if workers == 0:
                their_cost = cost
        best = max(theirs.values())
        saved = images / best - images / ours
        found[setting] = {
            "store": ours,
            "loader_by_workers": theirs,
            "ratio": ours / best,
            "store_cpu_ms": our_cost,
            "loader_cpu_ms": their_cost,
            "pays_off_after_epochs": building / saved if saved > 0 else None,
        }
    return found


def _epochs(row: dict[str, Any]) -> str:
    epochs = row["pays_off_after_epochs"]
    return "no number of epochs" if epochs is None else f"{epochs:.2f} epochs"


def main() -> None:
    """Run the benchmark and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=Path, help="a folder with CLASS/IMAGE; default: samples")
    parser.add_argument("--images", type=int, default=2000, help="samples to make")
    parser.add_argument("--batches", type=int, default=20, help="timed batches of a run")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the median counts")
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if min(given.batches, given.repeats, given.cores) < 1:
        parser.error("--batches, --repeats and --cores are at least 1")
    if given.root is None and given.images < 2 * BATCH:
        parser.error(f"--images is at least {2 * BATCH}: one batch to begin with and one to time")
    with tempfile.TemporaryDirectory() as folder:
        root = given.root or Path(folder) / "photographs"
        if given.root is None:
            write_photographs(root, given.images)
        found = run(root, Path(folder) / "home", given.batches, given.repeats, given.cores)
    if given.json:
        print(json.dumps(found, indent=1))
        return
    print(
        f"{found['images']} images, {found['cores']} cores; store built at "
        f"{found['store_images_per_second']:.0f} images/s in {found['store_seconds']:.1f} s"
    )
    for setting in SETTINGS:
        row = found[setting]
        theirs = ", ".join(f"{v:.0f} with {k}" for k, v in row["loader_by_workers"].items())
        print(
            f"{setting}: store {row['store']:.0f} images/s; loader {theirs} workers; "
            f"{row['ratio']:.2f} times; CPU {row['store_cpu_ms']:.2f} against "
            f"{row['loader_cpu_ms']:.2f} ms an image; pays off after {_epochs(row)}"
        )


if __name__ == "__main__":
    main()
