"""Ask and tell: which plan to measure next. A search never measures and reads no clock.

Owns the protocol. Leaves the way of searching to its implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..measurement import Measurement
from ..plan import Plan


@dataclass(frozen=True, slots=True)
class Proposal:
    """A plan to run next, in a fresh process.

    Attributes:
        round: which process of the plan it is, 1 for the first.
        prompts: places in the workload of the requests to send, in that order; None: all of them, in the
            study's own order.
        cut_after_s: a request that runs longer has shown that its plan cannot win, and is ended; None: the
            study's own rule.
        cut_first_after_s: so has one whose first token came later; None: no such rule.
        look: see `Measurement.look`.
    """

    plan: Plan
    round: int
    prompts: tuple[int, ...] | None = None
    cut_after_s: float | None = None
    cut_first_after_s: float | None = None
    look: bool = False


class Search(Protocol):
    """Proposes plans one at a time, and is told what came of each."""

    def ask(self) -> Proposal | None:
        """What to measure next; None when the search is over. Asked twice without an answer, it proposes the same."""

    def tell(self, measurement: Measurement) -> None:
        """What came of a proposal."""

    @property
    def remaining(self) -> int:
        """About how many proposals are still to come, as far as can be told now."""

    @property
    def unfinished(self) -> bool:
        """Whether it would go on if it had no limits."""

    @property
    def left_out(self) -> Mapping[Plan, str]:
        """Plans that it is done with and that cannot be chosen, with the reason; those that merely wait are not."""
