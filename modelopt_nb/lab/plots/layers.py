"""Plot layers: bytes, sensitivity, activation ranges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from modelopt_nb import KINDS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


def plot_layers(maps: Mapping[str, pd.DataFrame]) -> Figure:
    """Where the bytes are and what packs: kinds down, blocks across, a panel a frame of ``layer_frame(model, config)``.

    A cell says its MiB as it will be; blue is packed whole, white stays dense.
    """
    from matplotlib.figure import Figure

    every = list(maps.values())
    kinds = [kind for kind in KINDS if any((frame["kind"] == kind).any() for frame in every)]
    count = max(int(frame["block"].max()) + 1 if frame["block"].notna().any() else 0 for frame in every)
    columns = ["outside", *range(count)]
    size = (1.4 + len(maps) * (1.2 + 0.36 * len(columns)), 1.2 + 0.26 * len(kinds))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    for ax, (name, frame) in zip(panels, maps.items(), strict=True):
        place = [
            columns.index("outside" if block is None else block)
            for block in frame["block"].astype(object).where(frame["block"].notna(), None)
        ]
        cells = frame.assign(
            x=place, y=frame["kind"].map(kinds.index), saves=frame["dense bytes"].where(frame["packed"], 0)
        )
        cells = cells.groupby(["y", "x"])[["dense bytes", "packed bytes", "saves"]].sum()
        share, text = np.full((len(kinds), len(columns)), np.nan), {}
        for (y, x), row in cells.iterrows():
            share[y, x] = row["saves"] / row["dense bytes"]
            text[y, x] = f"{row['packed bytes'] / 2**20:.2f}"
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1.6, aspect="auto")
        for (y, x), label in text.items():
            ax.text(x, y, label, ha="center", va="center", fontsize=5.5)
        ax.set_xticks(range(len(columns)), columns, fontsize=7)
        ax.set_yticks(range(len(kinds)), kinds, fontsize=7)
        ax.set_xlabel("block", fontsize=8)
        ax.set_title(f"{name}: {frame['packed bytes'].sum() / 2**20:.1f} MiB", fontsize=9)
        for spine in ax.spines.values():
            spine.set_linewidth(0.4)
    return figure


def plot_sensitivity(frame: pd.DataFrame, rows: int = 30) -> Figure:
    """Bars for the groups of :func:`modelopt_nb.sensitivity`, most error for its bytes first: alone, and what sparing it takes away."""
    from matplotlib.figure import Figure

    shown = frame.head(rows).iloc[::-1]
    figure = Figure(figsize=(8, 1 + 0.19 * len(shown)), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = {
        "error alone": "error when it alone is quantized",
        "error per MiB saved": "the same, for each MiB that it saves",
    }
    for ax, (column, title), colour in zip(panels, titles.items(), ("#d55e00", "#0072b2"), strict=True):
        ax.barh(range(len(shown)), shown[column], color=colour)
        ax.set_title(title, fontsize=9)
        ax.tick_params(axis="x", labelsize=7)
        ax.grid(alpha=0.3, axis="x")
    panels[0].set_yticks(range(len(shown)), shown.index, fontsize=7)
    return figure


def plot_ranges(ranges: pd.DataFrame) -> Figure:
    """The frame of :func:`modelopt_nb.activation_ranges` as a heat map: each layer's range over its own largest, by step.

    BackgroundWidget it the largest itself, on a logarithmic axis.
    """
    from matplotlib.figure import Figure

    largest = ranges.max(axis=1)
    figure = Figure(figsize=(9, 1.2 + 0.085 * len(ranges)), dpi=100, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    image = left.imshow(
        ranges.div(largest, axis=0), aspect="auto", cmap="viridis", vmin=0, vmax=1, interpolation="nearest"
    )
    left.set_yticks(range(len(ranges)), ranges.index, fontsize=4)
    columns = range(0, ranges.shape[1], max(1, ranges.shape[1] // 10))
    left.set_xticks(columns, [ranges.columns[i] for i in columns], fontsize=7)
    left.set_xlabel("denoising step", fontsize=8)
    left.set_title("largest input in a step, over the layer's largest", fontsize=9)
    figure.colorbar(image, ax=left, fraction=0.03)
    right.barh(range(len(ranges)), largest, color="#0072b2")
    right.set_xscale("log")
    right.tick_params(axis="x", labelsize=7)
    right.set_title("the largest", fontsize=9)
    right.grid(alpha=0.3, axis="x")
    return figure
