"""Names of engines. Naming one never imports it; `load_engine` does, and only the worker calls it.

A newcomer is one line here, or an entry point of group `inferplan.engines` in
another package.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import cast

from ..errors import UnknownNameError
from .base import Engine

BUILTIN = {
    "ctranslate2": "inferplan.engines.ctranslate2:CTranslate2Engine",
    "fake": "inferplan.engines.fake:FakeEngine",
    "llamacpp": "inferplan.engines.llamacpp:LlamaCppEngine",
    "llamacpp-native": "inferplan.engines.llamacpp_native:LlamaCppNativeEngine",
    "onnxruntime": "inferplan.engines.onnxruntime:OnnxRuntimeEngine",
    "openvino": "inferplan.engines.openvino:OpenVinoEngine",
    "transformers": "inferplan.engines.transformers:TransformersEngine",
    "vllm": "inferplan.engines.vllm:VllmEngine",
}
HIDDEN = frozenset({"fake"})  # for tests and dry runs: it times nothing real
DEFAULT = ("transformers",)
"""The engines of a study that names none."""
GROUP = "inferplan.engines"


def engine_names() -> dict[str, str]:
    """Every engine known here, as name -> `module:Class`."""
    found = {point.name: point.value for point in entry_points(group=GROUP)}
    return dict(sorted({**found, **BUILTIN}.items()))


def check_engine(name: str) -> str:
    """`name`, if there is such an engine.

    Raises:
        UnknownNameError: there is none.
    """
    known = engine_names()
    if name not in known:
        raise UnknownNameError("engine", name, set(known) - HIDDEN)
    return name


def load_engine(name: str) -> Engine:
    """Import the engine and make one. Called in the worker only.

    Raises:
        UnknownNameError: there is none of that name.
        ImportError: its package is not installed.
    """
    module, _, attribute = engine_names()[check_engine(name)].partition(":")
    return cast(Engine, getattr(importlib.import_module(module), attribute)())
