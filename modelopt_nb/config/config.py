"""The configuration: Diffusers' class, with the kit's arguments, valid on the installed ModelOpt."""

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from diffusers.quantizers.quantization_config import NVIDIAModelOptConfig, QuantizationConfigMixin, QuantizationMethod
from torch import nn

from modelopt_nb.config.activations import activation_entries
from modelopt_nb.config.patterns import as_patterns
from modelopt_nb.config.quant_types import QuantType, split_quant_type
from modelopt_nb.config.schemes import SCHEMES, Blocks
from modelopt_nb.upstream.quantizers import algorithm_dict, default_exclusions

Patterns = str | Iterable[str]


class ModelOptConfig(NVIDIAModelOptConfig):
    """Configure quantization by quant type or scheme name. Attributes hold the resolved axes and sizes.

    FP8 and INT8 have one scale per tensor by default; INT4 has blocks of 128, NF4 blocks of 64 whose scales are int8 in
    blocks of 256, NVFP4 blocks of 16 with float8 scales. 4-bit types always need blocks.

    Args:
        quant_type: ``FP8, INT8, INT4, NF4, NVFP4``; two joined by ``_``: weights, then activations; or a name in
            :data:`SCHEMES` such as ``"INT8 channel"``.
        modules_to_not_convert: Layers to leave dense: names of modules, which include all in them; parts of names; or
            shell-style patterns. Also what :func:`modelopt_nb.select` returns.
        weight_only: False quantizes the inputs of packed layers too, in the weights' type or the one in ``quant_type``.
        channel_quantize: Channel axis: 0 for one scale per output channel; with blocks, the axis that they run along.
        block_quantize: Block size, in weights. Needs ``channel_quantize``.
        scale_channel_quantize, scale_block_quantize: Axis (-1) and size of the scales' own blocks. NF4 only.
        algorithm: ModelOpt's calibration algorithm: a name, or a dict with ``method`` and its arguments.
        forward_loop: Called with the model to calibrate activations.
        modelopt_config: ModelOpt's own configuration, instead of the one that the arguments give.
        disable_conv_quantization: Leave every convolution dense.
        pointwise_as_linear: Replace 1x1 convolutions by linear layers, which the packed model keeps, and pack those, in
            blocks too. The default; but not in Diffusers' class, in a saved configuration without it, or with
            ``modelopt_config`` or ``disable_conv_quantization``.
        per_layer: Patterns of layers by scheme, such as ``{"INT8 channel": ["attn1"]}``. They override ModelOpt's own
            exclusions; ``modules_to_not_convert`` overrides them.
        activation_scale: A name in :data:`ACTIVATION_SCALES`; by default as in Diffusers ``"static tensor"``, or
            ``"dynamic token"`` where weights are scaled per channel or block.
        activation_calibrator: Find static scales by ``"max"``, or by ``"percentile", "entropy", "mse"`` of a histogram.
        percentile: Share of the histogram that the scale covers, in percent.
        packed_dtype: Dtype that packed weights are read as, or dtypes by layer. Set by packing and saving.
        arguments: Further arguments of the algorithm, such as ``alpha`` of ``smoothquant``.

    Raises:
        ValueError, TypeError: Naming the argument, its value and what is allowed.

    Source: the table "Supported quantization types" of Diffusers' ModelOpt page.
    """

    #: Warn of patterns that match no layer, and of scale blocks that the type does not have; True for Diffusers' class.
    lenient = False

    def __init__(
        self, quant_type: str, modules_to_not_convert: Patterns | None = None, weight_only: bool | None = None,
        channel_quantize: int | None = None, block_quantize: int | None = None,
        scale_channel_quantize: int | None = None, scale_block_quantize: int | None = None,
        algorithm: str | Mapping[str, Any] = "max", forward_loop: Callable[[nn.Module], None] | None = None,
        modelopt_config: Mapping[str, Any] | None = None, disable_conv_quantization: bool = False, *,
        pointwise_as_linear: bool | None = None, per_layer: Mapping[str, Patterns] | None = None,
        activation_scale: str | None = None, activation_calibrator: str = "max", percentile: float = 99.9,
        packed_dtype: str | dict[str, str] | None = None, **arguments: Any,
    ) -> None:  # fmt: skip
        blocks = Blocks(channel_quantize, block_quantize, scale_channel_quantize, scale_block_quantize)
        if isinstance(quant_type, str) and " " in quant_type:
            if quant_type not in SCHEMES:
                raise ValueError(f"quant_type={quant_type!r} is not a scheme. Allowed: {', '.join(SCHEMES)}")
            if blocks != Blocks():
                raise ValueError(
                    f"quant_type={quant_type!r} is a scheme, which sets the axes and block sizes: {blocks}"
                )
            quant_type, sizes = SCHEMES[quant_type]
            blocks = Blocks(**sizes)
        weights, activations = split_quant_type(quant_type)
        if self.lenient:
            modules_to_not_convert, blocks = _forgive(modules_to_not_convert, blocks, weights)
        if weight_only and activations is not None:
            named = f"quant_type={quant_type!r}, which names an activation type"
            raise ValueError(f"weight_only=True contradicts {named}. Allowed: False or None")
        for name, value in {"per_layer": per_layer, "modelopt_config": modelopt_config}.items():
            if value is not None and not isinstance(value, Mapping):
                raise TypeError(f"{name}={value!r} is not a configuration. Allowed: a dict, or None")
        if modelopt_config and not modelopt_config.keys() & {"quant_cfg", "algorithm"}:
            raise ValueError(f"modelopt_config={modelopt_config!r} is not ModelOpt's. Allowed: quant_cfg and algorithm")
        flags = {"weight_only": weight_only, "disable_conv_quantization": disable_conv_quantization}
        for name, value in (flags | {"pointwise_as_linear": pointwise_as_linear}).items():
            if not (value is None or isinstance(value, bool)):  # NumPy's cannot be saved as JSON
                raise TypeError(f"{name}={value!r} is not a truth value. Allowed: True, False or None")
        if forward_loop is not None and not callable(forward_loop):
            raise TypeError(f"forward_loop={forward_loop!r} cannot be called with a model")
        if isinstance(percentile, bool) or not isinstance(percentile, (int, float)) or not 0 < percentile <= 100:
            raise ValueError(f"percentile={percentile!r} is not allowed. Allowed: above 0, up to 100")
        remain = self.lenient or modelopt_config or disable_conv_quantization or "quant_method" in arguments
        if (method := arguments.pop("quant_method", "modelopt")) != "modelopt":
            raise ValueError(f"quant_method={method!r} is not 'modelopt'")

        self.quant_method, self.quant_type = QuantizationMethod.MODELOPT, quant_type
        self.modules_to_not_convert: list[str] = as_patterns("modules_to_not_convert", modules_to_not_convert)
        self.weight_only = activations is None if weight_only is None else weight_only
        vars(self).update(vars(blocks if modelopt_config else blocks.resolve(weights)))
        self.forward_loop, self.disable_conv_quantization = forward_loop, disable_conv_quantization
        self.pointwise_as_linear = not remain if pointwise_as_linear is None else pointwise_as_linear
        self.per_layer = {scheme: _layers_of(scheme, layers) for scheme, layers in (per_layer or {}).items()}
        self.activation_scale, self.activation_calibrator = activation_scale, activation_calibrator
        self.percentile, self.packed_dtype = percentile, packed_dtype
        built: dict[str, Any] = _from_json(dict(modelopt_config)) if modelopt_config else {}
        chosen = algorithm_dict(built.get("algorithm") or algorithm, arguments)
        entries = built.get("quant_cfg") or self._entries(blocks)
        self.modelopt_config: dict[str, Any] = {"quant_cfg": entries, "algorithm": chosen}

    def _entries(self, blocks: Blocks) -> list[dict[str, Any]]:
        """Return ModelOpt's ordered entries: all off, then weights and activations on, then its own exclusions."""
        weights, activations = split_quant_type(self.quant_type)
        on = [{"quantizer_name": "*weight_quantizer", "cfg": blocks.resolve(weights).weight_cfg(weights)}]
        scale, calibrator = self.activation_scale, self.activation_calibrator
        if not self.weight_only:
            on += activation_entries(activations or weights, blocks.channel_quantize is not None, scale, calibrator)
        elif scale is not None or calibrator != "max":
            wrong = f"activation_scale={scale!r} and activation_calibrator={calibrator!r} are for quantized activations"
            raise ValueError(f"{wrong}, and quant_type={self.quant_type!r} has none. Allowed with weight_only=False")
        return [{"quantizer_name": "*", "enable": False}, *on, *default_exclusions()]

    @property
    def algorithm(self) -> dict[str, Any]:
        """ModelOpt's algorithm: ``method`` and its arguments."""
        return self.modelopt_config["algorithm"]

    @property
    def input_cfg(self) -> dict[str, Any] | None:
        """The ``cfg`` of ModelOpt's input quantizers; None if activations are not quantized."""
        entries = self.modelopt_config["quant_cfg"]
        return next((e["cfg"] for e in entries if e["quantizer_name"] == "*input_quantizer" and "cfg" in e), None)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON has it, without the forward loop."""
        kept = {name: value for name, value in vars(self).items() if name not in ("forward_loop", "lenient")}
        return json.loads(json.dumps(_to_json(kept | {"quant_method": "modelopt"})))

    to_diff_dict = to_dict  # which Diffusers' repr and to_json_string ask for
    __repr__ = QuantizationConfigMixin.__repr__  # the dataclass's shows one field


make_config = ModelOptConfig


def _forgive(patterns: Patterns | None, blocks: Blocks, weights: QuantType) -> tuple[list[str], Blocks]:
    """Drop, with a warning, the arguments that Diffusers' class ignores."""
    given = [patterns] if isinstance(patterns, str) else list(patterns or ())
    if "" in given:
        warnings.warn("modules_to_not_convert holds '', which names no layer and is ignored", stacklevel=5)
    kept = replace(blocks, scale_channel_quantize=None, scale_block_quantize=None)
    if blocks != kept and weights.scale_block is None:
        size = f"scale_block_quantize={blocks.scale_block_quantize}"
        warnings.warn(f"{size} does not apply to {weights.name} and is ignored. It applies to NF4", stacklevel=5)
        blocks = kept
    return [pattern for pattern in given if pattern != ""], blocks


def _layers_of(scheme: str, layers: Patterns) -> list[str]:
    """Return the patterns of ``per_layer[scheme]``."""
    ModelOptConfig(scheme)  # raises if it is unknown
    if patterns := as_patterns(f"per_layer[{scheme!r}]", layers):
        return patterns
    raise ValueError(f"per_layer[{scheme!r}] is empty. Allowed: names or patterns of the layers for the scheme")


def _to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    return [_to_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def _from_json(value: Any) -> Any:
    """Undo JSON in a ModelOpt configuration: axes are integers, (exponent, mantissa) are tuples."""
    if isinstance(value, dict):
        pairs = ((int(k) if str(k).lstrip("-").isdigit() else k, _from_json(v)) for k, v in value.items())
        return {k: tuple(v) if k in ("num_bits", "scale_bits") and isinstance(v, list) else v for k, v in pairs}
    return [_from_json(item) for item in value] if isinstance(value, list) else value
