"""Schemes: a quant type with the axes and block sizes of its scales."""

from dataclasses import dataclass
from typing import Any

from modelopt_nb.config.quant_types import QUANT_TYPES, QuantType

_BLOCK_32, _BLOCK_128 = ({"channel_quantize": -1, "block_quantize": size} for size in (32, 128))

#: Short names for the schemes of the document's table, and what each stands for.
SCHEMES: dict[str, tuple[str, dict[str, int]]] = {
    "FP8": ("FP8", {}),
    "FP8 channel": ("FP8", {"channel_quantize": 0}),
    "FP8 block": ("FP8", _BLOCK_128),
    "INT8": ("INT8", {}),
    "INT8 channel": ("INT8", {"channel_quantize": 0}),
    "INT8 block": ("INT8", _BLOCK_128),
    "INT4": ("INT4", {}),
    "INT4 block": ("INT4", _BLOCK_32),
    "NF4": ("NF4", {}),
    "NF4 double block": ("NF4", _BLOCK_32 | {"scale_channel_quantize": -1, "scale_block_quantize": 256}),
    "NVFP4": ("NVFP4", {}),
    "NVFP4 block": ("NVFP4", {"channel_quantize": -1, "block_quantize": 16}),
}


@dataclass(frozen=True)
class Blocks:
    """The four arguments that choose axes and block sizes."""

    channel_quantize: int | None = None
    block_quantize: int | None = None
    scale_channel_quantize: int | None = None
    scale_block_quantize: int | None = None

    def resolve(self, weights: QuantType) -> "Blocks":
        """Fill in the defaults of a type. Raises ValueError if the arguments do not fit the type or each other."""
        self._check(weights)
        scale_block = self.scale_block_quantize or weights.scale_block
        filled = Blocks(-1, self.block_quantize or weights.block, -1 if weights.scale_block else None, scale_block)
        return filled if weights.needs_block else self

    def _check(self, weights: QuantType) -> None:
        block, scale_block = self.block_quantize, self.scale_block_quantize
        for name, value in {"block_quantize": block, "scale_block_quantize": scale_block}.items():
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
                raise ValueError(f"{name}={value!r} is not a block size. Allowed: a whole number of 2 or more, or None")
        axes = {"channel_quantize": (-1,) if weights.needs_block else (0, 1, -1), "scale_channel_quantize": (-1,)}
        for name, allowed in axes.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or value not in allowed):
                shown = ", ".join(map(str, allowed))
                raise ValueError(f"{name}={value!r} is not supported here. Allowed: {shown} or None")
        if block is not None and self.channel_quantize is None:
            raise ValueError(f"block_quantize={block} needs channel_quantize, the axis that its blocks run along")
        for name in ("scale_channel_quantize", "scale_block_quantize"):
            value = getattr(self, name)
            if value is not None and weights.scale_block is None:
                takers = ", ".join(t.name for t in QUANT_TYPES.values() if t.scale_block)
                raise ValueError(f"{name}={value} does not apply to {weights.name}. Allowed with: {takers}")
            if value is not None and block is None:
                raise ValueError(f"{name}={value} needs block_quantize, the blocks whose scales it groups")
        if (scale_block is None) != (self.scale_channel_quantize is None):
            given = f"scale_channel_quantize={self.scale_channel_quantize} and scale_block_quantize={scale_block}"
            raise ValueError(f"{given} need each other: give both or neither")
        if weights.bits == 4 and block is not None and block % 2:
            odd = f"block_quantize={block} is odd, and two {weights.name} weights share a byte"
            raise ValueError(f"{odd}. Allowed: even sizes")

    def weight_cfg(self, weights: QuantType) -> dict[str, Any]:
        """Return the ``cfg`` of ModelOpt's weight quantizer; of resolved blocks."""
        cfg: dict[str, Any] = {"num_bits": weights.num_bits}
        if self.block_quantize is None:
            return cfg if self.channel_quantize is None else cfg | {"axis": self.channel_quantize}
        sizes: dict[Any, Any] = {self.channel_quantize: self.block_quantize}
        if weights.dynamic_block:
            sizes["type"] = "dynamic"
        if weights.scale_bits is not None:
            sizes["scale_bits"] = weights.scale_bits
        if self.scale_block_quantize is not None:
            sizes["scale_block_sizes"] = {self.scale_channel_quantize: self.scale_block_quantize}
        return cfg | {"block_sizes": sizes}
