"""A Ray cluster of several nodes on this machine, whose nodes can be killed, cut off and replaced.

Every node is what ``ray start`` makes of a machine: a raylet of its own with its workers, started
in a session of its own, so that all of a node's processes are known from outside by their session
and can be killed together. Nodes have addresses of their own: either on the loopback network, or,
where ``ip netns`` may be used, in a network namespace each, joined by a bridge. Then a node can
lose its network and get it back.

What a killed test run leaves (processes, namespaces, folders) carries the number of its process,
and is removed when the next cluster starts.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

PREFIX = "asychaos"
"""Of folders and namespaces; short, since sockets and interfaces cannot have long names."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    # A node that is gone is noticed after 5 missed checks of 1 s, not after 25 s: tests are short.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    # Who loses the control store ends after this long, not after 60 s.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


def can_isolate() -> bool:
    """Whether nodes can have network namespaces of their own here."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"{PREFIX}{os.getpid()}t"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return False
    made = subprocess.run(
        [*f"ip link add ch{os.getpid()}t type veth peer name e netns".split(), name],
        capture_output=True,
    )
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return made.returncode == 0


@dataclass
class Node:
    """One node: a raylet with its workers.

    Attributes:
        number: of the node, never used twice in a cluster.
        address: its IP address.
        session: the session id of all its processes.
        namespace: its network namespace, or None.
        up: whether it was neither killed nor stopped.
        cut: whether it has lost its network.
    """

    number: int
    address: str
    session: int = 0
    namespace: str | None = None
    up: bool = True
    cut: bool = False

    def processes(self) -> list[psutil.Process]:
        """Return the node's processes that are alive."""
        return in_session(self.session)

    def raylet(self) -> psutil.Process | None:
        """Return the raylet's process, or None where it died."""
        return next((p for p in self.processes() if _name(p) == "raylet"), None)

    def working(self) -> list[psutil.Process]:
        """Return the workers that run something, not those that are idle."""
        return [p for p in self.processes() if is_working(p)]


def _name(process: psutil.Process) -> str:
    try:
        return str(process.name())
    except psutil.NoSuchProcess:
        return ""


def is_working(process: psutil.Process) -> bool:
    """Whether this is a Ray worker that runs an actor or a task."""
    try:
        title = " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False
    idle = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
    return title.startswith("ray::") and not title.startswith(idle)


def in_session(session: int) -> list[psutil.Process]:
    """Return the live processes of a session; a zombie is not alive."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and os.getsid(process.pid) == session:
                found.append(process)
    return found


def kill_all(processes: list[psutil.Process], seconds: float = 20.0) -> None:
    """SIGKILL the processes and wait until they are gone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=seconds)


class Cluster:
    """A Ray cluster on this machine; use as a context manager.

    Args:
        isolated: whether every node gets a network namespace; see :func:`can_isolate`.
        cpus: of each node.
        environment: for all processes of all nodes, beside this process' own.
    """

    def __init__(
        self, *, isolated: bool = False, cpus: int = 1, environment: Mapping[str, str] = {}
    ) -> None:
        self.isolated = isolated
        self.cpus = cpus
        # A token of its own: a head would otherwise ask for one that lies in the home folder, and
        # nodes would not know it; and no other cluster on this machine can be joined by mistake.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, **ENVIRONMENT, **token, **environment}
        self.nodes: list[Node] = []
        self._made = 0
        self._mark = os.getpid()
        self.folder = Path(tempfile.gettempdir()) / f"{PREFIX}{self._mark}"
        # Several clusters on one machine get networks of their own: 10.x.y.0/24 by process.
        low = self._mark % 2**15
        self._network = f"10.{128 + (low >> 8)}.{low & 255}"
        self._bridge = f"chb{self._mark}"
        self.address = ""

    @property
    def head(self) -> Node:
        """The node with the cluster's control store."""
        return self.nodes[0]

    def __enter__(self) -> Cluster:
        sweep()
        self.folder.mkdir()
        try:
            if self.isolated:
                _ip("link", "add", self._bridge, "type", "bridge")
                _ip("addr", "add", f"{self._network}.1/24", "dev", self._bridge)
                _ip("link", "set", self._bridge, "up")
            self.add()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self) -> Node:
        """Start a node, the first one with the cluster's control store, and wait until it is up.

        Returns:
            The node.
        """
        self._made += 1
        number = self._made
        head = not self.nodes
        if self.isolated:
            node = self._plug(number)
        else:
            node = Node(number, own_address() if head else f"127.0.0.{number}")
        if head:
            port = free_port()
            self.address = f"{node.address}:{port}"
            place = ["--head", "--port", str(port), "--include-dashboard=false"]
            place += ["--temp-dir", str(self.folder / "r")]
        else:
            place = ["--address", self.address]
        command = [
            *self._inside(node),
            *(str(Path(sys.executable).with_name("ray")), "start", *place),
            *("--node-ip-address", node.address, "--num-cpus", str(self.cpus), "--num-gpus=0"),
            *("--object-store-memory", str(80 * 2**20), "--disable-usage-stats"),
            *("--log-style=record", "--log-color=false"),
        ]
        log = self.folder / f"node-{number}.log"
        with log.open("wb") as stream:
            starter = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,
            )
            node.session = starter.pid
            self.nodes.append(node)
            self._note()
            code = starter.wait(300)
        if code != 0 or node.raylet() is None:
            raise RuntimeError(f"node {number} did not start: {log.read_text()[-2000:]}")
        return node

    def _plug(self, number: int) -> Node:
        """Make a namespace with one interface on the bridge."""
        name, link = f"{PREFIX}{self._mark}n{number}", self._link(number)
        address = f"{self._network}.{number + 10}"
        _ip("netns", "add", name)
        _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", name)
        _ip("link", "set", link, "master", self._bridge, "up")
        _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        # Leads nowhere; a program finds its machine's address by asking for the way out.
        _ip("-n", name, "route", "add", "default", "via", f"{self._network}.1")
        return Node(number, address, namespace=name)

    def _link(self, number: int) -> str:
        return f"ch{self._mark}n{number}"

    def _inside(self, node: Node) -> list[str]:
        return ["ip", "netns", "exec", node.namespace] if node.namespace else []

    def command(self, *arguments: str) -> list[str]:
        """Return the command line that runs ``arguments`` on the head's machine."""
        return [*self._inside(self.head), *arguments]

    def living(self) -> list[Node]:
        """Return the nodes that are up and on the network; some end by themselves."""
        return [n for n in self.nodes if n.up and not n.cut and n.raylet() is not None]

    def kill_raylet(self, node: Node) -> None:
        """SIGKILL the raylet alone; its workers notice by themselves, or are orphans for a while.

        What is left of the node is killed when the cluster closes, or by :meth:`bury`.
        """
        raylet = node.raylet()
        node.up = False
        self._note()
        if raylet is not None:
            kill_all([raylet])

    def power_off(self, node: Node) -> None:
        """SIGKILL every process of the node at once."""
        node.up = False
        self._note()
        self.bury(node)

    def bury(self, node: Node) -> None:
        """Kill whatever is left of a node."""
        deadline = time.monotonic() + 20
        while (left := node.processes()) and time.monotonic() < deadline:
            kill_all(left, 5)

    def cut(self, node: Node) -> None:
        """Take the node off the network."""
        _ip("link", "set", self._link(node.number), "down")
        node.cut = True

    def mend(self, node: Node) -> None:
        """Give the node its network back."""
        _ip("link", "set", self._link(node.number), "up")
        node.cut = False

    def power_off_all(self) -> None:
        """SIGKILL every process of every node, the head's too; the next :meth:`add` is a head."""
        for node in self.nodes:
            self.power_off(node)
        self.nodes = []

    def processes(self) -> list[psutil.Process]:
        """Return all live processes of all nodes."""
        return [process for node in self.nodes for process in node.processes()]

    def close(self) -> None:
        """Kill every node and remove the network and the folder."""
        for node in self.nodes:
            node.up = False
            for process in node.processes():  # one that is stopped dies of SIGKILL all the same
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        for node in self.nodes:
            self.bury(node)
        _unplug(self._mark)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _note(self) -> None:
        """Write down whose processes there are, for :func:`sweep`."""
        sessions = [node.session for node in self.nodes]
        (self.folder / "sessions.json").write_text(json.dumps(sessions))


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _unplug(mark: int) -> None:
    """Remove the namespaces and the bridge of the process with this number."""
    if shutil.which("ip") is None:
        return
    for name in namespaces():
        if name.startswith(f"{PREFIX}{mark}n"):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    subprocess.run(["ip", "link", "del", f"chb{mark}"], capture_output=True)


def namespaces() -> list[str]:
    """Return the names of the machine's network namespaces."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    return [line.split()[0] for line in listed.stdout.splitlines() if line.strip()]


def sweep() -> None:
    """Remove what runs that were killed have left: processes, namespaces and folders."""
    marks = set()
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        mark = folder.name.removeprefix(PREFIX)
        if mark.isdecimal() and not psutil.pid_exists(int(mark)):
            marks.add(int(mark))
            _sweep_folder(folder)
    if shutil.which("ip") is not None:
        for name in namespaces():
            mark = name.removeprefix(PREFIX).partition("n")[0]
            if name.startswith(PREFIX) and mark.isdecimal() and not psutil.pid_exists(int(mark)):
                marks.add(int(mark))
    for left in marks:
        _unplug(left)


def _sweep_folder(folder: Path) -> None:
    with contextlib.suppress(OSError, json.JSONDecodeError):
        for session in json.loads((folder / "sessions.json").read_text()):
            # The number may have gone to somebody else since: only what names the folder is ours.
            ours = [p for p in in_session(session) if _mentions(p, folder)]
            kill_all(in_session(session) if ours else [])
    shutil.rmtree(folder, ignore_errors=True)


def _mentions(process: psutil.Process, folder: Path) -> bool:
    try:
        return str(folder) in " ".join([*process.cmdline(), process.cwd()])
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def free_port() -> int:
    """Return a port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def own_address() -> str:
    """Return this machine's address on the network, the loopback's where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # a datagram socket sends nothing by that
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def wait_until(condition: object, seconds: float, what: str) -> None:
    """Wait until ``condition()`` is true.

    Raises:
        TimeoutError: it was not within ``seconds``.
    """
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(0.1)


@contextlib.contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """Hold a process with SIGSTOP; it goes on when the block ends."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGCONT)
