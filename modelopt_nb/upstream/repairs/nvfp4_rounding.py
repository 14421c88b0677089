"""Round to NVFP4 by a table."""

import functools
import sys
from typing import Any

import torch
from modelopt.torch.quantization.qtensor import NVFP4QTensor, nvfp4_tensor

from modelopt_nb.upstream.repairs.base import Patch, Repair
from modelopt_nb.upstream.repairs.sixteen_bits import CHUNK, DTYPES, by_table, largest_magnitude, largest_tensor, pair


class Nvfp4Rounding(Repair):
    """Look codes of NVFP4 up, a chunk of the weight at a time. Same bits; CUDA keeps ModelOpt's functions."""

    name = "nvfp4-rounding"
    broken = "NVFP4QTensor._cast_fp4 searches 7 bounds and compares with 3 for each weight: 0.1 GB/s, 16 bytes a weight"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/nvfp4_tensor.py, _cast_fp4"

    def needed(self) -> bool:
        return sys.byteorder == "little" and largest_tensor(NVFP4QTensor._cast_fp4, torch.ones(64)) > 2 * 64

    def patches(self) -> list[Patch]:
        original, cast, reduce = NVFP4QTensor.quantize, NVFP4QTensor._cast_fp4, nvfp4_tensor.reduce_block_amax

        @functools.wraps(reduce)
        def amax(input: torch.Tensor, block_sizes: dict[int, int]) -> torch.Tensor:
            if input.device.type != "cpu" or [*block_sizes] != [-1] or input.dtype not in DTYPES:
                return reduce(input, block_sizes)
            found = largest_magnitude(input.reshape(*input.shape[:-1], -1, block_sizes[-1]))
            return reduce(input, block_sizes) if found.isnan().any() else found  # NaN keeps its sign

        def codes(values: torch.Tensor) -> torch.Tensor:
            return cast(values.clone())  # it takes the sign off its argument

        @functools.wraps(original)
        def quantize(
            cls: Any, input: torch.Tensor, block_size: int, weights_scaling_factor: torch.Tensor | None = None,
            weights_scaling_factor_2: torch.Tensor | None = None, keep_high_precision: bool = False, **options: Any,
        ) -> tuple:  # fmt: skip
            given = weights_scaling_factor, weights_scaling_factor_2, keep_high_precision
            plain = input.device.type == "cpu" and type(input) in (torch.Tensor, torch.nn.Parameter)
            unusual = weights_scaling_factor is not None or keep_high_precision or input.dtype not in DTYPES
            if not plain or unusual or input.ndim < 2 or input.shape[-1] % block_size or block_size % 2:
                return original(input, block_size, *given, **options)
            double = weights_scaling_factor_2
            double = cls.get_weights_scaling_factor_2(input) if double is None else double
            blocks = input.detach().reshape(-1, block_size)
            scales = torch.empty(len(blocks), dtype=torch.float8_e4m3fn)
            packed = torch.empty(input.numel() // 2, dtype=torch.uint8)
            step = max(CHUNK // block_size, 1)
            for start in range(0, len(blocks), step):
                piece, rows = blocks[start : start + step], slice(start, start + step)
                found, _ = cls.get_weights_scaling_factor(piece, block_size, double)
                scales[rows] = found.view(-1)
                scaled = piece / (found.to(torch.float32) * double)
                packed[start * block_size // 2 : (start + step) * block_size // 2] = pair(
                    by_table(codes, scaled).view(-1), 0, 4
                )
            shape = input.shape
            wrapped = cls(shape, input.dtype, packed.view(*shape[:-1], shape[-1] // 2))
            return wrapped, scales.view(*shape[:-1], shape[-1] // block_size), double

        return [(NVFP4QTensor, "quantize", classmethod(quantize)), (nvfp4_tensor, "reduce_block_amax", amax)]
