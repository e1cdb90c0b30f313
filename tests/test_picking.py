"""Picking: which plan is looked at next, at random or as Optuna suggests, and that a resumed search goes on alike."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import pytest

from factories import MIB, measurement
from inferplan.cost import Prices
from inferplan.errors import InputError
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.search import Proposal
from inferplan.search.picking import FIRST, Kind, optuna_pick
from inferplan.search.racing import Pick, Racing
from inferplan.selection import SLA, Objective, parse_sla

ENGINES = ("a", "b", "c")
SECONDS = {"a": 4.0, "b": 2.0, "c": 2.5}
MEMORY = {"a": 100, "b": 200, "c": 300}  # MiB
# Turn by turn an engine each, so that none of them has the first looks to itself. There is no c at int4.
PLANS = [
    Plan("tiny", engine, precision, threads, kv_cache)
    for precision, threads, kv_cache, engine in product(("fp32", "int8", "int4"), (1, 2, 4), (True, False), ENGINES)
    if (engine, precision) != ("c", "int4")
]
FEW = [plan for plan in PLANS if plan.threads < 4 and plan.kv_cache]
LOOSE, STRICT = SLA.from_p50_ms(60_000), SLA.from_p50_ms(2_700)
Look = Callable[[Plan], Measurement]


def look(plan: Plan) -> Measurement:
    """Two requests; more threads are faster, and the more bits the slower."""
    factor = {1: 1.0, 2: 0.8, 4: 0.9}[plan.threads] * {"fp32": 1.05, "int8": 1.0, "int4": 0.95}[plan.precision]
    seconds = SECONDS[plan.engine] * factor * (1.0 if plan.kv_cache else 1.02)
    peak_bytes = (MEMORY[plan.engine] + plan.threads) * MIB
    return replace(measurement(plan, [seconds, 1.01 * seconds], peak_bytes=peak_bytes), look=True)


def never_runs(engine: str) -> Look:
    """As `look`, but the plans of one engine crash."""

    def made(plan: Plan) -> Measurement:
        if plan.engine != engine:
            return look(plan)
        return replace(measurement(plan, status="crashed", reason="gone"), look=True)

    return made


def asked(
    kind: Kind, seed: int = 0, plans: Sequence[Plan] = PLANS, sla: SLA = LOOSE, objective: str = "latency"
) -> Pick:
    metric = {"latency": Objective("latency"), "memory": Objective("memory"), "cost": Objective("cost")}[objective]
    return optuna_pick(kind, plans, sla, metric, Prices(), 2, seed)


def play(pick: Pick, plans: Sequence[Plan], made: Look = look, stop: int = 1000) -> list[Measurement]:
    """What is told when every plan that was not looked at waits, in the order of `plans`."""
    told: list[Measurement] = []
    while len(told) < stop:
        waiting = [plan for plan in plans if plan not in {m.plan for m in told}]
        plan = pick(waiting, told)
        if plan is None:
            assert not waiting
            break
        assert plan in waiting
        told.append(made(plan))
    return told


def share(told: Sequence[Measurement], engine: str) -> float:
    """Of the plans that were picked after the first ones, how many are of this engine."""
    later = [m.plan for m in told[FIRST:]]
    return sum(plan.engine == engine for plan in later) / len(later)


def mean_share(kind: Kind, engine: str, sla: SLA, objective: str, made: Look = look) -> float:
    """Over ten seeds, of six picks each: few enough that what is liked is not used up."""
    shares = [
        share(play(asked(kind, seed, sla=sla, objective=objective), PLANS, made, FIRST + 6), engine)
        for seed in range(10)
    ]
    return sum(shares) / len(shares)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_every_waiting_plan_is_picked_once_and_the_first_ones_in_their_order(name: Kind) -> None:
    told = play(asked(name, plans=FEW), FEW)
    assert [m.plan for m in told[:FIRST]] == FEW[:FIRST]
    assert len(told) == len(FEW) > FIRST + 4
    assert {m.plan for m in told} == set(FEW)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_the_pick_follows_from_what_was_told_alone(name: Kind) -> None:
    whole = play(asked(name), PLANS, stop=FIRST + 8)
    assert whole == play(asked(name), PLANS, stop=FIRST + 8)
    one = asked(name)
    for stop in (FIRST + 6, FIRST + 1, FIRST + 7, 3):  # forth and back: nothing of a later look may be left
        told = whole[:stop]
        waiting = [plan for plan in PLANS if plan not in {m.plan for m in told}]
        assert one(waiting, told) == whole[stop].plan
        assert asked(name)(waiting, told) == whole[stop].plan
        gone = replace(look(waiting[0]), status="interrupted")
        final = replace(look(whole[0].plan), look=False, round=3)
        heat = replace(look(whole[0].plan), round=2)
        assert one(waiting, [gone, *told, final, heat]) == whole[stop].plan


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_another_seed_is_another_order(name: Kind) -> None:
    orders = {tuple(m.plan for m in play(asked(name, seed), PLANS, stop=FIRST + 6)) for seed in range(3)}
    assert len(orders) == 3


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_only_waiting_plans_are_picked_however_few_they_are(name: Kind) -> None:
    pick = asked(name)
    told = play(pick, PLANS, stop=FIRST + 2)
    left = [plan for plan in PLANS if plan not in {m.plan for m in told}]
    assert pick(left[:2], told) in left[:2]
    assert pick(left[-1:], told) == left[-1]
    assert pick([], told) is None
    assert pick([], []) is None


def test_tpe_suggests_what_is_fast() -> None:
    assert mean_share("tpe", "b", LOOSE, "latency") > 0.6  # 3 of 8 plans are of that engine


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_an_engine_that_misses_the_sla_is_suggested_less_often_however_little_memory_it_takes(kind: Kind) -> None:
    free = mean_share(kind, "a", LOOSE, "memory")
    held = mean_share(kind, "a", parse_sla(["p50<=2700ms", "peak_rss<=1GB"]), "memory")
    assert held < free / 2


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_an_engine_that_fails_is_suggested_less_often(kind: Kind) -> None:
    running = mean_share(kind, "b", LOOSE, "latency")
    assert mean_share(kind, "b", LOOSE, "latency", never_runs("b")) < running / 2


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_requests_that_were_cut_short_count_as_a_miss(kind: Kind) -> None:
    def cut(plan: Plan) -> Measurement:
        if plan.engine != "a":
            return look(plan)
        return replace(measurement(plan, [2.7, 2.7], cut=[0, 1], peak_bytes=MIB), look=True)

    assert mean_share(kind, "a", STRICT, "memory", cut) < 0.25


@pytest.mark.parametrize("kind", ["tpe", "nsga2"])
def test_a_cost_is_minimised_too_and_a_missing_figure_is_no_error(kind: Kind) -> None:
    def made(plan: Plan) -> Measurement:
        return replace(look(plan), memory=None) if plan.threads == 2 else look(plan)

    told = play(asked(kind, objective="cost"), PLANS, made, FIRST + 5)
    assert len({m.plan for m in told}) == FIRST + 5


def test_options_are_axes_and_one_that_a_plan_leaves_alone_is_a_value_too() -> None:
    options: Mapping[str, tuple[tuple[str, bool | int], ...]] = {"none": (), "on": (("x", True),), "one": (("x", 1),)}
    plans = [Plan("tiny", "b", "fp32", threads, options=of) for threads, of in product(range(1, 7), options.values())]

    def made(plan: Plan) -> Measurement:
        seconds = 1.0 if plan.options == (("x", 1),) and plan.option("x", 0) is not True else 2.0
        return replace(measurement(plan, [seconds, seconds]), look=True)

    told = play(asked("tpe", plans=plans), plans, made)
    assert {m.plan for m in told} == set(plans)


def test_plans_of_another_space_are_passed_over() -> None:
    pick = asked("tpe", plans=FEW)
    told = play(pick, FEW, stop=FIRST + 1)
    strangers = [look(Plan("tiny", engine, "fp32", 4, False)) for engine in ENGINES]
    waiting = [plan for plan in FEW if plan not in {m.plan for m in told}]
    assert pick(waiting, [*strangers, *told]) == asked("tpe", plans=FEW)(waiting, told)


def test_without_optuna_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"the strategy tpe needs Optuna.*pip install inferplan\[optuna\]"):
        asked("tpe")


def test_optuna_says_nothing_and_its_own_verbosity_is_left_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    from optuna import logging as theirs

    before = theirs.get_verbosity()
    theirs.set_verbosity(logging.DEBUG)
    try:
        play(asked("nsga2"), PLANS, stop=FIRST + 2)
        assert theirs.get_verbosity() == logging.DEBUG
    finally:
        theirs.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_race_with_a_pick_looks_at_every_plan_and_confirms_the_fastest_also_when_resumed(name: Kind) -> None:
    def race(done: Sequence[Measurement] = ()) -> Racing:
        pick = asked(name, plans=FEW)
        return Racing(
            FEW, LOOSE, Objective("latency"), Prices(), 2, prompts=2, look_at=(0, 1), pick=pick, done=list(done)
        )

    def to_the_end(search: Racing) -> list[tuple[Proposal, Measurement]]:
        found: list[tuple[Proposal, Measurement]] = []
        while (proposal := search.ask()) is not None:
            found.append((proposal, replace(look(proposal.plan), look=proposal.look, round=proposal.round)))
            search.tell(found[-1][1])
        return found

    whole = to_the_end(race())
    assert {proposal.plan for proposal, _ in whole if proposal.look} == set(FEW)
    assert whole[-1][0].plan == min(FEW, key=lambda plan: look(plan).samples[0].latency_s)
    stop = FIRST + 3
    rest = to_the_end(race([m for _, m in whole[:stop]]))
    assert [proposal for proposal, _ in rest] == [proposal for proposal, _ in whole[stop:]]
