"""Builds transformers' own model of any architecture without its weights, then puts each weight in place.

Owns which layer becomes what, names of tensors in checkpoints and artifacts, and the conversion to INT8.
Leaves the kernels to `_transformers_linears`. Imports torch: import it only after `_transformers_imports`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ArtifactError, Unsupported
from ._safetensors import SINGLE_NAME, Entry, TensorFile, TensorFiles, TensorWriter
from ._transformers_linears import (
    Int8Linear,
    float_layer,
    quantize,
    raw,
    read_rows_from,
    read_tensor,
)
from ._transformers_siblings import Sibling, Siblings, find_siblings

FORMAT = "inferplan-int8-1"
SCALE = ".int8_scale"  # suffix of the scales beside a weight's name


def build(config_class: Any, model: Any, config: dict[str, Any], attention: str, dtype: torch.dtype) -> Any:
    """The model with parameters that hold nothing yet, and buffers that are ready.

    Raises:
        Unsupported: the config asks for what this engine does not do.
    """
    if "quantization_config" in config:
        raise Unsupported(
            "the checkpoint is quantized already (quantization_config in config.json); give plain weights"
        )
    try:
        settings = config_class.from_dict(config)
        settings.dtype = dtype
        settings._attn_implementation = attention
        with _no_initial_values(), torch.device("meta"):
            made = model(settings)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        raise Unsupported(f"transformers cannot build this {config['model_type']}: {error}") from error
    made.eval()
    _simplify(made)
    _fill_buffers(made)
    made.siblings = find_siblings(made, layout(made).linears)
    return made


_WARNING = "warn_if_padding_and_no_attention_mask"


def _simplify(model: nn.Module) -> None:
    """Put in one cheap call where the library makes several, with the same result."""
    for module in model.modules():
        if hasattr(module, _WARNING):  # it looks at the first and the last token each time
            setattr(module, _WARNING, _no_warning)
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):  # changes nothing in inference
                setattr(module, name, nn.Identity())
            elif type(child).__name__ == "NewGELUActivation":  # the same formula in six operations, 5% of a token
                setattr(module, name, nn.GELU(approximate="tanh"))


def _no_warning(*_: Any, **__: Any) -> None:
    """There is no padding here: a request is one sequence."""


def _no_initial_values() -> AbstractContextManager[None]:
    """Skip random initial values: without memory they mean nothing, and torch imports its compiler to make them so."""
    try:
        from transformers.initialization import no_init_weights
    except ImportError:  # transformers before 5
        return nullcontext()
    found: AbstractContextManager[None] = no_init_weights()
    return found


def _fill_buffers(model: Any) -> None:
    """Compute what is in no checkpoint (rotary frequencies), by the model's own rule for it."""
    for module in model.modules():
        empty = {name: b for name, b in module.named_buffers(recurse=False) if b.is_meta}
        if not empty:
            continue
        for name, buffer in empty.items():
            fill = float("nan") if buffer.is_floating_point() else 0
            module._buffers[name] = torch.full(buffer.shape, fill, dtype=buffer.dtype)
        model._init_weights(module)
        for name in empty:
            if torch.isnan(module._buffers[name]).any():
                raise Unsupported(f"{model.config.model_type} has a buffer, {name}, that its own rule does not fill")


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model's parameters are for: linear layers by name, tied names, and the input embedding's name.

    `groups` holds every linear layer once, with those that are multiplied as one.
    """

    linears: dict[str, nn.Module]
    tied: dict[str, str]
    embedding: str | None
    groups: tuple[tuple[str, ...], ...]

    def source(self, name: str) -> str:
        """The parameter that `name` shares its values with, or itself."""
        return self.tied.get(name, name)


def layout(model: Any) -> Layout:
    """Read off a built model."""
    from transformers.pytorch_utils import Conv1D

    plain = (nn.Linear.forward, Conv1D.forward)  # a subclass that multiplies in its own way is left alone
    linears = {n: m for n, m in model.named_modules() if getattr(type(m), "forward", None) in plain}
    table = model.get_input_embeddings()
    name = next((n for n, m in model.named_modules() if m is table), None) if isinstance(table, nn.Embedding) else None
    joined = tuple(getattr(model, "siblings", ()))
    alone = ((n,) for n in linears if not any(n in group for group in joined))
    return Layout(linears, dict(getattr(model, "all_tied_weights_keys", {})), name, (*joined, *alone))


class Source:
    """Tensors of a checkpoint under the model's own parameter names."""

    def __init__(self, model: Any, directory: Path) -> None:
        self.files = TensorFiles(directory)
        self._prefix = f"{model.base_model_prefix}."
        ours = self.files.metadata.get("format") == FORMAT
        renames = [] if ours else _renames(model)
        self._where = {_renamed(name, renames): place for name, place in self.files.where.items()}

    def find(self, name: str) -> tuple[TensorFile, Entry] | None:
        """Where `name` lies; checkpoints of the bare model lack its prefix, and the other way round."""
        for candidate in (name, name.removeprefix(self._prefix), self._prefix + name):
            if candidate in self._where:
                return self._where[candidate]
        return None

    def locate(self, name: str, shape: tuple[int, ...] | None = None) -> tuple[TensorFile, Entry]:
        """As `find`, but it must be there, with that shape.

        Raises:
            ArtifactError: it is not.
        """
        found = self.find(name)
        if found is None:
            raise ArtifactError(
                f"{self.files.first_path} has no tensor {name!r}: the file is incomplete, or of another architecture "
                "or an older layout than its config.json says"
            )
        if shape is not None and found[1].shape != shape:
            raise ArtifactError(f"{found[0].path}: {name} has shape {found[1].shape}, its config.json says {shape}")
        return found

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor `name`."""
        return read_tensor(*self.locate(name, shape))


def _renames(model: Any) -> list[Any]:
    """The library's own list of older tensor names for this model; those that only rename."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # transformers before 5 has no such list, and files of today's names
        return []
    return [rule for rule in get_model_conversion_mapping(model) if not hasattr(rule, "operations")]


def _renamed(name: str, renames: list[Any]) -> str:
    for rule in renames:
        name = rule.rename_source_key(name)[0]
    return name


def load_float(model: Any, directory: Path, dtype: torch.dtype, compiled: bool = False) -> Source:
    """Put the checkpoint's weights in place, as `dtype`. The source must stay open: embedding rows are read from it."""
    source, plan = Source(model, directory), layout(model)
    for group in _largest_first(plan):
        modules = [plan.linears[name] for name in group]
        out, width = sum(shape_of(module)[0] for module in modules), shape_of(modules[0])[1]
        made_of = float_layer(out, width, dtype, compiled)
        weights = [
            oriented_weight(_linear_weight(source, plan, n, m).to(dtype), m, made_of.out_first)
            for n, m in zip(group, modules, strict=True)
        ]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights, dim=0 if made_of.out_first else 1)
        del weights
        bias = _joined_bias(source, plan, group)
        replace(model, group, made_of(weight.contiguous(), None if bias is None else bias.to(dtype)), plan)
        del weight
        release_free_memory()
    place_embedding(model, plan, source, dtype, scale=None)
    place_rest(model, plan, source, dtype)
    return source


def load_int8(model: Any, directory: Path) -> Source:
    """Put the artifact's INT8 weights in place; FP32 weights of linear layers are not in it."""
    source, plan = Source(model, directory), layout(model)
    if source.files.metadata.get("format") != FORMAT:
        raise ArtifactError(f"{source.files.first_path} is not an INT8 artifact of this version: convert it again")
    scales: dict[str, Tensor] = {}
    for group in _largest_first(plan):
        fills = []
        for name in group:
            key, shape = plan.source(f"{name}.weight"), shape_of(plan.linears[name])
            scales[key] = source.read(key + SCALE, shape[:1])
            file, entry = source.locate(key, shape)
            if entry.dtype != "I8":
                raise ArtifactError(f"{file.path}: {key} has type {entry.dtype}, not I8: convert it again")
            fills.append((file, entry))
        scale = torch.cat([scales[plan.source(f"{name}.weight")] for name in group])
        shape = (len(scale), shape_of(plan.linears[group[0]])[1])
        made = Int8Linear(shape, partial(_fill, fills), scale, _joined_bias(source, plan, group))
        replace(model, group, made, plan)
        release_free_memory()
    embedded = scales.get(plan.source(f"{plan.embedding}.weight"))
    place_embedding(model, plan, source, torch.float32, embedded)
    place_rest(model, plan, source, torch.float32)
    return source


def _fill(parts: list[tuple[TensorFile, Entry]], into: memoryview) -> None:
    """Read several tensors one behind the other."""
    done = 0
    for file, entry in parts:
        file.read_into(into[done : done + entry.nbytes], entry.offset)
        done += entry.nbytes


def release_free_memory() -> None:
    """Hand freed blocks back to the system: glibc keeps them, 25 MiB after loading distilgpt2 in INT8."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any | None:
    import ctypes

    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library: macOS, musl, Windows
        return None


def convert_int8(model: Any, checkpoint: Path, out: Path) -> None:
    """Write the INT8 artifact of `checkpoint`: one safetensors file, one tensor in memory at a time."""
    source, plan = Source(model, checkpoint), layout(model)
    linear: dict[str, nn.Module] = {}
    for name, module in plan.linears.items():
        linear.setdefault(plan.source(f"{name}.weight"), module)
    rest = other_tensors(model, source, plan)
    table: list[tuple[str, str, tuple[int, ...]]] = []
    for key, module in linear.items():
        table += [(key, "I8", shape_of(module)), (key + SCALE, "F32", shape_of(module)[:1])]
    table += [(name, "F32", source.locate(name)[1].shape) for name in rest]
    with TensorWriter(out / SINGLE_NAME, table, {"format": FORMAT}) as writer:
        for key, module in linear.items():
            weight = source.read(key).float()
            weight, scale = quantize(weight if _out_first(module) else weight.t().contiguous())
            writer.write(key, raw(weight))
            writer.write(key + SCALE, raw(scale))
        for name in rest:
            writer.write(name, raw(source.read(name).float().contiguous()))
    source.files.close()
    text = (checkpoint / "config.json").read_text(encoding="utf-8")
    (out / "config.json").write_text(text, encoding="utf-8")


def other_tensors(model: Any, source: Source, plan: Layout) -> list[str]:
    """Names of what an artifact holds beside the weights of linear layers, each tied tensor once."""
    linear = {plan.source(f"{name}.weight") for name in plan.linears}
    return [n for n, t in _state(model) if plan.source(n) == n and n not in linear and _needed(source, n, t)]


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and the buffers that checkpoints hold, by name, tied ones under every name."""
    yield from model.named_parameters(remove_duplicate=False)
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}".lstrip("."), buffer


def _needed(source: Source, name: str, tensor: Tensor) -> bool:
    """Whether a tensor has to be in the checkpoint; a buffer that is not there keeps what the model computed."""
    return isinstance(tensor, nn.Parameter) or source.find(name) is not None


def _out_first(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear)  # Conv1D keeps [in, out]


def shape_of(module: nn.Module) -> tuple[int, int]:
    """[out, in] of a linear layer that is not loaded yet."""
    first, second = module.weight.shape  # type: ignore[misc]
    return (first, second) if _out_first(module) else (second, first)


def _largest_first(plan: Layout) -> list[tuple[str, ...]]:
    """Largest first: its second copy, alive while it is packed, then falls where the others will lie."""

    def size(group: tuple[str, ...]) -> int:
        return sum(math.prod(shape_of(plan.linears[name])) for name in group)

    return sorted(plan.groups, key=size, reverse=True)


def oriented_weight(weight: Tensor, module: nn.Module, out_first: bool) -> Tensor:
    return weight if _out_first(module) == out_first else weight.t()


def _linear_weight(source: Source, plan: Layout, name: str, module: nn.Module) -> Tensor:
    return source.read(plan.source(f"{name}.weight"), tuple(module.weight.shape))  # type: ignore[arg-type]


def _joined_bias(source: Source, plan: Layout, group: tuple[str, ...]) -> Tensor | None:
    """The biases of a group, one behind the other; all of its layers have one, or none has."""
    shapes = {name: plan.linears[name].bias for name in group}
    if any(bias is None for bias in shapes.values()):
        return None
    return torch.cat([source.read(plan.source(f"{n}.bias"), tuple(b.shape)) for n, b in shapes.items()])  # type: ignore[arg-type]


def replace(model: nn.Module, group: tuple[str, ...], made: nn.Module, plan: Layout) -> None:
    made.eval()
    joined = Siblings(made, [shape_of(plan.linears[name])[0] for name in group])
    for index, name in enumerate(group):
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, made if len(group) == 1 else Sibling(joined, index).eval())


def place_embedding(model: Any, plan: Layout, source: Source, dtype: torch.dtype, scale: Tensor | None) -> None:
    if plan.embedding is None:
        return
    module = model.get_submodule(plan.embedding)
    file, entry = source.locate(plan.source(f"{plan.embedding}.weight"), tuple(module.weight.shape))
    read_rows_from(module, file, entry, scale, dtype)


def place_rest(model: Any, plan: Layout, source: Source, dtype: torch.dtype) -> None:
    done: dict[str, nn.Parameter] = {}
    for name, old in list(_state(model)):
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        if not _needed(source, name, old):
            continue
        if not isinstance(old, nn.Parameter):
            module._buffers[leaf] = source.read(name, tuple(old.shape)).to(old.dtype)
        elif old.is_meta:
            key = plan.source(name)
            if key not in done:
                value = source.read(key, tuple(old.shape))
                done[key] = nn.Parameter(value.to(dtype) if value.is_floating_point() else value, requires_grad=False)
            setattr(module, leaf, done[key])
