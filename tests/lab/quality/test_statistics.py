import pytest

from modelopt_nb.lab.quality.statistics import percent


def test_percent_has_wilsons_interval():
    assert percent([True] * 9 + [False]) == pytest.approx((90.0, 59.58, 98.21), abs=0.01)
