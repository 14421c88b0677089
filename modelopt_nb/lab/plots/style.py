"""Colours, markers and canvases shared by all plots."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import numpy as np

from modelopt_nb.lab.compare.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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


def _one(width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    return figure, figure.subplots()
