"""Plan and Space: how a model is executed, and the axes that expand to plans.

Owns the plan's identity (its id, read and written). Leaves what an engine can
really do to `engines`: a Space is only told, through a function.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass

from .errors import InputError

OptionValue = str | int | float | bool
Options = tuple[tuple[str, OptionValue], ...]

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is executed. Hashable; two equal plans have equal ids.

    Attributes:
        model: the model's name as the user gave it.
        engine: name in the engine registry.
        precision: one of `PRECISIONS`, or an engine's own type for a ready file.
        threads: compute threads, at least 1.
        kv_cache: whether keys and values are kept between tokens.
        device: `cpu` or `cuda`.
        options: the engine's own axes where they are not the default, sorted by name.
    """

    model: str
    engine: str = "transformers"
    precision: str = "fp32"
    threads: int = 1
    kv_cache: bool = True
    device: str = "cpu"
    options: Options = ()

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}")
        object.__setattr__(self, "options", tuple(sorted((k, v) for k, v in self.options)))

    @property
    def id(self) -> str:
        """Readable and stable: `distilgpt2/llamacpp/int8/t2/kv`, options only where not default."""
        parts = [self.model, self.engine, self.precision, f"t{self.threads}", "kv" if self.kv_cache else "nokv"]
        if self.device != "cpu":
            parts.append(self.device)
        parts += [f"{name}={option_text(value)}" for name, value in self.options]
        return "/".join(parts)

    def __str__(self) -> str:
        return self.id

    @property
    def quantized(self) -> bool:
        """Whether the weights are integers: what `quantize_int8` says in our CSV files."""
        return re.match(r"int\d|i?q\d", self.precision) is not None

    def option(self, name: str, default: OptionValue) -> OptionValue:
        """The value of an engine's own axis, or `default` when the plan leaves it alone."""
        return dict(self.options).get(name, default)

    @classmethod
    def parse(cls, text: str) -> Plan:
        """The plan whose id is `text`; the model's name may itself hold slashes.

        Raises:
            InputError: `text` is not a plan id.
        """
        parts = text.split("/")
        options: list[tuple[str, OptionValue]] = []
        while parts and "=" in parts[-1]:
            name, _, value = parts.pop().partition("=")
            options.append((name, option_value(value)))
        device = parts.pop() if parts and parts[-1] in _DEVICES else "cpu"
        shape = re.fullmatch(r"(.+)/([^/]+)/([^/]+)/t(\d+)/(kv|nokv)", "/".join(parts))
        if shape is None:
            raise InputError(
                f"{text!r} is not a plan id. A plan id is MODEL/ENGINE/PRECISION/tTHREADS/kv|nokv[/OPTION=VALUE], "
                "for example distilgpt2/transformers/int8/t2/kv; `inferplan plans` lists them."
            )
        model, engine, precision, threads, cache = shape.groups()
        return cls(model, engine, precision, int(threads), cache == "kv", device, tuple(options))


def option_text(value: OptionValue) -> str:
    """An option's value as written in a plan id; `option_value` reads it back."""
    return ("on" if value else "off") if isinstance(value, bool) else str(value)


def option_value(text: str) -> OptionValue:
    """An option's value as written in a plan id: `on`, `off`, a number, or text."""
    if text in ("on", "off"):
        return text == "on"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True, slots=True)
class Space:
    """Axes that expand to plans, models outermost.

    `options` holds, by option name, the values to try. A name is an axis of every
    engine of the space (one that has no such axis rejects the plan with its reason),
    or `ENGINE.AXIS` for that engine alone.
    """

    models: tuple[str, ...]
    engines: tuple[str, ...] = ("transformers",)
    precisions: tuple[str, ...] = ("fp32", "int8")
    threads: tuple[int, ...] = (1,)
    kv_cache: tuple[bool, ...] = (True, False)
    device: str = "cpu"
    options: tuple[tuple[str, tuple[OptionValue, ...]], ...] = ()

    def __post_init__(self) -> None:
        for axis in ("models", "engines", "precisions", "threads", "kv_cache"):
            values = getattr(self, axis)
            if not values:
                raise InputError(f"the space has no {axis}: give at least one")
            object.__setattr__(self, axis, tuple(dict.fromkeys(values)))
        names = [name for name, _ in self.options]
        for engine in self.engines:
            owned = [axis for axis, _ in self._options_of(engine)]
            if repeated := [axis for axis in owned if owned.count(axis) > 1]:
                axis = repeated[0]
                raise InputError(
                    f"option {axis} is given twice for {engine}: give all its values at once, {axis}=V1,V2"
                )
        if unknown := [n for n in names if "." in n and n.rpartition(".")[0] not in self.engines]:
            raise InputError(
                f"option {unknown[0]} is of an engine that is not asked for: the engines are {', '.join(self.engines)}"
            )
        bad = [n for n in self.threads if n < 1]
        if bad:
            raise InputError(f"threads must be at least 1, not {bad[0]}")

    @property
    def plans(self) -> tuple[Plan, ...]:
        """Every combination, whether or not an engine can run it."""
        shapes = itertools.product(self.models, self.engines, self.precisions, self.threads, self.kv_cache)
        return tuple(
            Plan(model, engine, precision, threads, cache, self.device, options)
            for model, engine, precision, threads, cache in shapes
            for options in self._chosen(engine)
        )

    def _options_of(self, engine: str) -> tuple[tuple[str, tuple[OptionValue, ...]], ...]:
        """The axes that hold for `engine`, by their own names."""
        split = ((*name.rpartition("."), values) for name, values in self.options)
        return tuple((axis, values) for owner, _, axis, values in split if owner in ("", engine))

    def _chosen(self, engine: str) -> tuple[Options, ...]:
        """Each combination of the values of the engine's options."""
        axes = [[(axis, value) for value in values] for axis, values in self._options_of(engine)]
        return tuple(itertools.product(*axes))

    def rejected(self, reason: Callable[[Plan], str | None]) -> tuple[tuple[Plan, str], ...]:
        """The plans that cannot run, with why, as told by `reason` (None: it can)."""
        return tuple((plan, why) for plan in self.plans if (why := reason(plan)) is not None)
