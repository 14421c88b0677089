"""Read back NF4 weights of more than one scale block."""

import functools
from typing import Any

import torch
from modelopt.torch.quantization.qtensor import NF4QTensor

from modelopt_nb.upstream.repairs.base import Patch, Repair


class Nf4ReadBack(Repair):
    """Keep NF4's block scales in rows, one row for each double scale."""

    name = "nf4-read-back"
    broken = "NF4QTensor.dequantize flattens the int8 block scales before dividing by the double scale of each row"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/nf4_tensor.py, _dequantize_scalers"

    def needed(self) -> bool:
        weight = torch.linspace(-1, 1, 64).reshape(2, 32)
        packed, scales = NF4QTensor.quantize(weight, 8, 2)
        scale, double, zeros = NF4QTensor.double_quantization(scales, 2, 8)
        blocks = {-1: 8, "scale_bits": 8, "scale_block_sizes": {-1: 2}}
        try:
            read = packed.dequantize(scale=scale, double_scale=double, scale_zeros=zeros, block_sizes=blocks)
        except RuntimeError:
            return True
        return not torch.allclose(read, weight, atol=0.2)

    def patches(self) -> list[Patch]:
        original = NF4QTensor.dequantize

        @functools.wraps(original)
        def dequantize(self: Any, dtype: Any = None, **kwargs: Any) -> torch.Tensor:
            # divide here, row by row; upstream then divides by one
            scale, double = kwargs["scale"], kwargs["double_scale"]
            rows = scale.reshape(double.numel(), -1) / double.reshape(-1, 1)
            dtype, kwargs = (
                dtype or self.metadata["dtype"],
                kwargs | {"scale": rows, "double_scale": double.new_ones(())},
            )
            return original(self, torch.promote_types(dtype, double.dtype), **kwargs).to(dtype)

        return [(NF4QTensor, "dequantize", dequantize)]
