"""``asymbench run --address ray://...``: the study and the options go to the cluster's head node.

There the very same command runs, with the cluster as its Ray; this process shows what it prints.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import click

from orchestrator.redaction import redact
from retrieval.errors import InputError, UnknownNameError

PREFIX = "ray://"
_KEYS = ("pip", "env_vars", "working_dir", "py_modules")
_PASSED_ON = ("ASYMBENCH_STORE", "ASYMBENCH_LEASES")
"""Variables of this process that the driver on the cluster gets: they say which store is meant."""


@dataclass(frozen=True)
class RemoteOptions:
    """What ``run`` was told for a cluster that is driven from outside.

    Attributes:
        home: ASYMBENCH_HOME on the cluster; None takes this process', then the head node's.
        ship: code of one's own: packages, modules, wheels, projects.
        runtime_env: a YAML file with Ray's ``pip``, ``env_vars``, ``working_dir``, ``py_modules``.
        detach: leave the run to itself.
    """

    home: str | None = None
    ship: tuple[str, ...] = ()
    runtime_env: str | None = None
    detach: bool = False

    def refuse_elsewhere(self, address: str) -> None:
        """Refuse options that have no meaning unless the address is that of a client server.

        Raises:
            InputError: one was given.
        """
        if address.startswith(PREFIX):
            return
        for key, value in (
            ("--home", self.home),
            ("--ship", self.ship[0] if self.ship else None),
            ("--runtime-env", self.runtime_env),
            ("--detach", self.detach or None),
        ):
            if value is not None:
                raise InputError(
                    f"is for --address {PREFIX}HOST:PORT, a cluster that is driven from outside; "
                    f"the address is {address!r}",
                    key=key,
                    value=value,
                    hint="set ASYMBENCH_HOME" if key == "--home" else None,
                )


def remote_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `RemoteOptions` to a command: home, ship, runtime_env, detach."""
    for option in (
        click.option(
            "--detach",
            is_flag=True,
            help="With ray://: leave after 20 s; the run goes on. Run again to attach.",
        ),
        click.option(
            "--runtime-env",
            metavar="FILE.yaml",
            help="With ray://: pip, env_vars, working_dir and py_modules for every worker.",
        ),
        click.option(
            "--ship",
            multiple=True,
            metavar="PATH",
            help="With ray://: send a package, module, wheel or project along; may be repeated.",
        ),
        click.option(
            "--home",
            metavar="PATH",
            help="With ray://: ASYMBENCH_HOME on the cluster.",
        ),
    ):
        command = option(command)
    return command


def run_remotely(
    study: str,
    overrides: Sequence[str],
    *,
    address: str,
    arguments: Sequence[str] = (),
    options: RemoteOptions | None = None,
) -> int:
    """Run a study on a cluster through its client server; return the exit code of the run there.

    Args:
        study: a YAML file here, a shipped preset, or the name of a study run there before.
        overrides: ``key=value`` settings.
        address: ``ray://HOST:PORT``.
        arguments: further options of ``run``, as on the command line.
        options: see there.

    Raises:
        InputError: the study or an option is wrong, or the cluster cannot be driven from here.
    """
    from importlib.metadata import version

    from cluster.remote import Job, RemoteError, drive
    from orchestrator.shipping import pack
    from orchestrator.store import digest

    options = options or RemoteOptions()
    home = _home(options.home)
    name, argument, files = _study(study, overrides)
    environment, local_modules, local_folder = _runtime_env(options.runtime_env)
    code = pack([*options.ship, *local_modules], [local_folder] if local_folder else [])
    if code and "working_dir" in environment:
        raise InputError(
            "Ray unpacks one working_dir only, and what is shipped takes it; put that code under "
            "--ship as well",
            key="working_dir",
            value=environment["working_dir"],
        )
    sets = [f"--set={override}" for override in overrides]
    job = Job(
        name=f"{name}-{digest(home)[:8]}",
        module="orchestrator.cli",
        arguments=("run", argument, "--address", "{address}", *sets, *arguments),
        home_variable="ASYMBENCH_HOME",
        home=home,
        environment=_passed_on(),
        files=files,
        code=code,
        runtime_env=environment,
    )
    try:
        return drive(
            address,
            job,
            distribution="asymbench",
            version=version("asymbench"),
            detach=options.detach,
        )
    except RemoteError as error:
        raise InputError(str(error), key="--address", value=address) from None


def _home(given: str | None) -> str:
    """Return ASYMBENCH_HOME of the cluster; empty where only the head node can say."""
    home = given if given is not None else os.environ.get("ASYMBENCH_HOME", "")
    if (given is not None or home) and not PurePosixPath(home).is_absolute():
        raise InputError(
            "on a cluster this must be an absolute path that every node sees",
            key="ASYMBENCH_HOME" if given is None else "--home",
            value=home,
        )
    return home


def _passed_on() -> dict[str, str]:
    found = {name: os.environ[name] for name in _PASSED_ON if os.environ.get(name)}
    for name, value in found.items():
        if redact(value, {}) != value:
            raise InputError(
                "a credential in it would be kept by Ray; set it in the environment of the "
                "cluster's nodes",
                key=name,
                value=redact(value, {}),
            )
    return found


def _study(study: str, overrides: Sequence[str]) -> tuple[str, str, dict[str, str]]:
    """Return the study's name, how to call it on the cluster, and the files that it needs."""
    from orchestrator.study import NAME, load_study

    path = Path(study).expanduser()
    if path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise InputError("the study is no UTF-8 text", where=study) from None
        loaded, _ = load_study(text, study, path.parent.absolute(), tuple(overrides))
        safe = re.sub(r"[^\w.-]|^-", "_", path.name)
        return loaded.study, safe, {safe: text}
    if path.suffix in (".yaml", ".yml") or os.sep in study or not NAME.fullmatch(study):
        raise InputError("no such study file", key="STUDY", value=study)
    return study, study, {}


def _runtime_env(file: str | None) -> tuple[dict[str, Any], list[str], str | None]:
    """Return what Ray gets of a runtime environment, its local modules, its local folder."""
    if file is None:
        return {}, [], None
    given = _read(file)
    environment: dict[str, Any] = {}
    if pip := _strings(given, "pip", file):
        for line in pip:
            _refuse_secret("pip", line, "", file)
        environment["pip"] = pip
    if variables := _variables(given, file):
        environment["env_vars"] = variables
    modules = _strings(given, "py_modules", file)
    folder = given.get("working_dir")
    if folder is not None and (not isinstance(folder, str) or not folder):
        raise InputError("must be a path or a URI", key="working_dir", value=folder, where=file)
    for key, value in [("py_modules", m) for m in modules] + [("working_dir", folder or "")]:
        _refuse_secret(key, value, "", file)
    if remote := [module for module in modules if "://" in module]:
        environment["py_modules"] = remote
    if folder and "://" in folder:
        environment["working_dir"] = folder
        folder = None
    base = Path(file).expanduser().parent
    local = [str(base / Path(module).expanduser()) for module in modules if "://" not in module]
    return environment, local, str(base / Path(folder).expanduser()) if folder else None


def _read(file: str) -> dict[str, Any]:
    import yaml

    try:
        raw = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot be read: {error.strerror}", key="--runtime-env", value=file
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = " ".join(str(error).split())
        raise InputError(f"is no YAML: {line[:200]}", key="--runtime-env", value=file) from None
    if not isinstance(raw, dict):
        raise InputError(
            f"must be a mapping of {', '.join(_KEYS)}", key="--runtime-env", value=file
        )
    for key in raw:
        if key not in _KEYS:
            raise UnknownNameError("key", str(key), _KEYS, where=file)
    return raw


def _strings(given: dict[str, Any], key: str, file: str) -> list[str]:
    value = given.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise InputError("must be a list of texts", key=key, value=value, where=file)
    return value


def _variables(given: dict[str, Any], file: str) -> dict[str, str]:
    value = given.get("env_vars")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError("must be a mapping of names to values", key="env_vars", where=file)
    variables = {}
    for name, content in value.items():
        key = f"env_vars.{name}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InputError("is no name of a variable", key="env_vars", value=name, where=file)
        if not isinstance(content, bool):
            _refuse_secret(key, str(content), name, file)  # before its value is shown
        if isinstance(content, bool) or not isinstance(content, str | int | float):
            raise InputError(
                'must be a text or a number; quote it, as in "true"',
                key=key,
                value=content,
                where=file,
            )
        if name == "ASYMBENCH_HOME":
            raise InputError("give it with --home", key=key, value=content, where=file)
        variables[name] = str(content)
    return variables


def _refuse_secret(key: str, text: str, name: str, file: str) -> None:
    """Refuse what looks like a credential: Ray writes runtime environments to its logs."""
    if redact(text, {name: text}) != text or _KNOWN_TOKEN.search(text):
        raise InputError(
            "looks like a credential, and Ray writes it to its logs; set it in the environment of "
            "the cluster's nodes (a Kubernetes secret, a file that only they can read)",
            key=key,
            where=file,
        )


_KNOWN_TOKEN = re.compile(
    r"\b(?:(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_\w{20,}|github_pat_\w{20,}|hf_[A-Za-z]{20,}"
    r"|glpat-[\w-]{20,}|sk-[\w-]{20,}|xox[abprs]-[\w-]{10,})"
)
"""Access keys that are known by their form: of AWS, GitHub, Hugging Face, GitLab and others."""
