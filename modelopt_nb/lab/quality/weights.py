"""Measure the rounding of weights, and the bytes of packed ones."""

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from modelopt_nb import ModelOptConfig, Report, describe_layers, enable, make_config, plan, round_weight


def weight_errors(model: nn.Module, config: ModelOptConfig) -> pd.Series:
    """Compute the relative error of each weight that ``config`` packs: norm of the change over norm of the weight.

    ``model`` stays dense: one weight at a time is copied and packed. The index has the layers' names. Activations and
    calibration do not matter.
    """
    describe_layers(model, with_weights=True)
    enable()
    errors = {}
    for layer in plan(model, config).layers:
        if layer.layout is not None:  # packed
            weight = model.get_parameter(f"{layer.name}.weight").detach().reshape(layer.shape)
            change = round_weight(weight, layer.layout.cfg) - weight
            errors[layer.name] = (change.float().norm() / weight.float().norm().clamp(min=1e-30)).item()  # zeros: 0
    return pd.Series(errors, name="relative error").rename_axis("layer")


def representable_values(quant_type: str) -> np.ndarray:
    """Find all values of one block of a quant type, as shares of the block's amax: sorted, float64 in -1..1.

    Measured by packing a fine ramp of weights with ModelOpt and unpacking it.
    """
    enable()
    half = np.unique(np.concatenate([np.geomspace(1e-6, 1, 2**14), np.linspace(0, 1, 2**14)]))
    ramp = torch.from_numpy(np.concatenate([-half[::-1], half])).float()  # even length: zero is in both halves
    one_block: dict[str, Any] = {"channel_quantize": -1, "block_quantize": len(ramp)}
    config = make_config(quant_type)
    config = make_config(quant_type, **one_block) if config.block_quantize else config
    layout = plan(nn.Sequential(nn.Linear(len(ramp), 1, device="meta")), config).layers[0].layout
    assert layout is not None
    unpacked = round_weight(ramp[None], layout.cfg).double().flatten()
    return np.unique((unpacked / unpacked.abs().max()).numpy().round(7))


def packed_bytes(report: Report) -> pd.Series:
    """Compare the measured bytes of the packed layers with the bytes that arithmetic expects of their format."""
    measured = sum(x.packed_bytes for x in report.packed)
    expected = sum(x.layout.bytes(x.shape, x.dtype) for x in report.packed if x.layout)
    values = {
        "layers packed": len(report.packed),
        "layers dense": len(report.layers) - len(report.packed),
        "measured bytes": measured,
        "expected bytes": expected,
        "measured/expected": measured / expected,
        "bits per packed weight": 8 * measured / sum(math.prod(x.shape) for x in report.packed),
    }
    return pd.Series(values)
