"""How threads of GNU's OpenMP wait for work: an axis of every engine that is linked to it.

Owns the axis and its variable. Leaves what waiting costs to benchmarks/waiting_policy.py. Only the wheels for Linux are
linked to this OpenMP; elsewhere there is no axis.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from .base import Axis

_SPIN = Axis(
    "spin",
    (300_000, 1_000, 0, 30_000_000_000),
    "turns a waiting thread spins before it sleeps (GOMP_SPINCOUNT): OpenMP's own, few, none, for ever",
)
_HERE = sys.platform == "linux"
AXES: tuple[Axis, ...] = (_SPIN,) if _HERE else ()
ENV: Mapping[str, str] = {"GOMP_SPINCOUNT": "{spin}"} if _HERE else {}


def waiting() -> dict[str, str]:
    """The policy that this process was started with, for what actually ran."""
    return {"spin": os.environ.get("GOMP_SPINCOUNT", "")} if _HERE else {}
