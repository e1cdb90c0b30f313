"""The code that runs a plan with openvino-genai alone, as text for reports.

Owns the words of the script. Leaves making the model to the artifact that was measured, or to OpenVINO's own tools.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_FORMATS = {"fp32": "fp32", "bf16": "fp32", "int8": "int8", "int4": "int4 --group-size 64"}
_SCRIPT = '''"""{plan_id}, with openvino-genai alone.

It needs a directory with openvino_model.xml: the one that was measured (in inferplan's cache), or one made by
optimum-intel, in an environment of its own:
    optimum-cli export openvino -m {name} --task text-generation-with-past --weight-format {weights} DIRECTORY
Then: python recipe.py DIRECTORY --ids 464,2159      or, where a tokenizer lies in it: --prompt "Once upon a time"
(The directory that was measured holds no tokenizer; it takes --ids only.)
"""
import argparse
import os
import sys

os.environ.update({env!r})  # before openvino is imported
sys.modules["openvino_telemetry"] = None  # importing openvino would report that over the network

import numpy
import openvino
import openvino_genai

# Everything is said: some defaults are chosen by the CPU, bfloat16 among them.
PROPERTIES = {properties!r}
SCHEDULER = {scheduler!r}


def main():
    options = argparse.ArgumentParser()
    options.add_argument("directory")
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", help="token ids with commas, instead of a prompt")
    options.add_argument("--tokens", type=int, default=64)
    asked = options.parse_args()
    properties = dict(PROPERTIES)
    if SCHEDULER:
        properties["scheduler_config"] = openvino_genai.SchedulerConfig()
        for name, value in SCHEDULER.items():
            setattr(properties["scheduler_config"], name, value)
    pipeline = openvino_genai.LLMPipeline(asked.directory, "CPU", **properties)
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens, config.ignore_eos, config.do_sample = asked.tokens, True, False
    if not asked.ids:
        print(pipeline.generate(asked.prompt, config))
        return
    config.eos_token_id = 2**31  # no model has it: an end of sequence must be named even to be ignored
    ids = numpy.array([[int(number) for number in asked.ids.split(",")]], dtype=numpy.int64)
    request = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(numpy.ones_like(ids)))
    print(list(pipeline.generate(request, config).tokens[0]))


main()
'''


def script(
    plan: Plan,
    name: str,
    env: Mapping[str, str],
    properties: Mapping[str, object],
    scheduler: Mapping[str, object],
) -> str:
    """The script for `plan`; `name` is the checkpoint, for the words about conversion."""
    return _SCRIPT.format(
        # a comment in the output may hold no quote that would end its docstring
        plan_id=plan.id.replace('"', "'").replace("\\", "/"),
        name=name.replace('"', "'").replace("\\", "/"),
        weights=_FORMATS[plan.precision],
        env=dict(env),
        properties=dict(properties),
        scheduler=dict(scheduler),
    )
