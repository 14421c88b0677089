import numpy as np
import pytest

from modelopt_nb import psnr, ssim

PICTURE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)


def test_equal_pictures():
    assert psnr(PICTURE, PICTURE) == float("inf")
    assert ssim(PICTURE, PICTURE) == pytest.approx(1)


def test_known_distance():
    darker = np.where(PICTURE > 127, PICTURE - 10, PICTURE + 10).astype(np.uint8)
    assert psnr(darker, PICTURE) == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    assert 0 < ssim(darker, PICTURE) < 1


def test_videos_are_means_over_frames():
    video = np.stack([PICTURE, PICTURE])
    other = np.stack([PICTURE, 255 - PICTURE])
    assert ssim(other, video) == pytest.approx((1 + ssim(255 - PICTURE, PICTURE)) / 2)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_wrong_pictures(measure):
    with pytest.raises(ValueError, match="picture is float64"):
        measure(PICTURE / 255, PICTURE)
    with pytest.raises(ValueError, match="equal shapes"):
        measure(PICTURE[1:], PICTURE)
