import math
import random

import numpy as np
import pytest

from modelopt_nb.lab.quality.statistics import FEWEST, median, median_interval, percent, verdict


def test_percent_has_wilsons_interval():
    assert percent([True] * 9 + [False]) == pytest.approx((90.0, 59.58, 98.21), abs=0.01)


@pytest.mark.parametrize(
    ("values", "expected", "bounded"),
    [
        ([30.0, math.inf, 20.0, math.nan], 25.0, True),
        ([30.0, math.inf], 30.0, False),
        ([math.inf, math.inf, math.nan], math.inf, False),
        ([20.0, 1000.0, 21.0], 21.0, True),
    ],
)
def test_the_median_is_of_the_finite_values(values, expected, bounded):
    assert median(values) == expected
    assert (median_interval(values) != (None, None)) == bounded
    assert math.isnan(median([])) and math.isnan(median([math.nan])) and median_interval([]) == (None, None)


def test_the_medians_interval_repeats_and_covers_it():
    samples = np.random.default_rng(0).normal(30, 2, (60, 25))
    bounds = [median_interval(list(row)) for row in samples]
    assert bounds[0] == median_interval(list(samples[0])) and bounds[0][0] < median(list(samples[0])) < bounds[0][1]
    assert sum(low <= 30 <= high for low, high in bounds) >= 0.9 * len(bounds)


def test_verdict():
    assert "too few" in verdict(FEWEST - 1, FEWEST - 1, 2)
    assert verdict(8, 8, 2) == "distinguishable"
    assert verdict(5, 8, 2) == "not distinguishable from guessing"
    assert verdict(50, 100, 2) == "not distinguishable from guessing"
    assert verdict(65, 100, 2) == "distinguishable"
    assert verdict(50, 100, 3) == "distinguishable"  # guessing would be 33
    assert verdict(7, 8, 2) == "distinguishable"
    assert (
        verdict(7, 8, 2, variants=3) == "not distinguishable from guessing"
    )  # one of three comes up by luck too often


def test_a_guesser_rarely_differs_from_guessing():
    dice = random.Random(0)
    verdicts = [verdict(sum(dice.random() < 0.5 for _ in range(12)), 12, 2, 3) for _ in range(600)]
    assert verdicts.count("distinguishable") / len(verdicts) < 0.05 / 3 + 0.015
