"""Check that a model would load as it is saved: its class and its configuration have to describe it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from modelopt.torch.opt import ModeloptStateManager

from modelopt_nb.upstream.layers import is_packed
from modelopt_nb.upstream.quiet import quiet


def says_packed(model: object) -> bool:
    """Return whether the configuration of a model says that it is packed."""
    config: Any = getattr(model, "config", None)
    config = config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    found = config.get("quantization_config")
    found = found if isinstance(found, Mapping) else getattr(found, "__dict__", {})
    return found.get("quant_method") == "modelopt"


def check_described(name: str, model: Any) -> None:
    """Raise ValueError if a new model of this class, packed by the configuration, has other tensors than ``model``."""
    model = getattr(model, "_orig_mod", model)  # a compiled one
    packed = {layer for layer, module in model.named_modules() if is_packed(module)}
    if not packed:
        wrong = f"{name}: its quantization_config says that it is packed, and no layer is, so it would not load"
        raise ValueError(f"{wrong}. Allowed: outside dequantized(), or without quantization_config in its config")
    quantizer = getattr(model, "hf_quantizer", None)
    if (
        quantizer is None
        and hasattr(type(model), "_modelopt_cache")
        and hasattr(model, ModeloptStateManager._state_key)
    ):
        return  # ModelOpt's own checkpointing describes it
    tensors = {n: "" if n.removesuffix(".weight") in packed else str(t.dtype) for n, t in model.state_dict().items()}
    with quiet(), torch.random.fork_rng([]), init_empty_weights():
        build = getattr(type(model), "from_config", type(model))
        new = build(copy.copy(model.config))
        planned = quantizer.packer_class.plan_of(new, quantizer.quantization_config, tensors) if quantizer else None
    other = packed ^ set(planned.layouts if planned else ())
    other |= {n for n in tensors if "_quantizer." not in n} ^ set(new.state_dict())
    if other:
        raise ValueError(
            f"{name}: {min(other)!r} is not packed as its quantization_config says, and would load as garbage. Allowed:"
            f" quantize() of the whole model, not of parts, without fused projections; modules_to_not_convert= or"
            f" per_layer= choose its layers"
        )
