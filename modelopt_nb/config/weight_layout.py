"""Lay out a packed weight: its tensors, their shapes, dtypes and bytes. Pure arithmetic, without torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from modelopt_nb.config.quant_types import QUANT_TYPES, QuantType, ScaleShape

#: Bytes of one element, by dtype name.
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class WeightLayout:
    """Describe how the weight of one layer is packed: a quant type with its axis and block sizes.

    ``axis`` is the channel axis (None: one scale per tensor), ``block`` the block size in weights along ``block_axis``,
    ``scale_block`` the size of the scales' own blocks, ``cfg`` ModelOpt's quantizer attributes.
    """

    type: QuantType
    axis: int | None
    block: int | None
    block_axis: int
    scale_block: int | None
    cfg: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> "WeightLayout":
        """Read the ``cfg`` of a ModelOpt weight quantizer. Raises ValueError for other formats and 2-D blocks."""
        attributes = cfg if isinstance(cfg, Mapping) else {"num_bits": None}
        blocks = attributes.get("block_sizes") or {}
        axes = [axis for axis in blocks if isinstance(axis, int)]
        format = attributes.get("num_bits", 8), blocks.get("scale_bits")
        types = [t for t in QUANT_TYPES.values() if (t.num_bits, t.scale_bits) == format]
        if not types or len(axes) > 1:
            what = f"blocks along {len(axes)} axes" if len(axes) > 1 else "another format"
            what = "several quantizers" if isinstance(cfg, list) else what
            wrong = f"modelopt_config has the weight quantizer {cfg!r}: {what}, which cannot be packed here"
            raise ValueError(f"{wrong}. Allowed: the formats of {', '.join(QUANT_TYPES)}, with blocks along one axis")
        block, block_axis = (blocks[axes[0]], axes[0]) if axes else (None, -1)
        scale_block = next(iter((blocks.get("scale_block_sizes") or {}).values()), None)
        return cls(types[0], attributes.get("axis"), block, block_axis, scale_block, attributes)

    def tensors(
        self, shape: tuple[int, ...], dtype: str = "float32", scale: str | None = None
    ) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of ``weight`` and the quantizer's buffers, for a weight of ``shape`` and ``dtype``.

        Scales have the dtype ``scale``; by default the weight's, or float32 for float16, which has too small a range.
        """
        stored = shape if self.type.bits == 8 else (*shape[:-1], shape[-1] // 2)
        weight = ((math.prod(stored),) if self.type.flat else stored, self.type.stored)
        scale = scale or ("float32" if dtype == "float16" else dtype)
        scales = {name: (self._shape(rule, shape), kind or scale) for name, rule, kind in self.type.scales}
        return {"weight": weight, **scales}

    def _shape(self, rule: ScaleShape, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of scales: a grid like the weight's, a column of blocks, or padded rows of them."""
        if rule == "grid" and self.block is not None:
            axis = self.block_axis % len(shape)
            return (*shape[:axis], shape[axis] // self.block, *shape[axis + 1 :])
        if rule == "scalar" or (rule == "grid" and self.axis is None):
            return ()
        if rule == "grid":
            return tuple(size if i == (self.axis or 0) % len(shape) else 1 for i, size in enumerate(shape))
        blocks, row = math.prod(shape) // (self.block or 1), self.scale_block or 1
        return {"column": (blocks, 1), "row": (math.ceil(blocks / row),), "rows": (math.ceil(blocks / row), row)}[rule]

    def bytes(self, shape: tuple[int, ...], dtype: str = "float32") -> int:
        """Return the bytes of a packed weight: weights, scales and double scales."""
        return sum(math.prod(size) * ITEMSIZE[kind] for size, kind in self.tensors(shape, dtype).values())

    def why_dense(self, shape: tuple[int, ...], dtype: str = "float32") -> str:
        """Return why a weight of ``shape`` and ``dtype`` stays dense, or "" if it can be packed."""
        axis = self.block_axis if self.block is not None else self.axis or 0
        if not -len(shape) <= axis < len(shape):
            return f"it has no axis {axis}"
        if self.block is not None and shape[axis] % self.block:
            if len(shape) > 2 and axis == -1:
                more = "; pointwise_as_linear=True packs it if it has no stride" if set(shape[2:]) == {1} else ""
                return f"a convolution: blocks of {self.block} run along its kernel's width, {shape[-1]}{more}"
            return f"its axis {axis}, {shape[axis]}, is not a multiple of the block size {self.block}"
        dense, packed = math.prod(shape) * ITEMSIZE[dtype], self.bytes(shape, dtype)
        return f"it would not shrink: {dense} bytes dense, {packed} packed" if packed >= dense else ""
