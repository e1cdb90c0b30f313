"""Memory and CPU time of a process tree, read from outside.

Owns the high-water mark by phase. On Linux from /proc (VmHWM, reset through
clear_refs); elsewhere through psutil and the platform's own peak counter.
Never `ru_maxrss`: a child inherits its parent's.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_KIB = 1024


@dataclass(frozen=True, slots=True)
class TreeMemory:
    """Resident memory of a tree, in bytes, summed over its processes.

    A page that two processes share counts twice, and marks of processes that
    peaked at different times add up: for a tree of one, both are exact.

    Attributes:
        anonymous_bytes, file_bytes: None where the platform does not tell.
    """

    rss_bytes: int
    peak_bytes: int
    anonymous_bytes: int | None
    file_bytes: int | None
    method: str


def tree(pid: int) -> tuple[int, ...]:
    """`pid` and all its living descendants."""
    if not _has_proc():
        return _tree_psutil(pid)
    found, waiting = [], [pid]
    while waiting:
        current = waiting.pop()
        found.append(current)
        for task in _tasks(current):
            try:
                waiting += [int(child) for child in (task / "children").read_text().split()]
            except OSError:  # the thread ended meanwhile, or the kernel keeps no list of children
                continue
    return tuple(found)


def read_memory(pid: int) -> TreeMemory:
    """Memory of the tree below `pid` now; zeros when it is gone."""
    if not _has_proc():
        return _read_psutil(pid)
    rss = peak = anonymous = file = 0
    for member in tree(pid):
        fields = _status(member)
        rss += fields.get("VmRSS", 0)
        peak += fields.get("VmHWM", 0)
        anonymous += fields.get("RssAnon", 0)
        file += fields.get("RssFile", 0) + fields.get("RssShmem", 0)
    return TreeMemory(rss, peak, anonymous, file, "VmHWM")


def reset_peak(pid: int) -> bool:
    """Set the high-water mark of the tree to what is resident now; False where that cannot be done."""
    if not _has_proc():
        return False
    try:
        for member in tree(pid):
            (_PROC / str(member) / "clear_refs").write_text("5")  # proc(5): resets VmHWM
    except OSError:
        return False
    return True


def descendants_cpu_s(pid: int) -> float:
    """CPU seconds of the tree below `pid`, itself left out: an engine's helper processes."""
    if not _has_proc():
        return 0.0
    ticks = 0
    for member in tree(pid)[1:]:
        try:
            fields = (_PROC / str(member) / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _has_proc() -> bool:
    return (_PROC / "self" / "status").exists()


def _tasks(pid: int) -> list[Path]:
    try:
        return list((_PROC / str(pid) / "task").iterdir())
    except OSError:  # it ended meanwhile
        return []


def _status(pid: int) -> dict[str, int]:
    try:
        text = (_PROC / str(pid) / "status").read_text()
    except OSError:  # it ended meanwhile
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if line.endswith(" kB"))
    return {name: int(value.split()[0]) * _KIB for name, value in pairs}


def _tree_psutil(pid: int) -> tuple[int, ...]:
    import psutil

    try:
        return (pid, *(child.pid for child in psutil.Process(pid).children(recursive=True)))
    except psutil.NoSuchProcess:
        return ()


def _read_psutil(pid: int) -> TreeMemory:
    import psutil

    rss = peak = 0
    method = "largest RSS seen by sampling (psutil)"
    for member in _tree_psutil(pid):
        try:
            info = psutil.Process(member).memory_info()
        except psutil.NoSuchProcess:
            continue
        rss += info.rss
        if (most := getattr(info, "peak_wset", None)) is not None:
            method = "PeakWorkingSetSize"
        elif (most := _peak_footprint(member)) is not None:
            method = "ri_lifetime_max_phys_footprint"
        peak += info.rss if most is None else most
    return TreeMemory(rss, peak, None, None, method)


# struct rusage_info_v4 of Apple's <sys/resource.h>: 16 bytes of uuid, then 35 numbers of 64 bits.
_RUSAGE_INFO_V4, _FIELDS, _LIFETIME_MAX_PHYS_FOOTPRINT = 4, 35, 28


def _peak_footprint(pid: int) -> int | None:
    """macOS' own counter: the most physical memory that the process ever held; None elsewhere, or when it is gone."""
    if sys.platform != "darwin":
        return None
    import ctypes

    class Usage(ctypes.Structure):
        _fields_ = (("uuid", ctypes.c_uint8 * 16), ("numbers", ctypes.c_uint64 * _FIELDS))

    usage = Usage()
    try:
        failed = ctypes.CDLL("/usr/lib/libproc.dylib").proc_pid_rusage(pid, _RUSAGE_INFO_V4, ctypes.byref(usage))
    except (OSError, AttributeError):  # a system without it
        return None
    return None if failed else int(usage.numbers[_LIFETIME_MAX_PHYS_FOOTPRINT]) or None
