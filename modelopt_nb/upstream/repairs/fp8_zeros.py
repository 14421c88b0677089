"""Keep zeros in FP8."""

import functools
from typing import Any

import torch
from modelopt.torch.quantization.qtensor import FP8QTensor

from modelopt_nb.upstream.repairs.base import Patch, Repair


class Fp8Zeros(Repair):
    """Pack a weight, channel or block of zeros as zeros."""

    name = "fp8-zeros"
    broken = "FP8QTensor.quantize divides zeros by a scale of zero, and the layer's outputs become NaN"
    versions = "nvidia-modelopt 0.47.0"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/fp8_tensor.py, quantize"

    def needed(self) -> bool:
        packed, scale = FP8QTensor.quantize(torch.zeros(2, 2))
        return bool(packed.dequantize(scale=scale).isnan().any())

    def patches(self) -> list[Patch]:
        original = FP8QTensor.quantize

        @functools.wraps(original)
        def quantize(cls: type, input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
            packed, scales = original(input, *args, **kwargs)
            data = packed._quantized_data
            packed._quantized_data = torch.where(input == 0, torch.zeros_like(data), data)
            return packed, scales

        return [(FP8QTensor, "quantize", classmethod(quantize))]
