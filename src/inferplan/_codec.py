"""Frozen dataclasses to JSON and back, by their annotations; standard library only.

Owns the one translation that worker, store and export share, so that a field
is written down once. Leaves versions and migrations to the store.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A JSON-ready copy of `value`: dataclasses become dicts, tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def decode(cls: type[T], data: Any) -> T:
    """The `cls` that `encode` turned into `data`.

    Raises:
        TypeError: a key that `cls` does not have, or one that it needs and is missing.
    """
    return typing.cast(T, _decode(cls, data))


def _decode(kind: Any, data: Any) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(data, Mapping):
            raise TypeError(f"{kind.__name__} needs an object, not {data!r}")
        hints = _hints(kind)
        unknown = sorted(set(data) - set(hints))
        if unknown:
            raise TypeError(f"{kind.__name__} has no field {', '.join(unknown)}")
        return kind(**{key: _decode(hints[key], item) for key, item in data.items()})
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        members = [arg for arg in args if arg is not type(None)]
        return _decode(members[0], data) if len(members) == 1 else data
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise TypeError(f"a list is needed, not {data!r}")
        if len(args) == 2 and args[1] is Ellipsis:
            if args[0] in (int, float):  # token ids and times: most of a store, so without a call for each
                return tuple(data) if args[0] is int else tuple(map(_as_float, data))
            return tuple(_decode(args[0], item) for item in data)
        return tuple(_decode(arg, item) for arg, item in zip(args, data, strict=True))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(data, Mapping):
            raise TypeError(f"an object is needed, not {data!r}")
        return {key: _decode(args[1], item) for key, item in data.items()}
    if kind is Path:
        return Path(data)
    return _as_float(data) if kind is float else data


def _as_float(data: Any) -> Any:
    """JSON writes 2.0 as 2 in other hands than ours; anything that is no number stays what it is."""
    return float(data) if type(data) is int else data
