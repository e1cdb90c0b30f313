"""Foretold: what is expected of that which an SLA bounds or a study minimises.

Owns the way from a prediction to each metric. Leaves what follows from it to `outlook` (for who asks) and
`search.goal` (for a race).
"""

from __future__ import annotations

from .cost import GB, Prices
from .predict import Prediction, Range
from .sla import Metric


def foretold(metric: Metric, expected: Prediction, prices: Prices | None = None, cores: float = 1.0) -> Range | None:
    """What is expected of `metric`, in its base units; None where nothing is.

    Of a quantile over requests it is the median: a higher one is no lower. Of the time to load it is bounded from
    above alone, for what is predicted is starting and loading together.

    Args:
        prices: without them, nothing is expected of a cost.
        cores: that the machine grants; what threads beyond them cost nothing.
    """
    latency, tokens = expected.latency_s, expected.output_tokens
    if metric.quantity == "latency":
        return latency
    if metric.quantity == "ttft":
        return expected.ttft_s
    if metric.quantity == "tpot":
        return expected.tpot_s
    if metric.quantity == "peak_rss":
        return expected.peak_bytes
    if metric.quantity == "tokens_per_s":
        return Range(tokens / latency.high, tokens / latency.value, tokens / latency.low)
    if metric.quantity == "load":
        return Range(0.0, expected.startup_s.value, expected.startup_s.high)
    return None if prices is None else _usd_per_mtok(expected, prices, cores)


def _usd_per_mtok(expected: Prediction, prices: Prices, cores: float) -> Range:
    """As `cost.usd_per_mtok`, of what is expected: the ends of memory and latency together."""
    vcpus = min(float(expected.plan.threads), cores)

    def usd(peak_bytes: float, seconds: float) -> float:
        per_hour = vcpus * prices.usd_per_vcpu_hour + peak_bytes / GB * prices.usd_per_gb_hour
        return per_hour * seconds / 3600 / expected.output_tokens * 1e6

    peak, latency = expected.peak_bytes, expected.latency_s
    return Range(usd(peak.low, latency.low), usd(peak.value, latency.value), usd(peak.high, latency.high))
