"""Pack and restore models in Transformers' ``from_pretrained``: what :mod:`pack_while_loading` registers."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.base import HfQuantizer

from modelopt_nb.upstream.repairs.base import METADATA
from modelopt_nb.upstream.repairs.pack_while_loading.dense import make_dense
from modelopt_nb.upstream.repairs.pack_while_loading.dtypes import copied


class TransformersQuantizer(HfQuantizer):
    """A quantizer for ModelOpt, which Transformers does not have, with a ``packer_class`` that packs."""

    packer_class: ClassVar[Any] = None
    quantization_config: Any
    report: Any = None

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        super().__init__(copied(quantization_config), **kwargs)

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        files = [Path(f) for f in checkpoint_files or ()]
        self.packer = self.packer_class(self.quantization_config, model, files, self.pre_quantized)
        if self.pre_quantized:
            self.packer.expect(files)
        return model

    def param_needs_quantization(self, model: nn.Module, param_name: str, **kwargs: Any) -> bool:
        return self.packer.is_packed_weight(param_name)

    def get_quantize_ops(self) -> ConversionOps:
        return _PackOnArrival(self)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        self.report = self.packer.finish()
        return model

    def _dequantize(self, model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
        return make_dense(model)

    def is_serializable(self) -> bool:
        return True

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[None, dict[str, str]]:
        return None, dict(METADATA)

    @property
    def is_trainable(self) -> bool:
        return False


class _PackOnArrival(ConversionOps):
    def __init__(self, quantizer: TransformersQuantizer) -> None:
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], model: Any = None, full_layer_name: str = "", missing_keys: set[str] | None = None,
        **kwargs: Any,
    ) -> dict[str, torch.Tensor]:  # fmt: skip
        (value,) = input_dict.values()
        self.quantizer.packer.pack(full_layer_name, value[0] if isinstance(value, list) else value)
        model.get_parameter(full_layer_name)._is_hf_initialized = True  # else it counts as missing and is initialized
        (missing_keys or set()).discard(full_layer_name)
        return {}
