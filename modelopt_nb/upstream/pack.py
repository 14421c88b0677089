"""Pack the weights of a model that has quantizers."""

from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.opt import ModeloptStateManager
from modelopt.torch.quantization.conversion import create_and_replace_svdquant_linear_on_the_fly
from modelopt.torch.quantization.nn.modules.quant_linear import SVDQuantTensorQuantizer
from modelopt.torch.quantization.qtensor.base_qtensor import pack_real_quantize_weight
from torch import nn

from modelopt_nb.upstream.layers import has_packed_layers, is_packed
from modelopt_nb.upstream.quiet import quiet

#: The buffers of svdquant's low-rank branch.
LOW_RANK = ("_svdquant_lora_a", "_svdquant_lora_b")


def pack_layer(layer: nn.Module, algorithm: dict[str, Any]) -> None:
    """Calibrate and pack the weight of one quantized layer; :func:`finish_packing` records it on the whole model."""
    with quiet():
        mtq.calibrate(layer, algorithm)
        ModeloptStateManager.remove_state(layer)  # the state belongs to the whole model
        quantizer: Any = layer.weight_quantizer
        quantizer._fake_quant = False
        pack_real_quantize_weight(torch.nn.ModuleList([layer]))  # in a container, since it skips the root
    drop_packed_amax(layer)


def finish_packing(model: nn.Module) -> None:
    """Pack what is quantized and not packed yet, and record on the model that it is packed."""
    with quiet():
        # FP8 and NVFP4 have real low-precision products on CUDA; elsewhere this option warns once a layer
        on_cuda = next(model.parameters()).is_cuda
        mtq.compress(model, mtq.config.CompressConfig(quant_gemm=on_cuda))
    drop_packed_amax(model)
    for module in model.modules():
        quantizer: Any = getattr(module, "weight_quantizer", module)
        for name in LOW_RANK:
            tensor = vars(quantizer).pop(name.removeprefix("_"), None)
            if tensor is not None:  # an attribute, which neither state_dict nor a count of bytes would see
                quantizer.__class__ = SVDQuantTensorQuantizer
                quantizer.register_buffer(name, tensor.contiguous())  # contiguous as after loading, to round alike


def expect_low_rank(model: nn.Module) -> None:
    """Prepare the linear layers of a quantized model for svdquant's low-rank tensors to arrive."""
    with quiet():
        create_and_replace_svdquant_linear_on_the_fly(model)


def drop_packed_amax(model: nn.Module) -> None:
    """Delete the amax buffers of packed weights, and those that q, k and v of an attention share.

    Packing turns each amax into a scale and keeps both, though reading a packed weight uses the scale alone: with one
    float32 per block that is up to a bit a weight. ModelOpt 0.47.0 and earlier; not reported upstream.
    """
    for module in list(model.modules()):
        if hasattr(module, "_shared_quant_states") and has_packed_layers(module):
            del module._shared_quant_states
        if is_packed(module):
            for name in ("_amax", "_global_amax"):
                if hasattr(module.weight_quantizer, name):
                    delattr(module.weight_quantizer, name)
