"""Compare the numbers of some notebook cells within 10 % instead of digit for digit.

Rounded activations amplify the last bit of a CPU's arithmetic: recorded on one CPU and run on another, one image differed
by 1.8 dB in 30, and errors of a layer by 3 %. Cells that print such numbers have the tag ``within-a-tenth``. Their
words, and the number of their numbers, are compared as strictly as those of every other cell.
"""

from __future__ import annotations

import functools
import math
import re
from typing import Any

from nbval.plugin import IPyNbCell

TAG = "within-a-tenth"
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def hide(text: Any) -> Any:
    """Replace every number, and the spaces and rules whose width follows it."""
    return re.sub(r"[ \-]+", " ", NUMBER.sub("#", text)) if isinstance(text, str) else text


def numbers(outputs: list[dict[str, Any]]) -> list[float]:
    """Return all numbers in the texts of a cell's outputs."""
    texts = [o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs]
    return [float(number) for text in texts for number in NUMBER.findall(text)]


def compare(cell: IPyNbCell, test: list, ref: list, skip_compare: tuple[str, ...] | None = None) -> bool:
    """Compare outputs as nbval does, with the numbers of both hidden; then the numbers."""
    if not type(cell).compare_outputs(cell, test, ref, skip_compare):
        return False
    far = [pair for pair in zip(numbers(test), numbers(ref), strict=True) if not math.isclose(*pair, rel_tol=0.1)]
    cell.comparison_traceback = [f"more than 10 % apart (now, recorded): {far}"]
    return not far


def loosen(cell: IPyNbCell) -> None:
    """Compare this cell's numbers within 10 %, if it has the tag."""
    if TAG in cell.cell.metadata.get("tags", []):
        original = cell.sanitize
        cell.sanitize = lambda text: hide(original(text))
        cell.compare_outputs = functools.partial(compare, cell)
