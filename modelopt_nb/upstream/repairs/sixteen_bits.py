"""Round by a table of what upstream's own function returns for each of the 65,536 values of 16 bits."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Weights rounded at once: what is computed of them stays in a CPU's cache.
CHUNK = 2**18
#: Dtypes that a table is made for.
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Rounding = Callable[[torch.Tensor], torch.Tensor]


def by_table(function: Rounding, values: torch.Tensor) -> torch.Tensor:
    """Return ``function(values)`` as uint8, for values of :data:`DTYPES` on a CPU.

    Of float32 the upper 16 bits count, rounded to odd: the last is set if a lower one is. So a value between two of 8
    bits differs from both, which is exact if ``function`` changes only at values of at most 7 bits.
    """
    if values.dtype == torch.float32:
        bits = values.view(torch.int32)
        index = bits & 0xFFFF
        index.add_(0xFFFF).bitwise_or_(bits).bitwise_right_shift_(16)
    else:
        index = values.view(torch.int16).to(torch.int32)
    table = _table(function, values.dtype)
    return table.index_select(0, index.add_(2**15).view(-1)).view(values.shape)


@functools.lru_cache(maxsize=32)
def _table(function: Rounding, dtype: torch.dtype) -> torch.Tensor:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.bfloat16 if dtype == torch.float32 else dtype).to(dtype)
    return function(values).to(torch.uint8)


def largest_magnitude(rows: torch.Tensor) -> torch.Tensor:
    """Return the amax of each row, faster than two reductions: 16-bit magnitudes have the order of their bits."""
    if rows.element_size() == 2:
        return (rows.view(torch.int16) & 0x7FFF).amax(-1).view(rows.dtype)
    return rows.abs().amax(-1)


def pair(first: torch.Tensor, shift: int, other: int) -> torch.Tensor:
    """Join two neighbouring codes of 4 bits in a byte: the first moved left by ``shift``, the second by ``other``."""
    both = first.view(torch.int16)  # little-endian: the second is in the upper byte
    return ((both << shift) | (both >> (8 - other))).to(torch.uint8)


class _Largest(TorchDispatchMode):
    """Remember the most elements that a tensor had which was made meanwhile."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if isinstance(found, torch.Tensor):
            self.elements = max(self.elements, found.numel())
        return found


def largest_tensor(function: Callable[..., Any], *args: Any) -> int:
    """Call a function and return the number of elements of the largest tensor that it makes."""
    with _Largest() as largest:
        function(*args)
    return largest.elements
