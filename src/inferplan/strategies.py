"""Strategies: the search that a study asks for, with what it needs to know beforehand.

Owns the way from a study to its search, and the prediction that orders it. Leaves searching to `search`, the model of
the machine to `predict`.
"""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Mapping, Sequence
from statistics import fmean

from ._files import read_config
from .errors import ModelError
from .fits import granted_bytes
from .measurement import Measurement
from .models import Checkpoint
from .plan import Plan
from .predict import Asked, Prediction, Predictor, observations
from .rates import Rates, Tell, kept
from .result import results
from .search import Search
from .search.exhaustive import Exhaustive
from .search.picking import Kind, optuna_pick
from .search.racing import Pick, Predict, Racing
from .sequential import processes_needed, required_share
from .shapes import Shape, shape_of
from .sla import Constraint
from .stats import CONFIDENCE, MIN_PROCESSES, bound_needs
from .store import Store
from .study import RACES, Ready, Study

_SAMPLERS: Mapping[str, Kind] = {"tpe": "tpe", "nsga2": "nsga2"}

LOOKED_AT = 2
"""Requests of a look: one may be odd, and each further one costs as much as the first."""


def search_for(study: Study, ready: Ready, predict: Predict | None = None) -> Search:
    """The search that `study.settings.strategy` names, going on where the study's measurements end.

    Args:
        predict: what a race expects of its plans; see `expected`.
    """
    settings, plans = study.settings, study.plans
    if settings.strategy in RACES:
        return Racing(
            plans,
            study.sla,
            study.objective,
            study.prices,
            study.machine.cores_granted,
            prompts=len(study.workload.prompts),
            look_at=_looked_at(study, ready),
            predict=predict,
            pick=_pick(study),
            memory_bytes=granted_bytes(),
            limits=settings.limits,
            done=study.measurements,
        )
    if settings.strategy == "random":
        plans = tuple(random.Random(study.id).sample(plans, len(plans)))
    return Exhaustive(
        plans,
        study.sla,
        study.objective,
        study.prices,
        study.machine.cores_granted,
        rounds=settings.rounds,
        all_rounds=settings.all_rounds,
        limits=settings.limits,
        done=study.measurements,
    )


def _pick(study: Study) -> Pick | None:
    """Who says which plan is looked at next: one of Optuna's samplers, or None: the prediction."""
    sampler = _SAMPLERS.get(study.settings.strategy)
    if sampler is None:
        return None
    seed = zlib.crc32(study.id.encode())  # a resumed study goes on as it would have
    cores = study.machine.cores_granted
    return optuna_pick(sampler, study.plans, study.sla, study.objective, study.prices, cores, seed)


def announced(study: Study) -> str:
    """What the search will take, in a sentence, before anything runs; empty where there is nothing to say of it."""
    quantiles = [c for c in study.sla.constraints if c.metric.q is not None]
    if study.settings.strategy not in RACES:
        return _too_few(study, quantiles)
    needed = {c: max(processes_needed(required_share(c)), MIN_PROCESSES) for c in quantiles}
    most = max(needed, key=needed.__getitem__, default=None)
    count = MIN_PROCESSES if most is None else needed[most]
    for_what = "" if most is None else f" to show {most} at {CONFIDENCE:.0%}"
    what = f"{study.settings.strategy} over {len(study.plans)} plans"
    said = f"{what}; the winner will be confirmed in at least {count} processes{for_what}"
    budget, trials = study.settings.budget_s, study.settings.max_trials
    if trials is not None and trials <= count:
        return (
            f"{said}, which {trials} in all are too few for: what is best by then is shown of the processes seen alone"
        )
    return said if budget is None else f"{said}, if {budget:g} s are enough for that"


def _too_few(study: Study, quantiles: Sequence[Constraint]) -> str:
    """That the rounds are too few to bound a quantile; empty where they are not."""
    most = max(quantiles, key=lambda c: bound_needs(required_share(c)), default=None)
    prompts, rounds = len(study.workload.prompts), study.settings.rounds
    if most is None or (needed := bound_needs(required_share(most))) <= rounds * prompts:
        return ""
    what = f"{rounds} round{'' if rounds == 1 else 's'} of {prompts} prompt{'' if prompts == 1 else 's'}"
    return f"{what} cannot bound {most}, which takes {needed} requests a plan: --rounds {math.ceil(needed / prompts)}"


def expected(study: Study, ready: Ready, store: Store, tell: Tell) -> Predict | None:
    """What a race expects of the study's plans: from the rates of this machine, measured now where they are not kept.

    None where the study is no race, or the sizes of no model are known.
    """
    if study.settings.strategy not in RACES:
        return None
    shapes = {checkpoint.name: shape for checkpoint in study.checkpoints if (shape := _shape(checkpoint)) is not None}
    if not shapes:
        return None
    lengths, places = _lengths(study, ready), _looked_at(study, ready)
    rates = kept(store, study.machine, tell=tell)
    tokens = fmean(study.workload.output_tokens(place) for place in places)
    return expectations(study.plans, shapes, rates, lengths, places, tokens)


def _shape(checkpoint: Checkpoint) -> Shape | None:
    try:
        return shape_of(read_config(checkpoint.path))
    except ModelError:
        return None  # nothing is expected of its plans then: they are looked at


def _lengths(study: Study, ready: Ready) -> dict[str, list[int]]:
    return {model: [len(request.prompt_ids) for request in ready.requests(model)] for model in study.space.models}


def _looked_at(study: Study, ready: Ready) -> tuple[int, ...]:
    outputs = [study.workload.output_tokens(place) for place in range(len(study.workload.prompts))]
    return looked_at(_lengths(study, ready)[study.space.models[0]], outputs)


def looked_at(prompt_tokens: Sequence[int], output_tokens: Sequence[int] = ()) -> tuple[int, ...]:
    """The requests that a look sends: those in the middle of the order by how long they take.

    An output token takes longer than one of the prompt: where the numbers of output tokens differ, they come first.
    """

    def length(place: int) -> tuple[int, int, int]:
        return (output_tokens[place] if output_tokens else 0, prompt_tokens[place], place)

    by_length = sorted(range(len(prompt_tokens)), key=length)
    middle = max((len(by_length) - LOOKED_AT) // 2, 0)
    return tuple(sorted(by_length[middle : middle + LOOKED_AT]))


def expectations(
    plans: Sequence[Plan],
    shapes: Mapping[str, Shape],
    rates: Rates,
    prompt_tokens: Mapping[str, Sequence[int]],
    places: Sequence[int],
    output_tokens: float,
) -> Predict:
    """What to expect of each of `plans` after some measurements, for requests like those of a look.

    Plans of a model without a shape, and those on another device than the CPU, are expected nothing of.

    Args:
        prompt_tokens: by model, the length of each prompt.
        places: of the requests that a look sends.
        output_tokens: of these requests, on average.
    """
    known = [plan for plan in plans if plan.model in shapes and plan.device == "cpu"]
    lengths = {model: fmean(of[place] for place in places) for model, of in prompt_tokens.items()}
    asked = Asked.of(known, [(lengths[plan.model], output_tokens) for plan in known], rates, shapes)

    def foreseen(told: Sequence[Measurement]) -> Mapping[Plan, Prediction]:
        seen = observations(results(dict.fromkeys(m.plan for m in told), told), or_disturbed=True)
        return dict(zip(known, Predictor.fit(seen, rates, shapes).foresee(asked), strict=True))

    return foreseen
