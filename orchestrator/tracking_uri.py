"""Where runs are mirrored to: the embedded database, and which tracking URIs are taken.

Light: reading a study imports this, and must not wait for MLflow.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from orchestrator.redaction import redact
from retrieval.errors import InputError, nearest

__all__ = [
    "check_uri",
    "default_uri",
    "is_server",
    "refuse_credentials",
    "sqlite_path",
    "sqlite_uri",
]

_SERVERS = ("http", "https")
_DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
_SCHEMES = (*_SERVERS, "databricks", *_DATABASES)
_ALSO_CALLED = {
    "postgres": "postgresql",
    "pg": "postgresql",
    "mariadb": "mysql",
    "sqlite3": "sqlite",
}

_SERVER_LOGIN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, in the "
    "environment instead"
)
_DATABASE_LOGIN = {
    "postgresql": "set PGPASSWORD in the environment, or a password file with PGPASSFILE, instead",
}
_OTHER_LOGIN = "run `mlflow server` beside the database and name the server's http:// address"
_SECRET_OPTION = re.compile(
    r"password|passwd|pwd|token|secret|credential|(?<!ssl)key", re.IGNORECASE
)


def sqlite_uri(path: str | Path) -> str:
    """Return the URI of a SQLite file; the two characters that mean something there are quoted."""
    text = str(Path(path).absolute())
    return "sqlite:///" + text.replace("%", "%25").replace("?", "%3F")


def sqlite_path(uri: str) -> Path | None:
    """Return the file of a SQLite URI as it stands there; None for any other tracker."""
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return Path(unquote(match[1])) if match and match[1] != ":memory:" else None


def default_uri(home: str | Path) -> str:
    """Return the URI of the embedded tracker: a SQLite file in ``home``."""
    return sqlite_uri(Path(home) / "mlflow.db")


def is_server(uri: str) -> bool:
    """Whether a tracking server answers there, which keeps artifacts where it likes."""
    return uri.startswith(("http://", "https://", "databricks"))


def check_uri(uri: str, key: str = "tracking.uri") -> str:
    """Return a tracking URI that can be used.

    Args:
        uri: as given.
        key: what gave it, for the message.

    Raises:
        InputError: the URI holds a credential, has a scheme that MLflow does not know, names a
            folder, or no host or file. The message never repeats a credential.
    """
    shown = redact(uri)
    if uri == "databricks":
        return uri
    if not uri.isprintable() or uri != uri.strip():
        raise InputError("has control characters or blanks around it", key=key, value=shown)
    scheme, separator, rest = uri.partition("://")
    base, _, driver = scheme.lower().partition("+")
    if base == "file" or uri.startswith("file:") or not separator:
        raise _no_scheme(uri, shown, key)
    if base not in _SCHEMES or (driver and base not in _DATABASES):
        raise _unknown_scheme(scheme, shown, key)
    refuse_credentials(uri, base, shown, key)
    if base == "sqlite":
        if sqlite_path(uri) is None:
            raise InputError(
                "SQLite needs a file: sqlite:////absolute/path/mlflow.db, or "
                "sqlite:///path/mlflow.db from the working directory",
                key=key,
                value=shown,
            )
        return uri
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise InputError(f"no valid address: {error}", key=key, value=shown) from None
    if base in _SERVERS and not parts.hostname:
        raise InputError("names no host", key=key, value=shown, hint="as in http://host:5000")
    if port == 0 or not rest.strip("/"):
        raise InputError("no valid address", key=key, value=shown)
    if base in _DATABASES and not parts.path.strip("/"):
        raise InputError(
            "names no database", key=key, value=shown, hint=f"as in {base}://host/mlflow"
        )
    return uri


def _no_scheme(uri: str, shown: str, key: str) -> InputError:
    head = uri.partition(":")[0].lower()
    if uri.startswith("file:"):
        path = unquote(urlsplit(uri).path)
    elif head in _SCHEMES and uri.startswith(f"{head}:"):
        return InputError(
            f"'{head}:' must be followed by '//'", key=key, value=shown, hint=f"as in {head}://..."
        )
    else:
        path = uri
    if re.fullmatch(r"[\w.\-]+:\d+(/.*)?", path):
        return InputError(
            "the address of a server begins with http:// or https://",
            key=key,
            value=shown,
            hint=f"did you mean http://{path} ?",
        )
    database = re.sub(r"^(\./)+|/+$", "", path) or "runs"
    suffix = "" if database.endswith(".db") else "/mlflow.db"
    return InputError(
        "MLflow no longer keeps runs in a plain folder, and one could not be searched or shared "
        "safely; name a database file or a server",
        key=key,
        value=shown,
        hint=f"did you mean sqlite:///{redact(database)}{suffix} ?",
    )


def _unknown_scheme(scheme: str, shown: str, key: str) -> InputError:
    base = scheme.lower().partition("+")[0]
    close = [_ALSO_CALLED[base]] if base in _ALSO_CALLED else nearest(base, _SCHEMES, n=1)
    meant = f"; did you mean '{close[0]}://'?" if close else ";"
    known = ", ".join(f"{name}://" for name in _SCHEMES)
    return InputError(
        f"unknown scheme {redact(scheme)!r}{meant} known: {known}", key=key, value=shown
    )


def refuse_credentials(
    uri: str, base: str, shown: str, key: str, instead: str = _OTHER_LOGIN
) -> None:
    """Refuse a password, or on a server any user name, which may be a token.

    Args:
        uri: as given.
        base: its scheme without a driver.
        shown: the URI without credentials.
        key: what gave it, for the message.
        instead: what to do with a database that has no way of its own.

    Raises:
        InputError: there is one.
    """
    authority = re.match(r"[^:]+://([^?#]*@)?", uri)
    userinfo = (authority[1] or "") if authority else ""
    options = [name for name, _ in parse_qsl(uri.partition("?")[2], keep_blank_values=True)]
    secret = any(_SECRET_OPTION.search(name) for name in options)
    user_only = base not in _SERVERS and ":" not in userinfo.partition("@")[0]
    if not secret and (not userinfo or base == "sqlite" or user_only):
        return
    instead = _DATABASE_LOGIN.get(base, instead) if base in _DATABASES else _SERVER_LOGIN
    raise InputError(
        f"a credential in a URI would end up in files and logs; {instead}",
        key=key,
        value=shown,
    )
