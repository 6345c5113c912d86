"""How long one image takes: in torch, and in what was exported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retrieval.efficiency import Timing, measure


@dataclass(frozen=True)
class Speed:
    """Wall time from one image in memory to its code.

    Attributes:
        torch: of torch, eager.
        exported: of what was exported.
        int8: of the same with 8-bit integers, where there is one.
        threads: of both.
    """

    torch: Timing
    exported: Timing
    int8: Timing | None
    threads: int

    def to_json(self) -> dict[str, Any]:
        """Return the timings in seconds."""
        return {
            "threads": self.threads,
            "torch": self.torch.to_json(),
            "exported": self.exported.to_json(),
            "int8": None if self.int8 is None else self.int8.to_json(),
        }


def latency(encode: Callable[[], object]) -> Timing:
    """Time the encoding of one image: 10 runs, then 100 that count."""
    return measure(encode, warmup=10, repeats=100)


def milliseconds(timing: Timing) -> str:
    """Return ``1.23 ms (1.20-1.31)``: the median, and between the 5th and 95th percentile."""
    median, low, high = (1e3 * seconds for seconds in (timing.median, timing.p5, timing.p95))
    return f"{median:.2f} ms ({low:.2f}-{high:.2f})"
