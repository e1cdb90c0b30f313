"""The layers that transformers' own modelling code runs with, in place of its linears and its input embedding.

Owns the matrix kernels, one small class for each way to multiply, and the count of what really ran.
Leaves what goes where to `_transformers_model`. Imports torch: import it only after `_transformers_imports`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..errors import Unsupported
from ._safetensors import Entry, TensorFile

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


Fill = Callable[[memoryview], None]
"""Writes the bytes of a tensor into the buffer it is given."""


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor, to read into or write from."""
    array: Any = tensor.detach().view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def read_tensor(file: TensorFile, entry: Entry) -> Tensor:
    """One tensor, copied out of its file into memory of its own."""
    if entry.dtype not in DTYPES:
        raise Unsupported(f"{file.path} holds tensors of type {entry.dtype}, which this engine cannot read")
    tensor = torch.empty(entry.shape, dtype=DTYPES[entry.dtype])
    if tensor.numel():
        file.read_into(raw(tensor), entry.offset)
    return tensor


class FloatLinear(nn.Module):
    """`y = x W + b` with W as [in, out], exact.

    The library's matrix-vector product reads a matrix laid out so at 19 to 25 GB/s, and one laid
    out as [out, in] (what `nn.Linear` keeps) at 10 to 13 GB/s (MKL in torch 2.13, AVX-512, 50257 x 768).
    It uses one thread, however many there are. A batched product of as many slices of the input as there
    are threads uses them all: 3072 x 768 at 2 threads went from 17.8 to 24.8 GB/s, 50257 x 768 from 17.2
    to 22.4, where a plain sum over the same bytes reached 30.2 and 24.9.
    """

    out_first = False

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        parts = torch.get_num_threads()
        self.parts = parts if self.in_features % parts == 0 else 1
        self._slices = self.weight.view(self.parts, -1, self.out_features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        rows = x.view(-1, self.in_features) if x.is_contiguous() else x.reshape(-1, self.in_features)
        if self.parts > 1 and rows.shape[0] == 1:
            return self._one_row(rows).view(*x.shape[:-1], self.out_features)
        y = torch.mm(rows, self.weight) if self.bias is None else torch.addmm(self.bias, rows, self.weight)
        return y.view(*x.shape[:-1], self.out_features)

    def _one_row(self, row: Tensor) -> Tensor:
        y = torch.bmm(row.view(self.parts, 1, -1), self._slices).sum(0)
        return y if self.bias is None else y.add_(self.bias)


class RowMajorLinear(nn.Module):
    """`y = x W^T + b` with W as [out, in]: for bfloat16, whose kernel (oneDNN) is faster with this layout."""

    out_first = True

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return nn.functional.linear(x, self.weight, self.bias)


class NarrowLinear(RowMajorLinear):
    """FP32 with oneDNN's kernel and W as [out, in]: for one thread and fewer outputs than inputs.

    There MKL reads slowly: 768 x 3072 at 16.6 GB/s, and this kernel at 22.6, where a plain sum over the same bytes
    reached 34.2; the other way round, 3072 x 768, they read at 23.3 and 17.3 (torch 2.13, AVX-512, one thread).
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def float_layer(out: int, width: int, dtype: torch.dtype, compiled: bool) -> type[FloatLinear | RowMajorLinear]:
    """The class that multiplies by a matrix of this shape fastest, with the threads that are set."""
    narrow = out < width
    if dtype is torch.bfloat16 or (compiled and narrow):  # of that the compiler makes a loop of its own
        return RowMajorLinear
    avx512 = torch.backends.cpu.get_cpu_capability() == "AVX512" and torch.backends.mkldnn.is_available()
    return NarrowLinear if narrow and avx512 and torch.get_num_threads() == 1 else FloatLinear


class Int8Linear(nn.Module):
    """INT8 weights, one scale per output channel; activations quantized on the fly, one scale per call ("dynamic").

    The one place that knows the INT8 kernel. Another kernel replaces `pack` and `forward`; measured
    alternatives for a 50257 x 768 matrix and one row: fbgemm 1.2 ms, onednn 1.5 ms, `torch._int_mm` 2.0 ms,
    `_weight_int8pack_mm` 2.8 ms, FP32 12 ms (torch 2.13, AVX-512 VNNI, two threads).
    """

    scheme = "dynamic"

    def __init__(self, shape: tuple[int, int], fill: Fill, scale: Tensor, bias: Tensor | None) -> None:
        """`shape` is (out, in); `fill` writes that many int8 into what it is given; `scale` and `bias` are float32."""
        super().__init__()
        self.out_features, self.in_features = shape
        self.run, self.packed, self.reduce_range = pack(shape, fill, scale, bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], both float32."""
        y: Tensor = self.run(x, self.packed, self.reduce_range)
        return y


def int8_backend() -> str | None:
    """The quantized library to use here, or None: fbgemm on x86, qnnpack on ARM."""
    available = torch.backends.quantized.supported_engines
    return next((name for name in ("fbgemm", "qnnpack") if name in available), None)


def int8_kernel() -> str:
    """The INT8 kernel by name, as `Actual.kernel` shows it."""
    return f"{int8_backend()} linear_dynamic"


def pack(
    shape: tuple[int, int], fill: Fill, scale: Tensor, bias: Tensor | None
) -> tuple[Callable[..., Tensor], Any, bool]:
    """The kernel's function, its own form of the weights, and whether activations keep to 7 bits.

    Without VNNI the kernel adds pairs of products in 16 bits and saturates with 8-bit activations.
    """
    backend = int8_backend()
    if backend is None:
        raise Unsupported("this build of torch has neither fbgemm nor qnnpack, so it has no INT8 linear layer")
    torch.backends.quantized.engine = backend
    zero = torch.zeros(len(scale), dtype=torch.int64)
    with warnings.catch_warnings():
        # torch 2.13 warns that these tensor types will be removed one day. We pin the version, and only this
        # function would change.
        warnings.simplefilter("ignore")
        quantized = torch._empty_per_channel_affine_quantized(
            shape, scales=scale.double(), zero_points=zero, axis=0, dtype=torch.qint8
        )
        # filled where it lies: a second copy of the largest layer would be the peak of the whole load
        fill(raw(torch.empty(0, dtype=torch.int8).set_(quantized.untyped_storage(), 0, shape, (shape[1], 1))))
        packed = torch.ops.quantized.linear_prepack(quantized, bias)
    return torch.ops.quantized.linear_dynamic.default, packed, backend == "fbgemm" and not has_vnni()


def has_vnni() -> bool:
    """Whether this CPU multiplies bytes into 32-bit sums in one step."""
    capabilities = torch.backends.cpu.get_cpu_capability()
    if "AVX512" not in capabilities and "AVX2" not in capabilities:
        return False
    probe = getattr(torch.cpu, "_is_avx512_vnni_supported", None) or getattr(torch.cpu, "_is_vnni_supported", None)
    return bool(probe and probe())


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] float to int8 with one symmetric scale a row; a row of zeros has scale 1."""
    scale = weight.abs().amax(dim=1).float() / 127
    scale[scale == 0] = 1.0
    return (weight / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


class RowEmbedding(nn.Embedding):
    """An embedding whose table stays in its file: the rows that are looked up are read, and nothing else.

    Only ever made by `read_rows_from`, out of an `nn.Embedding` or a subclass of it.
    """

    source: TensorFile
    entry: Entry
    scale: Tensor | None
    out_dtype: torch.dtype
    prepared: Tensor | None = None  # set for one recorded step, so that reading the file is no part of it

    def forward(self, input: Tensor) -> Tensor:
        """Ids of any shape to [..., width]."""
        return self.rows(input) if self.prepared is None else self.prepared

    def rows(self, input: Tensor) -> Tensor:
        """Read the rows of these ids."""
        ids = input.reshape(-1).tolist()
        width = self.entry.shape[1]
        rows = torch.empty((len(ids), width), dtype=DTYPES[self.entry.dtype])
        view, stride = raw(rows), self.entry.nbytes // self.entry.shape[0]
        for place, token in enumerate(ids):
            self.source.read_into(view[place * stride : (place + 1) * stride], self.entry.offset + token * stride)
        if self.scale is not None:
            rows = rows * self.scale[input.reshape(-1), None]
        return rows.to(self.out_dtype).view(*input.shape, width)


def read_rows_from(
    module: nn.Embedding, source: TensorFile, entry: Entry, scale: Tensor | None, dtype: torch.dtype
) -> None:
    """Turn `module` into a `RowEmbedding` in place; what a subclass does around the look-up still happens."""
    kind = type(module)
    name = f"Row{kind.__name__}"
    module.__class__ = RowEmbedding if kind is nn.Embedding else type(name, (kind, RowEmbedding), {})
    module.weight = nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)  # its dtype is asked for
    row: Any = module
    row.source, row.entry, row.scale, row.out_dtype = source, entry, scale, dtype


class ShareCounter(TorchDispatchMode):
    """Counts the parameters that matrix kernels multiplied by while it is active, by integer kernel or not.

    It sees every operation that is executed, below the modules: an operation counts when it is a matrix
    product and one of its operands is a weight.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.integer, self.other = 0, 0
        self.kernels: set[str] = set()
        self._weights = {p.untyped_storage().data_ptr() for p in model.parameters() if p.numel()}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to be skipped by the compiler, torch would import it, 75 MiB that stay (torch 2.13)."""
        return False

    @property
    def share(self) -> float:
        """Share of the parameters that ran in integers, 0 to 1."""
        return self.integer / max(1, self.integer + self.other)

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if name in _INTEGER:
            self.integer += args[0].shape[-1] * result.shape[-1]
        elif name.partition("::")[2] in _PRODUCTS:
            weights = [a for a in args if isinstance(a, Tensor) and self._is_weight(a)]
            self.other += sum(weight.numel() for weight in weights)
            self.kernels |= {f"{name} {str(weight.dtype).removeprefix('torch.')}" for weight in weights}
        return result

    def _is_weight(self, tensor: Tensor) -> bool:
        return tensor.dim() > 1 and tensor.untyped_storage().data_ptr() in self._weights


_INTEGER = ("quantized::linear_dynamic", "aten::_weight_int8pack_mm", "aten::_weight_int4pack_mm_for_cpu")
_PRODUCTS = frozenset(
    {"linear", "mm", "addmm", "bmm", "baddbmm", "matmul", "mv", "addmv", "einsum", "_grouped_mm", "_linear_pointwise"}
)
