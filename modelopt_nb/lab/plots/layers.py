"""Plot layers: bytes, sensitivity, activation ranges."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from modelopt_nb import MIB
from modelopt_nb.lab.layers.kinds import KINDS
from modelopt_nb.lab.plots.style import PLAIN

OUTSIDE = -1  # block of a layer that is in no block


def plot_layers(maps: Mapping[str, pd.DataFrame]) -> Figure:
    """Plot MiB after packing by kind (rows) and block (columns), a panel per frame of ``layer_frame(model, config)``.

    Dark blue is packed completely, white stays dense. ``maps`` holds the frames by title.
    """
    frames = {name: frame.assign(block=frame["block"].fillna(OUTSIDE).astype(int)) for name, frame in maps.items()}
    kinds = [kind for kind in KINDS if any((frame["kind"] == kind).any() for frame in frames.values())]
    blocks = range(OUTSIDE, max(frame["block"].max() for frame in frames.values()) + 1)
    size = (1.4 + len(maps) * (1.2 + 0.36 * len(blocks)), 1.3 + 0.26 * len(kinds))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for ax, (name, frame) in zip(panels, frames.items(), strict=True):
        frame = frame.assign(inside=frame["dense bytes"].where(frame["packed"], 0))
        sums = frame.groupby(["kind", "block"])[["inside", "dense bytes", "packed bytes"]].sum()
        cells = sums.reindex(pd.MultiIndex.from_product([kinds, blocks])).to_numpy(float)
        in_packed, before, after = cells.T.reshape(3, len(kinds), len(blocks))
        ax.imshow(in_packed / before, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
        for y, x in np.argwhere(~np.isnan(after)):
            ax.text(x, y, f"{after[y, x] / MIB:.2f}", ha="center", va="center", fontsize=5.5)
        ax.set_xticks(range(len(blocks)), ["outside", *map(str, blocks[1:])], fontsize=7)
        ax.set_yticks(range(len(kinds)), kinds, fontsize=7)
        ax.set_xlabel("block", fontsize=8)
        ax.set_title(f"{name}: {frame['packed bytes'].sum() / MIB:.1f} MiB", fontsize=9, **PLAIN)
        for spine in ax.spines.values():
            spine.set_linewidth(0.4)
    panels[0].set_ylabel("kind of layer", fontsize=8)
    figure.supxlabel("MiB after packing; blue: packed, white: dense", fontsize=8)
    return figure


def plot_sensitivity(frame: pd.DataFrame, rows: int = 30) -> Figure:
    """Plot bars for the first ``rows`` groups of :func:`modelopt_nb.sensitivity`: error alone, and per MiB saved."""
    shown = frame.head(rows).iloc[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.19 * len(shown)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    left.barh(range(len(shown)), shown["error alone"], color="#d55e00")
    left.set_title("Error when this group alone is quantized", fontsize=9)
    left.set_xlabel("squared change of the output / squared output", fontsize=8)
    left.set_yticks(range(len(shown)), shown.index, fontsize=7, **PLAIN)
    if len(frame) > len(shown):
        left.set_ylabel(f"first {len(shown)} of {len(frame)} groups", fontsize=8)
    right.barh(range(len(shown)), shown["error per MiB saved"], color="#0072b2")
    right.set_title("The same per MiB saved", fontsize=9)
    right.set_xlabel("error per MiB", fontsize=8)
    for ax in (left, right):
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(alpha=0.3, axis="x")
    return figure


def plot_ranges(ranges: pd.DataFrame) -> Figure:
    """Plot the frame of :func:`modelopt_nb.activation_ranges`: each layer's input amax by step, over its maximum.

    The bars on the right show the maximum itself on a logarithmic axis.
    """
    amax = ranges.max(axis=1)
    figure = Figure(figsize=(9, 1.2 + 0.085 * len(ranges)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    shares = ranges.div(amax, axis=0)
    image = left.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    left.set_yticks(range(len(ranges)), ranges.index, fontsize=4)
    columns = range(0, ranges.shape[1], max(1, ranges.shape[1] // 10))
    left.set_xticks(columns, [str(ranges.columns[i]) for i in columns], fontsize=7)
    left.set_xlabel("denoising step", fontsize=8)
    left.set_title("Input amax in a step / over all steps", fontsize=9)
    figure.colorbar(image, ax=left, fraction=0.03)
    right.barh(range(len(ranges)), amax, color="#0072b2")
    right.set_xscale("log")
    right.set_xlabel("input amax", fontsize=8)
    right.tick_params(axis="x", labelsize=7)
    right.set_title("Over all steps", fontsize=9)
    right.grid(alpha=0.3, axis="x")
    return figure
