"""Find the amax of activations with the least squared error of a histogram."""

import functools
from collections.abc import Callable

import numpy as np
import torch
from modelopt.torch.quantization.calib import histogram

from modelopt_nb.upstream.repairs.base import Patch, Repair


class HistogramMse(Repair):
    """Let the ``"mse"`` calibrator call the rounding functions with the arguments that they take."""

    name = "histogram-mse"
    broken = "_compute_amax_mse passes num_bits in the place of bias: INT8 gets a wrong amax, and FP8 a TypeError"
    issue = "not reported upstream; modelopt/torch/quantization/calib/histogram.py, _compute_amax_mse"

    def needed(self) -> bool:
        edges = np.linspace(0, 1, 257, dtype=np.float32)
        amax = histogram._compute_amax_mse(np.ones(256, dtype=np.float32), edges, 8, False)
        return bool(amax < 0.9)  # of values that are spread evenly

    def patches(self) -> list[Patch]:
        def without_bias(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            return functools.wraps(function)(lambda values, amax, *rest: function(values, amax, None, *rest))

        return [(histogram, n, without_bias(getattr(histogram, n))) for n in ("fake_tensor_quant", "scaled_e4m3")]
