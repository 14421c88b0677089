"""Give a packed weight the dtype, axes and number of weights that it is read as."""

from typing import Any

import torch
from modelopt.torch.quantization.qtensor import FP8QTensor, QTensorWrapper
from torch._guards import TracingContext

from modelopt_nb.upstream.repairs.base import Patch, Repair


class PackedDtype(Repair):
    """Report what a packed weight is dequantized to, not its storage: dtype, axes and number of weights.

    Models ask a weight for its dtype and cast their inputs to it: T5 before its feed-forward output, Wan before its time
    embedder, and every pipeline through ``model.dtype``. An input cast to float8 raises or loses its precision.
    ``torch.compile`` traces the stored tensor, so it gets the stored dtype and axes.
    """

    name = "packed-dtype"
    broken = "QTensorWrapper overrides dim() but not dtype, ndim and numel(), which stay those of the stored bytes"
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/qtensor/base_qtensor.py, QTensorWrapper"

    def needed(self) -> bool:
        return QTensorWrapper(FP8QTensor.quantize(torch.ones(2, 2))[0]).dtype != torch.float32

    def patches(self) -> list[Patch]:
        stored = vars(torch._C.TensorBase)

        def traced(weight: Any) -> bool:
            return TracingContext.try_get() is not None or not hasattr(weight, "metadata")

        def dtype(self: Any) -> torch.dtype:
            return stored["dtype"].__get__(self) if traced(self) else self.metadata["dtype"]

        def dim(self: Any) -> int:
            return stored["dim"](self) if traced(self) else len(self.metadata["shape"])

        def numel(self: Any) -> int:  # nelement() stays the stored one, for it counts bytes with element_size()
            return stored["numel"](self) if traced(self) else self.metadata["shape"].numel()

        replaced = {"dtype": property(dtype), "ndim": property(dim), "dim": dim, "numel": numel}
        return [(QTensorWrapper, name, value) for name, value in replaced.items()]
