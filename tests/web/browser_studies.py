"""Made-up studies for pages to show, one of each outcome, each with an id of its own.

Owns values only; what they are made of is in `fake_studies`.
"""

from __future__ import annotations

from dataclasses import replace

import fake_studies
from inferplan.measurement import Measurement
from inferplan.study import Study

MARKUP = (
    ":red[warm] $x^2$ **bold** <b>big</b> <img src=x onerror=alert(1)> [link](http://evil.example) :material/delete:"
)


def _named(study: Study, number: int) -> Study:
    return replace(study, id=f"20260101-12000{number}-abcd", created_at=study.created_at + number)


def _hostile(number: int) -> Study:
    """Names that would be markup of Streamlit, and one that would be markup of anything else."""
    own = fake_studies.study(models=(MARKUP,), threads=(1,))
    runs = tuple(m for plan in own.plans for m in fake_studies.runs(plan, 1.0))
    return _named(replace(own, measurements=runs), number)


def _slower(study: Study) -> Study:
    """INT8 plans half as slow again; FP32 plans now slower, now faster, by prompt."""

    def shifted(done: Measurement) -> Measurement:
        steady = done.plan.quantized
        factors = [1.5 if steady else (1.4, 0.7)[sample.index % 2] for sample in done.samples]
        samples = [replace(s, latency_s=s.latency_s * f) for s, f in zip(done.samples, factors, strict=True)]
        return replace(done, samples=tuple(samples))

    return replace(study, measurements=tuple(map(shifted, study.measurements)))


STUDIES = {
    "chosen": _named(fake_studies.chosen(), 1),
    "slower": _named(_slower(fake_studies.chosen()), 2),
    "none-meets": _named(fake_studies.none_meets(), 3),
    "undecided": _named(fake_studies.undecided(), 4),
    "synthetic": _named(fake_studies.synthetic(), 5),
    "failed": _named(fake_studies.failed(), 6),
    "markup": _hostile(7),
    "hostile": _named(fake_studies.hostile(), 8),
}
