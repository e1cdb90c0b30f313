"""A checkpoint as a torch module to trace: ids, mask, positions and past keys in, logits and present keys out.

Owns the mask, the attention call and the cache that stand in for transformers' own, and the proof that nothing changed
by it. Leaves tracing to the engines' converters. Imports torch: for the converting process only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import context_length, read_config
from ..errors import ArtifactError, Unsupported
from ._safetensors import TensorFiles

_ATTENTION = "inferplan-traced"  # the name that transformers knows our attention by
# These choose their frequencies while they run, by the length of the sequence: a trace would fix one of them.
_ROPE_BY_LENGTH = frozenset({"dynamic", "longrope"})
_LAYER_KINDS = frozenset({"full_attention", "sliding_attention"})
_CHECKED_TOKENS = 24  # of which the first part has no past and the rest has
_FIRST_PART = 15
_TOLERANCE = 1e-3  # of the largest logit: float32 in another order differs by some 1e-5 of it


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of each token: `heads` keys of `key_size` numbers and as many values of `value_size`."""

    heads: int
    key_size: int
    value_size: int


class Decoder(nn.Module):
    """A causal language model with its cache as plain inputs and outputs.

    Attributes:
        layers: what each layer keeps of a token; keys and values are not repeated for grouped queries.
        vocabulary: how many logits a position has, padding included.
        context: longest sequence in tokens; None where the config does not say.
        windows: of the layers that see only the nearest tokens, how many those are; empty where all see all.
    """

    def __init__(self, model: Any, last_only: bool) -> None:
        super().__init__()
        self.model = model
        self._keep = 1 if last_only else 0
        ids = torch.zeros((1, 2), dtype=torch.int64)
        with torch.no_grad():
            seen = _Cache(())
            masks = _Masks(torch.ones_like(ids), 2)
            logits = self._run(ids, torch.arange(2)[None], seen, masks)
        self.layers = seen.layers()
        if masks.calls != len(self.layers):
            raise Unsupported(
                f"{model.config.model_type} computes attention by itself in {len(self.layers) - masks.calls} of its "
                f"{len(self.layers)} layers: that cannot be traced with a mask and a cache of ours"
            )
        self.vocabulary = int(logits.shape[-1])
        self.windows = tuple(sorted(masks.windows))
        self.context: int | None = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor) -> Any:
        """One step.

        Args:
            input_ids: (batch, new tokens), int64.
            attention_mask: (batch, past and new tokens), int64: 1 where there is a token, 0 for padding.
            position_ids: (batch, new tokens), int64.
            past: keys and values by turns, of each layer (batch, heads, past tokens, size), float32.

        Returns:
            Logits (batch, new tokens or 1, vocabulary), then keys and values like `past`, of past and new tokens.
        """
        cache = _Cache(past)
        logits = self._run(input_ids, position_ids, cache, _Masks(attention_mask, input_ids.shape[1]))
        return (logits, *cache.present)

    def _run(self, input_ids: Tensor, position_ids: Tensor, cache: _Cache, masks: _Masks) -> Tensor:
        with _masked(masks):
            output = self.model(
                input_ids=input_ids,
                attention_mask=masks.of(None),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=self._keep,
            )
        logits: Tensor = output.logits
        return logits

    @property
    def past_names(self) -> list[str]:
        """Names of the inputs after the first three."""
        return [f"past_key_values.{i}.{part}" for i in range(len(self.layers)) for part in ("key", "value")]

    @property
    def input_names(self) -> list[str]:
        """Names of all inputs, in order."""
        return ["input_ids", "attention_mask", "position_ids", *self.past_names]

    @property
    def output_names(self) -> list[str]:
        """Names of all outputs, in order."""
        return ["logits", *(name.replace("past_key_values", "present") for name in self.past_names)]

    def example(self, past: int = 3, new: int = 2) -> tuple[Tensor, ...]:
        """Inputs to trace with: `new` tokens after `past` others."""
        kept = [
            torch.zeros((1, layer.heads, past, size))
            for layer in self.layers
            for size in (layer.key_size, layer.value_size)
        ]
        ids = torch.arange(new)[None] % self.vocabulary
        return ids, torch.ones((1, past + new), dtype=torch.int64), torch.arange(past, past + new)[None], *kept


def decoder(checkpoint: Path, last_only: bool = False) -> Decoder:
    """The model of `checkpoint` in float32, ready to be traced.

    Its logits were compared with those of transformers' own eager code, with and without a past. Layers that
    transformers writes as `Conv1D` are plain linear layers here.

    Args:
        checkpoint: a directory in Hugging Face layout, with safetensors.
        last_only: give the logits of the last position only.

    Raises:
        ArtifactError: the checkpoint is corrupt or incomplete, with the file's name.
        Unsupported: the architecture or one of its settings cannot be traced, with the reason.
    """
    config = read_config(checkpoint)
    TensorFiles(checkpoint).close()  # a truncated file is named before anything long is begun
    if why := _untraceable(config):
        raise Unsupported(f"{config.get('model_type')!r} cannot be traced: {why}")
    model = _load(checkpoint, str(config["model_type"]))
    ids = torch.randint(int(model.config.vocab_size), (1, _CHECKED_TOKENS), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits
    _plain_linears(model)
    model.set_attn_implementation(_ATTENTION)
    try:
        made = Decoder(model, last_only).eval()
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, RuntimeError, NotImplementedError) as error:
        raise Unsupported(f"transformers' {config['model_type']} cannot be traced: {_short(error)}") from error
    made.context = context_length(config)
    _check(made, ids, expected)
    return made


def _untraceable(config: Mapping[str, Any]) -> str | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.get("model_type") not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "this version of transformers has no causal language model of that type"
    if "quantization_config" in config:
        return "the checkpoint is quantized already (quantization_config in config.json); give plain weights"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    for found in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if (kind := found.get("rope_type", found.get("type"))) in _ROPE_BY_LENGTH:
            return f"rotary embeddings of type {kind!r} change with the length of the sequence"
    if other := set(config.get("layer_types") or ()) - _LAYER_KINDS:
        return f"it has layers of type {', '.join(sorted(other))}"
    return None


def _load(checkpoint: Path, kind: str) -> Any:
    from transformers import AttentionInterface, AutoModelForCausalLM

    AttentionInterface.register(_ATTENTION, _attention)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint, dtype=torch.float32, attn_implementation="eager", local_files_only=True
        )
    except Exception as error:  # a damaged checkpoint shows as any error
        raise ArtifactError(f"{checkpoint}/config.json and its weights cannot be read: {_short(error)}") from error
    if not hasattr(model, "lm_head") and model.get_output_embeddings() is None:
        raise Unsupported(f"{kind!r} has no layer that gives logits")
    return model.eval()


def _short(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:400]


def _plain_linears(model: nn.Module) -> None:
    """Weights of `Conv1D` as (out, in), which is how runtimes keep and quantize them."""
    from transformers.pytorch_utils import Conv1D

    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, Conv1D):
                rows, columns = child.weight.shape
                linear = nn.Linear(rows, columns, device="meta")
                linear.weight = nn.Parameter(child.weight.detach().t().contiguous(), requires_grad=False)
                linear.bias = nn.Parameter(child.bias.detach(), requires_grad=False)
                setattr(module, name, linear)


def _check(made: Decoder, ids: Tensor, expected: Tensor) -> None:
    """Compare with what transformers' own code gave.

    Raises:
        Unsupported: the logits differ.
    """
    mask, positions = torch.ones_like(ids), torch.arange(ids.shape[1])[None]
    first = slice(0, _FIRST_PART)
    empty = made.example(past=0)[3:]
    with torch.no_grad():
        before, *past = made(ids[:, first], mask[:, first], positions[:, first], *empty)
        after, *_ = made(ids[:, _FIRST_PART:], mask, positions[:, _FIRST_PART:], *past)
    size = float(expected.abs().max())
    for found, end in ((before, _FIRST_PART), (after, ids.shape[1])):
        wanted = expected[:, end - found.shape[1] : end]
        worst = float((found - wanted).abs().max())
        if not worst <= _TOLERANCE * size:  # not a number is a difference too
            raise Unsupported(
                f"{made.model.config.model_type} gives other logits when its mask and cache are ours: they differ "
                f"by {worst:.3g} where the largest is {size:.3g}"
            )


class _Cache:
    """Keys and values that grow by concatenation; the part of transformers' cache that modelling code calls."""

    is_compileable = False

    def __init__(self, past: tuple[Tensor, ...]) -> None:
        self._past = past
        self._present: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self._past:
            key = torch.cat((self._past[2 * layer_idx], key), dim=2)
            value = torch.cat((self._past[2 * layer_idx + 1], value), dim=2)
        self._present[layer_idx] = (key, value)
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return int(self._past[2 * layer_idx].shape[2]) if self._past else 0

    @property
    def present(self) -> list[Tensor]:
        return [tensor for layer in sorted(self._present) for tensor in self._present[layer]]

    def layers(self) -> tuple[Layer, ...]:
        """Read off the tensors of a first pass.

        Raises:
            Unsupported: layers are skipped, or share their keys.
        """
        if sorted(self._present) != list(range(len(self._present))):
            raise Unsupported(f"only layers {sorted(self._present)} keep keys and values of their own")
        pairs = (self._present[i] for i in range(len(self._present)))
        return tuple(Layer(int(k.shape[1]), int(k.shape[3]), int(v.shape[3])) for k, v in pairs)


class _Masks:
    """The additive masks of one pass, each made once: 0 where a token is seen, the lowest float32 where not."""

    def __init__(self, attention_mask: Tensor, new: int) -> None:
        self.total = attention_mask.shape[1]
        self._columns = torch.arange(self.total)[None]
        self._rows = torch.arange(new)[:, None] + (self.total - new)
        self._there = attention_mask[:, None, None].to(torch.bool)
        self._made: dict[int | None, Tensor] = {}
        self.calls = 0

    @property
    def windows(self) -> set[int]:
        return {window for window in self._made if window is not None}

    def of(self, window: int | None) -> Tensor:
        """(batch, 1, new tokens, all tokens); with `window`, only the nearest so many tokens are seen."""
        if window not in self._made:
            seen = self._columns <= self._rows
            if window is not None:
                seen = seen & (self._columns > self._rows - window)
            hidden = torch.tensor(torch.finfo(torch.float32).min)
            self._made[window] = torch.where(seen & self._there, torch.tensor(0.0), hidden)
        return self._made[window]


_MASKS: list[_Masks] = []  # of the pass that is running: attention is called by transformers, which passes one mask on


@contextmanager
def _masked(masks: _Masks) -> Iterator[None]:
    _MASKS.append(masks)
    try:
        yield
    finally:
        _MASKS.pop()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer; (batch, heads, tokens, size) in, (batch, tokens, heads, size) out."""
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise Unsupported(f"its attention has {name}, which is no part of scaled dot product attention")
    masks = _MASKS[-1]
    masks.calls += 1
    groups = int(getattr(module, "num_key_value_groups", 1))
    if groups > 1:  # this form, and the cache before it, is what runtimes recognise as grouped queries
        key, value = (_repeated(states, groups, query.shape[0], masks.total) for states in (key, value))
    mask = masks.of(sliding_window)
    output = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return output.transpose(1, 2).contiguous(), None


def _repeated(states: Tensor, groups: int, batch: Any, tokens: Any) -> Tensor:
    """`states` with each head repeated; its own length is not read, because runtimes want it to have no other use."""
    heads, size = int(states.shape[1]), int(states.shape[3])  # constants of the trace, which runtimes look for
    wide = states.unsqueeze(2).expand(batch, heads, groups, tokens, size)
    return wide.reshape(batch, heads * groups, tokens, size)
