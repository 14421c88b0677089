"""Confidence intervals and significance tests."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import binomtest

FEWEST = 8  # answers that a verdict needs


def finite_mean(values: Sequence[float]) -> float:
    """Return the mean of the finite values; inf if all but NaN are infinite, NaN if there are none."""
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    return statistics.fmean([value for value in known if math.isfinite(value)] or known)


def percent(correct: Sequence[bool]) -> tuple[float, float, float]:
    """Return the percentage of True and the bounds of its 95 % interval (Wilson, ``scipy.stats.binomtest``)."""
    k, n = int(sum(correct)), len(correct)
    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * k / n, 100 * interval.low, 100 * interval.high


def verdict(right: int, answers: int, images: int, variants: int = 1) -> str:
    """Say whether ``right`` of ``answers`` correct picks, each out of ``images``, differ from guessing.

    They differ if guessing is right that often with probability below ``0.05 / variants`` (exact binomial test;
    Bonferroni's correction for one verdict per variant). Needs :data:`FEWEST` answers.
    """
    if answers < FEWEST:
        return f"too few answers: {answers} of {FEWEST}"
    p = binomtest(right, answers, 1 / images, alternative="greater").pvalue
    return "distinguishable" if p < 0.05 / variants else "not distinguishable from guessing"
