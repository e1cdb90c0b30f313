"""What must be said before OpenVINO is imported: no usage reports, and no AMX where its kernel cannot work.

Owns both workarounds. Imports nothing of OpenVINO itself.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

from . import _cpu

# The products of a gated MLP in BF16 are fused for AMX, and shared out between pairs of threads: with one thread the
# library divides by zero (llm_mlp.cpp; openvinotoolkit/openvino#33300). oneDNN's name of all that comes before AMX.
WITHOUT_AMX: Mapping[str, str] = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}


def variables_of() -> dict[str, Mapping[str, str]]:
    """`EngineInfo.env_of` on this CPU."""
    return {"bf16/t1": WITHOUT_AMX} if "amx_bf16" in _cpu.cpu_flags() else {}


def send_no_reports() -> None:
    """To be called before OpenVINO is imported, which would report that over the network, from a process it forks.

    Without the package that does it, OpenVINO takes a stand-in of its own that does nothing.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # importing it fails now
