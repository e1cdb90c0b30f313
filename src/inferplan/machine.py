"""Machine: the host's facts and their fingerprint, read from /proc and /sys, else psutil.

Owns what can be known without running anything: CPU, ISA, cores and memory
really granted, caches, GPUs. Leaves measured rates to `bandwidth`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

ROOT = Path("/")

# What the matrix kernels of the engines dispatch on, in the kernel's own spelling (x86 `flags`, Arm `Features`).
ISA = (
    "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16", "sme",
)  # fmt: skip

# Arm's /proc/cpuinfo holds numbers only; the commonest server and board parts of implementer 0x41,
# as in the Main ID Register tables of Arm's technical reference manuals.
_ARM_PARTS = {
    "0xd03": "Cortex-A53", "0xd08": "Cortex-A72", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2",
}  # fmt: skip

# MemTotal moves by some MiB with every kernel, for the same memory: the fingerprint sees it in steps of this.
_MEMORY_STEP_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts of the host. Nothing here is measured, and nothing changes from one minute to the next.

    Attributes:
        cpu_model: the maker's name of the CPU.
        arch: `x86_64`, `aarch64`, `arm64`, `AMD64`.
        isa: those of `ISA` that the CPU has, in that order; empty where the system does not tell.
        cores_logical: CPUs that are online.
        cores_physical: cores behind them.
        cores_granted: CPUs that this process may really use: the smaller of its
            affinity and the tightest quota of its control groups.
        caches: (`L1d`, `L2`, `L3`) with the bytes of one such cache, as CPU 0 sees it.
        memory_bytes: memory of the machine.
        memory_granted_bytes: the smaller of that and the tightest limit of the control groups.
        gpus: names of NVIDIA GPUs.
        system: `Linux`, `Darwin`, `Windows`.
    """

    cpu_model: str
    arch: str
    isa: tuple[str, ...]
    cores_logical: int
    cores_physical: int
    cores_granted: float
    caches: tuple[tuple[str, int], ...]
    memory_bytes: int
    memory_granted_bytes: int
    gpus: tuple[str, ...]
    system: str
    kernel: str
    python: str

    @property
    def fingerprint(self) -> str:
        """12 hex digits over the facts, less the versions of kernel and Python (a key of their own)."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("kernel", "python")}
        for name in ("memory_bytes", "memory_granted_bytes"):
            facts[name] = round(facts[name] / _MEMORY_STEP_BYTES)
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]

    def cache_bytes(self, name: str) -> int | None:
        """Size of one cache, `L1d`, `L2` or `L3`; None where it is not known."""
        return dict(self.caches).get(name)


def detect(root: Path = ROOT) -> Machine:
    """The machine under us, or the one whose /proc and /sys lie below `root`.

    Never raises for a file that is missing: what /proc and /sys do not tell comes
    from psutil and platform (Windows, macOS, locked-down containers).
    """
    cpuinfo = _fields(root / "proc/cpuinfo")
    logical = len(_cpu_list(_text(root / "sys/devices/system/cpu/online"))) or _logical_cpus(root, cpuinfo)
    memory = _meminfo_total(root) or _psutil_memory()
    return Machine(
        cpu_model=_cpu_model(cpuinfo),
        arch=platform.machine(),
        isa=_isa(cpuinfo),
        cores_logical=logical,
        cores_physical=_cores_physical(root, logical),
        cores_granted=float(min([_affinity(root) or logical, *_cpu_quotas(root)])),
        caches=_caches(root),
        memory_bytes=memory,
        memory_granted_bytes=min([memory, *_memory_limits(root)]),
        gpus=_gpus(root),
        system=platform.system(),
        kernel=platform.release(),
        python=platform.python_version(),
    )


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that this process may run on, ascending."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def preferred_cpus(root: Path = ROOT) -> tuple[int, ...]:
    """The CPUs of `usable_cpus` in the order in which a plan should take them.

    One CPU of every core comes before the second of any: two hardware threads of
    one core do not make two cores. The last core comes first, because the kernel
    likes to serve interrupts on the first.
    """
    cores: dict[str, list[int]] = {}
    for cpu in reversed(usable_cpus()):
        siblings = _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault(siblings or str(cpu), []).append(cpu)
    deepest = max(map(len, cores.values()))
    return tuple(group[level] for level in range(deepest) for group in cores.values() if level < len(group))


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed version by distribution name; names that are not installed are left out."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return dict(sorted(found.items()))


# --- files -----------------------------------------------------------------


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _fields(path: Path) -> dict[str, str]:
    """First value of each `key : value` line of /proc/cpuinfo or /proc/self/status."""
    found: dict[str, str] = {}
    for line in _text(path).splitlines():
        key, colon, value = line.partition(":")
        if colon:
            found.setdefault(key.strip(), value.strip())
    return found


def _cpu_list(text: str) -> tuple[int, ...]:
    """`0-3,8` as (0, 1, 2, 3, 8)."""
    cpus: set[int] = set()
    for part in text.split(","):
        if match := re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part):
            first = int(match[1])
            cpus.update(range(first, int(match[2] or first) + 1))
    return tuple(sorted(cpus))


# --- processor -------------------------------------------------------------


def _cpu_model(cpuinfo: dict[str, str]) -> str:
    if name := cpuinfo.get("model name") or cpuinfo.get("Model") or cpuinfo.get("Hardware"):
        return name
    if part := cpuinfo.get("CPU part"):
        maker = cpuinfo.get("CPU implementer", "?")
        known = _ARM_PARTS.get(part) if maker == "0x41" else None
        return known or f"Arm implementer {maker} part {part}"
    if platform.system() == "Darwin" and (name := _output("sysctl", "-n", "machdep.cpu.brand_string")):
        return name
    return platform.processor() or platform.machine() or "unknown"


def _isa(cpuinfo: dict[str, str]) -> tuple[str, ...]:
    flags = set((cpuinfo.get("flags") or cpuinfo.get("Features") or "").split())
    return tuple(name for name in ISA if name in flags)


def _logical_cpus(root: Path, cpuinfo: dict[str, str]) -> int:
    if cpuinfo:
        return len(re.findall(r"^processor\s*:", _text(root / "proc/cpuinfo"), re.MULTILINE)) or 1
    return os.cpu_count() or 1


def _cores_physical(root: Path, logical: int) -> int:
    # Siblings of one core share the list: each distinct list is a core.
    cores = {_text(p) for p in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list")} - {""}
    if cores:
        return len(cores)
    if root != ROOT:
        return logical
    import psutil

    return int(psutil.cpu_count(logical=False) or logical)


def _affinity(root: Path) -> int | None:
    # The kernel's list counts cpusets too, and can be faked by tests; elsewhere there is no affinity to ask for.
    listed = _cpu_list(_fields(root / "proc/self/status").get("Cpus_allowed_list", ""))
    return len(listed) or (len(usable_cpus()) if root == ROOT else None)


def _caches(root: Path) -> tuple[tuple[str, int], ...]:
    found: dict[str, int] = {}
    for index in sorted(root.glob("sys/devices/system/cpu/cpu0/cache/index[0-9]*")):
        level, kind = _text(index / "level"), _text(index / "type")
        size = re.fullmatch(r"(\d+)([KMG]?)", _text(index / "size"))
        if kind != "Instruction" and level and size:
            name = f"L{level}" + ("d" if level == "1" else "")
            found[name] = int(size[1]) << {"": 0, "K": 10, "M": 20, "G": 30}[size[2]]
    return tuple(sorted(found.items()))


def _gpus(root: Path) -> tuple[str, ...]:
    cards = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    if cards:
        return tuple(_fields(card).get("Model", "NVIDIA GPU") for card in cards)
    if root == ROOT and shutil.which("nvidia-smi"):
        return tuple(_output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines())
    return ()


def _output(*command: str) -> str:
    """What a system tool prints; nothing when it is missing, fails or takes longer than 5 s (a hung driver)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


# --- memory and control groups ---------------------------------------------


def _meminfo_total(root: Path) -> int | None:
    total = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(total[1]) * 1024 if total else None


def _psutil_memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """Cores allowed by each control group from ours up, of version 1, 2 or both (a hybrid system mounts both)."""
    for group in _groups(root, "cpu"):
        words = _text(group / "cpu.max").split()
        if len(words) == 2 and all(word.isdigit() for word in words):  # "max 100000" sets no limit
            yield int(words[0]) / int(words[1])
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:  # -1 sets no limit
            yield quota / period


def _memory_limits(root: Path) -> Iterator[int]:
    for group in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _number(group / name)
            # Version 1 spells "no limit" as the largest page-aligned 63-bit number; min() with the memory drops it.
            if limit is not None and limit > 0:
                yield limit


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Directories of our control group for `controller` and of every group above it that we can see."""
    ours = dict(_memberships(root))
    for kind, mounted_from, mountpoint, controllers in _cgroup_mounts(root):
        if kind == "cgroup" and controller not in controllers:
            continue
        path = ours.get(controller if kind == "cgroup" else "")
        if path is None:
            continue
        top = root / mountpoint.lstrip("/")
        # A container may see its host's path while the mount starts at its own group; then the mount is our group.
        inside = _below(path, mounted_from)
        group = top.joinpath(*inside) if inside is not None else top
        while not group.is_dir() and group != top:
            group = group.parent
        while True:
            yield group
            if group == top:
                break
            group = group.parent


def _below(path: str, base: str) -> tuple[str, ...] | None:
    try:
        parts = PurePosixPath(path).relative_to(base).parts
    except ValueError:
        return None
    return None if ".." in parts else parts


def _memberships(root: Path) -> Iterator[tuple[str, str]]:
    """(controller, path) of this process; the controller of version 2 is the empty name."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        parts = line.split(":", 2)
        if len(parts) == 3:
            for controller in parts[1].split(","):
                yield controller, parts[2]


def _cgroup_mounts(root: Path) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """(file system, what is mounted, where, options), per proc_pid_mountinfo(5)."""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        places, source = left.split(), right.split()
        if len(places) >= 5 and source and source[0] in ("cgroup", "cgroup2"):
            options = tuple(source[2].split(",")) if len(source) > 2 else ()
            where = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), places[4])
            yield source[0], places[3], where, options


def root_cpu_group(root: Path = ROOT) -> Path | None:
    """The version 1 `cpuacct` group that holds every process of the machine, where it is mounted.

    `release_agent` exists in the root group only, so a container's own group is not taken for it (cgroups(7)).
    """
    for kind, _, mountpoint, controllers in _cgroup_mounts(root):
        top = root / mountpoint.lstrip("/")
        if kind == "cgroup" and "cpuacct" in controllers and (top / "release_agent").exists():
            return top
    return None


def show_cores(cores: float) -> str:
    """`2` or `1.5`, for messages."""
    return str(int(cores)) if math.isclose(cores, round(cores)) else f"{cores:.2g}"
