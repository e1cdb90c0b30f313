"""A recorded step through torch.compile: everything between the products becomes C++ of its own.

Owns the graph that the compiler is given, and what it is told about it.
Leaves recording to `_transformers_step`. Imports torch, and its compiler when a step is made.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._transformers_step import Count, Fixed, Input, Made, Operation, Program


class CompiledStep:
    """A program as torch's compiler makes it: compiled once, for every length."""

    name = "compiled"

    def __init__(self, program: Program) -> None:
        import torch._dynamo
        import torch._inductor.config

        torch._inductor.config.compile_threads = 1  # more would be processes that stay
        module = _Graph(program).module
        # Nothing that a guard would look at changes but the length, and that is the shape of an input.
        settings: Any = {"guard_filter_fn": lambda guards: [False for _ in guards]}
        self._run = torch.compile(module, options=settings)
        self._marked = False

    def __call__(self, length: int, inputs: Sequence[Tensor]) -> Tensor:
        """The step's output with `length` tokens in the cache. The first call compiles."""
        count = torch.zeros(1, dtype=torch.uint8).expand(length)
        if not self._marked:
            mark: Any = torch._dynamo.mark_dynamic
            mark(count, 0)
            for buffer in inputs:
                if buffer.dim() == 4:  # keys and values: [1, heads, room, width], and the room grows
                    mark(buffer, 2)
            self._marked = True
        output: Tensor = self._run(count, *inputs)
        return output


class _Graph:
    """A program in the compiler's own form; weights are buffers of the module."""

    def __init__(self, program: Program) -> None:
        self._root, self._graph = torch.nn.Module(), torch.fx.Graph()
        count: Any = self._graph.placeholder("count")
        self._inputs = [self._graph.placeholder(f"input{i}") for i in range(program.inputs)]
        self._length = self._graph.call_method("size", (count, 0))
        self._fixed: dict[int, Any] = {}
        self._counts: dict[Count, Any] = {}
        self._made: dict[tuple[int, int], Any] = {}
        for call, op in enumerate(program.operations):
            self._add(call, op)
        self._graph.output(self._value(program.output))
        self.module = torch.fx.GraphModule(self._root, self._graph)

    def _add(self, call: int, op: Operation) -> None:
        values = [self._value(value) for value in op.arguments]
        if op.func is torch.ops.aten.linear.default and op.arguments[1].value.dtype is torch.float32:
            self._made[call, 0] = self._product(*values)
            return
        arguments = op.func._schema.arguments
        named = {a.name: v for a, v in zip(arguments, values, strict=True) if a.kwarg_only}
        made = self._graph.call_function(op.func, tuple(values[: len(values) - len(named)]), named)
        if op.results is None:
            self._made[call, 0] = made
        for which in range(op.results or 0):
            self._made[call, which] = self._graph.call_function(operator.getitem, (made, which))

    def _product(self, x: Any, weight: Any, bias: Any) -> Any:
        """One row times [out, in]: as a sum over each row of the weights, which the compiler makes one loop of.

        It reads 768 x 3072 at 22 GB/s, and MKL's product at 16 (torch 2.13, AVX-512, one thread).
        """
        aten = torch.ops.aten
        terms = self._graph.call_function(aten.mul.Tensor, (weight, x))
        y = self._graph.call_function(aten.sum.dim_IntList, (terms, [-1]))
        if bias is not None:
            y = self._graph.call_function(aten.add.Tensor, (y, bias))
        return self._graph.call_function(aten.view.default, (y, [1, 1, -1]))

    def _value(self, value: Any) -> Any:
        if isinstance(value, Made):
            return self._made[value.call, value.which]
        if isinstance(value, Input):
            return self._inputs[value.place]
        if isinstance(value, Fixed):
            return self._buffer(value.value)
        if isinstance(value, Count):
            return self._number(value)
        return [self._value(item) for item in value] if isinstance(value, tuple) else value

    def _buffer(self, tensor: Tensor) -> Any:
        if id(tensor) not in self._fixed:
            name = f"fixed{len(self._fixed)}"
            self._root.register_buffer(name, tensor)
            self._fixed[id(tensor)] = self._graph.get_attr(name)
        return self._fixed[id(tensor)]

    def _number(self, count: Count) -> Any:
        if count not in self._counts:
            times = self._graph.call_function(operator.mul, (self._length, count.times))
            self._counts[count] = self._graph.call_function(operator.add, (times, count.plus))
        return self._counts[count]
