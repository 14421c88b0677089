"""Keep zeros in NVFP4."""

from typing import Any

import torch
from modelopt.torch.quantization.qtensor import NVFP4QTensor

from modelopt_nb.upstream.repairs.base import Patch, Repair


class Nvfp4Zeros(Repair):
    """Pack a weight of zeros as zeros."""

    name = "nvfp4-zeros"
    broken = "NVFP4QTensor divides the block scales of a weight of zeros by a double scale of zero: all become NaN"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/nvfp4_tensor.py, get_weights_scaling_factor_2"

    def needed(self) -> bool:
        return bool(NVFP4QTensor.get_weights_scaling_factor(torch.zeros(1, 16), 16)[0].float().isnan().any())

    def patches(self) -> list[Patch]:
        def nonzero(name: str) -> Patch:
            original = getattr(NVFP4QTensor, name)

            def scale(cls: type, source: Any) -> torch.Tensor:
                found = original(source)
                return torch.where(found == 0, torch.ones_like(found), found)

            return NVFP4QTensor, name, classmethod(scale)

        return [*map(nonzero, ("get_weights_scaling_factor_2", "get_weights_scaling_factor_2_from_quantizer"))]
