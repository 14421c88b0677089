"""Plot quality against bytes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from modelopt_nb.lab.compare.results import Comparison
from modelopt_nb.lab.plots.style import STYLE, _one, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_quality(comparison: Comparison) -> Figure:
    """PSNR against the component's MiB, a point a variant, with the dense size as a line."""
    figure, ax = _one(6, 3.6)
    ax.axvline(comparison.variants[0].weights.mib, color=STYLE["dense"][0], linestyle="--", linewidth=1, label="dense")
    for variant in comparison.variants[1:]:
        colour, marker = style(variant)
        low, mean, high = min(variant.psnr), statistics.fmean(variant.psnr), max(variant.psnr)
        bars = [[mean - low], [high - mean]]
        ax.errorbar(
            variant.weights.mib, mean, bars, color=colour, marker=marker, markersize=7, capsize=3, label=variant.name
        )
    ax.set_xlabel(f"{comparison.component} weights, MiB (scales included)")
    ax.set_ylabel("PSNR against dense, dB")
    ax.set_title("Quality against bytes: mean, with the worst and best prompt", fontsize=10)
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure


def plot_schemes(comparison: Comparison) -> Figure:
    """A row a variant, fewest bits last: what the reader names right, with its 95 % interval, and PSNR against dense.

    For a comparison whose prompts say their subject and background, as those of :func:`modelopt_nb.load_prompts` do.
    """
    from matplotlib.figure import Figure

    frame = comparison.frame.sort_values("bits per weight", kind="stable")
    styles = {v.name: style(v) for v in comparison.variants}
    figure = Figure(figsize=(8.4, 1.1 + 0.3 * len(frame)), dpi=100, layout="constrained")
    panels = figure.subplots(1, 3, sharey=True, width_ratios=(2, 2, 2))
    for y, (name, row) in enumerate(frame.iterrows()):
        colour, marker = styles[name]
        for ax, column in zip(panels, ("subject_ok", "background_ok"), strict=False):
            ax.plot([row[f"{column} low"], row[f"{column} high"]], [y, y], color=colour, linewidth=1.5)
            ax.plot(row[column], y, marker, color=colour, markersize=7)
        panels[2].plot(row["PSNR dB"], y, marker, color=colour, markersize=7)
    labels = [f"{name}, {row['bits per weight']:.1f} bits a weight" for name, row in frame.iterrows()]
    panels[0].set_yticks(range(len(frame)), labels, fontsize=8)
    titles = ("subject right, %", "background right, %", "PSNR against dense, dB")
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(title, fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(alpha=0.3)
    figure.supxlabel(f"{len(comparison.prompts)} prompts, {comparison.steps} steps; bars: 95 % intervals", fontsize=8)
    return figure


def plot_frontier(comparison: Comparison, families: Mapping[str, Sequence[str]]) -> Figure:
    """PSNR against MiB, a colour and a line a family of variants; each point has its variant's name."""
    figure, ax = _one(7, 4.2)
    frame = comparison.frame
    for (family, names), (colour, marker) in zip(families.items(), list(STYLE.values())[1:], strict=False):
        points = frame.loc[list(names)].sort_values("weights MiB")
        ax.plot(
            points["weights MiB"], points["PSNR dB"], marker, linestyle="--", linewidth=0.8, color=colour, label=family
        )
        for name, point in points.iterrows():
            ax.annotate(
                name, (point["weights MiB"], point["PSNR dB"]), xytext=(4, -9), textcoords="offset points", fontsize=6
            )
    ax.set_xlabel(f"{comparison.component} weights, MiB (scales included)")
    ax.set_ylabel("PSNR against dense, dB")
    ax.set_title("Quality against bytes", fontsize=10)
    ax.margins(x=0.15, y=0.1)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return figure
