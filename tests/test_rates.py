"""Rates of the machine: measured in a process of their own, kept, and between measured thread counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from fake_studies import MACHINE
from inferplan._codec import decode, encode
from inferplan.errors import InputError
from inferplan.machine import library_versions
from inferplan.rates import LIBRARIES, Rate, Rates, kept, known, measure_one, thread_counts
from inferplan.store import Store

TWO = Rates(
    (
        Rate(1, 20e9, "sum", {"fp32": 16e9, "int8": 8e9}, {"fp32": 50e9}),
        Rate(4, 50e9, "sum", {"fp32": 40e9, "int8": 20e9}, {"fp32": 200e9}),
    ),
    4.0,
    library_versions(LIBRARIES),
    1000.0,
)


def test_a_thread_count_between_two_lies_on_the_line_and_beyond_the_last_is_the_last() -> None:
    assert [TWO.bandwidth(n) for n in (1, 2, 4, 64)] == [20e9, 30e9, 50e9, 50e9]
    assert TWO.matmul(2, "fp32") == 100e9


def test_a_precision_that_was_not_measured_counts_as_fp32() -> None:
    assert TWO.matmul(1, "bf16") == TWO.matmul(1, "fp32")


def test_rates_without_a_thread_count_are_refused() -> None:
    with pytest.raises(InputError, match="at least one thread count"):
        Rates((), 2.0)


@pytest.mark.parametrize(
    ("cores", "counts"), [(0.5, (1,)), (1, (1,)), (2, (1, 2)), (6.9, (1, 2, 4, 6)), (8, (1, 2, 4, 8))]
)
def test_thread_counts_double_up_to_the_cores_that_are_granted(cores: float, counts: tuple[int, ...]) -> None:
    assert thread_counts(cores) == counts


def test_one_thread_count_is_really_measured_in_a_process_of_its_own() -> None:
    found = measure_one(1, 0.001, buffer_bytes=1 << 24)
    assert found.threads == 1
    assert found.read_bytes_per_s > 1e8
    assert found.matvec_bytes_per_s["fp32"] > 1e8
    assert found.matmul_flops["fp32"] > 1e8
    assert decode(Rate, encode(found)) == found
    with pytest.raises(InputError, match="threads"):
        measure_one(0)


def test_kept_rates_are_found_again_for_this_machine_and_these_versions_alone(tmp_path: Path) -> None:
    with Store(tmp_path / "store.db") as store:
        assert known(store, MACHINE) is None
        store.keep_rates(MACHINE.fingerprint, TWO.measured_at, encode(TWO))
        assert known(store, MACHINE) == TWO
        said: list[str] = []
        assert kept(store, MACHINE, tell=said.append) == TWO
        assert said == []  # nothing was measured
        assert known(store, replace(MACHINE, cpu_model="another")) is None
        old = replace(TWO, libraries={"torch": "0.1"})
        store.keep_rates(MACHINE.fingerprint, 2000.0, encode(old))
        assert known(store, MACHINE) is None
        store.keep_rates(MACHINE.fingerprint, 3000.0, {"from": "another version of ours"})
        assert known(store, MACHINE) is None
