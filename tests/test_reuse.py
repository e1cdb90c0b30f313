"""Reuse: what may stand in for measuring again, whether it still holds, and that it is shown as what it is."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

import factories
from fake_studies import MACHINE
from inferplan import cli, measure, report, reuse, store, strategies, study
from inferplan._codec import decode, encode
from inferplan.engines.base import EngineInfo
from inferplan.errors import InputError
from inferplan.measurement import Measurement, Request, Sample, Trial
from inferplan.models import Checkpoint
from inferplan.plan import Plan, Space
from inferplan.selection import SLA, Objective
from inferplan.store import Store, default_store_path
from inferplan.study import Settings, Study
from inferplan.workload import Prompt, Workload

INFO = EngineInfo(name="fake", version="1", precisions=("fp32", "int8"), libraries={"fake": "1"}, needs_model=False)
WATCH = measure.Watch(cores=2, judge=False)
PROMPTS = 8


@dataclass
class Ready:
    """Eight requests for any model."""

    prompt_tokens: int = 4

    def requests(self, model: str) -> tuple[Request, ...]:
        return tuple(Request(i, (i,) * (self.prompt_tokens + i), 4) for i in range(PROMPTS))

    def warmup(self, model: str) -> tuple[Request, ...]:
        return ()

    def artifact(self, plan: Plan) -> Path:
        return Path()

    def converted(self, plan: Plan) -> None:
        return None


@dataclass
class World:
    """What would be measured: a stand-in for `measure` that keeps count, and may be interrupted.

    Attributes:
        slower: all that it measures takes so many times as long.
        samples_left: until it is interrupted; None: never.
    """

    slower: float = 1.0
    samples_left: int | None = None
    breaks: bool = False
    calls: list[Trial] = field(default_factory=list)

    def take(self, trial: Trial, info: EngineInfo, watch: measure.Watch, keep: measure.Keep) -> Measurement:
        self.calls.append(trial)
        if self.breaks:
            return Measurement(trial.plan, trial.round, "crashed", "signal 11")
        base = self.slower * latency_s(trial.plan)
        done = factories.measurement(trial.plan, [base] * len(trial.requests), round=trial.round, tokens=4)
        samples = tuple(
            replace(
                sample,
                index=request.index,
                prompt_tokens=len(request.prompt_ids),
                latency_s=base * (1 + request.index / 1000),
            )
            for sample, request in zip(done.samples, trial.requests, strict=True)
        )
        for sample in samples:
            self._count()
            keep(sample)
        return replace(done, samples=samples, started_at=1_767_268_800.0, wall_s=10.0)

    def _count(self) -> None:
        if self.samples_left is not None:
            self.samples_left -= 1
            if self.samples_left < 0:
                raise KeyboardInterrupt


def latency_s(plan: Plan) -> float:
    return (0.08 if plan.precision == "fp32" else 0.05) * (1 if plan.kv_cache else 3)


@pytest.fixture
def db(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.db") as opened:
        yield opened


def asked(
    id: str = "new", settings: Settings | None = None, precisions: tuple[str, ...] = ("fp32", "int8"), at: float = 9.0
) -> Study:
    return Study(
        id=id,
        created_at=at,
        space=Space(("tiny",), ("fake",), precisions, threads=(1,)),
        workload=Workload(tuple(Prompt(text=f"prompt {i}") for i in range(PROMPTS)), max_new_tokens=4),
        sla=SLA.from_p50_ms(1000.0),
        objective=Objective(),
        machine=MACHINE,
        settings=settings or Settings(reuse=True),
        checkpoints=(Checkpoint("tiny", Path(), "synthetic", "synthetic weights, seed 0", "hash of tiny"),),
        libraries={"fake": "1"},
    )


def ran(db: Store, wanted: Study, world: World, ready: Ready | None = None) -> Study:
    """`wanted`, begun or gone on with, to its end, as the command runs it."""
    ready = ready or Ready()
    study.save_header(db, wanted)
    begun = reuse.taken_over(wanted, db, ready, {"fake": INFO}, watch=WATCH, take=world.take)
    search = strategies.search_for(begun, ready)
    return study.run(begun, db, ready, {"fake": INFO}, watch=WATCH, take=world.take, search=search)


def old(db: Store, **changes: object) -> Study:
    """An earlier study, run to its end: four plans, those that may be chosen in two processes."""
    plain = asked("old", Settings(all_rounds=True), at=1.0)
    return ran(db, replace(plain, **changes), World())  # type: ignore[arg-type]


def put(db: Store, wanted: Study, *measurements: Measurement) -> None:
    """A study as if it had been measured so."""
    study.save_header(db, wanted)
    db.add_measurements(wanted.id, study.header_of(wanted), measurements)


def process(plan: Plan, round_: int = 1, slower: float = 1.0) -> Measurement:
    """A whole process of `plan`."""
    trial = Trial(plan, Path(), round_, Ready().requests(plan.model))
    return World(slower).take(trial, INFO, WATCH, lambda sample: None)


def of(plan: Plan, found: Study) -> list[Measurement]:
    return [m for m in found.measurements if m.plan == plan]


def test_what_was_measured_under_the_same_conditions_is_not_measured_again(db: Store) -> None:
    before, world = old(db), World()
    done = ran(db, asked(), world)
    winner = before.select().winner
    assert winner is not None
    assert [trial.plan for trial in world.calls] == [winner.plan], "one finalist, once, to see whether it holds"
    reused = [m for m in done.measurements if m.reused_from]
    assert {m.reused_from for m in reused} == {"old"}
    assert [replace(m, reused_from="") for m in reused] == list(before.measurements)
    assert [(m.round, m.reused_from) for m in of(winner.plan, done)] == [(3, ""), (1, "old"), (2, "old")]
    assert done.finished and done.select().winner is not None
    assert "8 processes of 4 plans taken over from study old" in done.reuse
    assert "took 1.00x [1.00, 1.00] of its earlier latency" in done.reuse and "still holds" in done.reuse
    assert study.load(db, "new") == done, "the store has the same"


def test_without_being_asked_nothing_is_reused(db: Store) -> None:
    old(db)
    done = ran(db, asked(settings=Settings()), world := World())
    assert len(world.calls) == len(done.measurements) and not done.reuse
    assert not any(m.reused_from for m in done.measurements)


DIFFERENT: dict[str, tuple[Callable[[Study], dict[str, object]], str]] = {
    "machine": (lambda s: {"machine": replace(s.machine, cpu_model="Another")}, "1 study of another machine"),
    "version": (lambda s: {"libraries": {"fake": "0.9"}}, "1 study with other library versions (fake 0.9 -> 1)"),
    "no version": (lambda s: {"libraries": {"other": "1"}}, "1 study with other library versions (fake unknown -> 1)"),
    "prompts": (
        lambda s: {"workload": replace(s.workload, prompts=(*s.workload.prompts[1:], Prompt(text="another")))},
        "1 study of other requests",
    ),
    "output tokens": (lambda s: {"workload": replace(s.workload, max_new_tokens=5)}, "1 study of other requests"),
    "weights": (
        lambda s: {"checkpoints": (replace(s.checkpoints[0], content_hash="another"),)},
        "1 study with other weights (tiny)",
    ),
    "noise": (lambda s: {"settings": replace(s.settings, watch_outside=False)}, "1 study that did not watch for noise"),
    "plans": (lambda s: {"space": replace(s.space, threads=(2,))}, "1 study of other plans"),
    "options": (lambda s: {"space": replace(s.space, options=(("token_ms", (2.0,)),))}, "1 study of other plans"),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_nothing_is_reused_of_a_study_that_measured_something_else(db: Store, what: str) -> None:
    changes, words = DIFFERENT[what]
    old(db, **changes(asked("old", Settings(all_rounds=True))))
    done = ran(db, asked(), world := World())
    assert done.reuse == f"nothing was taken over from earlier studies: {words}"
    assert not any(m.reused_from for m in done.measurements)
    assert len(world.calls) == len(done.measurements) and {m.plan for m in done.measurements} == set(done.plans)


def test_prompts_that_a_tokenizer_now_splits_otherwise_are_other_requests(db: Store) -> None:
    old(db)
    done = ran(db, asked(), World(), Ready(prompt_tokens=5))
    assert "without a whole process of these plans" in done.reuse


def test_an_empty_store_is_said(db: Store) -> None:
    assert "there is no earlier study" in ran(db, asked(), World()).reuse


def _cut(m: Measurement) -> Measurement:
    return replace(m, samples=(replace(m.samples[0], cut=True), *m.samples[1:]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: replace(m, look=True),
        _cut,
        lambda m: replace(m, samples=m.samples[1:]),
        lambda m: replace(m, status="crashed", reason="signal 11"),
        lambda m: replace(m, status="interrupted"),
        lambda m: replace(m, samples=tuple(replace(s, disturbed=("steal",)) for s in m.samples)),
    ],
    ids=["look", "cut", "a request short", "crashed", "interrupted", "disturbed"],
)
def test_only_whole_processes_that_ended_well_are_reused(
    db: Store, spoil: Callable[[Measurement], Measurement]
) -> None:
    first, *others = asked().plans
    put(db, asked("old", at=1.0), spoil(process(first)), *map(process, others))
    found = reuse.earlier(asked(), db, Ready(), {"fake": INFO})
    assert {m.plan for m in found.measurements} == set(others)
    assert "1 plan" in found.why_not


def test_a_plan_that_failed_once_is_measured_again_even_where_an_older_study_has_it(db: Store) -> None:
    first, *others = asked().plans
    put(db, asked("older", at=1.0), *map(process, asked().plans))
    put(db, asked("newer", at=2.0), process(first), replace(process(first, 2), status="crashed", reason="signal 11"))
    found = reuse.earlier(asked(), db, Ready(), {"fake": INFO})
    assert {m.plan for m in found.measurements} == set(others)
    assert f"in which it failed ({first})" in found.why_not


def test_of_each_plan_the_newest_study_counts(db: Store) -> None:
    first, *others = asked().plans
    put(db, asked("older", at=1.0), *map(process, asked().plans))
    put(db, asked("newer", at=2.0), process(first, 3), process(first, 5))
    found = reuse.earlier(asked(), db, Ready(), {"fake": INFO})
    assert not found.why_not
    assert {m.reused_from for m in found.measurements if m.plan in others} == {"older"}
    own = [(m.reused_from, m.round) for m in found.measurements if m.plan == first]
    assert own == [("newer", 1), ("newer", 2)], "rounds are counted from 1"


def test_what_a_study_had_taken_over_keeps_the_name_of_who_measured_it(db: Store) -> None:
    old(db)
    ran(db, asked("second", at=2.0), World())
    done = ran(db, asked(settings=Settings(rounds=3, reuse=True)), World())
    best = done.measurements[0].plan
    assert {m.reused_from for m in done.measurements if m.plan != best} == {"old"}
    assert sorted(m.reused_from for m in of(best, done)) == ["", "old", "old", "second"]


def test_a_study_that_cannot_be_read_is_passed_over(db: Store) -> None:
    db.create_study("alien", {"schema": 99})
    assert ran(db, asked(), World()).reuse.endswith("1 study that cannot be read")


def test_an_exhaustive_study_asks_only_for_what_is_missing(db: Store) -> None:
    put(db, asked("old", precisions=("int8",), at=1.0), *map(process, asked(precisions=("int8",)).plans))
    done = ran(db, asked(settings=Settings(reuse=True, all_rounds=True)), world := World())
    fast = asked(precisions=("int8",)).plans
    best = done.measurements[0].plan
    assert [t.plan for t in world.calls if t.round == 1] == [best, *(p for p in done.plans if p not in fast)]
    assert "nothing was found of 2 plans" in done.reuse
    pairs = {(m.plan, m.round) for m in done.measurements}
    assert pairs == {(plan, number) for plan in done.plans for number in (1, 2)} and len(done.measurements) == 8


def test_many_processes_of_an_earlier_race_do_not_keep_a_faster_plan_from_being_chosen(db: Store) -> None:
    slow = asked(precisions=("fp32",), settings=Settings(strategy="racing"), at=1.0)
    raced = ran(db, replace(slow, id="old"), World())
    chosen = raced.select().winner
    assert chosen is not None and chosen.result.processes >= 6
    for rounds in (2, 5):
        with Store(db.path.parent / f"{rounds}.db") as other:
            other.import_study(db.export_study("old"))
            done = ran(other, asked(settings=Settings(rounds=rounds, reuse=True)), World())
        assert sum(m.reused_from == "old" for m in of(chosen.plan, done)) == (2 if rounds == 2 else 4)
        winner = done.select().winner
        assert winner is not None and winner.plan.precision == "int8"


def test_a_race_takes_processes_over_as_looks_and_confirms_its_winner_afresh(db: Store) -> None:
    old(db)
    done = ran(db, asked(settings=Settings(strategy="racing", reuse=True)), World())
    winner = done.select().winner
    assert winner is not None
    assert all(m.look and m.round == 1 for m in done.measurements if m.reused_from)
    assert sorted(m.plan.id for m in done.measurements if m.reused_from) == sorted(plan.id for plan in done.plans)
    assert winner.result.processes >= 6
    assert not any(m.reused_from for m in winner.result.ok_measurements)
    first = done.measurements[0]
    assert (first.plan, first.look, len(first.samples)) == (winner.plan, True, PROMPTS)
    looks = [m for m in done.measurements if m.look and not m.reused_from and m.round == 1]
    assert looks == [first], "no plan is looked at that was taken over"


def test_a_race_takes_over_the_process_of_middle_latency() -> None:
    plan = asked().plans[0]
    (look,) = reuse.as_looks([process(plan, 1, 1.3), process(plan, 2, 1.1), process(plan, 3, 1.2)])
    assert (look.look, look.round) == (True, 1)
    assert look.samples == process(plan, 3, 1.2).samples


@pytest.mark.parametrize("strategy", ["exhaustive", "racing"])
@pytest.mark.parametrize("slower", [1.5, 1 / 1.5])
def test_what_holds_no_longer_is_dropped_and_the_study_goes_on_without(db: Store, strategy: str, slower: float) -> None:
    old(db)
    settings = Settings(strategy=strategy, reuse=True)
    done = ran(db, asked(settings=settings), World(slower))
    assert not any(m.reused_from for m in study.load(db, "new").measurements)
    assert f"took {slower:.2f}x" in done.reuse and "holds no longer" in done.reuse
    with Store(db.path.parent / "empty.db") as empty:
        plain = ran(empty, asked(settings=replace(settings, reuse=False)), World(slower))
    if strategy == "exhaustive":  # the fresh process is one that the study would have measured, and counts
        assert sorted((m.plan.id, m.round) for m in done.measurements) == sorted(
            (m.plan.id, m.round) for m in plain.measurements
        )
    winner, other = done.select().winner, plain.select().winner
    assert winner is not None and other is not None and winner.plan == other.plan


@pytest.mark.parametrize("slower", [1.08, 0.93])
def test_a_difference_that_processes_of_a_plan_may_have_holds(db: Store, slower: float) -> None:
    old(db)
    done = ran(db, asked(), World(slower))
    assert "still holds" in done.reuse and any(m.reused_from for m in done.measurements)


def test_earlier_processes_that_differed_widely_allow_as_much() -> None:
    plan = asked().plans[0]
    narrow, wide = [process(plan)], [process(plan), process(plan, 2, 1.3)]
    assert not reuse.held(process(plan, 1, 1.45), narrow).holds
    assert reuse.held(process(plan, 1, 1.45), wide).holds
    assert not reuse.held(process(plan, 1, 1.55), wide).holds


def test_a_finalist_that_fails_now_drops_everything(db: Store) -> None:
    old(db)
    done = ran(db, asked(), World(breaks=True))
    assert not any(m.reused_from for m in done.measurements)
    assert "ended as crashed (signal 11)" in done.reuse


def test_a_finalist_that_was_disturbed_throughout_shows_nothing_to_hold() -> None:
    plan = asked().plans[0]
    noisy = process(plan)
    noisy = replace(noisy, samples=tuple(replace(s, disturbed=("steal",)) for s in noisy.samples))
    found = reuse.held(noisy, [process(plan)])
    assert not found.holds and "disturbed every request" in found.text


def test_where_no_plan_meets_the_sla_the_nearest_is_measured_again(db: Store) -> None:
    done = ran(db, replace(asked("old", Settings(), at=1.0), sla=SLA.from_p50_ms(1.0)), World())
    assert done.select().winner is None
    found = reuse.finalist(replace(asked(), sla=SLA.from_p50_ms(1.0)), done.measurements)
    assert found == min(done.plans, key=latency_s)


def settled(found: Study) -> list[tuple[str, int, bool, str]]:
    """What counts of a study: its processes that ended, whoever measured them."""
    ended = [m for m in found.measurements if m.status != "interrupted"]
    return sorted((m.plan.id, m.round, m.look, m.reused_from) for m in ended)


@pytest.mark.parametrize("strategy", ["exhaustive", "racing"])
@pytest.mark.parametrize("slower", [1.0, 1.5])
@pytest.mark.parametrize("samples", [0, 3, 8, 9, 17])
def test_an_interruption_at_any_point_changes_nothing_in_the_end(
    db: Store, tmp_path: Path, strategy: str, slower: float, samples: int
) -> None:
    settings = Settings(strategy=strategy, all_rounds=True, reuse=True)
    others = asked().plans[1:]
    put(db, asked("old", at=1.0), *map(process, others))
    with Store(tmp_path / "calm.db") as calm:
        put(calm, asked("old", at=1.0), *map(process, others))
        expected = ran(calm, asked(settings=settings), World(slower))
    with pytest.raises(KeyboardInterrupt):
        ran(db, asked(settings=settings), World(slower, samples_left=samples))
    done = ran(db, study.load(db, "new"), World(slower))
    assert settled(done) == settled(expected)
    assert done.reuse == expected.reuse and study.load(db, "new") == done


@pytest.mark.parametrize("method", ["add_measurements", "finish_trial"])
def test_a_kill_between_the_test_and_what_follows_from_it_is_made_good(
    db: Store, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    before = old(db)
    with monkeypatch.context() as patch:
        times = iter([False, True] if method == "finish_trial" else [True])  # the first ends the trial itself
        kept = getattr(Store, method)

        def killed(self: Store, *arguments: object) -> None:
            if next(times):
                raise KeyboardInterrupt
            kept(self, *arguments)

        patch.setattr(store.Store, method, killed)
        with pytest.raises(KeyboardInterrupt):
            ran(db, asked(), World())
    assert not any(m.reused_from for m in study.load(db, "new").measurements)
    done = ran(db, study.load(db, "new"), world := World())
    assert not world.calls, "the fresh process was there already"
    assert len(done.measurements) == len(before.measurements) + 1


def test_what_is_settled_is_not_settled_again(db: Store) -> None:
    old(db)
    done = ran(db, asked(), World())
    again = ran(db, study.load(db, "new"), world := World(1.5))
    assert not world.calls and again == done


def test_what_was_taken_over_does_not_count_against_the_limits(db: Store) -> None:
    put(db, asked("old", precisions=("int8",), at=1.0), *map(process, asked(precisions=("int8",)).plans))
    done = ran(db, asked(settings=Settings(reuse=True, all_rounds=True, max_trials=2)), World())
    assert len([m for m in done.measurements if not m.reused_from]) == 2
    timed = ran(db, asked("timed", Settings(reuse=True, all_rounds=True, budget_s=25.0)), World())
    assert len([m for m in timed.measurements if not m.reused_from]) == 3, "ten seconds each"


def test_a_private_study_takes_over_no_output(db: Store) -> None:
    old(db)
    done = ran(db, asked(settings=Settings(reuse=True, private=True)), World())
    reused: list[Sample] = [s for m in done.measurements if m.reused_from for s in m.samples]
    assert reused and not any(s.output_ids for s in reused)


def test_measurements_that_were_kept_before_are_still_read() -> None:
    was = encode(process(asked().plans[0]))
    del was["reused_from"]
    assert decode(Measurement, was) == process(asked().plans[0])


def test_every_report_says_what_was_reused(db: Store) -> None:
    old(db)
    done = ran(db, asked(), World())
    made = report.report_of(done)
    best = done.measurements[0].plan
    for format_ in ("table", "md", "html"):
        text = report.render(made, format_).replace("\\", "")
        assert "2 of 2 processes reused" in text and "2 of 3 processes reused" in text
        assert "Reused: processes that earlier studies of this machine measured, old (2026-01-01)." in text
        assert "still holds" in text
    rows = list(csv.DictReader(io.StringIO(report.summary_csv(made))))
    counts = {row["plan_id"]: (row["processes"], row["reused_processes"], row["reused_from"]) for row in rows}
    assert counts.pop(best.id) == ("3", "2", "old")
    assert set(counts.values()) == {("2", "2", "old")}
    requests = list(csv.DictReader(io.StringIO(report.results_csv(made))))
    assert {row["reused_from"] for row in requests if row["plan_id"] == best.id} == {"", "old"}
    data = json.loads(report.render(made, "json"))
    assert data["reuse"] == done.reuse
    assert {plan["plan_id"]: plan["reused_processes"] for plan in data["plans"]}[best.id] == 2


def test_a_report_without_reuse_does_not_speak_of_it(db: Store) -> None:
    made = report.report_of(old(db))
    assert "reused" not in report.render(made, "table").lower()
    assert json.loads(report.render(made, "json"))["reuse"] is None


FAST = ["--engines", "fake", "--models", "tiny", "--threads", "1", "--max-new-tokens", "4", "--no-lock", "--no-watch"]
SLOW_TOKENS = ["--precisions", "int8", "--kv-cache", "on", "--option", "token_ms=20.0"]  # longer than the scheduler's


def test_the_flag_takes_over_the_study_before_and_says_so(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["optimize", "--sla", "p50<=10s", "--strategy", "exhaustive", *FAST, *SLOW_TOKENS]
    assert cli.main([*line, "--reuse"]) == 0
    assert "there is no earlier study" in capsys.readouterr().err
    assert cli.main([*line, "--reuse"]) == 0
    captured = capsys.readouterr()
    assert "measuring tiny/fake/int8/t1/kv/token_ms=20.0 again" in captured.err
    assert "2 processes of 1 plan taken over from study" in captured.err
    assert "2 of 3 processes reused" in captured.out
    with Store(default_store_path()) as opened:
        newest, older = opened.study_ids()
        assert [m.reused_from for m in opened.measurements(newest)] == ["", older, older]
    assert cli.main(["optimize", "--resume", "latest", "--reuse", *FAST]) == 2
    assert "when a study begins" in capsys.readouterr().err


def test_a_study_file_asks_for_reuse(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text('[choice]\nsla = ["p50<=1s"]\n[run]\nreuse = true\n')
    assert cli.parse(["optimize", "--study", str(path)]).reuse is True
    path.write_text('[choice]\nsla = ["p50<=1s"]\n[run]\nreuse = "yes"\n')
    with pytest.raises(InputError, match="reuse in \\[run\\] must be true or false"):
        cli.parse(["optimize", "--study", str(path)])
