"""Round to NF4 by a table."""

import functools
import sys
from collections.abc import Callable

import torch
from modelopt.torch.quantization.qtensor import NF4QTensor, nf4_tensor

from modelopt_nb.upstream.repairs.base import Patch, Repair
from modelopt_nb.upstream.repairs.sixteen_bits import (
    CHUNK,
    DTYPES,
    Rounding,
    by_table,
    largest_magnitude,
    largest_tensor,
    pair,
)


class Nf4Rounding(Repair):
    """Look codes of NF4 up, a chunk of the weight at a time. Same bits; CUDA keeps ModelOpt's kernel."""

    name = "nf4-rounding"
    broken = "NF4QTensor.quantize finds the nearest value by 16 differences a weight: 0.03 GB/s, 16 times the memory"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/nf4_tensor.py, _quantize_to_nearest_lut"

    def needed(self) -> bool:
        return sys.byteorder == "little" and largest_tensor(NF4QTensor.quantize, torch.ones(64), 8, 2) > 4 * 64

    def patches(self) -> list[Patch]:
        original = NF4QTensor.quantize

        @functools.wraps(original)
        def quantize(cls: type, input: torch.Tensor, block_size: int, scale_block_size: int | None = None) -> tuple:
            plain = (
                input.device.type == "cpu"
                and input.dtype in DTYPES
                and type(input) in (torch.Tensor, torch.nn.Parameter)
            )
            if not plain or input.numel() % block_size or block_size % 2:
                return original(input, block_size, scale_block_size)
            blocks = input.detach().reshape(-1, block_size)
            scales = torch.empty(len(blocks), dtype=input.dtype)
            packed = torch.empty(input.numel() // 2, dtype=torch.uint8)
            step = max(CHUNK // block_size, 1)
            for start in range(0, len(blocks), step):
                piece, rows = blocks[start : start + step], slice(start, start + step)
                scales[rows] = amax = largest_magnitude(piece)
                codes = _nearest(piece / amax.unsqueeze(-1))
                packed[start * block_size // 2 : (start + step) * block_size // 2] = pair(codes, 4, 0)
            scales = nf4_tensor.reduce_block_padding(scales, block_sizes={-1: scale_block_size})
            return cls(input.shape, input.dtype, packed), scales

        return [(NF4QTensor, "quantize", classmethod(quantize))]


@functools.lru_cache(maxsize=32)
def _search(function: Callable[..., torch.Tensor], dtype: torch.dtype) -> Rounding:
    """Return upstream's search for the nearest value of NF4, of scaled weights of ``dtype``."""
    values = nf4_tensor.nf4_table.to(dtype)
    return lambda scaled: function(scaled.flatten(), values)


#: NF4's values are multiples of 2**-11, and what lies between two neighbours of 2**-12.
_STEPS = 2**12


@functools.lru_cache(maxsize=4)
def _float32_table(search: Rounding) -> torch.Tensor:
    return search(torch.arange(-_STEPS, _STEPS + 1) / _STEPS).to(torch.uint8)


def _nearest(scaled: torch.Tensor) -> torch.Tensor:
    """Return the codes of weights over their block's largest.

    Of two values equally near, the search takes the lower; so a float32 has the code of the next multiple of 2**-12 above.
    """
    search = _search(nf4_tensor._quantize_to_nearest_lut, scaled.dtype)
    if scaled.dtype != torch.float32:
        return by_table(search, scaled).view(-1)
    low, high = scaled.aminmax()
    if not (low >= -1 and high <= 1):  # NaN of a block of zeros, for example
        return search(scaled).to(torch.uint8)
    index = (scaled * _STEPS).ceil_().add_(_STEPS).to(torch.int32)
    return _float32_table(search).index_select(0, index.view(-1))
