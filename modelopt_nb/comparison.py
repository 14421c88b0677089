"""Draw the same pictures with every variant of a model, and put cost and quality side by side."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from modelopt_nb import metrics
from modelopt_nb.config import make_config
from modelopt_nb.memory import MIB, WeightBytes, peak_memory, weight_bytes
from modelopt_nb.pipeline import component_name, draw, prompts_encoded_once, swapped
from modelopt_nb.quantization import Report, dequantized, plan, quantize

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from diffusers import DiffusionPipeline, NVIDIAModelOptConfig
    from matplotlib.figure import Figure
    from torch import nn

DENSE = "dense"
MEMORY_STEPS, TIMED_STEPS = 1, 5  # of the short runs on the packed model


@dataclass(frozen=True)
class Variant:
    """One row of a comparison. Bytes are the quantized component's; ``peak`` is in bytes, ``step`` in seconds."""

    name: str
    weights: WeightBytes
    peak: int
    step: float
    images: list[np.ndarray]
    psnr: list[float]
    ssim: list[float]
    report: Report | None = None


@dataclass(frozen=True)
class Table:
    """A frame as a notebook shows it: rounded, with the machine under it."""

    frame: pd.DataFrame
    caption: str

    DIGITS = {"peak MiB": 0, "s per step": 4, "of bf16": 3, "PSNR dB": 1, "SSIM": 3}

    def _formats(self) -> dict[str, str]:
        return {name: f"{{:.{self.DIGITS.get(name, 2)}f}}" for name in self.frame.columns}

    def __repr__(self) -> str:
        formatters = {name: form.format for name, form in self._formats().items()}
        return f"{self.frame.to_string(formatters=formatters, na_rep='')}\n{self.caption}"

    def _repr_html_(self) -> str:
        style = self.frame.style.format(self._formats(), na_rep="")
        return style.set_caption(self.caption).set_uuid("comparison").to_html()


@dataclass
class Comparison:
    """What :func:`compare` measured. ``variants`` holds dense first, then the others in their order."""

    component: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    machine: str
    variants: list[Variant] = field(default_factory=list)

    #: Columns of :attr:`frame` that change from run to run.
    COSTS = ("s per step",)

    @property
    def images(self) -> dict[str, list[np.ndarray]]:
        """The pictures of every variant in the order of the prompts, uint8 (height, width, 3)."""
        return {v.name: v.images for v in self.variants}

    @property
    def frame(self) -> pd.DataFrame:
        """A row a variant.

        ``weights MiB``, ``bits per weight`` and ``of bf16`` (bytes over those of the same weights in bfloat16) are the
        component's, scales and layers left dense included. ``peak MiB``: on CUDA what the allocator held at most, on a
        CPU the weights of the whole pipeline plus the peak of the tensors made while one picture is drawn, packed.
        ``s per step``: the component's time in one denoising step of one picture, packed. ``PSNR dB`` and ``SSIM``:
        means over the pictures, against dense.
        """
        import pandas as pd

        rows = {
            v.name: {
                "weights MiB": v.weights.mib,
                "bits per weight": v.weights.bits_per_weight,
                "of bf16": v.weights.of_bf16,
                "peak MiB": v.peak / MIB,
                "s per step": v.step,
                "PSNR dB": statistics.fmean(v.psnr) if v.psnr else float("nan"),
                "SSIM": statistics.fmean(v.ssim) if v.ssim else float("nan"),
            }
            for v in self.variants
        }
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
        frame.attrs["caption"] = self.caption
        return frame

    @property
    def caption(self) -> str:
        """What the numbers were measured on."""
        return f"{self.component}, {len(self.prompts)} prompts, {self.steps} steps; {self.machine}"

    def table(self, *columns: str) -> Table:
        """:attr:`frame`, or the named columns of it, rounded for reading and with its caption."""
        return Table(self.frame[list(columns)] if columns else self.frame, self.caption)

    def grid(self, rows: int | None = None) -> Figure:
        """The pictures side by side: a row a prompt, a column a variant, dense first."""
        from modelopt_nb.plots import plot_grid

        return plot_grid(self, rows)


def machine(model: nn.Module) -> str:
    """Device, dtype and versions, as every table says them."""
    import torch

    parameter = next(model.parameters())
    device = torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else parameter.device.type.upper()
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "nvidia-modelopt"))
    return f"{device}, {str(parameter.dtype).removeprefix('torch.')}, {packages}"


def _configs(variants: Any) -> dict[str, NVIDIAModelOptConfig]:
    """``variants`` as configurations by name; raises before anything is drawn."""
    if isinstance(variants, str) or not isinstance(variants, (Mapping, Sequence)):
        raise TypeError(f"variants={variants!r} is neither a list of quant types nor a dict of configurations by name")
    items = variants.items() if isinstance(variants, Mapping) else [(str(v), v) for v in variants]
    configs: dict[str, NVIDIAModelOptConfig] = {}
    for name, config in items:
        if name == DENSE and config == DENSE:
            continue  # dense is always drawn
        if name in configs or name == DENSE:
            raise ValueError(f"variants names {name!r} twice; {DENSE!r} is always drawn first")
        configs[name] = make_config(config) if isinstance(config, str) else config
        if not hasattr(configs[name], "modelopt_config"):
            raise TypeError(f"variants[{name!r}]={config!r} is not a configuration. Build one with make_config('FP8')")
    return configs


def compare(
    pipeline: DiffusionPipeline,
    variants: Sequence[str] | Mapping[str, str | NVIDIAModelOptConfig],
    prompts: Sequence[str],
    seeds: int | Sequence[int] = 0,
    *,
    steps: int = 20,
    component: str | None = None,
    batch_size: int = 4,
    progress: bool = True,
    **call: Any,
) -> Comparison:
    """Draw the same pictures dense and with every variant, from the same starting noise.

    One variant is in memory at a time, beside the dense model that it is copied from. Prompts are encoded once.
    Memory and the time of a step are measured on the packed model; the pictures are then drawn from its weights
    dequantized once where a check shows that this gives the same output bit for bit, and packed where it does not.

    Args:
        pipeline: From :func:`modelopt_nb.load_pipeline`, or any text-to-image or text-to-video pipeline.
        variants: Quant types, or configurations by name. ``dense`` is always first.
        prompts: One picture each.
        seeds: One a prompt, or the first of consecutive ones.
        steps: Denoising steps.
        component: The part to quantize; the transformer or UNet by default.
        batch_size: Pictures drawn in one call.
        progress: Show a progress bar.
        call: Passed on to the pipeline, such as ``guidance_scale``, ``height``, ``max_sequence_length``.

    Returns:
        The comparison; where it is interrupted from the keyboard, with the variants that were finished, and a warning.

    Raises:
        ValueError, TypeError: Before anything is drawn: no prompts, seeds that do not fit, an unknown type, a
            configuration that fits no layer.
    """
    import torch
    from tqdm.auto import tqdm

    if isinstance(prompts, str) or not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f"prompts={prompts!r} is not a list of prompts. Allowed: one or more strings in a list")
    prompts = list(prompts)
    seeds = [seeds + i for i in range(len(prompts))] if isinstance(seeds, int) else list(seeds)
    if len(seeds) != len(prompts):
        raise ValueError(
            f"seeds has {len(seeds)} entries for {len(prompts)} prompts. Allowed: one number, or one a prompt"
        )
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} is not allowed. Allowed: a whole number of 1 or more")
    part = component_name(pipeline, component)
    dense = getattr(pipeline, part)
    configs = _configs(variants)
    for config in configs.values():
        plan(dense, config)

    comparison = Comparison(part, prompts, seeds, steps, machine(dense))
    others = sum(
        (weight_bytes(m).total for n, m in pipeline.components.items() if isinstance(m, torch.nn.Module) and n != part)
    )
    total = (1 + len(configs)) * (steps * -(-len(prompts) // batch_size) + MEMORY_STEPS + TIMED_STEPS)
    bar = tqdm(total=total, disable=not progress, unit="step")
    runner = _Runner(pipeline, part, prompts, seeds, steps, batch_size, call, others, bar.update)
    try:
        with bar, runner.prepared():
            bar.set_description(DENSE)
            comparison.variants.append(runner.run(DENSE, dense, None))
            device = next(dense.parameters()).device
            for name, config in configs.items():
                bar.set_description(name)
                model = copy.deepcopy(dense.to("cpu")).to(device) if device.type == "cuda" else copy.deepcopy(dense)
                report = quantize(model, config)
                comparison.variants.append(runner.run(name, model, report, comparison.variants[0].images))
                del model
                dense.to(device)
    except KeyboardInterrupt:
        if not comparison.variants:
            raise
        done, every = len(comparison.variants), 1 + len(configs)
        warnings.warn(f"interrupted: {done} of {every} variants are finished, and are kept", stacklevel=2)
    return comparison


@dataclass
class _Runner:
    """Draws one variant after another through the same pipeline."""

    pipeline: Any
    part: str
    prompts: list[str]
    seeds: list[int]
    steps: int
    batch_size: int
    call: dict[str, Any]
    others: int
    tick: Callable[[], Any]

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """The pipeline's own progress bars off, prompts encoded once, as it was afterwards."""
        before = dict(getattr(self.pipeline, "_progress_bar_config", {}))
        self.pipeline.set_progress_bar_config(**before | {"disable": True})
        try:
            with prompts_encoded_once(self.pipeline):
                yield
        finally:
            self.pipeline._progress_bar_config = before

    def run(
        self, name: str, model: nn.Module, report: Report | None, reference: list[np.ndarray] | None = None
    ) -> Variant:
        with swapped(self.pipeline, self.part, model):
            probe = self._probe(model)
            with dequantized(model):
                same = report is None or probe.agrees(model)
                images = self._draw_all() if same else None
            images = images or self._draw_all()
        weights = weight_bytes(model)
        cuda = probe.memory.cuda_allocated
        peak = cuda if cuda else self.others + weights.total + probe.memory.tensors
        pairs = list(zip(images, reference, strict=True)) if reference is not None else []
        psnr, ssim = ([measure(*pair) for pair in pairs] for measure in (metrics.psnr, metrics.ssim))
        return Variant(name, weights, peak, probe.step, images, psnr, ssim, report)

    def _draw(self, first: int, count: int, steps: int) -> list[np.ndarray]:
        chosen = slice(first, first + count)
        return draw(
            self.pipeline, self.prompts[chosen], self.seeds[chosen], num_inference_steps=steps,
            callback_on_step_end=lambda pipe, step, time, kept: (self.tick(), kept)[1], **self.call,
        )  # fmt: skip

    def _draw_all(self) -> list[np.ndarray]:
        firsts = range(0, len(self.prompts), self.batch_size)
        return [image for first in firsts for image in self._draw(first, self.batch_size, self.steps)]

    def _probe(self, model: nn.Module) -> _Probe:
        """Two short runs of one picture: one for peak memory, one for the time of a step and a call to compare with."""
        probe = _Probe()
        with peak_memory() as probe.memory:
            self._draw(0, 1, MEMORY_STEPS)
        hooks = (
            model.register_forward_pre_hook(probe.begin, with_kwargs=True),
            model.register_forward_hook(probe.end, with_kwargs=True),
        )
        try:
            self._draw(0, 1, TIMED_STEPS)
        finally:
            for hook in hooks:
                hook.remove()
        return probe


class _Probe:
    """Times every call of a model and keeps the last one's arguments and output."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    @staticmethod
    def _now() -> float:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.started = self._now()

    def end(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.seconds.append(self._now() - self.started)
        self.last = args, kwargs, output

    @property
    def step(self) -> float:
        """Seconds in one denoising step: the median call, times the calls that a step makes."""
        return statistics.median(self.seconds[1:]) * len(self.seconds) / TIMED_STEPS

    def agrees(self, model: nn.Module) -> bool:
        """Whether ``model`` gives the kept output again, bit for bit (a low-precision matrix product would not)."""
        import torch

        args, kwargs, packed = self.last
        with torch.no_grad():
            unpacked = model(*args, **kwargs)
        first, second = (x[0] if isinstance(x, tuple) else x.sample for x in (packed, unpacked))
        return torch.equal(first, second)
