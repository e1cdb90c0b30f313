"""The store: studies and their measurements in SQLite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .measurement import Measurement, Sample
from .plan import Plan


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study as listed. `created_at` is seconds since the epoch."""

    id: str
    created_at: float
    header: Mapping[str, Any]
    trials: int
    samples: int
    finished: bool


def default_store_path() -> Path:
    raise NotImplementedError


def store_path(given: Path | str | None) -> Path:
    """What `--store` means: a file, a directory (DIR/inferplan.db), or None: the default."""
    raise NotImplementedError


class Store:
    """Context manager over one SQLite file; one per thread."""

    def __init__(self, path: Path | str, *, timeout_s: float = 5.0) -> None: ...
    def __enter__(self) -> Store: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def close(self) -> None: ...
    def create_study(self, id: str, header: Mapping[str, Any]) -> None: ...
    def update_study(self, id: str, header: Mapping[str, Any], *, finished: bool | None = None) -> None: ...
    def list_studies(self) -> tuple[StudyRow, ...]: ...
    def study_ids(self) -> tuple[str, ...]: ...
    def header(self, id: str) -> dict[str, Any]: ...
    def find_study(self, prefix: str) -> str: ...
    def begin_trial(self, study: str, plan: Plan, round: int, started_at: float) -> int: ...
    def add_sample(self, trial: int, sample: Sample) -> None: ...
    def finish_trial(self, trial: int, measurement: Measurement) -> None: ...
    def measurements(self, study: str) -> tuple[Measurement, ...]: ...
    def delete_study(self, id: str) -> None: ...
    def export_study(self, id: str) -> dict[str, Any]: ...
    def import_study(self, data: Mapping[str, Any]) -> str: ...
