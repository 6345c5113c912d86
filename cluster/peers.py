"""Further processes of one piece of work: started beside this one, watched, and gone with it.

Inside a Ray placement group with a bundle for each process they are actors in its bundles, on
whatever nodes those are. Anywhere else they are processes of this machine. What they do is a
function given by its import path; it returns None, or how it failed.

No peer outlives the process that started it: a context's end kills them, Ray kills the actors of a
dead owner, and a local process watches its parent.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

DISCONNECTED = "disconnected"
"""Kind of the failure of a peer that only says that another one failed."""

LOST_WORKER = "lost worker"
LOST_NODE = "lost node"
OUT_OF_MEMORY = "out of memory"

_POLL_SECONDS = 0.5

Failure = dict[str, Any]
"""How a peer failed: ``kind``, ``reason``, and ``detail``, a traceback or ""."""


class PeerFailed(RuntimeError):
    """A peer failed, which ends the work of all.

    Attributes:
        failure: how.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(str(failure["reason"]))


class Peers(ABC):
    """Running peers.

    Args:
        count: how many.
        on_failure: called in a thread of its own when the first of them fails.
    """

    def __init__(self, count: int, on_failure: Callable[[], None] | None = None) -> None:
        self._on_failure = on_failure
        self._failures: list[Failure] = []
        self._open = count
        self._changed = threading.Condition()

    def check(self) -> None:
        """Raise if a peer has failed.

        Raises:
            PeerFailed: with the first cause that is known.
        """
        with self._changed:
            known = self._known()
        if known is not None:
            raise PeerFailed(known)

    def cause(self, seconds: float) -> Failure | None:
        """Return how the first peer failed, waiting for it to say so; None if none did.

        Peers that lost the connection because another failed are no cause.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._known() or not self._open, seconds)
            return self._known()

    @abstractmethod
    def stop(self) -> None:
        """Kill all that are left, and wait until they are gone."""

    def _known(self) -> Failure | None:
        causes = [failure for failure in self._failures if failure["kind"] != DISCONNECTED]
        return causes[0] if causes else None

    def _ended(self, failure: Failure | None) -> None:
        with self._changed:
            self._open -= 1
            first = failure is not None and not self._failures
            if failure is not None:
                self._failures.append(failure)
            self._changed.notify_all()
        if first and self._on_failure is not None:
            self._on_failure()


@contextmanager
def start_peers(
    target: str,
    arguments: Sequence[Mapping[str, Any]],
    *,
    on_failure: Callable[[], None] | None = None,
) -> Iterator[Peers]:
    """Run a function in further processes for as long as the context lasts.

    Args:
        target: "package.module:function"; it returns None or a failure.
        arguments: of each process, JSON values by name.
        on_failure: called in a thread of its own when the first process fails.
    """
    group = _bundles()
    kind = _ActorPeers if group is not None and len(group) > len(arguments) else _ProcessPeers
    peers = kind(target, [json.dumps(dict(given)) for given in arguments], on_failure)
    try:
        yield peers
    finally:
        peers.stop()


def node_address() -> str:
    """Return the address under which peers reach this process."""
    group = _bundles()
    if group is None or len(group) < 2:
        return "127.0.0.1"
    import ray

    return str(ray.util.get_node_ip_address())


def node_id() -> str:
    """Return Ray's id of this node, or "" outside Ray."""
    ray = _connected_ray()
    return str(ray.get_runtime_context().get_node_id()) if ray is not None else ""


def call(target: str, arguments: str) -> str | None:
    """Call a function by its import path; return None, or its failure as JSON.

    Args:
        target: "package.module:function".
        arguments: a JSON mapping.
    """
    try:
        module, _, name = target.partition(":")
        failure = getattr(import_module(module), name)(**json.loads(arguments))
    except Exception as error:  # told to whoever waits for this peer
        reason = f"{type(error).__name__}: {error}"
        failure = {"kind": "bug", "reason": reason, "detail": traceback.format_exc()}
    return None if failure is None else json.dumps(failure)


# ---- processes of this machine -----------------------------------------------------------


class _ProcessPeers(Peers):
    def __init__(
        self, target: str, arguments: list[str], on_failure: Callable[[], None] | None
    ) -> None:
        super().__init__(len(arguments), on_failure)
        context = multiprocessing.get_context("spawn")
        self._stopping = False
        self._of: dict[Connection, Any] = {}
        self._number: dict[Connection, int] = {}
        for number, given in enumerate(arguments, start=2):
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(target, given, theirs), daemon=True)
            process.start()
            theirs.close()  # so that its end is noticed here
            self._of[mine], self._number[mine] = process, number
        self._total = len(arguments) + 1
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        left = dict(self._of)
        while left:
            for end in multiprocessing.connection.wait(list(left)):
                assert isinstance(end, Connection)
                process = left.pop(end)
                try:
                    told = end.recv_bytes().decode()
                except (EOFError, OSError):
                    told = ""
                if told:
                    self._ended(json.loads(told))
                    continue
                process.join()
                self._ended(None if self._stopping else self._death(end, process.exitcode))

    def _death(self, end: Connection, code: int) -> Failure | None:
        if code == 0:
            return None
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        reason = f"worker {self._number[end]} of {self._total} {how}"
        return {"kind": LOST_WORKER, "reason": reason, "detail": ""}

    def stop(self) -> None:
        self._stopping = True
        for process in self._of.values():
            process.kill()
        for process in self._of.values():
            process.join()
        self._watcher.join()
        for end in self._of:
            end.close()


def _serve(target: str, arguments: str, end: Connection) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True).start()
    failure = call(target, arguments)
    if failure is not None:
        end.send_bytes(failure.encode())
    end.close()


def _die_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


# ---- actors of a placement group ---------------------------------------------------------


class _ActorPeers(Peers):
    def __init__(
        self, target: str, arguments: list[str], on_failure: Callable[[], None] | None
    ) -> None:
        super().__init__(len(arguments), on_failure)
        import ray
        from ray.util import get_current_placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        group = get_current_placement_group()
        assert group is not None
        self._ray = ray
        self._stopping = threading.Event()
        self._actors = []
        self._calls: dict[Any, int] = {}
        self._total = len(arguments) + 1
        for place, given in enumerate(arguments, start=1):
            has = dict(group.bundle_specs[place])
            actor = (
                ray.remote(_Peer)
                .options(
                    num_cpus=has.pop("CPU", 0),
                    num_gpus=has.pop("GPU", 0),
                    memory=has.pop("memory", None),
                    resources=has,
                    scheduling_strategy=PlacementGroupSchedulingStrategy(
                        placement_group=group, placement_group_bundle_index=place
                    ),
                )
                .remote()
            )
            self._actors.append(actor)
            self._calls[actor.call.remote(target, given)] = place + 1
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def _watch(self) -> None:
        left = dict(self._calls)
        while left and not self._stopping.is_set():
            for done in self._ray.wait(list(left), timeout=_POLL_SECONDS)[0]:
                number = left.pop(done)
                try:
                    told = self._ray.get(done)
                except self._ray.exceptions.RayError as error:
                    if not self._stopping.is_set():
                        self._ended(_loss(error, f"worker {number} of {self._total}"))
                    continue
                self._ended(None if told is None else json.loads(told))

    def stop(self) -> None:
        self._stopping.set()
        for actor in self._actors:
            self._ray.kill(actor)
        self._watcher.join()


class _Peer:
    """An actor that makes one call."""

    def call(self, target: str, arguments: str) -> str | None:
        return call(target, arguments)


def _loss(error: Exception, who: str) -> Failure:
    """Say why an actor is gone, as far as Ray knows."""
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" or "memory pressure" in text:
        return {"kind": OUT_OF_MEMORY, "reason": f"{who} ran out of memory", "detail": text}
    if "node" in text and "died" in text and "its node" in text:
        return {"kind": LOST_NODE, "reason": f"the node of {who} died", "detail": text}
    return {"kind": LOST_WORKER, "reason": f"{who} died", "detail": text}


def _bundles() -> list[Mapping[str, float]] | None:
    """Return the bundles of the placement group that this process is in, or None."""
    if _connected_ray() is None:
        return None
    from ray.util import get_current_placement_group

    group = get_current_placement_group()
    return None if group is None else list(group.bundle_specs)


def _connected_ray() -> Any:
    """Return ray where this process has joined one; it is not imported for the question."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None
