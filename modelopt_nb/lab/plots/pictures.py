"""Plot images side by side."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from modelopt_nb.lab.compare.results import Comparison
from modelopt_nb.lab.plots.style import PLAIN, frame_of, image_axes, label_row, median_db

FRAMES = 4  # of a video in a grid


def strip_of(image: np.ndarray) -> np.ndarray:
    """Return the image (height, width, 3), or :data:`FRAMES` frames of a video (frames, height, width, 3) in a row."""
    if image.ndim == 3:
        return image
    chosen = np.unique(np.linspace(0, len(image) - 1, FRAMES).round().astype(int))
    return np.concatenate(list(image[chosen]), axis=1)


def plot_grid(comparison: Comparison, rows: int | None = None) -> Figure:
    """Plot the images of a comparison: a row per prompt, or per each of the first ``rows``, and a column per variant.

    The captions have the component's MiB and the PSNR against dense in dB. Of a video, a strip of ``FRAMES`` frames from
    the first to the last is shown.
    """
    prompts, variants = comparison.prompts[:rows], comparison.variants
    figure, axes = image_axes(len(prompts), len(variants))
    if variants[0].images[0].ndim == 4:
        figure.set_figwidth(2 * figure.get_figwidth())
    for column, variant in enumerate(variants):
        title = f"{variant.name}\n{variant.weights.mib:.1f} MiB, {median_db(variant.psnr)}"
        axes[0, column].set_title(title, fontsize=8, **PLAIN)
        for row in range(len(prompts)):
            axes[row, column].imshow(strip_of(variant.images[row]))
            if variant.psnr:
                axes[row, column].set_xlabel(f"{variant.psnr[row]:.1f} dB", fontsize=6, labelpad=2)
    for row, prompt in enumerate(prompts):
        label_row(axes[row, 0], prompt)
    return figure


def plot_pictures(pictures: Mapping[str, np.ndarray]) -> Figure:
    """Plot images in a row, titled by their names: uint8 (height, width, 3), or videos (frames, height, width, 3)."""
    figure, axes = image_axes(1, len(pictures))
    for ax, (name, image) in zip(axes[0], pictures.items(), strict=True):
        ax.set_title(name, fontsize=8, **PLAIN)
        ax.imshow(frame_of(image))
    return figure


def plot_difference(comparison: Comparison, row: int = 0, gain: float = 5.0) -> Figure:
    """Plot the images of the prompt with index ``row`` and, below them, their differences from dense.

    The differences are multiplied by ``gain``; mid-grey is no difference.
    """
    variants = comparison.variants
    figure, axes = image_axes(2, len(variants))
    dense = frame_of(variants[0].images[row]).astype(np.float32)
    for column, variant in enumerate(variants):
        image = frame_of(variant.images[row])
        difference = np.clip(128 + gain * (image.astype(np.float32) - dense), 0, 255).astype(np.uint8)
        axes[0, column].set_title(variant.name, fontsize=8, **PLAIN)
        axes[0, column].imshow(image)
        axes[1, column].imshow(difference)
        if variant.psnr:
            axes[1, column].set_xlabel(f"{variant.psnr[row]:.1f} dB", fontsize=6, labelpad=2)
    label_row(axes[0, 0], comparison.prompts[row])
    label_row(axes[1, 0], f"difference from dense, x{gain:g}")
    return figure
