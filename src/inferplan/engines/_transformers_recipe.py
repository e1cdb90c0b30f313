"""The code that runs a plan with torch and transformers alone, as text for reports.

Owns the words of the script. Leaves speed to the engine: the script takes the library's own loop and keeps FP32 weights
in memory while it quantizes, but multiplies with the same kernels and gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_HEAD = '''"""{plan_id}, with torch and transformers alone.

python recipe.py --prompt "Once upon a time"      or, with token ids: --ids 464,2159
"""
import os

os.environ.update({env!r})  # before torch is imported

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAME = {name!r}
'''

_INT8 = '''

class Int8Linear(torch.nn.Module):
    def __init__(self, weight, bias):  # weight: [out, in] float
        super().__init__()
        self.scale = weight.abs().amax(1) / 127
        self.scale[self.scale == 0] = 1.0
        self.weight = (weight / self.scale[:, None]).round().clamp(-127, 127).to(torch.int8)
        quantized = torch._make_per_channel_quantized_tensor(
            self.weight, self.scale.double(), torch.zeros(len(weight), dtype=torch.int64), 0
        )
        self.packed = torch.ops.quantized.linear_prepack(quantized, bias)
        self.reduce_range = {reduce_range}

    def forward(self, x):
        return torch.ops.quantized.linear_dynamic(x, self.packed, self.reduce_range)


def to_int8(model):
    """Every linear layer, GPT-2's Conv1D and the LM head included; a tied embedding takes the LM head's values."""
    torch.backends.quantized.engine = {backend!r}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head is not None and head.weight is embedding.weight
    for name, layer in list(model.named_modules()):
        conv1d = type(layer).__name__ == "Conv1D"
        if not conv1d and type(layer).forward is not torch.nn.Linear.forward:
            continue
        weight = layer.weight.detach().t().contiguous() if conv1d else layer.weight.detach()
        made = Int8Linear(weight, None if layer.bias is None else layer.bias.detach())
        if tied and layer is head:
            table = made.weight * made.scale[:, None]
        del made.weight
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made)
    if tied:
        embedding.weight = torch.nn.Parameter(table, requires_grad=False)
'''

_TAIL = """

def main():
    options = argparse.ArgumentParser()
    options.add_argument("--prompt", default="Once upon a time")
    options.add_argument("--ids", help="token ids with commas, instead of a prompt")
    options.add_argument("--tokens", type=int, default=64)
    asked = options.parse_args()
    torch.set_num_threads({threads})
    torch.set_num_interop_threads(1)
    model = AutoModelForCausalLM.from_pretrained(
        NAME, dtype=torch.{dtype}, attn_implementation={attention!r}
    ).eval()
{quantize}    if asked.ids:
        ids = torch.tensor([[int(number) for number in asked.ids.split(",")]])
    else:
        tokenizer = AutoTokenizer.from_pretrained(NAME)
        ids = tokenizer(asked.prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), use_cache={kv_cache}, do_sample=False,
            max_new_tokens=asked.tokens, min_new_tokens=asked.tokens, eos_token_id=None,
        )
    new = out[0, ids.shape[1] :].tolist()
    print(new if asked.ids else tokenizer.decode(new))


main()
"""


def script(plan: Plan, name: str, env: Mapping[str, str], attention: str, backend: str, reduce_range: bool) -> str:
    """The script for `plan`; `env` is filled in already, `backend` and `reduce_range` matter to INT8 only."""
    int8 = plan.precision == "int8"
    # a comment in the output may hold no quote that would end its docstring
    head = _HEAD.format(plan_id=plan.id.replace('"', "'").replace("\\", "/"), env=dict(env), name=name)
    body = _INT8.format(reduce_range=reduce_range, backend=backend) if int8 else ""
    tail = _TAIL.format(
        threads=plan.threads,
        dtype="bfloat16" if plan.precision == "bf16" else "float32",
        attention=attention,
        quantize="    to_int8(model)\n" if int8 else "",
        kv_cache=plan.kv_cache,
    )
    return head + body + tail
