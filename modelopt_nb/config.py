"""What you can ask for: quant types, their schemes, and the ModelOpt configuration that each becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusers import NVIDIAModelOptConfig


@dataclass(frozen=True)
class QuantType:
    """One row of :data:`QUANT_TYPES`: a number format and how ModelOpt scales it.

    ``num_bits`` is ModelOpt's: an int for integers and look-up tables, (exponent, mantissa) for floats.
    ``bits`` is what one packed weight takes. ``block`` and ``scale_block`` are the sizes used where none is asked
    for; None means that the type needs none. ``block_scale_bits`` is what one block's scale takes, ``scale_bits``
    what ModelOpt is told of it (None: a plain scale in the weights' dtype).
    """

    name: str
    num_bits: int | tuple[int, int]
    bits: int
    block: int | None = None
    scale_bits: int | tuple[int, int] | None = None
    scale_block: int | None = None
    dynamic_block: bool = False
    activations: bool = True

    @property
    def needs_block(self) -> bool:
        """Whether ModelOpt can pack the type only in blocks."""
        return self.block is not None


QUANT_TYPES: dict[str, QuantType] = {
    t.name: t
    for t in (
        QuantType("FP8", num_bits=(4, 3), bits=8),
        QuantType("INT8", num_bits=8, bits=8),
        # ModelOpt's own block: modelopt_recipes configs/numerics/int4_per_block.yaml
        QuantType("INT4", num_bits=4, bits=4, block=128, activations=False),
        # ModelOpt has no NF4 preset today; 64 and 256 are QLoRA's (arXiv 2305.14314) and its former default.
        QuantType("NF4", num_bits=4, bits=4, block=64, scale_bits=8, scale_block=256, activations=False),
        # modelopt_recipes configs/numerics/nvfp4.yaml
        QuantType("NVFP4", num_bits=(2, 1), bits=4, block=16, scale_bits=(4, 3), dynamic_block=True),
    )
}


@dataclass(frozen=True)
class WeightSpec:
    """How one layer's weight is packed, read from the ``cfg`` of a ModelOpt quantizer entry.

    ``axis`` is the channel axis (None: one scale a tensor), ``block`` the block size along the last axis.
    """

    num_bits: int | tuple[int, int]
    axis: int | None
    block: int | None
    scale_bits: int | tuple[int, int] | None
    scale_block: int | None

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> WeightSpec:
        blocks = cfg.get("block_sizes") or {}
        axes = [axis for axis in blocks if isinstance(axis, int)]
        return cls(
            num_bits=cfg.get("num_bits", 8),
            axis=cfg.get("axis"),
            block=blocks[axes[0]] if axes else None,
            scale_bits=blocks.get("scale_bits"),
            scale_block=next(iter((blocks.get("scale_block_sizes") or {}).values()), None),
        )

    def packed_bytes(self, shape: tuple[int, ...], scale_itemsize: int = 4) -> int:
        """The bytes that a weight of ``shape`` takes when packed: weights, scales and double scales.

        ``scale_itemsize`` is the bytes of one plain scale, which has the dtype of the weights.
        """
        numel = math.prod(shape)
        bits = self.num_bits if isinstance(self.num_bits, int) else 1 + sum(self.num_bits)
        if self.block is None:
            scales = 1 if self.axis is None else shape[self.axis]
            return numel * bits // 8 + scales * scale_itemsize
        blocks = numel // self.block
        if self.scale_bits == 8:  # NF4: int8 scales in padded rows, a double scale a row, one zero point
            rows = math.ceil(blocks / self.scale_block)
            return numel * bits // 8 + rows * self.scale_block + (rows + 1) * scale_itemsize
        if self.scale_bits == (4, 3):  # NVFP4: float8 scales, one float32 double scale
            return numel * bits // 8 + blocks + 4
        return numel * bits // 8 + blocks * scale_itemsize

    def why_not(self, shape: tuple[int, ...], itemsize: int) -> str | None:
        """Why a weight of ``shape`` (``itemsize`` bytes an element) stays dense, or None where it can be packed."""
        if self.block is not None and len(shape) > 2:
            return f"a convolution: blocks run along its kernel's width, {shape[-1]}"
        if self.block is not None and shape[-1] % self.block:
            return f"its last axis, {shape[-1]}, is not a multiple of the block size {self.block}"
        dense, packed = math.prod(shape) * itemsize, self.packed_bytes(shape, itemsize)
        if packed >= dense:
            return f"it would not shrink: {dense} bytes dense, {packed} packed"
        return None


def split_quant_type(quant_type: str) -> tuple[QuantType, QuantType | None]:
    """``"FP8"`` or ``"FP8_INT8"`` (weights, then activations) as rows of :data:`QUANT_TYPES`.

    Raises ValueError for an unknown type or an unknown half of a combined one.
    """
    if not isinstance(quant_type, str):
        raise TypeError(f"quant_type must be a string such as 'FP8', not {quant_type!r}")
    names = quant_type.split("_")
    for name in names:
        if name not in QUANT_TYPES or len(names) > 2:
            part = "" if len(names) == 1 else f" ({name!r} in it)" if name not in QUANT_TYPES else ""
            raise ValueError(
                f"quant_type={quant_type!r}{part} is not known. Allowed: {', '.join(QUANT_TYPES)}, or weights and "
                "activations as in 'FP8_INT8'"
            )
    return QUANT_TYPES[names[0]], QUANT_TYPES[names[1]] if len(names) == 2 else None


def _check_size(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
        raise ValueError(f"{name}={value!r} is not a block size. Allowed: a whole number of 2 or more, or None")


def _check_axis(name: str, value: Any, allowed: tuple[int, ...]) -> None:
    if value is not None and (isinstance(value, bool) or value not in allowed):
        raise ValueError(f"{name}={value!r} is not supported here. Allowed: {', '.join(map(str, allowed))} or None")


def weight_cfg(
    weights: QuantType,
    channel_quantize: int | None,
    block_quantize: int | None,
    scale_channel_quantize: int | None,
    scale_block_quantize: int | None,
) -> dict[str, Any]:
    """The ``cfg`` of ModelOpt's weight quantizer, after checking that the four arguments fit the type and each other."""
    _check_size("block_quantize", block_quantize)
    _check_size("scale_block_quantize", scale_block_quantize)
    blocked = weights.needs_block or block_quantize is not None
    _check_axis("channel_quantize", channel_quantize, (-1,) if blocked else (0,))
    if block_quantize is not None and channel_quantize is None:
        raise ValueError(
            f"block_quantize={block_quantize} needs channel_quantize=-1, the axis that its blocks run along"
        )
    scales = {"scale_channel_quantize": scale_channel_quantize, "scale_block_quantize": scale_block_quantize}
    if weights.scale_block is None:
        for name, value in scales.items():
            if value is not None:
                takers = ", ".join(t.name for t in QUANT_TYPES.values() if t.scale_block)
                raise ValueError(f"{name}={value} does not apply to {weights.name}. Allowed with: {takers}")
    _check_axis("scale_channel_quantize", scale_channel_quantize, (-1,))
    if scale_block_quantize is not None and block_quantize is None:
        raise ValueError(
            f"scale_block_quantize={scale_block_quantize} needs block_quantize, the blocks whose scales it groups"
        )
    if (scale_block_quantize is None) != (scale_channel_quantize is None):
        raise ValueError(f"{scales} need each other: give both or neither")
    for name, block in (("block_quantize", block_quantize), ("scale_block_quantize", scale_block_quantize)):
        if weights.bits == 4 and block is not None and block % 2:
            raise ValueError(f"{name}={block} is odd, and two {weights.name} weights share a byte. Allowed: even sizes")

    cfg: dict[str, Any] = {"num_bits": weights.num_bits}
    if not blocked:
        return cfg if channel_quantize is None else cfg | {"axis": channel_quantize}
    blocks: dict[Any, Any] = {-1: block_quantize or weights.block}
    if weights.dynamic_block:
        blocks["type"] = "dynamic"
    if weights.scale_bits is not None:
        blocks["scale_bits"] = weights.scale_bits
    if weights.scale_block is not None:
        blocks["scale_block_sizes"] = {-1: scale_block_quantize or weights.scale_block}
    return cfg | {"block_sizes": blocks}


def activation_cfg(activations: QuantType, channel_quantize: int | None, block_quantize: int | None) -> dict[str, Any]:
    """The ``cfg`` of ModelOpt's input quantizer: one static scale a tensor unless channels or blocks are asked for.

    With ``channel_quantize`` every token gets its own scale as it passes ("dynamic"), as in diffusers' config.
    """
    if not activations.activations:
        takers = ", ".join(t.name for t in QUANT_TYPES.values() if t.activations)
        raise ValueError(f"{activations.name} is for weights only. Allowed for activations: {takers}")
    cfg: dict[str, Any] = {"num_bits": activations.num_bits}
    if activations.needs_block:
        return cfg | {"block_sizes": {-1: activations.block, "type": "dynamic", "scale_bits": activations.scale_bits}}
    if block_quantize is not None or channel_quantize is not None:
        return cfg | {"type": "dynamic", "axis": None if channel_quantize is None else 0}
    return cfg


def excluded_modules(modules_to_not_convert: str | Iterable[str] | None) -> list[str]:
    """``modules_to_not_convert`` as a list of its own: a name, part of a name, or a shell-style pattern each."""
    if modules_to_not_convert is None:
        return []
    names = [modules_to_not_convert] if isinstance(modules_to_not_convert, str) else list(modules_to_not_convert)
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"modules_to_not_convert holds {name!r}. Allowed: module names or patterns, as strings")
    return names


def quant_cfg(weights: Mapping[str, Any], activations: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """ModelOpt's ordered list of quantizer entries: all off, then weights (and activations) on, then its own exclusions.

    Later entries win. Source: ``modelopt.torch.quantization.config``, "quant_cfg" (list form since ModelOpt 0.44).
    """
    import modelopt.torch.quantization as mtq

    entries: list[dict[str, Any]] = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": dict(weights)},
    ]
    if activations is not None:
        entries.append({"quantizer_name": "*input_quantizer", "cfg": dict(activations)})
    return entries + [dict(entry) for entry in mtq.config._default_disabled_quantizer_cfg]


def make_config(
    quant_type: str,
    *,
    modules_to_not_convert: str | Iterable[str] | None = None,
    weight_only: bool | None = None,
    channel_quantize: int | None = None,
    block_quantize: int | None = None,
    scale_channel_quantize: int | None = None,
    scale_block_quantize: int | None = None,
    algorithm: str | Mapping[str, Any] = "max",
    forward_loop: Callable[[Any], None] | None = None,
    disable_conv_quantization: bool = False,
) -> NVIDIAModelOptConfig:
    """The ModelOpt configuration for a quant type, valid on the installed ModelOpt.

    With the type alone: FP8 and INT8 have one scale a tensor; INT4 has blocks of 128, NF4 blocks of 64 whose scales
    are themselves int8 in blocks of 256, NVFP4 blocks of 16 with float8 scales (a 4-bit type has no meaning without a
    block, so its "weight only" scheme is ModelOpt's own default block).

    Args:
        quant_type: One of ``FP8, INT8, INT4, NF4, NVFP4``, or two joined by ``_``: weights, then activations.
        modules_to_not_convert: Names, parts of names or shell-style patterns of the layers to leave dense.
        weight_only: False quantizes activations too, in the weights' type unless ``quant_type`` names another.
        channel_quantize: Channel axis: 0 for one scale an output channel, -1 for the axis that blocks run along.
        block_quantize: Block size, in weights. Needs ``channel_quantize=-1``.
        scale_channel_quantize: Axis of the scales' own blocks, -1; NF4 only.
        scale_block_quantize: Size of the scales' own blocks, in scales; NF4 only.
        algorithm: ModelOpt's calibration algorithm: a name, or a dict with ``method`` and its arguments.
        forward_loop: Called with the model to calibrate activations.
        disable_conv_quantization: Leave every convolution dense.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what is allowed.

    Source: the table "Supported quantization types" of Diffusers' ModelOpt page.
    """
    from diffusers import NVIDIAModelOptConfig

    weights, activations = split_quant_type(quant_type)
    if weight_only is None:
        weight_only = activations is None
    elif weight_only and activations is not None:
        raise ValueError(f"weight_only=True contradicts quant_type={quant_type!r}, which names an activation type")
    if not weight_only and activations is None:
        activations = weights
    cfg = weight_cfg(weights, channel_quantize, block_quantize, scale_channel_quantize, scale_block_quantize)
    inputs = None if activations is None else activation_cfg(activations, channel_quantize, block_quantize)
    if not isinstance(algorithm, (str, Mapping)) or (isinstance(algorithm, Mapping) and "method" not in algorithm):
        raise ValueError(f"algorithm={algorithm!r} is not one. Allowed: a name such as 'max', or a dict with 'method'")
    if forward_loop is not None and not callable(forward_loop):
        raise TypeError(f"forward_loop={forward_loop!r} cannot be called with a model")
    return NVIDIAModelOptConfig(
        quant_type=quant_type,
        modules_to_not_convert=excluded_modules(modules_to_not_convert),
        weight_only=weight_only,
        channel_quantize=channel_quantize,
        block_quantize=block_quantize,
        scale_channel_quantize=scale_channel_quantize,
        scale_block_quantize=scale_block_quantize,
        forward_loop=forward_loop,
        disable_conv_quantization=disable_conv_quantization,
        modelopt_config={
            "quant_cfg": quant_cfg(cfg, inputs),
            "algorithm": {"method": algorithm} if isinstance(algorithm, str) else dict(algorithm),
        },
    )
