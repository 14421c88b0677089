"""Dequantize a packed model for good; neither Diffusers nor Transformers has that for ModelOpt."""

from typing import Any

import torch
from modelopt.torch.opt import ModeloptStateManager
from modelopt.torch.quantization.nn import QuantModule, SequentialQuantizer, TensorQuantizer
from torch import nn

from modelopt_nb.upstream.layers import is_packed
from modelopt_nb.upstream.packed_weights import LOW_RANK, REFUSED, read_packed

#: Attributes that ModelOpt gives to layers; a forward of its own is the last.
MODELOPTS = (
    *("_dm_attribute_manager", "_enable_weight_quantization", "_parallel_state", "_use_real_quant_gemm"),
    *("_real_quant_gemm_impl", "_forward_pre_dm", "forward"),
)


def make_dense(model: nn.Module) -> nn.Module:
    """Dequantize a packed model for good: plain classes with dense weights, in the dtype they were read as.

    Scales of input channels and svdquant's low-rank branch go into the weight; activations are no longer quantized.
    """
    modules: dict[str, Any] = {name: m for name, m in model.named_modules() if isinstance(m, QuantModule)}
    for name, module in modules.items():
        weight = _whole_weight(module) if is_packed(module) else None
        module.__class__ = module.get_original_cls_by_level(0)
        for attribute in MODELOPTS if "_forward_pre_dm" in vars(module) else MODELOPTS[:-1]:
            vars(module).pop(attribute, None)
        for child in [n for n, q in module._modules.items() if isinstance(q, (TensorQuantizer, SequentialQuantizer))]:
            del module._modules[child]
        if weight is not None:
            if convolution := vars(module).get("_convolution"):  # of a kernel of one pixel
                module = convolution(*weight.shape[::-1], 1, device="meta").train(module.training)
                weight, module.bias = weight.reshape(module.weight.shape), modules[name].bias
                model.set_submodule(name, module)
            module._parameters = {"weight": nn.Parameter(weight, requires_grad=False), "bias": module.bias}
    if ModeloptStateManager.is_converted(model):
        ModeloptStateManager.remove_state(model)
    for name in REFUSED:
        vars(model).pop(name, None)
    return model


def _whole_weight(module: Any) -> torch.Tensor:
    """Return the weight that a packed layer multiplies its unscaled inputs with."""
    weight = read_packed(module)
    if (low := getattr(module.weight_quantizer, LOW_RANK[0], None)) is not None:
        weight = weight + getattr(module.weight_quantizer, LOW_RANK[1]) @ low
    scale = module.input_quantizer.pre_quant_scale
    return weight if scale is None else (weight * scale).to(weight.dtype)
