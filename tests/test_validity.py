"""Validity: outside signals, where they are read from and when they count."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplan.measurement import Signals
from inferplan.validity import (
    Canary,
    Reading,
    available_signals,
    canary_reference,
    disturbances,
    read_counters,
    signals,
)

QUIET = Signals(
    wall_s=1.0, other_cpu_s=0.01, steal_s=0.0, cpu_stall_s=0.001, memory_stall_s=0.0, swapped_pages=0, canary_s=0.003
)


def judged(sample: Signals, *, cores: float = 2, threads: int = 2, reference: float | None = 0.003) -> tuple[str, ...]:
    return disturbances(sample, cores=cores, threads=threads, canary_reference_s=reference)


def files(root: Path, **texts: str) -> Path:
    """A /proc with these files; `__` in a name is a slash."""
    for name, text in texts.items():
        path = root / "proc" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_quiet_sample_is_not_disturbed() -> None:
    assert judged(QUIET) == ()


@pytest.mark.parametrize(
    ("field", "value", "word"),
    [
        ("other_cpu_s", 0.06, "CPU time of other processes"),
        ("steal_s", 0.03, "steal"),
        ("cpu_stall_s", 0.06, "waiting for a CPU"),
        ("memory_stall_s", 0.02, "waiting for memory"),
        ("swapped_pages", 1, "swapping: 1 pages"),
        ("canary_s", 0.006, "canary"),
    ],
)
def test_each_signal_alone_disturbs(field: str, value: float, word: str) -> None:
    (reason,) = judged(replace(QUIET, **{field: value}))  # type: ignore[arg-type]
    assert word in reason


@pytest.mark.parametrize("field", ["other_cpu_s", "steal_s", "cpu_stall_s", "memory_stall_s", "swapped_pages"])
def test_signal_that_is_not_told_never_disturbs(field: str) -> None:
    assert judged(replace(QUIET, **{field: None})) == ()  # type: ignore[arg-type]


def test_others_may_use_the_cores_that_the_plan_leaves_idle() -> None:
    sample = replace(QUIET, other_cpu_s=0.2)
    assert judged(sample, cores=2, threads=2)
    assert not judged(sample, cores=2, threads=1)


def test_others_count_on_idle_cores_too_when_they_are_an_eighth_of_the_machine() -> None:
    assert judged(replace(QUIET, other_cpu_s=0.3), cores=2, threads=1)
    assert not judged(replace(QUIET, other_cpu_s=0.3), cores=8, threads=4)
    assert judged(replace(QUIET, other_cpu_s=1.1), cores=8, threads=4)


def test_others_on_a_large_host_may_use_the_cores_that_are_not_granted_to_us() -> None:
    sample = replace(QUIET, other_cpu_s=3.0)
    for machine_cores, disturbed in ((None, True), (2, True), (64, False)):
        reasons = disturbances(sample, cores=2, threads=2, canary_reference_s=None, machine_cores=machine_cores)
        assert bool(reasons) == disturbed


def test_short_sample_tolerates_what_ticks_cannot_tell() -> None:
    assert not judged(Signals(wall_s=0.02, other_cpu_s=0.02, steal_s=0.01))
    assert judged(Signals(wall_s=0.02, other_cpu_s=0.04))


def test_short_sample_is_held_to_more_where_time_is_counted_in_nanoseconds() -> None:
    sample = Signals(wall_s=0.0127, other_cpu_s=0.0161)  # seen: 4 times slower than without that neighbour
    for exact, disturbed in ((False, False), (True, True)):
        reasons = disturbances(sample, cores=2, threads=2, canary_reference_s=None, exact=exact)
        assert bool(reasons) == disturbed
    own_work = Signals(wall_s=0.0021, other_cpu_s=0.0004)  # a worker's, around a short request on a quiet machine
    assert not disturbances(own_work, cores=2, threads=2, canary_reference_s=None, exact=True)


def test_oversubscribed_plan_is_not_blamed_for_its_own_stalls() -> None:
    sample = replace(QUIET, cpu_stall_s=0.9)
    assert judged(sample, cores=2, threads=2)
    assert not judged(sample, cores=2, threads=4)


def test_canary_says_nothing_before_it_has_a_reference() -> None:
    assert not judged(replace(QUIET, canary_s=9.0), reference=None)


@given(st.floats(0.001, 100), st.floats(0, 100), st.floats(0, 100), st.integers(1, 128), st.integers(1, 256))
def test_more_of_a_signal_never_makes_a_sample_cleaner(
    wall: float, less: float, more: float, cores: int, threads: int
) -> None:
    less, more = sorted((less, more))
    low = judged(Signals(wall, less, less, less, less), cores=cores, threads=threads)
    high = judged(Signals(wall, more, more, more, more), cores=cores, threads=threads)
    assert len(high) >= len(low)


def test_latency_itself_is_no_reason() -> None:
    slow = replace(QUIET, wall_s=1000.0)
    assert judged(slow) == ()


def test_own_and_parents_time_is_not_others() -> None:
    before = Reading(10.0, busy_cpu_s=100.0, steal_s=1.0, swapped_pages=5)
    after = Reading(12.0, busy_cpu_s=104.0, steal_s=1.25, swapped_pages=7)
    seen = signals(before, after, 2.5, 0.5, 0.003)
    assert seen == Signals(wall_s=2.0, other_cpu_s=1.0, steal_s=0.25, swapped_pages=2, canary_s=0.003)
    assert signals(before, after, 4.5, 0.0, None).other_cpu_s == 0.0


def test_proc_stat_counts_busy_and_steal_apart(tmp_path: Path) -> None:
    files(tmp_path, stat="cpu  100 10 50 9999 77 3 4 25 60 0\ncpu0 1 2 3\n")
    reading = read_counters(tmp_path)
    assert reading.busy_cpu_s == pytest.approx(1.67)
    assert reading.steal_s == pytest.approx(0.25)


def test_schedstat_is_preferred_for_its_nanoseconds(tmp_path: Path) -> None:
    files(
        tmp_path,
        stat="cpu  100 10 50 9999 77 3 4 25 0 0\n",
        schedstat="version 16\ntimestamp 1\ncpu0 0 0 0 0 0 0 1500000000 9 9\ndomain0 03 7 7 7 7 7 7 7\n"
        "cpu1 0 0 0 0 0 0 250000001 9 9\n",
    )
    assert read_counters(tmp_path).busy_cpu_s == pytest.approx(1.750000001)
    assert "schedstat" in available_signals(tmp_path)["CPU time of others"]


def test_accounting_group_is_used_only_when_it_holds_the_whole_machine(tmp_path: Path) -> None:
    mount = "31 1 0:27 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n"
    for name in ("container", "machine"):
        root = files(tmp_path / name, stat="cpu  100 0 0 0 0 0 0 0\n", self__mountinfo=mount)
        group = root / "sys/fs/cgroup/cpuacct"
        group.mkdir(parents=True)
        (group / "cpuacct.usage").write_text("7000000000\n")
    (tmp_path / "machine/sys/fs/cgroup/cpuacct/release_agent").write_text("")
    assert read_counters(tmp_path / "machine").busy_cpu_s == 7.0
    assert read_counters(tmp_path / "container").busy_cpu_s == 1.0


def test_psi_and_swap_are_read(tmp_path: Path) -> None:
    files(
        tmp_path,
        pressure__cpu="some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\nfull avg10=0.00 total=7\n",
        pressure__memory="some avg10=0.00 avg60=0.00 avg300=0.00 total=2\nfull total=0\n",
        vmstat="nr_free_pages 1\npswpin 30\npswpout 4\npgmajfault 9\n",
    )
    reading = read_counters(tmp_path)
    assert (reading.cpu_stall_s, reading.memory_stall_s, reading.swapped_pages) == (1.5, 2e-6, 34)


def test_missing_counters_are_none_and_named(tmp_path: Path) -> None:
    reading = read_counters(tmp_path)
    assert replace(reading, time_s=0.0) == Reading(0.0)
    told = available_signals(tmp_path)
    assert told["PSI cpu"].startswith("no: this kernel has no /proc/pressure")
    assert told["steal"].startswith("no: ")
    assert told["memory canary"] == "yes"


def test_psi_that_is_switched_off_is_told_from_psi_that_is_not_there(tmp_path: Path) -> None:
    files(tmp_path, pressure__cpu="")
    assert "psi=1" in available_signals(tmp_path)["PSI cpu"]


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")
def test_a_busy_process_is_seen_as_others() -> None:
    spin = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass"
    before, own = read_counters(), time.process_time()
    subprocess.run([sys.executable, "-c", spin], check=True)
    after, own = read_counters(), time.process_time() - own
    seen = signals(before, after, own, 0.0, None)
    assert seen.other_cpu_s is not None
    assert seen.other_cpu_s > 0.3  # others on this machine can only add to it
    claimed = signals(before, after, own, 1e9, None)
    assert claimed.other_cpu_s == 0.0


def test_canary_has_a_reference_after_five_reads() -> None:
    canary = Canary(size_bytes=1 << 16)
    for _ in range(4):
        canary.read()
    assert canary.reference_s is None
    last = canary.read()
    assert last > 0
    assert canary.reference_s is not None


def test_reference_ignores_a_disturbed_half() -> None:
    assert canary_reference((1.0, 1.0, 1.0, 9.0, 9.0, 9.0)) == 1.0
    assert canary_reference((1.0,) * 4) is None
