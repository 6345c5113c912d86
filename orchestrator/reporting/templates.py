"""The page's templates: what is put into them is escaped unless it is markup already."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

ASSETS = Path(__file__).parent / "assets"


def render(template: str, **values: Any) -> Markup:
    """Return a template of ``assets`` with its values, escaped for HTML.

    Args:
        template: name of the file without ``.html.j2``.
        **values: what it names; a name that it lacks is an error.
    """
    from markupsafe import Markup

    # What a template gives is safe: its values were escaped on their way in.
    return Markup(_environment().get_template(f"{template}.html.j2").render(**values))


def asset(name: str) -> str:
    """Return the text of a file of ``assets``."""
    return (ASSETS / name).read_text(encoding="utf-8")


def json_data(value: Any) -> Markup:
    """Return JSON for a script element of data, which nothing in it can end."""
    from markupsafe import Markup

    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from orchestrator.reporting.charts import swatch

    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["swatch"] = swatch
    return environment
