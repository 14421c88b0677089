"""Confidence intervals and significance tests."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, xlogy
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


def sequence_interval(right: int, answers: int, variants: int = 1) -> tuple[float, float]:
    """Return bounds of the share of right answers, in percent, that hold at every length of a game at once.

    A player may look at them after each answer and stop at any time: the true share is ever outside, for any of the
    ``variants``, in at most 5 % of games (Ville's inequality for the ratio of the likelihood under a uniform prior to
    that of the share; Bonferroni's correction for ``variants``).
    """
    evidence, limit = betaln(right + 1, answers - right + 1), math.log(variants / 0.05)

    def excess(share: float) -> float:
        return evidence - xlogy(right, share) - xlogy(answers - right, 1 - share) - limit

    most_likely, tiny = right / max(answers, 1), 1e-12
    low = brentq(excess, tiny, most_likely) if right and excess(tiny) > 0 else 0.0
    high = brentq(excess, most_likely, 1 - tiny) if right < answers and excess(1 - tiny) > 0 else 1.0
    return 100 * float(low), 100 * float(high)


def verdict(right: int, answers: int, images: int, variants: int = 1) -> str:
    """Say whether ``right`` of ``answers`` correct picks, each out of ``images``, differ from guessing.

    They differ if :func:`sequence_interval` lies above the share that guessing gives. Needs :data:`FEWEST` answers.
    """
    if answers < FEWEST:
        return f"too few answers: {answers} of {FEWEST}"
    low, _ = sequence_interval(right, answers, variants)
    return "distinguishable" if low > 100 / images else "not distinguishable from guessing"
