"""Accuracy: predicted against measured, for everything that was measured.

Owns leaving plans and models out, and the figures of the error. Leaves predicting to `predict`. Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from .predict import Observation, Prediction, Predictor, Range, shown
from .rates import Rates
from .shapes import Shape

Kind = Literal["plan", "model"]
Quantity = Literal["latency", "ttft", "tpot", "peak", "startup"]


@dataclass(frozen=True, slots=True)
class Compared:
    """One observation, and what was predicted of it without its plan, and without its whole model."""

    seen: Observation
    without_plan: Prediction
    without_model: Prediction | None

    def pair(self, kind: Kind, quantity: Quantity) -> tuple[float, Range] | None:
        """What was measured and what was predicted; None where one of the two is missing."""
        predicted = self.without_plan if kind == "plan" else self.without_model
        truth = shown(self.seen, quantity)
        if predicted is None or truth is None:
            return None
        ranges = {
            "latency": predicted.latency_s,
            "ttft": predicted.ttft_s,
            "tpot": predicted.tpot_s,
            "peak": predicted.peak_bytes,
            "startup": predicted.startup_s,
        }
        return truth, ranges[quantity]


@dataclass(frozen=True, slots=True)
class Errors:
    """Predicted against measured. All figures are None where there is nothing to make them of."""

    compared: tuple[Compared, ...]

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that were measured, by name."""
        return tuple(sorted({one.seen.plan.engine for one in self.compared}))

    def mape(self, kind: Kind, quantity: Quantity, engine: str | None = None) -> float | None:
        """Mean of |predicted - measured| over measured, of all plans or one engine's."""
        found = self._pairs(kind, quantity, engine)
        return fmean(abs(r.value - truth) / truth for truth, r in found) if found else None

    def coverage(self, quantity: Quantity, engine: str | None = None) -> float | None:
        """Share of what was measured that lies in its interval, its model left out; 0.9 is what the interval claims.

        With the plan alone left out it would be near 0.9 whatever the prediction: intervals are widened until it is.
        """
        found = self._pairs("model", quantity, engine)
        return fmean(r.low <= truth <= r.high for truth, r in found) if found else None

    def recall(self, kind: Kind, top: int = 5, tied_within: float = 0.0) -> float | None:
        """Share of the `top` fastest plans of each model that are among the `top` predicted to be; mean over models.

        Of several studies each is a question of its own. None unless some model has more than `top` plans.

        Args:
            tied_within: a plan counts as one of the fastest that is slower than the last of them by no more than this
                part, for measurement itself does not tell such plans apart.
        """
        together: dict[tuple[str, str], list[tuple[float, Range]]] = {}
        for one in self.compared:
            if (pair := one.pair(kind, "latency")) is not None:
                together.setdefault((one.seen.plan.model, one.seen.study), []).append(pair)
        shares = [
            top_recall([truth for truth, _ in of], [r.value for _, r in of], top, tied_within)
            for of in together.values()
            if len(of) > top
        ]
        return fmean(shares) if shares else None

    def _pairs(self, kind: Kind, quantity: Quantity, engine: str | None) -> list[tuple[float, Range]]:
        chosen = (one for one in self.compared if engine in (None, one.seen.plan.engine))
        return [pair for one in chosen if (pair := one.pair(kind, quantity)) is not None]


def top_recall(truths: Sequence[float], ordered_by: Sequence[float], top: int, tied_within: float = 0.0) -> float:
    """Share of the `top` lowest by one figure that are among the `top` lowest by another, place by place the same plan.

    Args:
        tied_within: see `Errors.recall`.

    Raises:
        ValueError: the two differ in length, or there are fewer than `top`.
    """
    if len(truths) != len(ordered_by) or len(truths) < top:
        raise ValueError(f"the {top} lowest of {len(truths)} and of {len(ordered_by)} cannot be compared")
    limit = sorted(truths)[top - 1] * (1 + tied_within)
    picked = sorted(range(len(truths)), key=ordered_by.__getitem__)[:top]
    return sum(truths[place] <= limit for place in picked) / top


def errors(observations: Sequence[Observation], rates: Rates, shapes: Mapping[str, Shape]) -> Errors:
    """How far off predictions are for plans, and for models, that were left out of the fit.

    A model is left out by fitting without it. A plan is left out by the closed form of the fit, linearised
    about its mode (`_effects.fit`): nearly what fitting again gives, in the time of one fit.
    """
    whole = Predictor.fit(observations, rates, shapes)
    names = sorted({one.plan.model for one in whole.seen})
    without: dict[int, Prediction] = {}
    for name in names if len(names) > 1 else ():
        learned = Predictor.fit([one for one in whole.seen if one.plan.model != name], rates, shapes)
        for place, one in enumerate(whole.seen):
            if one.plan.model == name:
                without[place] = learned.predict(one.plan, one.prompt_tokens, one.output_tokens)
    left_out = whole.left_out()
    return Errors(tuple(Compared(one, left_out[i], without.get(i)) for i, one in enumerate(whole.seen)))
