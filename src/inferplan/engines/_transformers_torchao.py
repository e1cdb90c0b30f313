"""INT8 and INT4 weights as torchao quantizes them, multiplied by torch's weight-only kernels.

Owns the artifact and the layer. torchao is imported by the conversion only; what runs is torch.
Leaves the order of loading to `_transformers_model`. Imports torch: import it only after `_transformers_imports`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtifactError, Unsupported
from ._safetensors import SINGLE_NAME, TensorWriter
from ._transformers_linears import raw
from ._transformers_model import (
    Layout,
    Source,
    layout,
    oriented_weight,
    other_tensors,
    place_embedding,
    place_rest,
    release_free_memory,
    replace,
    shape_of,
)

FORMAT = "inferplan-torchao-1"
GROUP = 32  # columns of INT4 weights that share a scale and a zero, as in llama.cpp's Q4_0
_ROWS = 64  # the INT4 kernel packs rows in blocks; 50257 of them are padded to 50304
_NAMES = {torch.int8: "I8", torch.uint8: "U8", torch.bfloat16: "BF16"}


class WeightOnlyLinear(nn.Module):
    """`y = x W^T + b` with W in 8 or 4 bits; the product takes and gives bfloat16, all else stays float32.

    torch has these kernels for float32 too, as plain loops: 0.4 GB/s in INT4 and 1.2 in INT8, where those for
    bfloat16 use the CPU's vectors (torch 2.13, AVX-512).
    """

    scheme = "weight-only"

    def __init__(self, packed: Tensor, scale: Tensor, bias: Tensor | None, out_features: int) -> None:
        """`packed` is int8 [out, in], or uint8 [padded out, in / 2] as torch's INT4 kernel has it."""
        super().__init__()
        self.out_features = out_features
        self.packed = nn.Parameter(packed, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out], both float32."""
        rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16)
        y: Tensor
        if self.packed.dtype is torch.int8:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.packed, self.scale)
        else:
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, self.packed, GROUP, self.scale)
            y = y.narrow(1, 0, self.out_features)
        y = y.to(x.dtype)
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], self.out_features)


def convert(model: Any, checkpoint: Path, out: Path, bits: int) -> None:
    """Write the artifact of `checkpoint`, quantized by torchao.

    Raises:
        Unsupported: a layer's width does not divide into groups.
    """
    source, plan = Source(model, checkpoint), layout(model)
    made: dict[str, Tensor] = {}
    for name, module in plan.linears.items():
        key = plan.source(f"{name}.weight")
        if key + ".packed" not in made:
            weight = oriented_weight(source.read(key).float(), module, out_first=True).contiguous()
            made[key + ".packed"], made[key + ".scale"] = _quantized(weight, bits, key)
    rest = other_tensors(model, source, plan)
    if (
        plan.embedding is not None
    ):  # the file's rows are looked up; a table that the last layer shares is not among them
        rest.append(plan.source(f"{plan.embedding}.weight"))
    table = [(name, _NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in made.items()]
    table += [(name, "F32", source.locate(name)[1].shape) for name in dict.fromkeys(rest)]
    with TensorWriter(out / SINGLE_NAME, table, {"format": FORMAT, "bits": str(bits)}) as writer:
        for name, tensor in made.items():
            writer.write(name, raw(tensor))
        for name in dict.fromkeys(rest):
            writer.write(name, raw(source.read(name).float().contiguous()))
    source.files.close()
    (out / "config.json").write_text((checkpoint / "config.json").read_text(encoding="utf-8"), encoding="utf-8")


def _quantized(weight: Tensor, bits: int, name: str) -> tuple[Tensor, Tensor]:
    """What torchao makes of [out, in]: the packed weights and, in bfloat16, their scales (and zeros)."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    if bits == 8:
        done = _by(quantize_, Int8WeightOnlyConfig(set_inductor_config=False), weight)
        return done.qdata.contiguous(), done.scale.reshape(-1).to(torch.bfloat16)
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    if weight.shape[1] % GROUP:
        raise Unsupported(f"torchao's INT4 takes groups of {GROUP} columns, and {name} has {weight.shape[1]}")
    weight = nn.functional.pad(weight, (0, 0, 0, -len(weight) % _ROWS))
    config = PrototypeInt4WeightOnlyConfig(group_size=GROUP, set_inductor_config=False)
    done = _by(quantize_, config, weight)
    return done.qdata.contiguous(), done.scale_and_zero.to(torch.bfloat16).contiguous()


def _by(quantize: Any, config: Any, weight: Tensor) -> Any:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    model = nn.Sequential(linear)
    quantize(model, config)
    return linear.weight


def load(model: Any, directory: Path) -> Source:
    """Put the artifact's weights in place.

    Raises:
        ArtifactError: it is not an artifact of this kind, or a tensor is missing.
    """
    source, plan = Source(model, directory), layout(model)
    if source.files.metadata.get("format") != FORMAT:
        raise ArtifactError(f"{source.files.first_path} is not a torchao artifact of this version: convert it again")
    for name, module in plan.linears.items():
        replace(model, (name,), _layer(source, plan, name, module), plan)
        release_free_memory()
    place_embedding(model, plan, source, torch.float32, None)
    place_rest(model, plan, source, torch.float32)
    return source


def _layer(source: Source, plan: Layout, name: str, module: Any) -> WeightOnlyLinear:
    key = plan.source(f"{name}.weight")
    bias = None if module.bias is None else source.read(plan.source(f"{name}.bias"), tuple(module.bias.shape))
    packed, scale = source.read(key + ".packed"), source.read(key + ".scale")
    return WeightOnlyLinear(packed, scale, bias, shape_of(module)[0])
