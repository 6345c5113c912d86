"""Numbers that papers printed, beside ours only where they are about the same thing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """What a paper printed for a cell: same dataset, protocol, networks, method and code length.

    Attributes:
        value: mAP as a fraction.
        tables: where it stands: "Table 2", or "Tables 2, 4, 5" where several print it.
        paper: short name of the paper.
        dagger: whether the paper marks it as its authors' own run of another paper's method.
        differs: in what the trial departs from what was published, as far as can be told: "8
            epochs, not 150". Where it is not empty, a difference of the two numbers says nothing.
    """

    value: float
    tables: str
    paper: str
    dagger: bool = False
    differs: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        """Whether a difference to this number may be shown."""
        return not self.differs
