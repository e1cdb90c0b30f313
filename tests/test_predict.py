"""Prediction: sane without any measurement, better with each, and honest about how far off it is."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factories import measurement
from inferplan.accuracy import Compared, Errors, errors, top_recall
from inferplan.errors import InputError, UnknownNameError
from inferplan.plan import Plan
from inferplan.predict import Observation, Prediction, Predictor, Range, observations
from inferplan.rates import Rate, Rates
from inferplan.result import results
from inferplan.shapes import Shape, shape_of

RATES = Rates(
    (
        Rate(1, 20e9, "sum", {"fp32": 16e9, "int8": 8e9}, {"fp32": 60e9, "int8": 120e9}),
        Rate(2, 36e9, "sum", {"fp32": 30e9, "int8": 15e9}, {"fp32": 110e9, "int8": 230e9}),
    ),
    2.0,
)


def _gpt2(layers: int, width: int) -> Shape:
    heads = width // 64
    config = {"model_type": "gpt2", "n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": 1024}
    return shape_of({**config, "vocab_size": 50257})


SHAPES = {"small": _gpt2(6, 768), "middle": _gpt2(12, 768), "large": _gpt2(24, 1024)}
EFFICIENCY = {"fast": 0.8, "slow": 0.4, "odd": 0.6}
PLANS = [
    Plan(model, engine, precision, threads)
    for model in SHAPES
    for engine in EFFICIENCY
    for precision in ("fp32", "int8")
    for threads in (1, 2)
]


def seen(plans: Sequence[Plan] = PLANS, noise: float = 0.03, seed: int = 1) -> list[Observation]:
    """A world in which engines read weights at a share of the bandwidth, and hold them once."""
    draw = random.Random(seed)
    found = []
    for plan in plans:
        shape = SHAPES[plan.model]
        held = shape.weight_bytes(plan.precision)
        tpot = held / (RATES.bandwidth(plan.threads) * EFFICIENCY[plan.engine]) * math.exp(draw.gauss(0, noise))
        ttft = 3 * tpot
        peak = round(150e6 + 1.1 * held)
        found.append(Observation(plan, 32, 64, ttft, tpot, ttft + 63 * tpot, peak, 1 + held / 1e9))
    return found


def test_without_any_measurement_the_order_is_that_of_the_weights_and_says_what_it_rests_on() -> None:
    plans = [Plan("middle", "fast", "fp32", 1), Plan("middle", "fast", "int8", 1), Plan("large", "fast", "fp32", 1)]
    exact, small, large = Predictor.fit([], RATES, SHAPES).predict_all(plans, 32, 64)
    assert small.latency_s.value < exact.latency_s.value < large.latency_s.value
    assert small.peak_bytes.value < exact.peak_bytes.value < large.peak_bytes.value
    assert "nothing measured" in exact.basis
    for one in (exact, small, large):
        for found in (one.latency_s, one.ttft_s, one.tpot_s, one.peak_bytes, one.startup_s):
            assert 0 < found.low < found.value < found.high < math.inf


def test_without_a_cache_a_request_takes_longer() -> None:
    kept, again = Predictor.fit([], RATES, SHAPES).predict_all(
        [Plan("middle", "fast"), Plan("middle", "fast", kv_cache=False)], 32, 64
    )
    assert again.latency_s.value > 2 * kept.latency_s.value


def test_what_was_measured_is_learned_and_intervals_become_narrower() -> None:
    plan = Plan("large", "slow", "int8", 2)
    truth = next(o for o in seen(noise=0) if o.plan == plan)
    before = Predictor.fit([], RATES, SHAPES).predict(plan, 32, 64)
    after = Predictor.fit([o for o in seen() if o.plan != plan], RATES, SHAPES).predict(plan, 32, 64)
    assert truth.latency_s is not None
    assert abs(math.log(after.latency_s.value / truth.latency_s)) < 0.15
    assert _width(after) < _width(before) / 2
    assert "slow at int8" in after.basis


def _width(of: Prediction) -> float:
    return math.log(of.latency_s.high / of.latency_s.low)


def test_the_errors_it_publishes_are_those_of_plans_and_models_it_did_not_see() -> None:
    found = errors(seen(), RATES, SHAPES)
    assert len(found.compared) == len(PLANS)
    plan_out, model_out = found.mape("plan", "latency"), found.mape("model", "latency")
    memory = found.mape("plan", "peak")
    assert plan_out is not None and model_out is not None and memory is not None
    assert 0.01 < plan_out < 0.12  # the noise is 3%: less than that would be a plan that saw itself
    assert model_out < 0.2
    assert memory < 0.05
    coverage = found.coverage("latency")
    assert coverage is not None and coverage >= 0.8
    assert found.mape("plan", "latency", "an engine that was never measured") is None


def test_a_plan_that_is_left_out_is_not_believed() -> None:
    world = seen()
    odd = next(o for o in world if o.plan == Plan("middle", "fast", "fp32", 2))
    assert odd.tpot_s is not None and odd.latency_s is not None
    wrong = Observation(odd.plan, 32, 64, 10 * odd.ttft_s, 10 * odd.tpot_s, 10 * odd.latency_s, odd.peak_bytes, 1.0)
    found = errors([wrong if o is odd else o for o in world], RATES, SHAPES)
    compared = next(one for one in found.compared if one.seen.plan == odd.plan)
    assert compared.without_plan.latency_s.value < 2 * odd.latency_s


def test_what_an_option_does_is_learned_but_need_not_hold_for_the_next_plan_with_it() -> None:
    plain = seen()
    with_option = [
        replace(
            one,
            plan=replace(one.plan, options=(("block", 128),)),
            **{name: 0.8 * getattr(one, name) for name in ("ttft_s", "tpot_s", "latency_s")},
        )
        for one in plain
        if one.plan.engine == "fast" and one.plan.model != "large"
    ]
    asked = Plan("large", "fast", "int8", 2)
    without, having = (
        one.latency_s
        for one in Predictor.fit([*plain, *with_option], RATES, SHAPES).predict_all(
            [asked, replace(asked, options=(("block", 128),))], 32, 64
        )
    )
    assert having.value / without.value == pytest.approx(0.8, rel=0.05)
    assert math.log(having.high / having.low) > 1.5 * math.log(without.high / without.low)


def test_one_plan_that_disappoints_says_more_of_its_engine_at_that_precision_than_of_others() -> None:
    first = Plan("middle", "fast", "int8", 2)
    asked = [first, replace(first, model="small"), replace(first, engine="slow"), Plan("middle", "slow", "fp32", 2)]
    before = Predictor.fit([], RATES, SHAPES).predict_all(asked, 32, 64)
    found = before[0]
    twice = [2 * each.value for each in (found.ttft_s, found.tpot_s, found.latency_s)]
    one = Observation(first, 32, 64, twice[0], twice[1], twice[2], round(found.peak_bytes.value), 1.0)
    after = Predictor.fit([one], RATES, SHAPES).predict_all(asked, 32, 64)
    moved = [math.log2(b.latency_s.value / a.latency_s.value) for a, b in zip(before, after, strict=True)]
    assert moved == sorted(moved, reverse=True)
    assert moved[1] > 0.8
    assert 0.1 < moved[2] < 0.3


def test_the_fastest_are_looked_for_within_each_study() -> None:
    one = errors(seen(), RATES, SHAPES)
    upside_down = [
        Compared(
            replace(of.seen, study="of longer requests", latency_s=100 * (of.seen.latency_s or 0.0)),
            replace(of.without_plan, latency_s=Range(*[100 / of.without_plan.latency_s.value] * 3)),
            None,
        )
        for of in one.compared
    ]
    right, wrong = one.recall("plan"), Errors(tuple(upside_down)).recall("plan")
    assert right is not None and wrong is not None
    assert wrong < right
    assert Errors((*one.compared, *upside_down)).recall("plan") == pytest.approx((right + wrong) / 2)


def test_a_tie_with_the_last_of_the_fastest_counts_as_one_of_them() -> None:
    truths, predicted = [1.0, 2.0, 2.05, 3.0], [1.0, 2.2, 2.1, 9.0]
    assert top_recall(truths, predicted, 2) == 0.5
    assert top_recall(truths, predicted, 2, tied_within=0.03) == 1.0
    assert top_recall(truths, predicted, 2, tied_within=0.02) == 0.5
    with pytest.raises(ValueError, match="the 5 lowest of 4"):
        top_recall(truths, predicted, 5)


@given(st.lists(st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)), min_size=3, max_size=12), st.floats(0, 1))
def test_more_counts_as_found_the_wider_a_tie_is(pairs: list[tuple[float, float]], within: float) -> None:
    truths, predicted = [a for a, _ in pairs], [b for _, b in pairs]
    assert 0 <= top_recall(truths, predicted, 3) <= top_recall(truths, predicted, 3, within) <= 1
    assert top_recall(truths, truths, 3) == 1


def test_it_is_deterministic_and_empty_questions_have_empty_answers() -> None:
    plans = PLANS[:5]
    first, second = (Predictor.fit(seen(), RATES, SHAPES).predict_all(plans, 10, 10) for _ in range(2))
    assert first == second
    assert Predictor.fit([], RATES, SHAPES).predict_all([], 10, 10) == ()
    nothing = errors([], RATES, SHAPES)
    assert (nothing.compared, nothing.mape("plan", "latency"), nothing.recall("plan")) == ((), None, None)


def test_what_cannot_be_predicted_is_refused() -> None:
    predictor = Predictor.fit([], RATES, SHAPES)
    with pytest.raises(UnknownNameError, match="huge"):
        predictor.predict(Plan("huge"), 10, 10)
    with pytest.raises(InputError, match="at least 1 token"):
        predictor.predict(Plan("small"), 0, 10)
    with pytest.raises(InputError, match="on the CPU"):
        predictor.predict(Plan("small", device="cuda"), 10, 10)


def test_an_observation_keeps_what_a_cut_request_showed_and_leaves_its_latency_out() -> None:
    one, other = Plan("small", "fast"), Plan("small", "slow")
    cut = measurement(one, [2.0, 2.0], tokens=8, cut=[0, 1])
    whole = measurement(other, [1.0, 3.0], tokens=8, disturbed=[1])
    first, second = observations(results([one, other], [cut, whole]))
    assert first.latency_s is None
    assert first.tpot_s == pytest.approx(1.8 / 7)
    assert second.latency_s == 1.0
    assert (second.startup_s, second.prompt_tokens, second.output_tokens) == (0.75, 16, 8)
    assert observations(results([one], [measurement(one, [1.0], disturbed=[0])])) == ()
