"""name -> Checkpoint, and the content-addressed cache of artifacts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model resolved to a local directory in Hugging Face layout.

    Attributes:
        name: the model's name as the user gave it, and as it stands in plans.
        path: directory with config.json, safetensors and tokenizer files.
        provenance: where the weights come from.
        weights: what the weights are, in words shown wherever the model is
            (`float32`, `dequantized from Q4_1 (GGUF)`, `synthetic weights, seed 0`).
        content_hash: sha256 over config and weights; the key of its artifacts.
        parameters: count of parameters, tied ones once.
        context: longest sequence in tokens that the model takes; None where unknown.
        revision: commit of a hub model; empty elsewhere.
    """

    name: str
    path: Path
    provenance: Literal["hub", "local", "packaged", "synthetic"]
    weights: str
    content_hash: str
    parameters: int = 0
    context: int | None = None
    revision: str = ""

    @property
    def synthetic(self) -> bool:
        """Whether the weights are made up: timings are true, outputs mean nothing."""
        return self.provenance == "synthetic"
