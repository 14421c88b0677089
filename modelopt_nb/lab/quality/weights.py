"""Measure what rounding does to weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelopt_nb import QUANT_TYPES, ModelOptConfig, WeightLayout, make_config, plan, round_weight

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn


def weight_errors(model: nn.Module, config: ModelOptConfig) -> pd.Series:
    """The relative error of every weight that ``config`` packs: the norm of the change over the norm of the weight.

    ``model`` stays dense: one layer at a time is copied and packed. The index names the layers. Activations and
    calibration play no part.
    """
    import pandas as pd

    errors = {}
    for layer in plan(model, config).layers:
        if layer.packed:
            weight = model.get_submodule(layer.name).weight.detach().reshape(layer.shape)
            change = round_weight(weight, layer.layout) - weight
            errors[layer.name] = (change.float().norm() / weight.float().norm()).item()
    return pd.Series(errors, name="relative error").rename_axis("layer")


def representable_values(quant_type: str) -> np.ndarray:
    """Every value that one block of a type can hold, as parts of the block's largest: sorted, within -1 to 1.

    Found by packing a fine ramp of weights and reading it back, so it is what ModelOpt does and not a table.
    """
    import numpy as np
    import torch

    half = np.unique(np.concatenate([np.geomspace(1e-6, 1, 2**14), np.linspace(0, 1, 2**14)]))
    ramp = torch.from_numpy(np.concatenate([-half[::-1], half])).float()  # both signs, so an even number
    block = {"channel_quantize": -1, "block_quantize": len(ramp)} if QUANT_TYPES[quant_type].needs_block else {}
    cfg = make_config(quant_type, **block).modelopt_config["quant_cfg"][1]["cfg"]
    read = round_weight(ramp[None], WeightLayout.from_cfg(cfg)).double().flatten()
    return np.unique((read / read.abs().max()).numpy().round(7))
