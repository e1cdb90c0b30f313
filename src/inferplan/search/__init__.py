"""Ask and tell: which plan to measure next. A search never measures and reads no clock.

Owns the protocol. Leaves the way of searching to its implementations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ..measurement import Measurement
from ..plan import Plan


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan to run next, in a fresh process, as its `round`-th (1 is the first)."""

    plan: Plan
    round: int


class Search(Protocol):
    """Proposes plans one at a time, and is told what came of each."""

    def ask(self) -> Proposal | None:
        """What to measure next; None when the search is over. Asked twice without an answer, it proposes the same."""

    def tell(self, measurement: Measurement) -> None:
        """What came of a proposal."""

    @property
    def remaining(self) -> int:
        """About how many proposals are still to come, as far as can be told now."""
