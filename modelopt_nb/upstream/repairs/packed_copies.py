"""Copy and pickle packed models."""

import copy
import functools
import io
from types import SimpleNamespace
from typing import Any, cast

import torch
from modelopt.torch.opt import dynamic
from modelopt.torch.quantization.compress import RealQuantModuleRegistry
from modelopt.torch.quantization.conversion import SVDQuantModuleRegistry
from modelopt.torch.quantization.nn import QuantModuleRegistry, RealQuantLinear
from modelopt.torch.quantization.nn.modules import quant_linear
from modelopt.torch.quantization.qtensor import FP8QTensor, QTensorWrapper
from torch import nn

from modelopt_nb.upstream.repairs.base import Patch, Repair


class PackedCopies(Repair):
    """Let ``copy.deepcopy``, ``pickle``, ``torch.save`` and ``torch.load`` take packed layers.

    Layers have classes made while quantizing; pickle finds them by name.
    """

    name = "packed-copies"
    broken = (
        "QTensorWrapper is copied without its metadata; layers hold local classes, and methods of the original layer"
    )
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/nn/modules/quant_linear.py, RealQuantLinear._setup"

    def needed(self) -> bool:
        try:
            return type(copy.deepcopy(QTensorWrapper(FP8QTensor.quantize(torch.ones(2, 2))[0]))) is not QTensorWrapper
        except TypeError:
            return True

    def patches(self) -> list[Patch]:
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
            return memo.setdefault(id(self), cast(Any, QTensorWrapper)(self.data.clone(), dict(self.metadata)))

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
