"""You look at it: figures of a comparison. Nothing here quantizes or draws anew."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from modelopt_nb.comparison import Comparison, Variant

#: One colour and one marker for each quant type, in every notebook.
STYLE: dict[str, tuple[str, str]] = {
    "dense": ("#333333", "*"),
    "FP8": ("#0072b2", "o"),
    "INT8": ("#e69f00", "s"),
    "INT4": ("#d55e00", "D"),
    "NF4": ("#009e73", "^"),
    "NVFP4": ("#cc79a7", "v"),
}
CELL = 1.7  # inches, side of a picture in a figure


def style(variant: Variant) -> tuple[str, str]:
    """Colour and marker of a variant, by the type of its weights."""
    kind = variant.report.quant_type.split("_")[0] if variant.report else "dense"
    return STYLE.get(kind, ("#777777", "x"))


def frame_of(picture: np.ndarray) -> np.ndarray:
    """The picture itself, or the middle frame of a video."""
    return picture[len(picture) // 2] if picture.ndim == 4 else picture


def _canvas(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure

    size = (0.6 + CELL * columns, 0.5 + (CELL + 0.18) * rows)
    figure = Figure(figsize=size, dpi=100 if rows <= 6 else 80, layout="constrained")  # a large grid stays under 2 MB
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_linewidth(0.4)
    return figure, axes


def _row_label(ax: Axes, prompt: str) -> None:
    import textwrap

    ax.set_ylabel("\n".join(textwrap.wrap(prompt, 20)), fontsize=7)


def _db(values: list[float]) -> str:
    return f"{statistics.fmean(values):.1f} dB" if values else "the reference"


def plot_grid(comparison: Comparison, rows: int | None = None) -> Figure:
    """Pictures side by side: a row a prompt, a column a variant, dense first; MiB and PSNR in the captions."""
    prompts, variants = comparison.prompts[:rows], comparison.variants
    figure, axes = _canvas(len(prompts), len(variants))
    for column, variant in enumerate(variants):
        axes[0, column].set_title(f"{variant.name}\n{variant.weights.mib:.1f} MiB, {_db(variant.psnr)}", fontsize=8)
        for row, prompt in enumerate(prompts):
            ax = axes[row, column]
            ax.imshow(frame_of(variant.images[row]))
            if variant.psnr:
                ax.set_xlabel(f"{variant.psnr[row]:.1f} dB", fontsize=6, labelpad=2)
            if column == 0:
                _row_label(ax, prompt)
    return figure


def plot_pictures(pictures: Mapping[str, np.ndarray]) -> Figure:
    """Pictures in a row under their names, uint8 (height, width, 3) or videos of it."""
    figure, axes = _canvas(1, len(pictures))
    for ax, (name, picture) in zip(axes[0], pictures.items(), strict=True):
        ax.set_title(name, fontsize=8)
        ax.imshow(frame_of(picture))
    return figure


def plot_difference(comparison: Comparison, row: int = 0, gain: float = 5.0) -> Figure:
    """One prompt's pictures and, below them, their difference from dense, ``gain`` times amplified around grey."""
    variants = comparison.variants
    figure, axes = _canvas(2, len(variants))
    dense = frame_of(variants[0].images[row]).astype(np.float32)
    for column, variant in enumerate(variants):
        picture = frame_of(variant.images[row])
        difference = np.clip(128 + gain * (picture.astype(np.float32) - dense), 0, 255).astype(np.uint8)
        axes[0, column].set_title(variant.name, fontsize=8)
        axes[0, column].imshow(picture)
        axes[1, column].imshow(difference)
        if variant.psnr:
            axes[1, column].set_xlabel(f"{variant.psnr[row]:.1f} dB", fontsize=6, labelpad=2)
    _row_label(axes[0, 0], comparison.prompts[row])
    _row_label(axes[1, 0], f"difference from dense, x{gain:g}")
    return figure


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


def plot_layers(maps: Mapping[str, pd.DataFrame]) -> Figure:
    """Where the bytes are and what packs: kinds down, blocks across, a panel a frame of ``layer_frame(model, config)``.

    A cell says its MiB as it will be; blue is packed whole, white stays dense.
    """
    from matplotlib.figure import Figure

    from modelopt_nb.selection import KINDS

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


def plot_ranges(ranges: pd.DataFrame) -> Figure:
    """The frame of :func:`modelopt_nb.activation_ranges` as a heat map: each layer's range over its own largest, by step.

    Beside it the largest itself, on a logarithmic axis.
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


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.subplots()
