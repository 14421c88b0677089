"""Plot number formats and weight errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from modelopt_nb.lab.plots.style import STYLE, _one

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def plot_format(quant_type: str, values: np.ndarray, weight: np.ndarray, block: int | None = None) -> Figure:
    """The values that a block can hold, as lines, over the histogram of a real weight, each block scaled to its largest.

    ``values`` is from :func:`modelopt_nb.representable_values`; ``weight`` is 2-D, ``block`` its block size (None: the
    whole tensor is one).
    """
    blocks = weight.reshape(-1, block) if block else weight.reshape(1, -1)
    largest = np.abs(blocks).max(1, keepdims=True)
    scaled = (blocks / np.where(largest == 0, 1, largest)).ravel()
    figure, ax = _one(6.4, 3.2)
    ax.hist(scaled, bins=201, range=(-1, 1), color="#bbbbbb", label="weights")
    height = ax.get_ylim()[1]
    ax.vlines(
        values,
        0,
        0.12 * height,
        color=STYLE[quant_type][0],
        linewidth=0.8,
        label=f"{len(values)} values of {quant_type}",
    )
    ax.set_xlabel(
        "weight, as a part of the largest in its block" if block else "weight, as a part of the largest in its tensor"
    )
    ax.set_ylabel("weights")
    ax.set_title(f"{quant_type}: the values it has, and a layer's weights", fontsize=10)
    ax.legend(fontsize=8, loc="upper right")
    return figure


def plot_errors(errors: pd.DataFrame, quant_type: str) -> Figure:
    """The relative error of every layer's weight, a column of ``errors`` a scheme, sorted by the first."""
    import matplotlib

    errors = errors.sort_values(errors.columns[0])
    figure, ax = _one(6.4, 3.2)
    shades = matplotlib.colormaps["Greys"](np.linspace(0.95, 0.4, errors.shape[1]))
    shades[0] = matplotlib.colors.to_rgba(STYLE[quant_type][0])
    for column, shade, marker in zip(errors.columns, shades, "osD^vPX", strict=False):
        ax.plot(range(len(errors)), errors[column], marker, color=shade, markersize=3, label=column)
    ax.set_yscale("log")
    ax.set_xlabel("layer, sorted by its error")
    ax.set_ylabel("relative error of the weight")
    ax.set_title(f"{quant_type}: error a layer", fontsize=10)
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=8)
    return figure
