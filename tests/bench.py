"""``make bench``: what must be fast, as ratios within one run, and the bytes behind them.

Single timings mean little on a shared machine; a ratio of two things done in turns in one process means more.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO

PROMPTS = ["a fox face on a blue background", "a strawberry on a yellow background",
           "a purple background with an owl", "a penguin on an orange background"]  # fmt: skip
TYPES = ["FP8", "INT8", "INT4", "NF4", "NVFP4"]
STEPS = 20


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def import_seconds() -> float:
    code = "import time; t = time.perf_counter(); import modelopt_nb; print(time.perf_counter() - t)"
    return min(float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(5))


def six_dense(pipeline: object) -> None:
    from modelopt_nb.pipeline import draw

    for _ in range(6):
        draw(pipeline, PROMPTS, range(4), num_inference_steps=STEPS)


def naive_sweep() -> None:
    """What a script does that reloads the pipeline for each type and draws from the packed model."""
    from modelopt_nb import load_pipeline, make_config, quantize
    from modelopt_nb.pipeline import draw

    for quant_type in [None, *TYPES]:
        pipeline = load_pipeline()
        pipeline.set_progress_bar_config(disable=True)
        if quant_type:
            quantize(pipeline.transformer, make_config(quant_type))
        draw(pipeline, PROMPTS, range(4), num_inference_steps=STEPS)


def main() -> None:
    from modelopt_nb import compare, load_pipeline

    print(f"import modelopt_nb: {import_seconds():.3f} s (goal 0.5)")
    pipeline = load_pipeline()
    pipeline.set_progress_bar_config(disable=True)
    compare(pipeline, TYPES, PROMPTS[:1], steps=1, progress=False)  # first use of everything
    rounds = []
    for _ in range(3):
        with redirect_stderr(StringIO()):
            dense = seconds(lambda: six_dense(pipeline))
            ours = seconds(lambda: compare(pipeline, TYPES, PROMPTS, steps=STEPS, progress=False))
            naive = seconds(naive_sweep)
        rounds.append((ours / dense, naive / dense))
        print(
            f"six dense runs {dense:.1f} s; sweep of six {ours / dense:.2f} of it; naive script {naive / dense:.2f}",
            flush=True,
        )
    ours, naive = (sorted(column)[1] for column in zip(*rounds, strict=True))
    print(f"median of 3: sweep {ours:.2f} (goal 1.15 or less), naive script {naive:.2f}")


if __name__ == "__main__":
    main()
