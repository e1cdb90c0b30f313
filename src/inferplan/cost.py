"""Prices, and what a measured plan costs at them.

Owns the one formula for money. Leaves memory and latency to `result`, and
which plan is cheapest to `selection`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import InputError
from .result import PlanResult

GB = 2**30  # Fargate's "GB" of memory is 2**30 bytes: its task sizes are 1024 MiB a GB
_KEYS = ("usd_per_vcpu_hour", "usd_per_gb_hour", "source")


@dataclass(frozen=True, slots=True)
class Prices:
    """What an hour of a vCPU and of a GB (2**30 bytes) of memory costs, in USD.

    Attributes:
        source: where the two numbers come from, shown with every cost.

    Raises:
        InputError: a price is negative or not finite, or both are zero.
    """

    usd_per_vcpu_hour: float = 0.04048
    usd_per_gb_hour: float = 0.004445
    source: str = (
        "AWS Fargate, Linux/x86, us-east-1 list price, https://aws.amazon.com/fargate/pricing/, as published; "
        "change with --prices FILE"
    )

    def __post_init__(self) -> None:
        for name in _KEYS[:2]:
            price = getattr(self, name)
            if isinstance(price, bool) or not isinstance(price, int | float) or not 0 <= price < math.inf:
                raise InputError(f"{name} must be a number of USD, zero or more, not {price!r}")
        if self.usd_per_vcpu_hour == 0 and self.usd_per_gb_hour == 0:
            raise InputError("both prices are zero, so every plan would cost the same: give at least one")


def read_prices(path: Path) -> Prices:
    """Prices from a TOML or JSON (.json) file with the keys of `Prices`.

    A price that the file leaves out is zero, never ours mixed with the user's;
    without a `source` the file is named as the source.

    Raises:
        InputError: the file is missing, unreadable or malformed, or has an unknown key.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        data: Any = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise InputError(f"the prices file {str(path)!r} does not exist") from None
    except OSError as err:
        raise InputError(f"the prices file {str(path)!r} cannot be read: {err.strerror}") from None
    except ValueError as err:  # both decoders' errors, and text that is not UTF-8
        raise InputError(f"the prices file {str(path)!r} cannot be parsed: {err}") from None
    if not isinstance(data, dict):
        raise InputError(f"the prices file {str(path)!r} must hold an object with {', '.join(_KEYS)}")
    return prices_of_table(data, f"the prices file {str(path)!r}", path.name)


def prices_of_table(table: Mapping[str, Any], where: str, source: str) -> Prices:
    """Prices from the keys of `Prices`; see `read_prices`.

    Args:
        where: what holds the table, for errors.
        source: of the two numbers, where the table names none.

    Raises:
        InputError: an unknown key, or a value that is no price.
    """
    if unknown := sorted(set(table) - set(_KEYS)):
        raise InputError(f"{where} has an unknown key {unknown[0]!r}; known: {', '.join(_KEYS)}")
    source = table.get("source", source)
    if not isinstance(source, str):
        raise InputError(f"{where}: `source` must be text, not {source!r}")
    try:
        return Prices(table.get("usd_per_vcpu_hour", 0.0), table.get("usd_per_gb_hour", 0.0), source)
    except InputError as err:
        raise InputError(f"{where}: {err}") from None


def usd_per_hour(result: PlanResult, prices: Prices, cores: float) -> float | None:
    """What the plan's resources cost an hour; None where its peak memory is not known.

    vCPUs are the plan's threads, but no more than the `cores` that the machine
    grants; memory is the plan's peak, over its processes:

        usd_per_hour = min(threads, cores) * usd_per_vcpu_hour + peak_bytes / 2**30 * usd_per_gb_hour
    """
    if result.peak_bytes is None:
        return None
    vcpus = min(float(result.plan.threads), cores)
    return vcpus * prices.usd_per_vcpu_hour + result.peak_bytes / GB * prices.usd_per_gb_hour


def usd_per_request(result: PlanResult, prices: Prices, cores: float) -> float | None:
    """What one request costs, one at a time: `usd_per_hour` times the mean latency in hours.

    Idle time between requests is not billed. None without a clean sample or a
    known peak, or where a sample was cut short (its cost is not known).
    """
    rate, mean_s = usd_per_hour(result, prices, cores), result.latency_mean_s
    return None if rate is None or mean_s is None else rate * mean_s / 3600


def usd_per_mtok(result: PlanResult, prices: Prices, cores: float) -> float | None:
    """What a million output tokens cost: `usd_per_request` over the mean output tokens, times 10**6.

    None where `usd_per_request` is, or where no token came out.
    """
    each, tokens = usd_per_request(result, prices, cores), result.output_tokens_mean
    return None if each is None or not tokens else each / tokens * 1e6
