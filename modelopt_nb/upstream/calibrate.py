"""Run ModelOpt's calibration."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization.calib import HistogramCalibrator
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import nn

from modelopt_nb.upstream.quiet import quiet


def run_calibration(
    model: nn.Module,
    algorithm: dict[str, Any],
    forward_loop: Callable[[nn.Module], None] | None,
    calibrator: str = "max",
    percentile: float = 99.9,
) -> None:
    """Calibrate a model that has quantizers. ``calibrator`` and ``percentile`` say how a histogram becomes an amax."""
    calibrators = [getattr(m, "_calibrator", None) for m in model.modules() if isinstance(m, TensorQuantizer)]
    histograms = [c for c in calibrators if isinstance(c, HistogramCalibrator)]
    for c in histograms:  # mtq.calibrate calls compute_amax without arguments
        vars(c)["compute_amax"] = functools.partial(c.compute_amax, calibrator, percentile=percentile)
    try:
        with quiet():
            mtq.calibrate(model, algorithm, forward_loop)
    finally:
        for c in histograms:
            del vars(c)["compute_amax"]


def collect_amax(model: nn.Module, amax: Mapping[str, torch.Tensor]) -> None:
    """Give the input quantizers of layers the amax of their inputs to calibrate on, without running the layers."""
    for name, values in amax.items():
        quantizer: Any = model.get_submodule(name).input_quantizer
        quantizer(values)


def has_channel_scales(model: nn.Module) -> bool:
    """Return whether calibration scaled the input channels of any layer, as smoothquant and awq_lite do."""
    quantizers = (getattr(module, "input_quantizer", None) for module in model.modules())
    return any(getattr(quantizer, "pre_quant_scale", None) is not None for quantizer in quantizers)
