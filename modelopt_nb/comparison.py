"""Draw the same pictures with every variant of a model, and put cost and quality side by side."""

from __future__ import annotations

import contextlib
import copy
import gc
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from modelopt_nb import metrics
from modelopt_nb.calibration import Call, watched
from modelopt_nb.config import make_config
from modelopt_nb.memory import MIB, WeightBytes, freed_memory_kept, peak_memory, tensor_bytes, weight_bytes
from modelopt_nb.pipeline import component_name, draw, is_embedded, prompts_and_seeds, prompts_encoded_once, swapped
from modelopt_nb.quantization import Report, check_runs, dequantized, quantize
from modelopt_nb.reader import percent, read

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from diffusers import DiffusionPipeline, NVIDIAModelOptConfig
    from matplotlib.figure import Figure
    from torch import nn

DENSE = "dense"


@dataclass(frozen=True)
class Variant:
    """One row of a comparison. Bytes are the quantized component's; ``peak`` is in bytes, ``step`` in seconds.

    ``read`` is what the reader named right: boolean columns ``subject_ok`` and ``background_ok``, a row a picture.
    """

    name: str
    weights: WeightBytes
    peak: int
    step: float
    images: list[np.ndarray]
    psnr: list[float]
    ssim: list[float]
    report: Report | None = None
    read: pd.DataFrame | None = None
    extra: dict[str, list[float]] = field(default_factory=dict)

    @property
    def numbers(self) -> dict[str, Any]:
        """Cost and quality as :attr:`Comparison.frame` names them."""
        return {
            "precision": self.report.precision if self.report else DENSE,
            "weights MiB": self.weights.mib,
            "bits per weight": self.weights.bits_per_weight,
            "of bf16": self.weights.of_bf16,
            "peak MiB": self.peak / MIB,
            "s per step": self.step,
            "PSNR dB": statistics.fmean(self.psnr) if self.psnr else float("nan"),
            "SSIM": statistics.fmean(self.ssim) if self.ssim else float("nan"),
            **{name: statistics.fmean(values) for name, values in self.extra.items()},
        }


@dataclass(frozen=True)
class Table:
    """A frame as a notebook shows it: rounded, with the machine under it."""

    frame: pd.DataFrame
    caption: str

    DIGITS = {
        "seed": 0,
        "steps": 0,
        "guidance": 1,
        "weights MiB": 2,
        "bits per weight": 2,
        "of bf16": 3,
        "peak MiB": 0,
        "s per step": 4,
        "PSNR dB": 1,
        "SSIM": 3,
        **{f"{what}_ok{end}": 1 for what in ("subject", "background") for end in ("", " low", " high")},
    }

    def _formats(self) -> dict[str, str]:
        numbers = self.frame.select_dtypes("number").columns
        return {name: f"{{:.{self.DIGITS.get(name, 2)}f}}" for name in numbers}

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

        ``precision`` is what weights and activations are rounded to. ``weights MiB``, ``bits per weight`` and ``of bf16``
        (bytes over those of the same weights in bfloat16) are the component's, scales and layers left dense included.
        ``peak MiB``: on CUDA what the allocator held at most, on a CPU the weights of the whole pipeline plus the peak of
        the tensors made while one picture is drawn, packed. ``s per step``: the component's time in one denoising step of
        one picture, packed; for a text encoder or an autoencoder, its time for one picture. ``PSNR dB`` and ``SSIM``: means
        over the pictures, against dense. For the embedded pipeline, where the prompts say what they show: ``subject_ok``
        and ``background_ok``, percent of the pictures that the reader names right, with the ends of the 95 % intervals.
        """
        import pandas as pd

        rows = {v.name: v.numbers | _named_right(v.read) for v in self.variants}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("variant")
        frame.attrs["caption"] = self.caption
        return frame

    @property
    def caption(self) -> str:
        """What the numbers were measured on."""
        return f"{self.component}, {len(self.prompts)} prompts, {self.steps} steps; {self.machine}"

    def table(self, *columns: str) -> Table:
        """The named columns of :attr:`frame`, rounded for reading and with its caption.

        Without names: all but the times, which change from run to run, and the ends of the intervals.
        """
        frame = self.frame
        shown = [c for c in frame.columns if c not in self.COSTS and not c.endswith((" low", " high"))]
        return Table(frame[list(columns) or shown], self.caption)

    def grid(self, rows: int | None = None) -> Figure:
        """The pictures side by side: a row a prompt, a column a variant, dense first."""
        from modelopt_nb.plots import plot_grid

        return plot_grid(self, rows)


def _named_right(read: pd.DataFrame | None) -> dict[str, float]:
    columns = {}
    for name in [] if read is None else read.columns:
        columns[name], columns[f"{name} low"], columns[f"{name} high"] = percent(read[name])
    return columns


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
    prompts: Sequence[str] | pd.DataFrame,
    seeds: int | Sequence[int] | None = None,
    *,
    steps: int = 20,
    component: str | None = None,
    batch_size: int = 4,
    progress: bool = True,
    extra: Mapping[str, metrics.Measure] | None = None,
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
        check_runs(dense, config)

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
    extra: Mapping[str, metrics.Measure] = field(default_factory=dict)
    shown: Callable[[list[np.ndarray]], Any] = lambda images: None

    def __enter__(self) -> Runner:
        self.calls: list[Call] = []
        self.dense = getattr(self.pipeline, self.part)
        before = dict(getattr(self.pipeline, "_progress_bar_config", {}))
        with contextlib.ExitStack() as stack:
            self.pipeline.set_progress_bar_config(**before | {"disable": True})
            stack.callback(setattr, self.pipeline, "_progress_bar_config", before)
            gc.freeze()  # what is there stays: looking through it takes half a second each time
            stack.callback(gc.unfreeze)
            stack.callback(gc.collect)  # of what came since, which is quick
            stack.enter_context(freed_memory_kept())
            if "encoder" not in self.part:  # whose every variant encodes for itself
                stack.enter_context(prompts_encoded_once(self.pipeline))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def run(self, name: str, config: NVIDIAModelOptConfig | None, reference: list[np.ndarray] | None = None) -> Variant:
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
        with swapped(self.pipeline, self.part, model):
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
        psnr, ssim = metrics.psnr_and_ssim(list(zip(images, reference or [], strict=reference is not None)))
        triples = list(zip(images, reference or [None] * len(images), self.prompts, strict=True))
        extra = {name: [measure(*triple) for triple in triples] for name, measure in self.extra.items()}
        return Variant(name, weights, peak, step, images, psnr, ssim, report, self._read(images), extra)

    def _read(self, images: list[np.ndarray]) -> pd.DataFrame | None:
        """What the reader named right, where the prompts say what is right."""
        import pandas as pd

        if self.expected is None:
            return None
        named = read(images)
        return pd.DataFrame({f"{x}_ok": (named[x].array == self.expected[x].array) for x in self.expected.columns})

    def _draw(self, first: int, count: int, steps: int) -> list[np.ndarray]:
        chosen = slice(first, first + count)
        return draw(
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

        def begin(call: Call) -> None:
            self.calls.append(call)
            self.before_call = max(self.before_call, made.now)
            self.outside = max(self.outside, made.peak)

        def end() -> None:
            made.peak = made.now

        once = vars(self.pipeline).pop("encode_prompt", None)  # the prompts that it keeps would count as made here
        try:
            with tensor_bytes() as made, watched(self.pipeline, self.part, begin, end):
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
        with tensor_bytes() as made:
            output = self._call(model)
        return output, self.others + weights.total + max(self.outside, self.before_call + made.peak)

    def _call(self, model: nn.Module) -> Any:
        import torch

        output = self.calls[0](model)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return output
