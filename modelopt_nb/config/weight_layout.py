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
    """Describe how the weight of one layer is packed.

    Attributes:
        type: The row of :data:`QUANT_TYPES`.
        axis: Channel axis, one scale per index; None for one scale per tensor.
        block: Block size in weights along ``block_axis``; None for no blocks.
        scale_block: Size of the scales' own blocks, in scales.
        cfg: ModelOpt's quantizer attributes that it was read from.
    """

    type: QuantType
    axis: int | None
    block: int | None
    block_axis: int
    scale_block: int | None
    cfg: Mapping[str, Any] = field(compare=False, repr=False)

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> "WeightLayout":
        """Read the ``cfg`` of a ModelOpt weight quantizer.

        Raises:
            ValueError: A format that is no row of :data:`QUANT_TYPES`, blocks along two axes, or a list of quantizers.
        """
        blocks = cfg.get("block_sizes") or {} if isinstance(cfg, Mapping) else {}
        axes = [axis for axis in blocks if isinstance(axis, int)]
        known = [t for t in QUANT_TYPES.values() if isinstance(cfg, Mapping) and t.num_bits == cfg.get("num_bits", 8)]
        known = [t for t in known if t.scale_bits == blocks.get("scale_bits")]
        if not known or len(axes) > 1:
            raise ValueError(
                f"modelopt_config has the weight quantizer {cfg!r}, which cannot be packed here. Allowed: the formats of "
                f"{', '.join(QUANT_TYPES)}, with blocks along one axis"
            )
        return cls(
            type=known[0],
            axis=cfg.get("axis"),
            block=blocks[axes[0]] if axes else None,
            block_axis=axes[0] if axes else -1,
            scale_block=next(iter((blocks.get("scale_block_sizes") or {}).values()), None),
            cfg=cfg,
        )

    def tensors(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, tuple[tuple[int, ...], str]]:
        """Return shape and dtype of every tensor that a packed weight of ``shape`` and ``dtype`` consists of.

        ``weight`` holds the weights; the others are buffers of the layer's weight quantizer.
        """
        stored = shape if self.type.bits == 8 else (*shape[:-1], shape[-1] // 2)
        tensors = {"weight": ((math.prod(stored),) if self.type.flat else stored, self.type.stored)}
        return tensors | {n: (self._scale_shape(rule, shape), kind or dtype) for n, rule, kind in self.type.scales}

    def _scale_shape(self, rule: ScaleShape, shape: tuple[int, ...]) -> tuple[int, ...]:
        if rule == "scalar":
            return ()
        if rule == "grid":  # as the weight, with one element per scale
            if self.block is not None:
                axis = self.block_axis % len(shape)
                return (*shape[:axis], shape[axis] // self.block, *shape[axis + 1 :])
            if self.axis is None:
                return ()
            return tuple(size if i == self.axis % len(shape) else 1 for i, size in enumerate(shape))
        blocks = math.prod(shape) // (self.block or 1)
        if rule == "column":
            return (blocks, 1)
        rows = math.ceil(blocks / (self.scale_block or 1))
        return (rows,) if rule == "row" else (rows, self.scale_block or 1)

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
                return f"a convolution: blocks of {self.block} run along its kernel's width, {shape[-1]}"
            return f"its axis {axis}, {shape[axis]}, is not a multiple of the block size {self.block}"
        dense, packed = math.prod(shape) * ITEMSIZE[dtype], self.bytes(shape, dtype)
        return f"it would not shrink: {dense} bytes dense, {packed} packed" if packed >= dense else ""
