"""Configure ModelOpt's input quantizers."""

from typing import Any

from modelopt_nb.config.quant_types import QUANT_TYPES, QuantType

#: Activation scales by name: the ``cfg`` for linear layers, and for convolutions (channels are axis 1).
#: Static scales are found by calibration, dynamic ones from each input; a token is a row of a linear layer's input.
ACTIVATION_SCALES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "static tensor": ({}, {}),
    "static channel": ({"axis": -1}, {"axis": 1}),
    "dynamic tensor": ({"type": "dynamic"}, {"type": "dynamic"}),
    "dynamic token": ({"type": "dynamic", "block_sizes": {-1: None}}, {"type": "dynamic"}),
}
CALIBRATORS = ("max", "percentile", "entropy", "mse")


def activation_entries(
    activations: QuantType, per_channel: bool, scale: str | None = None, calibrator: str = "max"
) -> list[dict[str, Any]]:
    """Return the ``quant_cfg`` entries of ModelOpt's input quantizers. Raises ValueError for what does not go together.

    No ``scale`` follows Diffusers: static per tensor, or dynamic per token with ``channel_quantize`` (``per_channel``).
    """
    if not activations.activations:
        takers = ", ".join(t.name for t in QUANT_TYPES.values() if t.activations)
        raise ValueError(f"quant_type: {activations.name} is for weights only. Allowed for activations: {takers}")
    if scale is not None and scale not in ACTIVATION_SCALES:
        raise ValueError(f"activation_scale={scale!r} is not known. Allowed: {', '.join(ACTIVATION_SCALES)}")
    if calibrator not in CALIBRATORS:
        raise ValueError(f"activation_calibrator={calibrator!r} is not known. Allowed: {', '.join(CALIBRATORS)}")
    cfg: dict[str, Any] = {"num_bits": activations.num_bits}
    cfg |= {} if calibrator == "max" else {"calibrator": "histogram"}
    chosen = scale or ("dynamic token" if per_channel else "static tensor")
    if calibrator != "max" and (chosen != "static tensor" or activations.needs_block):
        wrong = f"activation_calibrator={calibrator!r} makes a histogram of a whole tensor, and the scale is {chosen!r}"
        raise ValueError(f"{wrong}. Allowed with it: activation_scale='static tensor'")
    if calibrator == "entropy" and not isinstance(activations.num_bits, int):
        wrong = f"activation_calibrator='entropy' counts the steps of integers, which {activations.name} does not have"
        raise ValueError(f"{wrong}. Allowed: max, percentile, mse")
    if activations.needs_block and scale is not None:
        wrong = f"activation_scale={scale!r} does not apply to {activations.name}"
        raise ValueError(f"{wrong}, whose blocks have dynamic scales. Allowed: None")
    if activations.needs_block:
        cfg["block_sizes"] = {-1: activations.block, "type": "dynamic", "scale_bits": activations.scale_bits}
        return [{"quantizer_name": "*input_quantizer", "cfg": cfg}]
    linear, convolution = ACTIVATION_SCALES[chosen]
    entries = [{"quantizer_name": "*input_quantizer", "cfg": cfg | linear}]
    classes = ("nn.Conv1d", "nn.Conv2d", "nn.Conv3d") if convolution != linear else ()
    return entries + [entries[0] | {"parent_class": name, "cfg": cfg | convolution} for name in classes]
