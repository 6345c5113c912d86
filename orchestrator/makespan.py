"""How long a plan takes on a cluster that is not there: the scheduler, simulated.

Pure: stages with seconds and requests, nodes with resources, and the rules that the scheduler goes
by. The stage with the longest chain of work behind it comes first; where there is no room for it,
the earliest moment at which there will be is reserved, and others go before only where they do not
put it off. Starting a process, loading and failures cost nothing here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from cluster.resources import Capacity, Node, Request, ResourceError

_GRAIN = 10_000
"""Resources are counted in ten-thousandths, as Ray does; sums of whole numbers are exact."""


@dataclass(frozen=True)
class Task:
    """A stage as the simulation sees it.

    Attributes:
        id: of the stage.
        seconds: that it takes.
        request: what it holds meanwhile.
        inputs: ids of the tasks that must have ended; others are taken as done.
    """

    id: str
    seconds: float
    request: Request
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Simulation:
    """What a simulated run came to.

    Attributes:
        makespan: seconds from the first start to the last end.
        lower_bound: seconds that no schedule can go below: the longest chain, or the work over the
            capacity of the scarcest resource, whichever is more.
        gpu_utilisation, cpu_utilisation: part of the cluster's GPU and core seconds that stages
            held until the makespan; None where the cluster has none, or nothing is to be done.
        spans: task id -> (start, end) in seconds.
    """

    makespan: float
    lower_bound: float
    gpu_utilisation: float | None
    cpu_utilisation: float | None
    spans: dict[str, tuple[float, float]] = field(repr=False)


def simulate(tasks: Iterable[Task], capacity: Capacity) -> Simulation:
    """Run tasks on the nodes of a cluster.

    Args:
        tasks: in any order; the result does not depend on it.
        capacity: the nodes.

    Raises:
        ResourceError: a task fits on no node.
        ValueError: tasks wait for each other in a circle, or two have one id.
    """
    table: dict[str, Task] = {}
    for task in sorted(tasks, key=lambda task: task.id):
        if task.id in table:
            raise ValueError(f"two tasks have the id {task.id!r}")
        table[task.id] = task
    chains = _chains(table)
    spans = _Simulator(table, chains, capacity).run()
    makespan = max((end for _, end in spans.values()), default=0.0)
    gpu, cpu = (_held(table, name) for name in ("GPU", "CPU"))
    return Simulation(
        makespan=makespan,
        lower_bound=max([0.0, *chains.values(), *_work_bounds(table, capacity)]),
        gpu_utilisation=_part(gpu, capacity.gpus * makespan),
        cpu_utilisation=_part(cpu, capacity.cpus * makespan),
        spans=spans,
    )


def _part(held: float, there: float) -> float | None:
    return held / there if there else None


def _held(tasks: Mapping[str, Task], name: str) -> float:
    """Return the amount of a resource times the seconds for which tasks hold it."""
    return sum(
        task.seconds * task.request.workers * task.request.bundle().get(name, 0.0)
        for task in tasks.values()
    )


def _work_bounds(tasks: Mapping[str, Task], capacity: Capacity) -> list[float]:
    """Return the work on each resource over what the cluster has of it, in seconds."""
    totals: dict[str, float] = {"CPU": capacity.cpus, "GPU": capacity.gpus}
    if all(node.memory for node in capacity.nodes):
        totals["memory"] = float(capacity.memory)
    for node in capacity.nodes:
        for name, amount in node.custom.items():
            totals[name] = totals.get(name, 0.0) + amount
    return [_held(tasks, name) / total for name, total in totals.items() if total]


def _chains(tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return task id -> seconds of the longest chain of tasks that begins with it."""
    users: dict[str, list[str]] = {task_id: [] for task_id in tasks}
    for task in tasks.values():
        for parent in set(task.inputs):
            if parent in users:
                users[parent].append(task.id)
    open_users = {task_id: len(waiting) for task_id, waiting in users.items()}
    queue = [task_id for task_id, count in open_users.items() if count == 0]
    chains: dict[str, float] = {}
    while queue:
        task_id = queue.pop()
        behind = max((chains[user] for user in users[task_id]), default=0.0)
        chains[task_id] = tasks[task_id].seconds + behind
        for parent in set(tasks[task_id].inputs):
            if parent in open_users:
                open_users[parent] -= 1
                if open_users[parent] == 0:
                    queue.append(parent)
    if len(chains) < len(tasks):
        raise ValueError("tasks wait for each other in a circle")
    return chains


# ---- rooms -------------------------------------------------------------------------------


class _Need:
    """A request in whole numbers: what a worker takes of the numbered resources, and of GPUs."""

    def __init__(self, request: Request, names: Sequence[str], nodes: Sequence[Node]) -> None:
        self.request = request
        self.workers = request.workers
        bundle = request.bundle()
        self.amounts = [
            (place, round(bundle[name] * _GRAIN))
            for place, name in enumerate(names)
            if bundle.get(name)
        ]
        self.part = round(request.gpus * _GRAIN) if request.gpus < 1 else 0
        self.whole = int(request.gpus) if request.gpus >= 1 else 0
        self.nodes = {
            place
            for place, node in enumerate(nodes)
            if node.matches(request) and all(name in node.custom for name in request.custom)
        }


_Taken = tuple[int, _Need, tuple[tuple[int, int], ...]]
"""Node, need, and (GPU, part of it) for one worker."""


class _Rooms:
    """What is free on each node."""

    def __init__(self, amounts: list[list[int]], gpus: list[list[int]]) -> None:
        self.amounts = amounts
        self.gpus = gpus

    def copy(self) -> _Rooms:
        return _Rooms([list(a) for a in self.amounts], [list(g) for g in self.gpus])

    def take(
        self, need: _Need, among: Iterable[int], also: _Rooms | None = None
    ) -> list[_Taken] | None:
        """Take room for all workers, or for none; each where the least is left behind.

        Args:
            need: of the task.
            among: numbers of the nodes to look at.
            also: other rooms in which there must be as much, on the same nodes and GPUs; it is
                taken there too.
        """
        both = [self] if also is None else [self, also]
        taken: list[_Taken] = []
        for _ in range(need.workers):
            one = self._best(need, among, also)
            if one is None:
                for rooms in both:
                    rooms.give(taken)
                return None
            for rooms in both:
                rooms.change(one, -1)
            taken.append(one)
        return taken

    def _best(self, need: _Need, among: Iterable[int], also: _Rooms | None) -> _Taken | None:
        best: tuple[tuple[int, int, int], _Taken] | None = None
        for node in among:
            if node not in need.nodes:
                continue
            free, gpus = self.amounts[node], self.gpus[node]
            if also is not None:
                free = list(map(min, free, also.amounts[node]))
                gpus = list(map(min, gpus, also.gpus[node]))
            if any(free[place] < amount for place, amount in need.amounts):
                continue
            devices = _devices(need, gpus)
            if devices is not None:
                order = (sum(gpus), free[0], node)
                if best is None or order < best[0]:
                    best = (order, (node, need, devices))
        return best[1] if best else None

    def give(self, taken: Iterable[_Taken]) -> None:
        for one in taken:
            self.change(one, +1)

    def change(self, one: _Taken, sign: int) -> None:
        node, need, devices = one
        for place, amount in need.amounts:
            self.amounts[node][place] += sign * amount
        for gpu, part in devices:
            self.gpus[node][gpu] += sign * part


def _devices(need: _Need, gpus: Sequence[int]) -> tuple[tuple[int, int], ...] | None:
    """Return (GPU, part) for one worker: a part of the fullest GPU that has it, or idle ones."""
    if need.part:
        fitting = [(free, gpu) for gpu, free in enumerate(gpus) if free >= need.part]
        return ((min(fitting)[1], need.part),) if fitting else None
    if need.whole:
        idle = [gpu for gpu, free in enumerate(gpus) if free == _GRAIN][: need.whole]
        return tuple((gpu, _GRAIN) for gpu in idle) if len(idle) == need.whole else None
    return ()


# ---- the run -----------------------------------------------------------------------------


@dataclass
class _Group:
    """Ready tasks of one need, the longest chain first.

    Attributes:
        need: of each of them.
        heap: (minus the chain's seconds, id).
        fresh: whether every node has to be looked at: it may fit where nothing has changed.
    """

    need: _Need
    heap: list[tuple[float, str]] = field(default_factory=list)
    fresh: bool = True


@dataclass
class _Reservation:
    """The moment at which a task that has to wait will start, whatever others do.

    Attributes:
        task: its id.
        time: seconds.
        rooms: what will be free then, beside it.
    """

    task: str
    time: float
    rooms: _Rooms


class _Simulator:
    def __init__(
        self, tasks: Mapping[str, Task], chains: Mapping[str, float], capacity: Capacity
    ) -> None:
        self.tasks = tasks
        self.chains = chains
        self.capacity = capacity
        nodes = capacity.nodes
        known = all(node.memory for node in nodes)
        names = ["CPU", *sorted({name for node in nodes for name in node.custom})]
        names += ["memory"] * known  # where a node's memory is not known, none is counted
        self.names, self.nodes = names, nodes
        self.rooms = _Rooms(
            [[round(self._amount(node, name) * _GRAIN) for name in names] for node in nodes],
            [[_GRAIN] * int(node.gpus) for node in nodes],
        )
        self.groups: dict[Request, _Group] = {}
        self.running: list[tuple[float, str]] = []
        self.held: dict[str, list[_Taken]] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.reserved: _Reservation | None = None
        self.everywhere = set(range(len(nodes)))

    def _amount(self, node: Node, name: str) -> float:
        if name == "CPU":
            return node.cpus
        return float(node.memory) if name == "memory" else node.custom.get(name, 0.0)

    def run(self) -> dict[str, tuple[float, float]]:
        """Return task id -> (start, end)."""
        users: dict[str, list[str]] = {task_id: [] for task_id in self.tasks}
        waiting = {}
        for task in self.tasks.values():
            parents = {parent for parent in task.inputs if parent in self.tasks}
            waiting[task.id] = len(parents)
            for parent in parents:
                users[parent].append(task.id)
        for task_id, count in waiting.items():
            if count == 0:
                self._ready(task_id)
        self._start(0.0, self.everywhere)
        while self.running:
            now = self.running[0][0]
            changed: set[int] = set()
            while self.running and self.running[0][0] == now:
                task_id = heapq.heappop(self.running)[1]
                taken = self.held.pop(task_id)
                self.rooms.give(taken)
                changed.update(one[0] for one in taken)
                for user in users[task_id]:
                    waiting[user] -= 1
                    if waiting[user] == 0:
                        self._ready(user)
            self._start(now, changed)
        return self.spans

    def _ready(self, task_id: str) -> None:
        request = self.tasks[task_id].request
        group = self.groups.get(request)
        if group is None:
            group = self.groups[request] = _Group(_Need(request, self.names, self.nodes))
        heapq.heappush(group.heap, (-self.chains[task_id], task_id))
        if group.heap[0][1] == task_id:
            group.fresh = True

    def _start(self, now: float, changed: set[int]) -> None:
        """Start whatever can start, the longest chain first."""
        order = [(g.heap[0], place, g) for place, g in enumerate(self.groups.values()) if g.heap]
        heapq.heapify(order)
        behind = False  # whether a task that comes first has to wait
        while order:
            _, place, group = heapq.heappop(order)
            task = self.tasks[group.heap[0][1]]
            everywhere = group.fresh or group.need.workers > 1
            among = self.everywhere if everywhere else changed
            late = behind and self.reserved is not None and now + task.seconds > self.reserved.time
            also = self.reserved.rooms if late and self.reserved is not None else None
            taken = self.rooms.take(group.need, among, also)
            if taken is None:
                group.fresh = False
                if not behind:
                    behind = True
                    self._reserve(group.need, task)
                continue
            if not behind:  # it goes before the reservation, which may hold no longer
                self._lift()
            heapq.heappop(group.heap)
            group.fresh = True  # the next one may be shorter, and fit where this one would not
            self.held[task.id] = taken
            self.spans[task.id] = (now, now + task.seconds)
            heapq.heappush(self.running, (now + task.seconds, task.id))
            if group.heap:
                heapq.heappush(order, (group.heap[0], place, group))

    def _lift(self) -> None:
        if self.reserved is not None:
            self.reserved = None
            for group in self.groups.values():
                group.fresh = True

    def _reserve(self, need: _Need, task: Task) -> None:
        """Reserve the first moment at which there will be room for a task, as others end."""
        if self.reserved is not None and self.reserved.task == task.id:
            return
        self._lift()
        rooms = self.rooms.copy()
        ends = sorted(self.running)
        for place, (end, task_id) in enumerate(ends):
            rooms.give(self.held[task_id])
            if place + 1 < len(ends) and ends[place + 1][0] == end:
                continue
            if rooms.take(need, self.everywhere) is not None:
                self.reserved = _Reservation(task.id, end, rooms)
                return
        raise ResourceError(f"a stage asks for {need.request}, which no node of the cluster has")
