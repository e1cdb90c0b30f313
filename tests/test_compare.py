"""Comparing studies: what is shown, what is not, and a gate that cannot see does not pass."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from factories import measurement
from fake_studies import PROMPTS, SHAPE, study
from inferplan.compare import check_gates, compare, gate_exit_code, parse_gate, render_comparison
from inferplan.errors import InputError
from inferplan.study import Study
from inferplan.workload import Prompt, Workload


def ran(
    factor: float, *, id: str = "a", jitter: tuple[float, ...] = (), prompts: tuple[Prompt, ...] = PROMPTS
) -> Study:
    """Every plan at one second a request times `factor`, and times `jitter` by prompt."""
    bare = study(threads=(1,), prompts=prompts)
    times = [factor * x * (jitter[i] if jitter else 1) for i, x in enumerate(SHAPE[: len(prompts)])]
    return replace(bare, id=id, measurements=tuple(measurement(plan, times) for plan in bare.plans))


def outcomes(a: Study, b: Study, *gates: str) -> set[str]:
    return {result.outcome for result in check_gates(compare(a, b), [parse_gate(gate) for gate in gates])}


def test_a_study_ties_with_itself() -> None:
    change = compare(ran(1), ran(1)).plans[0].change("p50")
    assert change is not None
    assert (change.ratio.value, change.says) == (1.0, "tie within 3%")


def test_a_shown_loss_fails_the_gate_and_a_gain_passes() -> None:
    assert outcomes(ran(1), ran(1.2), "p50>+5%", "tokens_per_s<-5%") == {"failed"}
    assert outcomes(ran(1.2), ran(1), "p50>+5%", "tokens_per_s<-5%") == {"passed"}


def test_a_loss_that_is_not_shown_passes_with_a_warning() -> None:
    noisy = ran(1, jitter=(0.8, 1.3, 1.2, 0.9, 1.2, 1.3, 0.8, 1.2))
    assert outcomes(ran(1), noisy, "p50>+5%") == {"not_shown"}
    assert compare(ran(1), noisy).plans[0].changes[0].says == "no difference shown"


def test_a_gate_without_evidence_fails() -> None:
    few = PROMPTS[:3]
    assert outcomes(ran(1, prompts=few), ran(1, prompts=few), "p50>+5%") == {"no_evidence"}
    crashed = replace(ran(1), measurements=tuple(replace(m, status="crashed") for m in ran(1).measurements))
    found = check_gates(compare(ran(1), crashed), [parse_gate("p50>+5%")])
    assert gate_exit_code(found) == 1


def test_other_prompts_are_refused_and_some_in_common_are_paired() -> None:
    other = replace(ran(1), workload=Workload((Prompt(text="another"),), max_new_tokens=8))
    with pytest.raises(InputError, match="no prompt"):
        compare(ran(1), other)
    found = compare(ran(1), ran(1, prompts=PROMPTS[:6]))
    assert found.shared_prompts == 6
    assert any("workloads differ" in warning for warning in found.warnings)


def test_another_machine_is_said() -> None:
    elsewhere = replace(ran(1), machine=replace(ran(1).machine, cpu_model="Other CPU"))
    assert any("machines differ" in warning for warning in compare(ran(1), elsewhere).warnings)


@pytest.mark.parametrize("text", ["p50", "p50>5", "p50<-5%", "tokens_per_s>5%", "tokens_per_s<5%", "speed>+5%"])
def test_a_bad_gate_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_gate(text)


@pytest.mark.parametrize("format", ["table", "md", "json"])
def test_every_format_tells_gates_and_synthetic_weights(format: str) -> None:
    fake = replace(ran(1), checkpoints=study(provenance="synthetic").checkpoints)
    found = compare(fake, ran(1.2))
    text = render_comparison(found, check_gates(found, [parse_gate("p50>+5%")]), format)
    assert "synthetic weights" in text
    assert json.loads(text)["exit_code"] == 1 if format == "json" else "gate FAILED" in text
