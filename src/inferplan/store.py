"""The store: studies and their measurements in one SQLite file, each sample committed as it comes.

Owns the schema, its migrations, export and import, and every way in which the
file can fail. Leaves what a study's header means to `study`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from ._codec import decode, encode
from .errors import StoreError, UnknownNameError
from .measurement import Measurement, Sample
from .plan import Plan

FILE_NAME = "inferplan.db"
EXPORT_FORMAT, EXPORT_VERSION = "inferplan-study", 1

# "ipln" in ASCII: SQLite keeps it in the file's header, so that another program's database is not taken for ours.
_APPLICATION_ID = 0x69706C6E
_MAGIC = b"SQLite format 3\x00"

# Append only: a script that has been released is never edited, its successor is added below it.
# The version of a file (user_version) is the number of scripts that have been run on it.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE study (
            id TEXT PRIMARY KEY,
            created_at REAL NOT NULL,
            finished INTEGER NOT NULL DEFAULT 0,
            header TEXT NOT NULL
        )""",
        """CREATE TABLE trial (
            id INTEGER PRIMARY KEY,
            study TEXT NOT NULL REFERENCES study (id) ON DELETE CASCADE,
            plan_id TEXT NOT NULL,
            round INTEGER NOT NULL,
            status TEXT NOT NULL,
            started_at REAL NOT NULL,
            payload TEXT NOT NULL
        )""",
        """CREATE TABLE sample (
            id INTEGER PRIMARY KEY,
            trial INTEGER NOT NULL REFERENCES trial (id) ON DELETE CASCADE,
            idx INTEGER NOT NULL,
            latency_s REAL NOT NULL,
            disturbed INTEGER NOT NULL,
            payload TEXT NOT NULL
        )""",
        "CREATE INDEX trial_by_study ON trial (study, plan_id, round)",
        "CREATE INDEX sample_by_trial ON sample (trial)",
    ),
    # Rates of a machine, kept beside its fingerprint: see `rates`.
    ("CREATE TABLE rates (fingerprint TEXT PRIMARY KEY, measured_at REAL NOT NULL, payload TEXT NOT NULL)",),
)


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study as listed. `created_at` is in seconds since the epoch."""

    id: str
    created_at: float
    header: Mapping[str, Any]
    trials: int
    samples: int
    finished: bool


@dataclass(frozen=True, slots=True)
class TrialRow:
    """One trial as listed, without its samples: equal rows hold equal measurements.

    Attributes:
        status: `interrupted` while its process runs.
        latency_s: of all samples together; tells a trial from one that took its place.
    """

    id: int
    plan_id: str
    round: int
    status: str
    started_at: float
    samples: int
    disturbed: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process took: all of it, its requests alone, and the tokens that those gave."""

    plan_id: str
    wall_s: float
    requests_s: float
    tokens: int


def default_store_path() -> Path:
    """INFERPLAN_STORE, or `inferplan.db` in the user's data directory. It need not exist yet."""
    if chosen := os.environ.get("INFERPLAN_STORE"):
        return store_path(chosen)
    import platformdirs

    return Path(platformdirs.user_data_dir("inferplan", appauthor=False)) / FILE_NAME


def store_path(given: Path | str | None) -> Path:
    """What `--store` means: a file, a directory (then `inferplan.db` in it), or None: the default."""
    if given is None:
        return default_store_path()
    path = Path(given).expanduser()
    is_directory = path.is_dir() or str(given).endswith(("/", os.sep))
    return path / FILE_NAME if is_directory else path


class Store:
    """An open store; a context manager that closes it.

    A value for one thread: SQLite connections are not shared, open one for each.
    Several processes may have the same file open; a writer waits for another.

    What a method has returned from survives `kill -9` of this process. It is also
    written through to the disk (synchronous=FULL) before it returns, so that a loss
    of power takes at most the sample in flight; that costs a disk flush a sample,
    between requests, never inside one.

    Args:
        path: the file, or a directory for `inferplan.db` in it. Made when it is missing.
        timeout_s: how long to wait for another process that is writing.

    Raises:
        StoreError: the file cannot be used, with why and what to do; so do all methods.
    """

    def __init__(self, path: Path | str, *, timeout_s: float = 5.0) -> None:
        self.path = store_path(path)
        self._timeout_s = timeout_s
        _prepare(self.path)
        with self._explained():
            # isolation_level=None: transactions are begun here by name, never behind our back.
            self._db = sqlite3.connect(self.path, timeout=timeout_s, isolation_level=None)
        try:
            with self._explained():
                self._open()
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a closed store cannot be used again."""
        self._db.close()

    # --- studies ---

    def create_study(self, id: str, header: Mapping[str, Any]) -> None:
        """Begin a study. `header` is JSON-ready; its `created_at`, if any, is what the study is sorted by."""
        with self._transaction():
            if self._has(id):
                raise StoreError(f"the store {self.path} already has a study {id}; resume it, or delete it first")
            self._insert_study(id, header, False)

    def update_study(self, id: str, header: Mapping[str, Any], *, finished: bool | None = None) -> None:
        """Replace the header; `finished` None leaves that mark as it is.

        Raises:
            UnknownNameError: there is no such study.
        """
        with self._transaction():
            self._check(id)
            self._db.execute("UPDATE study SET header = ? WHERE id = ?", (_json(header), id))
            if finished is not None:
                self._db.execute("UPDATE study SET finished = ? WHERE id = ?", (int(finished), id))

    def list_studies(self) -> tuple[StudyRow, ...]:
        """Every study, newest first."""
        return self._rows("TRUE")

    def study(self, id: str) -> StudyRow:
        """One study as listed.

        Raises:
            UnknownNameError: there is no such study.
        """
        if not (rows := self._rows("study.id = ?", id)):
            raise UnknownNameError("study", id, self.study_ids())
        return rows[0]

    def study_ids(self) -> tuple[str, ...]:
        """Ids of every study, newest first."""
        with self._explained():
            rows = self._db.execute("SELECT id FROM study ORDER BY created_at DESC, rowid DESC").fetchall()
        return tuple(row[0] for row in rows)

    def find_study(self, prefix: str) -> str:
        """The id that starts with `prefix`, or the newest for `latest`.

        Raises:
            UnknownNameError: none starts so, or several do; names those there are.
        """
        ids = self.study_ids()
        if prefix in ids:
            return prefix
        if prefix == "latest" and ids:
            return ids[0]
        fitting = [id for id in ids if prefix and id.startswith(prefix)]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UnknownNameError("study", prefix, fitting, "All of these start so: give more of the id.")
        hint = "" if ids else f"The store {self.path} has no study yet; `inferplan optimize` makes one."
        raise UnknownNameError("study", prefix, ids, hint)

    def delete_study(self, id: str) -> None:
        """Remove the study and all that was measured in it.

        Raises:
            UnknownNameError: there is no such study.
        """
        with self._transaction():
            self._check(id)
            self._db.execute("DELETE FROM study WHERE id = ?", (id,))

    # --- measurements ---

    def begin_trial(self, study: str, plan: Plan, round: int, started_at: float) -> int:
        """A row for a trial that starts now, `interrupted` until it is finished: what a kill leaves is then true."""
        reason = "the study ended while this process ran"
        begun = Measurement(plan, round, "interrupted", reason, started_at=started_at)
        with self._transaction():
            self._check(study)
            return self._insert_trial(study, begun)

    def add_sample(self, trial: int, sample: Sample) -> None:
        """Keep one sample; it is committed when this returns."""
        with self._transaction():
            self._insert_sample(trial, sample)

    def finish_trial(self, trial: int, measurement: Measurement) -> None:
        """Keep all of `measurement` but its samples, which `add_sample` has kept already.

        Raises:
            ValueError: no such trial, or samples that were never added; a bug of the caller.
        """
        with self._transaction():
            kept = self._db.execute("SELECT count(*) FROM sample WHERE trial = ?", (trial,)).fetchone()[0]
            if len(measurement.samples) > kept:
                raise ValueError(f"trial {trial} ends with {len(measurement.samples)} samples, {kept} were added")
            done = self._db.execute(
                "UPDATE trial SET plan_id = ?, round = ?, status = ?, started_at = ?, payload = ? WHERE id = ?",
                (*_trial_columns(measurement), trial),
            )
            if done.rowcount == 0:
                raise ValueError(f"there is no trial {trial}")

    def measurements(self, study: str) -> tuple[Measurement, ...]:
        """Every trial of the study in the order begun, interrupted ones included, each with its samples.

        Raises:
            UnknownNameError: there is no such study.
        """
        return tuple(self.measurement(row.id) for row in self.trials(study))

    def trials(self, study: str) -> tuple[TrialRow, ...]:
        """Every trial of the study in the order begun, without reading a sample: cheap enough to ask every second.

        Raises:
            UnknownNameError: there is no such study.
        """
        query = """SELECT trial.id, plan_id, round, status, trial.started_at, count(sample.id),
                ifnull(sum(sample.disturbed), 0), total(latency_s)
            FROM trial LEFT JOIN sample ON sample.trial = trial.id
            WHERE study = ? GROUP BY trial.id ORDER BY trial.id"""
        with self._explained():
            self._check(study)
            return tuple(TrialRow(*row) for row in self._db.execute(query, (study,)).fetchall())

    def measurement(self, trial: int) -> Measurement:
        """One trial with its samples so far.

        Raises:
            StoreError: there is no such trial any more, or it cannot be read.
        """
        with self._explained(), self._readable():
            row = self._db.execute("SELECT payload FROM trial WHERE id = ?", (trial,)).fetchone()
            if row is None:
                raise StoreError(f"the store {self.path} has no trial {trial} any more: its study was deleted")
            return replace(decode(Measurement, json.loads(row[0])), samples=self._samples(trial))

    def add_measurements(self, study: str, header: Mapping[str, Any], measurements: Sequence[Measurement]) -> None:
        """Keep measurements with all their samples and replace the study's header: all of it or nothing.

        Raises:
            UnknownNameError: there is no such study.
        """
        with self._transaction():
            self._check(study)
            self._insert_whole(study, measurements)
            self._db.execute("UPDATE study SET header = ? WHERE id = ?", (_json(header), study))

    def costs(self, study: str) -> tuple[Cost, ...]:
        """What each process of the study that ended well took, without reading its samples whole.

        Raises:
            UnknownNameError: there is no such study.
        """
        query = """SELECT plan_id, json_extract(trial.payload, '$.wall_s'), sum(latency_s),
                sum(json_array_length(sample.payload, '$.token_times_s'))
            FROM trial JOIN sample ON sample.trial = trial.id WHERE study = ? AND status = 'ok' GROUP BY trial.id"""
        with self._explained():
            self._check(study)
            return tuple(Cost(*row) for row in self._db.execute(query, (study,)).fetchall())

    # --- rates of a machine ---

    def rates(self, fingerprint: str) -> Any | None:
        """What `keep_rates` was given last for that machine, JSON-ready; None when it was given nothing."""
        with self._explained(), self._readable():
            row = self._db.execute("SELECT payload FROM rates WHERE fingerprint = ?", (fingerprint,)).fetchone()
            return None if row is None else json.loads(row[0])

    def keep_rates(self, fingerprint: str, measured_at: float, payload: Any) -> None:
        """Keep the rates of a machine in place of older ones. `payload` is JSON-ready."""
        with self._transaction():
            row = (fingerprint, measured_at, _json(payload))
            self._db.execute("INSERT OR REPLACE INTO rates (fingerprint, measured_at, payload) VALUES (?, ?, ?)", row)

    # --- export and import ---

    def export_study(self, id: str) -> dict[str, Any]:
        """The whole study as one JSON-ready mapping, for `import_study`.

        Raises:
            UnknownNameError: there is no such study.
        """
        with self._explained(), self._readable():
            self._check(id)
            row = self._db.execute("SELECT created_at, finished, header FROM study WHERE id = ?", (id,)).fetchone()
            return {
                "format": EXPORT_FORMAT,
                "version": EXPORT_VERSION,
                "id": id,
                "created_at": row[0],
                "finished": bool(row[1]),
                "header": json.loads(row[2]),
                "measurements": [encode(measurement) for measurement in self.measurements(id)],
            }

    def import_study(self, data: Mapping[str, Any]) -> str:
        """Take in what `export_study` gave, all of it or nothing; returns the id.

        A study that is there already with the same content is left alone.

        Raises:
            StoreError: not such an export, of a newer version, damaged, or another
                study of the same id is there.
        """
        id, header, measurements = _checked_export(data)
        with self._transaction():
            if self._has(id):
                if _json(self.export_study(id)) == _json(data):
                    return id
                raise StoreError(
                    f"the store {self.path} has another study {id}, with other content. "
                    f"Delete it first, or import into another file with --store."
                )
            self._insert_study(id, header, bool(data["finished"]), float(data["created_at"]))
            self._insert_whole(id, measurements)
        return id

    # --- inside ---

    def _open(self) -> None:
        # Asked for before anything is written, so that a database that is not ours stays as it is.
        version, application = self._pragma("user_version"), self._pragma("application_id")
        tables = self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION_ID and (application or version or tables):
            raise StoreError(
                f"{self.path} is an SQLite database of another program (application id {application}); "
                "it was left alone. Give another file with --store."
            )
        if version > len(MIGRATIONS):
            raise StoreError(
                f"the store {self.path} is of version {version}, this inferplan knows up to {len(MIGRATIONS)}. "
                "Upgrade inferplan, or give another file with --store."
            )
        self._db.execute("PRAGMA journal_mode = WAL")  # readers (the web app) never wait for the study that writes
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        if version < len(MIGRATIONS):
            self._migrate()

    def _migrate(self) -> None:
        with self._transaction():
            done = self._pragma("user_version")  # again: another process may have come first
            for script in MIGRATIONS[done:]:
                for statement in script:
                    self._db.execute(statement)
            self._db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            self._db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _pragma(self, name: str) -> int:
        return int(self._db.execute(f"PRAGMA {name}").fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing. IMMEDIATE: two writers wait for each other here, not halfway (then one would fail)."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # SQLite itself rolls back on a full disk
                    self._db.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """The one place where an error of SQLite becomes ours."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # our own bug, or a store used from another thread
        except sqlite3.Error as error:
            raise StoreError(_explanation(error, self.path, self._timeout_s)) from error

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        """Around turning a row's text into values: a row that was damaged is not our bug."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise StoreError(f"the store {self.path} holds a row that cannot be read ({error}). {_RESTORE}") from error

    def _rows(self, where: str, *values: str) -> tuple[StudyRow, ...]:
        query = f"""SELECT study.id, study.created_at, header, count(DISTINCT trial.id), count(sample.id), finished
            FROM study LEFT JOIN trial ON trial.study = study.id LEFT JOIN sample ON sample.trial = trial.id
            WHERE {where} GROUP BY study.id ORDER BY study.created_at DESC, study.rowid DESC"""
        with self._explained():
            rows = self._db.execute(query, values).fetchall()
        with self._readable():
            return tuple(StudyRow(row[0], row[1], json.loads(row[2]), row[3], row[4], bool(row[5])) for row in rows)

    def _has(self, id: str) -> bool:
        return self._db.execute("SELECT 1 FROM study WHERE id = ?", (id,)).fetchone() is not None

    def _check(self, id: str) -> None:
        if not self._has(id):
            raise UnknownNameError("study", id, self.study_ids())

    def _samples(self, trial: int) -> tuple[Sample, ...]:
        rows = self._db.execute("SELECT payload FROM sample WHERE trial = ? ORDER BY id", (trial,))
        return tuple(decode(Sample, json.loads(row[0])) for row in rows)

    def _insert_study(
        self, id: str, header: Mapping[str, Any], finished: bool, created_at: float | None = None
    ) -> None:
        if created_at is None:
            created_at = float(header.get("created_at") or time.time())
        row = (id, created_at, int(finished), _json(header))
        self._db.execute("INSERT INTO study (id, created_at, finished, header) VALUES (?, ?, ?, ?)", row)

    def _insert_trial(self, study: str, measurement: Measurement) -> int:
        done = self._db.execute(
            "INSERT INTO trial (study, plan_id, round, status, started_at, payload) VALUES (?, ?, ?, ?, ?, ?)",
            (study, *_trial_columns(measurement)),
        )
        assert done.lastrowid is not None
        return done.lastrowid

    def _insert_whole(self, study: str, measurements: Sequence[Measurement]) -> None:
        for measurement in measurements:
            trial = self._insert_trial(study, measurement)
            for sample in measurement.samples:
                self._insert_sample(trial, sample)

    def _insert_sample(self, trial: int, sample: Sample) -> None:
        self._db.execute(
            "INSERT INTO sample (trial, idx, latency_s, disturbed, payload) VALUES (?, ?, ?, ?, ?)",
            (trial, sample.index, sample.latency_s, int(bool(sample.disturbed)), _json(encode(sample))),
        )


_RESTORE = "Export what can still be read, or give another file with --store."


def _json(value: Any) -> str:
    # allow_nan=False: NaN is not JSON, and no raw figure of ours may be one.
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _trial_columns(measurement: Measurement) -> tuple[str, int, str, float, str]:
    payload = encode(replace(measurement, samples=()))
    return measurement.plan.id, measurement.round, measurement.status, measurement.started_at, _json(payload)


def _prepare(path: Path) -> None:
    """Make the directory, and refuse a file that SQLite would take for damaged."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            with path.open("rb") as file:
                start = file.read(len(_MAGIC))
            if start and start != _MAGIC:
                raise StoreError(f"{path} is not an inferplan store; it was left alone. Give another with --store.")
    except OSError as error:
        why = error.strerror or str(error)
        raise StoreError(f"the store {path} cannot be opened: {why}. Give a writable place with --store.") from error


def _explanation(error: sqlite3.Error, path: Path, timeout_s: float) -> str:
    name = getattr(error, "sqlite_errorname", "")
    known = (
        (("SQLITE_BUSY", "SQLITE_LOCKED"),
         f"is locked by another process, for more than {timeout_s:g} s. Let that one end, then try again."),
        (("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM"),
         "cannot be written (read-only file, directory or disk). Give a writable place with --store."),
        (("SQLITE_FULL",), "cannot grow: the disk is full. What was saved is safe; free some space, then resume."),
        (("SQLITE_NOTADB", "SQLITE_CORRUPT"), f"is damaged. {_RESTORE}"),
        (("SQLITE_IOERR",), "cannot be read or written: the disk fails, or is full. Check it, then resume."),
    )  # fmt: skip
    for names, text in known:
        if name.startswith(names):
            return f"the store {path} {text} (SQLite: {error})"
    return f"the store {path} cannot do this (SQLite: {error}). Give another file with --store."


def _checked_export(data: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], tuple[Measurement, ...]]:
    if not isinstance(data, Mapping) or data.get("format") != EXPORT_FORMAT:
        raise StoreError("this is not an exported study of inferplan; `inferplan export STUDY` writes one")
    if data.get("version") != EXPORT_VERSION:
        raise StoreError(
            f"the exported study is of version {data.get('version')!r}, this inferplan reads {EXPORT_VERSION}. "
            "Upgrade inferplan, or export it again with this one."
        )
    try:
        id, header, _, _ = data["id"], data["header"], float(data["created_at"]), bool(data["finished"])
        measurements = tuple(decode(Measurement, item) for item in data["measurements"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"the exported study is damaged ({type(error).__name__}: {error}); export it again") from error
    if not (isinstance(id, str) and id and isinstance(header, Mapping)):
        raise StoreError("the exported study is damaged (no id or no header); export it again")
    return id, header, measurements
