"""It leaves the notebook: checkpoints in the layout that NVIDIA's deployment tools read."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelopt_nb import saving, upstream
from modelopt_nb.quantization import plan

if TYPE_CHECKING:
    from diffusers import NVIDIAModelOptConfig
    from torch import nn


def export(
    model: nn.Module,
    config: NVIDIAModelOptConfig,
    folder: str | os.PathLike,
    forward_loop: Callable[[nn.Module], None] | None = None,
) -> None:
    """Write ``model`` quantized as ``config`` says, by ModelOpt's ``export_hf_checkpoint``; ``model`` stays as it is.

    The folder is for the tools that ModelOpt exports to (TensorRT, TensorRT-LLM, SGLang, vLLM), all of which need CUDA. To
    go on with a model in this kit, ``save_pretrained`` it instead.

    Args:
        model: A dense model: ModelOpt exports from weights that are not packed yet.
        config: FP8 or INT8 a tensor or a channel, INT4, or NVFP4, with or without activations.
        folder: Written whole or not at all.
        forward_loop: Calibrates activations, as for :func:`modelopt_nb.quantize`.

    Raises:
        TypeError, ValueError: Before any work: ``model`` is packed already; a type that ModelOpt 0.47 cannot export (FP8
            and INT8 in blocks, which it fails on, and NF4, which it would label INT4).

    Source: ``modelopt.torch.export.export_hf_checkpoint``.
    """
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint

    if upstream.holds_packed(model):
        raise TypeError("model is packed already. Allowed: the dense model, which export() quantizes itself")
    layers, entries = plan(model, config)
    for spec in {x.layout for x in layers if x.packed}:
        if spec.scale_bits == 8 or (spec.block is not None and spec.num_bits in ((4, 3), 8)):
            raise ValueError(
                f"config={config.quant_type!r}, block_quantize={config.block_quantize}: ModelOpt cannot export it. "
                "Allowed: FP8 and INT8 a tensor or a channel, INT4, NVFP4"
            )
    upstream.enable()
    algorithm = config.modelopt_config["algorithm"]
    model = copy.deepcopy(model)
    upstream.insert_quantizers(model, entries, algorithm)
    with saving.written_whole(folder) as beside, upstream.quiet():
        mtq.calibrate(model, algorithm, forward_loop or config.forward_loop)
        export_hf_checkpoint(model, export_dir=beside)
