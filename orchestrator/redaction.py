"""Takes credentials out of text before it is shown, logged or sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from urllib.parse import quote, quote_plus

HIDDEN = "***"

# A password may hold "/" (SQLAlchemy accepts it) and "@" (so does every HTTP client).
_USERINFO = re.compile(r"(?<=://)[^:/@\s]*(?::[^@\s]*)?@(?:[^/@\s]*@)*")
_SECRET_QUERY = re.compile(
    r"([?&;][\w.\-]*(?:password|passwd|pwd|token|secret|key|sig|credential)[\w.\-]*=)[^&;#\s'\"]*",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic|token)\s+)[^\s'\",]+", re.IGNORECASE
)
_SECRET_NAME = re.compile(
    r"(?:PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|APIKEY|CREDENTIAL)S?(?:_|$)"
    r"|(?:^|_)(?:KEY|AUTH)S?(?:_|$)|_PWD?(?:_|$)",
    re.IGNORECASE,
)
_SHORTEST = 4
"""Values of fewer characters are no secrets; hiding them would blank out digits and yes or no."""

_PLAIN = frozenset({"true", "false", "none", "null", "auto"})


def redact(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return ``text`` without credentials.

    Hidden are user names and passwords in URIs, secrets in query strings and authorization
    headers, and the values of environment variables whose name says that they are secret
    (``MLFLOW_TRACKING_PASSWORD``, ``AWS_SECRET_ACCESS_KEY``, ``HF_TOKEN``), plain or
    percent-encoded.

    Args:
        text: a URI, or any message.
        environment: variables to look at; this process' by default.
    """
    return redactor(environment)(text)


def redactor(environment: Mapping[str, str] | None = None) -> Callable[[str], str]:
    """Return :func:`redact` for many texts: it looks at the environment once."""
    secrets = _secrets(os.environ if environment is None else environment)

    def hide(text: str) -> str:
        if "://" in text or "=" in text:
            text = _SECRET_QUERY.sub(rf"\1{HIDDEN}", _USERINFO.sub(f"{HIDDEN}@", text))
        text = _AUTHORIZATION.sub(rf"\1{HIDDEN}", text)
        for value in secrets:
            text = text.replace(value, HIDDEN)
        return text

    return hide


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Return the secret values, as they may stand in text, longest first."""
    found: set[str] = set()
    for name, value in environment.items():
        if _is_secret(name) and len(value) >= _SHORTEST and value.lower() not in _PLAIN:
            found |= {value, quote(value, safe=""), quote_plus(value)}
    return sorted(found, key=lambda value: (-len(value), value))


@lru_cache(maxsize=4096)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None
