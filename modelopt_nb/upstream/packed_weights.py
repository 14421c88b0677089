"""Pack weights, read them, hold them dense for a while, and rebuild them from a checkpoint's tensors."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, cast

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.opt import ModeloptStateManager
from modelopt.torch.quantization import qtensor
from modelopt.torch.quantization.conversion import create_and_replace_svdquant_linear_on_the_fly
from modelopt.torch.quantization.nn import QuantModule, RealQuantLinear, TensorQuantizer
from modelopt.torch.quantization.nn.modules.quant_linear import SVDQuantTensorQuantizer
from modelopt.torch.quantization.qtensor.base_qtensor import pack_real_quantize_weight
from torch import nn

from modelopt_nb.upstream.layers import check_model, has_packed_layers, is_packed
from modelopt_nb.upstream.quantizers import PLAIN, insert_quantizers
from modelopt_nb.upstream.quiet import quiet

#: The buffers of svdquant's low-rank branch.
LOW_RANK = ("_svdquant_lora_a", "_svdquant_lora_b")
#: The buffers of a weight quantizer that packed weights are read with.
SCALES = tuple(RealQuantLinear.list_of_scale_tensors)


def _fuse_qkv_projections() -> None:
    """Raise ValueError: packed weights have scales of their own, and cannot be joined."""
    raise ValueError("fuse_qkv_projections() cannot join packed weights. Call it on the dense model, before quantize()")


def _fuse_lora(*args: Any, **kwargs: Any) -> None:
    """Raise ValueError: an adapter cannot be added to packed weights."""
    raise ValueError(
        "fuse_lora() cannot change packed weights. Use the adapter without fusing it, or fuse it before quantize()"
    )


#: Methods of a model that a packed one refuses; functions of a module, so that pickle finds them.
REFUSED = {"fuse_qkv_projections": _fuse_qkv_projections, "fuse_lora": _fuse_lora}


def pack_layer(layer: nn.Module, algorithm: dict[str, Any]) -> None:
    """Calibrate and pack the weight of one quantized layer; :func:`finish_packing` records it on the whole model."""
    quantizer: Any = layer.weight_quantizer
    with quiet():
        mtq.calibrate(layer, algorithm)
        ModeloptStateManager.remove_state(layer)  # the state belongs to the whole model
        quantizer._fake_quant = False
        pack_real_quantize_weight(nn.ModuleList([layer]))  # in a container, since it skips the root
    _drop_packed_amax(layer)


def finish_packing(model: nn.Module) -> None:
    """Pack what is quantized and not packed yet, and record on the model that it is packed."""
    with quiet():
        # FP8 and NVFP4 have real low-precision products on CUDA; elsewhere this option warns once a layer
        mtq.compress(model, mtq.config.CompressConfig(quant_gemm=next(model.parameters()).is_cuda))
    plain = vars(model).pop(PLAIN, {})
    for _, state in ModeloptStateManager(model).state_dict():  # which mto.restore compares with a wrapped model
        quantizers = state["metadata"].get("quantizer_state", {})
        quantizers.update(plain)
        for name in quantizers:  # of a convolution, mto.restore asks for the amax that is dropped here
            layer, _, which = name.rpartition(".")
            if which == "weight_quantizer" and is_packed(model.get_submodule(layer)):
                quantizers[name]["_pytorch_state_metadata"]["buffers"].pop("_amax", None)
    _drop_packed_amax(model)
    model.register_load_state_dict_pre_hook(_refuse_dense)
    vars(model).update({name: refuse for name, refuse in REFUSED.items() if hasattr(model, name)})
    for module in model.modules():
        quantizer: Any = getattr(module, "weight_quantizer", module)
        for name in LOW_RANK:
            tensor = vars(quantizer).pop(name.removeprefix("_"), None)
            if tensor is not None:  # an attribute, which neither state_dict nor a count of bytes would see
                quantizer.__class__ = SVDQuantTensorQuantizer
                quantizer.register_buffer(name, tensor.contiguous())  # contiguous as after loading, to round alike


def _drop_packed_amax(model: nn.Module) -> None:
    """Delete the amax buffers of packed weights, and those that q, k and v of an attention share.

    A packed weight is read by its scale alone. ModelOpt 0.47.0 and earlier keep both; not reported upstream.
    """
    for module in list(model.modules()):
        if hasattr(module, "_shared_quant_states") and has_packed_layers(module):
            del module._shared_quant_states
        for name in ("_amax", "_global_amax") if is_packed(module) else ():
            if hasattr(module.weight_quantizer, name):
                delattr(module.weight_quantizer, name)


def _refuse_dense(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
    """Raise ValueError before anything is loaded if a state dict has a dense weight for a packed layer."""
    for name, module in model.named_modules():
        key = f"{prefix}{name}.weight" if name else f"{prefix}weight"
        if is_packed(module) and key in state_dict:
            given, packed = state_dict[key], cast(Any, module._parameters["weight"]).data
            if (given.dtype, given.shape) != (packed.dtype, packed.shape):
                wrong = f"state_dict: {key} is {given.dtype} {tuple(given.shape)}, and the packed weight {packed.dtype}"
                raise ValueError(
                    f"{wrong} {tuple(packed.shape)}. Load dense weights into a dense model, then quantize it"
                )


def packed_dtype(model: nn.Module) -> str | dict[str, str]:
    """Return the dtype that packed weights are read as: one for all, or by layer where they differ."""
    layers = {name: m._parameters["weight"] for name, m in model.named_modules() if is_packed(m)}
    found = {name: str(cast(Any, w).metadata["dtype"]).removeprefix("torch.") for name, w in layers.items()}
    return found if len(set(found.values())) > 1 else next(iter(found.values()))


def expect_low_rank(model: nn.Module) -> None:
    """Prepare the linear layers of a quantized model for svdquant's low-rank tensors to arrive."""
    with quiet():
        create_and_replace_svdquant_linear_on_the_fly(model)


def expect_packed(
    layer: nn.Module, qtensor_class: str, tensors: Mapping[str, tuple[tuple[int, ...], str]], dtype: torch.dtype
) -> dict[str, Any]:
    """Prepare a layer on the meta device for packed ``tensors`` to arrive: shape and dtype of weight and buffers.

    The weight will be dequantized to ``dtype``. Returns the metadata for :func:`wrap_packed`.
    """
    metadata = {"qtensor_class": getattr(qtensor, qtensor_class), "shape": layer.weight.shape, "dtype": dtype}
    quantizer: Any = layer.weight_quantizer
    quantizer._fake_quant, quantizer._dequantize = False, True
    for name, (shape, stored) in tensors.items():
        empty = torch.empty(shape, dtype=getattr(torch, stored), device="meta")
        if name == "weight":
            layer._parameters["weight"] = nn.Parameter(empty, requires_grad=False)
        else:
            quantizer.register_buffer(name, empty)
    return metadata


def wrap_packed(layer: Any, metadata: dict[str, Any], stored: str) -> None:
    """Turn the tensor that arrived as a layer's weight into a packed one. Transformers casts FP8 to ask for float32."""
    data = layer.weight.data.to(getattr(torch, stored))
    layer._parameters["weight"] = cast(Any, qtensor.QTensorWrapper)(data, metadata=metadata)


def read_packed(layer: nn.Module) -> torch.Tensor:
    """Dequantize the weight of a packed layer, as its forward pass does."""
    quantizer: Any = layer.weight_quantizer
    return quantizer.dequantize(layer.weight)


def round_weight(weight: torch.Tensor, cfg: Mapping[str, Any]) -> torch.Tensor:
    """Return ``weight``, of a linear layer or a convolution, as packing by ModelOpt's quantizer ``cfg`` rounds it."""
    one = (1,) * (weight.ndim - 2)
    with torch.device("meta"):  # takes no random numbers
        layer = getattr(nn, f"Conv{len(one)}d")(1, 1, one, bias=False) if one else nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(weight.detach().clone())
    model = nn.Sequential(layer)
    entries = [{"quantizer_name": "*", "enable": False}, {"quantizer_name": "*weight_quantizer", "cfg": dict(cfg)}]
    insert_quantizers(model, entries, {"method": "max"})
    pack_layer(model[0], {"method": "max"})
    return read_packed(model[0])


@contextlib.contextmanager
def dequantized(model: nn.Module) -> Iterator[nn.Module]:
    """Dequantize a packed model's weights while the block runs; restore the packed ones afterwards.

    Outputs are the same bit for bit. Quantized activations stay quantized. A layer whose activations are not quantized
    uses its original class meanwhile, which is faster.
    """
    check_model(model)
    with contextlib.ExitStack() as stack:
        modules: list[Any] = [m for m in model.modules() if isinstance(m, QuantModule)]
        for module in modules:
            if is_packed(module):
                dense, packed = read_packed(module), module._parameters.pop("weight")
                stack.callback(_pack_again, module, packed)
                module.weight_quantizer.disable()
                module.register_parameter("weight", nn.Parameter(dense, requires_grad=False))
            if not _quantizes(module):
                stack.callback(setattr, module, "__class__", type(module))
                module.__class__ = module.get_original_cls_by_level(0)
        yield model


def _pack_again(module: Any, packed: nn.Parameter) -> None:
    module._parameters.pop("weight", None)  # a packed layer wraps whatever replaces a packed weight
    module.register_parameter("weight", packed)
    module.weight_quantizer.enable()


def _quantizes(module: nn.Module) -> bool:
    """Return whether a quantized layer computes anything that its plain class does not."""
    quantizers: list[Any] = [q for q in module.modules() if isinstance(q, TensorQuantizer)]
    extras = ("svdquant_lora_a", "pre_quant_scale")
    return any(q.is_enabled or any(getattr(q, extra, None) is not None for extra in extras) for q in quantizers)
