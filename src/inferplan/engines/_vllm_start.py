"""Starts vLLM inside this process, says what it runs, and stops it again.

Owns the arguments of vLLM's own engine and what is read from its model. Leaves requests to `vllm`. Imports vLLM: worker
process only.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.engine.llm_engine import LLMEngine

from ..errors import EngineError, Unsupported
from ..measurement import Actual
from ..plan import Plan
from . import _gnu_openmp

_BLOCK = 128  # tokens in a block of the cache: vLLM's own choice on a CPU
_NULL_BLOCKS = 1  # one block is vLLM's placeholder and holds nothing
_UNUSED_BYTES = 1 << 20  # given, so that vLLM asks for no share of the memory; the blocks are what it takes
_NOT_KNOWN = ("not supported", "does not recognize this architecture", "There is no module or parameter named")
_KERNELS = {
    "onednn_mm": "oneDNN matmul",
    "weight_packed_linear_cpu": "vLLM sgl-kernel packed linear",
    "zentorch_linear_unary": "zentorch linear",
}


def start(plan: Plan, checkpoint: Path, dtype: str, room: int) -> Any:
    """vLLM's engine for one request at a time, with room for `room` tokens of keys and values.

    Raises:
        Unsupported: it does not know the architecture, in its words.
        EngineError: it does not start, in its words.
    """
    arguments = EngineArgs(
        model=str(checkpoint),
        skip_tokenizer_init=True,
        dtype=dtype,
        max_model_len=room,
        max_num_seqs=1,
        block_size=_BLOCK,
        kv_cache_memory_bytes=_UNUSED_BYTES,
        enable_prefix_caching=False,
        enforce_eager=not plan.option("compile", False),
        generation_config="vllm",  # not the checkpoint's own defaults for sampling
        disable_log_stats=True,
        seed=0,
    )
    try:
        config = arguments.create_engine_config()
        _check_heads(config)
        config.cache_config.num_gpu_blocks_override = _blocks(config.model_config, room)  # of the CPU's memory
        return LLMEngine.from_vllm_config(config, disable_log_stats=True)
    except (MemoryError, Unsupported):
        raise
    except Exception as error:  # vLLM has no error of its own for what it cannot run
        text = " ".join(str(error).split())
        if isinstance(error, NotImplementedError) or any(words in text for words in _NOT_KNOWN):
            raise Unsupported(f"vLLM does not run this model: {text}") from error
        raise EngineError(f"vLLM did not start: {text or type(error).__name__}") from error


def _blocks(model: Any, room: int) -> int:
    """Blocks that one request of `room` tokens takes at most.

    Layers that see a window of the past take one more. Where kinds of layers are mixed, vLLM cuts them into groups as
    large as the rarest kind, and each group takes blocks of its own.
    """
    kinds = Counter(getattr(model.hf_text_config, "layer_types", None) or ())
    groups = -(-sum(kinds.values()) // min(kinds.values())) if len(kinds) > 1 else 1
    windowed = model.get_sliding_window() is not None or "sliding_attention" in kinds
    return groups * (-(-room // _BLOCK) + windowed) + _NULL_BLOCKS


def _check_heads(config: Any) -> None:
    """vLLM asks nobody, and its attention then fails at the first request.

    Raises:
        Unsupported: no kernel was built for heads of this size.
    """
    size, built = config.model_config.get_head_size(), CPUAttentionBackend.get_supported_head_sizes()
    if size not in built:
        sizes = ", ".join(map(str, built))
        raise Unsupported(f"vLLM has no attention on a CPU for heads of {size}; it has for {sizes}")


def stop(engine: Any) -> None:
    """Give memory and threads back; vLLM can be started again afterwards."""
    engine.engine_core.shutdown()
    del engine
    gc.collect()


def actual(plan: Plan, engine: Any, dtype: str, room: int) -> Actual:
    """What really runs, read from the model that vLLM holds.

    Raises:
        EngineError: it holds other types, or has another number of threads, than the plan asks for.
    """
    runner = engine.model_executor.driver_worker.worker.model_runner
    held = sorted({str(p.dtype).removeprefix("torch.") for p in runner.model.parameters() if p.numel()})
    if held != [dtype]:
        raise EngineError(f"{plan.precision} was asked for and vLLM holds weights in {', '.join(held)}")
    if torch.get_num_threads() != plan.threads:
        cpus = len(os.sched_getaffinity(0))
        why = "OMP_NUM_THREADS must be set before the process starts"
        if plan.threads > cpus:
            why = f"vLLM runs no more of them than the {cpus} CPUs that it may use"
        raise EngineError(f"{plan.threads} threads were asked for and OpenMP has {torch.get_num_threads()}: {why}")
    compiled = bool(plan.option("compile", False))
    cache = sum(tensor.numel() * tensor.element_size() for tensor in runner.kv_caches)
    return Actual(
        dtype=dtype,
        weights=dtype,
        threads=torch.get_num_threads(),
        kernel=_kernel(runner.model),
        attention="vLLM CPU paged attention",
        kv_cache=True,
        details={
            "model": type(
                runner.model
            ).__name__,  # TransformersForCausalLM: transformers' own code, where vLLM has none
            "kv_bytes": str(cache),
            "kv_tokens": str(room),
            "kv_type": ", ".join(sorted({str(t.dtype).removeprefix("torch.") for t in runner.kv_caches})),
            "compile": engine.vllm_config.compilation_config.backend if compiled else "off",
            "mode": str(engine.vllm_config.compilation_config.mode),
            **_gnu_openmp.waiting(),
        },
    )


def _kernel(model: Any) -> str:
    """The function that each linear layer was given, by the names that its code uses."""
    found = set()
    for layer in model.modules():
        code = getattr(getattr(layer, "cpu_linear", None), "__code__", None)
        if code is not None:
            found.add(next((_KERNELS[name] for name in code.co_names if name in _KERNELS), "torch linear"))
    return ", ".join(sorted(found)) or "torch linear"
