"""One request, token by token: prefill, then decode with as little between two tokens as can be.

Owns the preallocated key-value cache and the loop. Leaves the model to `_transformers_model`.
Imports torch and transformers: import it only after `_transformers_imports`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..errors import Unsupported

_ROUND = 64  # capacity grows in steps, so that prompts of similar length share one buffer


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer in buffers of fixed capacity: nothing is concatenated, views are handed out.

    The library's own layer copies all earlier keys and values for every token.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity, self.length = capacity, 0
        self.key_buffer: Tensor | None = None
        self.value_buffer: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append [1, heads, new, width] to both; views of all so far."""
        start, new = self.length, key_states.shape[2]
        if self.key_buffer is None or self.value_buffer is None:
            self.key_buffer, self.value_buffer = self._buffer(key_states), self._buffer(value_states)
        self.length = end = start + new
        self.key_buffer.narrow(2, start, new).copy_(key_states)
        self.value_buffer.narrow(2, start, new).copy_(value_states)
        return self.key_buffer.narrow(2, 0, end), self.value_buffer.narrow(2, 0, end)

    def _buffer(self, like: Tensor) -> Tensor:
        return like.new_empty(like.shape[0], like.shape[1], self.capacity, like.shape[3])

    def get_seq_length(self) -> int:
        """Tokens held."""
        return self.length

    def reset(self) -> None:
        """Forget all tokens; the buffers stay."""
        self.length = 0


class PreallocatedCache(Cache):
    """One `PreallocatedLayer` for each layer of the model."""

    def __init__(self, layers: int, capacity: int) -> None:
        self.typed = [PreallocatedLayer(capacity) for _ in range(layers)]
        super().__init__(layers=list(self.typed))
        self.capacity = capacity

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """As `PreallocatedLayer.update`, for layer `layer_idx`."""
        return self.typed[layer_idx].update(key_states, value_states)


class Loop:
    """Greedy generation with one model; keeps its cache from request to request."""

    def __init__(self, model: Any, kv_cache: bool) -> None:
        self._model, self._kv_cache = model, kv_cache
        accepted = inspect.signature(type(model).forward).parameters
        if kv_cache and "past_key_values" not in accepted:  # a state of another kind would be lost in silence
            raise Unsupported(
                f"{model.config.model_type} keeps no key-value cache that this engine can drive: "
                "use it with the KV cache off"
            )
        self._fixed: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._takes_positions = "position_ids" in accepted
        self._cache: Any = None
        self._own_cache = kv_cache and self._layers() > 0

    @property
    def cache_name(self) -> str:
        """What holds keys and values."""
        if not self._kv_cache:
            return "none: the whole sequence is computed again for each token"
        return "preallocated" if self._own_cache else "transformers DynamicCache"

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """`max_tokens` token ids, each as it appears."""
        if not self._kv_cache:
            yield from self._without_cache(prompt, max_tokens)
            return
        capacity = len(prompt) + max_tokens
        cache = self._ready(capacity)
        positions = torch.arange(capacity)[None]
        ids = torch.tensor([prompt], dtype=torch.int64)
        done = 0
        for _ in range(max_tokens):
            end = done + ids.shape[1]
            token = self._step(ids, cache, positions[:, done:end])
            yield token
            done, ids = end, torch.tensor([[token]])

    @torch.inference_mode()
    def _step(self, ids: Tensor, cache: Any, positions: Tensor) -> int:
        extra = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **extra, **self._fixed)
        return int(out.logits[0, -1].argmax())

    def _without_cache(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        ids = torch.empty((1, len(prompt) + max_tokens), dtype=torch.int64)
        ids[0, : len(prompt)] = torch.tensor(prompt)
        for end in range(len(prompt), len(prompt) + max_tokens):
            token = self._whole(ids[:, :end])
            ids[0, end] = token
            yield token

    @torch.inference_mode()
    def _whole(self, ids: Tensor) -> int:
        return int(self._model(input_ids=ids, use_cache=False, **self._fixed).logits[0, -1].argmax())

    def _layers(self) -> int:
        """How many layers the cache has where all of them keep every token; otherwise 0."""
        layers = DynamicCache(config=self._model.config).layers
        return len(layers) if all(type(layer) is DynamicLayer for layer in layers) else 0

    def _ready(self, capacity: int) -> Any:
        if not self._own_cache:
            return DynamicCache(config=self._model.config)
        if self._cache is None or self._cache.capacity < capacity:
            self._cache = None  # before its successor is made, so that both are never held
            self._cache = PreallocatedCache(self._layers(), -(-capacity // _ROUND) * _ROUND)
        self._cache.reset()
        return self._cache
