"""One trial in one process: what is recorded, and how each way to die becomes a row."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from inferplan import measure
from inferplan.engines.base import EngineInfo
from inferplan.measurement import Measurement, Request, Sample, Trial
from inferplan.plan import OptionValue, Plan

WATCH = measure.Watch(cores=2, judge=False)


@pytest.fixture(scope="module")
def info() -> EngineInfo:
    return measure.describe("fake")


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    out = tmp_path / "artifact"
    out.mkdir()
    assert measure.convert(Plan("m", "fake"), tmp_path, out) == ("ok", "")
    return out


def trial(artifact: Path, *, requests: int = 3, tokens: int = 6, precision: str = "fp32", **rest: object) -> Trial:
    options: dict[str, OptionValue] = dict(rest.pop("options", {}))  # type: ignore[call-overload]
    plan = Plan("m", "fake", precision, int(rest.pop("threads", 1)), options=tuple(options.items()))  # type: ignore[call-overload]
    asked = tuple(Request(i, (1, 2, i), tokens) for i in range(requests))
    return Trial(plan, artifact, 1, asked, warmup=(Request(-1, (9,), 2),), **rest)  # type: ignore[arg-type]


def run(info: EngineInfo, asked: Trial, watch: measure.Watch = WATCH) -> Measurement:
    return measure.measure(asked, info, watch)


def test_every_request_is_a_sample_and_warm_ups_are_not(info: EngineInfo, artifact: Path) -> None:
    done = run(info, trial(artifact))
    assert done.status == "ok"
    assert [s.index for s in done.samples] == [0, 1, 2]
    assert all(s.output_tokens == 6 and 0 < s.ttft_s <= s.latency_s for s in done.samples)
    assert done.load_s is not None and done.startup_s is not None and done.startup_s > 0
    assert done.actual is not None and done.actual.threads == 1
    assert done.libraries == {"fake": "1"}


def test_a_sample_is_kept_before_the_next_request_is_sent(info: EngineInfo, artifact: Path) -> None:
    ends: list[float] = []
    starts: list[float] = []

    def keep(sample: Sample) -> None:
        time.sleep(0.05)
        starts.append(sample.started_at)
        ends.append(time.time())

    measure.measure(trial(artifact), info, WATCH, keep)
    assert len(ends) == 3
    assert all(start >= end for start, end in zip(starts[1:], ends[:-1], strict=True))


@pytest.mark.parametrize(
    ("behaviour", "status", "words"),
    [
        ("error", "failed", "told to fail while generating"),
        ("error_load", "failed", "told to fail while loading"),
        ("crash", "crashed", "SIGABRT"),
        ("killed", "out_of_memory", "SIGKILL"),
        ("oom", "out_of_memory", "memory"),
        ("short", "failed", "the engine gave"),
    ],
)
def test_each_way_to_fail_is_a_row_with_its_reason(
    info: EngineInfo, artifact: Path, behaviour: str, status: str, words: str
) -> None:
    done = run(info, trial(artifact, options={"behaviour": behaviour}))
    assert done.status == status
    assert words in done.reason


def _running_with(variable: str, value: str) -> list[psutil.Process]:
    """The other processes that have `variable` as `value`; one that ended and whose parent has not looked is none."""
    others = [p for p in psutil.process_iter(["environ", "status"]) if p.pid != os.getpid()]
    ours = [p for p in others if (p.info["environ"] or {}).get(variable) == value]
    return [p for p in ours if p.info["status"] != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_death_is_noticed_though_a_forked_process_keeps_the_pipes_and_that_is_ended_too(
    info: EngineInfo, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OF_THIS_TEST", str(artifact))  # other tests may have workers at the same time
    before = time.monotonic()
    done = run(info, trial(artifact, options={"behaviour": "stray"}, request_timeout_s=60))
    assert (done.status, "SIGABRT" in done.reason) == ("crashed", True), done.reason
    assert time.monotonic() - before < 50, "only its time limit has ended it"
    soon = time.monotonic() + 10  # to be killed takes a moment where other tests keep the cores busy
    while (left := _running_with("OF_THIS_TEST", str(artifact))) and time.monotonic() < soon:
        time.sleep(0.05)
    assert left == []


@pytest.mark.parametrize("behaviour", ["hang", "hang_load"])
def test_a_hang_ends_at_its_limit(info: EngineInfo, artifact: Path, behaviour: str) -> None:
    done = run(info, trial(artifact, options={"behaviour": behaviour}, request_timeout_s=1.0, load_timeout_s=3.0))
    assert done.status == "timeout"
    assert "killed" in done.reason


def test_what_an_engine_prints_does_not_break_the_conversation(info: EngineInfo, artifact: Path) -> None:
    assert run(info, trial(artifact, options={"behaviour": "noisy"})).status == "ok"


def test_a_corrupt_artifact_is_named(info: EngineInfo, artifact: Path) -> None:
    (artifact / "fake.json").write_text("{")
    done = run(info, trial(artifact))
    assert done.status == "failed"
    assert "fake.json" in done.reason


def test_an_option_that_a_plan_cannot_have_is_unsupported(info: EngineInfo, artifact: Path) -> None:
    done = run(info, trial(artifact, options={"colour": "red"}))
    assert done.status == "unsupported"
    assert "colour" in done.reason


def test_a_request_past_its_limit_is_cut_and_says_so(info: EngineInfo, artifact: Path) -> None:
    done = run(info, trial(artifact, tokens=50, options={"token_ms": 20.0}, cut_after_s=0.1))
    assert done.status == "ok"
    assert all(s.cut and s.latency_s > 0.1 and 0 < s.output_tokens < 50 for s in done.samples)
    assert done.clean == ()


def test_a_request_whose_first_token_came_too_late_is_ended_there(info: EngineInfo, artifact: Path) -> None:
    slow = trial(artifact, tokens=50, options={"token_ms": 20.0})
    done = run(info, replace(slow, cut_first_after_s=0.001))
    assert all(s.cut and s.output_tokens == 1 for s in done.samples)
    done = run(info, replace(slow, cut_first_after_s=30.0))
    assert not any(s.cut for s in done.samples)
    assert {s.output_tokens for s in done.samples} == {50}


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_is_the_plans_own_not_its_parents(info: EngineInfo, artifact: Path) -> None:
    ballast = bytearray(os.urandom(1 << 20) * 256)
    small = run(info, trial(artifact, precision="int8"))
    large = run(info, trial(artifact, precision="fp32"))
    assert len(ballast) == 256 << 20
    assert small.memory is not None and large.memory is not None
    assert small.memory.peak_bytes is not None and large.memory.peak_bytes is not None
    assert small.memory.peak_bytes < 128 << 20
    assert large.memory.peak_bytes - small.memory.peak_bytes > 16 << 20
    assert large.memory.method == "VmHWM"
    assert large.memory.anonymous_bytes is not None and large.memory.anonymous_bytes > 32 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is Linux's")
def test_peak_memory_counts_the_processes_that_an_engine_starts(info: EngineInfo, artifact: Path) -> None:
    alone = run(info, trial(artifact, precision="fp32"))
    helped = run(info, trial(artifact, precision="fp32", options={"behaviour": "helper"}))
    assert alone.memory is not None and helped.memory is not None
    for own, tree in (
        (alone.memory.load_peak_bytes, helped.memory.load_peak_bytes),
        (alone.memory.generate_peak_bytes, helped.memory.generate_peak_bytes),
    ):
        assert own is not None and tree is not None
        assert own <= tree < own + (64 << 20), "the same weights, and a second interpreter"


def test_threads_are_set_before_anything_is_imported(info: EngineInfo) -> None:
    assert measure.worker_environment(Plan("m", "fake", threads=3), info)["OMP_NUM_THREADS"] == "3"


def test_a_worker_asks_no_hub_whatever_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    code = "import huggingface_hub as hub; hub.hf_hub_download('some/model', 'config.json', cache_dir='nowhere')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=measure.worker_environment(), capture_output=True, text=True, check=False
    )
    assert "HF_HUB_OFFLINE" in done.stderr, "it would have gone to the network"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no CPU affinity here")
def test_the_process_is_pinned_to_the_cpus_asked_for(info: EngineInfo, artifact: Path) -> None:
    cpu = max(os.sched_getaffinity(0))
    done = run(info, trial(artifact, cpus=(cpu,)))
    assert done.actual is not None
    assert done.actual.details["cpus"] == str(cpu)


def test_more_threads_than_cores_is_measured_and_marked(info: EngineInfo, artifact: Path) -> None:
    done = run(info, trial(artifact, threads=4))
    assert done.status == "ok" and done.oversubscribed


def test_private_keeps_only_a_hash_of_the_output(info: EngineInfo, artifact: Path) -> None:
    done = run(info, trial(artifact), measure.Watch(cores=2, judge=False, private=True))
    assert all(s.output_ids == () and len(s.output_sha256) == 64 and s.output_tokens == 6 for s in done.samples)


def test_an_engine_that_is_not_installed_is_a_reason() -> None:
    info = measure.describe("fake", interpreter=(sys.executable, "-c", "import sys; sys.exit('no engine here')", "--"))
    assert "no engine here" in info.lacks["engine"]


def test_the_parent_sleeps_while_a_request_runs(info: EngineInfo, artifact: Path) -> None:
    cpu, wall = time.process_time(), time.perf_counter()
    run(info, trial(artifact, tokens=50, options={"token_ms": 20.0}))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    assert cpu < wall / 4, f"the parent used {cpu:.2f} s of CPU in {wall:.2f} s"


@pytest.mark.skipif(sys.platform != "linux", reason="SIGKILL and /proc")
def test_the_worker_dies_with_its_parent(artifact: Path) -> None:
    script = textwrap.dedent(
        f"""
        from pathlib import Path
        from inferplan import measure
        from inferplan.measurement import Request, Trial
        from inferplan.plan import Plan
        plan = Plan("m", "fake", options=(("behaviour", "hang"),))
        trial = Trial(plan, Path({str(artifact)!r}), 1, (Request(0, (1,), 9),))
        print("go", flush=True)
        measure.measure(trial, measure.describe("fake"), measure.Watch(cores=2, judge=False))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "go\n"
    child = _wait_for_child(parent.pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    gone, alive = psutil.wait_procs([child], timeout=10)
    assert gone and not alive


def _wait_for_child(pid: int) -> psutil.Process:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for child in psutil.Process(pid).children():
            if "--describe" not in child.cmdline() and "inferplan.worker" in child.cmdline():
                return child
        time.sleep(0.05)
    raise AssertionError("the worker did not start")


@pytest.mark.skipif(sys.platform != "linux", reason="the counters of other systems differ")
def test_samples_beside_busy_neighbours_are_kept_flagged_and_taken_again(info: EngineInfo, artifact: Path) -> None:
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        asked = trial(artifact, requests=2, tokens=20, options={"token_ms": 20.0}, retakes=1)
        done = run(info, asked, measure.Watch(cores=float(os.cpu_count() or 1)))
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert done.status == "ok"
    assert len(done.samples) == 3, "two requests, and one retake: the cap"
    assert all(any("CPU time of other processes" in reason for reason in s.disturbed) for s in done.samples)
    assert all(s.signals is not None and s.latency_s > 0 for s in done.samples)
    assert done.clean == ()


def test_every_trial_is_a_process_of_its_own(info: EngineInfo, artifact: Path) -> None:
    first, second = run(info, trial(artifact)), run(info, trial(artifact))
    assert first.memory is not None and second.memory is not None
    assert first.startup_s is not None and second.startup_s is not None
    assert first.samples[0].output_ids == second.samples[0].output_ids
    assert second.started_at >= first.started_at + first.wall_s - 0.01
