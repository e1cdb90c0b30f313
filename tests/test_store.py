"""The store: what was committed stays, and every bad file gets its own message."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factories import measurement, plan, sample
from inferplan._codec import decode, encode
from inferplan.errors import StoreError, UnknownNameError
from inferplan.measurement import Measurement, Sample, Signals
from inferplan.store import MIGRATIONS, Store, default_store_path, store_path

HEADER = {"schema": 1, "created_at": 5.0, "sla": {"p50": 1.5}, "models": ["a", "b"]}


def save(store: Store, study: str, measured: Measurement) -> None:
    trial = store.begin_trial(study, measured.plan, measured.round, measured.started_at)
    for one in measured.samples:
        store.add_sample(trial, one)
    store.finish_trial(trial, measured)


def filled(store: Store, study: str = "aaa") -> tuple[Measurement, ...]:
    """A study with three processes of two plans."""
    store.create_study(study, HEADER)
    all_measured = (
        measurement(plan(threads=1), [0.5, 0.6], disturbed=[1]),
        measurement(plan(threads=2), [], status="crashed", reason="signal 9"),
        measurement(plan(threads=1), [0.4], round=2),
    )
    for measured in all_measured:
        save(store, study, measured)
    return all_measured


# --- round trips ---


def test_measurements_come_back_as_they_were_in_order(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        saved = filled(store)
        assert store.measurements("aaa") == saved
    with Store(tmp_path / "s.db") as store:
        assert store.measurements("aaa") == saved
        assert store.study("aaa").header == HEADER


finite = st.floats(0, 1e6)


@settings(max_examples=50)  # each opens the file anew
@given(
    st.builds(
        Sample,
        index=st.integers(-1, 99),
        started_at=finite,
        latency_s=finite,
        token_times_s=st.lists(finite).map(tuple),
        prompt_tokens=st.integers(0, 9),
        disturbed=st.lists(st.text()).map(tuple),
        signals=st.none() | st.builds(Signals, wall_s=finite, swapped_pages=st.none() | st.integers(0, 9)),
    )
)
def test_any_sample_survives(tmp_path_factory: pytest.TempPathFactory, one: Sample) -> None:
    with Store(tmp_path_factory.getbasetemp() / "any.db") as store:
        if "any" not in store.study_ids():
            store.create_study("any", {})
        trial = store.begin_trial("any", plan(), 1, 0.0)
        store.add_sample(trial, one)
        assert store.measurements("any")[-1].samples == (one,)
        store.delete_study("any")


def test_unfinished_trial_reads_as_interrupted_with_its_samples(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create_study("aaa", HEADER)
        trial = store.begin_trial("aaa", plan(), 3, 7.0)
        store.add_sample(trial, sample(0, 0.5))
    with Store(tmp_path) as store:
        (left,) = store.measurements("aaa")
    assert (left.status, left.round, left.started_at, left.plan) == ("interrupted", 3, 7.0, plan())
    assert left.samples == (sample(0, 0.5),)
    assert left.reason


def test_columns_can_be_queried_without_us(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        filled(store)
    database = sqlite3.connect(tmp_path / "s.db")
    query = """SELECT plan_id, round, status, idx, latency_s, disturbed FROM trial
        JOIN sample ON sample.trial = trial.id WHERE study = 'aaa' ORDER BY sample.id"""
    rows = database.execute(query).fetchall()
    database.close()
    assert rows == [
        (plan().id, 1, "ok", 0, 0.5, 0),
        (plan().id, 1, "ok", 1, 0.6, 1),
        (plan().id, 2, "ok", 0, 0.4, 0),
    ]


def test_finishing_with_samples_that_were_never_added_is_a_bug_of_the_caller(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create_study("aaa", HEADER)
        trial = store.begin_trial("aaa", plan(), 1, 0.0)
        with pytest.raises(ValueError, match="1 samples, 0 were added"):
            store.finish_trial(trial, measurement(plan(), [0.5]))
        with pytest.raises(ValueError, match="no trial 99"):
            store.finish_trial(99, measurement(plan()))


# --- studies ---


def test_studies_are_listed_newest_first_with_their_counts(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        filled(store, "old")
        store.create_study("new", {"created_at": 9.0})
        store.update_study("new", {"created_at": 9.0, "note": "x"}, finished=True)
        new, old = store.list_studies()
    assert (new.id, new.created_at, new.trials, new.samples, new.finished) == ("new", 9.0, 0, 0, True)
    assert new.header["note"] == "x"
    assert (old.id, old.trials, old.samples, old.finished) == ("old", 3, 3, False)


def test_study_is_found_by_a_prefix_that_fits_one_only(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        with pytest.raises(UnknownNameError, match="no study yet"):
            store.find_study("latest")
        for place, id in enumerate(("abc", "abd", "ab")):
            store.create_study(id, {"created_at": float(place + 1)})
        assert store.find_study("abc") == "abc"
        assert store.find_study("abd") == "abd"
        assert store.find_study("ab") == "ab"
        assert store.find_study("latest") == "ab"
        with pytest.raises(UnknownNameError, match="give more"):
            store.find_study("a")
        for unknown in ("x", ""):
            with pytest.raises(UnknownNameError, match="Known: ab, abc, abd"):
                store.find_study(unknown)


def test_unknown_study_is_named_everywhere(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create_study("abc", HEADER)
        calls = (
            lambda: store.study("abx").header,
            lambda: store.update_study("abx", {}),
            lambda: store.measurements("abx"),
            lambda: store.begin_trial("abx", plan(), 1, 0.0),
            lambda: store.delete_study("abx"),
            lambda: store.export_study("abx"),
        )
        for call in calls:
            with pytest.raises(UnknownNameError, match="Did you mean abc"):
                call()


def test_same_id_twice_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create_study("abc", HEADER)
        with pytest.raises(StoreError, match="already has a study abc"):
            store.create_study("abc", {})
        assert store.study("abc").header == HEADER


def test_deleting_a_study_takes_its_rows_and_no_others(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        kept = filled(store, "kept")
        filled(store, "gone")
        store.delete_study("gone")
        assert store.study_ids() == ("kept",)
        assert store.measurements("kept") == kept
    database = sqlite3.connect(tmp_path / "s.db")
    assert database.execute("SELECT count(*) FROM sample").fetchone() == (3,)
    database.close()


# --- export and import ---


def exported(path: Path) -> dict[str, Any]:
    with Store(path) as store:
        filled(store)
        store.update_study("aaa", HEADER, finished=True)
        return dict(json.loads(json.dumps(store.export_study("aaa"))))


def test_exported_study_is_the_same_study_elsewhere(tmp_path: Path) -> None:
    data = exported(tmp_path / "a.db")
    with Store(tmp_path / "b.db") as store:
        assert store.import_study(data) == "aaa"
        assert store.import_study(data) == "aaa"
        assert store.export_study("aaa") == data
        (row,) = store.list_studies()
        assert (row.finished, row.trials, row.samples) == (True, 3, 3)


def test_import_never_overwrites_another_study_of_that_id(tmp_path: Path) -> None:
    data = exported(tmp_path / "a.db")
    data["header"]["sla"] = "other"
    with Store(tmp_path / "a.db") as store:
        with pytest.raises(StoreError, match="other content"):
            store.import_study(data)
        assert store.study("aaa").header == HEADER


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "not an exported study"),
        ({"version": 99}, "version 99.*Upgrade"),
        ({"measurements": [{"plan": {"model": "a"}, "surprise": 1}]}, "damaged"),
        ({"measurements": 5}, "damaged"),
        ({"created_at": "soon"}, "damaged"),
        ({"id": ""}, "damaged"),
    ],
)
def test_damaged_export_is_refused_whole(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    data = exported(tmp_path / "a.db") | change
    with Store(tmp_path / "b.db") as store:
        with pytest.raises(StoreError, match=message):
            store.import_study(data)
        assert store.study_ids() == ()


# --- files that cannot be used ---


def test_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(StoreError, match="not an inferplan store"):
        Store(path)
    assert path.read_text() == "dear diary"


def test_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE songs (name TEXT)")
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program"):
        Store(path)
    assert path.read_bytes() == before


def test_newer_store_is_refused_with_a_remedy(tmp_path: Path) -> None:
    Store(tmp_path / "s.db").close()
    database = sqlite3.connect(tmp_path / "s.db")
    database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    database.close()
    with pytest.raises(StoreError, match="Upgrade inferplan"):
        Store(tmp_path / "s.db")


def test_damaged_store_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with Store(path) as store:
        filled(store)
    content = bytearray(path.read_bytes())
    content[1024:] = b"\xff" * (len(content) - 1024)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"), Store(path) as store:
        store.list_studies()


def test_damaged_row_says_so(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        filled(store)
    database = sqlite3.connect(tmp_path / "s.db")
    database.execute("UPDATE trial SET payload = '{\"plan\": 1}'")
    database.commit()
    database.close()
    with Store(tmp_path / "s.db") as store, pytest.raises(StoreError, match="row that cannot be read"):
        store.measurements("aaa")


def test_locked_store_says_so_after_the_timeout(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as first, Store(tmp_path / "s.db", timeout_s=0.05) as second:
        filled(first)
        other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match=r"locked by another process, for more than 0\.05 s"):
            second.create_study("bbb", {})
        assert second.study_ids() == ("aaa",)  # readers do not wait
        other.execute("ROLLBACK")
        other.close()
        second.create_study("bbb", {})


def test_path_below_a_file_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="writable place"):
        Store(tmp_path / "file" / "s.db")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody can write to")
def test_read_only_directory_cannot_be_opened() -> None:
    with pytest.raises(StoreError, match="writable place"):
        Store("/proc/s.db")


def test_full_disk_keeps_what_was_saved(tmp_path: Path) -> None:
    with Store(tmp_path / "s.db") as store:
        saved = filled(store)
        store._db.execute("PRAGMA max_page_count = 1")  # SQLite's own limit stands in for the disk's; not below now
        with pytest.raises(StoreError, match="disk is full"):
            store.create_study("big", {"text": "x" * 1_000_000})
        assert store.measurements("aaa") == saved


def test_a_store_belongs_to_one_thread(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def use() -> None:
        try:
            store.study_ids()
        except sqlite3.ProgrammingError as error:
            caught.append(error)

    with Store(tmp_path) as store:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert len(caught) == 1


# --- versions ---


def test_new_store_has_run_every_migration(tmp_path: Path) -> None:
    Store(tmp_path / "s.db").close()
    database = sqlite3.connect(tmp_path / "s.db")
    assert database.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def test_added_migration_keeps_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s.db") as store:
        saved = filled(store)
    extra = ("ALTER TABLE study ADD COLUMN note TEXT NOT NULL DEFAULT ''",)
    monkeypatch.setattr("inferplan.store.MIGRATIONS", (*MIGRATIONS, extra))
    for _ in range(2):
        with Store(tmp_path / "s.db") as store:
            assert store.measurements("aaa") == saved


def test_failed_migration_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "s.db") as store:
        saved = filled(store)
    with monkeypatch.context() as patch:
        patch.setattr("inferplan.store.MIGRATIONS", (*MIGRATIONS, ("CREATE TABLE extra (x)", "NONSENSE")))
        with pytest.raises(StoreError, match="NONSENSE"):
            Store(tmp_path / "s.db")
    with Store(tmp_path / "s.db") as store:
        assert store.measurements("aaa") == saved


# --- kill -9 ---

ADD_FOREVER = """
import itertools, sys
from inferplan._codec import encode
from inferplan.measurement import Sample
from inferplan.plan import Plan
from inferplan.store import Store
store = Store(sys.argv[1])
store.create_study("aaa", {})
trial = store.begin_trial("aaa", Plan("m"), 1, 0.0)
for i in itertools.count():
    store.add_sample(trial, Sample(i, 0.0, 1.0, (0.5, 1.0), 3))
    print(i, flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
@pytest.mark.parametrize("after", [1, 40])
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path, after: int) -> None:
    path = tmp_path / "s.db"
    with subprocess.Popen([sys.executable, "-c", ADD_FOREVER, str(path)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if int(line) >= after:
                break
        os.kill(child.pid, signal.SIGKILL)
        acknowledged = max([after, *(int(line) for line in child.stdout if line.endswith("\n"))])
    with Store(path) as store:
        (left,) = store.measurements("aaa")
        trial = store.begin_trial("aaa", plan(), 2, 0.0)  # and it can be written again
        store.add_sample(trial, sample(0, 0.5))
    assert left.status == "interrupted"
    assert [one.index for one in left.samples[: acknowledged + 1]] == list(range(acknowledged + 1))
    assert len(left.samples) <= acknowledged + 2
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


# --- paths ---


def test_directory_means_a_file_in_it(tmp_path: Path) -> None:
    assert store_path(tmp_path) == tmp_path / "inferplan.db"
    assert store_path(f"{tmp_path}/new/") == tmp_path / "new" / "inferplan.db"
    assert store_path(tmp_path / "mine.db") == tmp_path / "mine.db"


def test_variable_names_the_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERPLAN_STORE", str(tmp_path))
    assert store_path(None) == default_store_path() == tmp_path / "inferplan.db"
    monkeypatch.delenv("INFERPLAN_STORE")
    assert default_store_path().name == "inferplan.db"
    assert default_store_path().parent.name == "inferplan"


def test_header_of_a_store_is_plain_json(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.create_study("aaa", {"schema": 1, "plan": encode(plan())})
        assert decode(type(plan()), store.study("aaa").header["plan"]) == plan()
