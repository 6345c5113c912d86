"""What a study took: seconds, device-hours, what sharing saved, and money if it has a price.

All of it is of stages that are finished. What was lost to failures, interruptions and trials that
a search stopped is not kept, and not in here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.plan import KINDS
from orchestrator.report import Sharing, sharing
from orchestrator.reporting.results import StudyResults
from retrieval.errors import InputError

_PRICE = re.compile(
    r"(?P<amount>\d+(?:\.\d+)?|\.\d+)\s*(?P<currency>[^\d\s.,;+\-][^\d\n\r\t]{0,9})?"
)


@dataclass(frozen=True)
class Price:
    """What one device costs for an hour.

    Attributes:
        amount: of the currency.
        currency: as given, "" where none is.
    """

    amount: float
    currency: str = ""

    @classmethod
    def parse(cls, text: str, key: str = "--price") -> Price:
        """Return the price that ``2.5`` or ``2.5 EUR`` says.

        Raises:
            InputError: it says none.
        """
        match = _PRICE.fullmatch(text.strip())
        printable = text.isprintable()
        amount = float(match["amount"]) if match and printable else math.nan
        if not math.isfinite(amount):
            raise InputError(
                "must be a number of at least 0, and a currency if you like: 2.5 or '2.5 EUR', "
                "of one device for one hour",
                key=key,
                value=text,
            )
        assert match is not None
        return cls(amount, (match["currency"] or "").strip())

    def of(self, hours: float) -> str:
        """Return what hours cost: ``3.75 EUR``."""
        return f"{self.amount * hours:.2f} {self.currency}".strip()


@dataclass(frozen=True)
class Work:
    """The finished stages of one kind.

    Attributes:
        kind: of the stages.
        stages: how many.
        seconds: of all together.
    """

    kind: str
    stages: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """What a study took.

    Attributes:
        work: by kind of stage, in the order in which they run.
        device_hours: device -> hours of one device; a stage that several workers train together
            counts once for each.
        sharing: what sharing stages saved.
        price: of a device-hour; None where none is given.
    """

    work: tuple[Work, ...]
    device_hours: Mapping[str, float]
    sharing: Sharing
    price: Price | None = None

    @property
    def hours(self) -> float:
        """Device-hours in all."""
        return sum(self.device_hours.values())

    @property
    def money(self) -> str:
        """What the work cost; "" without a price."""
        return "" if self.price is None else self.price.of(self.hours)

    @property
    def saved(self) -> str:
        """What sharing saved, at one device a stage; "" without a price."""
        return "" if self.price is None else self.price.of(self.sharing.saved / 3600)


def costs(results: StudyResults, *, price: str | None = None) -> Costs:
    """Return what the finished stages of a study took.

    Args:
        results: of the study.
        price: of one device for an hour: ``2.5`` or ``2.5 EUR``.

    Raises:
        InputError: the price is none.
    """
    parsed = None if price is None else Price.parse(price)
    stages = {m.id: m for one in results.trials for m in one.manifests.values()}
    hours: dict[str, float] = {}
    by_kind: dict[str, list[float]] = {}
    for manifest in stages.values():
        seconds = float(manifest.cost.get("seconds", 0.0))
        by_kind.setdefault(manifest.kind, []).append(seconds)
        device = device_name(manifest.cost)
        workers = int(manifest.cost.get("workers", 1))
        hours[device] = hours.get(device, 0.0) + seconds * workers / 3600
    work = [Work(k, len(by_kind[k]), sum(by_kind[k])) for k in KINDS if k in by_kind]
    shared = sharing(results.plan, results.store)
    return Costs(tuple(work), dict(sorted(hours.items())), shared, parsed)


def device_name(cost: Mapping[str, Any]) -> str:
    """Return what a stage ran on: a GPU's name, or the processor's."""
    device = str(cost.get("device") or "cpu")
    return str(cost.get("cpu") or "cpu") if device == "cpu" else device
