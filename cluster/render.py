"""Files that start a Ray cluster for asymbench: on a cloud, Kubernetes, SLURM, own machines.

Every place has a folder of templates and a table of options. A value goes through its option's
check first, and then through a quoting filter: a template that prints a value without one does
not render at all (:func:`_only_quoted`), so no value can end a string and begin a command.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

Value = str | int | bool | tuple[str, ...]

_TEMPLATES = Path(__file__).parent / "templates"


class RenderError(ValueError):
    """A value that cannot be rendered.

    Attributes:
        problem: what is wrong and what is allowed.
        key: the option, "" if it is about none.
        value: the value as given.
    """

    def __init__(self, problem: str, *, key: str = "", value: object = None) -> None:
        self.problem = problem
        self.key = key
        self.value = value
        super().__init__(f"{key}: {problem}" if key else problem)


class UnknownRenderNameError(RenderError):
    """There is no place or option of that name.

    Attributes:
        what: "place" or "option".
        name: the name as given.
        known: the names that exist.
    """

    def __init__(self, what: str, name: str, known: Iterable[str]) -> None:
        self.what = what
        self.name = name
        self.known = sorted(known)
        super().__init__(f"unknown {what} {name!r}; known: {', '.join(self.known)}", key=name)


@dataclass(frozen=True, kw_only=True)
class Option:
    """One value of a place.

    Attributes:
        name: the key for ``--set``.
        default: its value where none is given; its type is the option's.
        doc: what it means.
        allowed: what it may be, in words.
        pattern: what a text, or each item of a list, must match entirely; "" may also be empty
            where ``default`` is "" or ``optional`` is true.
        names: the choices, if only those are allowed.
        low, high: bounds of a whole number.
        optional: whether a text may be empty.
        fill: whether the default is a stand-in that has to be replaced before use.
    """

    name: str
    default: Value
    doc: str
    allowed: str = ""
    pattern: str = ""
    names: tuple[str, ...] = ()
    low: int = 0
    high: int = 0
    optional: bool = False
    fill: bool = False

    @property
    def allows(self) -> str:
        """What it may be, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, int):
            return f"a whole number from {self.low} to {self.high}"
        if self.names:
            return " or ".join(self.names)
        several = "a list with commas of " if isinstance(self.default, tuple) else ""
        empty = ", or nothing" if self._may_be_empty else ""
        return f"{several}{self.allowed}{empty}"

    @property
    def _may_be_empty(self) -> bool:
        return self.optional or self.default in ("", ())

    def parse(self, text: str) -> Value:
        """Return the value that a text stands for.

        Raises:
            RenderError: it is not allowed.
        """
        if isinstance(self.default, bool):
            value: Value | None = {"true": True, "false": False}.get(text)
        elif isinstance(self.default, int):
            value = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else None
            if isinstance(value, int) and not self.low <= value <= self.high:
                value = None
        elif isinstance(self.default, tuple):
            items = tuple(item.strip(" ") for item in text.split(",")) if text else ()
            fits = all(self._fits(item) for item in items) and len(set(items)) == len(items)
            value = items if fits and (items or self._may_be_empty) else None
        elif self.names:
            value = text if text in self.names else None
        else:
            value = text if self._fits(text) or (not text and self._may_be_empty) else None
        if value is None:
            raise RenderError(f"must be {self.allows}", key=self.name, value=text)
        return value

    def _fits(self, text: str) -> bool:
        return text.isprintable() and re.fullmatch(self.pattern, text) is not None


@dataclass(frozen=True)
class File:
    """A rendered file: its text, and whether it is a program."""

    text: str
    program: bool = False


@dataclass(frozen=True)
class Rendered:
    """What was rendered.

    Attributes:
        place: where it runs.
        values: every option's value.
        files: path inside the folder -> file.
        to_fill: options that still have a stand-in.
    """

    place: str
    values: dict[str, Value]
    files: dict[str, File]
    to_fill: list[str]


# ---- options ------------------------------------------------------------------------------------

_NAME = r"[a-z]([-a-z0-9]{0,28}[a-z0-9])?"
_WORD = r"[A-Za-z0-9][A-Za-z0-9_.:@+=-]{0,79}"
_HOST = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
_PATH = r"/.{0,199}"
_PLAIN_PATH = r"/[A-Za-z0-9_.@+=/-]{0,199}"
_LOCAL_PATH = r"[^-\s].{0,199}"
_BUCKET = r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_.=/-]{1,150})?"
_QUANTITY = r"[1-9][0-9]{0,8}(Mi|Gi|Ti)"
_URL = r"https?://[A-Za-z0-9.-]{1,200}(:[0-9]{1,5})?(/[A-Za-z0-9_.~/-]{0,100})?"
_REQUIREMENT = r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[a-z0-9,_-]+\])?==[A-Za-z0-9.+!]{1,40}"
_IMAGE = r"[a-z0-9][A-Za-z0-9._:/@-]{2,199}"

NAME = Option(
    name="name",
    default="asymbench",
    doc="name of the cluster or job",
    allowed="at most 30 small letters, digits and hyphens",
    pattern=_NAME,
)
STUDY = Option(
    name="study",
    default="study.yaml",
    doc="the study that the commands run, as it is called on the cluster",
    allowed="a path or the name of a shipped study",
    pattern=_LOCAL_PATH,
)
PYTHON = Option(
    name="python",
    default=".".join(map(str, sys.version_info[:2])),
    doc="Python on every node; Ray wants the same everywhere",
    allowed="3.11, 3.12 or 3.13",
    pattern=r"3\.1[123]",
)


def _installed(package: str, otherwise: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return otherwise


def _version(package: str, shown: str) -> Option:
    return Option(
        name=package,
        default=_installed(package, "0"),
        doc=f"version of {shown} to install; the default is the one that is installed here",
        allowed="a version",
        pattern=r"[0-9][A-Za-z0-9.+]{0,39}",
    )


RAY, MLFLOW = _version("ray", "Ray"), _version("mlflow", "MLflow")

PACKAGE = Option(
    name="package",
    default="",
    doc="asymbench as a pinned requirement (asymbench==0.1.0); nothing ships the checkout",
    allowed="a requirement with ==",
    pattern=_REQUIREMENT,
)
CHECKOUT = Option(
    name="checkout",
    default=".",
    doc="folder here with pyproject.toml and constraints.txt, shipped to the nodes",
    allowed="a path",
    pattern=_LOCAL_PATH,
)
EXTRA = Option(
    name="extra_packages",
    default=(),
    doc="own method and dataset packages to install beside it",
    allowed="requirements with ==",
    pattern=_REQUIREMENT,
)
TRACKER = Option(
    name="tracker",
    default="server",
    doc="server mirrors to the MLflow server of these files; off leaves it to `asymbench sync`",
    names=("server", "off"),
)


def _whole(name: str, default: int, low: int, high: int, doc: str) -> Option:
    return Option(name=name, default=default, low=low, high=high, doc=doc)


def _word(name: str, default: str, doc: str, **more: Any) -> Option:
    allowed = "one word of letters, digits and _.:@+=-"
    return Option(name=name, default=default, doc=doc, allowed=allowed, pattern=_WORD, **more)


def _home(default: str, doc: str, pattern: str = _PATH) -> Option:
    plain = " of letters, digits and _.@+=/-" if pattern == _PLAIN_PATH else ""
    return Option(
        name="home",
        default=default,
        doc=doc,
        allowed=f"an absolute path{plain}",
        pattern=pattern,
        fill=default.startswith("/replace-me"),
    )


def _bucket(scheme: str) -> Option:
    return Option(
        name="bucket",
        default=f"{scheme}://replace-me/asymbench",
        doc="bucket and folder of the tracker's artifacts, and of the store where it is a bucket",
        allowed=f"{scheme}://BUCKET or {scheme}://BUCKET/FOLDER, without credentials",
        pattern=f"{scheme}://{_BUCKET}",
        fill=True,
    )


_WORKERS = (
    _whole("workers_min", 1, 0, 1000, "workers always up; with 0 a study names its resources"),
    _whole("workers_max", 4, 1, 1000, "workers at most"),
    _whole("idle_minutes", 10, 1, 1440, "minutes after which an idle worker is given back"),
)
_CLOUD = (
    Option(
        name="spot",
        default=True,
        doc="workers are spot machines; one that is taken away costs a stage its last epoch",
    ),
    _whole("disk_gb", 200, 50, 16000, "disk of every node, GB"),
    _whole("workers_cpus", 8, 1, 512, "CPU cores of a worker"),
    _whole("workers_gpus", 1, 0, 16, "GPUs of a worker"),
)

AWS = (
    NAME,
    _word("region", "us-west-2", "AWS region"),
    Option(
        name="zone",
        default="",
        doc="availability zone; nothing lets AWS choose",
        allowed="a zone of the region, like us-west-2a",
        pattern=r"[a-z]{2}(-[a-z]+)+-[0-9][a-z]",
    ),
    _word("head_type", "m6i.2xlarge", "machine of the head: the driver and the tracker, no GPU"),
    _word("worker_type", "g5.2xlarge", "machine of the workers"),
    *_WORKERS,
    *_CLOUD,
    Option(
        name="image",
        default="",
        doc="AMI with the NVIDIA driver; nothing takes Ray's choice for the region",
        allowed="an AMI's id",
        pattern=r"ami-[0-9a-f]{8,17}",
    ),
    _word("ssh_user", "ubuntu", "user of the image"),
    Option(
        name="security_groups",
        default=(),
        doc="security groups of the nodes; without, Ray makes one that takes SSH from anywhere",
        allowed="ids",
        pattern=r"sg-[0-9a-f]{8,17}",
    ),
    Option(
        name="subnet",
        default="",
        doc="subnet of the nodes; needed with security groups outside the default network",
        allowed="an id",
        pattern=r"subnet-[0-9a-f]{8,17}",
    ),
    Option(
        name="head_profile",
        default="",
        doc="IAM instance profile of the head, see iam-head.json; without, Ray makes a wide one",
        allowed="an ARN",
        pattern=r"arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/[A-Za-z0-9_+=,.@/-]{1,128}",
    ),
    Option(
        name="worker_profile",
        default="",
        doc="IAM instance profile of the workers, see iam-worker.json",
        allowed="an ARN",
        pattern=r"arn:aws[a-z-]*:iam::[0-9]{12}:instance-profile/[A-Za-z0-9_+=,.@/-]{1,128}",
    ),
    Option(
        name="storage",
        default="efs",
        doc="where the store lies: an EFS file system mounted everywhere, or the bucket",
        names=("efs", "s3"),
    ),
    Option(
        name="efs_id",
        default="fs-00000000",
        doc="the EFS file system",
        allowed="an id",
        pattern=r"fs-[0-9a-f]{8,17}",
        fill=True,
    ),
    _bucket("s3"),
    STUDY,
    TRACKER,
    PYTHON,
    RAY,
    MLFLOW,
    PACKAGE,
    CHECKOUT,
    EXTRA,
)

GCP = (
    NAME,
    _word("project", "replace-me", "project id", fill=True),
    _word("region", "us-central1", "region"),
    Option(
        name="zone",
        default="us-central1-a",
        doc="zone",
        allowed="a zone of the region",
        pattern=r"[a-z]+-[a-z]+[0-9]+-[a-z]",
    ),
    _word("head_type", "n2-standard-8", "machine of the head: the driver and the tracker, no GPU"),
    _word("worker_type", "g2-standard-8", "machine of the workers"),
    _word("accelerator", "", "GPU to attach to an n1 machine; a2, a3, g2 have theirs built in"),
    *_WORKERS,
    *_CLOUD,
    Option(
        name="image",
        default="projects/deeplearning-platform-release/global/images/family/"
        "common-cu129-ubuntu-2204-nvidia-580",
        doc="disk image with the NVIDIA driver",
        allowed="projects/.../images/...",
        pattern=r"projects/[A-Za-z0-9_./-]{1,200}",
    ),
    _word("ssh_user", "ubuntu", "user of the image"),
    Option(
        name="service_account",
        default="",
        doc="service account of the nodes; without, Ray makes one",
        allowed="its e-mail address",
        pattern=r"[a-z0-9-]{3,62}@[a-z0-9.-]{3,120}",
    ),
    Option(
        name="storage",
        default="filestore",
        doc="where the store lies: a Filestore share mounted everywhere, or the bucket",
        names=("filestore", "gcs"),
    ),
    Option(
        name="filestore",
        default="192.0.2.1:/replace_me",
        doc="the Filestore share",
        allowed="ADDRESS:/SHARE",
        pattern=r"[0-9]{1,3}(\.[0-9]{1,3}){3}:/[A-Za-z0-9_]{1,63}",
        fill=True,
    ),
    _bucket("gs"),
    STUDY,
    TRACKER,
    PYTHON,
    RAY,
    MLFLOW,
    PACKAGE,
    CHECKOUT,
    EXTRA,
)

KUBERAY = (
    NAME,
    Option(
        name="namespace",
        default="asymbench",
        doc="namespace of everything here",
        allowed="small letters, digits and hyphens",
        pattern=_NAME,
    ),
    Option(
        name="image",
        default="registry.example/asymbench:0.1.0",
        doc="where the image of the Dockerfile is pushed",
        allowed="an image with its registry and tag or digest",
        pattern=_IMAGE,
        fill=True,
    ),
    Option(
        name="tracker_image",
        default="registry.example/asymbench-mlflow:0.1.0",
        doc="where the image of mlflow.Dockerfile is pushed",
        allowed="an image with its registry and tag or digest",
        pattern=_IMAGE,
        fill=True,
    ),
    _whole("head_cpus", 4, 1, 512, "CPU cores of the head: the driver, no stage runs there"),
    Option(
        name="head_memory",
        default="16Gi",
        doc="memory of the head",
        allowed="a Kubernetes quantity like 16Gi",
        pattern=_QUANTITY,
    ),
    *_WORKERS,
    _whole("workers_cpus", 8, 1, 512, "CPU cores of a worker"),
    _whole("workers_gpus", 1, 0, 16, "GPUs of a worker"),
    Option(
        name="workers_memory",
        default="32Gi",
        doc="memory of a worker",
        allowed="a Kubernetes quantity like 32Gi",
        pattern=_QUANTITY,
    ),
    Option(
        name="gpu_taint",
        default="nvidia.com/gpu",
        doc="taint of the GPU nodes that workers tolerate",
        allowed="a taint's key",
        pattern=r"[A-Za-z0-9][A-Za-z0-9./_-]{0,100}",
        optional=True,
    ),
    Option(
        name="storage",
        default="pvc",
        doc="where the store lies: a volume that all pods mount, or the bucket",
        names=("pvc", "bucket"),
    ),
    Option(
        name="storage_class",
        default="",
        doc="storage class with ReadWriteMany; nothing takes the cluster's default",
        allowed="a storage class",
        pattern=r"[a-z0-9][a-z0-9.-]{0,100}",
    ),
    Option(
        name="storage_size",
        default="500Gi",
        doc="size of the shared volume",
        allowed="a Kubernetes quantity like 500Gi",
        pattern=_QUANTITY,
    ),
    Option(
        name="bucket",
        default="s3://replace-me/asymbench",
        doc="bucket and folder of the tracker's artifacts, and of the store where it is a bucket",
        allowed="s3://BUCKET/FOLDER or gs://BUCKET/FOLDER, without credentials",
        pattern=rf"(s3|gs)://{_BUCKET}",
        fill=True,
    ),
    Option(
        name="bucket_endpoint",
        default="",
        doc="an S3 service other than AWS",
        allowed="an http or https address",
        pattern=_URL,
    ),
    _whole("retries", 3, 0, 100, "how often a job is started anew after its cluster died"),
    STUDY,
    TRACKER,
    PYTHON,
    RAY,
    MLFLOW,
    PACKAGE,
    EXTRA,
)

SLURM = (
    NAME,
    _whole("nodes", 2, 1, 1000, "nodes of the job"),
    _whole("cpus", 16, 1, 512, "CPU cores of a node"),
    _whole("gpus", 1, 0, 16, "GPUs of a node"),
    _word("gpu_type", "", "kind of GPU, as --gres calls it"),
    Option(
        name="memory",
        default="64G",
        doc="memory of a node",
        allowed="a size like 64G, or 0 for all",
        pattern=r"0|[1-9][0-9]{0,6}[MGT]",
    ),
    Option(
        name="time",
        default="24:00:00",
        doc="time limit of one allocation; the job requeues itself until the study is done",
        allowed="HH:MM:SS or D-HH:MM:SS",
        pattern=r"([0-9]{1,3}-)?[0-9]{2}:[0-5][0-9]:[0-5][0-9]",
    ),
    _whole("warning_seconds", 300, 60, 3600, "seconds before the limit at which the run drains"),
    _whole("requeues", 50, 0, 10000, "how often the job requeues itself at most"),
    _whole("join_seconds", 300, 10, 3600, "seconds to wait for workers; then on with those there"),
    _word("partition", "", "partition"),
    _word("account", "", "account"),
    _word("qos", "", "quality of service"),
    _word("constraint", "", "node feature"),
    Option(
        name="modules",
        default=(),
        doc="environment modules to load",
        allowed="names",
        pattern=r"[A-Za-z0-9][A-Za-z0-9_.+/-]{0,79}",
    ),
    Option(
        name="venv",
        default="/replace-me/venv",
        doc="virtual environment with asymbench that all nodes see",
        allowed="an absolute path",
        pattern=_PATH,
        fill=True,
    ),
    _home("/replace-me/asymbench", "ASYMBENCH_HOME, on a file system that all nodes share"),
    Option(
        name="store",
        default="",
        doc="ASYMBENCH_STORE, if not in the home; with a bucket the home may be local",
        allowed="an absolute path, s3:// or gs://, without credentials",
        pattern=rf"{_PATH}|(s3|gs)://{_BUCKET}",
    ),
    Option(
        name="temp",
        default="/tmp",
        doc="local folder for Ray's session; its sockets need a short one",
        allowed="an absolute path of at most 24 letters, digits and _./-",
        pattern=r"/[A-Za-z0-9_./-]{1,23}",
    ),
    Option(
        name="interface",
        default="",
        doc="network interface that the nodes talk over; nothing takes the host name's address",
        allowed="a name like ib0",
        pattern=r"[a-z][a-z0-9._-]{0,14}",
    ),
    _whole("port_first", 20000, 1024, 60000, "ports of the head begin here, by job number"),
    Option(
        name="env_file",
        default="",
        doc="file with credentials to source, of mode 600",
        allowed="an absolute path",
        pattern=_PATH,
    ),
    Option(
        name="offline",
        default=True,
        doc="compute nodes reach no network: published weights come from the cache alone",
    ),
    Option(
        name="tracking_uri",
        default="",
        doc="MLflow server; nothing leaves it to `asymbench sync` afterwards",
        allowed="an http or https address, without credentials",
        pattern=_URL,
    ),
    _word("array_key", "seeds", "key of the study that one-node.sbatch splits over its tasks"),
    Option(
        name="array_values",
        default=("0", "1", "2"),
        doc="values of that key, one a task",
        allowed="words",
        pattern=r"[A-Za-z0-9_.+-]{1,40}",
    ),
    _whole("array_limit", 4, 1, 1000, "tasks of one-node.sbatch at a time"),
    STUDY,
    MLFLOW,
)

ON_PREM = (
    NAME,
    Option(
        name="head",
        default="head.example",
        doc="host of the head",
        allowed="a host name or address",
        pattern=_HOST,
        fill=True,
    ),
    Option(
        name="workers",
        default=("worker-1.example", "worker-2.example"),
        doc="hosts of the workers",
        allowed="host names or addresses",
        pattern=_HOST,
        fill=True,
    ),
    Option(
        name="user",
        default="asymbench",
        doc="user on every host, whom the head reaches by SSH without a password",
        allowed="a user's name",
        pattern=r"[a-z_][a-z0-9_-]{0,30}",
    ),
    Option(
        name="folder",
        default="/srv/asymbench/cluster",
        doc="where these files lie on every host",
        allowed="an absolute path of letters, digits and _.@+=/-",
        pattern=_PLAIN_PATH,
    ),
    Option(
        name="venv",
        default="/srv/asymbench/venv",
        doc="virtual environment with asymbench on every host",
        allowed="an absolute path of letters, digits and _.@+=/-",
        pattern=_PLAIN_PATH,
    ),
    _home(
        "/srv/asymbench/home",
        "ASYMBENCH_HOME, on a file system that all hosts share",
        _PLAIN_PATH,
    ),
    Option(
        name="store",
        default="",
        doc="ASYMBENCH_STORE, if not in the home",
        allowed="an absolute path, s3:// or gs://, without credentials",
        pattern=rf"{_PLAIN_PATH}|(s3|gs)://{_BUCKET}",
    ),
    Option(
        name="temp",
        default="/tmp/asymbench-ray",
        doc="local folder for Ray's sessions; its sockets need a short one",
        allowed="an absolute path of at most 32 letters, digits and _./-",
        pattern=r"/[A-Za-z0-9_./-]{1,31}",
    ),
    _whole("port", 6379, 1024, 65535, "port of the head"),
    Option(
        name="env_file",
        default="",
        doc="file with credentials to source on every host, of mode 600",
        allowed="an absolute path of letters, digits and _.@+=/-",
        pattern=_PLAIN_PATH,
    ),
    STUDY,
    TRACKER,
    MLFLOW,
)

PLACES: dict[str, tuple[str, tuple[Option, ...]]] = {
    "aws": ("Amazon EC2 by Ray's autoscaler", AWS),
    "gcp": ("Google Compute Engine by Ray's autoscaler", GCP),
    "kuberay": ("Kubernetes with the KubeRay operator", KUBERAY),
    "slurm": ("a SLURM cluster, as batch jobs that requeue themselves", SLURM),
    "on-prem": ("machines of one's own, by SSH or systemd", ON_PREM),
}

_TRACKER_FILES = ("tracker/compose.yaml", "tracker/mlflow.Dockerfile", "tracker/.env.example")

_FILES: dict[str, tuple[str, ...]] = {
    "aws": ("README.md", "cluster.yaml", "iam-head.json", "iam-worker.json", *_TRACKER_FILES),
    "gcp": ("README.md", "cluster.yaml", *_TRACKER_FILES),
    "kuberay": (
        "README.md",
        "Dockerfile",
        ".dockerignore",
        "mlflow.Dockerfile",
        "manifests/namespace.yaml",
        "manifests/storage.yaml",
        "manifests/network.yaml",
        "manifests/tracker.yaml",
        "manifests/raycluster.yaml",
        "rayjob.yaml",
        "tracker.env.example",
        "store.env.example",
    ),
    "slurm": ("README.md", "asymbench.sbatch", "one-node.sbatch", *_TRACKER_FILES),
    "on-prem": (
        "README.md",
        "cluster.yaml",
        "environment.sh",
        "node.sh",
        "cluster.sh",
        "asymbench-ray-head.service",
        "asymbench-ray-worker.service",
        *_TRACKER_FILES,
    ),
}
"""What each place's folder holds; a file that renders to nothing is left out."""

_SHARED = {
    "mlflow.Dockerfile": "tracker/mlflow.Dockerfile",
}
"""Files whose template another place's folder or the shared one has."""

_PROGRAMS = (".sh", ".sbatch")


def options(place: str) -> tuple[Option, ...]:
    """Return the options of a place.

    Raises:
        UnknownRenderNameError: there is no such place.
    """
    if place not in PLACES:
        raise UnknownRenderNameError("place", place, PLACES)
    return PLACES[place][1]


def parse(place: str, given: Mapping[str, str]) -> dict[str, Value]:
    """Return every option's value: those given, the others' defaults.

    Args:
        place: a name of ``PLACES``.
        given: option -> text.

    Raises:
        RenderError: an option is unknown, a value is not allowed, or two do not fit together.
    """
    known = {option.name: option for option in options(place)}
    for name in given:
        if name not in known:
            raise UnknownRenderNameError("option", name, known)
    values = {
        name: option.parse(given[name]) if name in given else option.default
        for name, option in known.items()
    }
    for name in given:
        if not _is_used(name, values):
            other, needed = _used_with(name, values)
            raise RenderError(
                f"is read only where {other} is {needed}", key=name, value=given[name]
            )
    for check in _CHECKS:
        check(values)
    return values


def _workers_fit(values: Mapping[str, Value]) -> None:
    low, high = values.get("workers_min"), values.get("workers_max")
    if isinstance(low, int) and isinstance(high, int) and low > high:
        raise RenderError(f"must be at most workers_max, {high}", key="workers_min", value=low)


def _zone_fits(values: Mapping[str, Value]) -> None:
    zone, region = str(values.get("zone", "")), str(values.get("region", ""))
    if zone and not zone.startswith(region):
        raise RenderError(f"must be a zone of the region {region}", key="zone", value=zone)


def _address_fits(values: Mapping[str, Value]) -> None:
    host = values.get("filestore")
    if isinstance(host, str) and any(int(part) > 255 for part in host.split(":")[0].split(".")):
        raise RenderError("must begin with an IPv4 address", key="filestore", value=host)


def _hosts_differ(values: Mapping[str, Value]) -> None:
    workers = values.get("workers")
    if isinstance(workers, tuple) and values["head"] in workers:
        raise RenderError("must not name the head too", key="workers", value=",".join(workers))


def _paths_end(values: Mapping[str, Value]) -> None:
    for key in ("home", "venv", "folder", "store", "temp", "env_file"):
        text = str(values.get(key, ""))
        if text.startswith("/") and (".." in text.split("/") or text.strip("/") == ""):
            raise RenderError("must be a folder below / without ..", key=key, value=text)


_CHECKS: tuple[Callable[[Mapping[str, Value]], None], ...] = (
    _workers_fit,
    _zone_fits,
    _address_fits,
    _hosts_differ,
    _paths_end,
)


# ---- quoting ------------------------------------------------------------------------------------


class _Quoted(str):
    """Text that a filter made safe for where it stands."""


def _shell(value: Value) -> _Quoted:
    return _Quoted(shlex.quote(str(value)))


def _yaml(value: Value) -> _Quoted:
    """JSON is YAML: whatever a text holds, it stays one scalar."""
    return _Quoted(json.dumps(list(value) if isinstance(value, tuple) else value))


def _compose(value: str) -> _Quoted:
    """YAML in which Compose replaces no ``$NAME``."""
    return _yaml(str(value).replace("$", "$$"))


def _prose(text: str) -> _Quoted:
    """A sentence of this module, never of a value."""
    if text not in {option.doc for _, known in PLACES.values() for option in known}:
        raise TypeError(f"{text!r} is no option's meaning")
    return _Quoted(text)


_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+=,/-]*|/[A-Za-z0-9_.:@+=,/-]*")


def _word_only(value: Value) -> _Quoted:
    """A value for a place that knows no quotes, such as an #SBATCH line or a unit file."""
    text = str(value)
    if not _BARE.fullmatch(text):
        raise RenderError("must be one plain word here, for it cannot be quoted", value=text)
    return _Quoted(text)


def _only_quoted(value: object) -> object:
    """Refuse to print a text that no filter has made safe; whole numbers are."""
    if isinstance(value, _Quoted) or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise TypeError(f"a template prints {value!r} without a quoting filter")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        undefined=StrictUndefined,
        finalize=_only_quoted,
        comment_start_string="{##",  # ${#array[@]} is shell
        comment_end_string="##}",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # these are no HTML pages; the filters below quote
    )
    environment.filters.update(
        sh=_shell, yaml=_yaml, compose=_compose, word=_word_only, prose=_prose
    )
    return environment


# ---- rendering ----------------------------------------------------------------------------------


def render(place: str, given: Mapping[str, str]) -> Rendered:
    """Render a place's files.

    Args:
        place: a name of ``PLACES``.
        given: option -> text, as from ``--set``.

    Raises:
        RenderError: an option is unknown, a value is not allowed, or two do not fit together.
    """
    values = parse(place, given)
    versions = {
        "fsspec": _installed("fsspec", "2026.9.0"),
        "psycopg2": _installed("psycopg2-binary", "2.9.13"),
    }
    shown = {option.name: option for option in options(place)}
    to_fill = [
        name
        for name, option in shown.items()
        if option.fill and values[name] == option.default and _is_used(name, values)
    ]
    context = {
        **values,
        **_commands(place, values),
        "place": place,
        "versions": versions,
        "to_fill": to_fill,
        "docs": shown,
    }
    files = {}
    for path in _FILES[place]:
        text = _environment().get_template(_template(place, path)).render(context)
        if text.strip():
            files[path] = File(text, program=path.endswith(_PROGRAMS))
    return Rendered(place=place, values=values, files=files, to_fill=to_fill)


def _commands(place: str, values: Mapping[str, Value]) -> dict[str, str]:
    """Return how a study is called where Ray's launcher runs it, and the command that does."""
    if place not in ("aws", "gcp"):
        return {}
    study = str(values["study"])
    is_file = study.endswith((".yaml", ".yml"))
    remote = f"/home/{values['ssh_user']}/{Path(study).name}" if is_file else study
    command = ["asymbench", "run", remote, "--address", "auto", "--autoscale", "--set"]
    served = values["tracker"] == "server"
    command += ["tracking.uri=http://127.0.0.1:5000" if served else "tracking.enabled=false"]
    return {"remote_study": remote, "run": shlex.join(command)}


def _template(place: str, path: str) -> str:
    if path in _SHARED:
        return f"{_SHARED[path]}.j2"
    visible = path.replace("/.", "/").removeprefix(".")  # packages leave hidden files out
    return f"{visible}.j2" if path.startswith("tracker/") else f"{place}/{visible}.j2"


_USED_WITH = {
    "efs_id": ("storage", ("efs",)),
    "filestore": ("storage", ("filestore",)),
    "storage_class": ("storage", ("pvc",)),
    "storage_size": ("storage", ("pvc",)),
    "tracker_image": ("tracker", ("server",)),
    "gpu_type": ("gpus", tuple(range(1, 17))),
    "accelerator": ("workers_gpus", tuple(range(1, 17))),
    "gpu_taint": ("workers_gpus", tuple(range(1, 17))),
}
"""Option -> the other option, and its values, without which it is read nowhere."""


def _used_with(name: str, values: Mapping[str, Value]) -> tuple[str, str]:
    """Return the other option that decides whether this one is read, and what it has to be."""
    if name in ("bucket", "bucket_endpoint") and values.get("tracker") == "off":
        return "storage", "a bucket, or tracker is server,"
    if name not in _USED_WITH:
        return "", ""
    other, needed = _USED_WITH[name]
    return other, " or ".join(map(str, needed)) if len(needed) < 3 else f"{needed[0]} or more"


def _is_used(name: str, values: Mapping[str, Value]) -> bool:
    if name in ("bucket", "bucket_endpoint") and values.get("tracker") == "off":
        return values["storage"] in ("s3", "gcs", "bucket")
    other, needed = _USED_WITH.get(name, ("", ()))
    return not other or values[other] in needed
