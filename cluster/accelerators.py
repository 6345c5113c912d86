"""What is known of GPUs without having one: memory and peak throughput by type."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_SUSTAINED = 0.4
"""Share of its peak that a GPU sustains in training convolutional networks; a guess."""


@dataclass(frozen=True)
class Accelerator:
    """A type of GPU.

    Attributes:
        name: as Ray calls it, where Ray knows it.
        memory: bytes.
        fp32: peak 10^12 floating-point operations a second, outside of tensor cores.
        bf16: the same of dense bfloat16 on tensor cores; of those without, their fp32.
    """

    name: str
    memory: float
    fp32: float
    bf16: float

    def peak(self, precision: str) -> float:
        """Return the peak in "fp32" or "bf16"."""
        return self.bf16 if precision == "bf16" else self.fp32

    def sustained(self, precision: str) -> float:
        """Return the 10^12 operations a second to expect in training; a guess."""
        return _SUSTAINED * self.peak(precision)


_TYPES = (
    Accelerator("P100", 16e9, 10.6, 10.6),
    Accelerator("V100", 16e9, 15.7, 15.7),
    Accelerator("T4", 16e9, 8.1, 8.1),
    Accelerator("A10G", 24e9, 31.5, 70.0),
    Accelerator("L4", 24e9, 30.3, 121.0),
    Accelerator("L40S", 48e9, 91.6, 362.0),
    Accelerator("A100", 40e9, 19.5, 312.0),
    Accelerator("A100-40G", 40e9, 19.5, 312.0),
    Accelerator("A100-80G", 80e9, 19.5, 312.0),
    Accelerator("H100", 80e9, 66.9, 989.0),
    Accelerator("H100-PCIe", 80e9, 51.2, 756.0),
    Accelerator("H200", 141e9, 66.9, 989.0),
    Accelerator("B200", 180e9, 80.0, 2250.0),
    Accelerator("A6000", 48e9, 38.7, 154.8),
    Accelerator("RTX-3090", 24e9, 35.6, 71.0),
    Accelerator("RTX-4090", 24e9, 82.6, 165.2),
)
ACCELERATORS = {known.name: known for known in _TYPES}
"""Types by name, from their makers' data sheets; the smallest where a type has several sizes."""

UNKNOWN = Accelerator("GPU", 16e9, 8.1, 31.5)
"""What a GPU is taken for of which nothing is known: as little as data centres still have."""


def find_accelerator(name: str) -> Accelerator | None:
    """Return the type that a name stands for, or None.

    Args:
        name: as Ray ("A100"), torch ("NVIDIA A100-SXM4-40GB") or people ("rtx4090") call it.
    """
    squashed = _squash(name)
    for known in _TYPES:
        if _squash(known.name) == squashed:
            return known
    words = _words(name)
    fitting = [known for known in _TYPES if _words(known.name) <= words]
    return max(fitting, key=lambda known: len(_words(known.name)), default=None)


def _squash(name: str) -> str:
    return re.sub(r"[^A-Z0-9]", "", name.upper())


def _words(name: str) -> set[str]:
    """Return the words of a name; ``80GB`` is ``80G``."""
    return {re.sub(r"^(\d+)GB$", r"\1G", word) for word in re.findall(r"[A-Z0-9]+", name.upper())}


def describe_gpu(name: str) -> Accelerator:
    """Return the type that a name stands for, or a small one where that is not known."""
    return find_accelerator(name) or UNKNOWN


def cpu_model() -> str:
    """Return the processor's model as the kernel names it, or "cpu"."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "cpu"
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    part = f"{fields.get('CPU implementer', '')} {fields.get('CPU part', '')}".strip()
    return fields.get("model name") or part or "cpu"


def visible_gpus() -> list[str]:
    """Return the models of this machine's NVIDIA GPUs, without loading a driver's library."""
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        text = path.read_text(encoding="utf-8", errors="replace")
        model = re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE)
        found.append(model[1] if model else "GPU")
    return found
