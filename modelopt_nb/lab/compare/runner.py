"""Generate the same images with each variant of a model; compare memory, time and image quality."""

import contextlib
import copy
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn
from tqdm.auto import tqdm

from modelopt_nb import ModelOptConfig, Report, dequantized, peak_memory, quantize, weight_bytes
from modelopt_nb.lab.calibration.model_calls import ModelCall, record_calls
from modelopt_nb.lab.compare.results import Comparison, machine
from modelopt_nb.lab.compare.variants import COLUMNS, DENSE, Variant, check_config, configs_by_name
from modelopt_nb.lab.pipelines.generate import cached_prompt_embeddings, check_call, check_counts, generate, part_of
from modelopt_nb.lab.pipelines.load import component_name, is_codec, is_embedded, step_hook, unchanged, with_component
from modelopt_nb.lab.pipelines.prompts import Prompts, Seeds, prompts_and_seeds
from modelopt_nb.lab.quality.classifier import classify
from modelopt_nb.lab.quality.metrics import Measure, psnr_and_ssim


def compare(
    pipeline: DiffusionPipeline, variants: Sequence[str] | Mapping[str, str | ModelOptConfig],
    prompts: Prompts, seeds: Seeds = None, *, steps: int | None = None, component: str | None = None, batch_size: int = 4, progress: bool = True,
    measures: Mapping[str, Measure] | None = None, **call: Any,
) -> Comparison:  # fmt: skip
    """Generate the same images with the dense model and with each variant, from the same noise, and measure both.

    One variant is in memory at a time, next to the dense model that it is copied from. Prompts are encoded once; if a
    text encoder is quantized, once per variant. Memory and time are measured with packed weights. Images are
    generated with weights dequantized once if the output is then the same bit for bit, otherwise with packed ones.

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any that makes images or videos from prompts (and images).
        variants: Quant types, or configurations by name. ``dense`` is always first.
        prompts: One image each; a list or array, or a frame with a column ``prompt`` (and ``seed``), as from
            :func:`modelopt_nb.load_prompts`. For the embedded pipeline and a frame with ``subject`` and ``background``,
            the images are also classified, and :attr:`Comparison.frame` has ``subject_ok`` and ``background_ok``.
        seeds, steps, batch_size, call: As for :func:`modelopt_nb.generate`.
        component: To quantize, such as ``"text_encoder"`` or ``"vae"``; the transformer or UNet by default.
        measures: Further columns by name, such as ``{"LPIPS": lpips()}`` and ``{"CLIP score": clip_score()}``.

    Returns:
        The comparison. A variant that fails is left out with a warning that names it; after a KeyboardInterrupt, so are
        those that are not finished. An image of one colour is named in a warning, too.

    Raises:
        Exception: The dense model's own.
        ValueError, TypeError: Before anything is generated: no prompts, seeds that do not fit, an unknown quant type, a
            configuration that fits no layer, lacks what its algorithm needs, or cannot run on this machine.
    """
    expected = None
    if isinstance(prompts, pd.DataFrame) and {"subject", "background"} <= set(prompts) and is_embedded(pipeline):
        expected = prompts[["subject", "background"]]
    texts, numbers = prompts_and_seeds(prompts, seeds)
    steps, measures = check_counts(pipeline, steps, call, batch_size), measures or {}
    check_call(pipeline, call, len(texts))
    if taken := sorted({"variant", *(column.name for column in COLUMNS)} & set(measures)):
        raise ValueError(f"measures contains {', '.join(taken)}, already a column. Allowed: other names")
    if wrong := {name: measure for name, measure in measures.items() if not callable(measure)}:
        raise TypeError(f"measures={wrong} is not a function by name, such as lpips() makes")
    part = component_name(pipeline, component)
    dense = getattr(pipeline, part)
    configs = configs_by_name(variants)
    for config in configs.values():
        check_config(dense, config)

    comparison = Comparison(part, texts, numbers, steps, machine(dense))
    total = (1 + len(configs)) * steps * -(-len(texts) // batch_size) + 1
    bar = tqdm(total=total, disable=not progress, unit="step")
    runner = Runner(pipeline, part, texts, numbers, steps, batch_size, call, bar.update, expected, measures)
    try:
        with bar, runner.caching():
            for name, config in {DENSE: None, **configs}.items():
                bar.set_description(name)
                reference = comparison.variants[0].images if comparison.variants else None
                try:
                    comparison.variants.append(runner.run(name, config, reference))
                except Exception as error:
                    if config is None:
                        raise
                    warnings.warn(
                        f"variant {name!r} failed and is left out: {type(error).__name__}: {error}", stacklevel=2
                    )
    except KeyboardInterrupt:
        if not comparison.variants:
            raise
        finished = f"{len(comparison.variants)} of {1 + len(configs)} variants are finished"
        warnings.warn(f"interrupted: {finished}, and are kept", stacklevel=2)
    return comparison


@dataclass
class Runner:
    """Generate with one variant after another through the same pipeline, and measure each.

    ``tick`` is called after each denoising step, ``shown`` with a variant's images before anything is measured.
    """

    pipeline: DiffusionPipeline
    part: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    batch_size: int
    call: dict[str, Any]
    tick: Callable[[], Any]
    expected: pd.DataFrame | None = None
    measures: Mapping[str, Measure] = field(default_factory=dict)
    shown: Callable[[list[np.ndarray]], Any] = lambda images: None
    _calls: list[ModelCall] = field(default_factory=list, init=False)  # of the dense model, in one step of one image
    _fewest: int = field(default=1, init=False)  # steps that the scheduler can do

    def __post_init__(self) -> None:
        self.dense = getattr(self.pipeline, self.part)

    def caching(self) -> contextlib.AbstractContextManager[None]:
        """Encode each prompt once inside the block, unless the component is an encoder."""
        return contextlib.nullcontext() if "encoder" in self.part else cached_prompt_embeddings(self.pipeline)

    def run(self, name: str, config: ModelOptConfig | None, reference: list[np.ndarray] | None = None) -> Variant:
        """Generate with the dense model (``config`` None) or with a quantized copy of it, and measure it.

        ``reference`` are the images of the dense model. The copy's memory is free when this returns.
        """
        if not self._calls:
            self._record()
        if config is None:
            return self._run(name, self.dense, None, reference)
        device = next(self.dense.parameters()).device
        model = nn.Module()
        try:
            model = copy.deepcopy(self.dense.to("cpu") if device.type == "cuda" else self.dense).to(device)
            return self._run(name, model, quantize(model, config), reference)
        finally:
            for module in model.modules():  # ModelOpt's layers refer to themselves: free their weights at once
                vars(module)["_parameters"].clear()
                vars(module)["_buffers"].clear()
            self.dense.to(device)

    def peak(self) -> int:
        """Measure the peak memory in bytes while one image is generated in one denoising step, its prompt encoded too.

        If the scheduler cannot do one, in as few as it can.
        That is the weights of the pipeline's models on the component's device, plus the peak of what is allocated
        meanwhile: by PyTorch's allocator on CUDA, in tensors (:attr:`modelopt_nb.PeakMemory.tensors`) on a CPU, where
        it counts nothing.
        """
        with unchanged(self.pipeline), peak_memory() as memory:
            vars(self.pipeline).pop("encode_prompt", None)  # of caching()
            call = part_of(self.call, 0, 1, len(self.prompts))
            generate(self.pipeline, self.prompts[:1], self.seeds[:1], steps=self._fewest, **call)
        models = [part for part in self.pipeline.components.values() if isinstance(part, nn.Module)]
        devices = {part: {p.device.type for p in part.parameters()} for part in models}
        here = devices[getattr(self.pipeline, self.part)]
        grown = memory.cuda_grown if "cuda" in here else memory.tensors
        return sum(weight_bytes(model).total for model in models if devices[model] & here) + (grown or 0)

    def _run(self, name: str, model: nn.Module, report: Report | None, reference: list[np.ndarray] | None) -> Variant:
        with with_component(self.pipeline, self.part, model):
            with dequantized(model):
                images = self._generate()
                self.shown(images)
                expected = None if report is None else self._repeat(model)
            peak = self.peak()
            start = time.perf_counter()
            output = self._repeat(model)
            step = (time.perf_counter() - start) * len(self._calls)
            if expected is not None and not torch.equal(expected, output):
                images = self._generate()
        if flat := [prompt for image, prompt in zip(images, self.prompts, strict=True) if image.min() == image.max()]:
            why = "of one colour: black, where a safety checker blanks it; equal ones have no PSNR and SSIM"
            warnings.warn(f"variant {name!r}: the image of {', '.join(map(repr, flat))} is {why}", stacklevel=4)
        psnr, ssim = psnr_and_ssim(list(zip(images, reference or [], strict=reference is not None)))
        rows = list(zip(images, reference or [None] * len(images), self.prompts, strict=True))
        measures = {name: [float(measure(*row)) for row in rows] for name, measure in self.measures.items()}
        correct = None
        if self.expected is not None:
            correct = (classify(images) == self.expected.reset_index(drop=True)).add_suffix("_ok")
        return Variant(name, weight_bytes(model), peak, step, images, psnr, ssim, report, correct, measures)

    def _generate(self) -> list[np.ndarray]:
        """Generate all images, ticking at each step."""
        sizes: dict[str, Any] = {"steps": self.steps, "batch_size": self.batch_size}
        with step_hook(self.pipeline, self.tick):
            return generate(self.pipeline, self.prompts, self.seeds, **sizes, **self.call)

    def _record(self) -> None:
        """Record the dense model's calls in one step of one image: each variant is checked and timed on the first.

        Runs the fewest steps that the scheduler can do and that call the component: some fail with one, or give NaN;
        a strength below 1 leaves none of it, and the second transformer of Wan 2.2 begins later.

        Raises:
            ValueError: The component is not called at all.
        """
        decode, call = is_codec(self.pipeline, self.part), part_of(self.call, 0, 1, len(self.prompts))
        for steps in sorted({*(n for n in (1, 2, 4) if n < self.steps), self.steps}):
            with contextlib.suppress(*[Exception] * (steps < self.steps)):
                with record_calls(self.pipeline, None, component=self.part) as calls:
                    generate(self.pipeline, self.prompts[:1], self.seeds[:1], steps=steps, decode=decode, **call)
                if calls:
                    self._calls = calls if decode else [call for call in calls if call.step == calls[0].step]
                    self._fewest = steps
                    break
        if not self._calls:
            wrong = f"component={self.part!r} is not called in {self.steps} steps of {type(self.pipeline).__name__}"
            raise ValueError(f"{wrong}. Allowed: a component that these images need")
        self.tick()

    def _repeat(self, model: nn.Module) -> torch.Tensor:
        """Repeat the first recorded call; returns its output when the device has finished."""
        output = self._calls[0](model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return output
