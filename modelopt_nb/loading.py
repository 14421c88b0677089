"""It is done while loading: Diffusers' quantizer for ModelOpt, which packs each layer as its weight arrives."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers.quantizers.modelopt import NVIDIAModelOptQuantizer

from modelopt_nb import upstream
from modelopt_nb.memory import weight_bytes
from modelopt_nb.quantization import Report, measured, plan

if TYPE_CHECKING:
    from diffusers import ModelMixin


class Quantizer(NVIDIAModelOptQuantizer):
    """Packs a dense checkpoint while it is loaded, and puts the tensors of a packed one in place as they are.

    The whole dense model never exists in memory. Where activations are calibrated by a forward loop, the loop needs the
    dense weights: then the layers are packed together at the end, after one calibration of the whole model.
    ``report`` says what was packed and what was not.
    """

    report: Report | None = None

    @property
    def is_serializable(self) -> bool:
        return True  # without ModelOpt's pickle too: the configuration says how the weights are packed

    def update_torch_dtype(self, torch_dtype: torch.dtype | None = None) -> torch.dtype:
        saved = getattr(self.quantization_config, "packed_dtype", None)
        if torch_dtype is None and self.pre_quantized and saved:
            torch_dtype = getattr(torch, saved)
        return super().update_torch_dtype(torch_dtype)

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self._loaded_keys = loaded_keys
        return loaded_keys

    def _process_model_before_weight_loading(
        self, model: ModelMixin, device_map: Any = None, keep_in_fp32_modules: list[str] | None = None, **kwargs: Any
    ) -> None:
        config = self.quantization_config
        self._layers, entries = plan(model, config)
        self._before, self._algorithm = weight_bytes(model), config.modelopt_config["algorithm"]
        self._packed = {x.name: x.spec for x in self._layers if x.packed}
        dtypes = {name: model.get_submodule(name).weight.dtype for name in self._packed}
        upstream.insert_quantizers(model, entries, self._algorithm)
        model.config.quantization_config = config
        if not self.pre_quantized:
            config.packed_dtype = str(next(iter(dtypes.values()))).removeprefix("torch.")
            return
        for name, spec in self._packed.items():
            saved = getattr(torch, config.packed_dtype) if config.packed_dtype else dtypes[name]
            upstream.expect_packed(model.get_submodule(name), spec, saved, dtypes[name])
        for key in self._loaded_keys:
            if key.endswith("input_quantizer._amax"):
                model.get_submodule(key.rpartition(".")[0]).register_buffer("_amax", torch.empty((), device="meta"))

    def check_if_quantized_param(
        self, model: ModelMixin, param_value: torch.Tensor, param_name: str, state_dict: dict[str, Any], **kwargs: Any
    ) -> bool:
        owner, _, tensor = param_name.rpartition(".")
        if self.pre_quantized:
            return tensor == "weight" and owner in self._packed or owner.endswith("_quantizer")
        return tensor == "weight" and owner in self._packed and not self.quantization_config.forward_loop

    def create_quantized_param(
        self,
        model: ModelMixin,
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
            return
        layer = model.get_submodule(param_name.rpartition(".")[0])
        weight = param_value.to(device=target_device, dtype=dtype or param_value.dtype)
        layer._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
        upstream.pack_layer(layer, self._algorithm)

    def _process_model_after_weight_loading(self, model: ModelMixin, **kwargs: Any) -> ModelMixin:
        loop = None if self.pre_quantized else self.quantization_config.forward_loop
        _align(model)
        upstream.finish_packing(model, self._algorithm if loop else None, loop)
        self.report = measured(model, self.quantization_config, self._layers, self._before)
        return model


def _align(model: ModelMixin) -> None:
    """Copy what still lies in the mapped checkpoint file, where tensors start at any byte.

    Some CPU kernels round differently on memory that is not aligned, so a loaded model would not give the outputs of one
    packed in memory, bit for bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()
