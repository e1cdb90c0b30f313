"""The code that runs a plan with torch and transformers alone, as text for reports.

Owns the words of the script. Leaves speed to the engine: the script takes the library's own loop and keeps FP32 weights
in memory while it quantizes, but quantizes alike and gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..plan import Plan

_HEAD = '''"""{plan_id}, with {libraries} alone.

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

_TORCHAO = '''

class WeightOnly(torch.nn.Module):
    def __init__(self, weight, bias):  # weight: [out, in] float
        super().__init__()
        from torchao.quantization import quantize_
        {config}

        self.width, self.bias = len(weight), bias
        linear = torch.nn.Linear(weight.shape[1], len(weight), bias=False, device="meta")
        weight = torch.nn.functional.pad(weight, (0, 0, 0, {padding}))
        linear.weight = torch.nn.Parameter(weight, requires_grad=False)
        quantize_(torch.nn.Sequential(linear), config)
        made = linear.weight
        self.packed, self.scale = made.qdata.contiguous(), made.{scale}.to(torch.bfloat16).contiguous()

    def forward(self, x):
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)  # torch's kernels for float32 are plain loops
        y = {product}[:, : self.width].to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.width)


def quantize(model):
    """Every linear layer, GPT-2's Conv1D and the LM head included; the embedding stays as it is."""
    for name, layer in list(model.named_modules()):
        conv1d = type(layer).__name__ == "Conv1D"
        if not conv1d and type(layer).forward is not torch.nn.Linear.forward:
            continue
        weight = layer.weight.detach().t().contiguous() if conv1d else layer.weight.detach()
        parent, _, leaf = name.rpartition(".")
        made = WeightOnly(weight, None if layer.bias is None else layer.bias.detach())
        setattr(model.get_submodule(parent), leaf, made)
'''
_BY_BITS = {
    "int8": {
        "config": "from torchao.quantization import Int8WeightOnlyConfig\n\n"
        "        config = Int8WeightOnlyConfig(set_inductor_config=False)",
        "padding": "0",
        "scale": "scale.reshape(-1)",
        "product": "torch.ops.aten._weight_int8pack_mm(rows, self.packed, self.scale)",
    },
    "int4": {
        "config": "from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig\n\n"
        "        config = PrototypeInt4WeightOnlyConfig(group_size=32, set_inductor_config=False)",
        "padding": "-len(weight) % 64",
        "scale": "scale_and_zero",
        "product": "torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, 32, self.scale)",
    },
}

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
{prepare}    if asked.ids:
        ids = torch.tensor([[int(number) for number in asked.ids.split(",")]])
    else:
        tokenizer = AutoTokenizer.from_pretrained(NAME)
        ids = tokenizer(asked.prompt, return_tensors="pt").input_ids
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), use_cache={kv_cache}, do_sample=False,
            max_new_tokens=asked.tokens, min_new_tokens=asked.tokens, eos_token_id=None,{cache}
        )
    new = out[0, ids.shape[1] :].tolist()
    print(new if asked.ids else tokenizer.decode(new))


main()
"""


def script(plan: Plan, name: str, env: Mapping[str, str], options: Mapping[str, object]) -> str:
    """The script for `plan`; `env` is filled in already, `options` holds what the engine chose for it."""
    body, libraries = "", "torch and transformers"
    prepare = ""
    if options["torchao"]:
        body, libraries = _TORCHAO.format(**_BY_BITS[plan.precision]), "torch, transformers and torchao"
        prepare = "    quantize(model)\n"
    elif plan.quantized:
        body = _INT8.format(reduce_range=options["reduce_range"], backend=options["backend"])
        prepare = "    to_int8(model)\n"
    if options["compile"]:
        prepare += "    model.forward = torch.compile(model.forward)\n"
    # a comment in the output may hold no quote that would end its docstring
    plan_id = plan.id.replace('"', "'").replace("\\", "/")
    tail = _TAIL.format(
        threads=plan.threads,
        dtype="bfloat16" if plan.precision == "bf16" else "float32",
        attention=options["attention"],
        prepare=prepare,
        kv_cache=plan.kv_cache,
        cache=' cache_implementation="static",' if options["compile"] else "",
    )
    return _HEAD.format(plan_id=plan_id, libraries=libraries, env=dict(env), name=name) + body + tail
