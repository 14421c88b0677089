"""Describe the layers that ModelOpt can pack, as rows that need no model afterwards."""

import math
from dataclasses import dataclass

import torch
from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry
from modelopt.torch.quantization.qtensor import QTensorWrapper
from torch import nn


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name, class, and the shape and dtype of its weight.

    ``classes`` are the names that a ``parent_class`` of ModelOpt's configuration can match, such as ``nn.Conv2d``.
    """

    name: str
    kind: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    is_convolution: bool
    is_pointwise: bool
    is_packed: bool

    @property
    def bytes(self) -> int:
        """Bytes of the dense weight."""
        return math.prod(self.shape) * self.itemsize


@dataclass(frozen=True)
class ModelRows:
    """Everything that a plan needs to know about a model.

    ``modules`` are the names of all modules; ``weightless`` those that ModelOpt quantizes although they have no weight;
    ``in_float32`` the parts of names that the model's class keeps in float32.
    """

    kind: str
    rows: tuple[LayerRow, ...]
    modules: frozenset[str]
    weightless: tuple[str, ...]
    in_float32: frozenset[str]


def describe_layers(model: nn.Module) -> ModelRows:
    """Describe the layers of ``model``. Works on the meta device; reads no weight."""
    layers = quantizable_layers(model)
    modules = dict(model.named_modules())
    weightless = [name for name, m in modules.items() if name and name not in layers and type(m) in QuantModuleRegistry]
    return ModelRows(
        kind=type(model).__name__,
        rows=tuple(_row(name, module) for name, module in layers.items()),
        modules=frozenset(modules),
        weightless=tuple(weightless),
        in_float32=frozenset(getattr(model, "_keep_in_fp32_modules", None) or ()),
    )


def _row(name: str, module: nn.Module) -> LayerRow:
    weight = weight_of(module)
    return LayerRow(
        name=name,
        kind=type(module).__name__.removeprefix("Quant"),
        classes=tuple(f"nn.{c.__name__}" for c in type(module).__mro__ if getattr(nn, c.__name__, None) is c),
        shape=tuple(weight.shape),
        dtype=str(weight.dtype).removeprefix("torch."),
        itemsize=weight.element_size(),
        is_convolution=isinstance(module, nn.modules.conv._ConvNd),
        is_pointwise=is_pointwise(module),
        is_packed=is_packed(module),
    )


def weight_of(module: nn.Module) -> torch.Tensor:
    """Return the weight of a layer, packed or not."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """List the linear layers and convolutions whose weights ModelOpt can pack, by name; packed ones too."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd))
        and (isinstance(module, QuantModule) or type(module) in QuantModuleRegistry)
        and module._parameters.get("weight") is not None
    }


def is_packed(module: nn.Module) -> bool:
    """Return whether the weight of a layer is packed."""
    return isinstance(getattr(module, "_parameters", {}).get("weight"), QTensorWrapper)


def has_packed_layers(model: object) -> bool:
    """Return whether ``model`` is a module with a packed layer in it."""
    modules = getattr(model, "modules", None)
    return modules is not None and any(is_packed(module) for module in modules())


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a convolution has a 1x1 kernel, so that it is a linear layer over the channels."""
    return (
        isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        and {*module.kernel_size, *module.stride} == {1}
        and module.padding in ("valid", (0,) * len(module.kernel_size))
        and module.groups == 1
    )


def _channels_last(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return (args[0].movedim(1, -1), *args[1:])


def _channels_second(module: nn.Module, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    return output.movedim(-1, 1)


def make_linear(model: nn.Module, name: str, wrap: bool = False) -> None:
    """Replace a pointwise convolution by a linear layer with the same weight, bias, inputs and outputs.

    Hooks move the channels, so ModelOpt sees an ordinary linear layer. A weight on the meta device keeps the
    convolution's shape until it arrives. With ``wrap`` the hooks are on a container around the linear layer, for callers
    that hook the layer itself.
    """
    convolution = model.get_submodule(name)
    assert isinstance(convolution, nn.modules.conv._ConvNd)
    linear = nn.Linear(convolution.in_channels, convolution.out_channels, device="meta")
    weight = convolution.weight if convolution.weight.is_meta else nn.Parameter(convolution.weight.detach().flatten(1))
    linear.weight, linear.bias = weight.requires_grad_(convolution.weight.requires_grad), convolution.bias
    module = nn.Sequential(linear) if wrap else linear
    module.register_forward_pre_hook(_channels_last)
    module.register_forward_hook(_channels_second)
    model.set_submodule(name, module.train(convolution.training))
