import random

import pytest

from modelopt_nb.lab.quality.statistics import FEWEST, percent, verdict


def test_percent_has_wilsons_interval():
    assert percent([True] * 9 + [False]) == pytest.approx((90.0, 59.58, 98.21), abs=0.01)


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
