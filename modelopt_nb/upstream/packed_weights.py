"""Read packed weights, hold them dense for a while, and rebuild them from a checkpoint's tensors."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from modelopt.torch.quantization import qtensor
from modelopt.torch.quantization.nn import QuantModule, TensorQuantizer
from modelopt.torch.quantization.qtensor import QTensorWrapper
from torch import nn

from modelopt_nb.upstream.insert import insert_quantizers
from modelopt_nb.upstream.layers import is_packed, weight_of
from modelopt_nb.upstream.pack import pack_layer


def expect_packed(
    layer: nn.Module, qtensor_class: str, tensors: Mapping[str, tuple[tuple[int, ...], str]], dtype: torch.dtype
) -> dict[str, Any]:
    """Prepare a quantized layer for the tensors of a packed weight to arrive.

    Args:
        layer: A layer whose weight has the dense shape, on the meta device.
        qtensor_class: A class of ``modelopt.torch.quantization.qtensor``.
        tensors: Shape and dtype of each tensor: ``weight``, and the buffers of its quantizer.
        dtype: The dtype that the weight is dequantized to.

    Returns:
        The metadata that :func:`wrap_packed` needs once the tensors are there.
    """
    metadata = {"qtensor_class": getattr(qtensor, qtensor_class), "shape": weight_of(layer).shape, "dtype": dtype}
    quantizer: Any = layer.weight_quantizer
    quantizer._fake_quant, quantizer._dequantize = False, True
    for name, (shape, stored) in tensors.items():
        empty = torch.empty(shape, dtype=getattr(torch, stored), device="meta")
        if name == "weight":
            layer._parameters["weight"] = torch.nn.Parameter(empty, requires_grad=False)
        else:
            quantizer.register_buffer(name, empty)
    return metadata


def wrap_packed(layer: nn.Module, metadata: dict[str, Any]) -> None:
    """Turn the plain tensor that arrived as a layer's weight into a packed weight."""
    layer._parameters["weight"] = QTensorWrapper(weight_of(layer).data, metadata=metadata)


def read_packed(module: nn.Module) -> torch.Tensor:
    """Dequantize the weight of a packed layer, as its forward pass does."""
    quantizer: Any = module.weight_quantizer
    return quantizer.dequantize(module.weight)


def round_by(weight: torch.Tensor, cfg: Mapping[str, Any]) -> torch.Tensor:
    """Pack ``weight``, of a linear layer or a convolution, by ModelOpt's quantizer ``cfg`` and read it back."""
    one = (1,) * (weight.ndim - 2)
    layer = nn.Linear(1, 1, bias=False) if weight.ndim == 2 else getattr(nn, f"Conv{len(one)}d")(1, 1, one, bias=False)
    layer.weight = nn.Parameter(weight.detach().clone())
    model = nn.Sequential(layer)
    entries = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": dict(cfg)}]
    insert_quantizers(model, entries, {"method": "max"})
    pack_layer(model[0], {"method": "max"})
    return read_packed(model[0])


@contextlib.contextmanager
def unpacked(model: nn.Module) -> Iterator[None]:
    """Replace packed weights by the dense ones that they are read as while the block runs; outputs stay the same.

    A layer that quantizes nothing else becomes its plain class meanwhile, since a disabled quantizer costs time.
    """
    with contextlib.ExitStack() as stack:
        for module in [m for m in model.modules() if isinstance(m, QuantModule)]:
            if is_packed(module):
                dense, packed = read_packed(module), module._parameters.pop("weight")
                stack.callback(_pack_again, module, packed)
                module.weight_quantizer.disable()
                module.register_parameter("weight", torch.nn.Parameter(dense, requires_grad=False))
            if not _quantizes(module):
                stack.callback(setattr, module, "__class__", type(module))
                module.__class__ = module.get_original_cls_by_level(0)
        yield


def _pack_again(module: Any, packed: torch.nn.Parameter) -> None:
    module._parameters.pop("weight", None)  # a packed layer wraps whatever replaces a packed weight
    module.register_parameter("weight", packed)
    module.weight_quantizer.enable()


def _quantizes(module: nn.Module) -> bool:
    """Return whether a quantized layer computes anything that its plain class does not."""
    quantizers = [q for q in module.modules() if isinstance(q, TensorQuantizer)]
    low_rank = any(getattr(q, "svdquant_lora_a", None) is not None for q in quantizers)
    return low_rank or any(q.is_enabled or getattr(q, "pre_quant_scale", None) is not None for q in quantizers)
