"""Colours, markers and axes shared by all plots."""

import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modelopt_nb import QUANT_TYPES
from modelopt_nb.lab.compare.variants import Variant
from modelopt_nb.lab.quality.statistics import median

#: One colour and one marker per quant type, in every notebook.
STYLE: dict[str, tuple[str, str]] = {
    "dense": ("#333333", "*"),
    "FP8": ("#0072b2", "o"),
    "INT8": ("#e69f00", "s"),
    "INT4": ("#d55e00", "D"),
    "NF4": ("#009e73", "^"),
    "NVFP4": ("#cc79a7", "v"),
}
#: For quant types that are not in :data:`STYLE`, in their order.
FALLBACK = (("#56b4e9", "P"), ("#882255", "X"), ("#999933", "p"), ("#332288", "h"))

#: Of a text that holds a prompt or a name: "$" is a dollar sign and begins no formula.
PLAIN: dict[str, Any] = {"parse_math": False}
IMAGE_INCHES = 1.7  # side of an image in a figure


def type_style(quant_type: str) -> tuple[str, str]:
    """Return colour and marker of a quant type; of a combined type, those of its weights."""
    weights = quant_type.split("_")[0]
    if weights in STYLE:
        return STYLE[weights]
    others = [name for name in QUANT_TYPES if name not in STYLE]
    return FALLBACK[(others.index(weights) if weights in others else len(others)) % len(FALLBACK)]


def variant_style(variant: Variant) -> tuple[str, str]:
    """Return colour and marker of a variant of a comparison."""
    return type_style(variant.report.quant_type) if variant.report else STYLE["dense"]


def frame_of(image: np.ndarray) -> np.ndarray:
    """Return the image (height, width, 3), or the middle frame of a video (frames, height, width, 3)."""
    return image[len(image) // 2] if image.ndim == 4 else image


def image_axes(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes (rows, columns) for images, without ticks."""
    size = (0.6 + IMAGE_INCHES * columns, 0.5 + (IMAGE_INCHES + 0.18) * rows)
    figure = Figure(figsize=size, dpi=100 if rows <= 6 else 80, layout="constrained")  # keeps large grids under 2 MB
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_xticks([])
        ax.set_yticks([])
        for spine in ax.spines.values():
            spine.set_linewidth(0.4)
    return figure, axes


def single_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of that size in inches and its one pair of axes."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.subplots()


def plain_legend(ax: Axes) -> None:
    """Add a legend of variants or other names."""
    for text in ax.legend(fontsize=8).get_texts():
        text.set(**PLAIN)


def label_row(ax: Axes, prompt: str) -> None:
    """Write ``prompt`` to the left of a row of images."""
    ax.set_ylabel("\n".join(textwrap.wrap(prompt, 20)), fontsize=7, **PLAIN)


def median_db(psnr: list[float]) -> str:
    """Return the median PSNR in dB as text; dense has none and is the reference."""
    return f"{median(psnr):.1f} dB" if psnr else "the reference"
