"""Study: one search, and the one loop that runs it: ask -> measure -> save -> tell.

Owns what a study is and how it is kept as a header plus measurements. `take`
(how a trial is measured) and `ready` (where token ids and artifacts come from)
are handed in, so that a replay can stand in for both.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from . import measure as measuring
from ._codec import decode, encode
from .cost import Prices
from .engines.base import EngineInfo
from .errors import InputError, StoreError, UnknownNameError
from .machine import Machine, preferred_cpus
from .measurement import Converted, Measurement, Request, Sample, Status, Trial
from .models import Checkpoint
from .plan import Plan, Space
from .result import PlanResult, results
from .search import Proposal, Search
from .search.exhaustive import Exhaustive
from .search.limits import Limits
from .selection import SLA, Objective, Selection, choose
from .store import EXPORT_FORMAT, EXPORT_VERSION, Store
from .workload import Workload

SCHEMA = 1
STRATEGIES: Mapping[str, str] = {
    "exhaustive": "measures every plan, and those that could still be chosen again",
    "racing": "rules most plans out by prediction or after a look, and confirms the best in six fresh processes",
    "tpe": "as racing, and Optuna's tree-structured Parzen estimator says which plan is looked at next",
    "nsga2": "as racing, and Optuna's NSGA-II says which plan is looked at next",
    "random": "as exhaustive, in an order drawn by the study's id: for a budget that ends before the space does",
}
RACES = frozenset({"racing", "tpe", "nsga2"})
"""The strategies that measure a plan as often as its verdict needs, and no more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How a study is run; none of it changes what a sample means.

    Attributes:
        rounds: processes a plan, at most; each a fresh one, interleaved with other plans.
        all_rounds: give every round to every plan, not only to those that could still be chosen.
        early_stop: end a request that has already taken longer than the SLA allows.
        private: keep prompts as hashes and lengths, outputs as hashes.
        weights: `auto`, `hub` or `synthetic`.
        retakes: disturbed samples taken again in one process, at most.
        trust_remote_code: run a model's own Python code; off unless asked for.
        watch_outside: mark samples disturbed by other processes; without, every sample counts.
        strategy: how the space is searched, one of `STRATEGIES`.
        budget_s: seconds of measuring, at most; None: as long as the strategy takes.
        max_trials: processes, at most; None: as many as the strategy takes.
        reuse: take over what earlier studies measured, where that still holds; see `reuse`.
    """

    rounds: int = 2
    all_rounds: bool = False
    early_stop: bool = False
    private: bool = False
    weights: str = "auto"
    retakes: int = 4
    request_timeout_s: float = 600.0
    load_timeout_s: float = 600.0
    trust_remote_code: bool = False
    watch_outside: bool = True
    strategy: str = "exhaustive"
    budget_s: float | None = None
    max_trials: int | None = None
    reuse: bool = False

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise InputError(f"rounds must be at least 1, not {self.rounds}")
        if self.retakes < 0:
            raise InputError(f"retakes must be 0 or more, not {self.retakes}")
        if self.strategy not in STRATEGIES:
            raise UnknownNameError("strategy", self.strategy, STRATEGIES)
        _ = self.limits
        for name in ("request_timeout_s", "load_timeout_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name.removesuffix('_s')} must be more than 0 seconds, not {getattr(self, name)}")

    @property
    def limits(self) -> Limits:
        """When the search stops, whatever is known by then."""
        return Limits(self.budget_s, self.max_trials)


@dataclass(frozen=True, slots=True)
class Study:
    """One search: what was asked, where, and everything that was measured.

    `rejected` are the plans that no engine can run, with the reason; they are rows too. `left_out` are those
    that the search was done with before they could be chosen. `reuse` says what came of `Settings.reuse`, in a
    sentence; it is empty until that is known. `ended` says, where a limit ended the search, which one, and how to go
    on; it is empty where the search had nothing more to ask.
    """

    id: str
    created_at: float
    space: Space
    workload: Workload
    sla: SLA
    objective: Objective
    machine: Machine
    settings: Settings
    checkpoints: tuple[Checkpoint, ...] = ()
    prices: Prices = field(default_factory=Prices)
    libraries: Mapping[str, str] = field(default_factory=dict)
    rejected: tuple[tuple[Plan, str], ...] = ()
    left_out: tuple[tuple[Plan, str], ...] = ()
    measurements: tuple[Measurement, ...] = ()
    finished: bool = False
    reuse: str = ""
    ended: str = ""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every plan of the space that some engine can run, in the order of the space."""
        out = {plan for plan, _ in self.rejected}
        return tuple(plan for plan in self.space.plans if plan not in out)

    @property
    def results(self) -> tuple[PlanResult, ...]:
        """A result for each plan of `plans`; empty ones while they wait."""
        return results(self.plans, self.measurements, dict(self.left_out))

    def checkpoint(self, model: str) -> Checkpoint | None:
        """The checkpoint that `model` was resolved to."""
        return next((c for c in self.checkpoints if c.name == model), None)

    @property
    def synthetic(self) -> bool:
        """Whether any model of it has synthetic weights."""
        return any(checkpoint.synthetic for checkpoint in self.checkpoints)

    def under(self, sla: SLA | None = None, objective: Objective | None = None, prices: Prices | None = None) -> Study:
        """The same measurements under other terms; what the search ruled out under its own is then not measured."""
        terms = (sla or self.sla, objective or self.objective, prices or self.prices)
        if terms == (self.sla, self.objective, self.prices):
            return self
        return replace(self, sla=terms[0], objective=terms[1], prices=terms[2], left_out=())

    def select(
        self, sla: SLA | None = None, objective: Objective | None = None, prices: Prices | None = None
    ) -> Selection:
        """The choice from what was measured so far, under this study's terms or others."""
        one = self.under(sla, objective, prices)
        return choose(one.results, one.sla, one.objective, one.prices, one.machine.cores_granted)


class Ready(Protocol):
    """Where a study's token ids and artifacts come from."""

    def requests(self, model: str) -> tuple[Request, ...]:
        """The workload's requests in the model's own token ids."""

    def warmup(self, model: str) -> tuple[Request, ...]:
        """Requests sent first and not measured, with other prompts."""

    def artifact(self, plan: Plan) -> Path | tuple[Status, str]:
        """What the plan's engine loads, or how and why there is none."""

    def converted(self, plan: Plan) -> Converted | None:
        """The artifact that `artifact` gave or refused, as made and checked; None where nothing was converted."""


@dataclass(frozen=True, slots=True)
class PlanStarted:
    """A process of `plan` starts; `remaining` more are expected after it."""

    plan: Plan
    round: int
    remaining: int


@dataclass(frozen=True, slots=True)
class SampleTaken:
    """A sample was committed."""

    plan: Plan
    round: int
    sample: Sample


@dataclass(frozen=True, slots=True)
class PlanDone:
    """A process ended; `study` holds everything measured so far."""

    measurement: Measurement
    study: Study


Event = PlanStarted | SampleTaken | PlanDone
Notify = Callable[[Event], None]
Take = Callable[[Trial, EngineInfo, measuring.Watch, measuring.Keep], Measurement]


def new_id(now: float) -> str:
    """A study's id: local date and time, and four hex digits against a clash."""
    return time.strftime("%Y%m%d-%H%M%S", time.localtime(now)) + "-" + secrets.token_hex(2)


def save_header(store: Store, study: Study) -> None:
    """Keep the study's terms; its measurements are kept as they come."""
    header = header_of(study)
    if study.id in store.study_ids():
        store.update_study(study.id, header, finished=study.finished)
    else:
        store.create_study(study.id, header)


def header_of(study: Study) -> dict[str, Any]:
    """Everything but measurements, JSON-ready; prompts only as hashes when the study is private."""
    kept = replace(study, workload=study.workload.private) if study.settings.private else study
    header: dict[str, Any] = encode(replace(kept, measurements=()))
    return {"schema": SCHEMA, **header}


def load(store: Store, id: str) -> Study:
    """The study `id` (or its unique prefix, or `latest`) with its measurements.

    Raises:
        UnknownNameError: there is no such study.
        StoreError: its header cannot be read.
    """
    found = store.find_study(id)
    row = store.study(found)
    return replace(study_of(found, row.header), measurements=store.measurements(found), finished=row.finished)


def study_of(found: str, header: Mapping[str, Any]) -> Study:
    """The study that a header tells of, without its measurements.

    Raises:
        StoreError: it is of another schema, or damaged.
    """
    header = dict(header)
    if (schema := header.pop("schema", None)) != SCHEMA:
        raise StoreError(
            f"study {found} has schema {schema!r}; this inferplan reads {SCHEMA}: use the one that wrote it"
        )
    try:
        return decode(Study, header)
    except (TypeError, KeyError, ValueError, AttributeError) as err:
        raise StoreError(f"study {found} cannot be read: {err}") from err


def exported(study: Study) -> dict[str, Any]:
    """The whole study as `Store.export_study` gives it, without a store: for `Store.import_study`."""
    return {
        "format": EXPORT_FORMAT,
        "version": EXPORT_VERSION,
        "id": study.id,
        "created_at": study.created_at,
        "finished": study.finished,
        "header": header_of(study),
        "measurements": [encode(measurement) for measurement in study.measurements],
    }


def take_in(store: Store, content: bytes, source: str) -> str:
    """Keep a study that `export` wrote; returns its id. A header that cannot be read stays out.

    Raises:
        StoreError: it is not one, it is damaged, or another study of the same id is there.
    """
    try:
        data: Any = json.loads(content)
    except ValueError as err:
        raise StoreError(f"{source!r} is not a study that `inferplan export` wrote: {err}") from None
    header = data.get("header") if isinstance(data, dict) else None
    if isinstance(header, dict):
        study_of(str(data.get("id")), header)
    return store.import_study(data)


def check_resumable(study: Study, machine: Machine, libraries: Mapping[str, str]) -> None:
    """Refuse to mix measurements that cannot be compared.

    Raises:
        InputError: another machine, or other library versions, than the study began with.
    """
    if study.machine.fingerprint != machine.fingerprint:
        raise InputError(
            f"study {study.id} was measured on another machine ({study.machine.cpu_model}, "
            f"{study.machine.cores_granted:g} cores, fingerprint {study.machine.fingerprint}; this one is "
            f"{machine.fingerprint}): its samples and new ones cannot be compared. Start a new study here."
        )
    changed = {
        name: (was, libraries.get(name, "none")) for name, was in study.libraries.items() if libraries.get(name) != was
    }
    if changed:
        what = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in sorted(changed.items()))
        raise InputError(f"study {study.id} was measured with other versions ({what}). Start a new study.")


def run(
    study: Study,
    store: Store,
    ready: Ready,
    infos: Mapping[str, EngineInfo],
    *,
    watch: measuring.Watch,
    take: Take = measuring.measure,
    search: Search | None = None,
    notify: Notify = lambda event: None,
) -> Study:
    """Ask, measure, save, tell, until the search has nothing more to ask.

    Continues where `study.measurements` ends. Every sample is committed to
    `store` before the next request is sent.

    Raises:
        KeyboardInterrupt: passed on; what was measured is in the store.
    """
    cores = study.machine.cores_granted
    search = search or Exhaustive(
        study.plans,
        study.sla,
        study.objective,
        study.prices,
        cores,
        rounds=study.settings.rounds,
        all_rounds=study.settings.all_rounds,
        limits=study.settings.limits,
        done=study.measurements,
    )
    while (proposal := search.ask()) is not None:
        plan, round_ = proposal.plan, proposal.round
        notify(PlanStarted(plan, round_, max(search.remaining - 1, 0)))
        measurement = take_one(study, store, ready, infos[plan.engine], proposal, watch, take, notify)
        search.tell(measurement)
        study = _ruled_out(replace(study, measurements=(*study.measurements, measurement)), search, store)
        notify(PlanDone(measurement, study))
    study = _ruled_out(study, search, store)
    study = replace(study, finished=True, ended=_ended(study) if search.unfinished else "")
    save_header(store, study)
    return study


def _ended(study: Study) -> str:
    """That a limit ended the search, what it left unmeasured, and how to go on."""
    budget, trials = study.settings.budget_s, study.settings.max_trials
    limits = [] if budget is None else [f"the budget of {budget:g} s"]
    limits += [] if trials is None else [f"the limit of {trials} process{'' if trials == 1 else 'es'}"]
    begun = {m.plan for m in study.measurements} | {plan for plan, _ in study.left_out}
    waiting = sum(plan not in begun for plan in study.plans)
    left = "there was more to measure"
    if waiting:
        left = f"{waiting} plan{' was' if waiting == 1 else 's were'} never started that may be better"
    return (
        f"{' and '.join(limits)} ended the search: {left}. `inferplan optimize --resume {study.id}` goes on with a "
        "larger limit, counted from the beginning"
    )


def _ruled_out(study: Study, search: Search, store: Store) -> Study:
    """The study with what its search has ruled out by now, kept for who reads it before the end."""
    left_out = tuple(search.left_out.items())
    if left_out != study.left_out:
        study = replace(study, left_out=left_out)
        save_header(store, study)
    return study


def take_one(
    study: Study,
    store: Store,
    ready: Ready,
    info: EngineInfo,
    proposal: Proposal,
    watch: measuring.Watch,
    take: Take,
    notify: Notify,
) -> Measurement:
    """One process of one plan, each sample committed to `store` as it comes."""
    plan, round_, started_at = proposal.plan, proposal.round, time.time()
    row = store.begin_trial(study.id, plan, round_, started_at)
    artifact = ready.artifact(plan)
    if isinstance(artifact, tuple):
        status, reason = artifact
        measurement = Measurement(plan=plan, round=round_, status=status, reason=reason, started_at=started_at)
    else:

        def keep(sample: Sample) -> None:
            store.add_sample(row, sample)
            notify(SampleTaken(plan, round_, sample))

        measurement = take(_trial(study, ready, proposal, artifact), info, watch, keep)
    measurement = replace(measurement, converted=ready.converted(plan), look=proposal.look)
    store.finish_trial(row, measurement)
    return measurement


def _trial(study: Study, ready: Ready, proposal: Proposal, artifact: Path) -> Trial:
    plan, settings, requests = proposal.plan, study.settings, ready.requests(proposal.plan.model)
    cut = cut_after_s(study.sla) if settings.early_stop else None
    if proposal.prompts is not None:
        requests = tuple(requests[place] for place in proposal.prompts)
    elif proposal.round % 2 == 0:
        requests = requests[::-1]  # so that no prompt always follows the same one
    return Trial(
        plan=plan,
        artifact=artifact,
        round=proposal.round,
        requests=requests,
        warmup=ready.warmup(plan.model),
        cut_after_s=min((s for s in (cut, proposal.cut_after_s) if s is not None), default=None),
        cut_first_after_s=proposal.cut_first_after_s,
        request_timeout_s=settings.request_timeout_s,
        load_timeout_s=settings.load_timeout_s,
        cpus=pin(plan.threads, preferred_cpus()),
        retakes=settings.retakes,
    )


def cut_after_s(sla: SLA) -> float | None:
    """The time after which a request has shown all that the SLA asks of it; None when it bounds no latency."""
    return max((c.limit for c in sla.constraints if c.metric.quantity == "latency"), default=None)


def pin(threads: int, cpus: Sequence[int]) -> tuple[int, ...]:
    """CPUs for a plan: the first of `cpus`, as many as threads; none when it is oversubscribed."""
    return tuple(sorted(cpus[:threads])) if threads <= len(cpus) else ()
