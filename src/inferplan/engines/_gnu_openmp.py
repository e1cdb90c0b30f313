"""How threads of GNU's OpenMP wait for work: an axis of every engine that is linked to it.

Owns the axis and its variable. Leaves what waiting costs to benchmarks/waiting_policy.py. Only the wheels for Linux are
linked to this OpenMP; elsewhere there is no axis.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from .base import Axis

OWN = 300_000  # OpenMP's own number, some milliseconds
FEW = 1_000
_VALUES = (OWN, FEW, 0, 30_000_000_000)
_HELP = "turns a waiting thread spins before it sleeps (GOMP_SPINCOUNT): 300000 is OpenMP's own, 30000000000 for ever"
_HERE = sys.platform == "linux"
ENV: Mapping[str, str] = {"GOMP_SPINCOUNT": "{spin}"} if _HERE else {}


def axes(default: int) -> tuple[Axis, ...]:
    """The axis `spin`.

    Args:
        default: the fastest on a quiet machine; of several that show no difference there, the one that a busy
            neighbour slows least.
    """
    return (Axis("spin", (default, *(value for value in _VALUES if value != default)), _HELP),) if _HERE else ()


def waiting() -> dict[str, str]:
    """The policy that this process was started with, for what actually ran."""
    return {"spin": os.environ.get("GOMP_SPINCOUNT", "")} if _HERE else {}
