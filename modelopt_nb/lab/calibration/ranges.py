"""Activation ranges per layer and denoising step."""

from collections.abc import Sequence

import pandas as pd
from torch import nn

from modelopt_nb import describe_layers, input_amax
from modelopt_nb.lab.calibration.model_calls import ModelCall, check_calls
from modelopt_nb.lab.layers.select import layer_frame


def activation_ranges(model: nn.Module, calls: Sequence[ModelCall]) -> pd.DataFrame:
    """Measure the amax of each layer's input: one row per layer, one column per denoising step of ``calls``.

    The layers are those that can be quantized, in the model's order. NaN: the calls of that step never reach the layer.

    Raises:
        FloatingPointError: NaN or infinity in the model.
    """
    describe_layers(model, with_weights=True)
    check_calls(calls)
    layers = layer_frame(model).index
    frame = pd.DataFrame(index=pd.Index(layers, name="layer"), dtype=float)
    for step in sorted({call.step for call in calls}):
        with input_amax(model, layers, "calls") as found:
            for call in calls:
                if call.step == step:
                    call(model)
        frame[step] = pd.Series({name: amax.max().item() for name, amax in found.items()}, dtype=float)
    return frame.rename_axis("step", axis="columns")
