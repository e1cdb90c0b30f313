"""Reading: studies out of the store, each finished process decoded once.

Owns what is kept in memory between two looks at the same study. Leaves the file
to `store`; pages ask here, so that a look every few seconds costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from .. import machine
from .._codec import decode
from ..cost import Prices
from ..measurement import Measurement
from ..report import Report, Row
from ..result import PlanResult
from ..selection import SLA, Objective, Selection, choose
from ..store import Cost, Store, StudyRow, TrialRow
from ..study import Study, study_of

K = TypeVar("K")
V = TypeVar("V")

# A process holds some hundred kB once decoded: this keeps the memory of the server below a few hundred MB.
_PROCESSES = 4096
_VIEWS = 16
# By store and row: a row tells how many samples it has and whether its process has ended, so it is never out of date.
_MEASURED: dict[tuple[Path, TrialRow], Measurement] = {}
_SEEN: dict[tuple[object, ...], Seen] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A study as it was at one moment, with the result of each plan.

    `trials` are those it was read from; the last may still be running.
    """

    study: Study
    results: tuple[PlanResult, ...]
    trials: tuple[TrialRow, ...]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A study judged under some terms, and a row a plan. Times in seconds, memory in bytes."""

    seen: Seen
    report: Report
    rows: tuple[Row, ...]

    @property
    def study(self) -> Study:
        """The study that is judged."""
        return self.seen.study

    @property
    def selection(self) -> Selection:
        """The choice under these terms."""
        return self.report.selection

    @property
    def chosen(self) -> Row | None:
        """The row of the chosen plan; None when none is chosen."""
        return next((row for row in self.rows if row.chosen), None)


def see(path: Path, id: str) -> Seen:
    """The study `id` as it is now; nothing is read twice that cannot have changed.

    Raises:
        UnknownNameError: there is no such study.
        StoreError: the store cannot be read.
    """
    with Store(path) as store:
        row = store.study(store.find_study(id))
        return _read(store, path, row, store.trials(row.id))


def glance(path: Path, id: str) -> tuple[Seen, tuple[TrialRow, ...]]:
    """The study as if the process that runs had not begun, and every trial as listed: what a live page shows.

    A sample of a running process counts in no figure, so none is read; and the study
    is the same object until a process ends, with all that was made from it before.

    Raises:
        UnknownNameError: there is no such study.
        StoreError: the store cannot be read.
    """
    with Store(path) as store:
        row = store.study(store.find_study(id))
        trials = store.trials(row.id)
        return _read(store, path, row, tuple(trial for trial in trials if trial.status != "interrupted")), trials


def _read(store: Store, path: Path, row: StudyRow, trials: tuple[TrialRow, ...]) -> Seen:
    key = (path, trials, row.finished, row.id, repr(row.header))
    if key in _SEEN:
        return _SEEN[key]
    measurements = tuple(_measured(store, path, trial) for trial in trials)
    study = replace(study_of(row.id, row.header), measurements=measurements, finished=row.finished)
    return _once(_SEEN, key, lambda: Seen(study, study.results, trials), _VIEWS)


def _measured(store: Store, path: Path, trial: TrialRow) -> Measurement:
    return _once(_MEASURED, (path, trial), lambda: store.measurement(trial.id), _PROCESSES)


def _once(kept: dict[K, V], key: K, make: Callable[[], V], most: int) -> V:
    """What `kept` holds under `key`, made when it is not there; of the rest the oldest go beyond `most`."""
    if (found := kept.get(key)) is None:
        found = kept[key] = make()
        while len(kept) > most:
            kept.pop(next(iter(kept)), None)
    return found


def judge(seen: Seen, sla: SLA, objective: Objective, prices: Prices, recipe: str | None = None) -> View:
    """What is chosen under these terms, from what was measured; nothing is run."""
    return _judged(seen, sla, objective, prices, recipe)


def costs(path: Path) -> tuple[Cost, ...]:
    """What every process took that ran on this machine, in all studies of the store."""
    here = machine.detect().fingerprint
    with Store(path) as store:
        same = [row.id for row in store.list_studies() if _fingerprint(row) == here]
        return tuple(cost for id in same for cost in store.costs(id))


@lru_cache(maxsize=_VIEWS)
def _judged(seen: Seen, sla: SLA, objective: Objective, prices: Prices, recipe: str | None) -> View:
    study = seen.study
    own = not study.left_out or study.under(sla, objective, prices) is study
    found = seen.results if own else _with_nothing_ruled_out(seen)
    report = Report(study, choose(found, sla, objective, prices, study.machine.cores_granted), recipe)
    return View(seen, report, report.rows)


@lru_cache(maxsize=_VIEWS)
def _with_nothing_ruled_out(seen: Seen) -> tuple[PlanResult, ...]:
    """For terms that are not the study's own: made once, for its figures are dear."""
    return replace(seen.study, left_out=()).results


def _fingerprint(row: StudyRow) -> str:
    try:
        return decode(machine.Machine, row.header["machine"]).fingerprint
    except (KeyError, TypeError, ValueError):  # a study of another version: it has nothing to say here
        return ""
