"""Weights against memory: what is refused, and that the sentence can be acted on."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_studies
from inferplan import fits, machine

MIB = 2**20
sizes = st.integers(min_value=0, max_value=2**45)


def shown(reason: str) -> list[int]:
    """The two numbers of a refusal, in MiB."""
    return [int(number.replace(",", "")) for number in re.findall(r"([\d,]+) MiB", reason)]


@given(sizes, sizes)
def test_weights_are_refused_exactly_when_they_are_more_than_the_memory(weights: int, available: int) -> None:
    assert (fits.refusal(weights, available, "x") is not None) == (weights > available)


@given(available=sizes, excess=st.integers(min_value=1, max_value=2**40))
def test_the_two_numbers_of_a_refusal_never_read_alike(available: int, excess: int) -> None:
    needed, granted = shown(str(fits.refusal(available + excess, available, "x")))
    assert granted <= available / MIB < (available + excess) / MIB <= needed
    assert granted < needed


def test_a_refusal_names_what_both_numbers_and_the_way_out() -> None:
    reason = str(fits.refusal(2954 * MIB, 1024 * MIB, "gpt2-large at fp32"))
    assert reason.startswith("gpt2-large at fp32 needs 2,954 MiB")
    assert shown(reason) == [2954, 1024]
    assert "smaller precision or model" in reason and "more memory" in reason


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", 404), ("bf16", 202), ("fp16", 202), ("int8", 101), ("int4", 51)]
)
def test_bytes_of_weights_follow_the_precision(precision: str, expected: int) -> None:
    assert fits.weights_bytes(101, precision) == expected


def test_an_unknown_precision_has_no_count() -> None:
    assert fits.weights_bytes(101, "q4_k_m") is None


def test_what_counts_is_what_is_granted_and_not_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fits.granted_bytes() == machine.detect().memory_granted_bytes
    assert fake_studies.MACHINE.memory_granted_bytes < fake_studies.MACHINE.memory_bytes
    monkeypatch.setattr(machine, "detect", lambda: fake_studies.MACHINE)
    assert fits.granted_bytes() == fake_studies.MACHINE.memory_granted_bytes
