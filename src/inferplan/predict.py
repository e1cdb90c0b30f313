"""Prediction: what a plan would take before it is run.

Owns what is predicted, and with which interval. Leaves how far off that was to `accuracy`, what is seen to
`_observed`, the terms to `_roofline`, learning to `_effects`, sizes to `shapes`, rates to `rates`. Pure functions.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import _effects, _roofline
from ._effects import Fit, Key, Row
from ._observed import Observation, Prediction, Range, observations
from .errors import InputError, UnknownNameError
from .plan import Plan
from .rates import Rates
from .shapes import Shape

if TYPE_CHECKING:
    from ._effects import Array

__all__ = ["Asked", "Observation", "Prediction", "Predictor", "Range", "observations", "shown"]

_QUANTILE = 0.90
# |z| of a normal distribution at ten even steps: what intervals are calibrated with while little is measured.
_PSEUDO = (0.06, 0.19, 0.32, 0.45, 0.60, 0.76, 0.93, 1.15, 1.44, 1.96)
_NARROWEST = 1.2  # in standard deviations: below it, luck with few plans would be taken for certainty
_SHARED = 0.5  # correlation of the errors of TTFT and TPOT of one plan


@dataclass(frozen=True, slots=True)
class _Guess:
    """Logarithms and their standard deviations, by quantity, one element a plan; and seconds by cause."""

    log: Mapping[str, Array]
    sd: Mapping[str, Array]
    causes: tuple[Mapping[str, float], ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """Plans with the tokens of a request to each: what `Predictor.foresee` takes, the same after every measurement."""

    plans: tuple[Plan, ...]
    output_tokens: tuple[float, ...]
    rows: Mapping[str, Sequence[Row]]

    @classmethod
    def of(
        cls, plans: Sequence[Plan], tokens: Sequence[tuple[float, float]], rates: Rates, shapes: Mapping[str, Shape]
    ) -> Asked:
        """Prompt and output tokens are given for each plan.

        Raises:
            InputError: no prompt, no output, or a plan on another device than the CPU.
            UnknownNameError: a model without a shape.
        """
        for plan, (prompt, output) in zip(plans, tokens, strict=True):
            if prompt < 1 or output < 1:
                raise InputError(f"a request has at least 1 token in and out, not {prompt:g} and {output:g}")
            if plan.device != "cpu":
                raise InputError(f"{plan} cannot be predicted: only plans on the CPU can")
            if plan.model not in shapes:
                raise UnknownNameError("model", plan.model, shapes)
        each = [(plan, shapes[plan.model], n, m) for plan, (n, m) in zip(plans, tokens, strict=True)]
        rows = {
            "ttft": [_roofline.prefill_row(p, s, rates, n) for p, s, n, _ in each],
            "cached": [_roofline.decode_row(p, s, rates, n + m / 2) for p, s, n, m in each],
            "again": [_roofline.prefill_row(p, s, rates, n + m / 2) for p, s, n, m in each],
            "peak": [_roofline.memory_row(p, s, n, m) for p, s, n, m in each],
            "startup": [_roofline.startup_row(p, s) for p, s, *_ in each],
        }
        return cls(tuple(plans), tuple(m for _, m in tokens), rows)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Predicts plans of models whose shapes it knows; made by `fit`, never changed.

    Attributes:
        seen: the observations that it learned from.
        widths: half of each interval in standard deviations, by quantity, as leaving plans out showed.
    """

    rates: Rates
    shapes: Mapping[str, Shape]
    seen: tuple[Observation, ...]
    fits: Mapping[str, Fit]
    widths: Mapping[str, float]

    @classmethod
    def fit(cls, observations: Sequence[Observation], rates: Rates, shapes: Mapping[str, Shape]) -> Predictor:
        """Learn from what was measured; from nothing it gives what is believed beforehand.

        Deterministic, and cheap enough to be called after every measurement.
        Observations of models without a shape are left out.
        """
        seen = tuple(o for o in observations if o.plan.model in shapes)
        models = {
            "decode": _roofline.DECODE,
            "prefill": _roofline.PREFILL,
            "peak": _roofline.MEMORY,
            "startup": _roofline.STARTUP,
        }
        rows = {name: _rows(name, seen, rates, shapes) for name in models}
        fits = {
            name: _effects.fit(
                model, [r for _, r, _ in rows[name]], [v for *_, v in rows[name]], _units(rows[name], seen)
            )
            for name, model in models.items()
        }
        bare = cls(rates, shapes, seen, fits, {})
        return replace(bare, widths=bare._calibrated())

    def predict(self, plan: Plan, prompt_tokens: float, output_tokens: float) -> Prediction:
        """One plan; see `Asked.of` for what it raises."""
        return self.predict_all([plan], prompt_tokens, output_tokens)[0]

    def predict_all(self, plans: Sequence[Plan], prompt_tokens: float, output_tokens: float) -> tuple[Prediction, ...]:
        """What a request of so many tokens, and its process, would take; in the order of `plans`.

        Raises:
            InputError: no prompt, no output, or a plan on another device than the CPU.
            UnknownNameError: a model without a shape.
        """
        tokens = [(float(prompt_tokens), float(output_tokens))] * len(plans)
        return self.foresee(Asked.of(plans, tokens, self.rates, self.shapes))

    def foresee(self, asked: Asked) -> tuple[Prediction, ...]:
        """What a request to each of its plans, and its process, would take; in the order of the plans."""
        return self._predictions(asked.plans, asked.output_tokens, self._guess(asked)) if asked.plans else ()

    def left_out(self) -> tuple[Prediction, ...]:
        """Each observation as predicted without any of its own plan, in the order of `seen`."""
        if not self.seen:
            return ()
        plans, tokens = [o.plan for o in self.seen], [o.output_tokens for o in self.seen]
        return self._predictions(plans, tokens, self._left_out())

    def _guess(self, asked: Asked) -> _Guess:
        import numpy as np

        fits = {"ttft": "prefill", "cached": "decode", "again": "prefill", "peak": "peak", "startup": "startup"}
        found = {name: self.fits[fits[name]].predict(rows) for name, rows in asked.rows.items()}
        cached = np.array([plan.kv_cache for plan in asked.plans])
        log = {name: found[name].log for name in ("ttft", "peak", "startup")}
        sd = {name: found[name].sd for name in ("ttft", "peak", "startup")}
        log["tpot"] = np.where(cached, found["cached"].log, found["again"].log)
        sd["tpot"] = np.where(cached, found["cached"].sd, found["again"].sd)
        outputs = np.array(asked.output_tokens)
        causes = []
        for place, plan in enumerate(asked.plans):
            step = "cached" if plan.kv_cache else "again"
            names = _roofline.DECODE_TERMS if plan.kv_cache else _roofline.PREFILL_TERMS
            first, later = math.exp(log["ttft"][place]), (outputs[place] - 1) * math.exp(log["tpot"][place])
            seconds: defaultdict[str, float] = defaultdict(float)
            for name, share in zip(_roofline.PREFILL_TERMS, found["ttft"].shares[place], strict=True):
                seconds[name] += first * float(share)
            for name, share in zip(names, found[step].shares[place], strict=True):
                seconds[name] += later * float(share)
            causes.append(seconds)
        return _Guess(*_with_latency(log, sd, outputs), tuple(causes))

    def _left_out(self) -> _Guess:
        """The guess of every observation, with what its plan itself taught replaced."""
        import numpy as np

        tokens = [(o.prompt_tokens, o.output_tokens) for o in self.seen]
        guess = self._guess(Asked.of([o.plan for o in self.seen], tokens, self.rates, self.shapes))
        log = {name: values.copy() for name, values in guess.log.items()}
        sd = {name: values.copy() for name, values in guess.sd.items()}
        for name, fit in self.fits.items():
            for place, (which, quantity) in enumerate(_places(name, self.seen)):
                if quantity:
                    log[quantity][which], sd[quantity][which] = fit.left_out_log[place], fit.left_out_sd[place]
        outputs = np.array([o.output_tokens for o in self.seen])
        return _Guess(*_with_latency(log, sd, outputs), guess.causes)

    def _calibrated(self) -> dict[str, float]:
        """How many standard deviations nine of ten plans lay within when they were left out."""
        if not self.seen:
            return {name: _width(()) for name in ("latency", "ttft", "tpot", "peak", "startup")}
        guess = self._left_out()
        widths = {}
        for name in guess.log:
            truths = ((place, shown(one, name)) for place, one in enumerate(self.seen))
            widths[name] = _width(
                [abs(math.log(t) - guess.log[name][i]) / guess.sd[name][i] for i, t in truths if t is not None]
            )
        return widths

    def _predictions(self, plans: Sequence[Plan], tokens: Sequence[float], guess: _Guess) -> tuple[Prediction, ...]:
        ranges = {
            name: [_range(m, s * self.widths[name]) for m, s in zip(guess.log[name], guess.sd[name], strict=True)]
            for name in guess.log
        }
        basis = _Basis(self.seen)
        return tuple(
            Prediction(
                plan=plan,
                latency_s=ranges["latency"][i],
                ttft_s=ranges["ttft"][i],
                tpot_s=ranges["tpot"][i],
                peak_bytes=ranges["peak"][i],
                startup_s=ranges["startup"][i],
                output_tokens=tokens[i],
                bottleneck=_bottleneck(guess.causes[i]),
                basis=basis.of(plan),
            )
            for i, plan in enumerate(plans)
        )


def _rows(
    name: str, seen: Sequence[Observation], rates: Rates, shapes: Mapping[str, Shape]
) -> list[tuple[int, Row, float]]:
    """The rows that one fit learns from: the observation's place, the row, its value. `_places` has the same order."""
    found: list[tuple[int, Row, float]] = []
    for place, one in enumerate(seen):
        plan, shape = one.plan, shapes[one.plan.model]
        middle = one.prompt_tokens + one.output_tokens / 2
        if name == "decode" and plan.kv_cache and one.tpot_s:
            found.append((place, _roofline.decode_row(plan, shape, rates, middle), one.tpot_s))
        if name == "prefill":
            lengths = [(one.prompt_tokens, one.ttft_s)] + ([one.other_ttft] if one.other_ttft else [])
            if not plan.kv_cache and one.tpot_s:
                lengths.append((middle, one.tpot_s))
            found += [(place, _roofline.prefill_row(plan, shape, rates, n), value) for n, value in lengths]
        if name == "peak" and one.peak_bytes:
            row = _roofline.memory_row(plan, shape, one.prompt_tokens, one.output_tokens)
            found.append((place, row, float(one.peak_bytes)))
        if name == "startup" and one.startup_s:
            found.append((place, _roofline.startup_row(plan, shape), one.startup_s))
    return found


def _places(name: str, seen: Sequence[Observation]) -> list[tuple[int, str]]:
    """For each row of `_rows`, the observation's place and the quantity that the row is; empty for a further length."""
    found: list[tuple[int, str]] = []
    for place, one in enumerate(seen):
        again = not one.plan.kv_cache and bool(one.tpot_s)
        if name == "decode" and one.plan.kv_cache and one.tpot_s:
            found.append((place, "tpot"))
        if name == "prefill":
            found += [(place, "ttft")] + [(place, "")] * bool(one.other_ttft) + [(place, "tpot")] * again
        if name == "peak" and one.peak_bytes:
            found.append((place, "peak"))
        if name == "startup" and one.startup_s:
            found.append((place, "startup"))
    return found


def _units(rows: Sequence[tuple[int, Row, float]], seen: Sequence[Observation]) -> list[Key]:
    return [seen[place].plan for place, *_ in rows]


def _with_latency(
    log: dict[str, Array], sd: dict[str, Array], outputs: Array
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The first token, and one step for each of the others."""
    import numpy as np

    first, later = np.exp(log["ttft"]), (outputs - 1) * np.exp(log["tpot"])
    share = first / (first + later)
    one, two = share * sd["ttft"], (1 - share) * sd["tpot"]
    log["latency"] = np.log(first + later)
    sd["latency"] = np.sqrt(one**2 + two**2 + 2 * _SHARED * one * two)
    return log, sd


def shown(one: Observation, quantity: str) -> float | None:
    """What was measured of `latency`, `ttft`, `tpot`, `peak` or `startup`; None where it is not known."""
    return {
        "latency": one.latency_s,
        "ttft": one.ttft_s,
        "tpot": one.tpot_s,
        "peak": None if one.peak_bytes is None else float(one.peak_bytes),
        "startup": one.startup_s,
    }[quantity]


def _width(deviations: Sequence[float]) -> float:
    import numpy as np

    return max(_NARROWEST, float(np.quantile([*deviations, *_PSEUDO], _QUANTILE)))


def _range(log: float, width: float) -> Range:
    return Range(math.exp(log - width), math.exp(log), math.exp(log + width))


def _bottleneck(seconds: Mapping[str, float]) -> str:
    name = max(seconds, key=lambda cause: seconds[cause])
    return f"{name}, {seconds[name] / sum(seconds.values()):.0%} of a request"


class _Basis:
    """How much was measured that a prediction rests on, in words."""

    def __init__(self, seen: Sequence[Observation]) -> None:
        plans = {one.plan for one in seen}
        self._all = len(plans)
        self._engines = Counter(plan.engine for plan in plans)
        self._pairs = Counter((plan.engine, plan.precision) for plan in plans)
        self._models = {plan.model for plan in plans}

    def of(self, plan: Plan) -> str:
        """Counts of measured plans, the nearest first."""
        if not self._all:
            return "nothing measured here: the rates of the machine and beliefs alone"
        near = self._pairs[plan.engine, plan.precision]
        text = f"{near or 'no'} measured plan{'s' * (near != 1)} of {plan.engine} at {plan.precision}"
        if not near:
            text += f", {self._engines[plan.engine] or 'none'} of {plan.engine}, {self._all} in all"
        return text if plan.model in self._models else f"{text}; this model was never measured"
