"""Pack each layer as its weight arrives in ``from_pretrained(..., quantization_config=...)``."""

import importlib.util
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from diffusers import ModelMixin
from diffusers.quantizers import auto
from torch import nn

from modelopt_nb.upstream.layers import is_packed
from modelopt_nb.upstream.repairs.base import Patch, Repair


def model_classes() -> list[tuple[type, Any]]:
    """Return the base class of models of each installed library, with the quantizer that packs them."""
    from modelopt_nb.upstream.repairs.pack_while_loading.diffusers_quantizer import DiffusersQuantizer

    found: list[tuple[type, Any]] = [(ModelMixin, DiffusersQuantizer)]
    if importlib.util.find_spec("transformers"):
        from transformers import PreTrainedModel

        from modelopt_nb.upstream.repairs.pack_while_loading.transformers_quantizer import TransformersQuantizer

        found.append((PreTrainedModel, TransformersQuantizer))
    return found


class PackWhileLoading(Repair):
    """Register the kit's quantizers for the method ``modelopt``.

    Diffusers has one of its own, which packs nothing. Transformers has none; it is left alone where it is not installed.
    """

    name = "pack-while-loading"
    broken = "mtq.compress skips the root of what it gets, and Diffusers passes it single layers: nothing is packed"
    versions = "diffusers 0.42.1 and earlier with nvidia-modelopt 0.39 and later"
    issue = "https://github.com/NVIDIA/Model-Optimizer/issues/2001"

    def __init__(self, packer_class: type, config_class: type) -> None:
        self.config_class = config_class
        self.quantizers = [quantizer for _, quantizer in model_classes()]
        for quantizer in self.quantizers:
            quantizer.packer_class = packer_class

    def needed(self) -> bool:
        with torch.random.fork_rng([]):
            model = nn.Sequential(nn.Linear(16, 16))
        entries = [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8}}]
        mtq.quantize(model, {"quant_cfg": entries, "algorithm": "max"})
        mtq.compress(model[0])
        return not is_packed(model[0])

    def patches(self) -> list[Patch]:
        found: list[Patch] = [(auto.AUTO_QUANTIZER_MAPPING, "modelopt", self.quantizers[0])]
        if len(self.quantizers) > 1:
            from transformers.quantizers import auto as transformers_auto

            configs: Any = transformers_auto.AUTO_QUANTIZATION_CONFIG_MAPPING
            found += [
                (transformers_auto.AUTO_QUANTIZER_MAPPING, "modelopt", self.quantizers[1]),
                (configs, "modelopt", self.config_class),
            ]
        return found
