"""Terms: from parsed arguments to a Study, new or resumed.

Owns what each argument means. Leaves parsing them to `cli`, running the study
to `study`; the command line and the web app both come through here.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, cast

from . import machine, prepare
from .cost import Prices, read_prices
from .engines.base import EngineInfo
from .errors import InputError
from .models import Checkpoint
from .plan import OptionValue, Space, option_value
from .selection import SLA, Objective, parse_sla
from .store import Store
from .study import RACES, Settings, Study, check_resumable, load, new_id
from .workload import Prompt, Workload, parse_prompts, read_prompts

Arguments = argparse.Namespace
Tell = Callable[[str], None]

_STDIN = "-"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|)")
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
ROUNDS = 2
"""Processes a plan, when it is not said how many."""


def begun(arguments: Arguments, sla: SLA, space: Space, infos: Mapping[str, EngineInfo]) -> Study:
    """A new study from arguments; what is wrong with them is found here, before anything heavy.

    Args:
        infos: what each engine of `space` says of itself.

    Raises:
        InputError: an argument cannot be used, or no plan of the space can run here.
    """
    now = time.time()
    space = fitted(space, infos)
    return Study(
        id=new_id(now),
        created_at=now,
        space=space,
        workload=workload_of(arguments),
        sla=sla,
        objective=objective_of(arguments, Objective()),
        machine=machine.detect(),
        settings=settings_of(arguments),
        prices=prices_of(arguments, Prices()),
        libraries=prepare.libraries(infos),
        rejected=prepare.rejected(space, infos),
    )


def resumed(store: Store, arguments: Arguments) -> tuple[Study, dict[str, EngineInfo]]:
    """A study from the store, if this machine and these versions may go on with it, with new terms where given.

    Raises:
        InputError: there is no such study, or it may not be gone on with here; says why.
    """
    study = load(store, arguments.resume)
    infos = prepare.describe_engines(study.space.engines)
    check_resumable(study, machine.detect(), prepare.libraries(infos))
    if study.settings.private:
        given = workload_of(arguments)
        if given.key != study.workload.key:
            raise InputError(
                f"study {study.id} keeps its prompts only as hashes: give the same --prompts, --prompt-tokens and "
                "--max_new_tokens as when it began to go on with it"
            )
        study = replace(study, workload=given)
    _check_same(study, arguments, infos)
    _check_rounds(study.settings.strategy, arguments)
    rounds = study.settings.rounds if arguments.rounds is None else arguments.rounds
    every = study.settings.all_rounds or arguments.all_rounds
    study = study.under(
        new_sla(arguments), objective_of(arguments, study.objective), prices_of(arguments, study.prices)
    )
    settings = replace(study.settings, rounds=rounds, all_rounds=every, **_limits(arguments))
    return replace(study, settings=settings), infos


def _check_same(study: Study, arguments: Arguments, infos: Mapping[str, EngineInfo]) -> None:
    """Refuse what would make another study of it; what it began with may be said again.

    Raises:
        InputError: names the flags.
    """
    given: Set[str] = getattr(arguments, "given", frozenset())
    space, settings = study.space, study.settings
    began: dict[str, object] = {
        "models": list(space.models),
        "engines": list(space.engines),
        "precisions": list(space.precisions),
        "threads": list(space.threads),
        "kv_cache": ["on" if on else "off" for on in space.kv_cache],
        "max_new_tokens": study.workload.max_new_tokens,
        "private": settings.private,
        "strategy": settings.strategy,
        "early_stop": settings.early_stop,
        "retakes": settings.retakes,
        "weights": settings.weights,
        "request_timeout": settings.request_timeout_s,
        "load_timeout": settings.load_timeout_s,
        "no_watch": not settings.watch_outside,
        "trust_remote_code": settings.trust_remote_code,
    }
    other = [name for name in began if name in given and _values(getattr(arguments, name)) != _values(began[name])]
    if "option" in given:
        options = replace(space, options=tuple(option_of(text) for text in arguments.option))
        other += ["option"] if fitted(options, infos).options != space.options else []
    sources = [name for name in ("prompts", "prompt_tokens") if name in given]
    if sources and not settings.private:  # those of a private one were compared already; `-` can be read once
        same = replace(workload_of(arguments), max_new_tokens=study.workload.max_new_tokens)
        other += sources if same.key != study.workload.key else []
    if other:
        flags = ", ".join("--" + name.replace("_", "-") for name in other)
        raise InputError(
            f"study {study.id} goes on as it began, without {flags}: give that to a new study. Given anew may be the "
            "SLA, the choice, --rounds, --all-rounds, --budget and --max-trials"
        )


def _values(value: object) -> object:
    """An axis without the order and the repeats of its values, which make no other plans."""
    return set(value) if isinstance(value, list) else value


def _limits(arguments: Arguments) -> dict[str, Any]:
    """The limits that were given, by their names in `Settings`."""
    found: dict[str, Any] = {}
    if arguments.budget is not None:
        found["budget_s"] = seconds_of(arguments.budget)
    if arguments.max_trials is not None:
        found["max_trials"] = arguments.max_trials
    return found


def new_sla(arguments: Arguments) -> SLA | None:
    """The SLA that was given on the command line, of either command."""
    if getattr(arguments, "sla_ms", None) is not None:
        return SLA.from_p50_ms(arguments.sla_ms)
    return parse_sla(arguments.sla) if getattr(arguments, "sla", None) else None


def checkpoints(study: Study, infos: Mapping[str, EngineInfo], tell: Tell, warn: Tell) -> tuple[Checkpoint, ...]:
    """The study's models, resolved; on resuming, the very weights that it began with.

    Raises:
        InputError: the weights that a resumed study began with are not to be had any more.
    """
    kept = [c for c in study.checkpoints if c.provenance != "local" and (c.path / "config.json").is_file()]
    if study.checkpoints:
        tell(f"resuming study {study.id}: {len(study.measurements)} processes so far")
    if kept and len(kept) == len(study.checkpoints):
        return study.checkpoints  # in our cache or the hub's: named by content, so they are what they were
    if study.settings.trust_remote_code:
        warn("--trust-remote-code accepts models that bring Python code of their own; it can do anything you can")
    resolved = prepare.resolve_models(
        study.space,
        infos,
        weights=study.settings.weights,
        trust_remote_code=study.settings.trust_remote_code,
        tell=tell,
    )
    was = {checkpoint.name: checkpoint.content_hash for checkpoint in study.checkpoints}
    if changed := [c.name for c in resolved if was and c.content_hash != was.get(c.name)]:
        raise InputError(
            f"the weights of {', '.join(changed)} are not those that study {study.id} began with, and those are gone "
            "from the cache: start a new study"
        )
    return resolved


def space_of(arguments: Arguments) -> Space:
    """The space that the arguments of `optimize` and `plans` span."""
    return Space(
        models=tuple(arguments.models),
        engines=tuple(arguments.engines),
        precisions=tuple(arguments.precisions),
        threads=tuple(arguments.threads),
        kv_cache=tuple(value == "on" for value in arguments.kv_cache),
        options=tuple(option_of(text) for text in arguments.option),
    )


def fitted(space: Space, infos: Mapping[str, EngineInfo]) -> Space:
    """`space` with each option that only some of its engines have given to those alone.

    An option that none of them has stays as it is: each plan is then rejected with the nearest name.
    """
    options: list[tuple[str, tuple[OptionValue, ...]]] = []
    for name, values in space.options:
        owners = [engine for engine in space.engines if name in {axis.name for axis in infos[engine].axes}]
        some = 0 < len(owners) < len(space.engines)
        options += [(f"{engine}.{name}", values) for engine in owners] if some else [(name, values)]
    return replace(space, options=tuple(options))


def option_of(text: str) -> tuple[str, tuple[OptionValue, ...]]:
    """The axis and the values of `--option NAME=V1,V2`.

    Raises:
        InputError: it is not written so.
    """
    name, equals, values = text.partition("=")
    if not (name and equals and values):
        raise InputError(f"--option {text!r} is not NAME=VALUE or NAME=V1,V2")
    return name, tuple(option_value(value) for value in values.split(","))


def workload_of(arguments: Arguments) -> Workload:
    """The prompts given, in a file or by their lengths, else the shipped ones."""
    if arguments.prompts is not None and arguments.prompt_tokens is not None:
        raise InputError("give either --prompts or --prompt-tokens, not both")
    if arguments.given_prompts:
        return Workload(arguments.given_prompts, max_new_tokens=arguments.max_new_tokens)
    if arguments.prompt_tokens is not None:
        prompts = tuple(Prompt(prompt_tokens=count) for count in _counts(arguments.prompt_tokens))
    elif arguments.prompts == _STDIN:
        prompts = parse_prompts(sys.stdin.read(), jsonl=True, source="standard input")
    elif arguments.prompts is not None:
        prompts = read_prompts(Path(arguments.prompts))
    else:
        shipped = files("inferplan") / "data" / "prompts.txt"
        prompts = parse_prompts(shipped.read_text(encoding="utf-8"), jsonl=False)
    return Workload(prompts, max_new_tokens=arguments.max_new_tokens)


def _counts(text: str) -> Sequence[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--prompt-tokens {text!r} is not a list of whole numbers, such as 32,512,2048") from None


def settings_of(arguments: Arguments) -> Settings:
    """How the study is run.

    Raises:
        InputError: rounds are asked of a race, which decides for itself; or a value is out of range.
    """
    _check_rounds(arguments.strategy, arguments)
    return Settings(
        rounds=ROUNDS if arguments.rounds is None else arguments.rounds,
        all_rounds=arguments.all_rounds,
        early_stop=arguments.early_stop,
        private=arguments.private,
        weights=arguments.weights,
        retakes=arguments.retakes,
        request_timeout_s=arguments.request_timeout,
        load_timeout_s=arguments.load_timeout,
        trust_remote_code=arguments.trust_remote_code,
        watch_outside=not arguments.no_watch,
        strategy=arguments.strategy,
        reuse=arguments.reuse,
        **_limits(arguments),
    )


def _check_rounds(strategy: str, arguments: Arguments) -> None:
    if strategy in RACES and (arguments.rounds is not None or arguments.all_rounds):
        asked = "--all-rounds" if arguments.rounds is None else f"--rounds {arguments.rounds}"
        raise InputError(
            f"{asked} cannot be had with --strategy {strategy}, which measures a plan as often as its "
            "verdict needs: leave it out, or begin a study with --strategy exhaustive"
        )


def seconds_of(text: str) -> float:
    """`90s`, `5m`, `1.5h`, or a plain number of seconds.

    Raises:
        InputError: it is none of these.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise InputError(f"{text!r} is not a length of time, such as 90s, 5m or 1.5h")
    return float(found[1]) * _SECONDS[found[2]]


def objective_of(arguments: Arguments, default: Objective) -> Objective:
    """What to minimise, where it is said."""
    if arguments.minimize is None:
        return default
    return Objective(cast(Literal["latency", "memory", "cost"], arguments.minimize))


def prices_of(arguments: Arguments, default: Prices) -> Prices:
    """The prices of the file that was named, or of the study file, where one was."""
    if arguments.prices is None and arguments.given_prices is not None:
        return cast(Prices, arguments.given_prices)
    return default if arguments.prices is None else read_prices(arguments.prices)
