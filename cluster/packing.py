"""Which stages fit on the nodes of a cluster beside those that run: a model of Ray's placement.

Ray places; this only foresees it, so that a stage is handed out when there is room for it and not
before. What has been handed out cannot be called back, and would come before a longer chain of
work that becomes ready in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cluster.resources import Node, Request

_SLACK = 1e-6
"""Fractions of a resource are sums of decimals; this much of one is no shortage."""


@dataclass(frozen=True)
class Share:
    """What one worker of a stage holds on a node.

    Attributes:
        node: the node's id.
        bundle: amounts by Ray's names.
        gpus: device number -> part of it.
    """

    node: str
    bundle: Mapping[str, float]
    gpus: Mapping[int, float]


Placement = tuple[Share, ...]
"""A share for each worker of a stage."""


@dataclass
class _Room:
    """What is free on one node."""

    node: Node
    free: dict[str, float] = field(default_factory=dict)
    gpus: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        memory = {"memory": float(self.node.memory)} if self.node.memory else {}
        self.free = {"CPU": self.node.cpus, **memory, **self.node.custom}
        self.gpus = [1.0] * int(self.node.gpus)

    def copy(self) -> _Room:
        twin = _Room(self.node)
        twin.free, twin.gpus = dict(self.free), list(self.gpus)
        return twin

    def devices(self, wanted: float) -> dict[int, float] | None:
        """Return the GPUs that a worker would get: a part of the fullest, or whole ones."""
        if not wanted:
            return {}
        if wanted < 1:
            fitting = [
                (free, number) for number, free in enumerate(self.gpus) if free >= wanted - _SLACK
            ]
            return {min(fitting)[1]: wanted} if fitting else None
        whole = [number for number, free in enumerate(self.gpus) if free >= 1 - _SLACK]
        return dict.fromkeys(whole[: int(wanted)], 1.0) if len(whole) >= wanted else None

    def lacks(self, bundle: Mapping[str, float]) -> bool:
        """Whether anything but GPUs is too little; memory that is not known never is."""
        return any(
            self.free.get(name, 0.0) < amount - _SLACK
            for name, amount in bundle.items()
            if name != "GPU" and (name != "memory" or "memory" in self.free)
        )

    def add(self, share: Share, sign: int) -> None:
        """Give back (+1) or take (-1) what a share holds."""
        for name, amount in share.bundle.items():
            if name in self.free:
                self.free[name] += sign * amount
        for number, part in share.gpus.items():
            self.gpus[number] += sign * part


class Packing:
    """The free resources of a cluster's nodes, as stages take and give them back.

    Args:
        nodes: id -> node.
    """

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self._rooms = {name: _Room(node) for name, node in nodes.items()}

    def update(self, nodes: Mapping[str, Node]) -> None:
        """Take note of the nodes that are alive: those new are empty, those gone take no more."""
        for name in self._rooms.keys() - nodes.keys():
            del self._rooms[name]
        for name in nodes.keys() - self._rooms.keys():
            self._rooms[name] = _Room(nodes[name])

    def place(self, request: Request) -> Placement | None:
        """Take room for every worker of a stage, or return None and take nothing."""
        taken: Placement = ()
        bundle = request.bundle()
        for _ in range(request.workers):
            share = self._best(request, bundle)
            if share is None:
                self.release(taken)
                return None
            self.hold((share,))
            taken += (share,)
        return taken

    def hold(self, placement: Placement) -> None:
        """Take just this room, which is known to be free."""
        self._add(placement, -1)

    def copy(self) -> Packing:
        """Return another with the same room, to try things out."""
        twin = Packing({})
        twin._rooms = {name: room.copy() for name, room in self._rooms.items()}
        return twin

    def release(self, placement: Placement) -> None:
        """Give back what a stage held; shares on a node that is gone are forgotten."""
        self._add(placement, +1)

    def _add(self, placement: Placement, sign: int) -> None:
        for share in placement:
            if share.node in self._rooms:
                self._rooms[share.node].add(share, sign)

    def moved(self, placement: Placement, node: str) -> Placement:
        """Note that a stage with one worker runs on another node than was foreseen."""
        if len(placement) != 1 or placement[0].node == node or node not in self._rooms:
            return placement
        self.release(placement)
        room, share = self._rooms[node], placement[0]
        wanted = sum(share.gpus.values())
        gpus = room.devices(wanted)
        if gpus is None:  # it runs there all the same: the model is wrong about the others
            emptiest = sorted(range(len(room.gpus)), key=room.gpus.__getitem__)
            gpus = dict.fromkeys(emptiest[-1:], wanted)
        actual = Share(node, share.bundle, gpus)
        room.add(actual, -1)
        return (actual,)

    def _best(self, request: Request, bundle: Mapping[str, float]) -> Share | None:
        """Return the share that leaves the least behind: GPUs first, then cores."""
        best: tuple[tuple[float, float, str], Share] | None = None
        for name, gpus in self._fitting(request, bundle):
            room = self._rooms[name]
            order = (sum(room.gpus), room.free["CPU"], name)
            if best is None or order < best[0]:
                best = (order, Share(name, bundle, gpus))
        return best[1] if best else None

    def _fitting(
        self, request: Request, bundle: Mapping[str, float]
    ) -> Iterator[tuple[str, dict[int, float]]]:
        for name, room in self._rooms.items():
            if room.node.matches(request) and not room.lacks(bundle):
                gpus = room.devices(request.gpus)
                if gpus is not None:
                    yield name, gpus
