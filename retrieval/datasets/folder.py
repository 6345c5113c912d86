"""folder: one's own images, a folder a class."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from retrieval.datasets.base import DATASETS
from retrieval.datasets.files import (
    FileOptions,
    FilesDataset,
    Tree,
    arrange,
    copies,
)
from retrieval.protocols import Protocol


class FolderOptions(FileOptions):
    """Options of a folder of images.

    Attributes:
        root: a folder or a zip with CLASS/IMAGE inside, with or without train/ and test/ around.
        duplicates: what to do with files of equal content: "refuse", "first" (keep the first of
            them in the order of names), "keep" (all; copies may be on both sides of a split).
    """

    duplicates: Literal["refuse", "first", "keep"] = "refuse"


@DATASETS.register("folder")
class Folder(FilesDataset):
    """Images in a folder or a zip; the class is the folder that an image lies in.

    Ten per cent of each class are queries, the rest is the gallery, of which ten per cent of the
    class are validation queries; what remains is trained on. Classes may differ in size.
    """

    Options = FolderOptions
    options: FolderOptions
    what = "your own images, one folder a class, or a zip of that"
    source = "yours"
    licence = "yours"
    obtain = "give {folder: PATH}; PATH/CLASS/IMAGE, with or without train/ and test/ around CLASS"

    @cached_property
    def _tree(self) -> Tree:
        listing = self._files.listing()
        if self.options.duplicates == "keep":
            return arrange(self._files, listing)
        tree = arrange(self._files, listing)
        groups = list(copies(self._files, tree))
        if not groups:
            return tree
        labels = tree.index.labels
        torn = [group for group in groups if len({int(labels[n]) for n in group}) > 1]
        shown = torn or groups
        first, second = (tree.paths[n] for n in _telling(shown[0], labels))
        if torn or self.options.duplicates == "refuse":
            where = "in two classes" if torn else "twice"
            raise self._files.error(
                f"{len(shown)} images are there {where} with equal content, "
                f"the first: {first!r} and {second!r}",
                key="duplicates" if not torn else "root",
                hint="remove copies"
                + ("" if torn else ", or set duplicates: first")
                + ", or keep all with duplicates: keep",
            )
        dropped = {tree.paths[number] for group in groups for number in group[1:]}
        kept = [n for n, path in enumerate(listing.paths) if path not in dropped]
        ignored = {**listing.ignored, "a copy of another image": len(dropped)}
        return arrange(self._files, replace(listing, ignored=ignored), keep=kept)

    def default_protocol(self) -> Protocol:
        """Ten per cent query, ten per cent validation queries, the rest for training."""
        return Protocol(id="folder-10", query_fraction=0.1, validation_fraction=0.1, uneven=True)


def _telling(group: list[int], labels: Any) -> tuple[int, int]:
    """Return two images of a group, of different classes if there are."""
    other = next((n for n in group if labels[n] != labels[group[0]]), group[1])
    return group[0], other
