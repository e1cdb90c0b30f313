"""Constraints, verdicts and the choice: nothing meets without evidence, and every loser has its reason."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import MIB, measurement, plan
from inferplan._codec import decode, encode
from inferplan.cost import Prices
from inferplan.errors import SLAError, UnknownNameError
from inferplan.plan import Plan
from inferplan.result import PlanResult
from inferplan.selection import (
    METRICS,
    SLA,
    Constraint,
    Judgement,
    Objective,
    Ranked,
    Selection,
    choose,
    contenders,
    find_metric,
    format_quantity,
    judge,
    parse_sla,
)

PRICES = Prices(usd_per_vcpu_hour=3.6, usd_per_gb_hour=3.6, source="made up")
A, B, C = plan("a"), plan("b"), plan("c")
SHAPE = [1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97, 1.005]  # eight prompts of about one second


def ran(of: Plan, p50_s: float, *, peak: int = 100 * MIB, rounds: int = 1, noise: float = 0.0) -> PlanResult:
    source = random.Random(f"{of.id} {p50_s}")
    runs = (
        measurement(of, [p50_s * x * (1 + source.uniform(-noise, noise)) for x in SHAPE], round=i, peak_bytes=peak)
        for i in range(1, rounds + 1)
    )
    return PlanResult(of, tuple(runs))


def failed(of: Plan) -> PlanResult:
    return PlanResult(of, (measurement(of, status="crashed", reason="killed by signal 9"),))


def pick(found: Sequence[PlanResult], *sla: str, minimize: str = "latency") -> Selection:
    return choose(found, parse_sla(sla or ["p50<=1500ms"]), Objective(minimize), PRICES, 2)  # type: ignore[arg-type]


def verdict(result: PlanResult, text: str) -> Judgement:
    return judge(result, parse_sla([text]).constraints[0], PRICES, 2)


def by_plan(selection: Selection) -> dict[Plan, Ranked]:
    return {r.plan: r for r in selection.ranked}


# --- constraints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "limit"),
    [
        ("p50<=1500ms", "p50", 1.5),
        (" p95 <= 2s ", "p95", 2.0),
        ("p95_latency<2 S", "p95", 2.0),
        ("ttft<=300ms", "ttft", 0.3),
        ("p95_ttft<=.3s", "ttft_p95", 0.3),
        ("ttft_p90<=1e3us", "ttft_p90", 0.001),
        ("p50_tpot<=20ms", "tpot", 0.02),
        ("p50_latency<=1min", "p50", 60.0),
        ("p99.9\u22642s", "p99.9", 2.0),
        ("peak_rss<=800MB", "peak_rss", 800e6),
        ("peak_rss<=800MiB", "peak_rss", 800 * 2.0**20),
        ("peak_rss<=1.5gb", "peak_rss", 1.5e9),
        ("peak_rss<=1GiB", "peak_rss", 2.0**30),
        ("load<=5s", "load", 5.0),
        ("tokens_per_s>=20", "tokens_per_s", 20.0),
        ("tokens_per_s > 20 tok/s", "tokens_per_s", 20.0),
        ("cost<=0.5", "cost", 0.5),
    ],
)
def test_constraints_are_read_with_their_units(text: str, name: str, limit: float) -> None:
    (constraint,) = parse_sla([text]).constraints
    assert constraint.metric.name == name
    assert constraint.limit == pytest.approx(limit)
    assert parse_sla([str(constraint)]).constraints == (constraint,)


@given(
    metric=st.one_of(
        st.sampled_from(sorted(METRICS)),
        st.integers(1, 99).map(lambda n: f"p{n}"),
        st.just("ttft_p90"),
        st.just("p99.5"),
    ),
    limit=st.floats(1e-9, 1e15),
)
def test_a_constraint_printed_can_be_read_back(metric: str, limit: float) -> None:
    found = find_metric(metric)
    constraint = Constraint(found, found.op, limit)
    assert parse_sla([str(constraint)]) == SLA((constraint,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p50<=1500", "needs a unit after 1500; units: us, ms, s, min"),
        ("p50<=1500parsecs", "no unit 'parsecs'; units: us, ms, s, min"),
        ("p50<=800MB", "no unit 'MB'"),
        ("peak_rss<=800", "units: B, kB, MB, GB, KiB, MiB, GiB"),
        ("p50<=0ms", "positive finite number, not 0"),
        ("p50<=-5ms", "positive finite number, not -5"),
        ("p50<=1e999ms", "positive finite number"),
        ("p50<=nan ms", "not a number with a unit"),
        ("p50<=inf", "not a number with a unit"),
        ("p50<=fast", "not a number with a unit"),
        ("p50<=", "not a number with a unit"),
        ("p50<=1,500ms", "no unit ',500ms'"),
        ("p50>=1s", "only be bounded from above: write p50<=1s"),
        ("tokens_per_s<=20", "only be bounded from below: write tokens_per_s>=20"),
        ("p50=1s", "write p50<=1s"),
        ("p50 1s", "not a constraint: write METRIC<=LIMIT"),
        ("", "not a constraint"),
    ],
)
def test_a_bad_constraint_says_what_is_wrong_and_what_to_write(text: str, says: str) -> None:
    with pytest.raises(SLAError) as caught:
        parse_sla([text])
    assert says in str(caught.value)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown metric 'peak_ram'. Did you mean peak_rss"):
        parse_sla(["peak_ram<=1GB"])
    for name in ("p0", "p100", "p0.5", "p50_p95", "load_p95", "p"):
        with pytest.raises(UnknownNameError, match="unknown metric"):
            find_metric(name)


def test_an_sla_is_neither_empty_nor_contradictory() -> None:
    with pytest.raises(SLAError, match="empty"):
        parse_sla([])
    with pytest.raises(SLAError, match="p50 is bounded twice, by p50<=1s and p50<=2s"):
        parse_sla(["p50<=1s", "p50_latency<=2s"])


@pytest.mark.parametrize("ms", [0.0, -1.0, math.inf, math.nan])
def test_an_sla_in_ms_must_be_positive(ms: float) -> None:
    with pytest.raises(SLAError, match="positive number of milliseconds"):
        SLA.from_p50_ms(ms)


@given(st.floats(1e-3, 1e7))
def test_an_sla_in_ms_reads_like_the_text(ms: float) -> None:
    (constraint,) = SLA.from_p50_ms(ms).constraints
    assert constraint.limit == pytest.approx(ms / 1e3)
    assert str(SLA.from_p50_ms(1500)) == "p50<=1500ms"


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        ("time", 1.5234, "1.52 s"),
        ("time", 0.0042, "4.20 ms"),
        ("time", 0.9996, "1000 ms"),
        ("memory", 812.4e6, "812 MB"),
        ("memory", 1.5e9, "1.50 GB"),
        ("rate", 23.14, "23.1 tokens/s"),
        ("money", 0.2137, "0.214 USD/Mtok"),
    ],
)
def test_quantities_are_shown_with_units_and_three_digits(kind: str, value: float, text: str) -> None:
    assert format_quantity(kind, value) == text  # type: ignore[arg-type]


def test_an_sla_survives_being_stored() -> None:
    sla = parse_sla(["p50<=1500ms", "peak_rss<=800MB", "p99.5<=9s", "tokens_per_s>=2"])
    again = decode(SLA, json.loads(json.dumps(encode(sla))))
    assert again == sla
    assert str(again) == "p50<=1500ms, peak_rss<=800MB, p99.5<=9s, tokens_per_s>=2"


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_a_median_surely_within_the_limit_meets() -> None:
    found = verdict(ran(A, 1.0), "p50<=1500ms")
    assert found.verdict == "meets"
    assert found.margin == pytest.approx(1 / 3, abs=0.01)
    assert found.needed == 0
    assert "8 requests in 1 process" in found.confidence
    assert found.reachable == pytest.approx(1.02)  # the seventh of eight: the one-sided 95% bound


def test_a_median_surely_beyond_the_limit_misses() -> None:
    found = verdict(ran(A, 2.0), "p50<=1500ms")
    assert found.verdict == "misses"
    assert found.margin == pytest.approx(-1 / 3, abs=0.01)


def test_an_interval_that_straddles_the_limit_is_undecided_and_says_what_settles_it() -> None:
    result = PlanResult(A, (measurement(A, [1.0, 1.1, 1.2, 1.3, 1.6, 1.7, 1.4, 1.2]),))
    found = verdict(result, "p50<=1500ms")
    assert found.verdict == "undecided"
    assert found.needed is not None
    assert 1 <= found.needed <= 20
    assert "may be as high as" in found.why


def test_undecided_tells_the_other_side_of_the_limit() -> None:
    def why(limit: str) -> str:
        return verdict(PlanResult(A, (measurement(A, [1.0, 1.1, 1.2, 1.3, 1.6, 1.7, 1.8, 1.9]),)), limit).why

    assert why("p50<=1500ms") == "undecided on p50<=1500ms: p50 is 1.45 s, but may be as high as 1.80 s"
    assert why("p50<=1400ms") == "undecided on p50<=1400ms: p50 is 1.45 s, but may be as low as 1.10 s"


def test_four_samples_never_meet_and_the_fifth_settles() -> None:
    four = verdict(PlanResult(A, (measurement(A, [0.1] * 4),)), "p50<=1500ms")
    assert (four.verdict, four.needed) == ("undecided", 1)
    assert "4 requests cannot bound it, 5 can" in four.why
    assert verdict(PlanResult(A, (measurement(A, [0.1] * 5),)), "p50<=1500ms").verdict == "meets"


@given(st.lists(st.floats(1e-6, 1e-3), max_size=58))
def test_missing_p95_never_meets_the_sla(latencies: list[float]) -> None:
    found = verdict(PlanResult(A, (measurement(A, latencies),)), "p95<=2s")
    assert found.verdict == "undecided"
    assert found.needed == 59 - len(latencies)
    assert pick([PlanResult(A, (measurement(A, latencies),))], "p95<=2s").winner is None


def test_a_p95_over_many_small_processes_can_meet() -> None:
    assert verdict(ran(A, 1.0, rounds=8), "p95<=2s").verdict == "meets"  # 64 samples, 8 a process


def test_every_process_must_agree() -> None:
    fast, slow = measurement(A, [1.0] * 30), measurement(A, [1.6] * 8, round=2)
    found = verdict(PlanResult(A, (fast, slow)), "p50<=1500ms")
    assert found.estimate.upper == 1.0
    assert found.verdict == "undecided"
    assert "process of round 2 alone had 1.60 s" in found.why
    assert found.needed is None
    assert found.reachable == 1.6


def test_a_process_too_small_for_its_own_p95_still_has_a_say() -> None:
    good, bad = measurement(A, [1.0] * 600), measurement(A, [3.0] * 8, round=2)
    found = verdict(PlanResult(A, (good, bad)), "p95<=2s")
    assert found.estimate.upper == 1.0
    assert found.verdict == "undecided"
    assert "process of round 2" in found.why


def test_a_plan_whose_every_request_was_cut_beyond_the_limit_misses() -> None:
    found = verdict(PlanResult(A, (measurement(A, [1.6, 1.7, 1.7, 1.7, 1.7], cut=range(5)),)), "p50<=1500ms")
    assert found.verdict == "misses"
    assert found.margin == pytest.approx(1 - 1.6 / 1.5)


def test_two_cut_requests_are_too_few_to_show_a_miss() -> None:
    found = verdict(PlanResult(A, (measurement(A, [1.6, 1.7], cut=[0, 1]),)), "p50<=1500ms")
    assert found.verdict == "undecided"


def test_requests_cut_before_the_limit_show_nothing() -> None:
    found = verdict(PlanResult(A, (measurement(A, [1.0] * 8, cut=range(8)),)), "p50<=1500ms")
    assert (found.verdict, found.margin, found.needed) == ("undecided", None, None)
    assert "too many requests were cut short" in found.why


def test_cut_requests_never_help_a_rate() -> None:
    result = PlanResult(A, (measurement(A, [0.1, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0], cut=range(1, 8)),))
    assert verdict(result, "tokens_per_s>=20").verdict == "undecided"
    assert verdict(result, "tpot<=1s").verdict == "undecided"


@pytest.mark.parametrize(("limit", "expected"), [("4", "meets"), ("8", "undecided"), ("16", "misses")])
def test_a_rate_is_bounded_from_below(limit: str, expected: str) -> None:
    found = verdict(ran(A, 1.0), f"tokens_per_s>={limit}")  # eight tokens in about a second
    assert found.verdict == expected
    assert found.margin == pytest.approx(8 / float(limit) - 1, abs=0.02) or expected != "meets"
    assert found.estimate.value == pytest.approx(8.0, abs=0.1)


def test_memory_and_load_are_judged_by_the_processes_seen() -> None:
    runs = (
        measurement(A, SHAPE, peak_bytes=700 * 10**6, load_s=4.0),
        measurement(A, SHAPE, round=2, peak_bytes=900 * 10**6, load_s=6.0),
    )
    both = PlanResult(A, runs)
    assert [verdict(both, f"peak_rss<={n}MB").verdict for n in (600, 800, 900)] == ["misses", "undecided", "meets"]
    assert [verdict(both, f"load<={n}s").verdict for n in (3, 5, 6)] == ["misses", "undecided", "meets"]
    assert "2 processes seen; a claim about processes in general needs 6" in verdict(both, "load<=6s").confidence
    six = PlanResult(A, tuple(measurement(A, SHAPE, round=i) for i in range(1, 7)))
    assert verdict(six, "load<=6s").confidence == "6 processes seen"


def test_memory_that_was_not_read_never_meets() -> None:
    known, unknown = measurement(A, SHAPE), measurement(A, SHAPE, round=2, peak_bytes=None)
    for result in (PlanResult(A, (unknown,)), PlanResult(A, (known, unknown))):
        assert verdict(result, "peak_rss<=10GB").verdict == "undecided"
        assert verdict(result, "cost<=1000000").verdict == "undecided"


def test_cost_is_judged_at_the_prices_given() -> None:
    result = ran(A, 1.0, peak=2**30)  # 2 USD-thousandths a second, eight tokens: 250 USD per Mtok
    assert verdict(result, "cost<=300").verdict == "meets"
    assert verdict(result, "cost<=200USD").verdict == "misses"


@settings(max_examples=40)
@given(st.lists(st.floats(0.01, 10), min_size=5, max_size=30), st.floats(0.01, 10), st.floats(1.0, 3.0))
def test_a_looser_limit_never_turns_meets_into_anything_else(values: list[float], limit: float, by: float) -> None:
    result = PlanResult(A, (measurement(A, values),))
    rank = {"misses": 0, "undecided": 1, "meets": 2}
    tight, loose = (verdict(result, f"p50<={x!r}s").verdict for x in (limit, limit * by))
    assert rank[loose] >= rank[tight]


# --- the choice ------------------------------------------------------------------------------------------------------


def test_the_fastest_plan_that_meets_is_chosen_and_losers_have_reasons() -> None:
    found = pick(
        [ran(A, 1.0, noise=0.01), ran(B, 0.7, noise=0.01), ran(C, 2.0), failed(plan("d")), PlanResult(plan("e"), ())]
    )
    assert (found.outcome, found.exit_code) == ("chosen", 0)
    assert found.winner is not None
    assert found.runner_up is not None
    assert (found.winner.plan, found.runner_up.plan) == (B, A)
    assert [r.plan.model for r in found.ranked] == ["b", "a", "c", "d", "e"]
    reasons = {p.model: r.reason for p, r in by_plan(found).items()}
    assert reasons["b"] == "meets p50<=1500ms with the lowest latency"
    assert reasons["a"].startswith("1.42x the winner's latency [1.4")
    assert reasons["c"].startswith("misses p50<=1500ms by 34%")
    assert reasons["d"] == "crashed: killed by signal 9"
    assert reasons["e"] == "not measured yet"
    assert by_plan(found)[plan("d")].eligible is False


def test_a_tie_goes_to_the_lower_memory_and_says_so() -> None:
    found = pick(
        [ran(A, 1.0, peak=900 * 10**6), ran(B, 1.01, peak=300 * 10**6, noise=0.02), ran(C, 1.4, peak=10 * MIB)]
    )
    assert found.winner is not None
    assert found.winner.plan == B
    assert "ties with a/fake" in found.tie
    assert "lower peak memory, 300 MB against 900 MB" in found.tie
    assert by_plan(found)[A].reason.startswith("ties with the winner, ")


def test_a_difference_of_more_than_three_percent_is_no_tie() -> None:
    found = pick([ran(A, 1.0, peak=900 * MIB), ran(B, 1.05, peak=300 * MIB)])
    assert found.winner is not None
    assert found.winner.plan == A
    assert found.tie == ""


def test_a_wide_interval_is_no_tie_but_a_note() -> None:
    shaky = PlanResult(
        B, (measurement(B, [x * f for x, f in zip(SHAPE, [0.8, 1.3] * 4, strict=True)], peak_bytes=MIB),)
    )
    found = pick([ran(A, 1.0), shaky])
    assert found.winner is not None
    assert found.winner.plan == A
    assert found.tie == ""
    assert len(found.notes) == 1
    assert "is not distinguished from a/fake" in found.notes[0]


def test_memory_and_cost_can_be_minimised_instead() -> None:
    quick, small = ran(plan("quick", threads=2), 0.5, peak=2**30), ran(plan("small"), 1.2, peak=2**20)
    assert [pick([quick, small], minimize=m).winner for m in ("latency", "memory", "cost")] == [
        pick([quick, small]).ranked[0],
        pick([quick, small], minimize="memory").ranked[1],
        pick([quick, small], minimize="cost").ranked[1],
    ]
    beaten = pick([quick, small], minimize="memory").ranked[0]
    assert beaten.reason == "memory 1024.00x the winner's (1.07 GB against 1.05 MB)"
    with pytest.raises(SLAError, match="cannot minimize 'joy'"):
        pick([quick], minimize="joy")


def test_when_none_meets_the_nearest_is_named_and_not_chosen() -> None:
    found = pick([ran(A, 3.0), ran(B, 1.68), failed(C)])
    assert (found.outcome, found.exit_code, found.winner, found.runner_up) == ("none_meets", 3, None, None)
    assert found.nearest is not None
    assert found.nearest.ranked.plan == B
    assert found.nearest.excess == pytest.approx(0.12, abs=0.01)
    assert "misses p50<=1500ms by 12%" in found.nearest.text
    (limit,) = found.nearest.feasible
    again = pick([ran(A, 3.0), ran(B, 1.68)], limit)
    assert again.winner is not None
    assert again.winner.plan == B


def test_the_nearest_is_judged_by_its_worst_miss() -> None:
    big, slow = ran(A, 1.0, peak=3 * 10**9), ran(B, 1.68, peak=10**8)
    found = pick([big, slow], "p50<=1500ms", "peak_rss<=1GB")
    assert found.nearest is not None
    assert found.nearest.ranked.plan == B


def test_the_nearest_is_named_although_another_constraint_is_undecided() -> None:
    found = pick([ran(A, 3.0), ran(B, 1.68)], "p50<=1500ms", "p95<=1min")
    assert found.nearest is not None
    assert found.nearest.ranked.plan == B
    assert found.nearest.text.endswith("undecided on p95<=1min: 8 requests cannot bound it, 59 can")


@settings(max_examples=50)
@given(st.lists(st.floats(1e-4, 1e4), min_size=5, max_size=20))
def test_the_limit_that_is_said_to_be_within_reach_is(values: list[float]) -> None:
    result = PlanResult(A, (measurement(A, values),))
    found = pick([result], f"p50<={min(values) / 2!r}s")
    assert found.nearest is not None
    assert pick([result], *found.nearest.feasible).winner is not None


def test_where_every_request_was_disturbed_more_of_them_are_no_remedy() -> None:
    found = pick([PlanResult(A, (measurement(A, [1.0] * 6, disturbed=range(6)),))])
    assert (found.outcome, found.exit_code) == ("undecided", 4)
    assert "each of the 6 requests was disturbed by what else ran on the machine" in found.settle
    assert "end what runs beside it" in found.settle
    assert "more request" not in found.settle


def test_undecided_says_what_would_settle_it() -> None:
    found = pick([PlanResult(A, (measurement(A, [1.0] * 4),)), ran(B, 3.0)])
    assert (found.outcome, found.exit_code, found.winner) == ("undecided", 4, None)
    assert "1 more request would settle it (1 more round)" in found.settle
    assert found.nearest is None


def test_a_plan_still_to_be_measured_leaves_the_outcome_open() -> None:
    found = pick([ran(A, 3.0), PlanResult(B, ())])
    assert (found.outcome, found.exit_code) == ("undecided", 4)
    assert "1 not measured yet" in found.settle


def test_with_nothing_measured_nothing_is_chosen() -> None:
    assert (pick([failed(A)]).outcome, pick([failed(A)]).exit_code) == ("nothing_measured", 3)
    assert (pick([]).outcome, pick([]).exit_code) == ("nothing_measured", 3)
    waiting = pick([failed(A), PlanResult(B, ())])
    assert (waiting.outcome, waiting.exit_code, waiting.settle) == ("nothing_measured", 4, "1 not measured yet")


def test_a_plan_that_failed_in_a_later_round_is_never_chosen() -> None:
    flaky = PlanResult(A, (measurement(A, SHAPE), measurement(A, status="crashed", reason="gone", round=2)))
    found = pick([flaky, ran(B, 1.4)])
    assert found.winner is not None
    assert found.winner.plan == B
    assert [r.plan for r in found.ranked] == [B, A]  # though its p50 is the lower


def test_an_undecided_plan_that_looks_better_is_noted() -> None:
    found = pick([ran(A, 1.0), PlanResult(B, (measurement(B, [0.1] * 4),))])
    assert found.winner is not None
    assert found.winner.plan == A
    assert any("b/fake/fp32/t1/kv has the lower latency, but is undecided" in note for note in found.notes)


def test_the_front_holds_what_nothing_else_beats_in_both() -> None:
    found = pick([ran(A, 1.0, peak=50), ran(B, 0.5, peak=100), ran(C, 1.1, peak=60), ran(plan("d"), 9.0, peak=10)])
    assert [r.plan.model for r in found.pareto] == ["b", "a", "d"]


PLANS = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0.5, 0.9, 1.0, 1.1, 1.6, 3.0]), max_size=10),
        st.sampled_from([None, MIB, 100 * MIB, 1000 * MIB]),
        st.sampled_from(["ok", "ok", "ok", "crashed", "interrupted"]),
        st.sets(st.integers(0, 9), max_size=3),
        st.sets(st.integers(0, 9), max_size=3),
    ),
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(
    plans=PLANS,
    sla=st.sampled_from([["p50<=1s"], ["p50<=2s", "peak_rss<=200MB"], ["ttft<=1s", "p95<=4s"], ["tokens_per_s>=4"]]),
    minimize=st.sampled_from(["latency", "memory", "cost"]),
)
def test_only_a_plan_that_meets_is_ever_chosen(
    plans: list[tuple[list[float], int | None, str, set[int], set[int]]], sla: list[str], minimize: str
) -> None:
    found = []
    for i, (latencies, peak, status, cut, disturbed) in enumerate(plans):
        p = plan(f"m{i}")
        one = measurement(p, latencies, peak_bytes=peak, status=status, cut=cut, disturbed=disturbed)  # type: ignore[arg-type]
        found.append(PlanResult(p, (one,)))
    selection = pick(found, *sla, minimize=minimize)
    assert {r.plan for r in selection.ranked} == {r.plan for r in found}
    assert all(r.reason for r in selection.ranked)
    assert (selection.winner is not None) == (selection.outcome == "chosen") == (selection.exit_code == 0)
    if selection.winner is not None:
        assert selection.winner.result.status == "ok"
        assert {j.verdict for j in selection.winner.judgements} == {"meets"}
        assert selection.winner in selection.ranked
    if selection.outcome == "undecided":
        assert selection.settle
    shuffled = pick(found[::-1], *sla, minimize=minimize)
    assert (shuffled.outcome, shuffled.winner and shuffled.winner.plan) == (
        selection.outcome,
        selection.winner and selection.winner.plan,
    )


# --- contenders ------------------------------------------------------------------------------------------------------


def still(found: Sequence[PlanResult], *sla: str, minimize: str = "latency") -> list[str]:
    objective = Objective(minimize)  # type: ignore[arg-type]
    return [p.model for p in contenders(found, parse_sla(sla or ["p50<=1500ms"]), objective, PRICES, 2)]


def test_contenders_leave_out_the_failed_the_missing_and_the_clearly_slower() -> None:
    found = [ran(A, 1.0), ran(B, 1.08), ran(C, 1.3), ran(plan("d"), 3.0), failed(plan("e")), PlanResult(plan("f"), ())]
    assert still(found) == ["a", "b", "f"]


def test_everything_that_might_meet_is_a_contender_until_something_does() -> None:
    assert still([PlanResult(p, (measurement(p, [t] * 3),)) for p, t in ((A, 1.0), (B, 1.4), (C, 9.0))]) == [
        "a",
        "b",
        "c",
    ]


def test_few_pairs_drop_a_plan_only_when_it_is_far_slower() -> None:
    found = [PlanResult(p, (measurement(p, [t] * 5),)) for p, t in ((A, 0.5), (B, 0.7), (C, 0.8))]
    assert still(found) == ["a", "b"]


def test_memory_contenders_are_within_a_tenth_of_the_smallest_that_meets() -> None:
    found = [ran(A, 1.0, peak=100 * MIB), ran(B, 0.5, peak=109 * MIB), ran(C, 0.1, peak=111 * MIB)]
    assert still(found, minimize="memory") == ["a", "b"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.5, 3.0), min_size=1, max_size=6), st.sampled_from(["latency", "memory", "cost"]))
def test_the_chosen_plan_is_always_a_contender(medians: list[float], minimize: str) -> None:
    found = [ran(plan(f"m{i}"), t, peak=(i + 1) * MIB, noise=0.05) for i, t in enumerate(medians)]
    winner = pick(found, minimize=minimize).winner
    assert winner is None or winner.plan.model in still(found, minimize=minimize)


def test_what_meets_as_far_as_it_was_looked_at_is_open_and_no_miss() -> None:
    look = replace(measurement(A, [1.0, 1.01]), look=True)
    found = pick([PlanResult(A, (look,)), ran(B, 1.0, peak=9000 * MIB)], "peak_rss<=2GB")
    assert {r.plan: r.verdict for r in found.ranked} == {A: "meets", B: "misses"}
    assert (found.outcome, found.exit_code) == ("undecided", 4)
    assert found.settle == "1 was only looked at, which chooses none: measure on"


def test_what_looks_alone_ruled_out_is_no_miss_until_one_is_shown() -> None:
    look = replace(measurement(A, [1.6, 1.7], cut=[0, 1]), look=True)
    ruled_out = PlanResult(A, (look,), "ruled out by a look: all 2 requests are beyond p50<=1500ms")
    found = pick([ruled_out])
    assert (found.outcome, found.exit_code) == ("undecided", 4)
    assert found.settle == "1 was ruled out by a look, which shows no miss: measure on"
    shown = pick([ruled_out, ran(B, 1.9, rounds=6)])
    assert (shown.outcome, shown.exit_code) == ("none_meets", 3)
    assert shown.nearest is not None
    assert shown.nearest.ranked.plan == B


def test_what_is_not_shown_of_processes_to_come_gives_way_and_says_so() -> None:
    certain, faster = ran(A, 0.5, rounds=6), ran(B, 0.4, rounds=5)
    found = pick([certain, faster])
    assert found.winner is not None
    assert found.winner.plan == A
    assert found.runner_up is not None
    assert found.runner_up.plan == B
    why = found.runner_up.reason
    assert why == (
        "meets p50<=1500ms in the 5 processes seen, p50 0.80x the winner's; not shown of processes to come, which "
        "takes 1 more at the least"
    )
    assert any(note.startswith(f"{B} has the lower latency, but meets p50<=1500ms in the 5") for note in found.notes)


def test_nothing_is_noted_of_a_plan_that_was_only_looked_at() -> None:
    look = replace(measurement(B, [0.3, 0.31], cut=[0, 1]), look=True)
    found = pick([ran(A, 0.5, rounds=6), PlanResult(B, (look,), "ruled out by a look: at least 1.23x the latency")])
    assert found.notes == ()
    open_one = pick([ran(A, 0.5, rounds=6), PlanResult(B, (look,))])
    assert open_one.notes == ()
    assert by_plan(open_one)[B].reason == "only looked at, which rules plans out and chooses none"


def test_a_process_beyond_the_limit_is_outweighed_by_as_many_as_a_claim_about_others_takes() -> None:
    def one_slow(processes: int) -> PlanResult:
        runs = (measurement(A, [x * (1.0 + (i == 1)) for x in SHAPE], round=i) for i in range(1, processes + 1))
        return PlanResult(A, tuple(runs))

    assert verdict(one_slow(11), "p50<=1500ms").verdict == "undecided"
    assert verdict(one_slow(12), "p50<=1500ms").verdict == "meets"
