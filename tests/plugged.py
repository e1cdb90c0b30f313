"""An engine of another package, for tests of what is done around an engine: a GPT-2 without layers, in NumPy.

Owns its source, as a package on a path of its own, and checkpoints that it and transformers both know. Needs no torch.
What it does wrong, or slowly, is told by environment variables.
"""

from __future__ import annotations

import json
from pathlib import Path

from inferplan import artifacts
from inferplan.models import Checkpoint

VOCABULARY, WIDTH, CONTEXT = 300, 32, 256
ENGINE = """
import os, time
from pathlib import Path
import numpy as np
from safetensors.numpy import load_file, save_file
from inferplan.engines.base import EngineInfo
from inferplan.measurement import Actual

class PluggedEngine:
    def describe(self):
        return EngineInfo("plugged", "1", ("fp32", "int8", "int4"), libraries={"plugged": "1"}, ready=("q4_1",))

    def unsupported(self, plan):
        return self.describe().reject(plan)

    def convert(self, checkpoint, plan, out):
        (out / "half").write_bytes(b"x" * 1000)
        time.sleep(float(os.environ.get("PLUGGED_CONVERT_S", 0)))
        (out / "half").unlink()
        file = checkpoint if checkpoint.is_file() else checkpoint / "model.safetensors"
        tensors = load_file(file)
        levels = {"int8": 127, "int4": 7}.get(plan.precision)
        for name in ("transformer.wte.weight", "lm_head.weight") if levels else ():
            scale = np.abs(tensors[name]).max(axis=1, keepdims=True) / levels
            tensors[name] = (np.round(tensors[name] / scale) * scale).astype(np.float32)
        tensors["transformer.ln_f.bias"] *= float(os.environ.get("PLUGGED_BIAS", 1))
        save_file(tensors, out / "model.safetensors")

    def load(self, plan, artifact):
        self.tensors = load_file(artifact / "model.safetensors")
        return Actual("float32", plan.precision, plan.threads, "numpy", "weight-only" if plan.quantized else "")

    def generate(self, prompt, max_tokens):
        time.sleep(float(os.environ.get("PLUGGED_GENERATE_S", 0)))
        embedding, positions, scale, bias = (self.tensors["transformer." + name] for name in (
            "wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias"))
        ids = list(prompt)
        for _ in range(max_tokens):
            state = embedding[ids[-1]] + positions[len(ids) - 1]
            state = (state - state.mean()) / np.sqrt(state.var() + 1e-5) * scale + bias
            ids.append(int((self.tensors["lm_head.weight"] @ state).argmax()))
            yield ids[-1]

    def close(self):
        self.tensors = {}
"""


def install(site: Path) -> None:
    """Put the engine's package into the directory `site`, which is to be on PYTHONPATH."""
    metadata = site / "plugged-1.dist-info"
    metadata.mkdir(parents=True)
    (site / "plugged.py").write_text(ENGINE)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[inferplan.engines]\nplugged = plugged:PluggedEngine\n")


def checkpoint(path: Path, *, seed: int = 0, model_type: str = "gpt2") -> Checkpoint:
    """A model of seeded weights in the directory `path`, in Hugging Face layout but for a tokenizer."""
    import numpy as np
    from safetensors.numpy import save_file

    draw = np.random.default_rng(seed)
    path.mkdir(parents=True)
    tensors = {
        "transformer.wte.weight": draw.normal(size=(VOCABULARY, WIDTH)),
        "transformer.wpe.weight": draw.normal(size=(CONTEXT, WIDTH)),
        "lm_head.weight": draw.normal(size=(VOCABULARY, WIDTH)),  # tied to the first, a token would follow itself
        "transformer.ln_f.weight": draw.uniform(0.5, 1.5, size=WIDTH),
        "transformer.ln_f.bias": draw.normal(scale=0.1, size=WIDTH),
    }
    save_file({name: tensor.astype("float32") for name, tensor in tensors.items()}, path / "model.safetensors")
    settings = {
        "model_type": model_type,
        "n_layer": 0,
        "n_head": 4,
        "n_embd": WIDTH,
        "n_positions": CONTEXT,
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": False,
    }
    (path / "config.json").write_text(json.dumps(settings))
    parameters = sum(tensor.size for tensor in tensors.values())
    key = artifacts.artifact_key(str(path), str(seed), model_type)
    return Checkpoint(path.name, path, "local", "float32", key, parameters, CONTEXT)
