"""Rates of this machine, by thread count: reading memory, matrix times vector, matrix times matrix.

Owns measuring them (`python -m inferplan.rates THREADS` prints one thread count as JSON) and when those
that are kept still hold. Leaves what a plan should make of them to `predict`, and the file to `store`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ._codec import decode, encode
from .bandwidth import BUFFER_BYTES, measured_here, told_by
from .errors import InputError
from .machine import Machine, library_versions

LIBRARIES = ("torch", "numpy")
"""Whose kernels are timed: rates of other versions are measured again."""

_SECONDS = 0.15  # a kernel; there are up to nine of them for a thread count
_VECTOR_ROWS, _COLUMNS = 16384, 2048  # 32 Mi weights: 128 MiB at FP32, beyond the caches; 32 MiB at INT8
_BATCH, _MATRIX = 64, 1024  # a prefill of 64 tokens through a 1024 x 1024 layer, which stays in the L2 or L3 cache
_WARMUP_REPEATS = 2

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Rate:
    """What so many threads can do.

    Attributes:
        read_bytes_per_s: see `bandwidth`.
        kernel: what read fastest, with the library's version.
        matvec_bytes_per_s: bytes of weights of a matrix that a vector is multiplied with, by precision;
            empty precisions are those that this Python has no kernel for.
        matmul_flops: FLOP/s of a matrix times 64 vectors, by precision.
    """

    threads: int
    read_bytes_per_s: float
    kernel: str
    matvec_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    matmul_flops: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rates:
    """The rates of a machine, by thread count.

    Attributes:
        measured: one for each thread count, ascending; at least one.
        cores: cores that are granted; more threads than these share them.
        libraries: versions of what was timed.
        measured_at: seconds since the epoch.
    """

    measured: tuple[Rate, ...]
    cores: float
    libraries: Mapping[str, str] = field(default_factory=dict)
    measured_at: float = 0.0

    def __post_init__(self) -> None:
        if not self.measured:
            raise InputError("the rates of a machine need at least one thread count")

    def bandwidth(self, threads: int) -> float:
        """Bytes/s that so many threads read, between two measured counts on the line between them."""
        return self._between(threads, lambda rate: rate.read_bytes_per_s)

    def matmul(self, threads: int, precision: str) -> float:
        """FLOP/s of a matrix product; those of FP32 where the precision was not measured."""
        return self._between(threads, lambda rate: rate.matmul_flops.get(precision) or rate.matmul_flops["fp32"])

    def _between(self, threads: int, value: Callable[[Rate], float]) -> float:
        """More threads can do at least what fewer can: a lower figure was disturbed, or is no limit of the machine."""
        before, most = self.measured[0].threads, value(self.measured[0])
        for rate in self.measured[1:]:
            if threads <= before:
                break
            share = min(1.0, (threads - before) / (rate.threads - before))
            before, most = rate.threads, most + share * max(value(rate) - most, 0.0)
        return most


_WIDTHS = {"fp32": 4, "bf16": 2, "int8": 1}


class Keeper(Protocol):
    """The two methods of `store.Store` that are needed here."""

    def rates(self, fingerprint: str) -> Any | None:
        """What was kept for that machine; None when there is nothing."""

    def keep_rates(self, fingerprint: str, measured_at: float, payload: Any) -> None:
        """Keep it in place of what was kept before."""


def kept(store: Keeper, machine: Machine, *, refresh: bool = False, tell: Tell = lambda text: None) -> Rates:
    """The machine's rates: kept ones where they hold, else measured now (a few seconds) and kept.

    They are measured again when none are kept, when a library that was timed has
    another version, or when `refresh` asks for it. Call it while nothing is being timed.

    Raises:
        EngineError: they could not be measured; says why.
    """
    if not refresh and (found := known(store, machine)) is not None:
        return found
    rates = measure(machine, tell=tell)
    store.keep_rates(machine.fingerprint, rates.measured_at, encode(rates))
    return rates


def known(store: Keeper, machine: Machine) -> Rates | None:
    """The rates that are kept for this machine and these library versions; None when they must be measured."""
    payload = store.rates(machine.fingerprint)
    if payload is None:
        return None
    try:
        rates = decode(Rates, payload)
    except (TypeError, KeyError, InputError):
        return None  # written by another version of ours: a few seconds make new ones
    return rates if dict(rates.libraries) == library_versions(LIBRARIES) else None


def measure(machine: Machine, *, tell: Tell = lambda text: None, seconds: float = _SECONDS) -> Rates:
    """Measure 1, 2, 4, ... threads up to the cores that are granted, each in a fresh process.

    Args:
        seconds: for each kernel.

    Raises:
        EngineError: a process failed, with its last words.
    """
    counts = thread_counts(machine.cores_granted)
    found = []
    for place, threads in enumerate(counts, 1):
        tell(f"measuring the rates of this machine, {threads} thread{'s' * (threads > 1)} ({place} of {len(counts)})")
        found.append(measure_one(threads, seconds))
    return Rates(tuple(found), machine.cores_granted, library_versions(LIBRARIES), time.time())


def thread_counts(cores: float) -> tuple[int, ...]:
    """1, 2, 4, ... and as many as there are whole cores."""
    most = max(1, math.floor(cores))
    return tuple(sorted({*(2**power for power in range(most.bit_length())), most}))


def measure_one(threads: int, seconds: float = _SECONDS, *, buffer_bytes: int = BUFFER_BYTES) -> Rate:
    """Measure one thread count in a fresh process, for about `seconds` a kernel.

    Raises:
        InputError: threads below 1.
        EngineError: the process failed (out of memory, neither torch nor numpy), with its last words.
    """
    answer = told_by("inferplan.rates", threads, seconds, buffer_bytes, 20 * seconds, "the rates of this machine")
    return decode(Rate, answer)


# --- in the process that measures ---


def _here(threads: int, seconds: float, buffer_bytes: int) -> Rate:
    try:
        import torch  # noqa: F401  # only to see whether it is there

        kernels = _torch_kernels
    except ImportError:
        kernels = _numpy_kernels
    vector, matrix = kernels(threads)
    weights = _VECTOR_ROWS * _COLUMNS
    # Computing first: the buffer of the bandwidth is large, and a machine may cool down after it.
    matvec = {name: weights * _WIDTHS[name] / _best_s(run, seconds) for name, run in vector.items()}
    flops = 2.0 * _BATCH * _MATRIX * _MATRIX
    matmul = {name: flops / _best_s(run, seconds) for name, run in matrix.items()}
    del vector, matrix
    read = measured_here(threads, seconds, buffer_bytes)
    return Rate(threads, read.bytes_per_s, read.kernel, matvec, matmul)


Kernels = dict[str, Callable[[], Any]]


def _torch_kernels(threads: int) -> tuple[Kernels, Kernels]:
    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    vector: Kernels = {}
    matrix: Kernels = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for kernels, rows, columns, batch in _cases(vector, matrix):
            weights = torch.full((rows, columns), 0.5, dtype=dtype)
            inputs = torch.full((batch, columns), 0.5, dtype=dtype)
            kernels[name] = _call(torch.nn.functional.linear, inputs, weights)
    for kernels, rows, columns, batch in _cases(vector, matrix):
        if (run := _torch_int8(rows, columns, batch)) is not None:
            kernels["int8"] = run
    return vector, matrix


def _cases(vector: Kernels, matrix: Kernels) -> Sequence[tuple[Kernels, int, int, int]]:
    return (vector, _VECTOR_ROWS, _COLUMNS, 1), (matrix, _MATRIX, _MATRIX, _BATCH)


def _torch_int8(rows: int, columns: int, batch: int) -> Callable[[], Any] | None:
    """Dynamic INT8 as the transformers engine runs it; None where this build of torch has no kernel for it."""
    import warnings

    import torch

    warnings.simplefilter("ignore")  # deprecated for use in models, and the kernel that torch has
    try:
        weights = torch.quantize_per_tensor(torch.full((rows, columns), 0.5), 0.01, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(weights, None)
        inputs = torch.full((batch, columns), 0.5)
        torch.ops.quantized.linear_dynamic(inputs, packed)
    except (RuntimeError, AttributeError, NotImplementedError):
        return None
    return _call(torch.ops.quantized.linear_dynamic, inputs, packed)


def _numpy_kernels(threads: int) -> tuple[Kernels, Kernels]:
    """FP32 by numpy's BLAS, which took its thread count from the environment."""
    import numpy

    vector: Kernels = {}
    matrix: Kernels = {}
    for kernels, rows, columns, batch in _cases(vector, matrix):
        weights = numpy.full((rows, columns), 0.5, dtype=numpy.float32)
        inputs = numpy.full((columns, batch), 0.5, dtype=numpy.float32)
        kernels["fp32"] = _call(numpy.matmul, weights, inputs)
    return vector, matrix


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def _best_s(run: Callable[[], Any], seconds: float) -> float:
    """The fastest of the repeats: what the machine can do when nothing disturbs it."""
    for _ in range(_WARMUP_REPEATS):
        run()
    best, end = math.inf, time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        run()
        now = time.perf_counter()
        best = min(best, now - start)
        if now >= end:
            return best


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inferplan.rates", description=__doc__)
    parser.add_argument("threads", type=int)
    parser.add_argument("--seconds", type=float, default=_SECONDS)
    parser.add_argument("--buffer-bytes", type=int, default=BUFFER_BYTES)
    args = parser.parse_args()
    print(json.dumps(encode(_here(args.threads, args.seconds, args.buffer_bytes))))


if __name__ == "__main__":
    _main()
