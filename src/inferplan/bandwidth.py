"""Read bandwidth of memory by thread count: `python -m inferplan.bandwidth THREADS` prints it as JSON.

Owns the kernel that reads. Leaves the rates of computing to `rates`, what
a plan should make of them to `predict`. Runs in a process of its own, so that no thread setting leaks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ._codec import decode, encode
from .errors import EngineError, InputError

# Far beyond any last-level cache that these machines have, so that every repeat comes from memory.
BUFFER_BYTES = 512 << 20
_COLUMNS = 4096  # of the matrix: its vector, 16 KiB, stays in the L1 cache
_WARMUP_REPEATS = 2  # page tables and the thread pool
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_START_TIMEOUT_S = 120.0  # importing torch on a cold disk


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """The best rate that one kernel read memory at.

    Attributes:
        bytes_per_s: buffer size over the time of the fastest repeat.
        kernel: what read, and the library's version.
        threads: threads it was given.
        buffer_bytes: size of the buffer, all of which every repeat reads.
    """

    bytes_per_s: float
    kernel: str
    threads: int
    buffer_bytes: int


def read_bandwidth(threads: int, seconds: float = 1.0, *, buffer_bytes: int = BUFFER_BYTES) -> Bandwidth:
    """Measure in a fresh process, for about `seconds` a kernel.

    Raises:
        InputError: threads below 1.
        EngineError: the process failed (out of memory, neither torch nor numpy), with its last words.
    """
    answer = told_by("inferplan.bandwidth", threads, seconds, buffer_bytes, 4 * seconds, "the read bandwidth")
    return decode(Bandwidth, answer)


def told_by(module: str, threads: int, seconds: float, buffer_bytes: int, most_s: float, what: str) -> Any:
    """What `python -m MODULE THREADS` prints last, as JSON, in a fresh process with its thread settings.

    Args:
        most_s: seconds that measuring may take; starting comes on top.
        what: is measured, for the words of an error.

    Raises:
        InputError: threads below 1.
        EngineError: the process failed, with its last words.
    """
    if threads < 1:
        raise InputError(f"threads must be at least 1, not {threads}")
    command = [sys.executable, "-m", module, str(threads)]
    command += ["--seconds", str(seconds), "--buffer-bytes", str(buffer_bytes)]
    env = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=_START_TIMEOUT_S + most_s, check=True
        )
    except subprocess.TimeoutExpired as error:
        raise EngineError(f"measuring {what} took longer than {error.timeout:g} s") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(f"measuring {what} failed (exit {error.returncode}): {last}") from error
    return json.loads(done.stdout.splitlines()[-1])


def measured_here(threads: int, seconds: float, buffer_bytes: int = BUFFER_BYTES) -> Bandwidth:
    """Measure in this process: for one that was started with its thread settings and does little else.

    The fastest of the kernels that this Python has counts: which one reads best differs between CPUs and builds.
    """
    try:
        kernels = _torch_kernels(threads, buffer_bytes)
    except ImportError:
        kernels = _numpy_kernels(threads, buffer_bytes)
    rates = {name: buffer_bytes / _best_s(read, seconds) for name, read in kernels.items()}
    fastest = max(rates, key=rates.__getitem__)
    return Bandwidth(rates[fastest], fastest, threads, buffer_bytes)


def _best_s(read: Callable[[], Any], seconds: float) -> float:
    for _ in range(_WARMUP_REPEATS):
        read()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        read()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def _torch_kernels(threads: int, buffer_bytes: int) -> dict[str, Callable[[], Any]]:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    # Filled, not zeros: fresh zero pages share one physical page, which would be read from the cache.
    matrix = torch.ones(buffer_bytes // 4 // _COLUMNS, _COLUMNS)
    vector = torch.ones(_COLUMNS)
    flat = matrix.view(-1)
    version = f"torch {torch.__version__}"
    return {
        f"{version} sum float32": lambda: torch.sum(flat),
        f"{version} dot float32": lambda: torch.dot(flat, flat),
        f"{version} mv float32": lambda: torch.mv(matrix, vector),
    }


def _numpy_kernels(threads: int, buffer_bytes: int) -> dict[str, Callable[[], Any]]:
    import numpy

    buffer = numpy.ones(buffer_bytes // 4, dtype=numpy.float32)
    note = "" if threads == 1 else ", one thread: torch is not installed"
    return {f"numpy {numpy.__version__} max float32{note}": buffer.max}


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inferplan.bandwidth", description=__doc__)
    parser.add_argument("threads", type=int)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--buffer-bytes", type=int, default=BUFFER_BYTES)
    args = parser.parse_args()
    print(json.dumps(encode(measured_here(args.threads, args.seconds, args.buffer_bytes))))


if __name__ == "__main__":
    _main()
