"""One request, token by token: prefill, then decode with as little between two tokens as can be.

Owns the preallocated key-value cache and the loop. Leaves the model to `_transformers_model`.
Imports torch and transformers: import it only after `_transformers_imports`.
"""

from __future__ import annotations

import inspect
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from ..errors import Unsupported
from ._transformers_linears import RowEmbedding
from ._transformers_step import Program, Recording, ScriptedStep, Unrecordable, agree, record

# A step is recorded at the lengths 2 and 3 and at this one, or at the model's last position if that is less: code that
# takes another way from some length on (a window, a scaled rotary embedding) is noticed if that is less.
_FAR = 512
# Pages that are shared, which Python asks for by default, would be given out for reading too.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
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
        """Zeros that take memory only where something is written: pages straight from the system."""
        shape = (like.shape[0], like.shape[1], self.capacity, like.shape[3])
        count = math.prod(shape)
        size = count * like.element_size()
        pages = mmap.mmap(-1, size, **_PRIVATE)
        return torch.frombuffer(pages, dtype=like.dtype, count=count).view(shape)

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

    @property
    def buffers(self) -> list[Tensor]:
        """Keys and values of every layer, whole; they are there once something was kept."""
        pairs = ((layer.key_buffer, layer.value_buffer) for layer in self.typed)
        return [buffer for pair in pairs for buffer in pair if buffer is not None]

    def set_length(self, length: int) -> None:
        """Make every layer hold `length` tokens, whatever they are."""
        for layer in self.typed:
            layer.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """As `PreallocatedLayer.update`, for layer `layer_idx`."""
        return self.typed[layer_idx].update(key_states, value_states)


class Step(Protocol):
    """What runs one token from a recording."""

    name: str

    def __call__(self, length: int, inputs: Sequence[Tensor]) -> Tensor:
        """Logits, [vocabulary], with `length` tokens in the cache."""


class Loop:
    """Greedy generation with one model; keeps its cache from request to request."""

    def __init__(self, model: Any, kv_cache: bool, context: int = 0) -> None:
        """`context` is the longest sequence that the model takes, 0 where it does not say."""
        self._model, self._kv_cache, self._context = model, kv_cache, context
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
        self._recorded: Step | None = None
        self._embedding = model.get_input_embeddings()
        self.step_name = "the library's code"

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
            step = self._step if self._recorded is None or done == 0 else self._recorded_step
            token = step(ids, cache, positions[:, done:end])
            yield token
            done, ids = end, torch.tensor([[token]])

    @torch.inference_mode()
    def _step(self, ids: Tensor, cache: Any, positions: Tensor) -> int:
        return int(self._logits(ids, cache, positions).argmax())

    @torch.inference_mode()
    def _recorded_step(self, ids: Tensor, cache: PreallocatedCache, positions: Tensor) -> int:
        assert self._recorded is not None
        length = cache.typed[0].length
        logits = self._recorded(length, self._inputs(ids, cache, positions))
        cache.set_length(length + 1)
        return int(logits.argmax())

    def _logits(self, ids: Tensor, cache: Any, positions: Tensor) -> Tensor:
        """Of the last token, [vocabulary]."""
        extra = {"position_ids": positions} if self._takes_positions else {}
        out = self._model(input_ids=ids, past_key_values=cache, use_cache=True, **extra, **self._fixed)
        logits: Tensor = out.logits[0, -1]
        return logits

    def _inputs(self, ids: Tensor, cache: PreallocatedCache, positions: Tensor) -> list[Tensor]:
        """What differs from step to step, in the order in which it was recorded."""
        rows = [self._embedding.rows(ids)] if isinstance(self._embedding, RowEmbedding) else []
        return [ids, positions, *rows, *cache.buffers]

    def record(self, made_of: Callable[[Program], Step] = ScriptedStep, tolerance: float = 0.0) -> None:
        """Run the steps of later requests from a recording; `step_name` then says so, or why not.

        Args:
            made_of: what runs the recorded program.
            tolerance: how far its logits may lie from those of the library's code, as a share of the largest;
                0: it must give the very bits.

        Raises:
            Unrecordable: the model's code does not allow it, with why.
        """
        try:
            if not self._own_cache:
                raise Unrecordable(f"no cache that grows by one token a step: {self.cache_name}")
            self._recorded = self._checked_step(made_of, tolerance)
        except (Unrecordable, RuntimeError) as error:  # torch raises RuntimeError for what it does not know
            why = " ".join(str(error).split())[:200]
            self.step_name = f"the library's code: {why}"
            raise Unrecordable(why) from error
        self.step_name = self._recorded.name

    @torch.inference_mode()
    def _checked_step(self, made_of: Callable[[Program], Step], tolerance: float) -> Step:
        end = min(self._context or _FAR, _FAR)
        cache = PreallocatedCache(self._layers(), end)
        self._logits(torch.tensor([[0, 1]]), cache, torch.arange(2)[None])
        step = made_of(agree([self._record_at(length, cache) for length in (2, 3, end - 1)]))
        cache.set_length(4)
        ids, positions = torch.tensor([[1]]), torch.tensor([[4]])
        expected = self._logits(ids, cache, positions)
        found = step(4, self._inputs(ids, cache, positions))
        if not torch.allclose(found, expected, rtol=0, atol=tolerance * float(expected.abs().max())):
            raise Unrecordable("the recording gives other values")
        return step

    def _record_at(self, length: int, cache: PreallocatedCache) -> Recording:
        cache.set_length(length)
        ids, positions = torch.tensor([[length % 3]]), torch.tensor([[length]])
        inputs = self._inputs(ids, cache, positions)
        if isinstance(self._embedding, RowEmbedding):
            self._embedding.prepared = inputs[2]
        try:
            return record(length, inputs, lambda: self._logits(ids, cache, positions))
        finally:
            if isinstance(self._embedding, RowEmbedding):
                self._embedding.prepared = None

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
