"""Prices and what a plan costs at them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from factories import measurement, plan
from inferplan.cost import Prices, read_prices, usd_per_hour, usd_per_mtok, usd_per_request
from inferplan.errors import InputError
from inferplan.plan import Plan
from inferplan.result import PlanResult

GIB = 2**30
SIMPLE = Prices(usd_per_vcpu_hour=3.6, usd_per_gb_hour=7.2, source="made up")


def run(of: Plan, latencies: list[float], **kwargs: int | None) -> PlanResult:
    return PlanResult(of, (measurement(of, latencies, peak_bytes=kwargs.get("peak_bytes", GIB // 2), tokens=10),))


def test_the_formula_in_numbers() -> None:
    result = run(plan(threads=2), [1.0, 3.0])
    # 2 vCPUs at 3.6 and half a GB at 7.2 are 10.8 an hour, 0.003 a second; 2 s a request; 10 tokens each.
    assert usd_per_hour(result, SIMPLE, cores=4) == pytest.approx(10.8)
    assert usd_per_request(result, SIMPLE, cores=4) == pytest.approx(0.006)
    assert usd_per_mtok(result, SIMPLE, cores=4) == pytest.approx(600.0)


def test_threads_beyond_the_cores_granted_cost_nothing() -> None:
    assert usd_per_mtok(run(plan(threads=8), [1.0]), SIMPLE, 2) == usd_per_mtok(run(plan(threads=2), [1.0]), SIMPLE, 2)


def test_what_is_not_known_has_no_cost() -> None:
    assert usd_per_mtok(PlanResult(plan(), ()), SIMPLE, 1) is None
    assert usd_per_mtok(run(plan(), [1.0], peak_bytes=None), SIMPLE, 1) is None
    cut = PlanResult(plan(), (measurement(plan(), [1.0, 2.0], cut=[1]),))
    assert usd_per_mtok(cut, SIMPLE, 1) is None
    silent = PlanResult(plan(), (measurement(plan(), [1.0], tokens=0),))
    assert usd_per_mtok(silent, SIMPLE, 1) is None


@pytest.mark.parametrize(("vcpu", "gb"), [(-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.inf), (0.0, 0.0)])
def test_impossible_prices_are_refused(vcpu: float, gb: float) -> None:
    with pytest.raises(InputError, match=r"USD|prices are zero"):
        Prices(vcpu, gb)


def test_prices_are_read_from_toml_and_json(tmp_path: Path) -> None:
    toml, js = tmp_path / "p.toml", tmp_path / "p.json"
    toml.write_text('usd_per_vcpu_hour = 0.05\nusd_per_gb_hour = 0\nsource = "our rack"\n', encoding="utf-8")
    js.write_text(json.dumps({"usd_per_gb_hour": 0.01}), encoding="utf-8")
    assert read_prices(toml) == Prices(0.05, 0, "our rack")
    assert read_prices(js) == Prices(0.0, 0.01, "p.json")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.toml", "usd_per_vcpu = 1", "unknown key 'usd_per_vcpu'; known: usd_per_vcpu_hour"),
        ("p.toml", "usd_per_vcpu_hour = ", "cannot be parsed"),
        ("p.json", "[1]", "must hold an object"),
        ("p.json", '{"usd_per_vcpu_hour": "1"}', "must be a number of USD"),
        ("p.json", '{"usd_per_vcpu_hour": true}', "must be a number of USD"),
        ("p.json", '{"usd_per_vcpu_hour": 1, "source": 7}', "`source` must be text"),
        ("p.json", "{}", "both prices are zero"),
    ],
)
def test_a_bad_prices_file_says_what_is_wrong(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="prices") as caught:
        read_prices(tmp_path / name)
    assert says in str(caught.value)


def test_a_prices_file_that_is_missing_or_not_text_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_prices(tmp_path / "none.toml")
    with pytest.raises(InputError, match="cannot be read"):
        read_prices(tmp_path)
    (tmp_path / "p.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be parsed"):
        read_prices(tmp_path / "p.toml")
