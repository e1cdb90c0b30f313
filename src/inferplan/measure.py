"""The parent of one trial: spawn, watch memory and the outside world, keep time limits, kill.

Reaches the worker by command line, never by import. A death is a failed
Measurement, never an exception. Does not spin: it sleeps on a queue while a
request runs, and wakes only to sample memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from . import environments, procmem, validity
from ._codec import decode, encode
from .engines.base import EngineInfo
from .measurement import Actual, Measurement, Memory, Request, Sample, Status, Trial
from .plan import Plan

SAMPLING_HZ = 4.0  # a look at /proc/PID/status costs some 50 us: 0.02% of one core at this rate
_GRACE_S = 5.0  # to close by itself before it is killed
_DESCRIBE_TIMEOUT_S = 120.0  # on a cold disk an engine's imports take tens of seconds
_CONVERT_TIMEOUT_S = 3600.0
_TIMED_OUT = 124  # as timeout(1) has it
_STDERR_TAIL = 600  # characters of standard error kept as the reason of a crash

_WAITING_S = 10.0  # between two words about a conversion that goes on

Keep = Callable[[Sample], None]
Waiting = Callable[[float], None]


@dataclass(slots=True)
class Watch:
    """What outlives one trial: the machine's cores and the canary with its reference.

    Attributes:
        cores: cores granted to us.
        machine_cores: cores that the machine has in all; None: as many as granted.
        canary: read before every request; None leaves it out.
        private: keep hashes of outputs only.
        interpreter: the Python that runs the worker; None: the one that the engine is installed for.
        judge: whether samples are marked disturbed at all.
    """

    cores: float
    machine_cores: float | None = None
    canary: validity.Canary | None = None
    private: bool = False
    interpreter: Sequence[str] | None = None
    judge: bool = True


class _WorkerEnded(Exception):
    """The worker will not answer: it failed, died or was killed by us."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


def package_environment() -> dict[str, str]:
    """The environment of another process of ours: this one's, with the package's place."""
    package = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def worker_environment(plan: Plan | None = None, info: EngineInfo | None = None) -> dict[str, str]:
    """The environment a worker starts with: the package's place, no model hub, and the engine's variables.

    What a worker needs is on disk before it starts; a library that asks the hub all the same would be timed waiting.
    """
    env = {**package_environment(), "HF_HUB_OFFLINE": "1"}
    if plan is not None and info is not None:
        env.update(info.variables(plan))
    return env


def worker_command(engine: str, *arguments: str, interpreter: Sequence[str] | None = None) -> list[str]:
    """The command of `engine`'s worker: by the Python of its own environment where it has one, else by ours."""
    return environments.command(engine, "inferplan.worker", *arguments, python=interpreter)


def describe(engine: str, interpreter: Sequence[str] | None = None) -> EngineInfo:
    """What `engine` says of itself here, asked in a process of its own.

    An engine that cannot even describe itself is one that lacks itself, with the reason.
    """
    command = worker_command(engine, "--describe", engine, interpreter=interpreter)
    done = _told(command, None, _DESCRIBE_TIMEOUT_S)
    try:
        return decode(EngineInfo, json.loads(done.stdout))
    except (ValueError, TypeError):
        reason = _tail(done.stderr) or f"its worker ended with exit code {done.returncode}"
        return EngineInfo(name=engine, version="", precisions=(), lacks={"engine": reason})


def recipe(plan: Plan, checkpoint: str, interpreter: Sequence[str] | None = None) -> str | None:
    """Code and environment that run `plan` with its engine alone, or None where the engine offers none."""
    command = worker_command(plan.engine, "--recipe", interpreter=interpreter)
    task = json.dumps({"plan": encode(plan), "checkpoint": checkpoint}) + "\n"
    done = _told(command, task, _DESCRIBE_TIMEOUT_S)
    try:
        text: str | None = json.loads(done.stdout)["recipe"]
    except (ValueError, KeyError):
        return None
    return text


def convert(
    plan: Plan,
    checkpoint: Path,
    out: Path,
    interpreter: Sequence[str] | None = None,
    timeout_s: float = _CONVERT_TIMEOUT_S,
    waiting: Waiting = lambda seconds: None,
) -> tuple[Status, str]:
    """Make the artifact of `plan` in a process of its own: `("ok", "")`, or how and why it failed.

    Args:
        waiting: called every 10 s with the seconds that the conversion has taken so far.
    """
    command = worker_command(plan.engine, "--convert", interpreter=interpreter)
    task = json.dumps({"plan": encode(plan), "checkpoint": str(checkpoint), "out": str(out)}) + "\n"
    done = _told(command, task, timeout_s, waiting)
    if done.returncode == _TIMED_OUT:
        return "timeout", f"conversion: still running after {timeout_s:g} s; killed"
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        status, reason = _death(done.returncode, done.stderr)
        return status, f"conversion: {reason}"
    if answer["event"] == "failed":
        return answer["status"], answer["reason"]
    return "ok", ""


def _told(
    command: Sequence[str], task: str | None, timeout_s: float, waiting: Waiting = lambda seconds: None
) -> subprocess.CompletedProcess[str]:
    """What a worker that answers once has said; a worker that hangs is killed and ends with `_TIMED_OUT`."""
    started, pipe = time.monotonic(), subprocess.PIPE
    with subprocess.Popen(
        command,
        env=worker_environment(),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        text=True,
        start_new_session=True,  # its helpers die with its group
    ) as process:
        try:
            while (left := timeout_s - (time.monotonic() - started)) > 0:
                try:
                    stdout, stderr = process.communicate(task, min(left, _WAITING_S))
                except subprocess.TimeoutExpired:
                    task = None  # it has been sent
                    if process.poll() is not None:
                        _kill_group(process)  # what it left behind holds the pipes open
                    else:
                        waiting(time.monotonic() - started)
                else:
                    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)
        finally:
            _kill_group(process)
    return subprocess.CompletedProcess(command, _TIMED_OUT, "", f"no answer after {timeout_s:g} s")


def measure(trial: Trial, info: EngineInfo, watch: Watch, keep: Keep = lambda sample: None) -> Measurement:
    """Run `trial` in a fresh process and return what came of it.

    Args:
        info: what the trial's engine says of itself; its environment variables are set.
        keep: called with each sample as it comes, between requests; the next
            request is sent when it returns, so what it has committed is never lost.

    Raises:
        KeyboardInterrupt: passed on, after the worker is dead; what `keep` got is kept.
    """
    child = _Child(trial, info, watch)
    started_at, start = time.time(), time.perf_counter()
    record = _Record()
    status: Status = "ok"
    reason = ""
    try:
        child.load(record)
        _run_requests(child, trial, watch, record, keep)
        child.close()
    except _WorkerEnded as end:
        status, reason = end.status, end.reason
    finally:
        child.kill()
    return Measurement(
        plan=trial.plan,
        round=trial.round,
        status=status,
        reason=reason,
        samples=tuple(record.samples),
        actual=record.actual,
        memory=child.memory,
        startup_s=record.startup_s,
        load_s=record.load_s,
        started_at=started_at,
        wall_s=time.perf_counter() - start,
        oversubscribed=trial.plan.threads > watch.cores,
        libraries=record.libraries,
    )


@dataclass(slots=True)
class _Record:
    """What a trial has shown so far."""

    samples: list[Sample] = field(default_factory=list)
    actual: Actual | None = None
    startup_s: float | None = None
    load_s: float | None = None
    libraries: Mapping[str, str] = field(default_factory=dict)


def _run_requests(child: _Child, trial: Trial, watch: Watch, record: _Record, keep: Keep) -> None:
    """Warm up, send every request once, then take disturbed ones again while retakes last."""
    for request in trial.warmup:
        child.generate(request)
    waiting, retakes = list(trial.requests), trial.retakes
    again: list[Request] = []
    while waiting:
        for request in waiting:
            sample = _observed(child, request, trial, watch)
            record.samples.append(sample)
            keep(sample)
            if sample.disturbed and retakes > 0:
                retakes -= 1
                again.append(request)
        waiting, again = again, []


def _observed(child: _Child, request: Request, trial: Trial, watch: Watch) -> Sample:
    """One sample with the outside world's signals around it."""
    canary_s = watch.canary.read() if watch.canary is not None else None
    before, parent_cpu, helpers = validity.read_counters(), time.process_time(), child.helpers_cpu_s()
    sample = child.generate(request, trial.cut_after_s, trial.cut_first_after_s)
    after, parent_cpu = validity.read_counters(), time.process_time() - parent_cpu
    cpu_s = sample.cpu_s + child.helpers_cpu_s() - helpers
    seen = validity.signals(before, after, cpu_s, parent_cpu, canary_s)
    disturbed: tuple[str, ...] = ()
    if watch.judge:
        reference = watch.canary.reference_s if watch.canary is not None else None
        disturbed = validity.disturbances(
            seen,
            cores=watch.cores,
            threads=trial.plan.threads,
            canary_reference_s=reference,
            machine_cores=watch.machine_cores,
            exact=validity.counts_exactly(),
        )
    output = () if watch.private else sample.output_ids
    rss = child.rss_bytes()
    return replace(sample, cpu_s=cpu_s, disturbed=disturbed, signals=seen, output_ids=output, rss_bytes=rss)


class _Child:
    """The worker process and the conversation with it."""

    def __init__(self, trial: Trial, info: EngineInfo, watch: Watch) -> None:
        self._trial = trial
        # closed by kill(), which every measure() ends with
        self._errors: IO[str] = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self._anonymous: int | None = None
        self._file: int | None = None
        self._load_peak: int | None = None
        self._generate_peak: int | None = None
        self._phase_peak = 0  # the largest mark seen in this phase: where there is no mark, of what was sampled
        self._method = "VmHWM"
        self._started = time.perf_counter()
        self._process = subprocess.Popen(
            worker_command(trial.plan.engine, interpreter=watch.interpreter),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            env=worker_environment(trial.plan, info),
            start_new_session=True,  # Ctrl-C is ours to handle; its helpers die with its group
        )
        self._inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    @property
    def memory(self) -> Memory:
        """Peaks by phase as known so far."""
        return Memory(self._load_peak, self._generate_peak, self._anonymous, self._file, SAMPLING_HZ, self._method)

    def load(self, record: _Record) -> None:
        """Start the engine and load the artifact; fills `record` with what it says."""
        trial = self._trial
        task = {"do": "load", "plan": encode(trial.plan), "artifact": str(trial.artifact), "cpus": list(trial.cpus)}
        self._send(task)
        self._receive(trial.load_timeout_s, "starting")
        record.startup_s = time.perf_counter() - self._started
        answer = self._receive(trial.load_timeout_s, "loading")
        record.load_s = float(answer["load_s"])
        record.actual = decode(Actual, answer["actual"])
        record.libraries = answer["libraries"]
        self._look()
        self._load_peak, self._phase_peak = self._phase_peak, 0
        if not procmem.reset_peak(self._process.pid) and self._method.startswith("VmHWM"):
            self._method = "VmHWM, not reset between load and generate"

    def generate(
        self, request: Request, cut_after_s: float | None = None, cut_first_after_s: float | None = None
    ) -> Sample:
        """Send one request and wait for its sample."""
        task = {"do": "generate", "prompt_ids": request.prompt_ids, "max_tokens": request.max_tokens}
        self._send({**task, "cut_after_s": cut_after_s, "cut_first_after_s": cut_first_after_s})
        answer = self._receive(self._trial.request_timeout_s, "generating")
        ids = tuple(answer["output_ids"])
        self._look()
        self._generate_peak = self._phase_peak
        return Sample(
            index=request.index,
            started_at=answer["started_at"],
            latency_s=answer["latency_s"],
            token_times_s=tuple(answer["token_times_s"]),
            prompt_tokens=len(request.prompt_ids),
            output_ids=ids,
            output_sha256=hashlib.sha256(json.dumps(ids).encode()).hexdigest(),
            cpu_s=answer["cpu_s"],
            cut=answer["cut"],
        )

    def helpers_cpu_s(self) -> float:
        """CPU seconds of the worker's own children so far."""
        return procmem.descendants_cpu_s(self._process.pid)

    def rss_bytes(self) -> int:
        """Resident memory of the tree now."""
        return procmem.read_memory(self._process.pid).rss_bytes

    def close(self) -> None:
        """Let it end by itself; one that does not is killed later."""
        self._send({"do": "close"})
        with contextlib.suppress(_WorkerEnded):
            self._receive(_GRACE_S, "closing")

    def kill(self) -> None:
        """End the process and everything it started."""
        members = procmem.tree(self._process.pid) if self._process.poll() is None else ()
        _kill_group(self._process)
        for member in members[1:]:
            with contextlib.suppress(OSError):
                os.kill(member, getattr(signal, "SIGKILL", signal.SIGTERM))
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._inbox.put(line)
        self._inbox.put(None)

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except OSError:  # it died: why is told by the next receive
            return

    def _receive(self, timeout_s: float, doing: str) -> dict[str, Any]:
        deadline, dead = time.perf_counter() + timeout_s, False
        while True:
            left = deadline - time.perf_counter()
            if left <= 0:
                raise _WorkerEnded("timeout", f"still {doing} after {timeout_s:g} s; killed")
            try:
                line = self._inbox.get(timeout=min(left, 1 / SAMPLING_HZ))
            except queue.Empty:
                if dead:  # and what it had said was read meanwhile: a process that it left holds the pipe open
                    raise self._ended(doing) from None
                dead = self._process.poll() is not None
                self._look()
                continue
            if line is None:
                raise self._ended(doing)
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:  # killed in the middle of a line
                raise self._ended(doing) from None
            if message["event"] == "failed":
                raise _WorkerEnded(message["status"], message["reason"])
            return message

    def _look(self) -> procmem.TreeMemory:
        seen = procmem.read_memory(self._process.pid)
        self._phase_peak = max(self._phase_peak, seen.peak_bytes)
        if not self._method.startswith(seen.method):
            self._method = seen.method
        if seen.anonymous_bytes is not None and seen.file_bytes is not None:
            self._anonymous = max(self._anonymous or 0, seen.anonymous_bytes)
            self._file = max(self._file or 0, seen.file_bytes)
        return seen

    def _ended(self, doing: str) -> _WorkerEnded:
        code = self._process.wait()
        self._errors.seek(0)
        status, reason = _death(code, self._errors.read())
        return _WorkerEnded(status, f"while {doing}: {reason}")


def _kill_group(process: subprocess.Popen[str]) -> None:
    """End a process that began a session of its own, and what it left behind there."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _death(code: int, errors: str) -> tuple[Status, str]:
    """What an exit code and the last words of a process say of its end."""
    tail = _tail(errors)
    said = f"; it last said: {tail}" if tail else ""
    if code == -9:
        return "out_of_memory", "killed from outside with SIGKILL, most likely for memory (see the kernel's log)"
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.Signals._value2member_map_ else f"signal {-code}"
        return "crashed", f"the process died of {name}{said}"
    return "crashed", f"the process ended with exit code {code}{said}"


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-_STDERR_TAIL:]
