"""Machine: facts read from /proc and /sys trees of every kind we know, here made by hand."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplan.machine import Machine, detect, library_versions, preferred_cpus, usable_cpus

X86 = (
    "processor : 0\nmodel name : Test CPU\nflags : fpu avx2 avx512_vnni amx_int8\n\n"
    "processor : 1\nmodel name : Test CPU\n"
)
V2_MOUNT = "30 1 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"
V1_MOUNTS = (
    "31 1 0:27 {from_} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "32 1 0:28 {from_} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def host(root: Path, files: dict[str, str]) -> Machine:
    """A machine of eight CPUs, four cores and 16 GiB, with `files` on top."""
    base = {
        "proc/cpuinfo": X86,
        "proc/meminfo": "MemTotal: 16777216 kB\nMemFree: 1 kB\n",
        "proc/self/status": "Name: x\nCpus_allowed_list:\t0-7\n",
        "sys/devices/system/cpu/online": "0-7\n",
    }
    for cpu in range(8):
        base[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = f"{cpu % 4},{cpu % 4 + 4}\n"
    return detect(write(root, {**base, **files}))


def test_processor_and_its_extensions_are_read(tmp_path: Path) -> None:
    machine = host(tmp_path, {})
    assert machine.cpu_model == "Test CPU"
    assert machine.isa == ("avx2", "avx512_vnni", "amx_int8")
    assert (machine.cores_logical, machine.cores_physical) == (8, 4)
    assert machine.memory_bytes == machine.memory_granted_bytes == 16 << 30


def test_arm_cores_are_named_by_their_part_number(tmp_path: Path) -> None:
    cpuinfo = "processor : 0\nFeatures : fp asimd asimddp i8mm bf16 sve\nCPU implementer : 0x41\nCPU part : 0xd40\n"
    machine = host(tmp_path, {"proc/cpuinfo": cpuinfo})
    assert machine.cpu_model == "Neoverse-V1"
    assert machine.isa == ("asimd", "asimddp", "sve", "i8mm", "bf16")


def test_unknown_arm_part_keeps_its_numbers(tmp_path: Path) -> None:
    cpuinfo = "processor : 0\nCPU implementer : 0x61\nCPU part : 0xd40\n"
    assert host(tmp_path, {"proc/cpuinfo": cpuinfo}).cpu_model == "Arm implementer 0x61 part 0xd40"


def test_caches_leave_out_instructions(tmp_path: Path) -> None:
    files: dict[str, str] = {}
    for index, (level, kind, size) in enumerate(
        [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2048K"), ("3", "Unified", "1G")]
    ):
        base = f"sys/devices/system/cpu/cpu0/cache/index{index}"
        files |= {f"{base}/level": level, f"{base}/type": kind, f"{base}/size": size}
    machine = host(tmp_path, files)
    assert machine.caches == (("L1d", 48 << 10), ("L2", 2 << 20), ("L3", 1 << 30))
    assert machine.cache_bytes("L2") == 2 << 20
    assert machine.cache_bytes("L4") is None


def test_affinity_limits_the_cores_granted(tmp_path: Path) -> None:
    assert host(tmp_path, {"proc/self/status": "Cpus_allowed_list:\t0,4-5\n"}).cores_granted == 3.0


def test_tightest_quota_up_the_version_2_tree_counts(tmp_path: Path) -> None:
    machine = host(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/slice/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/slice/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/slice/memory.max": "max\n",
            "sys/fs/cgroup/slice/job/memory.max": str(2 << 30),
        },
    )
    assert machine.cores_granted == 1.5
    assert machine.memory_granted_bytes == 2 << 30


def test_version_1_quota_is_found_beside_an_unlimited_parent(tmp_path: Path) -> None:
    cpu, memory = "sys/fs/cgroup/cpu,cpuacct", "sys/fs/cgroup/memory"
    machine = host(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/a/b\n2:memory:/a\n",
            "proc/self/mountinfo": V1_MOUNTS.format(from_="/"),
            f"{cpu}/cpu.cfs_quota_us": "-1",
            f"{cpu}/cpu.cfs_period_us": "100000",
            f"{cpu}/a/b/cpu.cfs_quota_us": "250000",
            f"{cpu}/a/b/cpu.cfs_period_us": "100000",
            f"{memory}/memory.limit_in_bytes": "9223372036854771712",
            f"{memory}/a/memory.limit_in_bytes": str(3 << 30),
        },
    )
    assert machine.cores_granted == 2.5
    assert machine.memory_granted_bytes == 3 << 30


def test_container_that_sees_its_hosts_path_reads_its_own_mount(tmp_path: Path) -> None:
    cpu = "sys/fs/cgroup/cpu,cpuacct"
    machine = host(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/docker/abc\n",
            "proc/self/mountinfo": V1_MOUNTS.format(from_="/docker/abc"),
            f"{cpu}/cpu.cfs_quota_us": "50000",
            f"{cpu}/cpu.cfs_period_us": "100000",
        },
    )
    assert machine.cores_granted == 0.5


def test_hybrid_system_takes_the_tighter_of_both_versions(tmp_path: Path) -> None:
    machine = host(
        tmp_path,
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/\n0::/job\n",
            "proc/self/mountinfo": V1_MOUNTS.format(from_="/") + V2_MOUNT.replace("/sys/fs/cgroup", "/sys/fs/cgroup/u"),
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "400000",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
            "sys/fs/cgroup/u/job/cpu.max": "300000 100000",
        },
    )
    assert machine.cores_granted == 3.0


def test_group_outside_the_namespace_falls_back_to_the_mount(tmp_path: Path) -> None:
    machine = host(
        tmp_path,
        {
            "proc/self/cgroup": "0::/../other\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/cpu.max": "100000 100000",
        },
    )
    assert machine.cores_granted == 1.0


def test_gpus_are_read_from_the_driver(tmp_path: Path) -> None:
    assert host(tmp_path, {"proc/driver/nvidia/gpus/0/information": "Model: \t NVIDIA X\nIRQ: 1\n"}).gpus == (
        "NVIDIA X",
    )


def test_tree_without_proc_still_gives_a_machine(tmp_path: Path) -> None:
    machine = detect(tmp_path)
    assert machine.cores_logical == os.cpu_count()
    assert machine.memory_bytes > 0
    assert (machine.isa, machine.caches, machine.gpus) == ((), (), ())


def test_this_machine_grants_no_more_than_it_has() -> None:
    machine = detect()
    assert 0 < machine.cores_granted <= machine.cores_logical
    assert 0 < machine.memory_granted_bytes <= machine.memory_bytes
    assert machine == detect()
    assert len(usable_cpus()) >= machine.cores_granted


def test_fingerprint_holds_facts_only(tmp_path: Path) -> None:
    machine = host(tmp_path, {})
    assert len(machine.fingerprint) == 12
    assert int(machine.fingerprint, 16) >= 0
    assert replace(machine, kernel="other", python="9").fingerprint == machine.fingerprint
    assert replace(machine, cores_granted=1.0).fingerprint != machine.fingerprint
    assert replace(machine, isa=()).fingerprint != machine.fingerprint


def test_fingerprint_survives_the_kernels_share_of_memory(tmp_path: Path) -> None:
    machine = host(tmp_path, {})
    assert replace(machine, memory_bytes=machine.memory_bytes - (20 << 20)).fingerprint == machine.fingerprint
    assert replace(machine, memory_bytes=machine.memory_bytes // 2).fingerprint != machine.fingerprint


@given(st.sets(st.integers(0, 200), min_size=1))
def test_any_affinity_list_counts_its_cpus(tmp_path_factory: pytest.TempPathFactory, cpus: set[int]) -> None:
    root = tmp_path_factory.mktemp("host")
    listed = ",".join(map(str, sorted(cpus)))
    write(root, {"sys/devices/system/cpu/online": "0-200", "proc/self/status": f"Cpus_allowed_list: {listed}\n"})
    assert detect(root).cores_granted == len(cpus)


def test_versions_leave_out_what_is_not_installed() -> None:
    found = library_versions(["psutil", "no-such-distribution"])
    assert list(found) == ["psutil"]


def test_a_plan_takes_whole_cores_before_second_hardware_threads(tmp_path: Path) -> None:
    usable = usable_cpus()
    for cpu in usable:
        topology = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        topology.mkdir(parents=True)
        (topology / "thread_siblings_list").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    order = preferred_cpus(tmp_path)
    cores = {cpu // 2 for cpu in usable}
    assert sorted(order) == list(usable)
    assert {cpu // 2 for cpu in order[: len(cores)]} == cores, "one CPU of every core comes first"


def test_without_topology_every_cpu_is_a_core(tmp_path: Path) -> None:
    assert preferred_cpus(tmp_path) == tuple(reversed(usable_cpus()))
