"""Export a quantized model for a deployment runtime."""

import functools
import os
from collections.abc import Callable

from torch import nn

from modelopt_nb import (
    ModelOptConfig,
    atomic_folder,
    calibrate,
    check_algorithm,
    describe_layers,
    enable,
    export_quantized,
    plan,
)


def export(
    model: nn.Module, config: ModelOptConfig, folder: str | os.PathLike,
    forward_loop: Callable[[nn.Module], None] | None = None,
) -> None:  # fmt: skip
    """Quantize a copy of a dense model and write it for TensorRT, TensorRT-LLM, SGLang or vLLM, which need CUDA.

    To use a model in this kit again, ``save_pretrained`` it instead.

    Args:
        model: A dense model, not changed. ModelOpt exports weights that are not packed yet.
        config: FP8 or INT8 per tensor or channel, INT4, or NVFP4, with or without activations; of linear layers alone.
        folder: The checkpoint in it is replaced atomically; other files stay.
        forward_loop: Calibrates, as in :func:`modelopt_nb.quantize`.

    Raises:
        TypeError, ValueError: Before any work: a packed model, an algorithm without what it needs, or what ModelOpt 0.47
            cannot export: FP8 and INT8 in blocks, which it fails on, NF4, which it would label INT4, and convolutions,
            which it would leave dense without listing them.
        ValueError, FloatingPointError: A forward loop that misses layers or meets NaN. Nothing is written.

    Source: ``modelopt.torch.export.export_hf_checkpoint``.
    """
    planned, loop = plan(describe_layers(model, with_weights=True), config), forward_loop or config.forward_loop
    check_algorithm(config, loop)
    for layout in planned.layouts.values():
        if not layout.type.exportable or (layout.block is not None) != layout.type.needs_block:
            wrong = f"config={config.quant_type!r}, block_quantize={config.block_quantize}: ModelOpt cannot export it"
            raise ValueError(f"{wrong}. Allowed: FP8 and INT8 per tensor or channel, INT4, NVFP4")
    if convolutions := [x.name for x in planned.layers if x.packed and x.kind != "Linear"]:
        wrong = f"config packs {len(convolutions)} convolutions, such as {convolutions[0]}: ModelOpt cannot export them"
        raise ValueError(f"{wrong}. Allowed: disable_conv_quantization=True, without pointwise_as_linear=True")
    enable()
    run = functools.partial(calibrate, config=config, plan=planned, loop=loop)
    export_quantized(model, planned.entries, config.algorithm, run, atomic_folder(folder))
