"""A study that a page starts runs by itself: it is found again, waits its turn, can be cancelled and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inferplan import locks, prepare, study
from inferplan.engines.base import EngineInfo
from inferplan.errors import InputError
from inferplan.store import Store
from inferplan.study import Study
from inferplan.web import asked as asking
from inferplan.web import jobs, parts
from inferplan.web.asked import Asked, Prompts

QUICK = Asked(
    models=("a",), sla=("p50<=10s",), engines=("fake",), precisions=("fp32",), threads=(1,), kv_cache=("on",),
    options=(("token_ms", (0.2,)),), max_new_tokens=2, rounds=1, no_watch=True,
)  # fmt: skip
LONG = replace(QUICK, options=(("token_ms", (20.0,)),), max_new_tokens=20, rounds=40, all_rounds=True)


@pytest.fixture(scope="module")
def infos() -> Mapping[str, EngineInfo]:
    return prepare.describe_engines(["fake"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "studies.db"


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for something that a process does; far longer than it takes."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def load(store: Path, id: str) -> Study:
    with Store(store) as opened:
        return study.load(opened, id)


def ended(store: Path, id: str) -> bool:
    job = jobs.find(store, id)
    return job is not None and jobs.state(job) == "ended"


def test_a_started_study_measures_and_ends(store: Path, infos: Mapping[str, EngineInfo]) -> None:
    begun = asking.start(QUICK, infos, store)
    until(lambda: ended(store, begun.id))
    done = load(store, begun.id)
    assert done.finished
    assert done.select().outcome == "chosen"
    assert any("round 1" in line for line in jobs.log(store, begun.id))


def test_a_running_study_is_found_by_whoever_looks_and_cannot_be_started_twice(
    store: Path, infos: Mapping[str, EngineInfo]
) -> None:
    begun = asking.start(LONG, infos, store)
    job = jobs.find(store, begun.id)
    assert job is not None
    try:
        until(lambda: jobs.state(job) == "running")
        look = (
            "import sys; from pathlib import Path; from inferplan.web import jobs;"
            "job = jobs.find(Path(sys.argv[1]), sys.argv[2]); print(job.pid, jobs.state(job))"
        )
        other = subprocess.run(
            [sys.executable, "-c", look, str(store), begun.id], capture_output=True, text=True, check=True
        )
        assert other.stdout.split() == [str(job.pid), "running"]
        with pytest.raises(InputError, match="runs already"):
            jobs.start(store, begun.id)
    finally:
        jobs.cancel(job)
        until(lambda: jobs.state(job) == "ended")


def test_a_cancelled_study_keeps_its_samples_and_is_resumed(store: Path, infos: Mapping[str, EngineInfo]) -> None:
    begun = asking.start(replace(LONG, rounds=3), infos, store)
    job = jobs.find(store, begun.id)
    assert job is not None
    until(lambda: sum(len(m.samples) for m in load(store, begun.id).measurements) >= 2)
    jobs.cancel(job)
    until(lambda: jobs.state(job) == "ended")
    kept = load(store, begun.id)
    samples = sum(len(m.samples) for m in kept.measurements)
    assert not kept.finished
    assert samples >= 2
    assert any("--resume" in line for line in jobs.log(store, begun.id))
    jobs.start(store, begun.id, job.flags)
    until(lambda: ended(store, begun.id))
    assert load(store, begun.id).finished
    assert sum(len(m.samples) for m in load(store, begun.id).measurements) > samples


@pytest.mark.skipif(os.name != "posix", reason="needs kill -9")
def test_a_killed_study_has_ended_and_its_samples_are_kept(store: Path, infos: Mapping[str, EngineInfo]) -> None:
    begun = asking.start(LONG, infos, store)
    job = jobs.find(store, begun.id)
    assert job is not None
    until(lambda: sum(len(m.samples) for m in load(store, begun.id).measurements) >= 1)
    os.kill(job.pid, signal.SIGKILL)
    until(lambda: jobs.state(job) == "ended")
    assert sum(len(m.samples) for m in load(store, begun.id).measurements) >= 1


def test_a_second_study_waits_while_another_holds_the_machine(store: Path, infos: Mapping[str, EngineInfo]) -> None:
    with locks.machine_lock("the other", wait=True):
        begun = asking.start(QUICK, infos, store)
        job = jobs.find(store, begun.id)
        assert job is not None
        until(lambda: any("waiting" in line for line in jobs.log(store, begun.id)))
        assert jobs.state(job) == "waiting"
        assert not load(store, begun.id).measurements
    until(lambda: jobs.state(job) == "ended")
    assert load(store, begun.id).finished


def test_a_private_study_is_given_its_prompts_and_they_are_kept_nowhere(
    store: Path, infos: Mapping[str, EngineInfo]
) -> None:
    begun = asking.start(replace(QUICK, private=True, prompts=Prompts("launch code\nsecret two")), infos, store)
    until(lambda: ended(store, begun.id))
    assert load(store, begun.id).finished
    job = jobs.find(store, begun.id)
    assert job is not None
    assert job.given
    for file in (f for f in store.parent.rglob("*") if f.is_file()):
        assert b"launch code" not in file.read_bytes(), file


def test_a_study_on_the_command_line_is_found_too(store: Path) -> None:
    with locks.machine_lock("by-hand", wait=True):
        job = jobs.find(store, "by-hand")
        assert job is not None
        assert (job.pid, jobs.state(job)) == (os.getpid(), "running")
    assert jobs.find(store, "by-hand") is None


def test_another_process_of_the_same_number_is_not_the_job(store: Path) -> None:
    born = psutil.Process().create_time()
    assert jobs.state(jobs.Job("x", os.getpid(), born - 1000)) == "ended"
    assert jobs.state(jobs.Job("x", os.getpid(), born)) != "ended"


@pytest.mark.parametrize("id", ["../../outside", "/etc", "a/b", "..", "", "x" * 300, "nul\0"])
def test_no_study_id_leads_out_of_the_folder_of_jobs(store: Path, id: str) -> None:
    place = jobs.directory(store, id)
    assert place.parent == store.with_name(store.name + ".jobs")
    assert place.name not in ("", ".", "..")


def test_what_a_job_left_is_removed_with_its_study(store: Path, infos: Mapping[str, EngineInfo]) -> None:
    begun = asking.start(QUICK, infos, store)
    until(lambda: ended(store, begun.id))
    assert jobs.directory(store, begun.id).is_dir()
    jobs.forget(store, begun.id)
    assert not jobs.directory(store, begun.id).exists()
    assert jobs.find(store, begun.id) is None
    assert jobs.log(store, begun.id) == ()


@pytest.mark.skipif(sys.platform != "linux", reason="a thread has a priority of its own on Linux alone")
def test_a_page_gives_way_to_a_timed_study_and_what_it_starts_does_not(
    store: Path, infos: Mapping[str, EngineInfo]
) -> None:
    seen: dict[str, int] = {}

    def page() -> None:
        parts.give_way()
        seen["page"] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        begun = asking.start(QUICK, infos, store)
        job = jobs.find(store, begun.id)
        assert job is not None
        seen["job"] = os.getpriority(os.PRIO_PROCESS, job.pid)
        jobs.cancel(job)
        until(lambda: jobs.state(job) == "ended")

    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with locks.machine_lock("timed", wait=True):
        thread = threading.Thread(target=page)
        thread.start()
        thread.join()
    assert seen == {"page": 19, "job": usual}
