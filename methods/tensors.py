"""torch for method files, imported at first use.

``asymbench list`` and ``asymbench plan`` read every method's declarations and must answer at
once; importing torch alone takes longer than they may. A method file therefore writes
``from methods.tensors import F, Tensor, torch`` and pays for torch only when a loss runs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = ["F", "Tensor", "torch"]

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
    from torch import Tensor as Tensor
else:

    class _Lazy:
        """Stands for a module; the first attribute that is asked for imports it."""

        def __init__(self, module: str) -> None:
            self._module = module

        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self._module), name)

        def __repr__(self) -> str:
            return f"<lazy {self._module}>"

    torch = _Lazy("torch")
    F = _Lazy("torch.nn.functional")
    Tensor = Any  # only ever an annotation
