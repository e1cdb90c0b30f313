"""transformers' own model of any architecture as an ONNX graph, by torch's exporter, in the converting process.

Owns what becomes one node instead of many: a linear layer, and attention with its keys and values. Leaves quantization
to `_onnxruntime_quantize`. Imports torch, transformers and onnx_ir.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.onnx import ops
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.cache_utils import DynamicCache
from transformers.pytorch_utils import Conv1D

from ..errors import ArtifactError, Unsupported

_ATTENTION = "inferplan_onnx"
_LENGTH, _PAST = 5, 3  # of the example that is traced: neither 0 nor 1, which the tracer takes for constants
_STEP: list[_Step] = []


class _Step(DynamicCache):
    """Keys and values of the call that is traced: attention, not the cache, appends to them."""

    def __init__(self, past: list[Tensor], seqlens_k: Tensor, total: Tensor) -> None:
        super().__init__()
        self.past, self.seqlens_k, self.total = past, seqlens_k, total
        self.present: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.past[0].shape[2]


class _Linear(nn.Module):
    """x @ weight + bias as one node each; the weight lies [in, out], as onnxruntime's kernels take it."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.weight.shape[1])
        product = ops.symbolic("MatMul", (x, self.weight), dtype=x.dtype, shape=shape)
        return product if self.bias is None else product + self.bias


class _Decoder(nn.Module):
    """One step of the model with everything it keeps as inputs and outputs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        accepted = inspect.signature(type(model).forward).parameters
        self._extra: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        seqlens_k: Tensor,
        total_sequence_length: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """Logits [1, 1, vocabulary] of the last token, then keys and values of each layer."""
        step = _Step(past, seqlens_k, total_sequence_length)
        _STEP[:] = [step]
        out = self.model(
            input_ids=input_ids, position_ids=position_ids, past_key_values=step, use_cache=True, **self._extra
        )
        logits = out.logits if self._extra else out.logits[:, -1:]
        if len(step.present) * 2 != len(past):
            raise Unsupported(f"{len(past) // 2 - len(step.present)} of its layers compute attention by themselves")
        present = [tensor for layer in sorted(step.present) for tensor in step.present[layer]]
        return (logits, *present)


def export(checkpoint: Path) -> Any:
    """The model in `checkpoint` as an `onnx_ir.Model` at float32, with its weights where torch has them.

    Inputs: input_ids and position_ids [1, sequence] int64, seqlens_k [1] and total_sequence_length [] int32,
    past_key_values.N.key and .value [1, heads, past, size]. Outputs: logits [1, 1, vocabulary], and present.N.key and
    .value.

    Raises:
        ArtifactError: the checkpoint cannot be read.
        Unsupported: transformers or torch's exporter refuses the model, with the reason.
    """
    model = _load(checkpoint)
    sizes = _kv_sizes(model)
    _replace_linears(model)
    past = [torch.zeros(1, heads, _PAST, size) for heads, size in sizes for _ in ("key", "value")]
    example = {
        "input_ids": torch.zeros(1, _LENGTH, dtype=torch.int64),
        "position_ids": torch.arange(_PAST, _PAST + _LENGTH)[None],
        "seqlens_k": torch.tensor([_PAST + _LENGTH - 1], dtype=torch.int32),
        "total_sequence_length": torch.tensor(_PAST + _LENGTH, dtype=torch.int32),
        "past": past,
    }
    sequence, earlier = torch.export.Dim("sequence", min=1), torch.export.Dim("past", min=1)
    shapes: dict[str, Any] = {name: {} for name in example}
    shapes |= {"input_ids": {1: sequence}, "position_ids": {1: sequence}, "past": [{2: earlier} for _ in past]}
    pairs = [f"{layer}.{kind}" for layer in range(len(sizes)) for kind in ("key", "value")]
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                _Decoder(model).eval(),
                kwargs=example,
                dynamic_shapes=shapes,
                input_names=[*list(example)[:-1], *(f"past_key_values.{pair}" for pair in pairs)],
                output_names=["logits", *(f"present.{pair}" for pair in pairs)],
                dynamo=True,
                verbose=False,
                opset_version=18,
            )
    except Exception as error:  # the exporter wraps whatever the model's code or the tracer raises
        raise Unsupported(f"torch's ONNX exporter refuses this model: {_first_line(error)}") from error
    finally:
        _STEP.clear()
    assert program is not None
    return program.model


def _load(checkpoint: Path) -> Any:
    AttentionInterface.register(_ATTENTION, _attention)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation=_ATTENTION, local_files_only=True
        )
    except (ValueError, KeyError, ImportError) as error:
        raise Unsupported(f"transformers cannot build this model: {_first_line(error)}") from error
    except Exception as error:  # a damaged checkpoint shows as any error
        raise ArtifactError(f"{checkpoint}/config.json and its weights cannot be read: {error}") from error
    return model.eval()


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """Called by transformers' code in place of its own: query [1, heads, new, size], key and value likewise."""
    step, layer = _STEP[0], int(module.layer_idx)
    heads, kv_heads, size = query.shape[1], key.shape[1], query.shape[3]
    if value.shape[3] != size:
        raise Unsupported("keys and values of different widths")
    for name in ("s_aux", "position_bias"):
        if more.get(name) is not None:
            raise Unsupported(f"attention with {name}")
    attributes: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads}
    attributes["scale"] = float(size**-0.5 if scaling is None else scaling)
    if (window := more.get("sliding_window")) is not None:
        attributes["local_window_size"] = int(window)
    if (cap := more.get("softcap")) is not None:
        attributes["softcap"] = float(cap)
    past_key, past_value = step.past[2 * layer], step.past[2 * layer + 1]
    kept = (1, kv_heads, past_key.shape[2] + key.shape[2], size)
    output, new_key, new_value = ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        (_flat(query), _flat(key), _flat(value), past_key, past_value, step.seqlens_k, step.total),
        attributes,
        dtypes=(query.dtype, key.dtype, value.dtype),
        shapes=((1, query.shape[2], heads * size), kept, kept),
        version=1,
    )
    step.present[layer] = (new_key, new_value)
    return output.reshape(1, query.shape[2], heads, size), None


def _flat(states: Tensor) -> Tensor:
    """[1, heads, new, size] -> [1, new, heads * size]."""
    return states.transpose(1, 2).reshape(1, states.shape[2], states.shape[1] * states.shape[3])


def _replace_linears(model: Any) -> None:
    plain = (nn.Linear.forward, Conv1D.forward)  # a subclass that multiplies in its own way is left alone
    for name, module in list(model.named_modules()):
        if getattr(type(module), "forward", None) in plain:
            parent, _, leaf = name.rpartition(".")
            weight = module.weight if isinstance(module, Conv1D) else module.weight.t()
            setattr(model.get_submodule(parent), leaf, _Linear(weight, module.bias))


def _kv_sizes(model: Any) -> list[tuple[int, int]]:
    """Heads of keys and values, and their width, for each layer.

    Raises:
        Unsupported: the model keeps something else between tokens.
    """
    config = model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise Unsupported(f"layers of type {', '.join(sorted(kinds))} keep no keys and values of each token")
    try:
        heads = int(config.num_attention_heads)
        size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
        layers = int(config.num_hidden_layers)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise Unsupported(f"{config.model_type} has no attention heads in its config: {error}") from error
    return [(getattr(config, "num_key_value_heads", None) or heads, size)] * layers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings about what it leaves out."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: BaseException) -> str:
    """The innermost reason, short."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join((str(error) or type(error).__name__).split())[:400]
