"""Plot images side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from modelopt_nb.lab.compare.results import Comparison
from modelopt_nb.lab.plots.style import _canvas, _db, _row_label, frame_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
