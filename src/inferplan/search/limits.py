"""Limits of a search: how long it may measure, and how many processes it may start.

Owns the arithmetic. The time spent is what the measurements say they took, so that a replay keeps to the same limits.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import InputError
from ..measurement import Measurement


@dataclass(frozen=True, slots=True)
class Limits:
    """When to stop, whatever is known by then.

    Attributes:
        seconds: of measuring; conversions do not count. None: no limit.
        processes: how many may be started. None: no limit.

    Raises:
        InputError: a limit leaves no room for anything.
    """

    seconds: float | None = None
    processes: int | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not 0 < self.seconds < math.inf:
            raise InputError(f"the budget must be more than 0 seconds, not {self.seconds:g}")
        if self.processes is not None and self.processes < 1:
            raise InputError(f"the number of trials must be at least 1, not {self.processes}")

    def allow(self, told: Sequence[Measurement], processes: int = 1, seconds: float = 0.0) -> bool:
        """Whether so many more processes, which take so many seconds in all, stay within the limits."""
        told = [m for m in told if not m.reused_from]  # that was paid for by another study
        spent = sum(m.wall_s for m in told)
        if self.seconds is not None and (spent >= self.seconds or spent + seconds > self.seconds):
            return False
        return self.processes is None or len(told) + processes <= self.processes

    def left(self, told: Sequence[Measurement]) -> int:
        """How many more processes fit, as far as is known: time is divided by what those so far took in the mean."""
        told = [m for m in told if not m.reused_from]
        spent = sum(m.wall_s for m in told)
        left = sys.maxsize if self.processes is None else max(self.processes - len(told), 0)
        if self.seconds is not None and spent > 0:
            left = min(left, max(math.ceil((self.seconds - spent) * len(told) / spent), 0))
        return left


NO_LIMITS = Limits()
