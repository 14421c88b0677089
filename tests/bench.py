"""``make bench``: measure speed and size as ratios within one run.

Single timings mean little on a shared machine; a ratio of two things timed in turns in one process means more. Parts can
be named: ``python -m tests.bench import loading``.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

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


def three_dense(pipeline: DiffusionPipeline) -> None:
    from modelopt_nb import generate

    for _ in range(3):
        generate(pipeline, PROMPTS, steps=STEPS)


def simple_sweep() -> None:
    """Reload the pipeline for each type and generate images with the packed model, as a simple script does."""
    from modelopt_nb import generate, load_pipeline, make_config, quantize

    for quant_type in [None, *TYPES]:
        pipeline = load_pipeline()
        if quant_type:
            quantize(pipeline.transformer, make_config(quant_type))
        generate(pipeline, PROMPTS, steps=STEPS)


LOAD = """
import gc, sys, torch, modelopt_nb
from diffusers import AutoModel
from modelopt_nb.memory.peak import _status
modelopt_nb.enable()
modelopt_nb.check_scheme("NF4")  # first use of everything
gc.collect()
before = _status("RssAnon")
with modelopt_nb.peak_memory() as peak:
    model = AutoModel.from_pretrained(sys.argv[1])
print((peak.anonymous - before) / modelopt_nb.weight_bytes(model).total)
"""


def loading(quant_type: str) -> None:
    """Save a model of Sana 0.6B's shape with random weights, packed, and load it in a fresh process."""
    import torch
    from diffusers import SanaTransformer2DModel

    from modelopt_nb import make_config, quantize, weight_bytes

    with torch.device("meta"):
        model = SanaTransformer2DModel(
            num_layers=28, num_attention_heads=36, num_cross_attention_heads=16, cross_attention_head_dim=72,
            cross_attention_dim=1152,
        )  # fmt: skip
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    quantize(model, make_config(quant_type))
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(f"{folder}/packed")
        packed = weight_bytes(model).total
        del model
        on_disk = sum(f.stat().st_size for f in Path(folder, "packed").iterdir())
        peak = float(subprocess.check_output([sys.executable, "-c", LOAD, f"{folder}/packed"]).split()[-1])
    print(
        f"{quant_type}, {millions:.0f} million parameters: the folder is {on_disk / packed:.3f} of the packed bytes "
        f"(goal 1.02); loading peaks at {peak:.2f} of them, anonymous resident (goal 1.25)",
        flush=True,
    )


def layer_sensitivity(pipeline: DiffusionPipeline) -> None:
    """A sensitivity run with both errors, over its forward passes: two per group and call, and a dense one per call."""
    from modelopt_nb import generate, make_config, record_calls, sensitivity

    model, config = pipeline.transformer, make_config("INT4", pointwise_as_linear=True)
    with record_calls(pipeline, None, at=(0, 0.5, 0.9)) as calls:
        generate(pipeline, PROMPTS, steps=STEPS, decode=False)
    sensitivity(model, config, calls, "kind", progress=False)  # first use of everything
    ratios = []
    for _ in range(3):
        forward = min(seconds(lambda: [call(model) for call in calls]) for _ in range(5))
        whole = seconds(lambda: ratios.append(len(sensitivity(model, config, calls, without=True, progress=False))))
        groups = ratios.pop()
        ratios.append(whole / (forward * (1 + 2 * groups)))
    print(
        f"sensitivity of {groups} groups: {whole:.0f} s (goal 60); {sorted(ratios)[1]:.2f} of its forward passes (goal 1.2)",
        flush=True,
    )


def calibrations(pipeline: DiffusionPipeline) -> None:
    """Six configurations calibrated from one recording, over recording once and replaying six times."""
    import copy

    from modelopt_nb import denoising_loop, load_prompts, make_config, quantize, record_calls, replay_loop

    generate_once, model = denoising_loop(pipeline, load_prompts("calibrate", 8), steps=STEPS), pipeline.transformer
    scales = ("static tensor", "static channel")
    configs = [
        make_config(f"{weights}_{activations}", activation_scale=scale)
        for weights, activations in (("INT8", "INT8"), ("FP8", "FP8"), ("INT4", "INT8"))
        for scale in scales
    ]
    quantize(copy.deepcopy(model), configs[0], lambda m: generate_once(m))  # first use of everything
    ratios = []
    for _ in range(5):
        with record_calls(pipeline, 32) as calls:
            recording = seconds(lambda: generate_once(model))
        loop, replays, whole = replay_loop(calls), recording, recording
        for config in configs:
            replays += seconds(lambda: loop(model))  # noqa: B023
            whole += seconds(lambda: quantize(copy.deepcopy(model), config, loop))  # noqa: B023
        ratios.append(whole / replays)
    print(
        f"six configurations from one recording: {sorted(ratios)[2]:.2f} of recording once and six replays (goal 1.17)",
        flush=True,
    )


def exploring(pipeline: DiffusionPipeline) -> None:
    """The kernel's time for cached images, and the time to the first image over the pipeline's own."""
    import logging

    from modelopt_nb import Explorer, generate

    logging.disable(logging.CRITICAL)  # there is no kernel to send to
    explorer, firsts, again = Explorer(pipeline, TYPES, steps=STEPS), [], []
    explorer.observe(lambda change: firsts.append(time.perf_counter()) if change["new"] else None, "pictures")
    guidance = explorer.request["guidance"]
    ratios = []
    for seed in range(100, 106):
        dense = seconds(
            lambda: generate(pipeline, PROMPTS[:1], [seed], steps=STEPS, guidance_scale=guidance)  # noqa: B023
        )
        explorer.select(prompt=PROMPTS[0], seed=seed)
        firsts.clear()
        start = time.perf_counter()
        explorer.run()
        explorer.wait()
        ratios.append((firsts[0] - start) / dense)
        again.append(seconds(explorer.run))
    print(
        f"explorer: first image after {sorted(ratios)[3]:.2f} of the pipeline's own time (goal 1.2); six images from "
        f"the cache in {sorted(again)[3]:.3f} s of kernel time (goal 0.1)",
        flush=True,
    )
    explorer.close()


def sweeps(pipeline: DiffusionPipeline) -> None:
    """Time a comparison of six and a simple script's, each over six dense runs: three before it and three after."""
    from modelopt_nb import compare

    def sweep() -> None:
        compare(pipeline, TYPES, PROMPTS, steps=STEPS, progress=False)

    rounds, before = [], seconds(lambda: three_dense(pipeline))
    for _ in range(7):
        ratios = []
        for work in (sweep, simple_sweep):
            with redirect_stderr(StringIO()):
                whole, after = seconds(work), seconds(lambda: three_dense(pipeline))
            ratios.append(whole / (before + after))
            before = after
        rounds.append(ratios)
        print("sweep of six {:.2f} of six dense runs; simple script {:.2f}".format(*ratios), flush=True)
    ours, simple = (sorted(column)[3] for column in zip(*rounds, strict=True))
    print(f"median of 7: sweep {ours:.2f} (goal 1.15 or less), simple script {simple:.2f}")


def rounding() -> None:
    """Pack a bfloat16 weight with each type: bytes of source a second on this many threads."""
    import torch

    from modelopt_nb import make_config, quantize, quiet

    for quant_type in TYPES:
        times = []
        for _ in range(4):  # the first is first use of everything
            layer = torch.nn.Sequential(torch.nn.Linear(4608, 4608, bias=False)).bfloat16()
            source = layer[0].weight.nbytes
            with quiet():
                times.append(seconds(lambda: quantize(layer, make_config(quant_type))))  # noqa: B023
        speed = source / min(times) / 1e9
        print(
            f"packing {quant_type}: {speed:.2f} GB of bfloat16 a second, {torch.get_num_threads()} threads (goal 0.6)"
        )


def imports() -> None:
    print(f"import modelopt_nb: {import_seconds():.3f} s (goal 0.1)", flush=True)


def main(names: list[str]) -> None:
    """Run the named parts; all by default."""
    alone = {
        "import": imports,
        "rounding": rounding,
        "loading": lambda: [loading(quant_type) for quant_type in ("FP8", "NF4")],
    }
    parts = {"exploring": exploring, "sensitivity": layer_sensitivity, "calibrations": calibrations, "sweeps": sweeps}
    names = names or [*alone, *parts]
    if unknown := set(names) - {*alone, *parts}:
        raise SystemExit(f"unknown parts {', '.join(sorted(unknown))}. Allowed: {', '.join((*alone, *parts))}")
    for name in alone:
        if name in names:
            alone[name]()
    if chosen := [parts[name] for name in parts if name in names]:
        from modelopt_nb import compare, load_pipeline

        pipeline = load_pipeline()
        compare(pipeline, TYPES, PROMPTS[:1], steps=1, progress=False)  # first use of everything
        for part in chosen:
            part(pipeline)


if __name__ == "__main__":
    main(sys.argv[1:])
