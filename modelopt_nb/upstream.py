"""Repairs of ModelOpt and Diffusers: the one file that knows their insides.

Each repair says what is broken, in which versions and where upstream talks about it. `needed` finds out by trying,
so a repair steps aside on the day that upstream is fixed. Nothing is edited on disk.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn


class Repair(ABC):
    """One repair. ``applied`` tells whether it is on in this process."""

    name: str
    broken: str
    versions: str
    issue: str
    applied = False

    @abstractmethod
    def needed(self) -> bool:
        """Whether the installed release still has the fault, found by trying it."""

    @abstractmethod
    def apply(self) -> None:
        """Put the repair in place."""

    @abstractmethod
    def remove(self) -> None:
        """Take the repair out again."""


class Nf4ReadBack(Repair):
    """NF4 weights of more than one scale block can be read back."""

    name = "nf4-read-back"
    broken = "NF4QTensor.dequantize flattens the int8 block scales before dividing by the double scale of each row"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/nf4_tensor.py, _dequantize_scalers"

    def needed(self) -> bool:
        import torch
        from modelopt.torch.quantization.qtensor import NF4QTensor

        weight = torch.linspace(-1, 1, 64).reshape(2, 32)
        packed, scales = NF4QTensor.quantize(weight, 8, 2)
        scale, double, zeros = NF4QTensor.double_quantization(scales, 2, 8)
        blocks = {-1: 8, "scale_bits": 8, "scale_block_sizes": {-1: 2}}
        try:
            read = packed.dequantize(scale=scale, double_scale=double, scale_zeros=zeros, block_sizes=blocks)
        except RuntimeError:
            return True
        return not torch.allclose(read, weight, atol=0.2)

    def apply(self) -> None:
        from modelopt.torch.quantization.qtensor import NF4QTensor

        self._original = original = NF4QTensor.dequantize

        @functools.wraps(original)
        def dequantize(self: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
            # One row of scales for each double scale; upstream then has nothing left to divide by.
            scale, double = kwargs["scale"], kwargs["double_scale"]
            rows = scale.reshape(double.numel(), -1) / double.reshape(-1, 1)
            return original(self, dtype, **kwargs | {"scale": rows, "double_scale": double.new_ones(())})

        NF4QTensor.dequantize = dequantize

    def remove(self) -> None:
        from modelopt.torch.quantization.qtensor import NF4QTensor

        NF4QTensor.dequantize = self._original


class Fp8Zeros(Repair):
    """A weight, channel or block of zeros stays zeros in FP8."""

    name = "fp8-zeros"
    broken = "FP8QTensor.quantize divides zeros by a scale of zero, and the layer's outputs become NaN"
    versions = "nvidia-modelopt 0.47.0"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/fp8_tensor.py, quantize"

    def needed(self) -> bool:
        import torch
        from modelopt.torch.quantization.qtensor import FP8QTensor

        packed, scale = FP8QTensor.quantize(torch.zeros(2, 2))
        return bool(packed.dequantize(scale=scale).isnan().any())

    def apply(self) -> None:
        import torch
        from modelopt.torch.quantization.qtensor import FP8QTensor

        self._original = original = FP8QTensor.quantize

        @functools.wraps(original)
        def quantize(cls: type, input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
            packed, scales = original(input, *args, **kwargs)
            data = packed._quantized_data
            packed._quantized_data = torch.where(input == 0, torch.zeros_like(data), data)
            return packed, scales

        FP8QTensor.quantize = classmethod(quantize)

    def remove(self) -> None:
        from modelopt.torch.quantization.qtensor import FP8QTensor

        FP8QTensor.quantize = self._original


REPAIRS: tuple[Repair, ...] = (Nf4ReadBack(), Fp8Zeros())


def apply_repairs() -> None:
    """Put every repair in place that the installed releases need. Calling it again changes nothing."""
    for repair in REPAIRS:
        if not repair.applied and repair.needed():
            repair.apply()
            repair.applied = True


def drop_packed_amax(model: nn.Module) -> None:
    """Delete the amax buffers of packed weights.

    Packing turns each amax into a scale and keeps both, though reading a packed weight uses the scale alone: at one
    float32 for every block that is up to a bit a weight. ModelOpt 0.47.0 and earlier; not reported upstream.
    """
    for module in model.modules():
        if is_packed(module):
            for name in ("_amax", "_global_amax"):
                if hasattr(module.weight_quantizer, name):
                    delattr(module.weight_quantizer, name)


def is_packed(module: nn.Module) -> bool:
    """Whether ``module``'s weight is packed by ModelOpt."""
    from modelopt.torch.quantization.qtensor import QTensorWrapper

    return isinstance(getattr(module, "_parameters", {}).get("weight"), QTensorWrapper)


def read_packed(module: nn.Module) -> torch.Tensor:
    """The dequantized weight of a packed layer, as its forward pass reads it."""
    return module.weight_quantizer.dequantize(module.weight)


def unpack(module: nn.Module) -> None:
    """Replace a layer's packed weight by the dense weight it is read as; the layer's outputs stay the same."""
    import torch

    dense = read_packed(module)
    module.weight_quantizer.disable()
    del module._parameters["weight"]  # a packed layer packs or wraps whatever replaces a packed weight
    module.register_parameter("weight", torch.nn.Parameter(dense, requires_grad=False))


def repack(module: nn.Module, weight: torch.Tensor) -> None:
    """Undo :func:`unpack`: put a packed weight back."""
    del module._parameters["weight"]
    module.register_parameter("weight", weight)
    module.weight_quantizer.enable()


def quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights ModelOpt can pack, by name: linear layers and convolutions, not yet quantized or so."""
    from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry
    from torch import nn

    convolutions = nn.modules.conv._ConvNd
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, convolutions))
        and (isinstance(module, QuantModule) or type(module) in QuantModuleRegistry)
        and getattr(module, "weight", None) is not None
    }


def is_of_class(module: nn.Module, registered: str) -> bool:
    """Whether a ``parent_class`` entry of ModelOpt's configuration, such as ``nn.Conv2d``, means ``module``."""
    from torch import nn

    return registered.startswith("nn.") and isinstance(module, getattr(nn, registered[3:], ()))
