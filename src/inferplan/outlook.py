"""Outlook: what is to be thought of a predicted plan, before anything of it is measured.

Owns the words (`likely meets`, `likely misses`, `cannot tell`, `does not fit`) and which plans are worth measuring.
Leaves predicting to `predict`, and verdicts, which rest on measurements, to `verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from . import fits
from .foretold import foretold
from .predict import Prediction, Range
from .shapes import Shape
from .sla import SLA, Constraint, format_quantity

Outlook = Literal["likely meets", "likely misses", "cannot tell", "does not fit"]
_TAIL = 1.5  # p95 over p50 of the same plan in our recorded studies lies below this for 19 plans of 20


@dataclass(frozen=True, slots=True)
class Answer:
    """One predicted plan, and what is to be thought of it.

    Attributes:
        why: the constraint or the memory that the outlook is about.
        memory: empty, or that it may not or does not fit.
        worth: it could meet the SLA and be the fastest: worth measuring.
    """

    prediction: Prediction
    outlook: Outlook
    why: str
    memory: str
    worth: bool


def answer(
    predictions: Sequence[Prediction],
    sla: SLA | None,
    granted_bytes: int,
    shapes: Mapping[str, Shape],
) -> tuple[Answer, ...]:
    """The outlook of each plan, by model in the order given, the fastest first.

    A plan is worth measuring where nothing speaks against it and its optimistic end is not
    beaten by the pessimistic end of another such plan of its model.
    """
    outlooks = [judge(p, sla, granted_bytes, shapes[p.plan.model]) for p in predictions]
    open_ones = [(p, o) for p, o in zip(predictions, outlooks, strict=True) if o[0] in ("likely meets", "cannot tell")]
    # What is likely to meet sets the bar; where nothing is, everything that cannot be told.
    sure = [pair for pair in open_ones if pair[1][0] == "likely meets"] or open_ones
    bars = {
        model: min((p.latency_s.high for p, _ in sure if p.plan.model == model), default=float("inf"))
        for model in shapes
    }
    found = [
        Answer(p, word, why, memory, word in ("likely meets", "cannot tell") and p.latency_s.low <= bars[p.plan.model])
        for p, (word, why, memory) in zip(predictions, outlooks, strict=True)
    ]
    order = {model: place for place, model in enumerate(shapes)}
    return tuple(sorted(found, key=lambda a: (order[a.prediction.plan.model], a.prediction.latency_s.value)))


def judge(prediction: Prediction, sla: SLA | None, granted_bytes: int, shape: Shape) -> tuple[Outlook, str, str]:
    """The outlook, what it is about, and what is to be said of the memory.

    `likely`: the whole interval lies on one side of the limit. Memory that surely
    does not suffice outweighs everything else.
    """
    peak, plan = prediction.peak_bytes, prediction.plan
    refusal = fits.refusal(shape.weight_bytes(plan.precision), granted_bytes, f"{plan.model} at {plan.precision}")
    if refusal or peak.low > granted_bytes:
        short = f"{_span(peak)} needed, {format_quantity('memory', granted_bytes)} granted"
        return "does not fit", short, "does not fit"
    memory = "may not fit" if peak.high > granted_bytes else ""
    if sla is None:
        return "cannot tell", "no SLA was given", memory
    told = [(c, _side(c, prediction)) for c in sla.constraints]
    if misses := [c for c, side in told if side == "misses"]:
        return "likely misses", ", ".join(map(str, misses)), memory
    if unsure := [c for c, side in told if side != "meets"]:
        return "cannot tell", ", ".join(map(str, unsure)), memory
    return ("cannot tell", "memory", memory) if memory else ("likely meets", str(sla), "")


def _side(constraint: Constraint, prediction: Prediction) -> str:
    """`meets`, `misses`, or nothing where the limit lies inside the interval or the metric is not predicted."""
    metric, limit = constraint.metric, constraint.limit
    found = foretold(metric, prediction)
    if found is None:
        return ""
    if constraint.op == ">=":
        return "meets" if found.low >= limit else "misses" if found.high < limit else ""
    above = metric.q is not None and metric.q > 0.5
    below = metric.q is not None and metric.q < 0.5
    if found.high * (_TAIL if above else 1.0) <= limit:
        return "meets"
    return "misses" if found.low / (_TAIL if below else 1.0) > limit else ""


def _span(found: Range) -> str:
    low, high = (format_quantity("memory", value) for value in (found.low, found.high))
    return f"{low} to {high}"
