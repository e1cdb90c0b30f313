"""Study files: all that `optimize` is asked, as TOML that one can keep, change and share.

Owns the keys, what may stand under them, and both directions. Leaves what the values mean to `terms`. A file never
grants `--trust-remote-code`: who runs a model's own code says so on the command line.
"""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict
from decimal import Decimal
from pathlib import Path
from typing import Any

from .cost import prices_of_table
from .errors import InputError, UnknownNameError
from .flags import WEIGHTS
from .plan import option_text
from .search.limits import Limits
from .selection import Objective, parse_sla
from .study import RACES, Settings, Study
from .terms import seconds_of
from .workload import Prompt, parse_prompt

Check = Callable[[object], bool]


def _texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _wholes(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_whole(item) for item in value)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _flags(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_flag, value))


def _text(value: object) -> bool:
    return isinstance(value, str)


def _table(value: object) -> bool:
    return isinstance(value, dict)


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_table, value))


# Table and key: what it must be, in a test and in words.
_KEYS: Mapping[str, Mapping[str, tuple[Check, str]]] = {
    "space": {
        "models": (_texts, "a list of texts"),
        "engines": (_texts, "a list of texts"),
        "precisions": (_texts, "a list of texts"),
        "threads": (_wholes, "a list of whole numbers"),
        "kv_cache": (_flags, "a list of true and false"),
        "options": (_table, "a table of lists"),
    },
    "workload": {
        "prompts": (_text, "the path of a file"),
        "prompt": (_tables, "one table [[workload.prompt]] for each prompt"),
        "prompt_tokens": (_wholes, "a list of whole numbers"),
        "max_new_tokens": (_whole, "a whole number"),
        "private": (_flag, "true or false"),
    },
    "choice": {
        "sla": (_texts, "a list of texts"),
        "minimize": (_text, "a text"),
        "prices": (_table, "a table"),
    },
    "run": {
        "strategy": (_text, "a text"),
        "budget": (_text, "a text, such as 5m"),
        "max_trials": (_whole, "a whole number"),
        "reuse": (_flag, "true or false"),
        "rounds": (_whole, "a whole number"),
        "all_rounds": (_flag, "true or false"),
        "early_stop": (_flag, "true or false"),
        "retakes": (_whole, "a whole number"),
        "weights": (_text, "a text"),
        "request_timeout": (_number, "a number of seconds"),
        "load_timeout": (_number, "a number of seconds"),
        "watch": (_flag, "true or false"),
    },
}
_SOURCES = ("prompts", "prompt", "prompt_tokens")


def read_study(path: Path) -> dict[str, Any]:
    """The arguments of `optimize` that the file gives, by their names in the parser.

    The path of the prompts is relative to the file's own directory; models are named as on the command line.

    Raises:
        InputError: the file is missing, unreadable or no TOML, has an unknown key, or a value of another kind.
    """
    where = f"the study file {str(path)!r}"
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{where} does not exist") from None
    except OSError as err:
        raise InputError(f"{where} cannot be read: {err.strerror}") from None
    except ValueError as err:  # TOML's errors, and text that is not UTF-8
        raise InputError(f"{where} cannot be parsed: {err}") from None
    values = {}
    for table, keys in tables.items():
        if table not in _KEYS:
            raise InputError(f"{where}: {UnknownNameError('table', table, _KEYS)}")
        if not isinstance(keys, dict):
            raise InputError(f"{where}: {table} must be a table, [{table}]")
        for key, value in keys.items():
            if key not in _KEYS[table]:
                raise InputError(f"{where}: {UnknownNameError(f'key of [{table}]', key, _KEYS[table])}")
            holds, words = _KEYS[table][key]
            if not holds(value):
                raise InputError(f"{where}: {key} in [{table}] must be {words}, not {value!r}")
            values[key] = value
    if len(given := [key for key in _SOURCES if key in values]) > 1:
        raise InputError(f"{where}: give one of {' and '.join(given)}")
    try:
        return _arguments(values, path)
    except InputError as err:
        raise InputError(f"{where}: {err}") from None


def fill_in(arguments: argparse.Namespace, path: Path, given: Set[str]) -> None:
    """Give `arguments` what the file says, but for those that were `given` themselves.

    A strategy that is given drops the rounds of the file where it is a race, which takes none.

    Raises:
        InputError: see `read_study`; or the file asks for rounds of a race.
    """
    values = read_study(path)
    sources = {"prompts", "prompt_tokens", "given_prompts"}
    passed = {*given, *sources} if given & sources else {*given}
    if "strategy" in given and arguments.strategy in RACES:
        passed |= {"rounds", "all_rounds"}
    for name, value in values.items():
        if name not in passed:
            setattr(arguments, name, value)
    of_file = [name for name in ("rounds", "all_rounds") if values.get(name) and name not in passed]
    if of_file and arguments.strategy in RACES:
        raise InputError(
            f"the study file {str(path)!r}: {of_file[0]} cannot be had with the strategy {arguments.strategy}, which "
            'measures a plan as often as its verdict needs: leave it out, or write strategy = "exhaustive"'
        )


def _arguments(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    _check(values)
    found = dict(values)
    if "kv_cache" in found:
        found["kv_cache"] = ["on" if on else "off" for on in found["kv_cache"]]
    if "options" in found:
        found["option"] = [_option(name, of) for name, of in found.pop("options").items()]
    if "prompts" in found:
        found["prompts"] = str(path.parent / found["prompts"])
    if "prompt" in found:
        rows = enumerate(found.pop("prompt"), 1)
        found["given_prompts"] = tuple(parse_prompt(row, f"prompt {place}") for place, row in rows)
    if "prompt_tokens" in found:
        found["prompt_tokens"] = ",".join(map(str, found["prompt_tokens"]))
    if "prices" in found:
        found["given_prices"] = prices_of_table(found.pop("prices"), "[choice.prices]", path.name)
    if "watch" in found:
        found["no_watch"] = not found.pop("watch")
    return found


def _check(values: Mapping[str, Any]) -> None:
    """Refuse here, where the file can be named, what would be refused later."""
    names = {"request_timeout": "request_timeout_s", "load_timeout": "load_timeout_s"}
    known = ("strategy", "max_trials", "rounds", "retakes", *names)
    Settings(**{names.get(name, name): values[name] for name in known if name in values})
    if "budget" in values:
        Limits(seconds=seconds_of(values["budget"]))
    if "sla" in values:
        parse_sla(values["sla"])
    if "minimize" in values:
        Objective(values["minimize"])
    if values.get("weights", WEIGHTS[0]) not in WEIGHTS:
        raise UnknownNameError("weights", values["weights"], WEIGHTS)


def _option(name: str, values: object) -> str:
    if not isinstance(values, list) or not values or not all(isinstance(v, str | int | float) for v in values):
        raise InputError(f"option {name} must be a list of texts, numbers, true and false, not {values!r}")
    return f"{name}={','.join(map(option_text, values))}"


def study_text(study: Study) -> str:
    """The file that asks for `study` again, whole: prompts are written out.

    Raises:
        InputError: the study is private, and the file would hold its prompts.
    """
    import tomli_w

    if study.settings.private:
        raise InputError("a private study is not written to a file: it would hold the prompts")
    space, settings, workload = study.space, study.settings, study.workload
    tables = {
        "space": {
            "models": list(space.models),
            "engines": list(space.engines),
            "precisions": list(space.precisions),
            "threads": list(space.threads),
            "kv_cache": list(space.kv_cache),
            **({"options": {name: list(values) for name, values in space.options}} if space.options else {}),
        },
        "choice": {
            "sla": [constraint.text for constraint in study.sla.constraints],
            "minimize": study.objective.metric,
            "prices": asdict(study.prices),
        },
        "run": {
            "strategy": settings.strategy,
            **({} if settings.budget_s is None else {"budget": f"{Decimal(repr(settings.budget_s)):f}s"}),
            **({} if settings.max_trials is None else {"max_trials": settings.max_trials}),
            **({} if settings.strategy in RACES else {"rounds": settings.rounds, "all_rounds": settings.all_rounds}),
            "reuse": settings.reuse,
            "early_stop": settings.early_stop,
            "retakes": settings.retakes,
            "weights": settings.weights,
            "request_timeout": settings.request_timeout_s,
            "load_timeout": settings.load_timeout_s,
            "watch": settings.watch_outside,
        },
        "workload": {"max_new_tokens": workload.max_new_tokens, **_prompts(workload.prompts)},
    }
    return tomli_w.dumps(tables)


def _prompts(prompts: tuple[Prompt, ...]) -> dict[str, object]:
    if all(prompt.prompt_tokens is not None for prompt in prompts):
        return {"prompt_tokens": [prompt.prompt_tokens for prompt in prompts]}
    return {"prompt": [prompt.body for prompt in prompts]}
