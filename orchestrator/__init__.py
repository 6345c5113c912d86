"""From a study to a table: plan, stages, Ray Tune, MLflow, reports and the CLI.

For notebooks: ``import orchestrator as ab; study = ab.load("quickstart")``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.notebook import load as load

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import what notebooks use when it is first asked for: the package itself stays light."""
    if name == "load":
        from orchestrator.notebook import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
