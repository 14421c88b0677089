"""Pack weights with the scales that calibration found, in float32 where float16 is too small."""

import functools
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from modelopt.torch.quantization.config import QuantizerAttributeConfig
from modelopt.torch.quantization.nn import TensorQuantizer
from modelopt.torch.quantization.qtensor import FP8QTensor, INT8QTensor, int4_tensor, int8_tensor

from modelopt_nb.upstream.quiet import quiet
from modelopt_nb.upstream.repairs.base import Patch, Repair


class CalibratedScales(Repair):
    """Let packing use the calibrated amax in place of each block's largest value, and float32 scales in float16 models."""

    name = "calibrated-scales"
    broken = (
        "TensorQuantizer._real_quantize drops the amax of INT8 and INT4 weights, and packing takes each block's largest; "
        "in float16 the scales of small weights become 0 or infinity"
    )
    versions = "nvidia-modelopt 0.47.0 and earlier"
    issue = "not reported upstream; modelopt/torch/quantization/nn/modules/tensor_quantizer.py, _real_quantize"

    _amax: ContextVar[Any] = ContextVar("calibrated amax", default=None)

    def needed(self) -> bool:
        weight = torch.tensor([[1.0, -1.0]])
        quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=8), amax=torch.tensor(0.5))
        quantizer._fake_quant = False
        with quiet():
            return bool(quantizer.dequantize(quantizer(weight)).max() > 0.6)

    def patches(self) -> list[Patch]:
        original = TensorQuantizer._real_quantize

        @functools.wraps(original)
        def _real_quantize(self: TensorQuantizer, inputs: torch.Tensor) -> Any:
            scale_bits, dtype = (self._block_sizes or {}).get("scale_bits"), inputs.dtype
            if dtype == torch.float16 and scale_bits in (None, 8):  # NVFP4 computes in float32 itself
                inputs = inputs.float()
                if self.amax is not None:
                    self._buffers["_amax"] = self.amax.float()
            token = CalibratedScales._amax.set(self.amax if self._num_bits in (4, 8) and not scale_bits else None)
            try:
                packed = original(self, inputs)
            finally:
                CalibratedScales._amax.reset(token)
            packed.metadata["dtype"] = dtype
            return packed

        def calibrated(reduce: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            @functools.wraps(reduce)
            def reduced(*args: Any, **kwargs: Any) -> torch.Tensor:
                found, amax = reduce(*args, **kwargs), CalibratedScales._amax.get()
                return found if amax is None or amax.numel() != found.numel() else amax.reshape(found.shape).to(found)

            return reduced

        def once(dequantize: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            @functools.wraps(dequantize)
            def rounded_once(self: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> torch.Tensor:
                dtype = dtype or self.metadata["dtype"]
                return dequantize(self, torch.promote_types(dtype, kwargs["scale"].dtype), **kwargs).to(dtype)

            return rounded_once

        readers = [(cls, "dequantize", once(cls.dequantize)) for cls in (FP8QTensor, INT8QTensor)]
        reductions = [(int4_tensor, "reduce_amax"), (int8_tensor, "reduce_amax"), (int8_tensor, "reduce_block_amax")]
        return [
            (TensorQuantizer, "_real_quantize", _real_quantize),
            *readers,
            *((module, name, calibrated(getattr(module, name))) for module, name in reductions),
        ]
