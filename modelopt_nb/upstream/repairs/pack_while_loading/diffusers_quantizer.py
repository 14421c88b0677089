"""Pack and restore models in Diffusers' ``from_pretrained``: what :mod:`pack_while_loading` registers.

``from_pretrained(..., quantization_config=config)`` and ``from_pretrained(packed_folder)`` go through these steps:

1. Diffusers reads the configuration and creates this quantizer, then the model on the meta device.
2. The quantizer creates a packer. That verifies a packed checkpoint against its manifest, plans which layers to pack,
   inserts ModelOpt's quantizers and prepares the layers for packed tensors.
3. Diffusers reads the weights one by one. Each dense weight is packed as it arrives, so the whole dense model is never in
   memory; with a forward loop all wait for step 4. Each packed tensor is put in place unchanged.
4. The packer calibrates if there is a forward loop, packs the layers that wait for it, and measures the report.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers.modelopt import NVIDIAModelOptQuantizer
from torch import nn

from modelopt_nb.upstream.repairs.base import METADATA
from modelopt_nb.upstream.repairs.pack_while_loading.dense import make_dense
from modelopt_nb.upstream.repairs.pack_while_loading.dtypes import copied, main_dtype
from modelopt_nb.upstream.rollback import note_if_full


class DiffusersQuantizer(NVIDIAModelOptQuantizer):
    """Diffusers' quantizer for ModelOpt, with a ``packer_class`` that packs. ``report`` says what was packed.

    A packed checkpoint is restored from its configuration; no pickle is needed.
    """

    packer_class: ClassVar[Any] = None
    quantization_config: Any
    report: Any = None

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(copied(quantization_config), **kwargs)

    @property
    def is_serializable(self) -> bool:
        return True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        device_map = kwargs.get("device_map")
        if isinstance(device_map, dict) and "disk" in device_map.values():
            raise ValueError(
                f"device_map={device_map!r}: packed weights cannot be offloaded to disk. Allowed: CPU and CUDA devices"
            )

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        return state_dict, METADATA

    def update_torch_dtype(self, torch_dtype: Any = None) -> torch.dtype:
        saved = self.quantization_config.packed_dtype
        if torch_dtype is None and self.pre_quantized and saved:
            torch_dtype = getattr(torch, main_dtype(saved))
        return super().update_torch_dtype(torch_dtype)

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self._checkpoint = loaded_keys, [Path(f) for f in checkpoint_files]
        return loaded_keys

    def _process_model_before_weight_loading(self, model: Any, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, "_checkpoint"):  # from_single_file, which calls every checkpoint quantized
            self.pre_quantized, self._checkpoint = False, ([], [])
        names, files = self._checkpoint
        self.packer = self.packer_class(self.quantization_config, model, files, self.pre_quantized)
        model.register_to_config(quantization_config=self.quantization_config)
        if self.pre_quantized:
            self.packer.expect(files, names)

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        packed = next((name for name in state_dict if "_quantizer." in name), None)
        if packed and not hasattr(self, "_checkpoint"):  # from_single_file, which names no files
            raise ValueError(f"the file is of a packed model: it has {packed}. Allowed: from_pretrained of its folder")
        return state_dict

    def check_if_quantized_param(
        self, model: nn.Module, param_value: Any, param_name: str, *args: Any, **kwargs: Any
    ) -> bool:
        if self.packer.is_packed_weight(param_name):
            return True
        owner, _, tensor = param_name.rpartition(".")
        if not self.pre_quantized or owner.endswith("_quantizer"):
            return self.pre_quantized
        # what is not refused here for its shape is refused by Diffusers
        return self.packer.as_saved and param_value.shape == getattr(model.get_submodule(owner), tensor).shape

    def create_quantized_param(
        self, model: nn.Module, param_value: torch.Tensor, param_name: str, target_device: Any,
        state_dict: dict[str, Any], *args: Any, dtype: torch.dtype | None = None, **kwargs: Any,
    ) -> None:  # fmt: skip
        with note_if_full(model, param_name):
            if not self.pre_quantized:
                self.packer.pack(param_name, param_value.to(device=target_device, dtype=dtype or param_value.dtype))
                return
            owner, _, tensor = param_name.rpartition(".")
            module: Any = model.get_submodule(owner)
            # param_value was cast to the dtype of the model, scales and all
            value = (state_dict[param_name] if self.packer.keeps_dtype(param_name) else param_value).to(target_device)
            if tensor in module._buffers:
                module._buffers[tensor] = value
            else:
                module._parameters[tensor] = nn.Parameter(value, module._parameters[tensor].requires_grad)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self.report = self.packer.finish()
        return model

    def _dequantize(self, model: Any) -> nn.Module:
        model._internal_dict = FrozenDict({k: v for k, v in model.config.items() if k != "quantization_config"})
        vars(model).pop("quantization_method", None)
        return make_dense(model)
