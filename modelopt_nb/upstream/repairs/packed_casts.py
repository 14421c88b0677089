"""Cast packed layers to another dtype."""

from collections.abc import Callable
from typing import Any

import torch
from modelopt.torch.quantization.nn import QuantModule, RealQuantLinear
from modelopt.torch.quantization.qtensor import FP8QTensor, QTensorWrapper
from torch import nn

from modelopt_nb.upstream.repairs.base import Patch, Repair

Function = Callable[[torch.Tensor], torch.Tensor]


class PackedCasts(Repair):
    """Let ``.to(dtype)``, ``.half()`` and layerwise casting change what a packed weight is read as, and nothing else.

    The stored weight and its scales move between devices with their bytes; biases and dense layers are cast.
    """

    name = "packed-casts"
    broken = "Module.to(dtype) casts float8 weights and all scales: weights become garbage, and scales lose precision"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/nn/modules/quant_linear.py, RealQuantLinear._apply"

    def needed(self) -> bool:
        layer = nn.ParameterDict({"weight": QTensorWrapper(FP8QTensor.quantize(torch.ones(2, 2))[0])})
        return QuantModule._apply(layer, torch.Tensor.half)["weight"].data.dtype != torch.float8_e4m3fn

    def patches(self) -> list[Patch]:
        return [(QuantModule, "_apply", _apply), (RealQuantLinear, "_apply", _apply)]


def _apply(self: Any, fn: Function, recurse: bool = True) -> nn.Module:
    weight = self._parameters.get("weight")
    if not isinstance(weight, QTensorWrapper):
        return nn.Module._apply(self, fn, recurse)
    buffers, metadata = self.weight_quantizer._buffers, weight.metadata
    scales = {name: buffers[name] for name in RealQuantLinear.list_of_scale_tensors if name in buffers}
    dtype = fn(torch.empty(0, dtype=metadata["dtype"], device=weight.device)).dtype
    data, moved = _move(fn, weight.data), {name: _move(fn, scale) for name, scale in scales.items()}
    dict.__setitem__(self._parameters, "weight", None)
    buffers.update(dict.fromkeys(scales))
    try:
        nn.Module._apply(self, fn, recurse)
        scales, metadata = moved, metadata | {"dtype": dtype}
        if torch._has_compatible_shallow_copy_type(weight, data):
            weight.data, weight.metadata = data, metadata
        else:  # to or from the meta device
            weight = QTensorWrapper(data, metadata)
    finally:
        dict.__setitem__(self._parameters, "weight", weight)
        buffers.update(scales)
    return self


def _move(fn: Function, tensor: torch.Tensor) -> torch.Tensor:
    """Apply what moves a module's tensors to the bytes of one. Casts spare them, but for that of ``Module.type``."""
    found = fn(tensor.detach().reshape(-1).view(torch.uint8))
    return tensor.to(found.device) if found.dtype != torch.uint8 else found.view(tensor.dtype).reshape(tensor.shape)
