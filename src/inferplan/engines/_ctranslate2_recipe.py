"""The code that runs a plan with ctranslate2 alone, as text for reports.

Owns the words of the script. Leaves what is measured to the engine; both convert and generate by the same calls.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_SCRIPT = '''"""{plan_id}, with ctranslate2 alone; the conversion, once, takes torch and transformers.

python recipe.py --prompt "Once upon a time"      or, with token ids: --ids 464,2159
"""
import os

os.environ.update({env!r})  # before ctranslate2 is imported

import argparse
import pathlib

import ctranslate2

NAME = {name!r}


def convert(out):
    import types

    from ctranslate2.converters.transformers import TransformersConverter

    class Converter(TransformersConverter):  # each token is named by its id
        def load_tokenizer(self, *_, **__):
            names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "0")
            return types.SimpleNamespace(
                **names, unk_token_id=0, chat_template=None, special_tokens_map={{}}, get_vocab=lambda: {{"0": 0}},
                convert_ids_to_tokens=str, convert_tokens_to_ids=int,
            )

        def load_model(self, kind, name, **options):
            return kind.from_pretrained(name, **{{**options, "dtype": "float32"}})

    spec = Converter(NAME)._load()
    spec.register_vocabulary([str(token) for token in range(spec.get_vocabulary_size())])
    spec.validate()
    spec.optimize(quantization={compute_type!r})
    out.mkdir(parents=True)
    spec.save(str(out))


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", help="token ids with commas, instead of a prompt")
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--model", default={directory!r}, help="directory of the converted model; made if missing")
    asked = options.parse_args()
    model = pathlib.Path(asked.model)
    if not model.exists():
        convert(model)
    if not asked.ids:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(NAME)
    ids = asked.ids.split(",") if asked.ids else [str(token) for token in tokenizer(asked.prompt).input_ids]
    generator = ctranslate2.Generator(
        str(model), device="cpu", compute_type={compute_type!r}, inter_threads=1, intra_threads={threads}
    )
    steps = generator.generate_tokens(ids, max_length=asked.tokens, end_token=[], sampling_topk=1)
    new = [step.token_id for step in steps]
    print(new if asked.ids else tokenizer.decode(new))


main()
'''


def script(plan: Plan, name: str, env: Mapping[str, str], compute_type: str) -> str:
    """The script for `plan`; `name` is what transformers is to convert: a directory or a hub id."""
    return _SCRIPT.format(
        # a comment in the output may hold no quote that would end its docstring
        plan_id=plan.id.replace('"', "'").replace("\\", "/"),
        env=dict(env),
        name=name,
        compute_type=compute_type,
        directory=f"model-ctranslate2-{plan.precision}",
        threads=plan.threads,
    )
