"""`inferplan predict`: which plans would probably meet an SLA here, and how far off such predictions were.

Owns finding what was measured on this machine, the words for a prediction, and what is printed. Leaves the
predictions to `predict`, the rates to `rates`. Nothing of it ever decides a winner.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from . import _files, _hub, fits, locks, machine, prepare, rates, terms
from ._codec import encode
from .accuracy import Errors, errors
from .errors import InputError, ModelError, StoreError, UnknownNameError
from .models import SHIPPED
from .outlook import Answer, answer
from .plan import Plan
from .predict import Observation, Predictor, Range, observations
from .result import results
from .selection import SLA, parse_sla
from .shapes import Shape, shape_of
from .sla import format_quantity
from .stats import TIE_WITHIN
from .store import Store, store_path
from .study import Study, load, study_of

Tell = Callable[[str], None]

_NOTICE = "These are predictions, not measurements"


@dataclass(frozen=True, slots=True)
class Learned:
    """What was measured on this machine, in every study of the store."""

    seen: tuple[Observation, ...]
    shapes: Mapping[str, Shape]

    @property
    def plans(self) -> int:
        """How many different plans."""
        return len({one.plan for one in self.seen})


def predict(arguments: argparse.Namespace) -> int:
    """`inferplan predict [MODEL ...]`."""
    if not arguments.models and arguments.sla:
        raise InputError("--sla needs a MODEL: without one, predictions are compared with what was measured")
    sla = parse_sla(arguments.sla) if arguments.sla else None
    # What is wrong with the arguments is told before any waiting.
    asked = {name: shape_of(config_of(name)) for name in arguments.models}
    if arguments.prompt_tokens < 1 or arguments.max_new_tokens < 1:
        tokens = f"{arguments.prompt_tokens} and {arguments.max_new_tokens}"
        raise InputError(f"a request has at least 1 token in and out, not {tokens}")
    if not asked:
        return _against_measured(arguments)
    granted = fits.granted_bytes()
    space = terms.space_of(arguments)
    infos = prepare.describe_engines(space.engines)
    with Store(store_path(arguments.store)) as store:
        here = machine.detect()
        learned = learn(store, here, _tell)
        known = _rates(store, here, arguments)
    space = terms.fitted(space, infos)
    out = dict(space.rejected(lambda plan: infos[plan.engine].reject(plan)))
    plans = [plan for plan in space.plans if plan not in out]
    # A name that means another model than it did when it was measured: those measurements are not of this one.
    seen = [
        one
        for one in learned.seen
        if asked.get(one.plan.model, learned.shapes[one.plan.model]) == learned.shapes[one.plan.model]
    ]
    predictor = Predictor.fit(seen, known, {**learned.shapes, **asked})
    predictions = predictor.predict_all(plans, arguments.prompt_tokens, arguments.max_new_tokens)
    answers, measured = answer(predictions, sla, granted, asked), len({one.plan for one in seen})
    if arguments.json:
        print(json.dumps(_as_json(answers, out, sla, arguments, measured, granted), indent=2))
    else:
        print("\n".join(_lines(answers, out, sla, arguments, measured, asked, granted)))
    return 0


def config_of(name: str) -> dict[str, Any]:
    """The config of a model whose weights need not be here.

    Args:
        name: a config.json file, a directory that holds one, a shipped name, or a hub id that is in the local cache.

    Raises:
        UnknownNameError: no such model, with the nearest names.
        ModelError: there is no config, or it cannot be read.
    """
    path = Path(name).expanduser()
    base = name.partition("@")[0]
    if path.is_file():
        return _config_file(path)
    if path.is_dir() and (base not in SHIPPED or (path / "config.json").is_file()):
        return _files.read_config(path)
    if base in SHIPPED:
        return _files.read_config(SHIPPED[base].config)
    if (model := _hub.HubId.parse(name)) is not None and not path.is_absolute() and not name.startswith((".", "~")):
        found = _hub.cached(model)
        if found is None:
            raise ModelError(f"{name} is not in the local hub cache: give its config.json, which is all that is needed")
        return _files.read_config(found)
    hint = "A model is also a config.json, a local directory, or a hub id (org/name) that is in the local cache."
    raise UnknownNameError("model", name, SHIPPED, hint)


def _config_file(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise ModelError(f"{str(path)!r} cannot be read as a config.json: {err}") from None
    if not isinstance(data, dict):
        raise ModelError(f"{str(path)!r} must hold a JSON object, not {type(data).__name__}")
    return data


def learn(store: Store, here: machine.Machine, tell: Tell) -> Learned:
    """What the studies in `store` showed on this machine, newest first; says what it leaves out and why."""
    seen: list[Observation] = []
    shapes: dict[str, Shape] = {}
    for row in store.list_studies():
        try:
            if study_of(row.id, row.header).machine.fingerprint != here.fingerprint:
                continue
            study = load(store, row.id)
        except StoreError as err:
            tell(f"left out: {err}")
            continue
        own = _shapes(study, tell)
        usable = {name for name, shape in own.items() if shapes.setdefault(name, shape) == shape}
        own_measurements = [m for m in study.measurements if not m.reused_from]  # those count in their own study
        found = observations(results(study.plans, own_measurements))
        seen += [replace(one, study=study.id) for one in found if one.plan.model in usable]
    return Learned(tuple(seen), shapes)


def _shapes(study: Study, tell: Tell) -> dict[str, Shape]:
    found = {}
    for checkpoint in study.checkpoints:
        if not checkpoint.path.parts:
            continue  # the fake engine's placeholder: it has no weights to read
        try:
            here = (checkpoint.path / "config.json").is_file()
            config = _files.read_config(checkpoint.path) if here else config_of(checkpoint.name)
            found[checkpoint.name] = shape_of(config)
        except InputError as err:
            tell(f"left out: {checkpoint.name} of study {study.id}: {err}")
    return found


def _rates(store: Store, here: machine.Machine, arguments: argparse.Namespace) -> rates.Rates:
    """Kept ones, else measured under the lock: another study's timings must not pay for it."""
    if not arguments.refresh and (found := rates.known(store, here)) is not None:
        return found
    name, wait, override = "rates of the machine", arguments.wait, arguments.no_lock
    with locks.machine_lock(name, wait=wait, override=override, on_wait=_tell, on_override=_warn):
        return rates.kept(store, here, refresh=arguments.refresh, tell=_tell)


def _warn(text: str) -> None:
    _tell(f"warning: {text}")


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _rests_on(plans: int) -> str:
    what = f"{plans} measured plan{'s' * (plans != 1)} of this machine" if plans else "no measured plan"
    return f"{_NOTICE}; they rest on the rates of this machine and on {what}."


def _lines(
    answers: Sequence[Answer],
    out: Mapping[Plan, str],
    sla: SLA | None,
    arguments: argparse.Namespace,
    plans: int,
    shapes: Mapping[str, Shape],
    granted: int,
) -> list[str]:
    text = [_rests_on(plans)]
    text.append("Intervals should hold the truth for 9 plans of 10. `*`: worth measuring.")
    tokens = f"{arguments.prompt_tokens} prompt tokens, {arguments.max_new_tokens} output tokens"
    asked = f"{tokens}, one request at a time; {format_quantity('memory', granted)} of memory granted"
    text.append(asked + (f"; SLA {sla}" if sla else ""))
    for model, shape in shapes.items():
        of = [a for a in answers if a.prediction.plan.model == model]
        text += ["", f"{model}: {shape.parameters / 1e6:,.1f} million parameters, {shape.layers} layers"]
        text += _table([_HEADER, *(_row(a) for a in of)])
        worth = [a for a in of if a.worth]
        text.append(f"worth measuring: {len(worth)} of {len(of)} plans" + ("" if of else "; none can run here"))
    if out:
        reasons = ", ".join(dict.fromkeys(out.values()))
        text += ["", f"{len(out)} plans cannot run here: {reasons}"]
    return text


_HEADER = ("", "plan", "p50 latency", "TTFT", "TPOT", "peak memory", "start-up", "outlook", "bottleneck", "rests on")


def _row(a: Answer) -> tuple[str, ...]:
    p = a.prediction
    outlook = a.outlook if a.outlook == "likely meets" else f"{a.outlook} ({a.why})"
    if a.memory and a.outlook != "does not fit" and a.why != "memory":
        outlook += f"; {a.memory}"
    return (
        "*" if a.worth else "",
        p.plan.id,
        _seconds(p.latency_s),
        _seconds(p.ttft_s),
        _seconds(p.tpot_s),
        _bytes(p.peak_bytes),
        _seconds(p.startup_s),
        outlook,
        p.bottleneck,
        p.basis,
    )


def _seconds(r: Range) -> str:
    return _shown("time", r)


def _bytes(r: Range) -> str:
    return _shown("memory", r)


def _shown(kind: Literal["time", "memory"], r: Range) -> str:
    low, value, high = (format_quantity(kind, v) for v in (r.low, r.value, r.high))
    return f"{value} [{low}, {high}]"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _as_json(
    answers: Sequence[Answer],
    out: Mapping[Plan, str],
    sla: SLA | None,
    arguments: argparse.Namespace,
    plans: int,
    granted: int,
) -> dict[str, Any]:
    rows = [
        {
            **encode(a.prediction),
            "plan": a.prediction.plan.id,
            "outlook": a.outlook,
            "why": a.why,
            "memory": a.memory,
            "worth_measuring": a.worth,
        }
        for a in answers
    ]
    return {
        "notice": _rests_on(plans),
        "measured_plans": plans,
        "prompt_tokens": arguments.prompt_tokens,
        "output_tokens": arguments.max_new_tokens,
        "sla": None if sla is None else [str(c) for c in sla.constraints],
        "memory_granted_bytes": granted,
        "plans": rows,
        "cannot_run": {plan.id: why for plan, why in out.items()},
    }


# --- predicted against measured ---


def _against_measured(arguments: argparse.Namespace) -> int:
    with Store(store_path(arguments.store)) as store:
        here = machine.detect()
        learned, found = learn(store, here, _tell), Errors(())
        if learned.seen or arguments.refresh:  # else no rates are needed to say that there is nothing
            found = errors(learned.seen, _rates(store, here, arguments), learned.shapes)
    if arguments.json:
        print(json.dumps(_errors_json(found, learned), indent=2))
        return 0
    if not found.compared:
        print(
            f"nothing was measured on this machine in {store_path(arguments.store)} yet: `inferplan optimize` does; "
            "`inferplan predict MODEL` predicts all the same"
        )
        return 0
    print("\n".join(_error_lines(found, learned)))
    return 0


def _error_lines(found: Errors, learned: Learned) -> list[str]:
    models = len({one.plan.model for one in learned.seen})
    rows = [_COMPARED_HEADER]
    for one in found.compared:
        plan, model = one.pair("plan", "latency"), one.pair("model", "latency")
        if plan is not None:
            truth = format_quantity("time", plan[0])
            rows.append((one.seen.plan.id, one.seen.study, truth, *_off(plan), *_off(model)))
    text = [
        f"Predicted against measured: {_counted(learned)} of {models} model{'s' * (models != 1)} on this machine.",
        "Each plan is predicted from the others: without itself, and without any plan of its model.",
        "",
        *_table(rows),
        "",
        "Mean absolute percentage error (MAPE)",
        *_table([_MAPE_HEADER, *(_mape_row(found, engine) for engine in (*found.engines, None))]),
    ]
    return [*text, "", *(f"{label}: {_percent(value)}" for label, value in _summary(found))]


_COMPARED_HEADER = (
    "plan",
    "study",
    "measured p50",
    "predicted without the plan",
    "error",
    "predicted without the model",
    "error",
)


def _counted(learned: Learned) -> str:
    """How many plans, and in how many studies each, where that is more than one."""
    plans, times = f"{learned.plans} plan{'s' * (learned.plans != 1)}", len(learned.seen)
    return plans if times == learned.plans else f"{times} measurements, a study each, of {plans}"


_MAPE_HEADER = (
    "engine",
    "measured",
    "latency, plan out",
    "latency, model out",
    "memory, plan out",
    "memory, model out",
)


def _mape_row(found: Errors, engine: str | None) -> tuple[str, ...]:
    count = sum(engine in (None, one.seen.plan.engine) for one in found.compared)
    figures = [found.mape(k, q, engine) for q in ("latency", "peak") for k in ("plan", "model")]
    return (engine or "all", str(count), *map(_percent, figures))


def _summary(found: Errors) -> list[tuple[str, float | None]]:
    return [
        ("latencies inside their 90% interval, model out", found.coverage("latency")),
        ("the 5 fastest of a model among its 5 predicted fastest, plan out", found.recall("plan")),
        ("the 5 fastest of a model among its 5 predicted fastest, model out", found.recall("model")),
        (f"the same or tied within {TIE_WITHIN:.0%}, plan out", found.recall("plan", tied_within=TIE_WITHIN)),
        (f"the same or tied within {TIE_WITHIN:.0%}, model out", found.recall("model", tied_within=TIE_WITHIN)),
    ]


def _off(pair: tuple[float, Range] | None) -> tuple[str, str]:
    return ("", "") if pair is None else (_seconds(pair[1]), f"{pair[1].value / pair[0] - 1:+.0%}")


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _errors_json(found: Errors, learned: Learned) -> dict[str, Any]:
    kinds: tuple[Literal["plan", "model"], ...] = ("plan", "model")
    return {
        "measured_plans": learned.plans,
        "observations": len(learned.seen),
        "mape": {
            engine or "all": {f"{q}_without_{k}": found.mape(k, q, engine) for q in ("latency", "peak") for k in kinds}
            for engine in (*found.engines, None)
        },
        "coverage": {f"{q}_without_model": found.coverage(q) for q in ("latency", "peak")},
        "top5_recall": {f"without_{k}": found.recall(k) for k in kinds},
        "top5_recall_or_tied": {f"without_{k}": found.recall(k, tied_within=TIE_WITHIN) for k in kinds},
        "plans": [
            {
                "plan": one.seen.plan.id,
                "measured": {**encode(one.seen), "plan": one.seen.plan.id},
                "without_plan": {**encode(one.without_plan), "plan": one.seen.plan.id},
                "without_model": None
                if one.without_model is None
                else {**encode(one.without_model), "plan": one.seen.plan.id},
            }
            for one in found.compared
        ],
    }
