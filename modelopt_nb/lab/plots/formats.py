"""Plot number formats and weight errors."""

import itertools

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from modelopt_nb.lab.plots.style import plain_legend, single_axes, type_style


def plot_format(quant_type: str, values: np.ndarray, weight: np.ndarray, block: int | None = None) -> Figure:
    """Plot the representable values of a block as lines, over the histogram of a weight scaled to its blocks' amax.

    Args:
        quant_type: For title and colour.
        values: From :func:`modelopt_nb.representable_values`, within -1 to 1.
        weight: A 2-D weight whose size is a multiple of ``block``.
        block: Block size; None: the whole tensor is one block.
    """
    blocks = weight.reshape(-1, block) if block else weight.reshape(1, -1)
    amax = np.abs(blocks).max(1, keepdims=True)
    scaled = (blocks / np.where(amax == 0, 1, amax)).ravel()
    figure, ax = single_axes(6.4, 3.2)
    ax.hist(scaled, bins=201, range=(-1, 1), color="#bbbbbb", label="weights")
    top = 0.12 * ax.get_ylim()[1]
    label = f"{len(values)} values of {quant_type}"
    ax.vlines(values, 0, top, color=type_style(quant_type)[0], linewidth=0.8, label=label)
    ax.set_xlabel(f"weight / amax of its {'block' if block else 'tensor'}")
    ax.set_ylabel("number of weights")
    ax.set_title(f"{quant_type}: representable values and a layer's weights", fontsize=10)
    ax.legend(fontsize=8, loc="upper right")
    return figure


def plot_errors(errors: pd.DataFrame, quant_type: str) -> Figure:
    """Plot the relative weight error of each layer: a column of ``errors`` per scheme, sorted by the first column."""
    errors = errors.sort_values(errors.columns[0])
    figure, ax = single_axes(6.4, 3.2)
    greys = matplotlib.colormaps["Greys"](np.linspace(0.95, 0.4, errors.shape[1]))
    colours = [type_style(quant_type)[0], *greys[1:]]
    for column, colour, marker in zip(errors, colours, itertools.cycle("osD^vPX"), strict=False):
        ax.plot(range(len(errors)), errors[column], marker, color=colour, markersize=3, label=str(column))
    ax.set_yscale("log")
    ax.set_xlabel("layer, sorted by its error")
    ax.set_ylabel("relative error of the weight")
    ax.set_title(f"{quant_type}: weight error per layer", fontsize=10)
    ax.grid(alpha=0.3, which="both")
    plain_legend(ax)
    return figure
