"""Intervals and tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


def percent(right: Sequence[bool]) -> tuple[float, float, float]:
    """How many are right, in percent, with the ends of its 95 % interval (Wilson, ``scipy.stats.binomtest``)."""
    from scipy.stats import binomtest

    k, n = int(sum(right)), len(right)
    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * k / n, 100 * interval.low, 100 * interval.high


FEWEST = 8  # answers before anything is concluded


def verdict(right: int, answers: int, pictures: int, variants: int = 1) -> str:
    """What so many right answers say: whether the difference can be told from guessing.

    Told: guessing would be right so often less than once in ``20 * variants`` times (exact binomial test, with Bonferroni's
    correction for so many verdicts at once). Not told: it would, after :data:`FEWEST` answers or more.
    """
    from scipy.stats import binomtest

    if answers < FEWEST:
        return f"too few answers: {answers} of {FEWEST}"
    chance = binomtest(right, answers, 1 / pictures, alternative="greater").pvalue
    return "you can tell it" if chance < 0.05 / variants else "cannot be told from guessing"
