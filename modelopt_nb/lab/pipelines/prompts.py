"""Prompts with a seed each."""

from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

import pandas as pd

Prompts = str | Iterable[str] | pd.DataFrame
Seeds = int | Iterable[int] | None
#: The repository's folder of prompts, emoji and embedded models.
DATA = Path(__file__).resolve().parents[3] / "data"


def prompts_and_seeds(prompts: Prompts, seeds: Seeds) -> tuple[list[str], list[int]]:
    """Return lists of prompts and seeds, from the arguments of :func:`modelopt_nb.generate`. Raises ValueError."""
    if isinstance(prompts, pd.DataFrame):
        seeds = prompts["seed"] if seeds is None and "seed" in prompts else seeds
        prompts = prompts.get("prompt", [])
    texts = _as_list(prompts)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"prompts={prompts!r} is not a list of prompts. Allowed: one or more strings, a frame of them")
    first = 0 if seeds is None else seeds
    numbers = [int(first) + i for i in range(len(texts))] if isinstance(first, Integral) else _as_list(first)
    if not all(isinstance(number, Integral) for number in numbers) or len(numbers) != len(texts):
        wrong = f"seeds={seeds!r} has {len(numbers)} entries for {len(texts)} prompts"
        raise ValueError(f"{wrong}. Allowed: one whole number, or one per prompt")
    return [str(text) for text in texts], [int(number) for number in numbers]


def _as_list(values: Any) -> list[Any]:
    """Return the values of a list, tuple, Series, array or tensor; anything else is one value."""
    values = values.tolist() if hasattr(values, "tolist") else values
    return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else [values]


def load_prompts(split: str, n: int | None = None) -> pd.DataFrame:
    """Load a split of ``data/prompts.csv``: columns prompt, seed, subject, background, split.

    ``split`` is ``show`` (12 rows, for grids), ``measure`` (256, for tables) or ``calibrate`` (128, for forward loops);
    ``n`` keeps the first rows. No pair of subject and background is in two splits.

    Raises:
        ValueError: An unknown split, or ``n`` below 1 or above its rows.
    """
    table = pd.read_csv(DATA / "prompts.csv")
    rows = table[table["split"] == split].reset_index(drop=True)
    if rows.empty:
        raise ValueError(f"split={split!r} is not known. Allowed: {', '.join(table['split'].unique())}")
    if n is not None and not (isinstance(n, Integral) and 1 <= n <= len(rows)):
        raise ValueError(f"n={n!r} is not allowed for split={split!r}. Allowed: 1 to {len(rows)}")
    return rows.head(n) if n else rows
