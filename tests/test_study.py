"""The one loop: every plan measured, everything kept, interruptions resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import factories
from inferplan import machine, measure, study
from inferplan.engines.base import EngineInfo
from inferplan.errors import InputError, UnknownNameError
from inferplan.measurement import Converted, Measurement, Request, Sample, Status, Trial
from inferplan.models import Checkpoint
from inferplan.plan import Plan, Space
from inferplan.search import Proposal
from inferplan.selection import SLA, Objective
from inferplan.store import Store
from inferplan.study import Event, PlanDone, PlanStarted, SampleTaken, Settings, Study
from inferplan.workload import Prompt, Workload

INFO = EngineInfo(name="fake", version="1", precisions=("fp32", "int8"), libraries={"fake": "1"}, needs_model=False)
WATCH = measure.Watch(cores=2, judge=False)


class Ready:
    """Six requests for any model; artifacts as told."""

    def __init__(self, artifact: Path | tuple[Status, str] = Path()) -> None:
        self._artifact = artifact

    def requests(self, model: str) -> tuple[Request, ...]:
        return tuple(Request(i, (1, i), 4) for i in range(6))

    def warmup(self, model: str) -> tuple[Request, ...]:
        return (Request(-1, (9,), 2),)

    def artifact(self, plan: Plan) -> Path | tuple[Status, str]:
        return self._artifact

    def converted(self, plan: Plan) -> Converted | None:
        return None


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db") as opened:
        yield opened


def new_study(sla_ms: float = 100.0, models: tuple[str, ...] = ("a", "b"), settings: Settings | None = None) -> Study:
    now = time.time()
    return Study(
        id=study.new_id(now),
        created_at=now,
        space=Space(models, ("fake",), threads=(1,)),
        workload=Workload(tuple(Prompt(text=f"prompt {i}") for i in range(6)), max_new_tokens=4),
        sla=SLA.from_p50_ms(sla_ms),
        objective=Objective(),
        machine=machine.detect(),
        settings=settings or Settings(),
        checkpoints=tuple(Checkpoint(m, Path(), "synthetic", "synthetic weights, seed 0", m * 8) for m in models),
        libraries={"fake": "1"},
    )


def replay(latency_s: Callable[[Plan, int], float]) -> study.Take:
    """A stand-in for `measure` that knows every latency beforehand."""

    def take(trial: Trial, info: EngineInfo, watch: measure.Watch, keep: measure.Keep) -> Measurement:
        latencies = [latency_s(trial.plan, trial.round) * (1 + request.index / 1000) for request in trial.requests]
        done = factories.measurement(trial.plan, latencies, round=trial.round)
        samples = tuple(
            replace(sample, index=request.index) for sample, request in zip(done.samples, trial.requests, strict=True)
        )
        for sample in samples:
            keep(sample)
        return replace(done, samples=samples)

    return take


def by_precision(plan: Plan, round_: int) -> float:
    return 0.02 if plan.quantized else 0.08


def begin(store: Store, asked: Study) -> Study:
    study.save_header(store, asked)
    return asked


def run(asked: Study, store: Store, take: study.Take, notify: study.Notify = lambda event: None) -> Study:
    return study.run(asked, store, Ready(), {"fake": INFO}, watch=WATCH, take=take, notify=notify)


def test_the_first_round_measures_every_plan_and_the_next_only_contenders(store: Store) -> None:
    done = run(begin(store, new_study()), store, replay(by_precision))
    first = [m.plan for m in done.measurements if m.round == 1]
    second = [m.plan for m in done.measurements if m.round == 2]
    assert len(first) == 8 and set(first) == set(done.plans)
    assert first[0].model != first[1].model, "models are interleaved"
    assert set(second) == {plan for plan in done.plans if plan.quantized}
    assert [m.round for m in done.measurements] == sorted(m.round for m in done.measurements)
    assert done.finished


def test_all_rounds_gives_every_round_to_every_plan(store: Store) -> None:
    done = run(begin(store, new_study(settings=Settings(rounds=3, all_rounds=True))), store, replay(by_precision))
    assert len(done.measurements) == 3 * 8


def test_what_is_stored_is_what_was_measured(store: Store) -> None:
    done = run(begin(store, new_study()), store, replay(by_precision))
    kept = study.load(store, done.id)
    assert kept == done
    assert kept.select().winner == done.select().winner is not None


def test_events_tell_the_order_of_things(store: Store) -> None:
    events: list[Event] = []
    run(begin(store, new_study(models=("a",))), store, replay(by_precision), events.append)
    kinds = [type(event) for event in events[:8]]
    assert kinds == [PlanStarted, *[SampleTaken] * 6, PlanDone]


def test_a_failed_plan_is_a_row_and_the_search_goes_on(store: Store) -> None:
    def take(trial: Trial, info: EngineInfo, watch: measure.Watch, keep: measure.Keep) -> Measurement:
        if trial.plan.kv_cache:
            return Measurement(trial.plan, trial.round, "crashed", "the process died of SIGSEGV")
        return replay(by_precision)(trial, info, watch, keep)

    done = run(begin(store, new_study()), store, take)
    assert {r.status for r in done.results if r.plan.kv_cache} == {"crashed"}
    winner = done.select().winner
    assert winner is not None and not winner.plan.kv_cache


def test_a_plan_whose_artifact_cannot_be_made_is_a_row_with_the_reason(store: Store) -> None:
    asked = begin(store, new_study(models=("a",)))
    ready = Ready(("unsupported", "this architecture cannot be converted"))
    done = study.run(asked, store, ready, {"fake": INFO}, watch=WATCH, take=replay(by_precision))
    assert {(m.status, m.reason) for m in done.measurements} == {
        ("unsupported", "this architecture cannot be converted")
    }
    assert len(done.measurements) == 4
    assert done.select().winner is None


def test_an_interrupted_study_loses_nothing_and_goes_on(store: Store) -> None:
    asked = begin(store, new_study(models=("a",)))
    taken: list[Sample] = []

    def take(trial: Trial, info: EngineInfo, watch: measure.Watch, keep: measure.Keep) -> Measurement:
        def keep_some(sample: Sample) -> None:
            if len(taken) == 9:
                raise KeyboardInterrupt
            keep(sample)
            taken.append(sample)

        return replay(by_precision)(trial, info, watch, keep_some)

    with pytest.raises(KeyboardInterrupt):
        run(asked, store, take)
    kept = study.load(store, asked.id)
    assert [m.status for m in kept.measurements] == ["ok", "interrupted"]
    assert [len(m.samples) for m in kept.measurements] == [6, 3]
    assert not kept.finished
    assert kept.results[1].samples == ()

    done = run(kept, store, replay(by_precision))
    again = [m for m in done.measurements if m.plan == kept.measurements[1].plan and m.round == 1]
    assert [m.status for m in again] == ["interrupted", "ok"]
    assert done.finished
    assert len([m for m in done.measurements if m.plan == kept.measurements[0].plan and m.round == 1]) == 1


class OneLook:
    """A search that has ruled every plan out, the first of them after a look."""

    remaining = 1

    def __init__(self, plans: Sequence[Plan], asks: bool = True) -> None:
        self._plans, self._asks = plans, asks

    def ask(self) -> Proposal | None:
        return Proposal(self._plans[0], 1, (0, 1), None, look=True) if self._asks else None

    def tell(self, measurement: Measurement) -> None:
        self._asks = False

    @property
    def unfinished(self) -> bool:
        return False

    @property
    def left_out(self) -> dict[Plan, str]:
        return dict.fromkeys(self._plans, "predicted to be slow")


def test_what_a_search_rules_out_is_kept_when_it_is_known_and_not_at_the_end(store: Store) -> None:
    asked = begin(store, new_study(models=("a",)))
    during: list[Study] = []

    def notify(event: study.Event) -> None:
        if isinstance(event, study.PlanDone):
            during.append(study.load(store, asked.id))

    search = OneLook(asked.plans)
    study.run(
        asked, store, Ready(), {"fake": INFO}, watch=WATCH, take=replay(by_precision), search=search, notify=notify
    )
    assert [dict(one.left_out) for one in during] == [search.left_out]
    assert not during[0].finished


def test_a_search_that_starts_nothing_says_why_of_every_plan(store: Store) -> None:
    asked = begin(store, new_study(models=("a",)))
    search = OneLook(asked.plans, asks=False)
    study.run(asked, store, Ready(), {"fake": INFO}, watch=WATCH, take=replay(by_precision), search=search)
    assert dict(study.load(store, asked.id).left_out) == search.left_out


def test_that_a_limit_ended_the_search_is_kept_with_what_it_left(store: Store) -> None:
    asked = replace(new_study(models=("a",)), settings=Settings(max_trials=2))
    done = study.run(begin(store, asked), store, Ready(), {"fake": INFO}, watch=WATCH, take=replay(by_precision))
    kept = study.load(store, done.id)
    left = len(asked.plans) - 2
    assert kept.ended.startswith(f"the limit of 2 processes ended the search: {left} plans were never started that may")
    assert f"--resume {done.id}` goes on" in kept.ended
    freed = replace(kept, settings=Settings())
    over = study.run(freed, store, Ready(), {"fake": INFO}, watch=WATCH, take=replay(by_precision))
    assert over.ended == study.load(store, done.id).ended == ""


def test_what_was_ruled_out_under_one_sla_is_open_under_another(store: Store) -> None:
    asked = begin(store, new_study(sla_ms=10.0, models=("a",)))
    search = OneLook(asked.plans)
    done = study.run(asked, store, Ready(), {"fake": INFO}, watch=WATCH, take=replay(by_precision), search=search)
    assert done.select().outcome == "undecided"
    other = done.select(SLA.from_p50_ms(60_000))
    assert (other.outcome, other.exit_code) == ("undecided", 4)
    assert not any("predicted" in r.reason for r in other.ranked)
    assert done.under(done.sla, done.objective, done.prices) is done


def test_the_same_study_twice_gives_the_same_winner(store: Store) -> None:
    winners = []
    for _ in range(2):
        done = run(begin(store, new_study()), store, replay(by_precision))
        winner = done.select().winner
        assert winner is not None
        winners.append(winner.plan)
    assert winners[0] == winners[1]


def test_prompts_are_reversed_every_other_round(store: Store) -> None:
    done = run(begin(store, new_study(models=("a",))), store, replay(by_precision))
    orders = {m.round: [s.index for s in m.samples] for m in done.measurements}
    assert orders[1] == orders[2][::-1] == [0, 1, 2, 3, 4, 5]


def test_private_studies_keep_no_prompt(store: Store, tmp_path: Path) -> None:
    secret = Workload((Prompt(text="the launch code is 0000"),))
    asked = replace(new_study(settings=Settings(private=True)), workload=secret)
    study.save_header(store, asked)
    assert b"launch code" not in (tmp_path / "store.db").read_bytes()
    assert "launch code" not in str(store.study(asked.id).header)
    assert study.load(store, asked.id).workload.key == secret.key


def test_another_machine_may_not_go_on_with_a_study() -> None:
    asked = new_study()
    other = replace(asked.machine, cpu_model="Another CPU")
    with pytest.raises(InputError, match="another machine"):
        study.check_resumable(asked, other, asked.libraries)


def test_other_library_versions_may_not_go_on_with_a_study() -> None:
    asked = new_study()
    with pytest.raises(InputError, match="fake 1 -> 2"):
        study.check_resumable(asked, asked.machine, {"fake": "2"})
    study.check_resumable(asked, asked.machine, {"fake": "1"})


def test_an_unknown_study_names_those_that_exist(store: Store) -> None:
    asked = begin(store, new_study())
    with pytest.raises(UnknownNameError, match=asked.id):
        study.load(store, "nonesuch")


def test_early_stop_cuts_at_the_loosest_latency_limit(store: Store) -> None:
    cuts: list[float | None] = []

    def take(trial: Trial, info: EngineInfo, watch: measure.Watch, keep: measure.Keep) -> Measurement:
        cuts.append(trial.cut_after_s)
        return replay(by_precision)(trial, info, watch, keep)

    run(begin(store, new_study(settings=Settings(early_stop=True))), store, take)
    run(begin(store, new_study()), store, take)
    assert set(cuts) == {0.1, None}


def test_more_rounds_go_on_where_a_finished_study_ended(store: Store) -> None:
    done = run(begin(store, new_study()), store, replay(by_precision))
    more = run(replace(done, settings=replace(done.settings, rounds=3)), store, replay(by_precision))
    assert {m.round for m in more.measurements[len(done.measurements) :]} == {3}


@pytest.mark.parametrize(("threads", "pinned"), [(1, (1,)), (2, (0, 1)), (4, ())])
def test_a_plan_is_pinned_to_as_many_cpus_as_threads(threads: int, pinned: tuple[int, ...]) -> None:
    assert study.pin(threads, (1, 0)) == pinned


@pytest.mark.parametrize("bad", [{"rounds": 0}, {"retakes": -1}, {"request_timeout_s": 0.0}, {"load_timeout_s": -1.0}])
def test_settings_that_make_no_sense_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(InputError, match=str(next(iter(bad.values())))):
        Settings(**bad)  # type: ignore[arg-type]
