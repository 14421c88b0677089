import math

import numpy as np
import pytest
from scipy import integrate

from modelopt_nb.lab.quality.statistics import FEWEST, median, median_interval, percent, sequence_interval, verdict


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
    assert verdict(70, 100, 2) == "distinguishable"
    assert verdict(55, 100, 3) == "distinguishable"  # guessing would be 33
    assert verdict(8, 8, 2, variants=3) == "not distinguishable from guessing"  # by luck too often in one of three


def test_the_interval_is_where_the_likelihood_is_a_twentieth():
    low, high = sequence_interval(8, 10)
    for bound in (low / 100, high / 100):
        evidence = integrate.quad(lambda p: p**8 * (1 - p) ** 2, 0, 1)[0]
        assert evidence / (bound**8 * (1 - bound) ** 2) == pytest.approx(20, rel=1e-6)
    assert sequence_interval(0, 0) == (0, 100)
    assert sequence_interval(0, 9)[0] == 0 and sequence_interval(9, 9)[1] == 100


@pytest.mark.parametrize(("images", "variants"), [(2, 1), (3, 1), (2, 3)])
def test_a_guesser_who_stops_at_any_round_is_rarely_distinguishable(images, variants):
    """In games of up to 60 rounds a variant, with a look at every verdict after each answer."""
    games, rounds = 4000, 60
    found = [[verdict(k, n, images, variants) == "distinguishable" for k in range(n + 1)] for n in range(rounds + 1)]
    right = (np.random.default_rng(0).random((games, variants, rounds)) < 1 / images).cumsum(axis=2)
    apart = np.zeros(games, dtype=bool)
    for n in range(1, rounds + 1):
        apart |= np.array(found[n])[right[:, :, n - 1]].any(axis=1)
        assert apart.mean() <= 0.05, f"false alarms within {n} rounds"
    assert apart.mean() > 0.002  # and it is a test
