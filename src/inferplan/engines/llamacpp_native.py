"""llama.cpp built for this CPU, from the source of the same package, in an environment of its own.

Owns telling that build from the wheel. Leaves everything else to `llamacpp`, and the build to `inferplan.environments`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from ..environments import RECIPES, STAMP
from ..plan import Plan
from .base import EngineInfo
from .llamacpp import LlamaCppEngine

NAME = "llamacpp-native"


class LlamaCppNativeEngine(LlamaCppEngine):
    """One plan in one process; see `base.Engine`."""

    def describe(self) -> EngineInfo:
        """As the wheel's, where this Python is the one of the build."""
        info = replace(super().describe(), name=NAME)
        prefix = Path(sys.prefix)
        if prefix.name == NAME and (prefix / STAMP).is_file():
            return replace(info, libraries={f"{name} of {NAME}": told for name, told in info.libraries.items()})
        why = "llama.cpp built for this CPU is not installed: inferplan engines install llamacpp --native"
        return replace(
            info, version="", precisions=(), axes=(), lacks={"engine": why}, env={}, libraries={}, installed=False
        )

    def native_recipe(self, plan: Plan, checkpoint: str) -> str:
        """The wheel's script, after how the build is made."""
        recipe = RECIPES[NAME]
        variables = " ".join(f'{name}="{value}"' for name, value in recipe.variables)
        command = f"{variables} pip install {' '.join((*recipe.pip_args, *recipe.requirements[:1]))}"
        return f"# Built for the CPU that it runs on: {command}\n{super().native_recipe(plan, checkpoint)}"
