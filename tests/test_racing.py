"""Racing: who is looked at, who is ruled out and why, and what confirms the winner."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import MIB, measurement, plan
from inferplan.cost import Prices
from inferplan.errors import InputError
from inferplan.measurement import Measurement
from inferplan.plan import Plan
from inferplan.predict import Prediction, Range
from inferplan.result import results
from inferplan.search import Proposal
from inferplan.search.limits import Limits
from inferplan.search.racing import HEATS, Pick, Predict, Racing
from inferplan.selection import SLA, Objective, Selection, choose, parse_sla
from inferplan.sequential import processes_needed
from inferplan.stats import MIN_PROCESSES

SHAPE = [1.0, 1.02, 0.98, 1.01, 0.99, 1.03, 0.97, 1.005]  # of the requests of one process
LOOK_AT = (0, 4)
PLANS = [plan("a"), plan("a", 2), plan("b"), plan("b", 2), plan("c"), plan("c", 2)]
SPEED = dict(zip(PLANS, [1.0, 1.05, 2.0, 1.12, 1.4, 0.9], strict=True))
SLA_1500 = SLA.from_p50_ms(1500)


class World:
    """Plans that take what `speed` says, in every process and beside every other.

    Args:
        slow: by plan and round, how many times as long that process takes.
    """

    def __init__(
        self,
        speed: Mapping[Plan, float] = SPEED,
        peak_bytes: Mapping[Plan, int] | None = None,
        fails: Mapping[Plan, int] | None = None,
        wall_s: float = 1.0,
        slow: Mapping[tuple[Plan, int], float] | None = None,
    ) -> None:
        self.speed, self.peak_bytes, self.fails = speed, peak_bytes or {}, fails or {}
        self.wall_s, self.slow = wall_s, slow or {}

    def run(self, asked: Proposal) -> Measurement:
        """One process: the requests that were asked for, cut where they were to be cut."""
        if asked.round >= self.fails.get(asked.plan, 10**9):
            gone = measurement(asked.plan, status="crashed", reason="gone", round=asked.round)
            return replace(gone, look=asked.look)
        places = range(len(SHAPE)) if asked.prompts is None else asked.prompts
        speed = self.speed[asked.plan] * self.slow.get((asked.plan, asked.round), 1.0)
        whole = [speed * SHAPE[place] for place in places]
        limit = math.inf if asked.cut_after_s is None else asked.cut_after_s
        found = measurement(
            asked.plan,
            [min(latency, limit) for latency in whole],
            cut=[i for i, latency in enumerate(whole) if latency > limit],
            round=asked.round,
            peak_bytes=self.peak_bytes.get(asked.plan, 100 * MIB),
        )
        samples = tuple(replace(sample, index=place) for sample, place in zip(found.samples, places, strict=True))
        return replace(found, samples=samples, look=asked.look, wall_s=self.wall_s)


def race(
    plans: Sequence[Plan] = PLANS,
    sla: SLA = SLA_1500,
    *,
    objective: Objective | None = None,
    predict: Predict | None = None,
    pick: Pick | None = None,
    limits: Limits | None = None,
    memory_bytes: float = math.inf,
    done: Sequence[Measurement] = (),
) -> Racing:
    return Racing(
        plans,
        sla,
        objective or Objective("latency"),
        Prices(),
        2,
        prompts=len(SHAPE),
        look_at=LOOK_AT,
        predict=predict,
        pick=pick,
        memory_bytes=memory_bytes,
        limits=limits or Limits(),
        done=done,
    )


def expecting(
    latency_s: Mapping[Plan, float], spread: float = 1.2, peak_bytes: Mapping[Plan, int] | None = None
) -> Predict:
    """The same expectation always: `latency_s`, give or take the factor `spread`."""

    def made(of: Plan) -> Prediction:
        def around(value: float) -> Range:
            return Range(value / spread, value, value * spread)

        seconds = latency_s[of]
        return Prediction(
            of,
            around(seconds),
            around(seconds / 10),
            around(seconds / 8),
            around(float((peak_bytes or {}).get(of, 100 * MIB))),
            around(1.0),
            64.0,
            "weights",
            "a test",
        )

    return lambda told: {of: made(of) for of in latency_s}


def play(search: Racing, world: World, stop: int = 2000) -> list[tuple[Proposal, Measurement]]:
    told: list[tuple[Proposal, Measurement]] = []
    while len(told) < stop and (asked := search.ask()) is not None:
        told.append((asked, world.run(asked)))
        search.tell(told[-1][1])
    return told


def chosen(search: Racing, told: Sequence[tuple[Proposal, Measurement]], sla: SLA = SLA_1500) -> Selection:
    found = results(PLANS, [m for _, m in told], search.left_out)
    return choose(found, sla, Objective("latency"), Prices(), 2)


def finals(told: Sequence[tuple[Proposal, Measurement]]) -> list[Proposal]:
    return [asked for asked, _ in told if not asked.look]


def test_without_a_prediction_every_plan_is_looked_at_and_the_fastest_is_confirmed_in_six_processes() -> None:
    search = race()
    told = play(search, World())
    looks = [asked for asked, _ in told if asked.look and asked.round == 1]
    assert {asked.plan for asked in looks} == set(PLANS)
    assert {asked.prompts for asked in looks} == {LOOK_AT}
    selection = chosen(search, told)
    assert selection.outcome == "chosen"
    assert selection.winner is not None
    assert selection.winner.plan == PLANS[5]
    assert selection.winner.result.processes == MIN_PROCESSES
    assert not any(m.look for m in selection.winner.result.ok_measurements)


def test_the_finalists_take_turns_and_the_prompts_come_in_another_order_each_round() -> None:
    close = {**SPEED, PLANS[0]: 0.91, PLANS[1]: 1.2, PLANS[3]: 0.92}
    asked = finals(play(race(), World(close)))
    by_round: dict[int, list[Proposal]] = {}
    for one in asked:
        by_round.setdefault(one.round, []).append(one)
    assert [len(group) for group in by_round.values()] == [3] * MIN_PROCESSES
    assert len({group[0].prompts for group in by_round.values()}) == MIN_PROCESSES
    for group in by_round.values():
        assert len({one.prompts for one in group}) == 1  # pairs of a round have the same neighbours
        assert len({one.plan for one in group}) == 3
    assert len({group[0].plan for group in by_round.values()}) > 1


def test_a_plan_that_cannot_win_even_at_its_optimistic_end_is_never_started() -> None:
    search = race(predict=expecting(SPEED))
    told = play(search, World())
    started = {asked.plan for asked, _ in told}
    assert started == {PLANS[5], PLANS[0], PLANS[1]}  # 0.9, and what may be as fast: 1.0 and 1.05 over 1.2
    assert told[0][0].plan == PLANS[5]  # the most promising first
    why = search.left_out[PLANS[4]]
    assert why.startswith("not started: predicted latency 1.40 s (1.17 s to 1.68 s), 1.30x at the least of the ")
    assert str(PLANS[5]) in why
    row = next(r for r in chosen(search, told).ranked if r.plan == PLANS[4])
    assert (row.result.status, row.reason) == ("waiting", why)
    assert row.p50_s is None  # a prediction is never shown as a measurement


def test_who_picks_is_asked_for_each_look_and_offered_only_plans_that_have_a_chance() -> None:
    offered: list[list[Plan]] = []

    def last(waiting: Sequence[Plan], told: Sequence[Measurement]) -> Plan | None:
        offered.append(list(waiting))
        return waiting[-1] if len(told) < 2 else None

    told = play(race(predict=expecting(SPEED, spread=1.1), pick=last), World())
    able = [p for p in PLANS if SPEED[p] / 1.1 <= 1.5]
    assert offered[0] == sorted(able, key=lambda p: SPEED[p])  # the most promising first
    assert [asked.plan for asked, _ in told[:2]] == [offered[0][-1], offered[1][-1]]
    assert all(SPEED[p] / 1.1 < SPEED[told[0][0].plan] * 1.1 for p in offered[1])
    assert {asked.plan for asked in finals(told)} <= {told[0][0].plan, told[1][0].plan}


def around(value: float, spread: float) -> Range:
    return Range(value / spread, value, value * spread)


def looked_at(objective: Objective, expected: Mapping[Plan, Prediction], world: World) -> list[Plan]:
    """The plans of a race in the order in which it looked at them."""
    told = play(race(list(expected), objective=objective, predict=lambda told: expected), world)
    return [asked.plan for asked, _ in told if asked.look and asked.round == 1]


def test_of_two_plans_that_may_be_better_the_one_that_may_be_much_better_is_looked_at_first() -> None:
    first, sure, unsure = PLANS[:3]
    expected = dict(expecting({first: 0.5, sure: 0.98, unsure: 1.0})([]))
    expected[first] = replace(expected[first], latency_s=around(0.5, 1.01))
    expected[sure] = replace(expected[sure], latency_s=around(0.98, 1.01))
    expected[unsure] = replace(expected[unsure], latency_s=around(1.0, 2.0))
    world = World({first: 1.0, sure: 0.98, unsure: 0.8})
    assert looked_at(Objective("latency"), expected, world) == [first, unsure]  # which leaves the other no chance


def test_each_engine_is_looked_at_once_before_what_one_showed_puts_another_off() -> None:
    engines = [replace(plan("a", threads), engine=name) for name in ("e1", "e2", "e3") for threads in (1, 2)]
    before = dict(zip(engines, [1.0, 1.02, 1.2, 1.1, 1.4, 1.3], strict=True))
    after = {one: seconds * (1.0 if one.engine == "e1" else 1.3) for one, seconds in before.items()}
    first, then = expecting(before, spread=3.0), expecting(after, spread=3.0)
    told = play(race(engines, predict=lambda told: then(told) if told else first(told)), World(before))
    looks = [asked.plan for asked, _ in told if asked.look and asked.round == 1]
    assert looks[:4] == [engines[place] for place in (0, 3, 5, 1)]  # the best of each, then the most promising


def test_an_engine_without_a_chance_is_not_opened_with() -> None:
    fast, slow = replace(plan("a"), engine="e1"), replace(plan("a"), engine="e2")
    told = play(race([slow, fast], predict=expecting({fast: 1.0, slow: 2.0})), World({fast: 1.0, slow: 2.0}))
    assert {asked.plan for asked, _ in told} == {fast}


def test_a_plan_of_which_nothing_is_predicted_is_looked_at_after_the_others_that_have_a_chance() -> None:
    expected = expecting({PLANS[1]: 1.1, PLANS[2]: 1.0})([])
    told = play(race(PLANS[:3], predict=lambda told: expected), World({PLANS[0]: 1.0, PLANS[1]: 1.05, PLANS[2]: 1.02}))
    assert [asked.plan for asked, _ in told if asked.look and asked.round == 1] == [PLANS[2], PLANS[1], PLANS[0]]


def test_a_plan_that_will_hardly_meet_the_sla_is_not_looked_at_first_for_its_memory() -> None:
    slow, fast, middle = PLANS[:3]
    memory = {slow: 100 * MIB, fast: 120 * MIB, middle: 110 * MIB}
    expected = expecting({slow: 1.7, fast: 0.5, middle: 1.5}, spread=1.2, peak_bytes=memory)([])
    world = World({slow: 1.4, fast: 0.5, middle: 1.6}, memory)
    assert looked_at(Objective("memory"), expected, world) == [fast, middle, slow]
    cheap = looked_at(Objective("cost"), expecting({slow: 1.7, fast: 1.6, middle: 1.0}, peak_bytes=memory)([]), world)
    assert cheap[0] == middle


def test_a_wrong_prediction_is_found_out_by_looking() -> None:
    wrong = {**SPEED, PLANS[5]: 1.3, PLANS[2]: 0.8}  # b/t1 is expected to win, and is the slowest
    search = race(predict=expecting(wrong, spread=2.0))
    told = play(search, World())
    winner = chosen(search, told).winner
    assert winner is not None
    assert winner.plan == PLANS[5]


def test_a_request_that_cannot_win_any_more_is_ended() -> None:
    told = play(race(predict=expecting(SPEED, spread=4.0)), World())
    assert told[0][0].cut_after_s == pytest.approx(1.25 * 1.5)  # beyond the SLA's limit by far; no best is known
    slow = next((asked, m) for asked, m in told if asked.plan == PLANS[2])
    assert slow[0].cut_after_s == pytest.approx(1.5 * 0.9, rel=0.05)
    assert all(sample.cut for sample in slow[1].samples)


def test_a_plan_ruled_out_by_a_look_says_so_with_its_figure() -> None:
    search = race()
    selection = chosen(search, play(search, World()))
    by_plan = {r.plan: r for r in selection.ranked}
    assert by_plan[PLANS[4]].reason.startswith("ruled out by a look at 2 requests: ")
    assert "1.5" in by_plan[PLANS[4]].reason
    assert by_plan[PLANS[4]].verdict != "misses"


def test_what_cannot_fit_or_cannot_meet_the_sla_is_not_started() -> None:
    peaks = dict.fromkeys(PLANS, 100 * MIB) | {PLANS[5]: 5000 * MIB}
    search = race(predict=expecting(SPEED, peak_bytes=peaks), memory_bytes=1000 * MIB)
    told = play(search, World())
    assert PLANS[5] not in {asked.plan for asked, _ in told}
    assert "predicted peak memory" in search.left_out[PLANS[5]]
    strict = parse_sla(["p50<=1500ms", "ttft<=50ms"])
    search = race(sla=strict, predict=expecting(SPEED))
    assert search.ask() is None
    assert "predicted ttft" in search.left_out[PLANS[0]]
    assert len(search.left_out) == len(PLANS)


def test_when_nothing_meets_the_sla_it_says_so_and_stops() -> None:
    strict = SLA.from_p50_ms(500)
    search = race(sla=strict)
    told = play(search, World())
    assert len(told) == len(PLANS) + MIN_PROCESSES  # one shows by how much, whole and in as many as a verdict takes
    assert {asked.cut_after_s for asked in finals(told)} == {None}
    selection = chosen(search, told, strict)
    assert selection.outcome == "none_meets"
    assert selection.exit_code == 3
    assert selection.nearest is not None
    assert selection.nearest.excess > 0.25


def test_a_plan_whose_look_missed_by_little_is_tried_before_none_is_said_to_meet() -> None:
    slow_looks = {(PLANS[5], 1): 1.15, (PLANS[0], 1): 1.15}  # one process may be slow as a whole
    sla = SLA.from_p50_ms(950)
    search = race(sla=sla)
    told = play(search, World(slow=slow_looks))
    assert {asked.plan for asked in finals(told)} >= {PLANS[5]}
    winner = chosen(search, told, sla).winner
    assert winner is not None
    assert winner.plan == PLANS[5]
    assert winner.result.processes >= MIN_PROCESSES


@given(
    speeds=st.lists(st.floats(0.3, 3.0), min_size=len(PLANS), max_size=len(PLANS)),
    limit_s=st.floats(0.2, 2.0),
    slow=st.dictionaries(st.tuples(st.sampled_from(PLANS), st.just(1)), st.floats(1.0, 1.2), max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_that_none_meets_is_said_of_a_shown_miss_only_and_never_where_one_meets_by_far(
    speeds: list[float], limit_s: float, slow: dict[tuple[Plan, int], float]
) -> None:
    speed, sla = dict(zip(PLANS, speeds, strict=True)), SLA.from_p50_ms(1000 * limit_s)
    search = race(sla=sla)
    selection = chosen(search, play(search, World(speed, slow=slow)), sla)
    if selection.outcome == "none_meets":
        assert selection.nearest is not None
        assert selection.nearest.ranked.result.processes >= MIN_PROCESSES
        assert min(speeds) * max(SHAPE) > limit_s
    if min(speeds) * max(SHAPE) < limit_s:
        assert selection.outcome == "chosen"


def test_a_budget_that_ends_among_looks_that_missed_says_nothing_of_the_sla() -> None:
    strict = SLA.from_p50_ms(500)
    search = race(sla=strict, limits=Limits(processes=4))
    selection = chosen(search, play(search, World()), strict)
    assert (selection.outcome, selection.exit_code) == ("undecided", 4)
    assert search.unfinished


def test_a_first_token_that_is_far_too_late_ends_a_request() -> None:
    search = race(sla=parse_sla(["p50<=1500ms", "ttft<=80ms"]))
    asked = search.ask()
    assert asked is not None
    assert asked.cut_first_after_s == pytest.approx(1.25 * 0.08)
    assert asked.cut_after_s == pytest.approx(1.25 * 1.5)
    lenient = race().ask()
    assert lenient is not None
    assert lenient.cut_first_after_s is None


def test_what_only_a_limit_kept_from_the_final_is_not_called_beaten() -> None:
    search = race(limits=Limits(processes=15))
    told = play(search, World())
    assert search.unfinished
    assert {asked.plan for asked in finals(told)} == {PLANS[5]}
    assert search.left_out.keys() == {PLANS[2], PLANS[4]}  # the others are within 1.25 times of it
    done = race()
    play(done, World())
    assert not done.unfinished


def test_what_was_disturbed_rules_no_plan_out() -> None:
    search = race(predict=expecting(SPEED, spread=1.4))
    world, count = World(), 0
    while count < 60 and (asked := search.ask()) is not None:
        found = world.run(asked)
        noisy = tuple(replace(sample, disturbed=("something",)) for sample in found.samples)
        search.tell(replace(found, samples=noisy))
        count += 1
    assert count > len(PLANS) // 2
    assert search.left_out == {}


def test_a_finalist_that_fails_makes_way_for_the_next() -> None:
    search = race()
    told = play(search, World(fails={PLANS[5]: 4}))  # crashes in the second round of the final
    winner = chosen(search, told).winner
    assert winner is not None
    assert winner.plan == PLANS[0]
    assert winner.result.processes == MIN_PROCESSES


def test_a_finalist_that_is_slower_leaves_before_the_end() -> None:
    search = race()
    count = Counter(asked.plan for asked in finals(play(search, World({**SPEED, PLANS[0]: 0.96}))))
    assert count[PLANS[5]] == MIN_PROCESSES
    assert count[PLANS[0]] == 3


def believing_looks(latency_s: Mapping[Plan, float]) -> Predict:
    """Expects `latency_s` of a plan, and once it was looked at just what that showed."""

    def predict(told: Sequence[Measurement]) -> Mapping[Plan, Prediction]:
        shown = {m.plan: m.samples[0].latency_s for m in told}
        return expecting({**latency_s, **shown}, spread=1.4)(told)

    return predict


@pytest.mark.parametrize(("factor", "processes"), [(1.395, MIN_PROCESSES), (3.0, 2 * MIN_PROCESSES)])
def test_a_look_that_contradicts_what_all_others_let_expect_is_not_the_last(factor: float, processes: int) -> None:
    """One that is seen to its end and is within what processes differ by, and one that is cut."""
    world = World(slow={(PLANS[5], 1): factor})
    told = play(search := race(predict=believing_looks(SPEED)), world)
    assert [asked.round for asked, _ in told if asked.plan == PLANS[5]] == [1, 2, *range(5, 5 + processes)]
    assert (winner := chosen(search, told).winner) is not None
    assert winner.plan == PLANS[5]
    assert not any(m.look for m in winner.result.ok_measurements)


def test_a_look_that_shows_what_was_feared_is_the_last() -> None:
    expected = {**SPEED, PLANS[4]: 1.2}  # to be looked at, and 1.33 times what is expected of the best
    told = play(race(predict=believing_looks(expected)), World({**SPEED, PLANS[4]: 2.0}))
    assert [asked.round for asked, _ in told if asked.plan == PLANS[4]] == [1]


def test_of_the_memory_a_process_takes_none_is_unlucky() -> None:
    peaks = {PLANS[0]: 300 * MIB, PLANS[1]: 200 * MIB}
    predict = expecting(SPEED, peak_bytes=dict.fromkeys(PLANS[:2], 100 * MIB) | dict.fromkeys(PLANS[2:], 900 * MIB))
    told = play(race(objective=Objective("memory"), predict=predict), World(peak_bytes=peaks))
    assert [asked.round for asked, _ in told if asked.plan == PLANS[0]] == [1]


def test_a_plan_whose_processes_contradict_each_other_is_heated_again_and_the_final_is_longer() -> None:
    told = play(search := race(), World(slow={(PLANS[5], 2): 2.0}))
    assert [asked.round for asked, _ in told if asked.plan == PLANS[5] and asked.look] == [1, 2, 3]
    assert (winner := chosen(search, told).winner) is not None
    assert (winner.plan, winner.result.processes) == (PLANS[5], 2 * MIN_PROCESSES)
    told = play(search := race(), World(slow={(PLANS[5], 1): 0.8}))  # 0.9 is no contradiction of 0.72
    assert (winner := chosen(search, told).winner) is not None
    assert (winner.plan, winner.result.processes) == (PLANS[5], MIN_PROCESSES)


@pytest.mark.parametrize("rival", [1.4, 0.95])  # so that there is a heat, or none
def test_a_look_that_flattered_a_plan_counts_no_more_once_it_is_contradicted(rival: float) -> None:
    speed = {**SPEED, PLANS[5]: 1.8, PLANS[0]: 1.0, PLANS[4]: rival * 1.8}
    lucky = World(speed, slow={(PLANS[5], 1): 0.5, (PLANS[4], 1): 0.5})
    expected = {**speed, PLANS[5]: 0.9, PLANS[4]: 0.92, PLANS[0]: 1.15}  # not worth a look where one takes 0.9
    told = play(search := race(sla=SLA.from_p50_ms(3000), predict=expecting(expected, spread=1.25)), lucky)
    order = [asked.plan for asked, _ in told]
    assert order.index(PLANS[0]) > order.index(PLANS[5]) + HEATS
    assert (winner := chosen(search, told, SLA.from_p50_ms(3000)).winner) is not None
    assert winner.plan == PLANS[0]


def test_beside_a_neighbour_that_takes_turns_several_looks_are_doubted() -> None:
    """The best plan's only look falls into a turn, as those of the plans that it is expected by."""
    slow = {(PLANS[5], 1): 2.5, (PLANS[4], 1): 2.5, (PLANS[0], 2): 2.0, (PLANS[5], 2): 2.0}
    expected = {**SPEED, PLANS[4]: 1.0, PLANS[5]: 1.2}
    told = play(search := race(predict=believing_looks(expected)), World(slow=slow))
    heated = {asked.plan: asked.round for asked, _ in told if asked.look and asked.round > 1}
    assert (heated[PLANS[4]], heated[PLANS[5]]) == (4, 3)
    assert all(asked.cut_after_s for asked, _ in told if asked.plan == PLANS[5] and asked.look)
    assert (winner := chosen(search, told).winner) is not None
    assert winner.plan == PLANS[5]


class Disturbed(World):
    """Marks every request of some processes as disturbed, which takes twice as long."""

    def __init__(self, by: Sequence[tuple[Plan, int]]) -> None:
        super().__init__(slow=dict.fromkeys(by, 2.0))
        self.by = by

    def run(self, asked: Proposal) -> Measurement:
        """One process."""
        found = super().run(asked)
        if (asked.plan, asked.round) not in self.by:
            return found
        return replace(found, samples=tuple(replace(s, disturbed=("steal",)) for s in found.samples))


def test_a_process_without_an_undisturbed_request_is_repeated_and_contradicts_none() -> None:
    world = Disturbed([(PLANS[5], 1), (PLANS[5], 2), (PLANS[4], 1), (PLANS[4], 2), (PLANS[4], 3), (PLANS[4], 4)])
    expected = {**SPEED, PLANS[4]: 0.95}
    told = play(search := race(predict=believing_looks(expected)), world)
    looks = {p: [asked.round for asked, _ in told if asked.plan == p and asked.look] for p in PLANS[4:]}
    assert looks == {PLANS[4]: [1, 2, 3, 4], PLANS[5]: [1, 2, 3]}
    assert (winner := chosen(search, told).winner) is not None
    assert (winner.plan, winner.result.processes) == (PLANS[5], MIN_PROCESSES)


def test_a_tail_takes_more_processes_of_the_leader_alone() -> None:
    sla = parse_sla(["p95<=1500ms"])
    search = race(sla=sla)
    told = play(search, World({**SPEED, PLANS[0]: 0.905, PLANS[1]: 1.2, PLANS[3]: 1.2}))
    count = Counter(asked.plan for asked in finals(told))
    assert max(count.values()) == processes_needed(0.95)
    assert sorted(count.values())[:-1] == [MIN_PROCESSES]


def test_what_is_left_of_a_race_counts_the_processes_that_a_tail_takes() -> None:
    needed = processes_needed(0.95)
    search, world = race(sla=parse_sla(["p95<=1500ms"]), predict=expecting(SPEED)), World()
    assert search.remaining == len(PLANS) - 1 + needed  # one is predicted to miss
    left = []
    while (asked := search.ask()) is not None:
        search.tell(world.run(asked))
        left.append(search.remaining)
    assert left[-needed - 1 :] == [*range(needed, -1, -1)]
    assert min(left[:-needed]) == needed


def test_a_budget_keeps_time_for_the_processes_that_a_tail_takes_if_there_is_enough() -> None:
    many, sla, needed = [plan(f"m{i}") for i in range(60)], parse_sla(["p95<=2s"]), processes_needed(0.95)
    world = World({p: 1.0 + 0.01 * i for i, p in enumerate(many)})
    for processes, wanted in ((needed + 15, needed), (needed - 10, MIN_PROCESSES)):
        search = race(many, sla, limits=Limits(processes=processes))
        told = play(search, world)
        assert len(told) <= processes
        count = Counter(asked.plan for asked in finals(told))
        assert max(count.values()) >= wanted
        assert len({asked.plan for asked, _ in told}) > 3
    search = race(many, sla, limits=Limits(processes=needed + 15))
    winner = choose(results(many, [m for _, m in play(search, world)]), sla, Objective("latency"), Prices(), 2).winner
    assert winner is not None
    assert all(j.in_general is not None and j.in_general.verdict == "meets" for j in winner.judgements)


def test_the_lowest_memory_wins_when_memory_is_minimised() -> None:
    peaks = {p: (index + 2) * 100 * MIB for index, p in enumerate(PLANS)}
    search = race(objective=Objective("memory"), predict=expecting(SPEED, peak_bytes=peaks))
    told = play(search, World(peak_bytes=peaks))
    assert {asked.plan for asked in finals(told)} == {PLANS[0]}
    assert PLANS[5] not in {asked.plan for asked, _ in told}


def test_where_memory_is_minimised_a_slow_process_makes_the_final_no_longer() -> None:
    peaks = {p: (index + 2) * 100 * MIB for index, p in enumerate(PLANS)}
    slow = World(peak_bytes=peaks, slow={(PLANS[0], 6): 1.45})
    told = play(race(objective=Objective("memory"), predict=expecting(SPEED, peak_bytes=peaks)), slow)
    assert len(finals(told)) == MIN_PROCESSES
    slow = World(slow={(PLANS[5], 6): 1.45})
    assert len(finals(play(race(predict=expecting(SPEED)), slow))) > MIN_PROCESSES


def test_what_a_finalist_that_misses_had_ruled_out_is_looked_at_after_all() -> None:
    peaks = {p: (index + 1) * 100 * MIB for index, p in enumerate(PLANS)}
    world = World(dict.fromkeys(PLANS, 0.5) | {PLANS[0]: 0.99}, peak_bytes=peaks)  # two of its prompts take too long
    sla, memory = parse_sla(["p95<=1s"]), Objective("memory")
    search = race(sla=sla, objective=memory, predict=expecting(world.speed, peak_bytes=peaks))
    told = play(search, world)
    assert [asked.plan for asked, _ in told if asked.look] == [PLANS[0], PLANS[1]]
    assert sum(asked.plan == PLANS[0] for asked in finals(told)) <= MIN_PROCESSES
    winner = choose(results(PLANS, [m for _, m in told], search.left_out), sla, memory, Prices(), 2).winner
    assert winner is not None
    assert (winner.plan, winner.result.processes) == (PLANS[1], processes_needed(0.95))


def test_one_slow_process_in_the_final_does_not_end_a_finalist() -> None:
    world = World({**SPEED, PLANS[5]: 0.8}, slow={(PLANS[5], 5): 2.0})
    told = play(search := race(), world)
    assert (winner := chosen(search, told).winner) is not None
    assert winner.plan == PLANS[5]
    assert winner.result.processes == 2 * MIN_PROCESSES  # of eleven, one that is slow leaves it open


def test_a_leader_that_stays_open_makes_way_for_one_that_can_be_confirmed() -> None:
    class AtTheLimit(World):
        """In four processes of five, one request of PLANS[5] takes too long: a tenth of all."""

        def run(self, asked: Proposal) -> Measurement:
            found = super().run(asked)
            odd = asked.plan == PLANS[5] and not asked.look and asked.round % 5 > 0
            samples = (replace(s, latency_s=2 * s.latency_s) if odd and s.index == 7 else s for s in found.samples)
            return replace(found, samples=tuple(samples))

    plans, sla = [PLANS[5], PLANS[0]], parse_sla(["p90<=1300ms"])
    search = race(plans, sla)
    told = play(search, AtTheLimit({**SPEED, PLANS[0]: 1.0}))
    count = Counter(asked.plan for asked in finals(told))
    assert count == {PLANS[5]: math.ceil(2.2 * processes_needed(0.9)), PLANS[0]: processes_needed(0.9)}
    assert (winner := chosen(search, told, sla).winner) is not None
    assert winner.plan == PLANS[0]


def test_a_finalist_is_not_shown_to_be_slower_by_fewer_than_three_rounds_that_both_have() -> None:
    told, search, world = [], race(PLANS[:2]), World({PLANS[0]: 1.0, PLANS[1]: 1.1})
    while (asked := search.ask()) is not None:
        found = world.run(asked)
        if not asked.look and asked.plan == PLANS[0] and asked.round % 2 == 0:
            found = replace(found, samples=tuple(replace(s, disturbed=("steal",)) for s in found.samples))
        search.tell(found)
        told.append(asked)
    count = Counter(asked.plan for asked in told if not asked.look)
    assert count[PLANS[1]] == 5  # the first, the third and the fifth


def test_limits_leave_room_for_a_confirmed_winner_though_many_are_close() -> None:
    many = [plan(f"m{i}") for i in range(60)]
    world = World({p: 1.0 + 0.001 * i for i, p in enumerate(many)})
    search = race(many, limits=Limits(processes=30))
    told = [m for _, m in play(search, world)]
    assert len(told) <= 30
    winner = choose(results(many, told, search.left_out), SLA_1500, Objective("latency"), Prices(), 2).winner
    assert winner is not None
    assert winner.result.processes >= MIN_PROCESSES
    assert not any(m.look for m in winner.result.ok_measurements)


def test_a_race_that_a_limit_ended_goes_on_looking_with_a_larger_one() -> None:
    many = [plan(f"m{i}") for i in range(30)]
    world = World({p: 2.0 - 0.03 * i for i, p in enumerate(many)})
    first = [m for _, m in play(race(many, limits=Limits(processes=25)), world)]
    assert not any(m.plan == many[-1] for m in first)
    search = race(many, done=first)
    told = [*first, *(m for _, m in play(search, world))]
    winner = choose(results(many, told, search.left_out), SLA_1500, Objective("latency"), Prices(), 2).winner
    assert winner is not None
    assert winner.plan == many[-1]


def test_a_budget_keeps_time_for_the_confirmation() -> None:
    many = [plan(f"m{i}") for i in range(60)]
    world = World({p: 1.0 + 0.01 * i for i, p in enumerate(many)}, wall_s=2.0)
    search = race(many, limits=Limits(seconds=60.0))
    told = play(search, world)
    assert sum(m.wall_s for _, m in told) <= 60.0
    assert len(finals(told)) >= MIN_PROCESSES
    assert len({asked.plan for asked, _ in told}) < len(many)
    assert len(play(race(many, limits=Limits(processes=9)), world)) == 9


class Starting(World):
    """Processes take so long to start, by plan, and then what their requests take."""

    def __init__(self, speed: Mapping[Plan, float], startup_s: Mapping[Plan, float]) -> None:
        super().__init__(speed)
        self.startup_s = startup_s

    def run(self, asked: Proposal) -> Measurement:
        found = super().run(asked)
        return replace(found, wall_s=self.startup_s[asked.plan] + sum(s.latency_s for s in found.samples))


def test_a_tight_budget_is_not_spent_on_the_first_plan_where_others_start_faster() -> None:
    world = Starting(SPEED, {**dict.fromkeys(PLANS, 0.2), PLANS[0]: 30.0})
    search = race(predict=expecting({**SPEED, PLANS[0]: 0.85}), limits=Limits(seconds=160.0))
    told = play(search, world)
    assert told[0][0].plan == PLANS[0]
    assert sum(m.wall_s for _, m in told) <= 160.0
    assert (winner := chosen(search, told).winner) is not None
    assert (winner.plan, winner.result.processes) == (PLANS[5], MIN_PROCESSES)


@pytest.mark.parametrize("seconds", [75.0, 90.0])
def test_a_plan_that_is_slower_to_start_is_not_heated_in_the_time_of_the_confirmation(seconds: float) -> None:
    speed = dict(zip(PLANS[:4], [1.0, 1.05, 1.06, 1.07], strict=True))
    world = Starting(speed, dict(zip(PLANS[:4], [2.0, 4.0, 4.0, 4.0], strict=True)))
    told = play(race(PLANS[:4], predict=expecting(speed), limits=Limits(seconds=seconds)), world)
    assert Counter(asked.plan for asked in finals(told)) == {PLANS[0]: MIN_PROCESSES}


def test_time_in_which_the_last_of_six_processes_can_be_begun_is_kept_for_them() -> None:
    told = play(race(limits=Limits(seconds=241.0)), Starting(SPEED, dict.fromkeys(PLANS, 30.0)))
    assert Counter(asked.plan for asked in finals(told)) == {PLANS[0]: MIN_PROCESSES}


@pytest.mark.parametrize("processes", [30, 60])
def test_where_no_tail_can_be_shown_finalists_that_are_alike_still_run_against_each_other(processes: int) -> None:
    alike = PLANS[:2]
    lucky = {(alike[1], 1): 0.9, (alike[1], 2): 0.83}
    world = World(dict(zip(alike, [1.0, 1.18], strict=True)), slow=lucky)
    told = play(race(alike, parse_sla(["p95<=1500ms"]), limits=Limits(processes=processes)), world)
    count = Counter(asked.plan for asked in finals(told))
    assert min(count[one] for one in alike) >= MIN_PROCESSES
    assert count[alike[0]] > count[alike[1]]


def test_a_heat_that_takes_a_little_longer_does_not_give_up_the_confirmation_of_a_tail() -> None:
    many, needed = [plan(f"m{i}") for i in range(40)], processes_needed(0.95)
    speed = {one: 1.0 + 0.01 * i for i, one in enumerate(many)}
    world = Starting(speed, dict.fromkeys(many, 2.0))
    world.slow = {(one, round_): 1.03 for one in many for round_ in (2, 3, 4)}
    told = play(race(many, parse_sla(["p95<=2s"]), limits=Limits(seconds=850.0)), world)
    assert max(Counter(asked.plan for asked in finals(told)).values()) == needed


def test_a_number_of_processes_is_no_reason_to_look_at_plans_that_start_faster() -> None:
    told = play(race(limits=Limits(processes=6)), World())
    assert [asked.look for asked, _ in told] == [True, *[False] * 5]


@given(st.data())
def test_a_budget_is_kept_to_and_no_plan_is_looked_at_while_a_final_is_open(data: st.DataObject) -> None:
    plans = [plan(f"m{i}") for i in range(data.draw(st.integers(1, 9)))]
    speed = {one: data.draw(st.floats(0.5, 1.4)) for one in plans}
    world = Starting(speed, {one: data.draw(st.floats(0.1, 20.0)) for one in plans})
    seconds = data.draw(st.floats(5.0, 300.0))
    search = race(plans, predict=data.draw(st.sampled_from([None, expecting(speed)])), limits=Limits(seconds=seconds))
    told = play(search, world)
    assert sum(m.wall_s for _, m in told[:-1]) < seconds
    stages = [asked.look for asked, _ in told]
    assert stages == sorted(stages, reverse=True)  # all of these meet the SLA, so no finalist is spent


def test_what_is_left_of_a_race_is_no_more_than_its_limits_leave_room_for() -> None:
    sla = parse_sla(["p95<=1500ms"])
    search = race(sla=sla, limits=Limits(processes=9))
    assert search.remaining == 9
    play(search, World())
    assert search.remaining == 0
    search, world = race(sla=sla, limits=Limits(seconds=20.0)), World(wall_s=4.0)
    play(search, world, stop=2)
    assert search.remaining == 3
    play(search, world)
    assert search.remaining == 0


def test_where_all_are_slow_to_start_a_tight_budget_leaves_time_for_two_processes_of_the_best() -> None:
    told = play(race(limits=Limits(seconds=160.0)), Starting(SPEED, dict.fromkeys(PLANS, 30.0)))
    assert [asked.look for asked, _ in told] == [True, True, False, False, False]  # the last is begun in time
    assert {asked.plan for asked in finals(told)} == {PLANS[0]}  # 1.0 s and 1.05 s


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_budget_that_is_no_time_is_refused(seconds: float) -> None:
    with pytest.raises(InputError, match="budget"):
        Limits(seconds=seconds)


@settings(max_examples=40, deadline=None)
@given(
    speeds=st.lists(st.floats(0.5, 3.0), min_size=len(PLANS), max_size=len(PLANS)),
    broken=st.sampled_from([{}, {PLANS[0]: 1}, {PLANS[1]: 3, PLANS[3]: 2}]),
    stop=st.integers(0, 12),
)
def test_a_race_that_was_interrupted_goes_on_as_it_would_have(
    speeds: list[float], broken: dict[Plan, int], stop: int
) -> None:
    world = World(dict(zip(PLANS, speeds, strict=True)), fails=broken)
    whole = play(race(), world)
    first = [m for _, m in whole[:stop]]
    gone = [replace(first[-1], status="interrupted")] if first else []
    rest = play(race(done=[*first[:-1], *gone]), world)
    assert [asked for asked, _ in whole[max(len(first) - 1, 0) :]] == [asked for asked, _ in rest]


@settings(max_examples=60, deadline=None)
@given(
    speeds=st.lists(st.floats(0.2, 3.0), min_size=len(PLANS), max_size=len(PLANS)),
    error=st.lists(st.floats(0.85, 1.18), min_size=len(PLANS), max_size=len(PLANS)),
)
def test_whatever_the_speeds_the_winner_is_within_a_tie_of_the_best(speeds: list[float], error: list[float]) -> None:
    speed = dict(zip(PLANS, speeds, strict=True))
    search = race(predict=expecting({p: s * e for (p, s), e in zip(speed.items(), error, strict=True)}, spread=1.2))
    told = play(search, World(speed))
    selection = chosen(search, told)
    best = min(speed.values())
    if best > 1.5:
        assert selection.winner is None
        return
    assert selection.winner is not None or best > 1.45  # so near the limit that processes cannot agree
    if selection.winner is not None:
        assert speed[selection.winner.plan] <= 1.03 * best
