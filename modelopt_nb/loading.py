"""It is done while loading: quantizers for Diffusers and Transformers that pack each layer as its weight arrives."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from diffusers.quantizers.modelopt import NVIDIAModelOptQuantizer
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer

from modelopt_nb import quantization, saving, upstream
from modelopt_nb.quantization import Report

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
        self.layers, entries = quantization.plan(model, config)
        self.specs = {x.name: x.layout for x in self.layers if x.packed}
        self.dtypes = {name: model.get_submodule(name).weight.dtype for name in self.specs}
        self.expected: dict[str, dict[str, Any]] = {}
        self.flattened = {x.name for x in self.layers if x.as_linear}
        for name in self.flattened:
            upstream.make_linear(model, name)
        upstream.insert_quantizers(model, entries, self.algorithm)

    def is_packed_weight(self, name: str) -> bool:
        """Whether the parameter ``name`` is the weight of a layer that is to be packed."""
        layer, _, tensor = name.rpartition(".")
        return tensor == "weight" and layer in self.specs

    def expect_packed(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Prepare for the tensors of a packed checkpoint, by name."""
        saved = self.config.packed_dtype
        self.expected = {}
        if self.algorithm["method"] == "svdquant":
            upstream.expect_low_rank(self.model)
        for name, spec in self.specs.items():
            layer, dtype = self.model.get_submodule(name), self.dtypes[name]
            if name in self.flattened:
                layer.weight = torch.nn.Parameter(layer.weight.flatten(1), requires_grad=False)
            self.expected[name] = upstream.expect_packed(layer, spec, getattr(torch, saved) if saved else dtype, dtype)
        for name, shape in shapes.items():
            owner, _, tensor = name.rpartition(".")
            if owner.endswith("input_quantizer") or tensor in upstream.LOW_RANK:  # what calibration found
                self.model.get_submodule(owner).register_buffer(tensor, torch.empty(tuple(shape), device="meta"))

    def pack(self, name: str, weight: torch.Tensor) -> None:
        """Pack one weight that has arrived; it waits for the others where a forward loop will calibrate the model."""
        name = name.rpartition(".")[0]
        layer = self.model.get_submodule(name)
        weight = weight.flatten(1) if name in self.flattened else weight
        layer._parameters["weight"] = torch.nn.Parameter(weight, requires_grad=False)
        if self.config.forward_loop is None:
            upstream.pack_layer(layer, self.algorithm)

    def finish(self, calibrate: bool) -> Report:
        """Record the packing on the model and measure it; first calibrate and pack it where a loop was waited for."""
        _align(self.model)
        for name, metadata in self.expected.items():
            upstream.wrap_packed(self.model.get_submodule(name), metadata)
        if calibrate and self.config.forward_loop is not None:
            quantization.calibrate(self.model, self.config, self.layers, self.config.forward_loop)
        upstream.finish_packing(self.model)
        self.config.packed_dtype = str(next(iter(self.dtypes.values()))).removeprefix("torch.")
        return quantization.measured(self.model, self.config, self.layers)


def _align(model: nn.Module) -> None:
    """Copy what still lies in the mapped checkpoint file, where tensors start at any byte.

    Some CPU kernels round differently on memory that is not aligned, so a loaded model would not give the outputs of one
    packed in memory, bit for bit.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
            tensor.data = tensor.data.clone()


def attach(model: nn.Module, config: NVIDIAModelOptConfig, report: Report) -> None:
    """Leave ``model``, packed after it was loaded, as if it had been packed while it was: ready to be saved."""
    kinds = {ModelMixin: DiffusersQuantizer, PreTrainedModel: TransformersQuantizer}
    for kind, quantizer in kinds.items():
        if isinstance(model, kind):
            config = copy.copy(config)  # the caller may pack another model with it
            config.packed_dtype = report.packed[0].dtype
            model.hf_quantizer = quantizer(config)
            model.hf_quantizer.report = report
            if kind is ModelMixin:
                model.register_to_config(quantization_config=config)
            else:
                model.config.quantization_config = config


class DiffusersQuantizer(NVIDIAModelOptQuantizer):
    """Diffusers' quantizer for ModelOpt, on :class:`Packing`. ``report`` says what was packed and what was not.

    A packed checkpoint is put in place as it is: its configuration says how, and no pickle is needed.
    """

    report: Report | None = None

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
        return state_dict, saving.METADATA

    def update_torch_dtype(self, torch_dtype: torch.dtype | None = None) -> torch.dtype:
        saved = getattr(self.quantization_config, "packed_dtype", None)
        if torch_dtype is None and self.pre_quantized and saved:
            torch_dtype = getattr(torch, saved)
        return super().update_torch_dtype(torch_dtype)

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        self._checkpoint = loaded_keys, [Path(f) for f in checkpoint_files]
        return loaded_keys

    def _process_model_before_weight_loading(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        names, files = getattr(self, "_checkpoint", ((), ()))
        if self.pre_quantized:
            saving.check(files, type(model).__name__)
        else:
            quantization.check_algorithm(self.quantization_config, self.quantization_config.forward_loop)
        self.packing = Packing(self.quantization_config, model)
        model.config.quantization_config = self.quantization_config
        if self.pre_quantized:
            self.packing.expect_packed(dict.fromkeys(names, ()) | saving.shapes(files))
            saving.check_tensors(files, model.state_dict(), {f"{name}.weight" for name in self.packing.specs})

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
            owner, _, tensor = param_name.rpartition(".")
            module, value = model.get_submodule(owner), state_dict[param_name].to(target_device)
            if tensor in module._buffers:
                module._buffers[tensor] = value
            else:
                module._parameters[tensor] = torch.nn.Parameter(value, requires_grad=False)
        else:
            self.packing.pack(param_name, param_value.to(device=target_device, dtype=dtype or param_value.dtype))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self.report = self.packing.finish(calibrate=not self.pre_quantized)
        return model


class TransformersQuantizer(HfQuantizer):
    """The same for Transformers, which has no quantizer for ModelOpt."""

    report: Report | None = None

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        saved = getattr(self.quantization_config, "packed_dtype", None)
        return getattr(torch, saved) if self.pre_quantized and saved and dtype == torch.get_default_dtype() else dtype

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        files = [Path(f) for f in checkpoint_files or ()]
        if self.pre_quantized:
            saving.check(files, type(model).__name__)
        else:
            quantization.check_algorithm(self.quantization_config, self.quantization_config.forward_loop)
        self.packing = Packing(self.quantization_config, model)
        if self.pre_quantized:
            self.packing.expect_packed(saving.shapes(files))
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        return self.packing.is_packed_weight(param_name)

    def get_quantize_ops(self) -> ConversionOps:
        return _PackOnArrival(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self.report = self.packing.finish(calibrate=not self.pre_quantized)
        return model

    def is_serializable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        return None, dict(saving.METADATA)

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
