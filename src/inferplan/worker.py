"""The child: one plan in one fresh process; the clock is here, alike for every engine.

A command, so that it can be any Python: `python -m inferplan.worker`, then JSON
lines on standard input and output. Standard library only, but for its engine.

    parent  {"do": "load", "plan": ..., "artifact": ..., "cpus": [...]}
    worker  {"event": "loaded", "load_s": ..., "actual": ..., "libraries": ...}
    parent  {"do": "generate", "prompt_ids": [...], "max_tokens": n, "cut_after_s": null, "cut_first_after_s": null}
    worker  {"event": "sample", "latency_s": ..., "token_times_s": [...], ...}
    parent  {"do": "close"}                            worker  {"event": "closed"}

A request is sent only when the one before was kept, so the next command is the
acknowledgement. Anything that goes wrong is {"event": "failed", "status", "reason"}.
`--describe ENGINE` prints what the engine says of itself; `--convert` reads
{"plan", "checkpoint", "out"} and makes an artifact; `--recipe` prints how to run a
plan with its engine alone.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from ._codec import decode, encode
from .engines import load_engine
from .engines.base import Engine, EngineInfo
from .errors import EngineError, InputError, Unsupported
from .measurement import Actual, Status
from .plan import Plan

_PR_SET_PDEATHSIG = 1  # prctl(2)
_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "bad_alloc", "out of memory")


def main(argv: list[str] | None = None) -> int:
    """Run one of the four commands. The exit code is 0 unless the conversation itself broke."""
    arguments = sys.argv[1:] if argv is None else argv
    out = _take_stdout()
    if arguments[:1] == ["--describe"]:
        _say(out, encode(_describe(arguments[1])))
        return 0
    if arguments == ["--recipe"]:
        _say(out, {"recipe": _recipe(json.loads(sys.stdin.readline()))})
        return 0
    _die_with_parent()
    if arguments == ["--convert"]:
        return _convert(json.loads(sys.stdin.readline()), out)
    return _serve(_lines(), out)


def _take_stdout() -> TextIO:
    """Keep standard output for the conversation; what engines print goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _say(out: TextIO, message: Any) -> None:
    out.write(json.dumps(message, separators=(",", ":")) + "\n")
    out.flush()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _lines() -> Iterator[str]:
    """Lines of standard input. A thread waits for them, so that the parent's death ends us mid-request too."""
    inbox: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            inbox.put(line)
        os._exit(1)  # the parent is gone: nobody is left to read a sample

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield inbox.get()


def _describe(name: str) -> EngineInfo:
    try:
        return load_engine(name).describe()
    except ImportError as err:
        lacks = {"engine": f"the package {err.name or err} is not installed"}
        return EngineInfo(name=name, version="", precisions=(), lacks=lacks)


def _recipe(task: dict[str, Any]) -> str | None:
    plan = decode(Plan, task["plan"])
    write = getattr(load_engine(plan.engine), "native_recipe", None)
    return None if write is None else str(write(plan, task["checkpoint"]))


def _convert(task: dict[str, Any], out: TextIO) -> int:
    plan = decode(Plan, task["plan"])
    try:
        engine = load_engine(plan.engine)
        if why := engine.unsupported(plan):
            raise Unsupported(why)
        start = time.perf_counter()
        engine.convert(Path(task["checkpoint"]), plan, Path(task["out"]))
        _say(out, {"event": "converted", "seconds": time.perf_counter() - start})
    except Exception as err:  # every failure of an engine becomes a row with its reason
        _say(out, _failure(err))
    return 0


def _serve(lines: Iterator[str], out: TextIO) -> int:
    engine: Engine | None = None
    for line in lines:
        command = json.loads(line)
        try:
            if command["do"] == "load":
                engine = _load(command, out)
            elif command["do"] == "generate" and engine is not None:
                _say(out, _generate(engine, command))
            elif command["do"] == "close":
                if engine is not None:
                    engine.close()
                _say(out, {"event": "closed"})
                return 0
        except Exception as err:  # every failure of an engine becomes a row with its reason
            _say(out, _failure(err))
            return 0
    return 0


def _load(command: dict[str, Any], out: TextIO) -> Engine:
    plan = decode(Plan, command["plan"])
    if command["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, command["cpus"])
    engine = load_engine(plan.engine)
    if why := engine.unsupported(plan):
        raise Unsupported(why)
    _say(out, {"event": "ready"})
    start = time.perf_counter()
    actual = engine.load(plan, Path(command["artifact"]))
    load_s = time.perf_counter() - start
    gc.collect()
    gc.freeze()  # what was loaded stays: later collections need not walk it
    libraries = engine.describe().libraries
    _say(out, {"event": "loaded", "load_s": load_s, "actual": encode(_with_affinity(actual)), "libraries": libraries})
    return engine


def _with_affinity(actual: Actual) -> Actual:
    if not hasattr(os, "sched_getaffinity"):
        return actual
    pinned = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0)))
    return replace(actual, details={**actual.details, "cpus": pinned})


def _or_never(seconds: float | None) -> float:
    return float("inf") if seconds is None else float(seconds)


def _generate(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    prompt, limit = tuple(command["prompt_ids"]), int(command["max_tokens"])
    cut_after, cut_first_after = (_or_never(command.get(name)) for name in ("cut_after_s", "cut_first_after_s"))
    times: list[float] = []
    ids: list[int] = []
    clock, cut = time.perf_counter, False
    gc.disable()
    started_at, cpu = time.time(), time.process_time()
    start = clock()
    tokens = engine.generate(prompt, limit)
    for token in tokens:
        now = clock() - start
        times.append(now)
        ids.append(token)
        if (now > cut_after or (len(ids) == 1 and now > cut_first_after)) and len(ids) < limit:
            cut = True
            break
    latency = clock() - start
    cpu_s = time.process_time() - cpu
    gc.enable()
    close = getattr(tokens, "close", None)
    if close is not None:
        close()
    if not cut and len(ids) != limit:
        raise EngineError(f"asked for {limit} tokens, the engine gave {len(ids)}")
    return {
        "event": "sample",
        "started_at": started_at,
        "latency_s": latency,
        "token_times_s": times,
        "output_ids": ids,
        "cpu_s": cpu_s,
        "cut": cut,
    }


def _failure(err: Exception) -> dict[str, Any]:
    status: Status = "failed"
    text = str(err) or type(err).__name__
    if isinstance(err, Unsupported):
        status = "unsupported"
    elif isinstance(err, MemoryError) or any(words in text.lower() for words in _OUT_OF_MEMORY):
        status, text = "out_of_memory", text if str(err) else "not enough memory for this plan"
    elif isinstance(err, ImportError):
        status, text = "unsupported", f"a package is missing: {text}"
    elif not isinstance(err, EngineError | InputError):
        text = f"{type(err).__name__}: {text}"
    return {"event": "failed", "status": status, "reason": " ".join(text.split())[:1000]}


if __name__ == "__main__":
    sys.exit(main())
