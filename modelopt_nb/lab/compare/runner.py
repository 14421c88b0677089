"""Generate the same images with each variant of a model; compare memory, time and image quality."""

from __future__ import annotations

import contextlib
import copy
import gc
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelopt_nb import (
    ModelOptConfig,
    Report,
    WeightBytes,
    check_config,
    dequantized,
    peak_memory,
    quantize,
    tensor_memory,
    weight_bytes,
)
from modelopt_nb.lab.calibration.model_calls import ModelCall, watched
from modelopt_nb.lab.compare.results import Comparison, Table, machine
from modelopt_nb.lab.compare.variants import DENSE, Variant, _configs
from modelopt_nb.lab.pipelines.generate import cached_prompt_embeddings, generate
from modelopt_nb.lab.pipelines.load import component_name, is_embedded, with_component
from modelopt_nb.lab.pipelines.prompts import prompts_and_seeds
from modelopt_nb.lab.quality.classifier import classify
from modelopt_nb.lab.quality.metrics import Measure, psnr_and_ssim

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from diffusers import DiffusionPipeline
    from torch import nn


def compare(
    pipeline: DiffusionPipeline,
    variants: Sequence[str] | Mapping[str, str | ModelOptConfig],
    prompts: Sequence[str] | pd.DataFrame,
    seeds: int | Sequence[int] | None = None,
    *,
    steps: int = 20,
    component: str | None = None,
    batch_size: int = 4,
    progress: bool = True,
    extra: Mapping[str, Measure] | None = None,
    **call: Any,
) -> Comparison:
    """Draw the same pictures dense and with every variant, from the same starting noise.

    One variant is in memory at a time, beside the dense model that it is copied from. Prompts are encoded once, or by each
    variant where it is an encoder that is quantized.
    Memory and the time of a step are measured on the packed model; the pictures are then drawn from its weights
    dequantized once where a check shows that this gives the same output bit for bit, and packed where it does not.

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any text-to-image or text-to-video pipeline.
        variants: Quant types, or configurations by name. ``dense`` is always first.
        prompts: One picture each; or a frame with a column ``prompt`` (and ``seed``), as from
            :func:`modelopt_nb.load_prompts`. Where it says ``subject`` and ``background`` too, the reader looks at every
            picture of the embedded pipeline, the only one it knows: :attr:`Comparison.frame` gets ``subject_ok`` and
            ``background_ok``.
        seeds: One a prompt, or the first of consecutive ones; the frame's own, or 0 and on, where None.
        steps: Denoising steps.
        component: The part to quantize, such as ``"text_encoder"`` or ``"vae"``; the transformer or UNet by default.
        batch_size: Pictures drawn in one call.
        progress: Show a progress bar.
        extra: Further columns by name, such as ``{"LPIPS": lpips()}`` and ``{"CLIP score": clip_score()}``.
        call: Passed on to the pipeline, such as ``guidance_scale``, ``height``, ``max_sequence_length``.

    Returns:
        The comparison; where it is interrupted from the keyboard, with the variants that were finished, and a warning.

    Raises:
        ValueError, TypeError: Before anything is drawn: no prompts, seeds that do not fit, an unknown type, a
            configuration that fits no layer, lacks what its algorithm needs, or cannot run on this machine.
    """
    from tqdm.auto import tqdm

    expected = None
    if {"subject", "background"} <= set(getattr(prompts, "columns", ())) and is_embedded(pipeline):
        expected = prompts[["subject", "background"]]
    prompts, seeds = prompts_and_seeds(prompts, seeds)
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not allowed. Allowed: a whole number of 1 or more")
    if taken := sorted(Table.DIGITS.keys() & set(extra or ())):
        raise ValueError(f"extra names {', '.join(taken)}, which the table has already. Allowed: other names")
    part = component_name(pipeline, component)
    dense = getattr(pipeline, part)
    configs = _configs(variants)
    for config in configs.values():
        check_config(dense, config)

    comparison = Comparison(part, prompts, seeds, steps, machine(dense))
    total = (1 + len(configs)) * steps * -(-len(prompts) // batch_size) + 1
    bar = tqdm(total=total, disable=not progress, unit="step")
    runner = Runner(pipeline, part, prompts, seeds, steps, batch_size, call, bar.update, expected, extra or {})
    try:
        with bar, runner:
            for name, config in {DENSE: None, **configs}.items():
                bar.set_description(name)
                reference = comparison.variants[0].images if comparison.variants else None
                comparison.variants.append(runner.run(name, config, reference))
    except KeyboardInterrupt:
        if not comparison.variants:
            raise
        done, every = len(comparison.variants), 1 + len(configs)
        warnings.warn(f"interrupted: {done} of {every} variants are finished, and are kept", stacklevel=2)
    return comparison


def _release(model: nn.Module) -> None:
    """Give a model's memory back at once; ModelOpt's layers hold on to themselves until the next garbage collection."""
    for module in model.modules():
        vars(module)["_parameters"].clear()
        vars(module)["_buffers"].clear()


@dataclass
class Runner:
    """Draws one variant after another through the same pipeline; a context manager.

    Inside it the pipeline's own progress bars are off and prompts are encoded once. ``tick`` is called after each
    denoising step, ``shown`` with a variant's pictures as soon as they are drawn, before anything is measured.
    """

    pipeline: Any
    part: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    batch_size: int
    call: dict[str, Any]
    tick: Callable[[], Any]
    expected: pd.DataFrame | None = None
    extra: Mapping[str, Measure] = field(default_factory=dict)
    shown: Callable[[list[np.ndarray]], Any] = lambda images: None

    def __enter__(self) -> Runner:
        self.calls: list[ModelCall] = []
        self.dense = getattr(self.pipeline, self.part)
        before = dict(getattr(self.pipeline, "_progress_bar_config", {}))
        with contextlib.ExitStack() as stack:
            self.pipeline.set_progress_bar_config(**before | {"disable": True})
            stack.callback(setattr, self.pipeline, "_progress_bar_config", before)
            gc.freeze()  # what is there stays: looking through it takes half a second each time
            stack.callback(gc.unfreeze)
            stack.callback(gc.collect)  # of what came since, which is quick
            if "encoder" not in self.part:  # whose every variant encodes for itself
                stack.enter_context(cached_prompt_embeddings(self.pipeline))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, name: str, config: ModelOptConfig | None, reference: list[np.ndarray] | None = None) -> Variant:
        """Draw and measure the dense model, where ``config`` is None, or a quantized copy of it."""
        if config is None:
            return self._run(name, self.dense, None)
        if not self.calls:
            self._keep_a_call()
        device = next(self.dense.parameters()).device
        model = copy.deepcopy(self.dense.to("cpu") if device.type == "cuda" else self.dense).to(device)
        try:
            return self._run(name, model, quantize(model, config), reference)
        finally:
            _release(model)
            self.dense.to(device)

    def _run(
        self, name: str, model: nn.Module, report: Report | None, reference: list[np.ndarray] | None = None
    ) -> Variant:
        import torch

        weights = weight_bytes(model)
        with with_component(self.pipeline, self.part, model):
            with dequantized(model):
                images = self._draw_all()
                self.shown(images)
                if not self.calls:
                    self._keep_a_call()
                once = None if report is None else self._call(model)
            output, peak = self._peak(model, weights)
            start = time.perf_counter()
            self._call(model)
            step = (time.perf_counter() - start) * len(self.calls)
            if once is not None and not torch.equal(once, output):
                images = self._draw_all()
        psnr, ssim = psnr_and_ssim(list(zip(images, reference or [], strict=reference is not None)))
        triples = list(zip(images, reference or [None] * len(images), self.prompts, strict=True))
        extra = {name: [measure(*triple) for triple in triples] for name, measure in self.extra.items()}
        return Variant(name, weights, peak, step, images, psnr, ssim, report, self._read(images), extra)

    def _read(self, images: list[np.ndarray]) -> pd.DataFrame | None:
        """What the reader named right, where the prompts say what is right."""
        import pandas as pd

        if self.expected is None:
            return None
        named = classify(images)
        return pd.DataFrame({f"{x}_ok": (named[x].array == self.expected[x].array) for x in self.expected.columns})

    def _draw(self, first: int, count: int, steps: int) -> list[np.ndarray]:
        chosen = slice(first, first + count)
        return generate(
            self.pipeline, self.prompts[chosen], self.seeds[chosen], num_inference_steps=steps,
            callback_on_step_end=lambda pipe, step, time, kept: (self.tick(), kept)[1], **self.call,
        )  # fmt: skip

    def _draw_all(self) -> list[np.ndarray]:
        firsts = range(0, len(self.prompts), self.batch_size)
        return [image for first in firsts for image in self._draw(first, self.batch_size, self.steps)]

    def _keep_a_call(self) -> None:
        """Draw one picture in one step with the dense model, and keep the calls of it: every variant is timed on the first.

        Keeps too what it takes to know a variant's peak from one call: the bytes of the tensors that are there when a
        call begins, and the peak outside the calls, which no variant changes; and the bytes of the pipeline's other parts.
        """
        import torch

        self.before_call = self.outside = 0
        parts = self.pipeline.components.items()
        models = [m for n, m in parts if isinstance(m, torch.nn.Module) and n != self.part]
        self.others = sum(weight_bytes(m).total for m in models)

        def begin(call: ModelCall) -> None:
            self.calls.append(call)
            self.before_call = max(self.before_call, made.now)
            self.outside = max(self.outside, made.peak)

        def end() -> None:
            made.peak = made.now

        once = vars(self.pipeline).pop("encode_prompt", None)  # the prompts that it keeps would count as made here
        try:
            with tensor_memory() as made, watched(self.pipeline, self.part, begin, end):
                self._draw(0, 1, 1)
        finally:
            if once is not None:
                self.pipeline.encode_prompt = once
        self.outside = max(self.outside, made.peak)

    def _peak(self, model: nn.Module, weights: WeightBytes) -> tuple[Any, int]:
        """The kept call's output, and the peak in bytes while one picture is drawn: see :attr:`Comparison.frame`."""
        if next(model.parameters()).is_cuda:
            with peak_memory() as memory:
                self._draw(0, 1, 1)
            return self._call(model), memory.cuda_allocated
        with tensor_memory() as made:
            output = self._call(model)
        return output, self.others + weights.total + max(self.outside, self.before_call + made.peak)

    def _call(self, model: nn.Module) -> Any:
        import torch

        output = self.calls[0](model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return output
