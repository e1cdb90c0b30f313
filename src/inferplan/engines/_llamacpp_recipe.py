"""The code that runs a plan with llama.cpp alone (the xllamacpp wheel), as text for reports.

Owns the words of the script. Leaves making the GGUF file to llama.cpp's tools, or to the artifact that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_OUTTYPE = {"fp32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "f32"}
# By the type of the linear layers, what llama-quantize is told to make the same file: see `_llamacpp_convert._WIDER`.
_QUANTIZE = {
    "q4_0": "--pure --token-embedding-type q8_0 --output-tensor-type q8_0 model.gguf model-q4_0.gguf Q4_0",
    "q4_k": "--pure --token-embedding-type q6_k --output-tensor-type q6_k model.gguf model-q4_k.gguf Q4_K_S",
}
_SCRIPT = '''"""{plan_id}, with xllamacpp alone.

It needs a GGUF file: the one that was measured (model.gguf in inferplan's cache), or {made}
Then: python recipe.py {file} --prompt "Once upon a time"      or, with token ids: --ids 464,2159
(The file that was measured names its tokens by their ids; it takes --ids only.)
"""
import os

os.environ.update({env!r})  # before xllamacpp is imported

import argparse

import xllamacpp


def parameters(path):
    p = xllamacpp.CommonParams()
    p.model.path = path
    p.n_ctx, p.n_parallel, p.n_threads_http, p.verbosity = 1024, 1, 1, 0
    p.cpuparams.n_threads, p.cpuparams_batch.n_threads = {threads}, {prefill_threads}
    p.n_ubatch, p.n_batch = {ubatch}, max(2048, {ubatch})
    p.cache_type_k = p.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_{kv_type}
    p.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_{flash}
    p.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_{mode}
    p.no_extra_bufts = {no_repack}
    p.cache_prompt, p.cache_ram_mib, p.fit_params = False, 0, False
    return p


def main():
    options = argparse.ArgumentParser()
    options.add_argument("gguf")
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", help="token ids with commas, instead of a prompt")
    options.add_argument("--tokens", type=int, default=64)
    asked = options.parse_args()
    prompt = [int(number) for number in asked.ids.split(",")] if asked.ids else asked.prompt
    answer = xllamacpp.Server(parameters(asked.gguf)).handle_completions({{
        "prompt": prompt, "n_predict": asked.tokens, "temperature": 0.0, "top_k": 1, "ignore_eos": True, "n_probs": 1,
    }})
    if "choices" not in answer:
        raise SystemExit(answer)
    choice = answer["choices"][0]
    print([token["id"] for token in choice["logprobs"]["content"]] if asked.ids else choice["text"])


main()
'''


def script(plan: Plan, name: str, env: Mapping[str, str], options: Mapping[str, object]) -> str:
    """The script for `plan`; `name` is the checkpoint, for the words about its file."""
    file, made = _file(plan, name.replace('"', "'").replace("\\", "/"))
    return _SCRIPT.format(
        # a comment in the output may hold no quote that would end its docstring
        plan_id=plan.id.replace('"', "'").replace("\\", "/"),
        file=file,
        made=made,
        env=dict(env),
        threads=options["threads"],
        prefill_threads=options["prefill_threads"],
        ubatch=options["ubatch"],
        kv_type=str(options["kv_type"]).upper(),
        flash={"auto": "AUTO", "on": "ENABLED", "off": "DISABLED"}[str(options["flash"])],
        mode="MMAP" if options["mmap"] else "NONE",
        no_repack=not options["repack"],
    )


def _file(plan: Plan, name: str) -> tuple[str, str]:
    """The file that the script is run with, and how it comes about."""
    outtype = _OUTTYPE.get(plan.precision)
    if outtype is None:  # a ready file, whose weights were taken as they are
        return "model.gguf", f"the {plan.precision.upper()} file of {name} as it is."
    made = f"""one made by llama.cpp's own tools:
    python convert_hf_to_gguf.py {name} --outtype {outtype} --outfile model.gguf"""
    if plan.precision != "int4":
        return "model.gguf", made
    kind = str(plan.option("int4", "q4_0"))
    return f"model-{kind}.gguf", f"{made}\n    llama-quantize {_QUANTIZE[kind]}"
