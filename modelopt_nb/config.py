"""What you can ask for: quant types, their schemes, and the ModelOpt configuration that each becomes."""

from __future__ import annotations

import dataclasses
import fnmatch
import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping
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


#: Bytes of one element, by the name of its dtype.
ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class WeightSpec:
    """How one layer's weight is packed, read from the ``cfg`` of a ModelOpt quantizer entry.

    ``axis`` is the channel axis (None: one scale a tensor); ``block`` is the block size along ``block_axis``.
    """

    num_bits: int | tuple[int, int]
    axis: int | None
    block: int | None
    block_axis: int
    scale_bits: int | tuple[int, int] | None
    scale_block: int | None
    cfg: Any = dataclasses.field(default=None, compare=False, hash=False)

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> WeightSpec:
        blocks = cfg.get("block_sizes") or {}
        axes = [axis for axis in blocks if isinstance(axis, int)]
        return cls(
            num_bits=cfg.get("num_bits", 8),
            axis=cfg.get("axis"),
            block=blocks[axes[0]] if axes else None,
            block_axis=axes[0] if axes else -1,
            scale_bits=blocks.get("scale_bits"),
            scale_block=next(iter((blocks.get("scale_block_sizes") or {}).values()), None),
            cfg=cfg,
        )

    def packed_tensors(self, shape: tuple[int, ...], dtype: str = "float32") -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of every tensor that a packed weight of ``shape`` and ``dtype`` is made of, by name.

        ``weight`` holds the weights, ``_scale``, ``_double_scale`` and ``_scale_zeros`` are the quantizer's buffers.
        """
        if self.num_bits == 4 and self.scale_bits == 8:  # NF4: int8 scales in padded rows, a double scale a row
            rows = math.ceil(math.prod(shape) / self.block / self.scale_block)
            return {
                "weight": ((math.prod(shape) // 2,), "uint8"),
                "_scale": ((rows, self.scale_block), "int8"),
                "_double_scale": ((rows,), dtype),
                "_scale_zeros": ((), dtype),
            }
        halved = (*shape[:-1], shape[-1] // 2)
        if self.num_bits == 4:
            return {"weight": (halved, "uint8"), "_scale": ((math.prod(shape) // self.block, 1), dtype)}
        scales = [1] * len(shape)
        if self.block is not None:
            scales = list(shape)
            scales[self.block_axis] //= self.block
        elif self.axis is not None:
            scales[self.axis] = shape[self.axis]
        if self.num_bits == (2, 1):
            return {
                "weight": (halved, "uint8"),
                "_scale": (tuple(scales), "float8_e4m3fn"),
                "_double_scale": ((), "float32"),
            }
        per_tensor = self.block is None and self.axis is None
        return {
            "weight": (tuple(shape), "int8" if self.num_bits == 8 else "float8_e4m3fn"),
            "_scale": (() if per_tensor else tuple(scales), dtype),
        }

    def packed_bytes(self, shape: tuple[int, ...], dtype: str = "float32") -> int:
        """The bytes that a weight takes when packed: weights, scales and double scales."""
        tensors = self.packed_tensors(shape, dtype).values()
        return sum(math.prod(size) * ITEMSIZE[kind] for size, kind in tensors)

    def why_not(self, shape: tuple[int, ...], dtype: str = "float32") -> str | None:
        """Why a weight of ``shape`` and ``dtype`` stays dense, or None where it can be packed."""
        axis = self.block_axis if self.block is not None else self.axis or 0
        if not -len(shape) <= axis < len(shape):
            return f"it has no axis {axis}"
        if self.block is not None and shape[axis] % self.block:
            if len(shape) > 2 and axis == -1:
                return f"a convolution: blocks of {self.block} run along its kernel's width, {shape[-1]}"
            return f"its axis {axis}, {shape[axis]}, is not a multiple of the block size {self.block}"
        dense, packed = math.prod(shape) * ITEMSIZE[dtype], self.packed_bytes(shape, dtype)
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


def only_weights(quant_type: str, weight_only: bool | None) -> bool:
    """``weight_only``, or where it is None whether ``quant_type`` names no activation type."""
    activations = split_quant_type(quant_type)[1]
    if weight_only and activations is not None:
        raise ValueError(f"weight_only=True contradicts quant_type={quant_type!r}, which names an activation type")
    return activations is None if weight_only is None else weight_only


def _check_size(name: str, value: Any) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 2):
        raise ValueError(f"{name}={value!r} is not a block size. Allowed: a whole number of 2 or more, or None")


def _check_axis(name: str, value: Any, allowed: tuple[int, ...]) -> None:
    if value is not None and (isinstance(value, bool) or value not in allowed):
        raise ValueError(f"{name}={value!r} is not supported here. Allowed: {', '.join(map(str, allowed))} or None")


@dataclass(frozen=True)
class Blocks:
    """The four arguments that choose axes and block sizes, with the type's own defaults filled in."""

    channel_quantize: int | None
    block_quantize: int | None
    scale_channel_quantize: int | None
    scale_block_quantize: int | None


def resolve_blocks(weights: QuantType, asked: Blocks) -> Blocks:
    """``asked`` with the type's defaults, after checking that the arguments fit the type and each other."""
    _check_size("block_quantize", asked.block_quantize)
    _check_size("scale_block_quantize", asked.scale_block_quantize)
    _check_axis("channel_quantize", asked.channel_quantize, (-1,) if weights.needs_block else (0, 1, -1))
    _check_axis("scale_channel_quantize", asked.scale_channel_quantize, (-1,))
    if asked.block_quantize is not None and asked.channel_quantize is None:
        raise ValueError(
            f"block_quantize={asked.block_quantize} needs channel_quantize, the axis that its blocks run along"
        )
    for name in ("scale_channel_quantize", "scale_block_quantize"):
        value = getattr(asked, name)
        if value is not None and weights.scale_block is None:
            takers = ", ".join(t.name for t in QUANT_TYPES.values() if t.scale_block)
            raise ValueError(f"{name}={value} does not apply to {weights.name}. Allowed with: {takers}")
        if value is not None and asked.block_quantize is None:
            raise ValueError(f"{name}={value} needs block_quantize, the blocks whose scales it groups")
    if (asked.scale_block_quantize is None) != (asked.scale_channel_quantize is None):
        raise ValueError(
            f"scale_channel_quantize={asked.scale_channel_quantize} and scale_block_quantize={asked.scale_block_quantize} "
            "need each other: give both or neither"
        )
    if weights.bits == 4 and asked.block_quantize is not None and asked.block_quantize % 2:
        raise ValueError(
            f"block_quantize={asked.block_quantize} is odd, and two {weights.name} weights share a byte. Allowed: even sizes"
        )
    if not weights.needs_block:
        return asked
    return Blocks(
        channel_quantize=-1,
        block_quantize=asked.block_quantize or weights.block,
        scale_channel_quantize=-1 if weights.scale_block else None,
        scale_block_quantize=asked.scale_block_quantize or weights.scale_block,
    )


def weight_cfg(weights: QuantType, blocks: Blocks) -> dict[str, Any]:
    """The ``cfg`` of ModelOpt's weight quantizer, from :func:`resolve_blocks`."""
    cfg: dict[str, Any] = {"num_bits": weights.num_bits}
    if blocks.block_quantize is None:
        return cfg if blocks.channel_quantize is None else cfg | {"axis": blocks.channel_quantize}
    sizes: dict[Any, Any] = {blocks.channel_quantize: blocks.block_quantize}
    if weights.dynamic_block:
        sizes["type"] = "dynamic"
    if weights.scale_bits is not None:
        sizes["scale_bits"] = weights.scale_bits
    if blocks.scale_block_quantize is not None:
        sizes["scale_block_sizes"] = {blocks.scale_channel_quantize: blocks.scale_block_quantize}
    return cfg | {"block_sizes": sizes}


#: How activations can be scaled, and the ``cfg`` of that: for linear layers, and for convolutions (channels are axis 1).
#: Static scales are found by calibration, dynamic ones as an input passes; a token is a row of a linear layer's input.
ACTIVATION_SCALES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "static tensor": ({}, {}),
    "static channel": ({"axis": -1}, {"axis": 1}),
    "dynamic tensor": ({"type": "dynamic"}, {"type": "dynamic"}),
    "dynamic token": ({"type": "dynamic", "block_sizes": {-1: None}}, {"type": "dynamic"}),
}
CALIBRATORS = ("max", "percentile", "entropy", "mse")


def activation_entries(
    activations: QuantType, blocks: Blocks, scale: str | None = None, calibrator: str = "max"
) -> list[dict[str, Any]]:
    """ModelOpt's input quantizers. Without a ``scale``, as Diffusers has it: one static scale a tensor, or where the weights
    have channels or blocks one for every token as it passes.
    """
    if not activations.activations:
        takers = ", ".join(t.name for t in QUANT_TYPES.values() if t.activations)
        raise ValueError(f"quant_type: {activations.name} is for weights only. Allowed for activations: {takers}")
    if scale is not None and scale not in ACTIVATION_SCALES:
        raise ValueError(f"activation_scale={scale!r} is not known. Allowed: {', '.join(ACTIVATION_SCALES)}")
    if calibrator not in CALIBRATORS:
        raise ValueError(f"activation_calibrator={calibrator!r} is not known. Allowed: {', '.join(CALIBRATORS)}")
    cfg: dict[str, Any] = {"num_bits": activations.num_bits}
    chosen = scale or ("static tensor" if blocks.channel_quantize is None else "dynamic token")
    if calibrator != "max" and (chosen != "static tensor" or activations.needs_block):
        raise ValueError(
            f"activation_calibrator={calibrator!r} makes a histogram of a whole tensor, and the scale is {chosen!r}. Allowed "
            "with it: activation_scale='static tensor'"
        )
    if activations.needs_block:
        if scale is not None:
            raise ValueError(
                f"activation_scale={scale!r} does not apply to {activations.name}, whose blocks are scaled as they pass"
            )
        cfg["block_sizes"] = {-1: activations.block, "type": "dynamic", "scale_bits": activations.scale_bits}
        return [{"quantizer_name": "*input_quantizer", "cfg": cfg}]
    if calibrator != "max":
        cfg["calibrator"] = "histogram"
    linear, convolution = ACTIVATION_SCALES[chosen]
    entries = [{"quantizer_name": "*input_quantizer", "cfg": cfg | linear}]
    if convolution != linear:
        for parent in ("nn.Conv1d", "nn.Conv2d", "nn.Conv3d"):
            entries.append({"quantizer_name": "*input_quantizer", "parent_class": parent, "cfg": cfg | convolution})
    return entries


def patterns(argument: str, value: str | Iterable[str] | None) -> list[str]:
    """``value`` as a list of its own; each entry names layers as :func:`names_layer` says."""
    if value is None:
        return []
    entries = [value] if isinstance(value, str) else list(value)
    for entry in entries:
        if not isinstance(entry, str) or not entry.strip():
            raise ValueError(f"{argument} holds {entry!r}. Allowed: module names or patterns, as strings")
    return entries


def names_layer(pattern: str, layer: str, modules: Container[str]) -> bool:
    """Whether ``pattern`` means the layer of that name, in a model that has these ``modules``.

    The one pattern language of this package: the whole name of a module means the module and all that is in it; anything
    else is a part of a name, or a shell-style pattern of one, as in Diffusers' ``modules_to_not_convert``.
    """
    if pattern in modules:
        return f"{layer}.".startswith(f"{pattern}.")
    return fnmatch.fnmatchcase(f"{layer}.weight_quantizer", f"*{pattern}*")


def mixed_schemes(per_layer: Mapping[str, str | Iterable[str]] | None) -> dict[str, list[str]]:
    """``per_layer`` of :func:`make_config` as a dict of its own. Raises ValueError for an unknown scheme or an empty list."""
    checked = {}
    for scheme, value in (per_layer or {}).items():
        make_config(scheme)
        checked[scheme] = patterns(f"per_layer[{scheme!r}]", value)
        if not checked[scheme]:
            raise ValueError(
                f"per_layer[{scheme!r}] is empty. Allowed: names or patterns of the layers that take the scheme"
            )
    return checked


def quant_cfg(weights: Mapping[str, Any], activations: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """ModelOpt's ordered list of quantizer entries: all off, then weights and activations on, then its own exclusions.

    Later entries win. Source: ``modelopt.torch.quantization.config``, "quant_cfg" (list form since ModelOpt 0.44).
    """
    import modelopt.torch.quantization as mtq

    on = [{"quantizer_name": "*weight_quantizer", "cfg": dict(weights)}, *map(dict, activations)]
    off = [dict(entry) for entry in mtq.config._default_disabled_quantizer_cfg]
    return [{"quantizer_name": "*", "enable": False}, *on, *off]


def calibration_algorithm(algorithm: str | Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """``algorithm`` and its ``arguments`` as the dict that ModelOpt takes, checked against ModelOpt's own classes.

    Raises ValueError for an unknown algorithm and for an argument that it does not know or allow.
    """
    from modelopt.torch.quantization.config import QuantizeAlgorithmConfig

    if not isinstance(algorithm, (str, Mapping)) or (isinstance(algorithm, Mapping) and "method" not in algorithm):
        raise ValueError(f"algorithm={algorithm!r} is not one. Allowed: a name such as 'max', or a dict with 'method'")
    chosen = {"method": algorithm} if isinstance(algorithm, str) else dict(algorithm)
    chosen |= arguments
    known: dict[str, type] = {}
    classes = [QuantizeAlgorithmConfig]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        known[cls.model_fields["method"].default] = cls
    known.pop(None, None)
    if chosen["method"] not in known:
        raise ValueError(
            f"algorithm={chosen['method']!r} is not known to ModelOpt. Allowed: {', '.join(sorted(known))}"
        )
    cls = known[chosen["method"]]
    for name, value in chosen.items():
        if name not in cls.model_fields:
            allowed = ", ".join(f for f in cls.model_fields if f != "method")
            raise ValueError(
                f"{name}={value!r} is not an argument of algorithm {chosen['method']!r}. Allowed: {allowed}"
            )
    try:
        cls(**chosen)
    except ValueError as error:
        raise ValueError(
            f"algorithm {chosen['method']!r} does not take {dict(arguments) or chosen}: {error}"
        ) from error
    return chosen


def modelopt_config(
    quant_type: str,
    weight_only: bool,
    asked: Blocks,
    algorithm: str | Mapping[str, Any],
    arguments: Mapping[str, Any],
    activation_scale: str | None = None,
    activation_calibrator: str = "max",
) -> tuple[Blocks, dict[str, Any]]:
    """What ModelOpt takes for a quant type, and the axes and block sizes in it. Raises as :func:`make_config` does."""
    weights, activations = split_quant_type(quant_type)
    blocks = resolve_blocks(weights, asked)
    chosen = calibration_algorithm(algorithm, arguments)
    if weight_only and (activation_scale is not None or activation_calibrator != "max"):
        raise ValueError(
            f"activation_scale={activation_scale!r} and activation_calibrator={activation_calibrator!r} are for quantized "
            f"activations, and quant_type={quant_type!r} has none. Allowed with weight_only=False"
        )
    inputs = (
        []
        if weight_only
        else activation_entries(activations or weights, asked, activation_scale, activation_calibrator)
    )
    return blocks, {"quant_cfg": quant_cfg(weight_cfg(weights, blocks), inputs), "algorithm": chosen}


_BLOCK = {"channel_quantize": -1, "block_quantize": 32}

#: Short names for the schemes of the doc's table, and what each stands for.
SCHEMES: dict[str, tuple[str, dict[str, int]]] = {
    "FP8": ("FP8", {}),
    "FP8 channel": ("FP8", {"channel_quantize": 0}),
    "FP8 block": ("FP8", {"channel_quantize": -1, "block_quantize": 128}),
    "INT8": ("INT8", {}),
    "INT8 channel": ("INT8", {"channel_quantize": 0}),
    "INT8 block": ("INT8", {"channel_quantize": -1, "block_quantize": 128}),
    "INT4": ("INT4", {}),
    "INT4 block": ("INT4", _BLOCK),
    "NF4": ("NF4", {}),
    "NF4 double block": ("NF4", _BLOCK | {"scale_channel_quantize": -1, "scale_block_quantize": 256}),
    "NVFP4": ("NVFP4", {}),
    "NVFP4 block": ("NVFP4", {"channel_quantize": -1, "block_quantize": 16}),
}


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
    pointwise_as_linear: bool = False,
    per_layer: Mapping[str, str | Iterable[str]] | None = None,
    activation_scale: str | None = None,
    activation_calibrator: str = "max",
    percentile: float = 99.9,
    **kwargs: Any,
) -> NVIDIAModelOptConfig:
    """The ModelOpt configuration for a quant type or a short scheme name, valid on the installed ModelOpt.

    With the type alone: FP8 and INT8 have one scale a tensor; INT4 has blocks of 128, NF4 blocks of 64 whose scales
    are themselves int8 in blocks of 256, NVFP4 blocks of 16 with float8 scales (a 4-bit type has no meaning without a
    block, so its "weight only" scheme is ModelOpt's own default block). The configuration that is returned names the
    axes and sizes that were filled in.

    Args:
        quant_type: One of ``FP8, INT8, INT4, NF4, NVFP4``; or two joined by ``_``: weights, then activations; or a name
            in :data:`SCHEMES` such as ``"INT8 channel"``.
        modules_to_not_convert: Which layers to leave dense: whole names of modules, which mean all that is in them, parts
            of names, or shell-style patterns; also what :func:`modelopt_nb.select` returns.
        weight_only: False quantizes activations too, in the weights' type unless ``quant_type`` names another: the inputs of
            the layers that are packed.
        channel_quantize: Channel axis: 0 for one scale an output channel; with blocks, the axis that they run along.
        block_quantize: Block size, in weights. Needs ``channel_quantize``.
        scale_channel_quantize: Axis of the scales' own blocks, -1; NF4 only.
        scale_block_quantize: Size of the scales' own blocks, in scales; NF4 only.
        algorithm: ModelOpt's calibration algorithm: a name, or a dict with ``method`` and its arguments.
        forward_loop: Called with the model to calibrate activations.
        disable_conv_quantization: Leave every convolution dense.
        pointwise_as_linear: Pack convolutions of one pixel, which are linear layers in disguise, as linear layers: in
            blocks too, and whatever ``disable_conv_quantization`` says. They stay linear layers in the packed model.
        per_layer: Other types for some layers: names or patterns, by scheme, such as ``{"INT8 channel": ["attn1"]}``. They
            win over what ModelOpt leaves dense by default; ``modules_to_not_convert`` wins over them.
        activation_scale: A name in :data:`ACTIVATION_SCALES`; without one as Diffusers has it: ``"static tensor"``, or with
            channels or blocks of weights ``"dynamic token"``.
        activation_calibrator: How a static scale is found: from the largest value, ``"max"``, or from a histogram, by
            ``"percentile"``, ``"entropy"`` or ``"mse"``.
        percentile: For that calibrator: how much of the histogram the scale covers, in percent.
        kwargs: Further arguments of the algorithm, such as ``alpha`` of ``smoothquant``.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what is allowed.

    Source: the table "Supported quantization types" of Diffusers' ModelOpt page.
    """
    from diffusers import NVIDIAModelOptConfig

    asked = Blocks(channel_quantize, block_quantize, scale_channel_quantize, scale_block_quantize)
    if isinstance(quant_type, str) and " " in quant_type:
        if quant_type not in SCHEMES:
            raise ValueError(f"quant_type={quant_type!r} is not a scheme. Allowed: {', '.join(SCHEMES)}")
        if asked != Blocks(None, None, None, None):
            raise ValueError(f"quant_type={quant_type!r} is a scheme, which sets the axes and block sizes: {asked}")
        quant_type, chosen = SCHEMES[quant_type]
        asked = Blocks(**dict.fromkeys(Blocks.__dataclass_fields__) | chosen)
    weight_only = only_weights(quant_type, weight_only)
    if forward_loop is not None and not callable(forward_loop):
        raise TypeError(f"forward_loop={forward_loop!r} cannot be called with a model")
    if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 0 < percentile <= 100:
        raise ValueError(f"percentile={percentile!r} is not allowed. Allowed: above 0, up to 100")
    blocks, built = modelopt_config(
        quant_type, weight_only, asked, algorithm, kwargs, activation_scale, activation_calibrator
    )
    config = NVIDIAModelOptConfig(
        quant_type=quant_type,
        modules_to_not_convert=patterns("modules_to_not_convert", modules_to_not_convert),
        weight_only=weight_only,
        algorithm=built["algorithm"]["method"],
        forward_loop=forward_loop,
        disable_conv_quantization=disable_conv_quantization,
        modelopt_config=built,
        **vars(blocks),
    )
    vars(config).update(
        pointwise_as_linear=bool(pointwise_as_linear),
        per_layer=mixed_schemes(per_layer),
        activation_scale=activation_scale,
        activation_calibrator=activation_calibrator,
        percentile=percentile,
    )
    return config


#: What a configuration knows beside what Diffusers' class has, and what it is without being asked.
KIT_ARGUMENTS: dict[str, Any] = {
    name: inspect.signature(make_config).parameters[name].default
    for name in ("pointwise_as_linear", "per_layer", "activation_scale", "activation_calibrator", "percentile")
}


def precision(config: NVIDIAModelOptConfig, specs: Iterable[WeightSpec]) -> str:
    """What weights and activations are rounded to: ``"W4"``, or ``"W8A8 static tensor"`` with activations."""
    bits = sorted({s.num_bits if isinstance(s.num_bits, int) else sum(s.num_bits) + 1 for s in specs})
    weights = f"W{bits[0]}" if len(bits) == 1 else f"W{bits[0]}-{bits[-1]}"
    inputs = [
        e["cfg"]
        for e in config.modelopt_config["quant_cfg"]
        if e["quantizer_name"] == "*input_quantizer" and "cfg" in e
    ]
    if not inputs:
        return weights
    cfg = inputs[0]
    width = cfg["num_bits"] if isinstance(cfg["num_bits"], int) else sum(cfg["num_bits"]) + 1
    shape = {k: v for k, v in cfg.items() if k in ("type", "axis", "block_sizes")}
    names = [name for name, (linear, _) in ACTIVATION_SCALES.items() if linear == shape]
    return f"{weights}A{width} {names[0] if names else 'dynamic block'}"


def config_code(config: NVIDIAModelOptConfig) -> str:
    """The call of :func:`make_config` that builds ``config``; a forward loop is left for the reader to fill in."""
    default = make_config(config.quant_type)
    asked = [repr(config.quant_type)]
    for name in inspect.signature(make_config).parameters:
        value = getattr(config, name, None)
        if name not in ("quant_type", "algorithm", "forward_loop") and value != getattr(default, name, None):
            asked.append(f"{name}={value!r}")
    chosen = dict(config.modelopt_config["algorithm"])
    if chosen != default.modelopt_config["algorithm"]:
        asked.append(f"algorithm={chosen!r}")
    if config.forward_loop is not None:
        asked.append("forward_loop=forward_loop")
    line = f"make_config({', '.join(asked)})"
    return line if len(line) <= 100 else "make_config(\n    " + ",\n    ".join(asked) + ",\n)"
