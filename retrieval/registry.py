"""One registry class for methods, datasets and pairs: lazy, strict, open to installed packages."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from retrieval.errors import UnknownNameError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named entries of one kind.

    Entries come from three places: the decorator :meth:`register`, the modules of a package of
    ours (each public module is imported at the first look-up), and the entry points of installed
    packages. A name is taken once. A module or entry point that cannot be imported is remembered,
    and its error is raised when that name is asked for, so that one broken plug-in does not take
    the others with it.

    Args:
        kind: what an entry is called in messages ("method").
        package: the package whose public modules register the built-in entries, if any.
        infrastructure: names of modules of ``package`` that hold no entries.
        group: the entry-point group that third-party packages use, if any.
    """

    def __init__(
        self,
        kind: str,
        *,
        package: str | None = None,
        infrastructure: Iterable[str] = (),
        group: str | None = None,
    ) -> None:
        self.kind = kind
        self._package = package
        self._infrastructure = frozenset(infrastructure)
        self._group = group
        self._entries: dict[str, T] = {}
        self._origin: dict[str, str] = {}
        self._broken: dict[str, Exception] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers its argument under ``name`` and sets ``.name``.

        Raises:
            ValueError: the name is taken; the message names both places.
        """

        def decorate(entry: T) -> T:
            origin = getattr(entry, "__module__", type(entry).__module__)
            if name in self._entries and self._entries[name] is not entry:
                raise ValueError(
                    f"{self.kind} {name!r} is registered twice: "
                    f"by {self._origin[name]} and by {origin}"
                )
            self._entries[name] = entry
            self._origin[name] = origin
            if isinstance(entry, type):
                entry.name = name  # type: ignore[attr-defined]
            return entry

        return decorate

    def get(self, name: str) -> T:
        """Return the entry called ``name``.

        Raises:
            UnknownNameError: there is none; nearest and known names are in the message.
            Exception: whatever importing the entry's own module raised.
        """
        self._load()
        if name in self._entries:
            return self._entries[name]
        if name in self._broken:
            raise self._broken[name]
        raise UnknownNameError(self.kind, name, self._entries)

    def origin(self, name: str) -> str:
        """Return the module that registered ``name``."""
        self.get(name)
        return self._origin[name]

    def broken(self) -> dict[str, Exception]:
        """Return the modules and entry points that could not be imported, with their errors."""
        self._load()
        return dict(self._broken)

    def names(self) -> list[str]:
        """Return all names, sorted."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        if self._package is not None:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                if module.name.startswith("_") or module.name in self._infrastructure:
                    continue
                self._attempt(module.name, f"{self._package}.{module.name}")
        if self._group is not None:
            for point in entry_points(group=self._group):
                self._attempt(point.name, point.module, point.load)

    def _attempt(self, name: str, module: str, load: Callable[[], Any] | None = None) -> None:
        try:
            if load is None:
                importlib.import_module(module)
                return
            entry = load()
            if name not in self._entries:
                self.register(name)(entry)
        except Exception as error:  # kept, and raised when the name is asked for
            self._broken[name] = error
