"""Show numbers with the digits of their columns."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import pandas as pd

from modelopt_nb.lab.compare.variants import COLUMNS

#: Decimals of a number by the name of its column; ``guidance`` is a column of the explorer's history.
DIGITS: dict[str, int] = {c.name: c.digits for c in COLUMNS if c.digits is not None} | {"guidance": 1}


def as_text(name: str, value: float) -> str:
    """Format a number with the digits of its column; in an unknown column, integers with none, others with two."""
    return f"{value:.{DIGITS.get(name, 0 if isinstance(value, Integral) else 2)}f}"


@dataclass(frozen=True, repr=False)
class Table:
    """A frame as notebooks show it: with the digits of ``COLUMNS``, and the machine in its caption."""

    frame: pd.DataFrame
    caption: str

    def _formats(self) -> dict[Any, Callable[[Any], str]]:
        return {name: partial(as_text, name) for name in self.frame.select_dtypes("number").columns}

    def __repr__(self) -> str:
        return f"{self.frame.to_string(formatters=self._formats(), na_rep='')}\n{self.caption}"

    def _repr_html_(self) -> str:
        style: Any = self.frame.style.set_caption(self.caption).set_uuid("comparison")
        return style.format(self._formats(), na_rep="").to_html()
