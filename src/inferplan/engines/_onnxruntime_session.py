"""Greedy generation with a plain onnxruntime session: keys and values stay in one place from token to token.

Owns the bindings of a request and its loop. Leaves the graph to the conversion, and checking the request to the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ArtifactError

Settings = Mapping[str, str | int | bool]
_PAST, _PRESENT = "past_key_values.", "present."


class SessionRunner:
    """One session and the requests it answers.

    Args:
        path: the ONNX file.
        threads: threads of the pool inside an operator.
        arena: whether the library keeps freed memory for itself.
        entries: the library's own settings by name, `session.intra_op.allow_spinning`.
        kv_cache: whether keys and values are kept between tokens.
    """

    def __init__(self, path: Path, threads: int, *, arena: bool, entries: Mapping[str, str], kv_cache: bool) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.enable_cpu_mem_arena = arena
        options.log_severity_level = 3  # errors: they come as exceptions as well
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        try:
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the library has a dozen classes of its own, and none above them
            raise ArtifactError(
                f"onnxruntime cannot load {path}: {error}. Delete its directory to have it made again."
            ) from error
        self._kv_cache = kv_cache
        self._inputs = {item.name: tuple(item.shape) for item in self._session.get_inputs()}
        outputs = {item.name: tuple(item.shape) for item in self._session.get_outputs()}
        self._vocabulary = int(outputs["logits"][-1])

    @property
    def providers(self) -> str:
        """What runs the nodes, as the library says."""
        return ", ".join(self._session.get_providers())

    def tokens(self, prompt: Sequence[int], max_tokens: int) -> Iterator[int]:
        """`max_tokens` token ids, each as it appears; keys and values are kept as `kv_cache` says."""
        request = _Request(self._session, self._inputs, len(prompt) + max_tokens, self._vocabulary)
        whole = [*prompt]
        done = 0
        for _ in range(max_tokens):
            token = request.step(whole[done:], done)
            yield token
            if self._kv_cache:
                done = len(whole)
            whole.append(token)


class _Request:
    """Memory of one request, bound once to the graph: it holds `room` tokens and no earlier request's.

    Keys and values are inputs and outputs in the same place, so that attention appends to them and copies nothing.
    """

    def __init__(self, session: Any, inputs: Mapping[str, tuple[Any, ...]], room: int, vocabulary: int) -> None:
        import onnxruntime

        self._session, self._inputs = session, inputs
        self._binding = session.io_binding()
        self._logits = np.empty((1, 1, vocabulary), np.float32)
        self._binding.bind_output("logits", "cpu", 0, np.float32, self._logits.shape, self._logits.ctypes.data)
        self._kept: list[Any] = []
        for name, shape in inputs.items():
            if name.startswith(_PAST):
                value = onnxruntime.OrtValue.ortvalue_from_shape_and_type([1, shape[1], room, shape[3]], np.float32)
                self._binding.bind_ortvalue_input(name, value)
                self._binding.bind_ortvalue_output(_PRESENT + name.removeprefix(_PAST), value)
                self._kept.append(value)
        self._positions = np.arange(room, dtype=np.int64)[None]
        self._ones = np.ones((1, room), np.int64)
        self._fed: dict[str, NDArray[Any]] = {}

    def step(self, ids: Sequence[int], start: int) -> int:
        """The token after `ids`, which stand at position `start`."""
        end = start + len(ids)
        self._feed("input_ids", np.array([ids], np.int64))
        self._feed("position_ids", self._positions[:, start:end])
        self._feed("attention_mask", self._ones[:, :end])
        self._feed("seqlens_k", np.array([end - 1], np.int32))
        self._feed("total_sequence_length", np.array(end, np.int32))
        self._session.run_with_iobinding(self._binding)
        return int(self._logits.argmax())

    def _feed(self, name: str, array: NDArray[Any]) -> None:
        """Bind `array`, one contiguous row, where the graph has such an input; it is read in place."""
        if name in self._inputs:
            self._fed[name] = array  # kept alive: the library has its address only
            self._binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
