"""Confidence intervals and significance tests."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, bootstrap

FEWEST = 8  # answers that a verdict needs


def median(values: Sequence[float]) -> float:
    """Return the median of the finite values; inf if all but NaN are infinite, NaN if there are none."""
    known = [value for value in values if not math.isnan(value)] or [math.nan]
    return float(np.median([value for value in known if math.isfinite(value)] or known))


def median_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the bounds of the median's 95 % interval (``scipy.stats.bootstrap``), None for fewer than two finite.

    The interval is the percentile one of 2000 resamples with a fixed seed, so it repeats.
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 2:
        return None, None
    found: Any = bootstrap((finite,), np.median, n_resamples=2000, method="percentile", rng=np.random.default_rng(0))
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


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
