"""Let packed layers be PyTorch modules: compiled, cast, copied, pickled, offloaded and distributed."""

import copy
import functools
import io
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from accelerate import hooks
from diffusers.loaders import lora_pipeline
from modelopt.torch.opt import dynamic
from modelopt.torch.quantization.backends import fp8_per_tensor_gemm as gemm
from modelopt.torch.quantization.compress import RealQuantModuleRegistry
from modelopt.torch.quantization.conversion import SVDQuantModuleRegistry
from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry, RealQuantLinear
from modelopt.torch.quantization.nn.modules import quant_linear
from modelopt.torch.quantization.qtensor import FP8QTensor, QTensorWrapper
from torch import nn
from torch._guards import TracingContext

from modelopt_nb.upstream.repairs.base import Patch, Repair

Function = Callable[[torch.Tensor], torch.Tensor]
wrap = cast(Any, QTensorWrapper)


class PackedModules(Repair):
    """Keep packed weights, their metadata and their scales whole, whatever PyTorch does with a module.

    A packed weight reports the dtype, axes and count that it is read as: models cast their inputs to a weight's dtype.
    ``torch.compile`` traces the stored tensor. Casts change what a weight is read as, and neither bytes nor scales.
    """

    name = "packed-modules"
    broken = (
        "QTensorWrapper reports the dtype of its bytes and is copied without its metadata; layers hold local classes; "
        "casts change float8 weights and scales; the FP8 product takes the amax of the bytes"
    )
    issue = "not reported upstream; modelopt/torch/quantization: qtensor/base_qtensor.py, nn/modules/quant_linear.py"

    def needed(self) -> bool:
        weight = wrap(FP8QTensor.quantize(torch.ones(2, 2))[0])
        layer = nn.ParameterDict({"weight": weight})
        try:
            copied = type(copy.deepcopy(weight)) is QTensorWrapper
        except TypeError:
            copied = False
        cast_data = QuantModule._apply(layer, torch.Tensor.half)["weight"].data
        return not copied or weight.dtype != torch.float32 or cast_data.dtype != torch.float8_e4m3fn

    def patches(self) -> list[Patch]:
        return [*_reports(), *_copies(), *_moves()]


def _reports() -> list[Patch]:
    """Report what a weight is read as. Its ``nelement()`` stays the stored one, for it counts bytes."""
    stored = vars(torch._C.TensorBase)

    def traced(weight: Any) -> bool:
        return TracingContext.try_get() is not None or not hasattr(weight, "metadata")

    def dtype(self: Any) -> torch.dtype:
        return stored["dtype"].__get__(self) if traced(self) else self.metadata["dtype"]

    def dim(self: Any) -> int:
        return stored["dim"](self) if traced(self) else len(self.metadata["shape"])

    def numel(self: Any) -> int:
        return stored["numel"](self) if traced(self) else self.metadata["shape"].numel()

    multiply = gemm.fp8_per_tensor_gemm

    def fp8_per_tensor_gemm(layer: Any, input: torch.Tensor, bias: Any = None) -> torch.Tensor:
        weight, scale = layer._parameters["weight"].data, layer.weight_quantizer._scale.float()
        quantizers = {"input_quantizer": layer.input_quantizer, "weight_quantizer": SimpleNamespace(amax=scale * 448)}
        return multiply(SimpleNamespace(weight=weight, **quantizers), input, bias)

    shape, dense = (
        lora_pipeline.FluxLoraLoaderMixin._calculate_module_shape,
        "_maybe_dequantize_weight_for_expanded_lora",
    )
    dequantize = getattr(lora_pipeline, dense)

    def weight_shape(model: Any, base_module: Any = None, base_weight_param_name: Any = None) -> torch.Size:
        module = base_module or model.get_submodule(base_weight_param_name.removesuffix(".weight"))
        return getattr(module.weight, "metadata", None) and module.weight.metadata["shape"] or shape(model, module)

    def dense_weight(model: Any, module: Any) -> torch.Tensor:
        packed = isinstance(module.weight, QTensorWrapper)
        return module.weight_quantizer.dequantize(module.weight) if packed else dequantize(model, module)

    replaced = {"dtype": property(dtype), "ndim": property(dim), "dim": dim, "numel": numel}
    return [
        *((QTensorWrapper, name, value) for name, value in replaced.items()),
        (gemm, "fp8_per_tensor_gemm", fp8_per_tensor_gemm),
        (lora_pipeline.FluxLoraLoaderMixin, "_calculate_module_shape", staticmethod(weight_shape)),
        (lora_pipeline, dense, dense_weight),
    ]


def _copies() -> list[Patch]:
    """Copy and pickle packed layers. They have classes made while quantizing; pickle finds them by name."""
    setup, load = RealQuantLinear._setup, quant_linear.dynamically_update_state_methods
    set_attr, parameters = dynamic._DMAttributeManager.set_attr, []

    def _setup(self: Any) -> None:
        setup(self)
        parameters.append(type(self._parameters))  # one class for all layers, or each is compiled by itself
        self._parameters.__class__ = parameters[0]
        parameters[0].__reduce_ex__ = lambda self, _: (_parameters, (self.weight_quantizer, dict(self)))
        del parameters[1:]

    def _load_from_state_dict(self: Any, *args: Any) -> None:
        vars(self)["_load_from_state_dict"] = functools.partial(nn.Module._load_from_state_dict, self)
        load(self)
        vars(self).pop("_load_from_state_dict")(*args)

    def copied(self: Any, memo: dict[int, Any]) -> Any:
        return memo.setdefault(id(self), wrap(self.data.clone(), dict(self.metadata)))

    def set_hooks(self: Any, name: str, *hooks: Any) -> None:
        set_attr(self, name, *(hook or _no_hook for hook in hooks))

    return [
        (QTensorWrapper, "__deepcopy__", copied),
        (QTensorWrapper, "__reduce_ex__", lambda self, _: (QTensorWrapper, (self.data, self.metadata))),
        (RealQuantLinear, "_setup", _setup),
        (RealQuantLinear, "_load_from_state_dict", _load_from_state_dict),
        (quant_linear, "dynamically_update_state_methods", lambda module: None),
        (dynamic, "__getattr__", _dynamic_class),
        (dynamic._DMAttributeManager, "set_attr", set_hooks),
        (torch.UntypedStorage, "__reduce__", _reduce_storage),
    ]


def _moves() -> list[Patch]:
    """Cast, offload and broadcast packed layers."""
    place, broadcast = hooks.set_module_tensor_to_device, dist._broadcast_coalesced

    def set_module_tensor_to_device(
        module: Any, name: str, device: Any, value: Any = None, *args: Any, **kw: Any
    ) -> None:
        owner, _, leaf = name.rpartition(".")  # a hook of a block names the parameters of its layers
        old = (owner := module.get_submodule(owner))._parameters.get(leaf)
        if isinstance(old, QTensorWrapper):  # which has no argument requires_grad, and bytes that no cast may reach
            owner._parameters[leaf] = wrap((old.data if value is None else value).to(device), old.metadata)
        else:
            place(module, name, device, value, *args, **kw)

    def _broadcast_coalesced(group: Any, tensors: Sequence[torch.Tensor], *args: Any) -> None:
        float8 = {torch.float8_e4m3fn, torch.float8_e5m2}  # gloo and NCCL know neither
        broadcast(group, [t.view(torch.uint8) if t.dtype in float8 else t for t in tensors], *args)

    return [
        (QuantModule, "_apply", _apply),
        (RealQuantLinear, "_apply", _apply),
        (hooks, "set_module_tensor_to_device", set_module_tensor_to_device),
        (dist, "_broadcast_coalesced", _broadcast_coalesced),
    ]


def _no_hook(*args: Any) -> None:
    """Do nothing, as a function that pickle finds."""


def _parameters(quantizer: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` as a packed layer holds them."""
    RealQuantLinear._setup(layer := SimpleNamespace(weight_quantizer=quantizer, _parameters=parameters))  # ty: ignore
    return layer._parameters


def _reduce_storage(storage: torch.UntypedStorage) -> tuple[Any, ...]:
    """Pickle the bytes of a float8 tensor; torch cannot load what it writes itself."""
    torch.save(storage, buffer := io.BytesIO())
    return torch.storage._load_from_bytes, (buffer.getvalue(),)


def _dynamic_class(name: str) -> Any:
    """Return ModelOpt's class of a name such as ``RealQuantQuantLinear``, made if need be."""
    for prefix, registry in {"RealQuant": RealQuantModuleRegistry, "SVDQuant": SVDQuantModuleRegistry}.items():
        if name.startswith(prefix):
            plain = _dynamic_class(name.removeprefix(prefix))
            if plain not in registry:
                registry.register({plain: plain.__name__})(getattr(quant_linear, f"{prefix}Linear"))
            return registry[plain]
    for plain in list(QuantModuleRegistry._registry):
        if QuantModuleRegistry[plain].__name__ == name:
            return QuantModuleRegistry[plain]
    raise AttributeError(f"module {dynamic.__name__!r} has no attribute {name!r}")


def _apply(self: Any, fn: Function, recurse: bool = True) -> nn.Module:
    weight = self._parameters.get("weight")
    if not isinstance(weight, QTensorWrapper):
        return nn.Module._apply(self, fn, recurse)
    buffers, metadata = self.weight_quantizer._buffers, weight.metadata
    scales = {name: buffers[name] for name in RealQuantLinear.list_of_scale_tensors if name in buffers}
    dtype = fn(torch.empty(0, dtype=metadata["dtype"], device=weight.device)).dtype
    data, moved = _move(fn, weight.data), {name: _move(fn, scale) for name, scale in scales.items()}
    dict.__setitem__(self._parameters, "weight", None)
    buffers.update(dict.fromkeys(scales))
    try:
        nn.Module._apply(self, fn, recurse)
        scales, metadata = moved, metadata | {"dtype": dtype}
        if torch._has_compatible_shallow_copy_type(weight, data):
            weight.data, weight.metadata = data, metadata
        else:  # to or from the meta device
            weight = wrap(data, metadata)
    finally:
        dict.__setitem__(self._parameters, "weight", weight)
        buffers.update(scales)
    return self


def _move(fn: Function, tensor: torch.Tensor) -> torch.Tensor:
    """Apply what moves a module's tensors to the bytes of one. Casts spare them, but for that of ``Module.type``."""
    found = fn(tensor.detach().reshape(-1).view(torch.uint8))
    return tensor.to(found.device) if found.dtype != torch.uint8 else found.view(tensor.dtype).reshape(tensor.shape)
