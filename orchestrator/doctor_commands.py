"""The command ``doctor``: looks at what a run would depend on, and says what helps."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.command_line import (
    EXIT_DONE,
    EXIT_FAILED,
    address_key,
    check_home,
    echo_json,
    json_option,
    open_study,
    set_option,
)
from orchestrator.redaction import redact
from retrieval.errors import InputError, nearest

if TYPE_CHECKING:
    from cluster.doctor import Check
    from orchestrator.plan import Plan, Stage
    from orchestrator.session import Session

PACKAGES = ("asymbench", "torch", "timm", "ray", "mlflow", "numpy")
_NUMBERS = ("asymbench", "torch", "timm", "ray", "numpy")
"""Those of which another version may give other numbers, or no run at all."""

VARIABLES = (
    "ASYMBENCH_ADDRESS",
    "ASYMBENCH_ENGINE",
    "ASYMBENCH_HOME",
    "ASYMBENCH_LEASES",
    "ASYMBENCH_STORE",
    "ASYMBENCH_UPLOAD_SECONDS",
)
"""Every environment variable of ours."""

_SECONDS = 20.0
"""For each check of this machine."""

_CLUSTER_SECONDS = 150.0
_SERVER_SECONDS = 5.0
_SOCKET_LIMIT, _SOCKET_NAME = 107, 64
_BITS = 64


@click.command()
@click.argument("study", required=False)
@set_option
@click.option(
    "--address",
    default="local",
    show_default=True,
    envvar="ASYMBENCH_ADDRESS",
    help="Ray: local starts it here; auto, HOST:PORT and ray://HOST:PORT use one that runs.",
)
@json_option
def doctor(study: str | None, overrides: tuple[str, ...], address: str, as_json: bool) -> None:
    """Look at versions, disks, Ray, nodes, GPUs and servers that a run depends on.

    With STUDY also at its weights, its tracker and the room that it needs. Ends with 1 where
    something fails.
    """
    from cluster.connect import ConnectError, check_address
    from orchestrator.session import home_folder

    try:
        check_address(address)
    except ConnectError as error:
        raise InputError(str(error), key=address_key()) from None
    if overrides and not study:
        raise InputError("changes a study, and none is named", key="--set", value=overrides[0])
    home = home_folder()
    check_home(home)
    session = open_study(study, overrides, ran=True) if study else None
    checks = examine(home, address, session)
    if as_json:
        counts = {s: sum(c.status == s for c in checks) for s in ("ok", "warn", "fail", "skipped")}
        echo_json({"counts": counts, "checks": [check.as_dict() for check in checks]})
    else:
        click.echo(show(checks))
    raise SystemExit(EXIT_FAILED if any(c.status == "fail" for c in checks) else EXIT_DONE)


def show(checks: Sequence[Check]) -> str:
    """Return checks as lines, remedies under what needs one, and a count at the end."""
    width = max(len(f"{c.name} {c.where}".rstrip()) for c in checks)
    lines = []
    for check in checks:
        name = f"{check.name} {check.where}".rstrip()
        lines.append(f"{check.status:<7}  {name:<{width}}  {check.finding}")
        if check.remedy and check.status in ("warn", "fail"):
            lines.append(f"{'':<7}  {'':<{width}}  -> {check.remedy}")
    counts = [(sum(c.status == s for c in checks), s) for s in ("ok", "warn", "fail", "skipped")]
    lines.append(", ".join(f"{count} {status}" for count, status in counts if count))
    return "\n".join(lines)


def examine(home: Path, address: str, session: Session | None) -> list[Check]:
    """Do every check; one that crashes or hangs is a failed one.

    Args:
        home: ASYMBENCH_HOME.
        address: of Ray.
        session: a study that is to be run, or None.
    """
    from contextlib import suppress

    from cluster.doctor import Check, bounded, judge_gpus, judge_machine, judge_versions, probe

    where = os.environ.get("ASYMBENCH_STORE", "")
    far = "://" in where
    store = home / "store"
    if where and not far:
        store = Path(where)
        with suppress(RuntimeError):  # there is no such user: the check of the store says so
            store = store.expanduser()
        store = store.absolute()
    paths = {"home": str(home), "tmp": tempfile.gettempdir()}
    if store != home / "store":
        paths["store"] = str(store)
    request: dict[str, Any] = {
        "packages": PACKAGES,
        "paths": paths,
        "shared": None,
        "gpus": False,
        "node": "here",
    }
    facts: dict[str, Any] = {}

    def here() -> list[Check]:
        facts.update(probe(request))
        return judge_versions(facts, facts, _NUMBERS, "")

    checks = bounded("versions", here, 4 * _SECONDS)
    checks += bounded("variables", lambda: [judge_variables(os.environ)], _SECONDS)
    if facts:
        needed = disk_bytes(session) if session else 0
        checks += bounded("disks", lambda: _disks(facts, needed, ""), _SECONDS)
        checks += bounded("machine", lambda: judge_machine(facts), _SECONDS)
        checks += bounded("gpus", lambda: judge_gpus(facts), _SECONDS)
    checks += bounded("socket paths", lambda: [judge_sockets(home)], _SECONDS)
    checks += bounded("store", lambda: [look_at_store(home, where)], 2 * _SECONDS)
    uri = session.study.tracking.uri if session else None
    if session and not session.study.tracking.enabled:
        checks.append(Check("tracker", "skipped", "tracking.enabled is false"))
    else:
        checks += bounded("tracker", lambda: look_at_tracker(uri, home, facts), 2 * _SECONDS)
    if session:
        plan = session.plan
        checks += bounded("weights", lambda: [look_at_weights(plan)], 3 * _SECONDS)
    if facts:
        checks += _cluster(home, address, request, facts, store, far)
    return checks


# ---- this machine ---------------------------------------------------------------------------


def judge_variables(environment: Mapping[str, str]) -> Check:
    """Look for variables that were meant to be ours and are not."""
    from cluster.doctor import Check

    wrong = []
    for name in sorted(environment):
        ours = name.startswith("ASYMB") or name.startswith("ASYM_")
        if ours and name not in VARIABLES:
            close = nearest(name, VARIABLES, n=1)
            wrong.append(f"{name} (did you mean {close[0]}?)" if close else name)
    if wrong:
        known = ", ".join(VARIABLES)
        return Check("variables", "fail", f"not known: {', '.join(wrong)}", f"known: {known}")
    given = [f"{n}={redact(environment[n])}" for n in VARIABLES if n in environment]
    return Check("variables", "ok", ", ".join(given) or "none of ours is set")


def judge_sockets(home: Path) -> Check:
    """Look at the room that sockets' names have: Ray's lie in a folder of its own."""
    from cluster.doctor import Check

    folder = str(home / "ray")
    if len(folder) + _SOCKET_NAME <= _SOCKET_LIMIT:
        return Check("socket paths", "ok", f"{len(folder)} characters, room enough")
    # a link in the temporary folder stands for it then: its name has up to 27 characters
    short = len(tempfile.gettempdir()) + 28
    if short + _SOCKET_NAME <= _SOCKET_LIMIT:
        return Check(
            "socket paths", "ok", f"{folder} is long; a link in {tempfile.gettempdir()} is used"
        )
    return Check(
        "socket paths",
        "fail",
        f"{folder} and {tempfile.gettempdir()} leave no room for the names of sockets",
        "set TMPDIR to a short path, such as /tmp",
    )


def _disks(facts: Mapping[str, Any], needed: int, where: str) -> list[Check]:
    from cluster.doctor import judge_disk

    main = "store" if "store" in facts["paths"] else "home"
    checks = []
    for label, disk in facts["paths"].items():
        if label == "tmp" and disk["looked_at"] == facts["paths"]["home"]["looked_at"]:
            continue
        checks += judge_disk(
            label,
            disk,
            needed=needed if label == main else 0,
            where=where,
            store=label in ("home", "store"),
        )
    return checks


def disk_bytes(session: Session) -> int:
    """Return the bytes that a study's missing stages are estimated to write."""
    done = session.store.done(session.plan.stages)
    return sum(stage_bytes(s) for i, s in session.plan.stages.items() if i not in done)


def stage_bytes(stage: Stage) -> int:
    """Return the bytes that a stage is estimated to write: weights, codes, recording.

    Weights in float32; codes of every image packed and as float32; of a recording the signs of
    each image that is trained on. Of what a method chooses the larger is taken.
    """
    from methods.pairs import BACKBONES
    from orchestrator.footprint import trained_sides

    bits = int(stage.setup.get("bits", _BITS))
    total = 0.0
    for side, _ in trained_sides(stage):
        known = BACKBONES.get(side["backbone"].partition(".")[0])
        total += 4e6 * (known.mparams if known else 90.0)
    seen, encoded = stage.images
    recorded = stage.setup.get("recording") if stage.kind in ("gallery", "recording") else None
    if recorded:
        size = 4 * bits if recorded == "continuous" else bits / 8
        total += size * (seen or encoded)
    if stage.kind != "recording":
        total += encoded * (bits / 8 + 4 * bits)
    return int(total)


def look_at_store(home: Path, where: str) -> Check:
    """Open the stage store; of an object store, write, read, create once and remove an object."""
    from cluster.doctor import Check

    shown = redact(where) if where else str(home / "store")
    try:
        if "://" in where and not where.startswith("memory:"):
            return _try_objects(where, shown)
        from orchestrator.store import open_store

        there = open_store(home, where).root.exists()
    except InputError as error:
        return Check("store", "fail", redact(error.problem), error.hint or "see docs/cluster.md")
    return Check(
        "store", "ok", f"{shown}: {'can be opened' if there else 'is made at the first run'}"
    )


def _try_objects(where: str, shown: str) -> Check:
    import time
    import uuid

    from cluster.doctor import Check
    from orchestrator.object_store import Remote

    remote = Remote(where)
    name = f".doctor/{uuid.uuid4().hex}"
    remedy = "check the bucket's name, its permissions, and the credentials in the environment"
    start = time.perf_counter()
    try:
        remote.create(f"{name}/new", b"first")
        once = False
        try:
            remote.create(f"{name}/new", b"second")
        except FileExistsError:
            once = True
        text = remote.read(f"{name}/new")
        remote.clear(name)
    except OSError as error:
        return Check("store", "fail", redact(f"{shown}: {error}")[:300], remedy)
    if text != b"first" or not once:
        return Check(
            "store",
            "fail",
            f"{shown}: an object that exists can be created again, so two could hold a stage",
            "use a store with conditional writes (S3, Google Cloud Storage)",
        )
    took = time.perf_counter() - start
    return Check("store", "ok", f"{shown}: written, read, created once, removed in {took:.2f} s")


# ---- tracker and weights --------------------------------------------------------------------


def look_at_tracker(uri: str | None, home: Path, facts: Mapping[str, Any]) -> list[Check]:
    """Look at the tracker: a SQLite file here, or a server that answers."""
    from cluster.doctor import Check
    from orchestrator.tracking_uri import check_uri, default_uri, sqlite_path

    try:
        uri = check_uri(uri) if uri else default_uri(home)
    except InputError as error:
        return [Check("tracker", "fail", str(error), "")]
    path = sqlite_path(uri)
    if path is not None:
        return [_sqlite(path, facts)]
    if uri.startswith(("http://", "https://")):
        return [_server(uri)]
    return [Check("tracker", "skipped", f"{redact(uri)}: a database is tried by the run itself")]


def _sqlite(path: Path, facts: Mapping[str, Any]) -> Check:
    import sqlite3
    from contextlib import closing
    from urllib.parse import quote

    from cluster.doctor import Check, is_network

    disk = facts.get("paths", {}).get("home", {})
    if disk and path.is_relative_to(disk["path"]) and is_network(disk["type"]):
        return Check(
            "tracker",
            "fail",
            f"{path} is SQLite on {disk['type']}, which breaks its locks",
            "use a server: tracking.uri: http://HOST:5000",
        )
    if not path.exists():
        return Check("tracker", "ok", f"{path}: is made at the first run")
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True)) as database:
            mode = database.execute("pragma journal_mode").fetchone()[0]
            tables = database.execute("select count(*) from sqlite_master").fetchone()[0]
    except sqlite3.Error as error:
        remedy = "remove it: the next run, or `asymbench sync --all`, fills it anew from the store"
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            remedy = "get the right to write there, or name another tracker: tracking.uri"
        return Check("tracker", "fail", f"{path}: {error}", remedy)
    return Check("tracker", "ok", f"{path}: SQLite, {tables} tables and indices, journal {mode}")


def _server(uri: str) -> Check:
    from importlib.metadata import version

    from cluster.doctor import Check

    code, text = _get(f"{uri.rstrip('/')}/version")
    remedy = "start the server, and look at its address and the firewall"
    if code != 200:
        if code in (401, 403):
            return _login(uri, code, "")
        return Check("tracker", "fail", f"{redact(uri)}: {text}", remedy)
    theirs, ours = text.strip()[:40], version("mlflow")
    code, text = _get(f"{uri.rstrip('/')}/api/2.0/mlflow/experiments/search?max_results=1")
    if code in (401, 403):
        return _login(uri, code, theirs)
    if code != 200:
        return Check("tracker", "fail", f"{redact(uri)}: MLflow {theirs}, but {text}", remedy)
    login = "a login" if _credentials() else "no login"
    found = f"{redact(uri)}: MLflow {theirs} answers, {login} given"
    if theirs.split(".")[0] != ours.split(".")[0]:
        return Check("tracker", "warn", f"{found}; mlflow {ours} here", "use one major version")
    return Check("tracker", "ok", found)


def _login(uri: str, code: int, version: str) -> Check:
    from cluster.doctor import Check

    given = "refuses the login that is given" if _credentials() else "asks for a login"
    return Check(
        "tracker",
        "fail",
        f"{redact(uri)}: MLflow {version} {given} ({code})".replace("  ", " "),
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN; "
        "403: the server's --allowed-hosts",
    )


def _credentials() -> str:
    """Return the authorization header's value; it is never shown."""
    from base64 import b64encode

    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    user = os.environ.get("MLFLOW_TRACKING_USERNAME")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return "Basic " + b64encode(f"{user}:{password}".encode()).decode()
    return f"Bearer {token}" if token else ""


def _get(url: str) -> tuple[int, str]:
    """Return status and text of a page; 0 and the reason where there is none."""
    import http.client
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url)
    if header := _credentials():
        request.add_unredirected_header("Authorization", header)
    try:
        with urllib.request.urlopen(request, timeout=_SERVER_SECONDS) as answer:
            return answer.status, answer.read(4096).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, f"it answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        reason = getattr(error.reason, "strerror", None) or str(error.reason)
        return 0, f"does not answer: {redact(reason)}"
    except (OSError, http.client.HTTPException) as error:
        return 0, f"does not answer: {redact(str(error) or type(error).__name__)}"


def published_backbones(plan: Plan) -> list[str]:
    """Return the backbones whose published weights a plan starts from."""
    sides = []
    for stage in plan.stages.values():
        setup = stage.setup
        sides += [setup.get("side"), setup.get("gallery_side"), *setup.get("sides", {}).values()]
    return sorted({s["backbone"] for s in sides if s and s["pretrained"] and not s["weights"]})


def look_at_weights(plan: Plan) -> Check:
    """Look for a study's published weights in the local cache, and for a way to the others."""
    from cluster.doctor import Check

    wanted = published_backbones(plan)
    if not wanted:
        return Check("weights", "ok", "the study needs no published weights")
    from methods.networks import cached_weights

    missing = [backbone for backbone in wanted if cached_weights(backbone) is None]
    if not missing:
        return Check("weights", "ok", f"in the local cache: {', '.join(wanted)}")
    from huggingface_hub import constants

    remedy = "fetch them once where there is a network, or give weights: file.safetensors"
    finding = f"not in the local cache: {', '.join(missing)}"
    if constants.HF_HUB_OFFLINE:
        return Check("weights", "fail", f"{finding}; HF_HUB_OFFLINE is set", remedy)
    code, text = _reach(constants.ENDPOINT)
    if not code:
        return Check("weights", "fail", f"{finding}; {constants.ENDPOINT} {text}", remedy)
    return Check("weights", "ok", f"{finding}; {constants.ENDPOINT} answers, a run fetches them")


def _reach(url: str) -> tuple[int, str]:
    """Like `_get`, without the tracker's login."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(url, timeout=_SERVER_SECONDS) as answer:
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError as error:
        reason = getattr(getattr(error, "reason", None), "strerror", None)
        return 0, f"does not answer: {reason or error}"


# ---- the cluster ----------------------------------------------------------------------------


def _cluster(
    home: Path,
    address: str,
    request: Mapping[str, Any],
    here: Mapping[str, Any],
    store: Path,
    far: bool,
) -> list[Check]:
    from cluster.doctor import bounded
    from cluster.examination import examine as examine_cluster

    asked = {
        **request,
        "folder": str(home / "ray"),
        # of an object store no folder is shared
        "place": None if far or address == "local" else str(store),
    }

    def look() -> list[Check]:
        found = examine_cluster(address, asked, _CLUSTER_SECONDS)
        return judge_cluster(address, found, here, shared="store" if store != home else "home")

    return bounded("ray", look, _CLUSTER_SECONDS + _SECONDS)


def judge_cluster(
    address: str, found: Mapping[str, Any], here: Mapping[str, Any], *, shared: str
) -> list[Check]:
    """Judge what was found of a cluster.

    Args:
        address: of Ray.
        found: what `cluster.examination.examine` returns.
        here: the facts of this machine.
        shared: what the folder is that nodes must share.
    """
    from cluster.doctor import Check, judge_clocks, judge_shared

    if found["error"]:
        remedy = {
            "local": "look at HOME/ray/session_latest/logs",
            "auto": "start Ray on this machine: ray start --head, or name the head: HOST:PORT",
        }.get(address, "is `ray start --head` running there, and is the port open?")
        return [Check("ray", "fail", f"{address}: {found['error']}", remedy)]
    nodes = found["nodes"]
    alive = [node for node in nodes if node["alive"]]
    checks = [Check("ray", "ok", f"{address}: Ray {found['ray']}, {len(alive)} nodes are alive")]
    dead = [node["name"] for node in nodes if not node["alive"]]
    if dead:
        checks.append(
            Check(
                "nodes",
                "warn",
                f"{len(dead)} died: {', '.join(dead[:8])}",
                "nothing to do where others took their place",
            )
        )
    for node in alive:
        checks += _judge_node(node, found, here, address)
    for name, reason in found["silent"].items():
        checks.append(
            Check(
                "node",
                "fail",
                f"could not be looked at: {reason}",
                "look at that node's raylet and network, or take it out",
                name,
            )
        )
    seen = {name: facts["shared"] for name, facts in found["facts"].items() if facts["shared"]}
    if seen:
        checks += judge_shared(shared, seen, found["arrived"])
    if found["clocks"] and address != "local":
        checks.append(judge_clocks({n: tuple(offset) for n, offset in found["clocks"].items()}))
    return checks


def _judge_node(
    node: Mapping[str, Any], found: Mapping[str, Any], here: Mapping[str, Any], address: str
) -> Iterable[Check]:
    from cluster.doctor import Check, judge_gpus, judge_machine, judge_versions

    name, resources = node["name"], node["resources"]
    gib = {k: resources.get(k, 0) / 2**30 for k in ("memory", "object_store_memory")}
    labels = "".join(f", {key}={value}" for key, value in sorted(node["labels"].items()))
    yield Check(
        "node",
        "ok",
        f"{resources.get('CPU', 0):g} cpus, {resources.get('GPU', 0):g} gpus, "
        f"{gib['memory']:.1f} GiB, object store {gib['object_store_memory']:.1f} GiB{labels}",
        "",
        name,
    )
    facts = found["facts"].get(name)
    if facts is None:
        return
    if address == "local":  # this machine, which has been looked at; what Ray offers has not
        yield from (c for c in judge_gpus(facts, offered=resources.get("GPU", 0.0), where=name))
        return
    yield from judge_versions(here, facts, _NUMBERS, name)
    yield from _disks(facts, 0, name)
    yield from judge_machine(facts, offered=resources, where=name)
    yield from judge_gpus(facts, offered=resources.get("GPU", 0.0), where=name)
