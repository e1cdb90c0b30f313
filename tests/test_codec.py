"""Values survive JSON, and unknown fields are refused rather than dropped."""

from __future__ import annotations

import json

import pytest

from inferplan._codec import decode, encode
from inferplan.measurement import Actual, Measurement, Memory, Sample, Signals
from inferplan.plan import Plan, Space


def test_a_measurement_survives_json() -> None:
    sample = Sample(0, 1.0, 0.5, (0.1, 0.5), 3, (7, 8), "ab", 0.4, 99, disturbed=("steal",), signals=Signals(1.0, 0.2))
    actual = Actual("float32", "int8", 2, "fbgemm", "dynamic", 1.0, "sdpa", True, {"imports": "slim"})
    plan = Plan("org/m", options=(("mmap", False), ("n", 3)))
    value = Measurement(
        plan, 2, "ok", "", (sample,), actual, Memory(1, 2, None, None), 0.1, 0.2, 3.0, 4.0, True, {"a": "1"}
    )
    assert decode(Measurement, json.loads(json.dumps(encode(value)))) == value


def test_a_space_survives_json() -> None:
    value = Space(("a", "b"), threads=(1, 2), options=(("mmap", (True, False)),))
    assert decode(Space, json.loads(json.dumps(encode(value)))) == value


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        decode(Plan, {"model": "m", "colour": "red"})


def test_a_missing_field_is_refused() -> None:
    with pytest.raises(TypeError, match="model"):
        decode(Plan, {"engine": "fake"})
