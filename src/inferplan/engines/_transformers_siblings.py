"""Linear layers that are given the same input, multiplied as one: query, key and value; gate and up.

Owns finding them, whatever the architecture calls them, and handing out each one's part of the product.
Leaves kernels to `_transformers_linears`. Imports torch: import it only after `_transformers_imports`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def find_siblings(model: Any, linears: Mapping[str, nn.Module]) -> tuple[tuple[str, ...], ...]:
    """Names of the layers that share an input, in the order in which they are called.

    Found by one pass of a model without weights, with zeros in their place. Where the model's code cannot run on
    zeros, no layers are joined, and everything works as it would without this.
    """
    from transformers.cache_utils import DynamicCache

    calls: list[tuple[str, Tensor]] = []  # the inputs are kept, so that no two have one identity
    try:
        with _zeros_for_weights(model, linears, calls), torch.inference_mode():
            ids = torch.zeros((1, 2), dtype=torch.int64)
            model(input_ids=ids, past_key_values=DynamicCache(config=model.config), use_cache=True)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, IndexError):
        return ()
    return tuple(_joinable(calls, linears))


@contextmanager
def _zeros_for_weights(
    model: nn.Module, linears: Mapping[str, nn.Module], calls: list[tuple[str, Tensor]]
) -> Iterator[None]:
    """Parameters that are one zero, seen everywhere, and linear layers that only note their input.

    Not the meta device: to compute on it, torch imports 800 modules and 77 MiB that stay (torch 2.13).
    """
    kept = [(module, name, p) for module in model.modules() for name, p in module._parameters.items() if p is not None]
    try:
        for module, name, parameter in kept:
            zero = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            module._parameters[name] = nn.Parameter(zero, requires_grad=False)
        for name, module in linears.items():
            module.forward = partial(_noted, calls, name, _width(module))
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter
        for module in linears.values():
            vars(module).pop("forward", None)


def _noted(calls: list[tuple[str, Tensor]], name: str, width: int, x: Tensor) -> Tensor:
    calls.append((name, x))
    return x.new_zeros(*x.shape[:-1], width)


def _width(module: nn.Module) -> int:
    first, second = module.weight.shape  # type: ignore[misc]
    return int(first if isinstance(module, nn.Linear) else second)  # the library's Conv1D keeps [in, out]


def _joinable(calls: Sequence[tuple[str, Tensor]], linears: Mapping[str, nn.Module]) -> Iterable[tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for name, given in calls:
        groups.setdefault(id(given), []).append(name)
    names = [name for name, _ in calls]
    for group in groups.values():
        called_once = all(names.count(name) == 1 for name in group)
        biases = {getattr(linears[name], "bias", None) is None for name in group}
        kinds = {type(linears[name]) for name in group}
        if len(group) > 1 and called_once and len(biases) == len(kinds) == 1:
            yield tuple(group)


class Siblings:
    """The product of all layers of a group, computed when the first of them is called and kept until the last."""

    def __init__(self, linear: nn.Module, widths: Sequence[int]) -> None:
        self.linear = linear
        self._slices = [(sum(widths[:i]), width) for i, width in enumerate(widths)]
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._left: set[int] = set()

    def part(self, x: Tensor, index: int) -> Tensor:
        """[..., in] to [..., width of the layer `index`]."""
        if self._output is None or x is not self._input or index not in self._left:
            self._input, self._output, self._left = x, self.linear(x), set(range(len(self._slices)))
        self._left.discard(index)
        y = self._output.narrow(-1, *self._slices[index])
        if not self._left:
            self._input = self._output = None
        return y.contiguous()  # of one token it is so already


class Sibling(nn.Module):
    """One layer of a group in the place where the model's code calls it."""

    def __init__(self, group: Siblings, index: int) -> None:
        super().__init__()
        self._group, self._index = group, index
        if index == 0:
            self.joined = group.linear  # the weights belong to one of them, so that they are counted once

    def forward(self, x: Tensor) -> Tensor:
        """As the layer that was here."""
        return self._group.part(x, self._index)
