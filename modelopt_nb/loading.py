"""It is done while loading: quantizers for Diffusers and Transformers that pack each layer as its weight arrives."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from diffusers.quantizers.modelopt import NVIDIAModelOptQuantizer
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer

from modelopt_nb import upstream
from modelopt_nb.quantization import Report, measured, plan

if TYPE_CHECKING:
    from diffusers import NVIDIAModelOptConfig
    from torch import nn


class Packing:
    """Packs the layers of one model while its weights arrive, whichever library brings them.

    The whole dense model never exists in memory. Where activations are calibrated by a forward loop, the loop needs the
    dense weights: then the layers are packed together at the end, after one calibration of the whole model.
    """

    def __init__(self, config: NVIDIAModelOptConfig, model: nn.Module) -> None:
        self.config, self.model = config, model
        self.algorithm = config.modelopt_config["algorithm"]
        self.layers, entries = plan(model, config)
        self.specs = {x.name: x.spec for x in self.layers if x.packed}
        self.dtypes = {name: model.get_submodule(name).weight.dtype for name in self.specs}
        upstream.insert_quantizers(model, entries, self.algorithm)

    def is_packed_weight(self, name: str) -> bool:
        """Whether the parameter ``name`` is the weight of a layer that is to be packed."""
        layer, _, tensor = name.rpartition(".")
        return tensor == "weight" and layer in self.specs

    def expect_packed(self, names: Iterable[str]) -> None:
        """Prepare for the tensors of a packed checkpoint, called ``names``."""
        saved = self.config.packed_dtype
        for name, spec in self.specs.items():
            dtype = self.dtypes[name]
            upstream.expect_packed(
                self.model.get_submodule(name), spec, getattr(torch, saved) if saved else dtype, dtype
            )
        for name in names:
            if name.endswith("input_quantizer._amax"):
                quantizer = self.model.get_submodule(name.rpartition(".")[0])
                quantizer.register_buffer("_amax", torch.empty((), device="meta"))

    def pack(self, name: str, weight: torch.Tensor) -> None:
        """Pack one weight that has arrived; it waits for the others where a forward loop will calibrate the model."""
        layer = self.model.get_submodule(name.rpartition(".")[0])
        layer._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
        if self.config.forward_loop is None:
            upstream.pack_layer(layer, self.algorithm)

    def finish(self, calibrate: bool) -> Report:
        """Record the packing on the model and measure it; first calibrate and pack it where a loop was waited for."""
        _align(self.model)
        loop = self.config.forward_loop if calibrate else None
        upstream.finish_packing(self.model, self.algorithm if loop else None, loop)
        self.config.packed_dtype = str(next(iter(self.dtypes.values()))).removeprefix("torch.")
        return measured(self.model, self.config, self.layers)


def _align(model: nn.Module) -> None:
    """Copy what still lies in the mapped checkpoint file, where tensors start at any byte.

    Some CPU kernels round differently on memory that is not aligned, so a loaded model would not give the outputs of one
    packed in memory, bit for bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


class DiffusersQuantizer(NVIDIAModelOptQuantizer):
    """Diffusers' quantizer for ModelOpt, on :class:`Packing`. ``report`` says what was packed and what was not.

    A packed checkpoint is put in place as it is: its configuration says how, and no pickle is needed.
    """

    report: Report | None = None

    @property
    def is_serializable(self) -> bool:
        return True

    def update_torch_dtype(self, torch_dtype: torch.dtype | None = None) -> torch.dtype:
        saved = getattr(self.quantization_config, "packed_dtype", None)
        if torch_dtype is None and self.pre_quantized and saved:
            torch_dtype = getattr(torch, saved)
        return super().update_torch_dtype(torch_dtype)

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self._loaded_keys = loaded_keys
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        self.packing = Packing(self.quantization_config, model)
        model.config.quantization_config = self.quantization_config
        if self.pre_quantized:
            self.packing.expect_packed(self._loaded_keys)

    def check_if_quantized_param(
        self, model: nn.Module, param_value: torch.Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        if self.packing.is_packed_weight(param_name):
            return True
        return self.pre_quantized and param_name.rpartition(".")[0].endswith("_quantizer")

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: torch.Tensor,
        param_name: str,
        target_device: Any,
        state_dict: dict[str, Any],
        *args: Any,
        dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> None:
        if self.pre_quantized:  # from state_dict: param_value was cast to the dtype of the model, scales and all
            upstream.place_packed(model, param_name, state_dict[param_name].to(target_device))
        else:
            self.packing.pack(param_name, param_value.to(device=target_device, dtype=dtype or param_value.dtype))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self.report = self.packing.finish(calibrate=not self.pre_quantized)
        return model


class TransformersQuantizer(HfQuantizer):
    """The same for Transformers, which has no quantizer for ModelOpt: packs a text encoder while it is loaded."""

    report: Report | None = None

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        if self.pre_quantized:
            raise NotImplementedError(
                f"{type(model).__name__}: packed Transformers models cannot be loaded yet. Load the dense one with "
                "quantization_config=make_config(...)"
            )
        self.packing = Packing(self.quantization_config, model)
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        return self.packing.is_packed_weight(param_name)

    def get_quantize_ops(self) -> ConversionOps:
        return _PackOnArrival(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self.report = self.packing.finish(calibrate=True)
        return model

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _PackOnArrival(ConversionOps):
    def __init__(self, quantizer: TransformersQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        model: nn.Module | None = None,
        full_layer_name: str | None = None,
        missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:
        (value,) = input_dict.values()
        self.quantizer.packing.pack(full_layer_name, value[0] if isinstance(value, list) else value)
        model.get_parameter(full_layer_name)._is_hf_initialized = True  # else it is taken for missing, and drawn anew
        if missing_keys is not None:
            missing_keys.discard(full_layer_name)
        return {}
