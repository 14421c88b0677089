"""Prompts with a seed each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def prompts_and_seeds(
    prompts: Sequence[str] | pd.DataFrame, seeds: int | Sequence[int] | None
) -> tuple[list[str], list[int]]:
    """Prompts as a list, from a frame's column ``prompt`` too, and a seed for each.

    ``seeds`` is one a prompt, or the first of consecutive ones; where it is None the frame's own, or 0 and on.

    Raises:
        ValueError: No prompts, or seeds that do not fit.
    """
    if hasattr(prompts, "columns"):
        if seeds is None and "seed" in prompts.columns:
            seeds = prompts["seed"].tolist()
        prompts = prompts["prompt"].tolist()
    if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompts={prompts!r} is not a list of prompts. Allowed: one or more strings in a list")
    if seeds is None or isinstance(seeds, int):
        seeds = range(seeds or 0, (seeds or 0) + len(prompts))
    if len(seeds) != len(prompts):
        raise ValueError(
            f"seeds has {len(seeds)} entries for {len(prompts)} prompts. Allowed: one number, or one a prompt"
        )
    return list(prompts), list(seeds)


DATA = Path(__file__).resolve().parents[3] / "data"


def load_prompts(split: str, n: int | None = None) -> pd.DataFrame:
    """The prompts of a split of ``data/prompts.csv``: columns prompt, seed, subject, background, split.

    ``split`` is ``show`` (12, for grids), ``measure`` (256, for tables) or ``calibrate`` (128, for forward loops); ``n``
    takes the first ones. No subject and background stand together in two splits.
    """
    import pandas as pd

    table = pd.read_csv(DATA / "prompts.csv")
    chosen = table[table["split"] == split].reset_index(drop=True)
    if chosen.empty:
        raise ValueError(f"split={split!r} is not known. Allowed: {', '.join(table['split'].unique())}")
    if n is not None and not 1 <= n <= len(chosen):
        raise ValueError(f"n={n} is not allowed for split={split!r}. Allowed: 1 to {len(chosen)}")
    return chosen.head(n) if n else chosen
