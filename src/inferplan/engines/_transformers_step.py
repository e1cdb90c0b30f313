"""One decode step of any model, recorded from the library's own code and run without Python between its operations.

Owns recording, the check that the recordings say one thing, and the TorchScript that they become.
Leaves what a step is to `_transformers_loop`. Imports torch: import it only after `_transformers_imports`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# What such an operation gives, or the shape of it, depends on more than the shapes that go in.
_UNFIT = (torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output)
_DTYPES = (  # TorchScript knows types of elements by their place in this list (c10/core/ScalarType.h)
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64),
    *(torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8, torch.quint8, torch.qint32),
    torch.bfloat16,
)
_ELEMENTS = {"Tensor": "Tensor", "int": "int", "float": "float", "bool": "bool", "number": "Scalar", "Scalar": "Scalar"}
_FORMATS = (torch.contiguous_format, torch.preserve_format, torch.channels_last)


class Unrecordable(Exception):
    """This step cannot be run from a recording; says why."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What one step did, below the modules.

    Attributes:
        length: tokens that the cache held before it.
        inputs: tensors that differ from step to step; in every recording in the same order.
        calls: operations with their arguments and results, all kept alive, so that each has an identity of its own.
        output: what the step gave.
    """

    length: int
    inputs: tuple[Tensor, ...]
    calls: tuple[tuple[Any, tuple[Any, ...], dict[str, Any], Any], ...]
    output: Tensor


def record(length: int, inputs: Sequence[Tensor], step: Callable[[], Tensor]) -> Recording:
    """Run `step` once and note what it does.

    Raises:
        Unrecordable: it looks at a value, so that another token may take another way.
    """
    with _Recorder() as seen:
        output = step()
    return Recording(length, tuple(inputs), tuple(seen.calls), output)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # as in `ShareCounter`: to be skipped, torch would import its compiler

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(tag in func.tags for tag in _UNFIT) or not all(isinstance(t, Tensor) for t in _flat(result)):
            raise Unrecordable(f"{func} looks at a value")
        self.calls.append((func, args, kwargs, result))
        return result


def _flat(result: Any) -> list[Any]:
    return list(result) if isinstance(result, list | tuple) else [result]


@dataclass(frozen=True, slots=True)
class Input:
    """Input number `place`."""

    place: int


@dataclass(frozen=True, slots=True)
class Made:
    """Result `which` of call number `call`."""

    call: int
    which: int


@dataclass(frozen=True, slots=True, eq=False)
class Fixed:
    """A weight, or whatever else every step finds as it is."""

    value: Any


@dataclass(frozen=True, slots=True)
class Count:
    """A number that follows the tokens in the cache: `times * length + plus`."""

    times: int
    plus: int


@dataclass(frozen=True, slots=True)
class Operation:
    """One call with names in place of tensors, its arguments in the order of the schema."""

    func: Any
    arguments: tuple[Any, ...]
    results: int | None  # None: one tensor; otherwise so many in a list or tuple


def _operations(recording: Recording) -> tuple[list[Operation], Any]:
    """The calls by name, and the output's name."""
    names: dict[int, Any] = {id(tensor): Input(i) for i, tensor in enumerate(recording.inputs)}
    made: list[Operation] = []
    for func, args, kwargs, result in recording.calls:
        if not func._schema.is_mutable and any(result is value for value in args):
            continue  # it had nothing to do, such as a conversion to the type that is there
        results = _flat(result)
        count = len(results) if isinstance(result, list | tuple) else None
        made.append(Operation(func, tuple(_named(v, names) for v in _bound(func._schema, args, kwargs)), count))
        names.update({id(tensor): Made(len(made) - 1, which) for which, tensor in enumerate(results)})
    if id(recording.output) not in names:
        raise Unrecordable("the output is not the result of an operation")
    return made, names[id(recording.output)]


def _bound(schema: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """All arguments in the schema's order, defaults included."""
    return [*args, *(kwargs.get(a.name, a.default_value) for a in schema.arguments[len(args) :])]


def _named(value: Any, names: dict[int, Any]) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_named(item, names) for item in value)
    if isinstance(value, Tensor):
        return names.get(id(value)) or Fixed(value)
    return Fixed(value) if isinstance(value, torch.ScriptObject) else value


def _agreed(values: Sequence[Any], lengths: Sequence[int]) -> Any:
    """What several recordings say of one argument, as one rule that holds at every length."""
    first = values[0]
    if any(type(value) is not type(first) for value in values):
        raise Unrecordable(f"an argument is of several kinds: {values}")
    if isinstance(first, tuple):
        if len({len(value) for value in values}) > 1:
            raise Unrecordable("a list changes its length")
        return tuple(_agreed(items, lengths) for items in zip(*values, strict=True))
    if isinstance(first, Fixed):
        if not all(_same(first.value, value.value) for value in values):
            raise Unrecordable("a tensor is made outside of torch, anew in every step")
        return first
    if all(value == first for value in values):
        return first
    if not isinstance(first, int) or isinstance(first, bool):
        raise Unrecordable(f"an argument changes from step to step: {values}")
    times, rest = divmod(values[1] - first, lengths[1] - lengths[0])
    count = Count(times, first - times * lengths[0])
    if rest or any(count.times * n + count.plus != value for n, value in zip(lengths, values, strict=True)):
        raise Unrecordable(f"a number does not follow the length: {values} at {lengths}")
    return count


def _same(a: Any, b: Any) -> bool:
    """Objects that are no tensors (packed weights) come in a new wrapper every time: the check at the end sees them."""
    if a is b or not isinstance(a, Tensor):
        return True
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


@dataclass(frozen=True, slots=True)
class Program:
    """The operations of a step at any length, as several recordings agree on them.

    Attributes:
        inputs: how many tensors differ from step to step.
        operations: in their order.
        output: the name of what the step gives.
    """

    inputs: int
    operations: tuple[Operation, ...]
    output: Any


def agree(recordings: Sequence[Recording]) -> Program:
    """One program out of recordings at different lengths.

    Raises:
        Unrecordable: they differ in more than numbers that follow the length, with where.
    """
    lengths = [recording.length for recording in recordings]
    programs, outputs = zip(*map(_operations, recordings), strict=True)
    if len({tuple((op.func, op.results) for op in program) for program in programs}) > 1:
        raise Unrecordable("it takes different operations at different lengths")
    operations = tuple(
        Operation(same[0].func, _agreed([op.arguments for op in same], lengths), same[0].results)
        for same in zip(*programs, strict=True)
    )
    return Program(len(recordings[0].inputs), operations, _agreed(outputs, lengths))


class ScriptedStep:
    """A program as TorchScript: the same operations in the same order, from the interpreter in C++.

    In Python the 400 to 2700 operations of a token take 3 microseconds each and more, most of it between them.
    """

    def __init__(self, program: Program) -> None:
        writer = _Writer(program.inputs)
        for operation in program.operations:
            writer.operation(operation)
        text = writer.text(program.output)
        self.name = f"recorded: {len(program.operations)} operations"
        self._fixed = tuple(writer.fixed)
        library: Any = torch._C
        graph = library.parse_ir(text)
        library._jit_pass_cse(graph)
        self._run = library._create_function_from_graph("step", graph)

    def __call__(self, length: int, inputs: Sequence[Tensor]) -> Tensor:
        """The step's output with `length` tokens in the cache."""
        library: Any = torch._C
        before = library._get_graph_executor_optimize()
        library._set_graph_executor_optimize(False)  # run as recorded: no profiling, no fusing
        try:
            output: Tensor = self._run(length, *inputs, *self._fixed)
        finally:
            library._set_graph_executor_optimize(before)
        return output


class _Writer:
    """TorchScript's own text form of a graph."""

    def __init__(self, inputs: int) -> None:
        self.fixed: list[Any] = []
        self._parameters = ["%length : int", *(f"%input{i} : Tensor" for i in range(inputs))]
        self._places: dict[int, str] = {}
        self._constants: dict[tuple[str, str], str] = {}
        self._counts: dict[Count, str] = {}
        self._head: list[str] = []
        self._body: list[str] = []
        self._calls, self._next = 0, 0

    def operation(self, op: Operation) -> None:
        """Append one call; its results are `%m<call>_<which>`."""
        schema, call = op.func._schema, self._calls
        self._calls += 1
        arguments = [
            self._value(value, str(argument.type))
            for argument, value in zip(schema.arguments, op.arguments, strict=True)
        ]
        line = f"{schema.name}({', '.join(arguments)})"
        if op.results is None:
            self._body.append(f"%m{call}_0 : Tensor = {line}")
            return
        results = ", ".join(f"%m{call}_{which} : Tensor" for which in range(op.results))
        if len(schema.returns) == 1:
            self._body += [f"%m{call} : Tensor[] = {line}", f"{results} = prim::ListUnpack(%m{call})"]
        else:
            self._body.append(f"{results} = {line}")

    def text(self, output: Any) -> str:
        """The whole graph."""
        lines = [f"graph({', '.join(self._parameters)}):", *self._head, *self._body]
        return "\n  ".join(lines) + f"\n  return ({self._value(output, 'Tensor')})\n"

    def _value(self, value: Any, kind: str) -> str:
        if isinstance(value, Made):
            return f"%m{value.call}_{value.which}"
        if isinstance(value, Input):
            return f"%input{value.place}"
        if isinstance(value, Fixed):
            return self._parameter(value.value)
        if isinstance(value, Count):
            return self._count(value)
        if isinstance(value, tuple):
            return self._list(value, kind)
        if kind.startswith("List[int]") or kind.startswith("int["):
            return self._list((value,), kind)
        return self._constant(value, kind)

    def _parameter(self, value: Any) -> str:
        if id(value) not in self._places:
            self._places[id(value)] = f"%fixed{len(self.fixed)}"
            self.fixed.append(value)
            kind = "Tensor" if isinstance(value, Tensor) else value._type().str()
            self._parameters.append(f"{self._places[id(value)]} : {kind}")
        return self._places[id(value)]

    def _count(self, value: Count) -> str:
        if value not in self._counts:
            name = self._counts[value] = f"%count{len(self._counts)}"
            times, plus = self._constant(value.times, "int"), self._constant(value.plus, "int")
            self._head.append(f"{name}_ : int = aten::mul(%length, {times})")
            self._head.append(f"{name} : int = aten::add({name}_, {plus})")
        return self._counts[value]

    def _list(self, values: tuple[Any, ...], kind: str) -> str:
        element = next((written for name, written in _ELEMENTS.items() if name in kind), None)
        if element is None:
            raise Unrecordable(f"it passes a list of type {kind}")
        optional = "?" if "List[Optional" in kind or "?[" in kind else ""
        items = ", ".join(self._value(value, element) for value in values)
        name = f"%list{self._next}"
        self._next += 1
        self._body.append(f"{name} : {element}{optional}[] = prim::ListConstruct({items})")
        return name

    def _constant(self, value: Any, kind: str) -> str:
        key = _literal(value, kind)
        if key not in self._constants:
            self._constants[key] = f"%constant{len(self._constants)}"
            attribute = f"[value={key[1]}]" if key[1] else ""
            self._head.append(f"{self._constants[key]} : {key[0]} = prim::Constant{attribute}()")
        return self._constants[key]


def _literal(value: Any, kind: str) -> tuple[str, str]:
    """Type and text of a constant."""
    if value is None:
        return "NoneType", ""
    if isinstance(value, bool):
        return "bool", str(int(value))
    if isinstance(value, torch.dtype):
        return "int", str(_DTYPES.index(value))
    if isinstance(value, torch.memory_format):
        return "int", str(_FORMATS.index(value))
    if value is torch.strided:
        return "int", "0"
    if isinstance(value, torch.device):
        return "Device", f'"{value}"'
    if isinstance(value, str):
        return "str", f'"{value}"'
    if isinstance(value, int) and "float" not in kind:
        return "int", str(value)
    if isinstance(value, int | float) and isfinite(value):
        text = repr(float(value))
        return "float", text
    raise Unrecordable(f"it passes {value!r} as a {kind}")
