"""Check that a model would load as it is saved: its class and its configuration have to describe it."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from modelopt.torch.opt import ModeloptStateManager

from modelopt_nb.upstream.layers import has_packed_layers, is_packed
from modelopt_nb.upstream.packed_weights import packed_dtype
from modelopt_nb.upstream.quiet import quiet


def _said(model: object) -> Any:
    """Return the ``quantization_config`` in the configuration of a model."""
    config: Any = getattr(model, "config", None)
    return (config if isinstance(config, Mapping) else getattr(config, "__dict__", {})).get("quantization_config")


def says_packed(model: object) -> bool:
    """Return whether the configuration of a model says that it is packed."""
    said = _said(model)
    return (said if isinstance(said, Mapping) else getattr(said, "__dict__", {})).get("quant_method") == "modelopt"


def check_described(name: str, model: Any) -> None:
    """Raise ValueError if a new model of this class, packed by the configuration, has other tensors than ``model``."""
    model = getattr(model, "_orig_mod", model)  # a compiled one
    if not hasattr(model, "config"):  # a MultiControlNetModel, which saves its nets
        for i, net in enumerate(getattr(model, "nets", ())):
            if has_packed_layers(net) or says_packed(net):
                check_described(f"{name}.nets.{i}", net)
        return
    weights: dict[str, Any] = {f"{n}.weight": m.weight for n, m in model.named_modules() if is_packed(m)}
    if not weights:
        wrong = f"{name}: its quantization_config says that it is packed, and no layer is, so it would not load"
        raise ValueError(f"{wrong}. Allowed: outside dequantized(), or without quantization_config in its config")
    quantizer, cls = getattr(model, "hf_quantizer", None), type(model)
    if quantizer is None and hasattr(cls, "_modelopt_cache") and hasattr(model, ModeloptStateManager._state_key):
        return  # ModelOpt's own checkpointing describes it
    if quantizer is not None:
        config, found = quantizer.quantization_config, _said(model)
        said = found if isinstance(found, dict) else found.to_dict() if hasattr(found, "to_dict") else {}  # once saved
        said["packed_dtype"] = config.packed_dtype = packed_dtype(model)  # casts may have changed it
        if said != config.to_dict():
            wrong = f"{name}: its config has another quantization_config, quant_type={said.get('quant_type')!r}"
            raise ValueError(f"{wrong}. Allowed: that of its hf_quantizer; dequantize() makes it dense")
    if adapted := [n for n, _ in model.named_modules() if n.endswith(".base_layer")]:
        wrong = f"{name} has an adapter in {adapted[0].removesuffix('.base_layer')}, and would not load"
        raise ValueError(
            f"{wrong}. Allowed: save_lora_adapter() for the adapter, then unload_lora() and save_pretrained()"
        )
    planned: dict[str, tuple[int, ...]] = {}
    tensors = {n: t for n, t in model.state_dict().items() if "_quantizer." not in n}
    with quiet(), torch.random.fork_rng([]), init_empty_weights():
        new = getattr(cls, "from_config", cls)(copy.copy(model.config))
        if quantizer is not None:
            stored = {n: "" if n in weights else str(t.dtype) for n, t in tensors.items()}
            layers = quantizer.packer_class.plan_of(new, config, stored).layers
            planned = {f"{x.name}.weight": x.shape for x in layers if x.packed}
    shapes = {n: tuple(weights[n].metadata["shape"] if n in weights else t.shape) for n, t in tensors.items()}
    if other := {(n, n in weights, shape) for n, shape in shapes.items()} ^ {
        (n, n in planned, tuple(planned.get(n, t.shape))) for n, t in new.state_dict().items()
    }:
        wrong = f"{name}: {min(other)[0].removesuffix('.weight')!r} is not packed as its quantization_config says"
        raise ValueError(
            f"{wrong}, and would load as garbage. Allowed: quantize() of the whole model, not of parts or of several at"
            f" once, without fused projections; modules_to_not_convert= or per_layer= choose its layers"
        )
