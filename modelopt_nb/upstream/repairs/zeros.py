"""Keep zeros in FP8, NVFP4 and NF4."""

import functools
from typing import Any

import torch
from modelopt.torch.quantization.qtensor import FP8QTensor, NVFP4QTensor, nf4_tensor

from modelopt_nb.upstream.repairs.base import Patch, Repair


class Zeros(Repair):
    """Pack a weight, channel or block of zeros as zeros."""

    name = "zeros"
    broken = "zeros are divided by a scale of zero: FP8 and NVFP4 become NaN, a block of NF4 the table's first value"
    versions = "nvidia-modelopt 0.47.0"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor: fp8_tensor.py, nvfp4_tensor.py, nf4_tensor.py"

    def needed(self) -> bool:
        packed, scale = FP8QTensor.quantize(torch.zeros(1, 16))
        scales, _ = NVFP4QTensor.get_weights_scaling_factor(torch.zeros(1, 16), 16)
        return bool(packed.dequantize(scale=scale).isnan().any() or scales.float().isnan().any())

    def patches(self) -> list[Patch]:
        original, nearest = FP8QTensor.quantize, nf4_tensor._quantize_to_nearest_lut

        @functools.wraps(original)
        def quantize(cls: type, input: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, torch.Tensor]:
            packed, scales = original(input, *args, **kwargs)
            data = packed._quantized_data
            packed._quantized_data = torch.where(input == 0, torch.zeros_like(data), data)
            return packed, scales

        def nonzero(name: str) -> Patch:
            scale = getattr(NVFP4QTensor, name)
            return NVFP4QTensor, name, classmethod(lambda cls, source: (s := scale(source)).masked_fill(s == 0, 1))

        return [
            (FP8QTensor, "quantize", classmethod(quantize)),
            nonzero("get_weights_scaling_factor_2"),
            nonzero("get_weights_scaling_factor_2_from_quantizer"),
            (nf4_tensor, "_quantize_to_nearest_lut", lambda x, table: nearest(x.nan_to_num(nan=0.0), table)),
        ]
