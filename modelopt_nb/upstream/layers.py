"""Describe linear layers and convolutions, as rows that need no model afterwards."""

import math
from collections.abc import Container, Set
from dataclasses import dataclass
from typing import Any, cast

import torch
from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry
from modelopt.torch.quantization.qtensor import QTensorWrapper
from torch import nn


@dataclass(frozen=True)
class LayerRow:
    """One layer: name, class (``kind``), its weight, and the names in ``torch.nn`` of its ``classes``."""

    name: str
    kind: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    is_convolution: bool
    is_pointwise: bool
    is_packed: bool
    is_known: bool  # ModelOpt has a quantized class for it
    shared_with: str  # another module with the same weight, or ""; the first of such layers has the bytes


@dataclass(frozen=True)
class ModelRows:
    """What a plan needs of a model. ``weightless``: modules with quantizers only; ``in_float32``: kept by its class."""

    kind: str
    rows: tuple[LayerRow, ...]
    modules: frozenset[str]
    weightless: tuple[str, ...]
    in_float32: frozenset[str]


def check_model(model: object, with_weights: bool = False) -> None:
    """Raise TypeError for what is no model, ValueError for one on the meta device if it must be ``with_weights``."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model is a {type(model).__name__}. Allowed: a model, such as a pipeline's transformer")
    if with_weights and any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f"model={type(model).__name__} is on the meta device. Allowed: a model with its weights")


def describe_layers(model: nn.Module, with_weights: bool = False) -> ModelRows:
    """Describe linear layers and convolutions of all classes; reads no weight. Raises ValueError for a bare layer."""
    check_model(model, with_weights)
    modules = dict(model.named_modules())
    layers = {n: m for n, m in modules.items() if isinstance(m, (nn.Linear, nn.modules.conv._ConvNd))}
    layers = {n: m for n, m in layers.items() if m._parameters.get("weight") is not None}
    if "" in layers:
        raise ValueError(f"model={type(model).__name__} is a layer. Allowed: a model that holds it, as nn.Sequential")
    weightless = (name for name, m in modules.items() if name not in layers and type(m) in QuantModuleRegistry)
    in_float32 = frozenset(getattr(model, "_keep_in_fp32_modules", None) or ())
    strict: Any = getattr(model, "_keep_in_fp32_modules_strict", None)
    if strict is not None:  # Transformers, which keeps the other ones only in float16
        in_float32 = frozenset(strict) | (frozenset() if cast("Any", model).dtype == torch.bfloat16 else in_float32)
    owners: dict[int, list[str]] = {}
    tied = getattr(model, "all_tied_weights_keys", None) or {}  # which Transformers ties after loading
    for name, module in modules.items():
        for key, parameter in module._parameters.items():
            root = tied.get(f"{name}.{key}") if parameter is not None and parameter.is_meta else None
            sharing = owners.setdefault(id(model.get_parameter(root) if root else parameter), [])
            owners[id(parameter)] = sharing
            sharing.append(name)
    rows = tuple(_row(name, layer, owners, layers, in_float32) for name, layer in layers.items())
    return ModelRows(type(model).__name__, rows, frozenset(modules), tuple(filter(None, weightless)), in_float32)


def _row(name: str, layer: nn.Module, sharing: dict[int, list], layers: Container[str], kept: Set[str]) -> LayerRow:
    weight: Any = layer.weight
    owners: list[str] = sharing[id(weight)]
    weight = weight.float() if weight.is_meta and kept & {*name.split(".")} else weight  # as it will be loaded
    first = name == next(owner for owner in owners if owner in layers)
    return LayerRow(
        name=name,
        kind=type(layer).__name__.removeprefix("RealQuant").removeprefix("Quant"),
        classes=tuple(f"nn.{c.__name__}" for c in type(layer).__mro__ if getattr(nn, c.__name__, None) is c),
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        bytes=math.prod(weight.shape) * weight.element_size() * first,
        is_convolution=isinstance(layer, nn.modules.conv._ConvNd),
        is_pointwise=is_pointwise(layer),
        is_packed=is_packed(layer),
        is_known=isinstance(layer, QuantModule) or type(layer) in QuantModuleRegistry,
        shared_with=next((owner for owner in owners if owner != name), ""),
    )


def is_packed(module: nn.Module) -> bool:
    """Return whether the weight of a layer is packed."""
    return isinstance(module._parameters.get("weight"), QTensorWrapper)


def has_packed_layers(model: object) -> bool:
    """Return whether ``model`` is a module with a packed layer in it."""
    return isinstance(model, nn.Module) and any(is_packed(module) for module in model.modules())


def is_pointwise(layer: nn.Module) -> bool:
    """Return whether a layer is a convolution with a 1x1 kernel: a linear layer over the channels."""
    if not isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or layer.groups != 1:
        return False
    unpadded = layer.padding in ("valid", (0,) * len(layer.kernel_size))
    return unpadded and {*layer.kernel_size, *layer.stride} == {1}


def _channels_last(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0].movedim(1, -1), *args[1:])


def _channels_second(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.movedim(-1, 1)


def make_linear(model: nn.Module, name: str, wrap: bool = False) -> None:
    """Replace a pointwise convolution by a linear layer with the same weight, bias, inputs and outputs.

    Hooks move the channels; with ``wrap`` they are on a container. A meta weight keeps its shape until it arrives.
    """
    convolution = model.get_submodule(name)
    assert isinstance(convolution, nn.modules.conv._ConvNd)
    linear = nn.Linear(convolution.in_channels, convolution.out_channels, device="meta")
    weight = convolution.weight if convolution.weight.is_meta else nn.Parameter(convolution.weight.detach().flatten(1))
    linear.weight = weight.requires_grad_(convolution.weight.requires_grad)
    linear.bias = cast("nn.Parameter", convolution.bias)
    vars(linear)["_convolution"] = type(convolution)  # for dequantize()
    module = nn.Sequential(linear) if wrap else linear
    module.register_forward_pre_hook(_channels_last)
    module.register_forward_hook(_channels_second)
    model.set_submodule(name, module.train(convolution.training))
