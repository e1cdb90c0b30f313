"""Imports torch and one modelling module of transformers, and nothing that the plan does not need.

Owns what is patched during the import, and that all of it is undone afterwards.
Leaves building the model to `_transformers_model`.

Measured with torch 2.13 and transformers 5.23: 256 MiB and 2.8 s instead of 364 MiB and 4.5 s (issue 2).
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from ..errors import Unsupported

# Packages that transformers imports when it finds them and that text generation never calls.
_OPTIONAL = ("scipy", "sklearn", "pandas", "PIL", "torchvision", "accelerate", "peft", "torchao")
# The compiler front end: modelling code only borrows decorators from it.
_COMPILER = ("torch._dynamo", "torch._dynamo._trace_wrapped_higher_order_op")


def model_class(model_type: str) -> tuple[type, type, str]:
    """Config class and causal language model class of `model_type`, and how they were imported.

    The third is `slim`, `already imported`, or `plain: ` with what stopped the slim way.

    Raises:
        Unsupported: transformers has no causal language model of that type.
    """
    if "transformers" in sys.modules:
        return (*_classes(model_type), "already imported")
    before = set(sys.modules)
    try:
        with _slim():
            found = _classes(model_type)
    except Unsupported:
        raise
    except Exception as error:  # another version may import what we held back; the plain way always works
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "transformers":
                del sys.modules[name]
        return (*_classes(model_type), f"plain: {type(error).__name__}: {error}")
    return (*found, "slim")


def _classes(model_type: str) -> tuple[type, type]:
    # Importing these two reads names only; the classes behind them are imported one by one below.
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES, model_type_to_module_name
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or model_type not in CONFIG_MAPPING_NAMES:
        raise Unsupported(f"this version of transformers has no causal language model of type {model_type!r}")
    module = model_type_to_module_name(model_type)
    configs = importlib.import_module(f"transformers.models.{module}.configuration_{module}")
    models = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    try:
        return (
            getattr(configs, CONFIG_MAPPING_NAMES[model_type]),
            getattr(models, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]),
        )
    except AttributeError as error:
        raise Unsupported(f"transformers keeps {model_type!r} in a module of another name: {error}") from error


@contextmanager
def _slim() -> Iterator[None]:
    """Hold back what text generation never calls, for the time of an import."""
    with ExitStack() as undo:
        absent = [name for name in _OPTIONAL if name not in sys.modules]
        undo.enter_context(_modules(dict.fromkeys(absent)))
        import torch

        if "torch._dynamo" not in sys.modules:
            undo.enter_context(_modules({name: _Placeholder(name) for name in _COMPILER}))
        undo.enter_context(_patched(torch.distributed, "is_available", _no))
        undo.enter_context(_patched(torch.compiler, "disable", _identity))
        undo.enter_context(_patched(torch.compiler, "allow_in_graph", _identity))
        import transformers.utils
        import transformers.utils.import_utils as checks

        for module in (checks, transformers.utils):
            undo.enter_context(_patched(module, "is_torch_flex_attn_available", _no))
        undo.callback(_forget, checks)
        yield


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _modules(entries: dict[str, Any]) -> Iterator[None]:
    sys.modules.update(entries)
    try:
        yield
    finally:
        for name in entries:
            sys.modules.pop(name, None)


def _forget(checks: types.ModuleType) -> None:
    """Empty the caches in which `is_..._available` noted that a package was missing."""
    for value in vars(checks).values():
        if callable(clear := getattr(value, "cache_clear", None)):
            clear()


def _no() -> bool:
    return False


def _identity(function: Any = None, *_: Any, **__: Any) -> Any:
    """A decorator that changes nothing, with or without arguments."""
    return function if function is not None else lambda decorated: decorated


class _Placeholder(types.ModuleType):
    """Stands in for a module during the import: functions are decorators, classes are imported when first used."""

    __path__: list[str] = []  # noqa: RUF012  (makes it a package to the import system)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _late_class(self.__name__, name) if name[0].isupper() else _identity


def _late_class(module: str, name: str) -> type:
    def new(_: type, *args: Any, **kwargs: Any) -> Any:
        real: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return real(*args, **kwargs)

    return type(name, (), {"__new__": new, "__module__": __name__})
