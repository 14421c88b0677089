"""Check the requirements of an algorithm, and run it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.config.quant_types import split_quant_type
from modelopt_nb.packing.input_amax import run_forward_loop
from modelopt_nb.packing.plan import Plan, check_config
from modelopt_nb.upstream.quantizers import collect_amax, has_channel_scales, run_calibration
from modelopt_nb.upstream.rollback import is_out_of_memory

ForwardLoop = Callable[[nn.Module], None]
#: Algorithms that scale the input channels of layers.
SCALE_CHANNELS = ("smoothquant", "awq_lite", "svdquant")
#: Algorithms that need a forward loop.
NEED_LOOP = (*SCALE_CHANNELS, "awq_clip", "awq_full", "gptq", "local_hessian")


def check_algorithm(config: ModelOptConfig, loop: ForwardLoop | None) -> None:
    """Raise ValueError if ``config`` needs a forward loop and there is none, or its algorithm other types or scales."""
    check_config(config)
    if loop is not None and not callable(loop):
        raise TypeError(f"forward_loop={loop!r} cannot be called with a model. Allowed: a function, or None")
    method, inputs, weights = config.algorithm["method"], config.input_cfg, split_quant_type(config.quant_type)[0].name
    wrong = f"algorithm={method!r}"
    if loop is None and method in NEED_LOOP:
        raise ValueError(f"{wrong} needs a forward_loop, such as denoising_loop(pipeline, prompts)")
    entries = (e for c in (config, *map(ModelOptConfig, config.per_layer)) for e in c.modelopt_config["quant_cfg"])
    if loop is None and any(map(_is_static, entries)):
        needed = "static activation scales need a forward_loop to find them, such as denoising_loop(pipeline, prompts)"
        raise ValueError(f"{needed}. Allowed without: activation_scale='dynamic tensor', or weight_only=True")
    if method == "smoothquant" and not (inputs and inputs["num_bits"] == 8 and weights == "INT8"):
        given = f"quant_type={config.quant_type!r}, weight_only={config.weight_only}"
        raise ValueError(
            f"{wrong} is for INT8 weights and activations, not {given}. Allowed: 'INT8', weight_only=False"
        )
    blocks = (inputs or {}).get("block_sizes")
    if method in NEED_LOOP and blocks and "scale_bits" not in blocks:
        allowed = "activation_scale='static tensor', 'dynamic tensor' or 'static channel'"
        raise ValueError(f"{wrong} scales channels, so activations have no scale per token. Allowed: {allowed}")
    if method == "mse" and weights == "NF4":
        raise ValueError("algorithm='mse' changes nothing in NF4, which packs by each block's amax. Allowed: 'max'")


def _is_static(entry: Mapping[str, Any]) -> bool:
    """Return whether a ``quant_cfg`` entry gives inputs a scale that calibration finds."""
    if not entry["quantizer_name"].endswith("input_quantizer") or not isinstance(cfg := entry.get("cfg"), Mapping):
        return False
    return "dynamic" not in (cfg.get("type"), (cfg.get("block_sizes") or {}).get("type"))


def needs_only_amax(config: ModelOptConfig, plan: Plan) -> bool:
    """Return whether calibration needs only the inputs' amax, which the dense model gives faster."""
    enabled = [e for e in plan.entries if "cfg" in e]
    known = all(e["quantizer_name"].endswith(("weight_quantizer", "input_quantizer")) for e in enabled)
    inputs = [e["cfg"] for e in enabled if e["quantizer_name"].endswith("input_quantizer")]
    static = any(cfg.get("type") != "dynamic" for cfg in inputs)
    return known and static and config.algorithm["method"] == config.activation_calibrator == "max"


def calibrate(
    model: nn.Module, config: ModelOptConfig, plan: Plan, loop: ForwardLoop | None,
    amax: Mapping[str, torch.Tensor] | None = None,
) -> None:  # fmt: skip
    """Calibrate a model that has quantizers, from the ``amax`` of its inputs if known, else with the forward loop.

    Raises as :func:`run_forward_loop` does, ValueError for an algorithm that fails on this scheme, torch's own error if
    memory is full.
    """
    method, in_loop = config.algorithm["method"], []

    def run(model: nn.Module) -> None:
        in_loop.append(True)
        if amax is not None:
            collect_amax(model, amax)
        elif loop is not None:
            run_forward_loop(loop, model, plan.layouts)
        in_loop.clear()

    try:
        how = config.activation_calibrator, config.percentile
        run_calibration(model, config.algorithm, run if loop else None, *how)
    except Exception as error:
        if in_loop or is_out_of_memory(error):  # the loop's own error
            raise
        wrong = f"algorithm={method!r} cannot be used with quant_type={config.quant_type!r}"
        raise ValueError(f"{wrong}: {error}") from error
    if method in SCALE_CHANNELS and not has_channel_scales(model):
        with_these = f"quant_type={config.quant_type!r} and activation_scale={config.activation_scale!r}"
        allowed = "'max', or another of algorithm_table()"
        raise ValueError(f"algorithm={method!r} changes nothing with {with_these}. Allowed: {allowed}")
