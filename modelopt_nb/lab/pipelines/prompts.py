"""Prompts with a seed each."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

#: The repository's folder of prompts, emoji and embedded models.
DATA = Path(__file__).resolve().parents[3] / "data"


def prompts_and_seeds(
    prompts: Sequence[str] | pd.DataFrame, seeds: int | Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Return lists of prompts and seeds, from the arguments of :func:`modelopt_nb.generate`. Raises ValueError."""
    if isinstance(prompts, pd.DataFrame):
        seeds = prompts["seed"].tolist() if seeds is None and "seed" in prompts else seeds
        prompts = prompts["prompt"].tolist()
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"prompts={prompts!r} is not a list of prompts. Allowed: one or more strings in a list")
    first = seeds or 0
    numbers = list(range(first, first + len(prompts))) if isinstance(first, int) else list(first)
    if len(numbers) != len(prompts):
        wrong = f"seeds has {len(numbers)} entries for {len(prompts)} prompts"
        raise ValueError(f"{wrong}. Allowed: one number, or one per prompt")
    return list(prompts), numbers


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
    if n is not None and not 1 <= n <= len(rows):
        raise ValueError(f"n={n} is not allowed for split={split!r}. Allowed: 1 to {len(rows)}")
    return rows.head(n) if n else rows
