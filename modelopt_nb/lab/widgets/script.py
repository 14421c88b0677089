"""Python that generates a chosen image without the widgets."""

import inspect
import os
from collections.abc import Sequence

from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from modelopt_nb import ModelOptConfig, config_code, plan
from modelopt_nb.lab.pipelines.generate import native_size
from modelopt_nb.lab.widgets.choices import Choice
from modelopt_nb.lab.widgets.request import Request


def script(
    pipeline: DiffusionPipeline, part: str, request: Request, choice: Choice | None, calibration: Sequence[str]
) -> str:
    """Return a script that generates the request's image with ``choice``; None is the dense model.

    It uses only Diffusers and ModelOpt if those suffice. Otherwise it imports ``modelopt_nb`` and a comment says why;
    ``calibration`` are its lines that make ``forward_loop``.
    """
    model: nn.Module = getattr(pipeline, part)
    if choice is None:
        return "\n".join([*_load(pipeline, model), *_generate(pipeline, request)])
    config = choice.config(lambda model: None)
    if reason := _why_not_plain(choice, bool(plan(model, config).pointwise)):
        header, quantize = "import modelopt_nb", [
            f"# {reason}",
            *(calibration if choice.calibrates else []),
            f"config = modelopt_nb.{config_code(config)}",
            f"modelopt_nb.quantize(pipeline.{part}, config)",
        ]  # fmt: skip
    else:
        header, quantize = "import modelopt.torch.quantization as mtq", _plain_modelopt(model, part, config)
    return "\n".join([header, *_load(pipeline, model), *quantize, *_generate(pipeline, request)])


def _why_not_plain(choice: Choice, pointwise: bool) -> str:
    """Return why plain ModelOpt cannot generate the image, or an empty string; ``pointwise``: of a 1x1 convolution."""
    if choice.scheme.startswith("NF4"):
        return "modelopt_nb repairs ModelOpt, which cannot read NF4 back"
    if pointwise:
        return "modelopt_nb packs 1x1 convolutions as linear layers"
    if choice.activations or choice.algorithm != "max":
        return "modelopt_nb keeps calibrated scales, which ModelOpt's packing drops"
    return ""


def _load(pipeline: DiffusionPipeline, model: nn.Module) -> list[str]:
    path, weight = str(pipeline.name_or_path), next(model.parameters())
    path = min(path, os.path.relpath(path), key=len) if os.path.isdir(path) else path
    load = f"pipeline = DiffusionPipeline.from_pretrained({path!r}, dtype={weight.dtype}).to({weight.device.type!r})"
    return ["import torch", "from diffusers import DiffusionPipeline", "", load]


def _plain_modelopt(model: nn.Module, part: str, config: ModelOptConfig) -> list[str]:
    dense = [layer.name for layer in plan(model, config).layers if not layer.packed]
    cfg = next(e["cfg"] for e in config.modelopt_config["quant_cfg"] if e["quantizer_name"] == "*weight_quantizer")
    return [
        "entries = [",
        '    {"quantizer_name": "*", "enable": False},',
        f'    {{"quantizer_name": "*weight_quantizer", "cfg": {cfg!r}}},',
        *(f'    {{"quantizer_name": "{name}.*", "enable": False}},' for name in dense),
        "]",
        f'mtq.quantize(pipeline.{part}, {{"quant_cfg": entries, "algorithm": "max"}})',
        f"mtq.compress(pipeline.{part})",
    ]


def _generate(pipeline: DiffusionPipeline, request: Request) -> list[str]:
    guidance = {} if request.guidance is None else {"guidance_scale": request.guidance}
    arguments = {"num_inference_steps": request.steps, **guidance, **native_size(pipeline)}
    generator = f"    generator=[torch.Generator().manual_seed({request.seed})],"
    options = (f"    {name}={value!r}," for name, value in arguments.items())
    result = "frames" if "num_frames" in inspect.signature(type(pipeline).__call__).parameters else "images"
    name = {"frames": "video", "images": "image"}[result]
    return [f"{name} = pipeline(", f"    {request.prompt!r},", generator, *options, f").{result}[0]"]
