"""Does it fit: weights against the memory that is granted here, before anything is started.

Owns the arithmetic and the sentence of a refusal. Leaves what is refused to `prepare` (plans and
conversions) and `weights` (making checkpoints).
"""

from __future__ import annotations

from . import machine

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}
"""Bits of one weight, by precision. Scales and zero points come on top; they are left out."""

_MIB = 2**20


def granted_bytes() -> int:
    """Memory granted here: `Machine.memory_granted_bytes`, the machine's or the tightest limit of its control groups.

    Not what happens to be free, which changes from one minute to the next: a plan
    would be refused in the morning and measured in the evening.
    """
    return machine.detect().memory_granted_bytes


def weights_bytes(parameters: int, precision: str) -> int | None:
    """Bytes of so many weights at `precision`; None for a precision that is not in `BITS`."""
    bits = BITS.get(precision)
    return None if bits is None else -(-parameters * bits // 8)


def refusal(weights_bytes: int, available_bytes: int, what: str) -> str | None:
    """Why `what` cannot fit, with both numbers and what to do; None when its weights do fit.

    Only the weights are counted, all of them at once. A process also holds its
    libraries and the KV cache, so what fits here may still run out of memory, and
    is then a row that says so.

    Args:
        weights_bytes: bytes of weights that are held at once.
        available_bytes: bytes of memory that are granted; see `granted_bytes`.
        what: the subject of the sentence, `gpt2-large at fp32`.
    """
    if weights_bytes <= available_bytes:
        return None
    # Rounded away from each other, so that the two never read alike.
    needed, granted = -(-weights_bytes // _MIB), available_bytes // _MIB
    return (
        f"{what} needs {needed:,} MiB of memory for its weights alone, and {granted:,} MiB are granted here: "
        "choose a smaller precision or model, or grant more memory"
    )
