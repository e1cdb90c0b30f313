"""Why a plan was chosen or lost, in sentences with numbers.

Owns the wording and the search for the nearest miss. Leaves the choice itself
to `selection`; every figure comes from `ranking` and `verdict`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from .plan import Plan
from .ranking import Objective, Ranked, figure, least, order, ratio_of
from .sla import Kind, format_quantity
from .stats import Ratio
from .verdict import Judgement, reachable_text, shortfall, what_settles

_KINDS: Mapping[str, Kind] = {"latency": "time", "memory": "memory", "cost": "money"}
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
    why = r.result.left_out if r.eligible and r.result.looked_at else ""
    return replace(r, ratio=ratio, reason=why or disqualified(r) or _beaten(r, winner, ratio, objective))


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
    better = [
        r
        for r in ranked
        if r.eligible and r.verdict == "undecided" and least(figure(r, objective)) < least(figure(winner, objective))
    ]
    return (
        *(
            f"{r.plan} is not distinguished from {first.plan} with these samples ({_in_words(against[r.plan])})"
            for r in close
            if least(against[r.plan].value) <= _FAR
        ),
        *(f"{r.plan} has the lower {objective.metric}, but is {disqualified(r)}" for r in better),
    )


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


def settling(open_ones: Sequence[Ranked], objective: Objective) -> str:
    """What would settle the open plans, the best three of the undecided in full."""
    waiting = [r for r in open_ones if not r.eligible]
    looked_at = [r for r in open_ones if r.verdict == "meets"]
    tried = sorted((r for r in open_ones if r.eligible and r not in looked_at), key=lambda r: order(r, objective))
    parts = [
        f"{r.plan}: " + "; ".join(what_settles(j) + _in_rounds(r, j) for j in r.judgements if j.verdict == "undecided")
        for r in tried[:3]
    ]
    if len(tried) > 3:
        parts.append(f"{len(tried) - 3} more undecided")
    if looked_at:
        one = len(looked_at) == 1
        so_far = "meets it as far as it was looked at" if one else "meet it as far as they were looked at"
        parts.append(f"{len(looked_at)} {so_far}, which chooses none: measure on")
    if waiting:
        parts.append(f"{len(waiting)} not measured yet")
    return ". ".join(parts)


def _in_rounds(r: Ranked, judgement: Judgement) -> str:
    seen = judgement.estimate.n
    if judgement.estimate.unit != "requests" or not judgement.needed or not seen or not r.result.processes:
        return ""
    rounds = math.ceil(judgement.needed / (seen / r.result.processes))
    return f" ({rounds} more round{'' if rounds == 1 else 's'})"
