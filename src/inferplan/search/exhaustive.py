"""Exhaustive: every plan once, then further rounds for those that could still be chosen.

Owns the order of rounds and plans. Leaves who is still a contender to
`selection`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest

from ..cost import Prices
from ..errors import InputError
from ..measurement import Measurement
from ..plan import Plan
from ..result import results
from ..selection import SLA, Objective, contenders
from . import Proposal
from .limits import NO_LIMITS, Limits


class Exhaustive:
    """Round 1 measures every plan, models interleaved; each later round the contenders left at its start.

    Every other round runs backwards, so that a steady drift of the machine
    favours nobody. A failed plan is not run again. The order follows from the
    arguments and from what it is told alone: a resumed search goes on as the
    interrupted one would have.

    Args:
        plans: those that can run here, without doubles.
        rounds: processes that a contender gets, at least 1.
        all_rounds: whether plans that can no longer be chosen get them too.
        limits: when to stop before that.
        done: measurements of an earlier session. A plan whose round was
            interrupted is proposed again for that round.

    Raises:
        InputError: `rounds` is less than 1.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        sla: SLA,
        objective: Objective,
        prices: Prices,
        cores: float,
        *,
        rounds: int = 2,
        all_rounds: bool = False,
        limits: Limits = NO_LIMITS,
        done: Sequence[Measurement] = (),
    ) -> None:
        if rounds < 1:
            raise InputError(f"rounds must be at least 1, not {rounds}")
        self._plans = interleaved(plans)
        self._sla, self._objective, self._prices, self._cores = sla, objective, prices, cores
        self._rounds, self._all_rounds, self._limits = rounds, all_rounds, limits
        self._told: list[Measurement] = list(done)
        self._orders: dict[int, tuple[Plan, ...]] = {}

    def ask(self) -> Proposal | None:
        """What to measure next; None when every round is done, or a limit is reached."""
        return self._next() if self._limits.allow(self._told) else None

    def tell(self, measurement: Measurement) -> None:
        """What came of a proposal; one that was interrupted will be proposed again."""
        self._told.append(measurement)

    @property
    def remaining(self) -> int:
        """Proposals left: exact for the current round, an estimate (who is a contender now) for later ones.

        No more than the limits leave room for.
        """
        for number in range(1, self._rounds + 1):
            left = self._left(number)
            if left:
                more = len(left) + (self._rounds - number) * len(self._eligible(self._told))
                return min(more, self._limits.left(self._told))
        return 0

    @property
    def unfinished(self) -> bool:
        """Whether it would go on if it had no limits."""
        return self._next() is not None

    @property
    def left_out(self) -> Mapping[Plan, str]:
        """None: every plan is measured."""
        return {}

    def _next(self) -> Proposal | None:
        """What to measure next, if there is time."""
        for number in range(1, self._rounds + 1):
            left = self._left(number)
            if left:
                return Proposal(left[0], number)
        return None

    def _left(self, number: int) -> tuple[Plan, ...]:
        """The plans that round `number` still owes; it begins when the rounds before it owe none."""
        settled = {(m.plan, m.round) for m in self._told if m.status != "interrupted"}
        if number not in self._orders:
            # Only what earlier rounds measured counts, so that a search resumed in mid-round finds the same order.
            order = self._plans if number == 1 else self._eligible(m for m in self._told if m.round < number)
            self._orders[number] = order if number % 2 else order[::-1]
        return tuple(plan for plan in self._orders[number] if (plan, number) not in settled)

    def _eligible(self, told: Iterable[Measurement]) -> tuple[Plan, ...]:
        found = results(self._plans, told)
        if self._all_rounds:
            return tuple(r.plan for r in found if not r.failed)
        return contenders(found, self._sla, self._objective, self._prices, self._cores)


def interleaved(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """One plan of each model in turn, each model's in its own order."""
    by_model: dict[str, list[Plan]] = {}
    for plan in dict.fromkeys(plans):
        by_model.setdefault(plan.model, []).append(plan)
    return tuple(plan for turn in zip_longest(*by_model.values()) for plan in turn if plan is not None)
