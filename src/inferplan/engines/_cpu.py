"""What this CPU computes natively, as the system tells it; standard library only.

Owns instruction sets. Leaves what follows from them to the engines.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

_BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last is ARM's
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def no_bf16() -> str | None:
    """Why BF16 would be emulated on this CPU; None where it is native, or where the system does not tell."""
    flags = cpu_flags()
    if not flags or flags & _BF16:
        return None
    return (
        f"this {platform.machine()} CPU has no BF16 instructions (avx512_bf16 or amx_bf16): it would only emulate them"
    )


def sums_bytes_exactly() -> bool:
    """Whether products of full 8-bit numbers are added without overflow.

    x86 without VNNI adds two products of a byte with a signed byte in 16 bits, which holds those of 7-bit weights only.
    Where the system does not tell, x86 is taken to be without.
    """
    return platform.machine().lower() not in ("x86_64", "amd64") or bool(cpu_flags() & _VNNI)


@cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets as Linux names them; empty where there is no /proc/cpuinfo."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return frozenset()
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))), "")
    return frozenset(found.split())
