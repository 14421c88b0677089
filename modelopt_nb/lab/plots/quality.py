"""Plot quality against bytes."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelopt_nb.lab.compare.results import Comparison
from modelopt_nb.lab.plots.style import FALLBACK, PLAIN, STYLE, plain_legend, single_axes, variant_style
from modelopt_nb.lab.quality.statistics import median

NOT_SHOWN = " (not shown: no finite PSNR)"


def plot_quality(comparison: Comparison) -> Figure:
    """Plot PSNR (median, worst and best prompt) against the component's MiB, a point per variant; a line marks dense."""
    figure, ax = single_axes(6, 3.6)
    dense, *others = comparison.variants
    ax.axvline(dense.weights.mib, color=STYLE["dense"][0], linestyle="--", linewidth=1, label="dense")
    for variant in others:
        colour, marker = variant_style(variant)
        finite = [x for x in variant.psnr if math.isfinite(x)]
        middle, mib, known = median(finite), variant.weights.mib, finite or [math.nan]
        spread = [[middle - min(known)], [max(known) - middle]]
        label = variant.name if finite else f"{variant.name}{NOT_SHOWN}"
        ax.errorbar(mib, middle, spread, color=colour, marker=marker, markersize=7, capsize=3, label=label)
    ax.set_title("Quality against bytes: median, worst and best prompt", fontsize=10)
    ax.set_xlim(left=0)
    _label_axes(ax, comparison)
    return figure


def plot_frontier(comparison: Comparison, families: Mapping[str, Sequence[str]]) -> Figure:
    """Plot PSNR against the component's MiB: a line per family, a labelled point per variant.

    ``families`` holds names of variants by the family's name.
    """
    figure, ax = single_axes(7, 4.2)
    frame = comparison.frame
    styles = itertools.cycle([*list(STYLE.values())[1:], *FALLBACK])
    for (family, names), (colour, marker) in zip(families.items(), styles, strict=False):
        points = frame.loc[list(names), ["weights MiB", "PSNR dB"]].sort_values("weights MiB")
        hidden = points.index[~np.isfinite(points["PSNR dB"])]
        points, family = points.drop(hidden), "; ".join([family, *(f"{name}{NOT_SHOWN}" for name in hidden)])
        x, y = points["weights MiB"], points["PSNR dB"]
        ax.plot(x, y, marker, linestyle="--", linewidth=0.8, color=colour, label=family)
        for name, point in zip(points.index, points.to_numpy(), strict=True):
            ax.annotate(str(name), point, xytext=(4, -9), textcoords="offset points", fontsize=6, **PLAIN)
    ax.set_title("Quality against bytes", fontsize=10)
    ax.margins(x=0.15, y=0.1)
    _label_axes(ax, comparison)
    return figure


def _label_axes(ax: Axes, comparison: Comparison) -> None:
    ax.set_xlabel(f"{comparison.component} weights, MiB (scales included)")
    ax.set_ylabel("PSNR against dense, dB")
    ax.grid(alpha=0.3)
    plain_legend(ax)


def plot_schemes(comparison: Comparison) -> Figure:
    """Plot classifier accuracy with 95 % intervals, and PSNR against dense: a row per variant, fewest bits first.

    Raises:
        ValueError: The prompts are without subject and background, which :func:`modelopt_nb.load_prompts` gives.
    """
    frame = comparison.frame.sort_values("bits per weight", kind="stable")
    if "subject_ok" not in frame:
        raise ValueError("comparison has no column subject_ok. Allowed: comparisons on prompts from load_prompts(...)")
    styles = {v.name: variant_style(v) for v in comparison.variants}
    figure = Figure(figsize=(8.4, 1.1 + 0.3 * len(frame)), dpi=100, layout="constrained")
    titles = ("classifier: subject right, %", "classifier: background right, %", "PSNR against dense, dB")
    panels = figure.subplots(1, 3, sharey=True)
    for ax, column, title in zip(panels, ("subject_ok", "background_ok", "PSNR dB"), titles, strict=True):
        for y, name in enumerate(frame.index):
            colour, marker = styles[str(name)]
            if f"{column} low" in frame:
                interval = frame.loc[name, [f"{column} low", f"{column} high"]]
                ax.plot(interval, [y, y], color=colour, linewidth=1.5)
            ax.plot(frame.loc[name, column], y, marker, color=colour, markersize=7)
        ax.set_title(title, fontsize=9)
        ax.tick_params(axis="x", labelsize=8)
        ax.grid(alpha=0.3)
    labels = [f"{name}, {bits:.1f} bits per weight" for name, bits in frame["bits per weight"].items()]
    panels[0].set_yticks(range(len(frame)), labels, fontsize=8, **PLAIN)
    figure.supxlabel(f"{len(comparison.prompts)} prompts, {comparison.steps} steps; bars: 95 % intervals", fontsize=8)
    return figure
