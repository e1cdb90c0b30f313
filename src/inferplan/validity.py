"""Was this sample disturbed from outside? Counters read before and after, their differences, thresholds.

Owns the outside signals and when they count. Leaves retakes to `measure`; a
sample is never judged by its own latency.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .machine import ROOT, root_cpu_group
from .measurement import Signals

# Each limit is the larger of an absolute part, below which the counters themselves are too coarse to be
# believed, and a share of the sample's wall time, below which a latency cannot move by more than that share.

# Two CPUs' counters are each off by up to a 10 ms tick at either end; timers and daemons of an idle Linux
# guest took below 1% of one core here.
OTHER_CPU_FLOOR_S = 0.030
# Where the counter is in nanoseconds, what is left is our worker's own work around the request. It must be small: in
# plans whose threads spin while they wait, a neighbour that takes 10 ms can cost a short request as much again.
EXACT_OTHER_CPU_FLOOR_S = 0.005
OTHER_CPU_SHARE = 0.05
# Where cores are left over for the others they still share the last-level cache and the memory bus, which is
# what decoding waits for: an eighth of the machine's cores kept busy counts in any case.
OTHER_CPU_MACHINE_SHARE = 0.125
# Steal comes in 10 ms ticks: one may be rounding, two are not.
STEAL_FLOOR_S = 0.010
STEAL_SHARE = 0.02
# Waiting for a CPU: our own parent, which wakes to watch memory, makes a few milliseconds of it.
CPU_STALL_FLOOR_S = 0.030
CPU_STALL_SHARE = 0.05
# Waiting for memory (reclaim, refaults) hardly ever happens by chance; 1% of a request is already an effect.
MEMORY_STALL_FLOOR_S = 0.005
MEMORY_STALL_SHARE = 0.01
# Any page swapped in or out means that weights or activations may have been on disk.
SWAPPED_PAGES = 0
# Reads of the canary scatter by up to 1.3 times on a busy two-core guest (best of two, measured 2026-11);
# one neighbour streaming through the same bus slows it by more than this.
CANARY_SLOWDOWN = 1.6

# Twice the 32 MiB of last-level cache that a core of today's servers can reach, so that most of the read comes
# from memory; 64 MiB took 3 ms here, 32 MiB fitted the cache and scattered between 1 and 6 ms.
CANARY_BYTES = 64 << 20
_CANARY_READS = 2  # the faster of two: a timer interrupt hits one of them, a neighbour hits both
_CANARY_MINIMUM = 5  # reads before there is a reference

_TICKS_PER_S = 100.0  # USER_HZ, what /proc/stat is written in, on every architecture that we run on


@dataclass(frozen=True, slots=True)
class Reading:
    """The machine's counters at one moment; None where this system does not tell. CPU seconds sum over cores.

    Attributes:
        time_s: monotonic clock.
        busy_cpu_s: CPU time that all processes together have used since boot.
        steal_s: CPU time that the hypervisor gave to somebody else.
        cpu_stall_s, memory_stall_s: PSI `some` totals.
        swapped_pages: pages swapped in and out since boot.
    """

    time_s: float
    busy_cpu_s: float | None = None
    steal_s: float | None = None
    cpu_stall_s: float | None = None
    memory_stall_s: float | None = None
    swapped_pages: int | None = None


def read_counters(root: Path = ROOT) -> Reading:
    """Read the counters once: about 0.1 ms on Linux. Never raises for a counter that is missing."""
    busy, steal = _proc_stat(root)
    exact = _exact_busy(root)
    swapped = _swapped_pages(root)
    if root == ROOT and busy is None and exact is None:
        busy, swapped = _psutil_counters()
    return Reading(
        time_s=time.perf_counter(),
        busy_cpu_s=busy if exact is None else exact,
        steal_s=steal,
        cpu_stall_s=_stall(root, "cpu"),
        memory_stall_s=_stall(root, "memory"),
        swapped_pages=swapped,
    )


def signals(before: Reading, after: Reading, own_cpu_s: float, parent_cpu_s: float, canary_s: float | None) -> Signals:
    """What happened outside between two readings.

    Args:
        own_cpu_s: CPU time of the measured process tree in between.
        parent_cpu_s: CPU time of the process that watches it in between; it is ours, not outside.
        canary_s: the canary's read just before the sample, if there was one.
    """
    busy = _difference(before.busy_cpu_s, after.busy_cpu_s)
    swapped = _difference(before.swapped_pages, after.swapped_pages)
    return Signals(
        wall_s=after.time_s - before.time_s,
        # The counters are read a little before and after ours, in ticks: a small negative rest is none at all.
        other_cpu_s=None if busy is None else max(0.0, busy - own_cpu_s - parent_cpu_s),
        steal_s=_difference(before.steal_s, after.steal_s),
        cpu_stall_s=_difference(before.cpu_stall_s, after.cpu_stall_s),
        memory_stall_s=_difference(before.memory_stall_s, after.memory_stall_s),
        swapped_pages=None if swapped is None else int(swapped),
        canary_s=canary_s,
    )


def disturbances(
    signals: Signals,
    *,
    cores: float,
    threads: int,
    canary_reference_s: float | None,
    machine_cores: float | None = None,
    exact: bool = False,
) -> tuple[str, ...]:
    """Why the sample was disturbed, a sentence part each with the figure and its limit; empty: it was not.

    Args:
        cores: CPUs granted to us.
        threads: compute threads of the plan.
        canary_reference_s: what a read of the canary takes when nothing disturbs it; None: not known yet.
        machine_cores: CPUs of the whole machine, on all of which others are counted; None: as many as are
            granted. Without it a container on a large busy host finds every sample disturbed.
        exact: whether CPU time was counted in nanoseconds (`counts_exactly`), not in ticks.

    Other CPU time harms when it exceeds the time of the cores that the plan leaves
    idle, or, through cache and memory bus, when it is an eighth of the machine.
    A plan with more threads than cores makes its own CPU stalls: PSI says nothing there.
    """
    wall = signals.wall_s
    tolerance = max(EXACT_OTHER_CPU_FLOOR_S if exact else OTHER_CPU_FLOOR_S, OTHER_CPU_SHARE * wall)
    everywhere = cores if machine_cores is None else machine_cores
    idle = max(0.0, everywhere - threads) * wall
    shared = max(tolerance, OTHER_CPU_MACHINE_SHARE * everywhere * wall)
    stall = max(CPU_STALL_FLOOR_S, CPU_STALL_SHARE * wall)
    canary = None if canary_reference_s is None else CANARY_SLOWDOWN * canary_reference_s
    checks: tuple[tuple[str, float | None, float | None], ...] = (
        ("CPU time of other processes", signals.other_cpu_s, min(idle + tolerance, shared)),
        ("steal by the hypervisor", signals.steal_s, max(STEAL_FLOOR_S, STEAL_SHARE * wall)),
        ("waiting for a CPU", signals.cpu_stall_s, stall if threads <= cores else None),
        ("waiting for memory", signals.memory_stall_s, max(MEMORY_STALL_FLOOR_S, MEMORY_STALL_SHARE * wall)),
        ("read of the memory canary", signals.canary_s, canary),
    )
    reasons = [
        f"{what}: {1e3 * value:.1f} ms, limit {1e3 * limit:.1f} ms"
        for what, value, limit in checks
        if value is not None and limit is not None and value > limit
    ]
    if signals.swapped_pages is not None and signals.swapped_pages > SWAPPED_PAGES:
        reasons.append(f"swapping: {signals.swapped_pages} pages, limit {SWAPPED_PAGES}")
    return tuple(reasons)


def counts_exactly(root: Path = ROOT) -> bool:
    """Whether the CPU time of all processes is counted in nanoseconds here."""
    return _exact_source(root) is not None


class Canary:
    """A fixed read of memory, timed: slow when something else uses the memory bus.

    Holds `size_bytes` for as long as it lives. The read is C's search for a byte
    that is not there, which runs near the speed of memory.
    """

    def __init__(self, size_bytes: int = CANARY_BYTES) -> None:
        # Filled, because fresh zero pages all map to one physical page, which would be read from the cache.
        self._buffer = b"\x55" * size_bytes
        self._reads_s: list[float] = []

    def read(self) -> float:
        """Seconds of one read, kept for the reference; about twice 3 ms here with the default size."""
        taken = min(self._scan() for _ in range(_CANARY_READS))
        self._reads_s.append(taken)
        return taken

    def _scan(self) -> float:
        start = time.perf_counter()
        self._buffer.find(b"\xaa")
        return time.perf_counter() - start

    @property
    def reference_s(self) -> float | None:
        """Median of the faster half of the reads so far; None with fewer than five."""
        return canary_reference(tuple(self._reads_s))


def canary_reference(reads_s: tuple[float, ...]) -> float | None:
    """Median of the faster half, which a study that is disturbed half of the time still gets right."""
    if len(reads_s) < _CANARY_MINIMUM:
        return None
    return statistics.median(sorted(reads_s)[: (len(reads_s) + 1) // 2])


def available_signals(root: Path = ROOT) -> Mapping[str, str]:
    """By signal, `yes` with its source, or `no` with why; for `doctor`."""
    reading = read_counters(root)
    return {
        "CPU time of others": _told(reading.busy_cpu_s, f"yes, from {_busy_source(root)}", "no CPU counters"),
        "steal": _told(reading.steal_s, "yes, from /proc/stat in steps of 10 ms", "no steal column in /proc/stat"),
        "PSI cpu": _told(reading.cpu_stall_s, "yes", _no_psi(root, "cpu")),
        "PSI memory": _told(reading.memory_stall_s, "yes", _no_psi(root, "memory")),
        "swap": _told(reading.swapped_pages, "yes", "no swap counters"),
        "memory canary": "yes",
        "CPU frequency": _found(root, "sys/devices/system/cpu/cpu*/cpufreq/scaling_cur_freq", "no cpufreq sensors"),
        "temperature": _found(root, "sys/class/thermal/thermal_zone*/temp", "no thermal sensors"),
    }


# --- counters --------------------------------------------------------------


def _read(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError:  # missing, or switched off: reading PSI then fails with EOPNOTSUPP
        return b""


def _proc_stat(root: Path) -> tuple[float | None, float | None]:
    """Busy and stolen CPU seconds from the first line of /proc/stat (proc_stat(5))."""
    words = _read(f"{root}/proc/stat").split(b"\n", 1)[0].split()
    if len(words) < 8 or words[0] != b"cpu":
        return None, None
    user, nice, system, _idle, _iowait, irq, softirq = (int(word) for word in words[1:8])
    steal = int(words[8]) / _TICKS_PER_S if len(words) > 8 else None
    return (user + nice + system + irq + softirq) / _TICKS_PER_S, steal


@cache
def _exact_source(root: Path) -> tuple[str, Callable[[bytes], float | None]] | None:
    """A counter in nanoseconds, where there is one: it tells 1 ms of others from none, ticks do not."""
    group = root_cpu_group(root)
    if group is not None and _nanoseconds(_read(f"{group}/cpuacct.usage")) is not None:
        return f"{group}/cpuacct.usage", _nanoseconds
    if _schedstat(_read(f"{root}/proc/schedstat")) is not None:
        return f"{root}/proc/schedstat", _schedstat
    return None


def _exact_busy(root: Path) -> float | None:
    source = _exact_source(root)
    return None if source is None else source[1](_read(source[0]))


def _nanoseconds(text: bytes) -> float | None:
    return int(text) / 1e9 if text.strip().isdigit() else None


def _schedstat(text: bytes) -> float | None:
    """Seconds that tasks have run: the 7th number of each cpu line, since version 15 of the file."""
    lines = [line.split() for line in text.splitlines()]
    if not lines or lines[0][:1] != [b"version"] or int(lines[0][1]) < 15:
        return None
    running = [int(words[7]) for words in lines if words and words[0].startswith(b"cpu") and len(words) > 7]
    return sum(running) / 1e9 if running else None


def _stall(root: Path, resource: str) -> float | None:
    """Total of PSI `some` in seconds; the kernel writes microseconds."""
    line = _read(f"{root}/proc/pressure/{resource}").split(b"\n", 1)[0]
    kind, _, total = line.partition(b"total=")
    return int(total) / 1e6 if kind.startswith(b"some") and total.isdigit() else None


def _swapped_pages(root: Path) -> int | None:
    text = _read(f"{root}/proc/vmstat")
    start = text.find(b"pswpin ")
    if start < 0:
        return None
    words = text[start : start + 80].split()  # `pswpin N`, and `pswpout N` right after it
    return int(words[1]) + (int(words[3]) if words[2:3] == [b"pswpout"] else 0)


def _psutil_counters() -> tuple[float | None, int | None]:
    """Busy CPU seconds and swapped pages where there is no /proc (Windows, macOS)."""
    import psutil

    times = psutil.cpu_times()._asdict()
    # `guest` is part of `user`; `dpc` and `interrupt` of Windows are part of `system`.
    busy = sum(times.get(name, 0.0) for name in ("user", "nice", "system", "irq", "softirq"))
    swap = psutil.swap_memory()
    return busy, (int(swap.sin) + int(swap.sout)) // 4096


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


# --- for doctor ------------------------------------------------------------


def _told(value: float | None, yes: str, why_not: str) -> str:
    return f"no: {why_not}" if value is None else yes


def _busy_source(root: Path) -> str:
    source = _exact_source(root)
    if source is not None:
        return f"{source[0].rpartition('/')[2]} in nanoseconds"
    return "/proc/stat in steps of 10 ms" if _read(f"{root}/proc/stat") else "psutil"


def _no_psi(root: Path, resource: str) -> str:
    if (root / "proc/pressure" / resource).exists():
        return "PSI is switched off; boot with psi=1"
    return "this kernel has no /proc/pressure (Linux 4.20 with CONFIG_PSI has it)"


def _found(root: Path, pattern: str, why_not: str) -> str:
    return "yes" if next(root.glob(pattern), None) else f"no: {why_not}"
