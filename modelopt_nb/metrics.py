"""What it does to the pictures: distances between a picture and its dense twin."""

from __future__ import annotations

import numpy as np


def _same_shape(picture: np.ndarray, reference: np.ndarray) -> None:
    for name, array in (("picture", picture), ("reference", reference)):
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}. Allowed: uint8 (height, width, 3), or frames of it"
            )
    if picture.shape != reference.shape:
        raise ValueError(f"picture has shape {picture.shape} and reference {reference.shape}. Allowed: equal shapes")


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, ``inf`` for equal pictures; uint8 (height, width, 3) or frames of it.

    Source: ``skimage.metrics.peak_signal_noise_ratio``.
    """
    from skimage.metrics import peak_signal_noise_ratio

    _same_shape(picture, reference)
    if np.array_equal(picture, reference):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, picture, data_range=255))


def ssim(picture: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity, 1 for equal pictures; uint8 (height, width, 3), or the mean over frames of it.

    Source: Wang et al. 2004, ``skimage.metrics.structural_similarity``.
    """
    from skimage.metrics import structural_similarity

    _same_shape(picture, reference)
    if picture.ndim == 4:
        return float(np.mean([ssim(p, r) for p, r in zip(picture, reference, strict=True)]))
    # float32 halves the time of the float64 that uint8 would become, and agrees to seven digits
    return float(
        structural_similarity(*(x.astype(np.float32) for x in (reference, picture)), channel_axis=-1, data_range=255)
    )
