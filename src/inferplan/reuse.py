"""Reuse: what earlier studies measured, taken over by a new one in place of measuring it again.

Owns which processes may stand in for new ones, and the test of whether they still hold. Leaves running a process to
`study`, and what a search makes of what is known to `search`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from . import measure as measuring
from .engines.base import EngineInfo
from .errors import StoreError
from .measurement import Measurement, Request
from .plan import Plan
from .ranking import order
from .result import PlanResult, results
from .search import Proposal
from .selection import CONTENDER_WITHIN, choose
from .stats import MIN_PROCESSES, Ratio, paired_ratio
from .store import Store, StudyRow
from .study import RACES, Ready, Study, Take, header_of, save_header, study_of, take_one

Tell = Callable[[str], None]

# Medians of fresh processes of one plan differ by a few percent while nothing has changed; `selection` takes ten as
# that with room to spare, and so does this. The range that earlier processes spanned may widen it, never narrow it: a
# further process lies outside the range of k others with chance 2 / (k + 1), two times of three where there were two.
HOLDS_WITHIN = CONTENDER_WITHIN
_OTHER_PLANS = "of other plans"


@dataclass(frozen=True, slots=True)
class Reused:
    """What earlier studies can lend a new one.

    Attributes:
        measurements: whole processes that ended well, marked with the study that measured them; by plan those of
            one study, in rounds from 1.
        why_not: why that is not all, in words; empty where something of every plan was found.
    """

    measurements: tuple[Measurement, ...]
    why_not: str


@dataclass(frozen=True, slots=True)
class Held:
    """Whether earlier measurements hold still, and the sentence that says so with its figure."""

    holds: bool
    text: str


def taken_over(
    study: Study,
    store: Store,
    ready: Ready,
    infos: Mapping[str, EngineInfo],
    *,
    watch: measuring.Watch,
    take: Take = measuring.measure,
    tell: Tell = lambda text: None,
) -> Study:
    """`study` with what it can take over from earlier ones in `store`, if it asks for that and has not yet.

    The best plan of what was found is measured once more, in a fresh process with every request, which counts like
    any other. Only when the rest still holds by that (see `held`) is it kept, all at once: a study that is interrupted
    before finds the same again. What came of it is said, and kept as `Study.reuse`.

    An exhaustive study takes processes over as its own rounds (see `as_rounds`), and does not measure those again. A
    race takes over one process a plan, as a look, and so the fresh one: its final rests on processes of its own.

    Raises:
        KeyboardInterrupt: passed on; what was measured is in the store.
    """
    if not study.settings.reuse or study.reuse:
        return study
    found = earlier(study, store, ready, infos)
    best = finalist(study, found.measurements)
    if best is None:
        return _settled(study, store, f"nothing was taken over from earlier studies: {found.why_not}", tell)
    before = [m for m in found.measurements if m.plan == best]
    if _fresh(study, best) is None:
        tell(f"measuring {best} again, to see whether what earlier studies measured still holds")
        look = study.settings.strategy in RACES
        proposal = Proposal(best, 1, look=look)
        done = take_one(study, store, ready, infos[best.engine], proposal, watch, take, lambda event: None)
        study = replace(study, measurements=(*study.measurements, done))
    fresh = _fresh(study, best)
    assert fresh is not None, "a process that ends without an exception is not an interrupted one"
    verdict = held(fresh, before)
    if not verdict.holds:
        study = _renumbered(study, store, fresh, 1)
        return _settled(study, store, f"nothing was taken over from earlier studies: {verdict.text}", tell)
    if study.settings.strategy in RACES:
        kept = as_looks(found.measurements)
    else:
        kept = as_rounds(found.measurements, best, study.settings.rounds)
        study = _renumbered(study, store, fresh, max((m.round for m in kept if m.plan == best), default=0) + 1)
    text = "; ".join(filter(None, [_counted(kept), found.why_not, verdict.text]))
    study = replace(study, measurements=(*study.measurements, *kept), reuse=text)
    store.add_measurements(study.id, header_of(study), kept)
    tell(text)
    return study


def earlier(study: Study, store: Store, ready: Ready, infos: Mapping[str, EngineInfo]) -> Reused:
    """What the other studies in `store` measured that may stand in for measuring the plans of `study`.

    Taken are processes on a machine of the same fingerprint, watched for noise alike, of the same plan with the same
    requests, weights and versions of the libraries that its engine runs on; that ended well, answered every request
    and cut none short, and were no mere looks. Of each plan, those of the newest such study. A plan of which a process
    failed there is left to be measured: it may have been mended since.

    Args:
        infos: what each engine of the study says of itself now.
    """
    lookup = _Lookup(study, store, ready, infos, waiting=dict.fromkeys(study.plans))
    rows = [row for row in store.list_studies() if row.id != study.id]
    for row in rows:
        if lookup.waiting:
            try:
                lookup.look_in(row)
            except StoreError:  # of another version, or damaged: no reason to stop a new study
                lookup.note(row, "that cannot be read")
    taken = tuple(sorted(lookup.taken, key=lambda m: m.started_at))
    if not rows:
        return Reused((), "there is no earlier study in this store")
    return Reused(taken, lookup.why_not())


def finalist(study: Study, measurements: Sequence[Measurement]) -> Plan | None:
    """The plan that `study` would choose by `measurements`, or the nearest to it; None where there is none."""
    found = results(dict.fromkeys(m.plan for m in measurements), measurements)
    selection = choose(found, study.sla, study.objective, study.prices, study.machine.cores_granted)
    if selection.winner is not None:
        return selection.winner.plan
    able = [r for r in selection.ranked if r.eligible]
    best = min(able, key=lambda r: (r.verdict == "misses", order(r, study.objective)), default=None)
    return None if best is None else best.plan


def held(fresh: Measurement, before: Sequence[Measurement]) -> Held:
    """Whether one process of a plan, measured again, is like its earlier ones.

    Compared are the latencies, paired by prompt, each the median over its processes. They no longer hold when the
    whole interval of the ratio lies beyond `HOLDS_WITHIN`, or beyond the range of the earlier processes where that is
    wider, to either side. With fewer pairs than an interval takes, the ratio itself decides. A process that failed, or
    of which every request was disturbed, shows nothing to hold.
    """
    plan = fresh.plan
    if fresh.status != "ok":
        return Held(False, f"{plan}, measured again, ended as {fresh.status.replace('_', ' ')} ({fresh.reason})")
    now, was = PlanResult(plan, (fresh,)), PlanResult(plan, tuple(before))
    ratio = paired_ratio(now.latency_by_prompt, was.latency_by_prompt)
    if ratio.value is None:
        return Held(False, f"{plan} was measured again, but something disturbed every request")
    allowed = max(HOLDS_WITHIN, was.process_spread or 1.0)
    low = ratio.value if ratio.low is None else ratio.low
    high = ratio.value if ratio.high is None else ratio.high
    took = f"{plan}, measured again, took {_shown(ratio)} of its earlier latency"
    bound = f"{allowed - 1:.0%} that processes of a plan may differ by"
    if low > allowed or high < 1 / allowed:
        return Held(False, f"{took}, beyond the {bound}: it holds no longer")
    return Held(True, f"{took}, not beyond the {bound}: it still holds")


def as_rounds(measurements: Sequence[Measurement], best: Plan, rounds: int) -> tuple[Measurement, ...]:
    """Those of the first `rounds` rounds; of `best`, which has a fresh process too, so few that they prove no more.

    Where a plan is shown to meet the SLA in processes to come, only such plans may be chosen: one that an earlier race
    ran six times would be chosen over a faster one that this study runs twice.
    """
    for_best = rounds - 1 if rounds + 1 == MIN_PROCESSES else rounds
    return tuple(m for m in measurements if m.round <= (for_best if m.plan == best else rounds))


def as_looks(measurements: Sequence[Measurement]) -> tuple[Measurement, ...]:
    """For each plan its process of middle latency, as a look: by which a race rules plans out, and chooses none."""
    by_plan: dict[Plan, list[Measurement]] = {}
    for m in measurements:
        by_plan.setdefault(m.plan, []).append(m)
    middle = [sorted(of, key=_p50)[(len(of) - 1) // 2] for of in by_plan.values()]
    return tuple(replace(m, look=True, round=1) for m in middle)


@dataclass(slots=True)
class _Lookup:
    """Through the studies of a store, the newest first; `waiting` are the plans still sought, `failed` no longer."""

    study: Study
    store: Store
    ready: Ready
    infos: Mapping[str, EngineInfo]
    waiting: dict[Plan, None]
    taken: list[Measurement] = field(default_factory=list)
    failed: set[Plan] = field(default_factory=set)
    reasons: dict[str, tuple[set[str], dict[str, None]]] = field(default_factory=dict)  # of what, which studies, detail

    def look_in(self, row: StudyRow) -> None:
        """Take what one study has of the plans that wait."""
        old = study_of(row.id, row.header)
        common = [plan for plan in old.plans if plan in self.waiting]
        if not common:
            self.note(row, _OTHER_PLANS)
        elif old.machine.fingerprint != self.study.machine.fingerprint:
            self.note(row, "of another machine")
        elif old.workload.key != self.study.workload.key:
            self.note(row, "of other requests")
        elif old.settings.watch_outside != self.study.settings.watch_outside:
            self.note(row, "that watched for noise" if old.settings.watch_outside else "that did not watch for noise")
        else:
            same = {plan.id: plan for plan in common if self._same(row, old, plan)}
            self._take(row, same)

    def note(self, row: StudyRow, what: str, detail: str = "") -> None:
        """A study, or part of it, cannot lend: why."""
        studies, details = self.reasons.setdefault(what, (set(), {}))
        studies.add(row.id)
        if detail:
            details[detail] = None

    def why_not(self) -> str:
        """`3 studies with other library versions (torch 2.12 -> 2.13), 1 study of another machine`."""
        missing = len(self.waiting) + len(self.failed)
        if not missing:
            return ""
        telling = {what: of for what, of in self.reasons.items() if what != _OTHER_PLANS} or self.reasons
        parts = []
        for what, (studies, details) in telling.items():
            shown = f" ({', '.join(details)})" if details else ""
            parts.append(f"{len(studies)} stud{'y' if len(studies) == 1 else 'ies'} {what}{shown}")
        why = ", ".join(parts)
        if not self.taken:
            return why
        count = f"{missing} plan{'s' * (missing > 1)}"
        return f"nothing was found of {count}" + (f" ({why})" if why else "")

    def _same(self, row: StudyRow, old: Study, plan: Plan) -> bool:
        """Whether `plan` meant there what it means now: weights and libraries."""
        new, was = self.study.checkpoint(plan.model), old.checkpoint(plan.model)
        if new is None or was is None or (new.content_hash, new.gguf_type) != (was.content_hash, was.gguf_type):
            self.note(row, "with other weights", plan.model)
            return False
        changed = {
            name: old.libraries.get(name, "unknown")
            for name, version in self.infos[plan.engine].libraries.items()
            if old.libraries.get(name) != version
        }
        for name, before in changed.items():
            self.note(
                row, "with other library versions", f"{name} {before} -> {self.infos[plan.engine].libraries[name]}"
            )
        return not changed

    def _take(self, row: StudyRow, plans: Mapping[str, Plan]) -> None:
        found: list[Measurement] = []
        failed: set[Plan] = set()
        for trial in self.store.trials(row.id):
            plan = plans.get(trial.plan_id)
            if plan is None or trial.status == "interrupted":
                continue
            if trial.status != "ok":
                failed.add(plan)
                self.note(row, "in which it failed", plan.id)
            elif trial.samples >= len(self.study.workload.prompts):
                one = self.store.measurement(trial.id)
                found += [one] if one.plan == plan and _whole(one, self.ready.requests(plan.model)) else []
        found = [m for m in found if m.plan not in failed]
        if len({m.plan for m in found} | failed) < len(plans):
            self.note(
                row, "without a whole process of some plan" if found else "without a whole process of these plans"
            )
        # The rounds of a race's final begin at 3: what was a round there stays one here, counted from 1.
        places = {number: place for place, number in enumerate(sorted({m.round for m in found}), 1)}
        self.taken += [self._marked(replace(m, round=places[m.round]), row.id) for m in found]
        self.failed |= failed
        for plan in {m.plan for m in found} | failed:
            del self.waiting[plan]

    def _marked(self, m: Measurement, id: str) -> Measurement:
        samples = m.samples
        if self.study.settings.private:
            samples = tuple(replace(sample, output_ids=()) for sample in samples)
        return replace(m, samples=samples, reused_from=m.reused_from or id)


def _whole(m: Measurement, requests: Sequence[Request]) -> bool:
    """Whether every request was sent as it would be now, answered in full, and not all were disturbed."""
    lengths = {s.index: (s.prompt_tokens, s.output_tokens) for s in m.samples}
    asked = {r.index: (len(r.prompt_ids), r.max_tokens) for r in requests}
    return not m.look and not any(s.cut for s in m.samples) and bool(m.clean) and lengths == asked


def _fresh(study: Study, plan: Plan) -> Measurement | None:
    """The process of `plan` that the study itself has measured to the end; None while there is none."""
    own = [m for m in study.measurements if m.plan == plan and m.status != "interrupted" and not m.reused_from]
    return own[0] if own else None


def _renumbered(study: Study, store: Store, m: Measurement, number: int) -> Study:
    """`study` with its own process `m` as round `number`, in the store as well."""
    if m.round == number:
        return study
    trial = next(t for t in store.trials(study.id) if t.plan_id == m.plan.id and t.status == m.status)
    moved = replace(m, round=number)
    store.finish_trial(trial.id, moved)
    return replace(study, measurements=tuple(moved if one is m else one for one in study.measurements))


def _settled(study: Study, store: Store, text: str, tell: Tell) -> Study:
    study = replace(study, reuse=text)
    save_header(store, study)
    tell(text)
    return study


def _counted(taken: Sequence[Measurement]) -> str:
    plans, studies = {m.plan for m in taken}, list(dict.fromkeys(m.reused_from for m in taken))
    count = f"{len(taken)} process{'es' * (len(taken) > 1)} of {len(plans)} plan{'s' * (len(plans) > 1)}"
    return f"{count} taken over from {'studies' if len(studies) > 1 else 'study'} {', '.join(studies)}"


def _shown(ratio: Ratio) -> str:
    interval = "" if ratio.low is None or ratio.high is None else f" [{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f}x{interval}"


def _p50(m: Measurement) -> float:
    return PlanResult(m.plan, (m,)).latency(0.5).value or 0.0
