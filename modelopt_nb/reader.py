"""Is it still a fox? A small classifier names the subject and the background of the embedded pipeline's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelopt_nb.pipeline import no_loading_bars

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

DATA = Path(__file__).resolve().parents[1] / "data"
READER = DATA / "emoji-reader"
SIDE = 96  # px, what the reader sees
BACKGROUNDS = 8  # the last labels name backgrounds, the others subjects


@cache
def load_reader(path: Path = READER) -> Any:
    """The reader: a ``transformers.ResNetForImageClassification`` whose labels are subjects, then backgrounds."""
    import torch
    from transformers import ResNetForImageClassification

    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"path={str(path)!r} is not a reader's folder. The repository has one in data/emoji-reader"
        )
    with no_loading_bars():
        return ResNetForImageClassification.from_pretrained(path, dtype=torch.float32).eval()


def _seen(pictures: Sequence[np.ndarray]) -> Any:
    """Pictures as the reader takes them: float32 (n, 3, SIDE, SIDE) in -1..1, each made smaller by averaging."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return F.interpolate(frames, (SIDE, SIDE), mode="area") / 127.5 - 1


def read(pictures: Sequence[np.ndarray], path: Path = READER) -> pd.DataFrame:
    """Name what is on each picture, uint8 (height, width, 3): columns ``subject`` and ``background``."""
    import pandas as pd
    import torch

    reader = load_reader(path)
    with torch.inference_mode():
        logits = reader(_seen(pictures)).logits
    subjects, backgrounds = logits[:, :-BACKGROUNDS], logits[:, -BACKGROUNDS:]
    first, names = subjects.shape[1], reader.config.id2label
    return pd.DataFrame(
        {
            "subject": [names[i] for i in subjects.argmax(1).tolist()],
            "background": [names[first + i] for i in backgrounds.argmax(1).tolist()],
        }
    )


def reader_distance(pictures: Sequence[np.ndarray], others: Sequence[np.ndarray], path: Path = READER) -> float:
    """How far two sets of pictures are apart in the reader's features: 0 for the same distribution, unbounded above.

    The unbiased squared maximum mean discrepancy under the kernel (x·y/d + 1)^3, as KID (arXiv 1801.01401) has it, on this
    reader's 256 features. It is not KID or FID, and comparable only with itself. Each set needs two pictures or more.
    """
    import torch

    if min(len(pictures), len(others)) < 2:
        raise ValueError(f"pictures has {len(pictures)} and others {len(others)}. Allowed: two or more each")
    backbone = load_reader(path).resnet
    with torch.inference_mode():
        x, y = (backbone(_seen(p)).pooler_output.flatten(1).double() for p in (pictures, others))

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / a.shape[1] + 1) ** 3

    def apart(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.diag().sum()) / (len(k) * (len(k) - 1))

    return float(apart(kernel(x, x)) + apart(kernel(y, y)) - 2 * kernel(x, y).mean())


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


def percent(right: Sequence[bool]) -> tuple[float, float, float]:
    """How many are right, in percent, with the ends of its 95 % interval (Wilson, ``scipy.stats.binomtest``)."""
    from scipy.stats import binomtest

    k, n = int(sum(right)), len(right)
    interval = binomtest(k, n).proportion_ci(0.95, method="wilson")
    return 100 * k / n, 100 * interval.low, 100 * interval.high
