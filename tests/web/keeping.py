"""Puts made-up studies into a store as a real one would."""

from __future__ import annotations

from inferplan.store import Store
from inferplan.study import Study, save_header


def keep(store: Store, study: Study) -> None:
    """The header, then each measurement with its samples, in order."""
    save_header(store, study)
    for measurement in study.measurements:
        trial = store.begin_trial(study.id, measurement.plan, measurement.round, measurement.started_at)
        for sample in measurement.samples:
            store.add_sample(trial, sample)
        store.finish_trial(trial, measurement)
