"""The worker's loop with nothing around it: the engine, a clock, token times and ids.

Reads a task from standard input: {"plan", "artifact", "prompts": [[ids]], "warmup": [ids], "warmup_tokens",
"tokens", "cpus"}; prints latencies and peak memory by phase as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

from inferplan._codec import decode
from inferplan.engines import load_engine
from inferplan.plan import Plan

_STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """The high-water mark of this process (Linux)."""
    return next(int(line.split()[1]) << 10 for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))


def main() -> None:
    task = json.loads(sys.stdin.read())
    if task["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cpus"])
    plan = decode(Plan, task["plan"])
    engine = load_engine(plan.engine)
    engine.load(plan, Path(task["artifact"]))
    gc.collect()
    gc.freeze()
    load_peak = peak_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    for _ in engine.generate(task["warmup"], task["warmup_tokens"]):
        pass
    latencies = []
    for prompt in task["prompts"]:
        gc.disable()
        times, ids = [], []
        start = time.perf_counter()
        for token in engine.generate(prompt, task["tokens"]):
            times.append(time.perf_counter() - start)
            ids.append(token)
        latencies.append(time.perf_counter() - start)
        gc.enable()
    print(json.dumps({"latency_s": latencies, "peak_bytes": max(load_peak, peak_bytes())}))


if __name__ == "__main__":
    main()
