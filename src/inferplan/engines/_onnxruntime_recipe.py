"""The code that runs a plan with onnxruntime, or onnxruntime-genai, alone, as text for reports.

Owns the words of the scripts. Leaves making the ONNX file to the conversion that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_HEAD = '''"""{plan_id}, with {library} alone.

It needs the converted model that was measured: the directory of model.onnx and its weights in inferplan's cache.
python recipe.py DIRECTORY --prompt "Once upon a time"      or, with token ids: --ids 464,2159
"""
import argparse

import numpy as np
import {module}

NAME = {name!r}


def arguments():
    options = argparse.ArgumentParser()
    options.add_argument("directory")
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", help="token ids with commas, instead of a prompt")
    options.add_argument("--tokens", type=int, default=64)
    return options.parse_args()


def main():
    asked = arguments()
    if asked.ids:
        print(list(generate(asked.directory, [int(number) for number in asked.ids.split(",")], asked.tokens)))
        return
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(NAME)
    print(tokenizer.decode(list(generate(asked.directory, tokenizer(asked.prompt).input_ids, asked.tokens))))
'''
_SESSION = """

def generate(directory, prompt, tokens):
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = {threads}, 1
    settings.enable_cpu_mem_arena = {arena}
    for name, value in {entries!r}.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(f"{{directory}}/model.onnx", settings, providers=["CPUExecutionProvider"])
    inputs = {{item.name: item.shape for item in session.get_inputs()}}
    binding = session.io_binding()
    binding.bind_output("logits")
    for name, shape in inputs.items():  # keys and values: in and out in the same place
        if name.startswith("past"):
            kept = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                [1, shape[1], len(prompt) + tokens, shape[3]], np.float32
            )
            binding.bind_ortvalue_input(name, kept)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), kept)
    whole, done = list(prompt), 0
    for _ in range(tokens):
        end = len(whole)
        feeds = {{
            "input_ids": np.array([whole[done:]]),
            "position_ids": np.arange(done, end)[None],
            "attention_mask": np.ones((1, end), np.int64),
            "seqlens_k": np.array([end - 1], np.int32),
            "total_sequence_length": np.array(end, np.int32),
        }}
        for name in inputs.keys() & feeds.keys():
            binding.bind_cpu_input(name, feeds[name])
        session.run_with_iobinding(binding)
        whole.append(int(binding.get_outputs()[0].numpy()[0, -1].argmax()))
        done = end if {kv_cache} else 0
        yield whole[-1]


main()
"""
_GENAI = """

def generate(directory, prompt, tokens):
    import json

    settings = {{"intra_op_num_threads": {threads}, "inter_op_num_threads": 1, "enable_cpu_mem_arena": {arena}}}
    settings.update({entries!r})
    config = onnxruntime_genai.Config(directory)
    config.overlay(json.dumps({{"model": {{"decoder": {{"session_options": settings}}}}}}))
    model = onnxruntime_genai.Model(config)
    search = onnxruntime_genai.GeneratorParams(model)
    search.set_search_options(do_sample=False, max_length=len(prompt) + tokens)
    generator = onnxruntime_genai.Generator(model, search)
    generator.append_tokens(np.array(prompt, np.int32))
    for _ in range(tokens):
        generator.generate_next_token()
        yield int(generator.get_next_tokens()[0])


main()
"""


def script(plan: Plan, name: str, runner: str, entries: Mapping[str, str]) -> str:
    """The script for `plan`.

    Args:
        name: what transformers reads the tokenizer from: a directory or a hub id.
        runner: `session` or `genai`.
        entries: the library's settings by its own names.
    """
    genai = runner == "genai"
    return (_HEAD + (_GENAI if genai else _SESSION)).format(
        # a comment in the output may hold no quote that would end its docstring
        plan_id=plan.id.replace('"', "'").replace("\\", "/"),
        library="onnxruntime-genai" if genai else "onnxruntime",
        module="onnxruntime_genai" if genai else "onnxruntime",
        name=name,
        threads=plan.threads,
        arena=bool(plan.option("arena", True)),
        entries=dict(entries),
        kv_cache=plan.kv_cache,
    )
