"""Compare the cells with the tag ``within-a-tenth`` as their name says; all others stay strict."""

from __future__ import annotations

import pytest
from nbval.plugin import IPyNbCell

from tests.within_a_tenth import loosen


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, IPyNbCell):
            loosen(item)
