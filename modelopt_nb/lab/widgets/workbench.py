"""What the widgets stand on, without a browser: validate requests, generate and cache images."""

from __future__ import annotations

import copy
import functools
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from modelopt_nb import (
    ACTIVATION_SCALES,
    NEED_LOOP,
    QUANT_TYPES,
    SCHEMES,
    ModelOptConfig,
    check_algorithm,
    config_code,
    make_config,
    plan,
    weight_bytes,
)
from modelopt_nb.lab.calibration.loops import denoising_loop
from modelopt_nb.lab.calibration.model_calls import record_calls
from modelopt_nb.lab.compare.results import machine
from modelopt_nb.lab.compare.runner import Runner
from modelopt_nb.lab.compare.variants import DENSE, Variant
from modelopt_nb.lab.pipelines.generate import native_size
from modelopt_nb.lab.pipelines.load import component_name, is_embedded
from modelopt_nb.lab.pipelines.prompts import load_prompts
from modelopt_nb.lab.plots.style import frame_of
from modelopt_nb.lab.quality.classifier import classify
from modelopt_nb.lab.search.algorithms import ALGORITHMS, check_scheme

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from diffusers import DiffusionPipeline
    from torch import nn

BLOCKS = (16, 32, 64, 128)


MOST_VARIANTS = 12


class Stopped(Exception):
    """Raised within a denoising step after :meth:`Workbench.stop`."""


@dataclass(frozen=True)
class Choice:
    """A variant as a person chooses it: :func:`modelopt_nb.make_config` in few words.

    ``scheme`` is a name in ``SCHEMES``; ``block`` another block size than its own; ``activations`` a quant type, or empty for
    weights alone; ``scale`` a name in ``ACTIVATION_SCALES``, or empty for the type's own; ``pointwise`` packs convolutions of one
    pixel as linear layers; ``excluded`` are names or patterns for ``modules_to_not_convert``.
    """

    scheme: str = "INT8"
    block: int | None = None
    activations: str = ""
    scale: str = ""
    algorithm: str = "max"
    pointwise: bool = False
    excluded: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: str | Mapping[str, Any] | Choice) -> Choice:
        """A choice from a scheme's name, or from a dict as :meth:`as_dict` gives it. Raises TypeError, ValueError."""
        if isinstance(asked, Choice):
            return asked
        if isinstance(asked, str):
            return cls(scheme=asked)
        known = [f.name for f in fields(cls)]
        if not isinstance(asked, Mapping) or not asked.keys() <= set(known):
            raise TypeError(f"variants holds {asked!r}. Allowed: a scheme's name, or a dict with {', '.join(known)}")
        excluded = asked.get("excluded", ())
        excluded = (excluded,) if isinstance(excluded, str) else tuple(excluded)
        if not all(isinstance(name, str) for name in excluded):
            raise TypeError(f"excluded={excluded!r} is not allowed. Allowed: names or patterns of layers")
        plain = {k: v if isinstance(v, (str, int, float, type(None))) else repr(v) for k, v in asked.items()}
        return cls(**{**plain, "excluded": excluded})

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"excluded": list(self.excluded)}

    @property
    def name(self) -> str:
        """Short, and another for every other choice."""
        parts = [self.scheme, f"b{self.block}" if self.block is not None else ""]
        parts += [f"+ {self.activations} {self.scale}".strip() if self.activations else ""]
        parts += [self.algorithm if self.algorithm != "max" else "", "pointwise" if self.pointwise else ""]
        parts += [f"without {', '.join(self.excluded)}" if self.excluded else ""]
        return " ".join(part for part in parts if part)

    def options(self) -> tuple[str, dict[str, Any]]:
        """Quant type and options of :func:`modelopt_nb.make_config`."""
        if self.scheme not in SCHEMES:
            raise ValueError(f"scheme={self.scheme!r} is not known. Allowed: {', '.join(SCHEMES)}")
        for name in ("activations", "scale", "algorithm"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name}={getattr(self, name)!r} is not a name")
        quant_type, chosen = SCHEMES[self.scheme]
        options: dict[str, Any] = {**chosen, "algorithm": self.algorithm, "pointwise_as_linear": self.pointwise}
        if self.block is not None:
            options |= {"channel_quantize": -1, "block_quantize": self.block}
        if self.activations:
            quant_type = f"{quant_type}_{self.activations}"
        if self.scale:
            options["activation_scale"] = self.scale
        return quant_type, options

    def config(self, forward_loop: Callable[[nn.Module], None]) -> ModelOptConfig:
        """The configuration, with the loop where something has to be calibrated. Raises as ``make_config`` does."""
        quant_type, options = self.options()
        if self.activations or self.algorithm in NEED_LOOP:
            options["forward_loop"] = forward_loop
        return make_config(quant_type, modules_to_not_convert=self.excluded, **options)


@functools.lru_cache(maxsize=4096)
def why_not(choice: Choice) -> str:
    """Why a choice cannot work on this machine, whatever the model; empty where it can. Rare ones are tried on a tiny layer."""
    try:
        config = choice.config(lambda model: None)
        check_algorithm(config, config.forward_loop)
    except (ValueError, TypeError) as error:
        return str(error)
    if not choice.activations and choice.algorithm == "max":
        return ""
    quant_type, options = choice.options()
    verdict = check_scheme(quant_type, **options)
    return "" if verdict == "runs" else verdict


def problems(choice: Choice, model: nn.Module) -> dict[str, str]:
    """What is wrong with a choice, by field; the first field that does not go with those before it."""
    built = Choice(pointwise=choice.pointwise)
    for name in ("scheme", "block", "activations", "scale", "algorithm"):
        built = replace(built, **{name: getattr(choice, name)})
        if reason := why_not(built):
            return {name: reason}
    try:
        plan(model, choice.config(lambda model: None))
    except (ValueError, TypeError) as error:
        return {"excluded": str(error)}
    return {}


def options_of(choice: Choice) -> dict[str, list[list[Any]]]:
    """What each field of a choice could be instead: its values, each with a label and with why it cannot be, or nothing."""
    labels: dict[str, dict[Any, str]] = {
        "scheme": {name: name for name in SCHEMES},
        "block": {None: "the scheme's own", **{size: str(size) for size in BLOCKS}},
        "activations": {"": "none", **{name: name for name, t in QUANT_TYPES.items() if t.activations}},
        "scale": {"": "the type's own", **{name: name for name in ACTIVATION_SCALES}},
        "algorithm": {name: name for name in ALGORITHMS},
    }
    # a type is judged by itself: a block size or an algorithm that does not go with it is what shows up as wrong
    alone = {
        "scheme": Choice(),
        "block": Choice(choice.scheme),
        "activations": replace(choice, scale="", algorithm="max"),
    }
    known = choice if choice.scheme in SCHEMES else Choice()
    return {
        name: [[value, label, why_not(replace(alone.get(name, known), excluded=(), **{name: value}))] for value, label in values.items()]
        for name, values in labels.items()
    }  # fmt: skip


@dataclass(frozen=True)
class Request:
    """One comparison: a picture, dense and with each choice."""

    prompt: str
    seed: int
    steps: int
    guidance: float | None
    choices: tuple[Choice, ...]

    def key(self, choice: Choice | None) -> tuple:
        """Equal for equal pictures."""
        return (self.prompt, self.seed, self.steps, self.guidance, choice)


@dataclass(frozen=True)
class Tile:
    """A picture, as PNG, and what its variant was measured to cost and to do; empty ``numbers`` until it is measured."""

    name: str
    png: bytes
    numbers: dict[str, Any]

    @property
    def picture(self) -> np.ndarray:
        """uint8 (height, width, 3)."""
        import numpy as np
        from PIL import Image

        return np.asarray(Image.open(io.BytesIO(self.png)))


def as_png(picture: np.ndarray) -> bytes:
    """A picture, or the middle frame of a video, as a PNG file."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame_of(picture)).save(file, "png", compress_level=1)
    return file.getvalue()


class Workbench:
    """Draws a request's pictures one by one, dense first, on its own copy of the pipeline's settings, and remembers them.

    Args:
        pipeline: Any text-to-image or text-to-video pipeline; its models are shared, not copied.
        component: The part to quantize; the transformer or UNet by default.
        calibrate: Prompts to calibrate with, where a choice needs it; of the embedded pipeline the split ``calibrate``, of
            another the prompt that is asked for.
        remember: How many pictures are kept; the oldest go first.
    """

    CALLS, STEPS = 8, 20  # record_calls calls that are calibrated with, and the denoising steps that they are from

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        component: str | None = None,
        calibrate: Sequence[str] | None = None,
        remember: int = 40,
    ) -> None:
        self.part = component_name(pipeline, component)
        self.pipeline = copy.copy(pipeline)
        if hasattr(pipeline, "scheduler"):
            self.pipeline.scheduler = copy.deepcopy(pipeline.scheduler)
        self.embedded = is_embedded(pipeline)
        self.calibrate, self.calibrate_code = calibrate, calibrate and repr(list(calibrate))
        if calibrate is None and self.embedded:
            self.calibrate, self.calibrate_code = (
                load_prompts("calibrate", 4),
                "modelopt_nb.load_prompts('calibrate', 4)",
            )
        self.remember, self.pictures, self._calls, self.stopping = remember, {}, {}, False

    @property
    def model(self) -> nn.Module:
        """The dense model."""
        return getattr(self.pipeline, self.part)

    @functools.cached_property
    def dense_bytes(self) -> int:
        return weight_bytes(self.model).total

    @functools.cached_property
    def parameters(self) -> Mapping[str, Any]:
        """The arguments of the pipeline's call, with their defaults."""
        import inspect

        return inspect.signature(self.pipeline.__call__).parameters

    @property
    def takes_guidance(self) -> bool:
        return "guidance_scale" in self.parameters

    @property
    def own_guidance(self) -> float | None:
        """The pipeline's default; None where it takes none."""
        return self.parameters["guidance_scale"].default if self.takes_guidance else None

    @property
    def about(self) -> str:
        """What is studied, and on what."""
        return f"{type(self.pipeline).__name__}, {self.part}: {machine(self.model)}"

    def checked(self, asked: Mapping[str, Any]) -> tuple[Request | None, dict[str, str]]:
        """A request from a front end's fields, or what is wrong, by field; that of variant 2 is ``"2.block"`` and so on."""
        errors: dict[str, str] = {}
        prompt, seed, steps, guidance = (asked.get(name) for name in ("prompt", "seed", "steps", "guidance"))
        if not isinstance(prompt, str) or not prompt.strip():
            errors["prompt"] = f"prompt={prompt!r} is empty. Allowed: words"
        elif len(prompt) > 2000:
            errors["prompt"] = f"prompt has {len(prompt)} characters. Allowed: up to 2000"
        most = getattr(getattr(getattr(self.pipeline, "scheduler", None), "config", None), "num_train_timesteps", 1000)
        for name, value, low, high in (("seed", seed, 0, 2**32 - 1), ("steps", steps, 1, most)):
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                errors[name] = f"{name}={value!r} is not allowed. Allowed: a whole number from {low} to {high}"
        if not self.takes_guidance:
            guidance = None
        elif isinstance(guidance, bool) or not isinstance(guidance, (int, float)) or not 0 <= guidance <= 100:
            errors["guidance"] = f"guidance={guidance!r} is not allowed. Allowed: a number from 0 to 100; 1 is without"
        choices: list[Choice] = []
        variants = asked.get("variants")
        if not isinstance(variants, (list, tuple)) or not 1 <= len(variants) <= MOST_VARIANTS:
            errors["variants"] = f"variants={variants!r} is not allowed. Allowed: 1 to {MOST_VARIANTS} variants"
            variants = []
        for i, variant in enumerate(variants):
            try:
                choice = Choice.of(variant)
            except (TypeError, ValueError) as error:
                errors["variants"] = str(error)
                continue
            if choice in choices:
                errors["variants"] = f"variants holds {choice.name!r} twice. Allowed: each once"
            choices.append(choice)
            errors |= {f"{i}.{name}": reason for name, reason in problems(choice, self.model).items()}
        if errors:
            return None, errors
        return Request(prompt.strip(), seed, steps, None if guidance is None else float(guidance), tuple(choices)), {}

    def remembered(self, request: Request) -> list[Tile]:
        """The pictures of the request that are there already, dense first."""
        keys = [request.key(choice) for choice in (None, *request.choices)]
        return [self.pictures[key] for key in keys if key in self.pictures]

    def stop(self) -> None:
        """Let what is being drawn end, within one denoising step, by :class:`Stopped`."""
        self.stopping = True

    def generate(
        self,
        request: Request,
        tick: Callable[[], Any] = lambda: None,
        begun: Callable[[str], Any] = lambda name: None,
        shown: Callable[[Tile], Any] = lambda drawn: None,
    ) -> Iterator[Tile]:
        """Draw what is not remembered, dense first, and yield each picture when it is drawn and measured.

        ``tick`` is called after each denoising step, ``begun`` with each name, ``shown`` with a picture that is not measured yet.
        """

        def step() -> None:
            if self.stopping:
                raise Stopped
            tick()

        def loop(model: nn.Module) -> None:
            for call in calls:
                if self.stopping:
                    raise Stopped
                call(model)

        def first_sight(images: list[np.ndarray]) -> None:
            shown(Tile(name, as_png(images[0]), {}))

        call = {} if request.guidance is None else {"guidance_scale": request.guidance}
        keys = {request.key(choice) for choice in (None, *request.choices)}  # these stay, whatever is forgotten
        runner = Runner(
            self.pipeline, self.part, [request.prompt], [request.seed], request.steps, 1, call, step, shown=first_sight
        )
        with runner:
            for choice in (None, *request.choices):
                if request.key(choice) in self.pictures:
                    continue
                name = choice.name if choice else DENSE
                begun(name)
                reference = [self.pictures[request.key(None)].picture] if choice else None
                config = choice.config(loop) if choice else None
                calls = self._calibration(request, step) if config and config.forward_loop else []
                variant = runner.run(name, config, reference)
                drawn = Tile(name, as_png(variant.images[0]), self._numbers(variant))
                oldest = [key for key in self.pictures if key not in keys]
                for old in oldest[: max(len(self.pictures) + 1 - self.remember, 0)]:
                    del self.pictures[old]
                self.pictures[request.key(choice)] = drawn
                yield drawn

    def _calibration(self, request: Request, step: Callable[[], None]) -> list[Any]:
        """The dense model's calls to calibrate with, record_calls at first use, while the dense model is in its place."""
        about = request.prompt if self.calibrate is None else ""
        if about not in self._calls:
            prompts = [request.prompt] if self.calibrate is None else self.calibrate
            loop = denoising_loop(
                self.pipeline, prompts, steps=self.STEPS, component=self.part,
                callback_on_step_end=lambda pipe, i, time, kept: (step(), kept)[1],
            )  # fmt: skip
            with record_calls(self.pipeline, self.CALLS, component=self.part) as calls:
                loop(self.model)
            self._calls = {about: calls}  # those of another prompt are not needed again
        return self._calls[about]

    def _numbers(self, variant: Variant) -> dict[str, Any]:
        numbers = variant.numbers | {"of dense": variant.weights.total / self.dense_bytes}
        if self.embedded:
            seen = classify(variant.images).iloc[0]
            numbers["the reader sees"] = f"{seen['subject']} on {seen['background']}"
        return numbers

    def code(self, request: Request, choice: Choice | None) -> str:
        """Python that draws the request's picture with ``choice`` (None: dense) in a script of its own.

        In plain Diffusers and ModelOpt where those can do it; where they need this package, with it, and says why.
        """
        path, dtype = str(self.pipeline.name_or_path), str(self.model.dtype)
        path = min(path, os.path.relpath(path), key=len) if os.path.isdir(path) else path
        size = native_size(self.pipeline)
        guidance = {} if request.guidance is None else {"guidance_scale": request.guidance}
        arguments = {"num_inference_steps": request.steps, **guidance, **size}
        ending = [
            "image = pipeline(",
            f"    {request.prompt!r},",
            f"    generator=[torch.Generator().manual_seed({request.seed})],",
            *(f"    {name}={value!r}," for name, value in arguments.items()),
            ").images[0]",
        ]
        loading = [
            "import torch",
            "from diffusers import DiffusionPipeline",
            "",
            f"pipeline = DiffusionPipeline.from_pretrained({path!r}, dtype={dtype}).to({self.model.device.type!r})",
        ]
        if choice is None:
            return "\n".join([*loading, *ending])
        config = choice.config(lambda model: None)
        if reason := self._needs_kit(choice):
            calibrating = [
                f"loop = modelopt_nb.denoising_loop(pipeline, {self.calibrate_code or [request.prompt]}, steps={self.STEPS})",
                f"with modelopt_nb.record_calls(pipeline, {self.CALLS}) as calls:",
                f"    loop(pipeline.{self.part})",
                "forward_loop = modelopt_nb.replay_loop(calls)",
            ]
            quantizing = [
                f"# {reason}",
                *(calibrating if config.forward_loop else []),
                f"config = modelopt_nb.{config_code(config)}",
                f"modelopt_nb.quantize(pipeline.{self.part}, config)",
            ]
            return "\n".join(["import modelopt_nb", *loading, *quantizing, *ending])
        dense = [layer.name for layer in plan(self.model, config).layers if not layer.packed]
        cfg = next(e["cfg"] for e in config.modelopt_config["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer")
        quantizing = [
            "entries = [",
            '    {"quantizer_name": "*", "enable": False},',
            f'    {{"quantizer_name": "*weight_quantizer", "cfg": {cfg!r}}},',
            *(f'    {{"quantizer_name": "{name}.*", "enable": False}},' for name in dense),
            "]",
            f'mtq.quantize(pipeline.{self.part}, {{"quant_cfg": entries, "algorithm": "max"}})',
            f"mtq.compress(pipeline.{self.part})",
        ]
        return "\n".join(["import modelopt.torch.quantization as mtq", *loading, *quantizing, *ending])

    @staticmethod
    def _needs_kit(choice: Choice) -> str:
        """Why plain ModelOpt cannot do it; empty where it can."""
        if choice.scheme.startswith("NF4"):
            return "modelopt_nb repairs ModelOpt, which cannot read NF4 back"
        if choice.pointwise:
            return "modelopt_nb packs convolutions of one pixel as linear layers"
        if choice.activations or choice.algorithm != "max":
            return "modelopt_nb keeps calibrated scales, which ModelOpt's packing drops"
        return ""


def runs_frame(runs: Sequence[tuple[Request, Sequence[Tile]]]) -> pd.DataFrame:
    """A row a run and picture: what was asked, and every number."""
    import pandas as pd

    rows = [
        {"run": i, "prompt": r.prompt, "seed": r.seed, "steps": r.steps, "guidance": r.guidance, "variant": d.name, **d.numbers}
        for i, (r, drawn) in enumerate(runs, 1)
        for d in drawn
    ]  # fmt: skip
    return pd.DataFrame(rows)
