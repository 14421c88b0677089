"""Pack each layer as its weight arrives in ``from_pretrained(..., quantization_config=...)``."""

from __future__ import annotations

from typing import Any

from modelopt_nb.upstream.layers import is_packed
from modelopt_nb.upstream.repairs.base import Patch, Repair


class PackWhileLoading(Repair):
    """Register the kit's quantizers for the method ``modelopt``.

    Diffusers has one of its own, which packs nothing. Transformers has none; it is left alone where it is not installed.
    """

    name = "pack-while-loading"
    broken = "mtq.compress skips the root of what it gets, and Diffusers passes it single layers: nothing is packed"
    versions = "diffusers 0.42.1 and earlier with nvidia-modelopt 0.39 and later"
    issue = "https://github.com/NVIDIA/Model-Optimizer/issues/2001"

    def __init__(self, diffusers_quantizer: type, transformers_quantizer: type | None, config_class: type) -> None:
        self.diffusers_quantizer, self.config_class = diffusers_quantizer, config_class
        self.transformers_quantizer = transformers_quantizer

    def needed(self) -> bool:
        import modelopt.torch.quantization as mtq
        from torch import nn

        model = nn.Sequential(nn.Linear(16, 16))
        entries = [{"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 8}}]
        mtq.quantize(model, {"quant_cfg": entries, "algorithm": "max"})
        mtq.compress(model[0])
        return not is_packed(model[0])

    def patches(self) -> list[Patch]:
        from diffusers.quantizers import auto

        found: list[Patch] = [(auto.AUTO_QUANTIZER_MAPPING, "modelopt", self.diffusers_quantizer)]
        if self.transformers_quantizer is not None:
            from transformers.quantizers import auto as transformers_auto

            configs: Any = transformers_auto.AUTO_QUANTIZATION_CONFIG_MAPPING
            found += [
                (transformers_auto.AUTO_QUANTIZER_MAPPING, "modelopt", self.transformers_quantizer),
                (configs, "modelopt", self.config_class),
            ]
        return found
