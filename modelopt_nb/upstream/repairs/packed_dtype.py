"""Give a packed weight the dtype that it is read as."""

from typing import Any

import torch
from modelopt.torch.quantization.qtensor import FP8QTensor, QTensorWrapper

from modelopt_nb.upstream.repairs.base import Patch, Repair


class PackedDtype(Repair):
    """Report the dtype that a packed weight is dequantized to, not its storage dtype.

    Models ask a weight for its dtype and cast their inputs to it: T5 before its feed-forward output, Wan before its time
    embedder, and every pipeline through ``model.dtype``. An input cast to float8 raises or loses its precision.
    """

    name = "packed-dtype"
    broken = "QTensorWrapper overrides dim() but not dtype, which stays that of the stored bytes"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/base_qtensor.py, QTensorWrapper"

    def needed(self) -> bool:
        return QTensorWrapper(FP8QTensor.quantize(torch.ones(2, 2))[0]).dtype != torch.float32

    def patches(self) -> list[Patch]:
        stored = vars(torch._C.TensorBase)["dtype"]

        def dtype(self: Any) -> torch.dtype:
            return self.metadata["dtype"] if hasattr(self, "metadata") else stored.__get__(self)

        return [(QTensorWrapper, "dtype", property(dtype))]
