"""Why a plan was chosen or lost, in sentences with numbers.

Owns the wording and the search for the nearest miss. Leaves the choice itself
to `selection`; every figure comes from `ranking` and `verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .plan import Plan
from .ranking import Objective, Ranked, figure, least, order, ratio_of, sure
from .sla import Kind, format_quantity
from .stats import Ratio
from .verdict import Judgement, reachable_text, shortfall, what_settles

_KINDS: Mapping[str, Kind] = {"latency": "time", "memory": "memory", "cost": "money"}
_ONLY_LOOKED_AT = "only looked at, which rules plans out and chooses none"
_FAR = 1.5  # beyond this ratio a wide interval needs no note


@dataclass(frozen=True, slots=True)
class Nearest:
    """The plan that comes nearest to an SLA that none meets.

    Attributes:
        excess: by how much it exceeds its worst constraint, relative: 0.12 is 12%.
        text: that, in a sentence with numbers.
        feasible: the smallest limits that it would meet, one text per constraint
            that it does not meet now (`p50<=1.71s`); empty where its sample bounds none.
    """

    ranked: Ranked
    excess: float
    text: str
    feasible: tuple[str, ...]


def explained(r: Ranked, winner: Ranked, objective: Objective, tied: bool) -> Ranked:
    """With its ratio to the winner, and why it lost to it."""
    if r.plan == winner.plan:
        why = f"with the lowest {objective.metric}"
        if tied:
            why = "with the lowest latency but for a tie, broken by memory"
        if figure(r, objective) is None:
            why = f"though its {objective.metric} is not known, as for every plan that meets it"
        return replace(r, reason=f"meets {_limits(r)} {why}")
    ratio = ratio_of(r, winner) if r.eligible else None
    ratio = None if ratio is None or ratio.value is None else ratio
    why = (r.result.left_out or _ONLY_LOOKED_AT) if r.eligible and r.result.looked_at else ""
    why = why or disqualified(r) or _unsure(r, winner) or _beaten(r, winner, ratio, objective)
    return replace(r, ratio=ratio, reason=why)


def _unsure(r: Ranked, winner: Ranked) -> str:
    """Why it gave way to a plan of which more is shown; empty where as much is shown of it."""
    if sure(r) or not sure(winner):
        return ""
    seen = f"{r.result.processes} process{'' if r.result.processes == 1 else 'es'}"
    more = max((j.in_general.needed or 0 for j in r.judgements if j.in_general is not None), default=0)
    figures = f", p50 {least(r.p50_s) / least(winner.p50_s):.2f}x the winner's" if r.p50_s and winner.p50_s else ""
    return (
        f"meets {_limits(r)} in the {seen} seen{figures}; not shown of processes to come, which takes {more} more at "
        "the least"
    )


def _limits(r: Ranked) -> str:
    return ", ".join(str(j.constraint) for j in r.judgements)


def disqualified(r: Ranked) -> str:
    """Why it may not win whatever the others do; empty where it may."""
    if not r.eligible:
        status, reason = r.result.status.replace("_", " "), r.result.reason
        return reason if status == "waiting" else f"{status}: {reason}" if reason else status
    misses = [j for j in r.judgements if j.verdict == "misses"]
    if misses:
        return "; ".join(shortfall(j) for j in misses)
    return "; ".join(j.why for j in r.judgements if j.verdict == "undecided")


def _beaten(r: Ranked, winner: Ranked, ratio: Ratio | None, objective: Objective) -> str:
    if objective.metric != "latency":
        mine, lowest = figure(r, objective), figure(winner, objective)
        kind = _KINDS[objective.metric]
        if mine is None or lowest is None:
            return f"its {objective.metric} is not known"
        figures = f"{format_quantity(kind, mine)} against {format_quantity(kind, lowest)}"
        return f"{objective.metric} {mine / lowest:.2f}x the winner's ({figures})"
    if ratio is None or ratio.value is None or ratio.low is None or ratio.high is None:
        shown = "" if ratio is None or ratio.value is None else f", {ratio.value:.2f}x by request"
        return f"p50 {least(r.p50_s) / least(winner.p50_s):.2f}x the winner's{shown}; too few pairs for an interval"
    interval = f"[{ratio.low:.2f}, {ratio.high:.2f}]"
    relation = ratio.relation()
    if relation == "slower":
        return f"{ratio.value:.2f}x the winner's latency {interval}"
    more = ""
    if r.peak_bytes is not None and winner.peak_bytes:
        more = f"; peak memory {r.peak_bytes / winner.peak_bytes:.2f}x the winner's"
    if relation == "tie":
        return f"ties with the winner, {ratio.value:.2f}x its latency {interval}{more}"
    if relation == "faster":
        return f"{ratio.value:.2f}x the winner's latency {interval}, yet not chosen by p50{more}"
    return f"not distinguished from the winner, {ratio.value:.2f}x its latency {interval}{more}"


def tie_broken(winner: Ranked, first: Ranked, tied: Sequence[Ranked]) -> str:
    """The sentence that says that a tie was broken by memory; empty without a tie."""
    if not tied:
        return ""
    others = [r for r in (first, *tied) if r.plan != winner.plan]
    names = ", ".join(r.plan.id for r in others)
    if winner.peak_bytes is None:
        return f"{winner.plan} ties with {names} in latency; no peak memory is known to tell them apart"
    lowest = min((r.peak_bytes for r in others if r.peak_bytes is not None), default=None)
    tie = f"{winner.plan} ties with {names} in latency (within 3%)"
    used = format_quantity("memory", winner.peak_bytes)
    if lowest == winner.peak_bytes:
        return f"{tie} and in peak memory, {used}; the lower p50 decides"
    versus = "" if lowest is None else f" against {format_quantity('memory', lowest)}"
    return f"{tie} and is chosen for its lower peak memory, {used}{versus}"


def notes_on(
    ranked: Sequence[Ranked], winner: Ranked, first: Ranked, against: Mapping[Plan, Ratio], objective: Objective
) -> tuple[str, ...]:
    """What the reader of the choice should know: plans not told apart from the fastest, and undecided better ones."""
    close = [r for r in ranked if r.plan in against and against[r.plan].relation() == "undecided"]
    lower = [
        r
        for r in ranked
        if r.eligible
        and least(figure(r, objective)) < least(figure(winner, objective))
        and not (r.result.looked_at or r.result.left_out)
    ]
    better = [(r, disqualified(r)) for r in lower if r.verdict == "undecided"]
    better += [(r, why) for r in lower if r.verdict == "meets" and (why := _unsure(r, winner))]
    return (
        *(
            f"{r.plan} is not distinguished from {first.plan} with these samples ({_in_words(against[r.plan])})"
            for r in close
            if least(against[r.plan].value) <= _FAR
        ),
        *(f"{r.plan} has the lower {objective.metric}, but {_is(why)}" for r, why in better),
    )


def _is(why: str) -> str:
    return f"is {why}" if why.startswith("undecided") else why


def _in_words(ratio: Ratio) -> str:
    if ratio.value is None:
        return "no request in common"
    if ratio.low is None or ratio.high is None:
        return f"ratio {ratio.value:.3g}, {ratio.n} pairs are too few for an interval"
    return f"ratio {ratio.value:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"


def nearest_to(ranked: Sequence[Ranked]) -> Nearest | None:
    """The plan whose worst miss is the smallest, where none meets and none is undecided; None without a figure."""
    missing = [(r, [j for j in r.judgements if j.verdict == "misses"]) for r in ranked if r.eligible]
    known = [(r, misses) for r, misses in missing if misses and all(j.margin is not None for j in misses)]
    if not known:
        return None
    found, misses = min(known, key=lambda pair: (max(map(_excess, pair[1])), least(pair[0].p50_s), pair[0].plan.id))
    feasible = tuple(text for j in misses if (text := reachable_text(j)))
    if len(feasible) < len(misses):
        feasible = ()
    text = f"{found.plan} comes nearest: it " + "; ".join(map(shortfall, misses))
    if feasible:
        text += f"; it would meet {', '.join(feasible)}"
    text += "".join(f"; {j.why}" for j in found.judgements if j.verdict == "undecided")
    return Nearest(found, max(map(_excess, misses)), text, feasible)


def _excess(judgement: Judgement) -> float:
    return math.inf if judgement.margin is None else -judgement.margin


def settling(ranked: Sequence[Ranked], objective: Objective) -> str:
    """What would settle the plans that may still meet the SLA, the best three of the undecided in full."""
    open_ones = [r for r in ranked if not r.result.failed and not r.result.left_out]
    waiting = [r for r in open_ones if not r.eligible]
    looked_at = [r for r in open_ones if r.eligible and r.result.looked_at and r.verdict != "misses"]
    tried = [r for r in open_ones if r.eligible and r.verdict == "undecided" and not r.result.looked_at]
    tried.sort(key=lambda r: order(r, objective))
    parts = [
        f"{r.plan}: " + "; ".join(_settles(r, j) for j in r.judgements if j.verdict == "undecided") for r in tried[:3]
    ]
    if len(tried) > 3:
        parts.append(f"{len(tried) - 3} more undecided")
    if looked_at:
        parts.append(f"{_plans(looked_at)} only looked at, which chooses none: measure on")
    if waiting:
        parts.append(f"{len(waiting)} not measured yet")
    if not parts and (ruled_out := [r for r in ranked if r.eligible and r.result.looked_at]):
        parts.append(f"{_plans(ruled_out)} ruled out by a look, which shows no miss: measure on")
    return ". ".join(parts)


def _plans(of: Sequence[Ranked]) -> str:
    return f"{len(of)} {'was' if len(of) == 1 else 'were'}"


def _settles(r: Ranked, judgement: Judgement) -> str:
    """What would settle one judgement; of a race, which goes on until it speaks of processes to come, in processes."""
    general, raced = judgement.in_general, any(m.look for m in r.result.measurements)
    if raced and judgement.needed is not None and general is not None and general.needed:
        more = f"{general.needed} more process{'' if general.needed == 1 else 'es'}"
        return f"{judgement.why}; {more} at the least would settle it"
    return what_settles(judgement) + _in_rounds(r, judgement)


def _in_rounds(r: Ranked, judgement: Judgement) -> str:
    seen = judgement.estimate.n
    if judgement.estimate.unit != "requests" or not judgement.needed or not seen or not r.result.processes:
        return ""
    rounds = math.ceil(judgement.needed / (seen / r.result.processes))
    return f" ({rounds} more round{'' if rounds == 1 else 's'})"
