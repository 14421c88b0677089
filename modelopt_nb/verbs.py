"""The verbs on a model: enable, quantize, dequantized, export."""

import contextlib
import copy
import functools
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator

from diffusers import ModelMixin
from torch import nn

from modelopt_nb.checkpoints.atomic_folder import atomic_folder
from modelopt_nb.checkpoints.diffusers_quantizer import DiffusersQuantizer
from modelopt_nb.checkpoints.manifest import verify, write_manifest
from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.packing.calibrate import check_algorithm
from modelopt_nb.packing.pack import pack
from modelopt_nb.packing.plan import plan
from modelopt_nb.packing.report import Report
from modelopt_nb.upstream.export import export_checkpoint
from modelopt_nb.upstream.insert import insert_quantizers
from modelopt_nb.upstream.layers import has_packed_layers
from modelopt_nb.upstream.packed_weights import unpacked
from modelopt_nb.upstream.quiet import quiet
from modelopt_nb.upstream.repairs.atomic_save import AtomicSave
from modelopt_nb.upstream.repairs.base import Repair
from modelopt_nb.upstream.repairs.calibrated_scales import CalibratedScales
from modelopt_nb.upstream.repairs.config_class import ConfigClass
from modelopt_nb.upstream.repairs.fp8_zeros import Fp8Zeros
from modelopt_nb.upstream.repairs.nf4_read_back import Nf4ReadBack
from modelopt_nb.upstream.repairs.pack_while_loading import PackWhileLoading
from modelopt_nb.upstream.repairs.packed_dtype import PackedDtype
from modelopt_nb.upstream.repairs.restore_from_config import RestoreFromConfig


@functools.cache
def repairs() -> tuple[Repair, ...]:
    """Return every repair; those of Transformers only where it is installed."""
    quantizer = model_class = None
    if importlib.util.find_spec("transformers"):
        from transformers import PreTrainedModel as model_class

        from modelopt_nb.checkpoints.transformers_quantizer import TransformersQuantizer as quantizer
    return (
        *(Nf4ReadBack(), Fp8Zeros(), CalibratedScales(), PackedDtype()),
        ConfigClass(ModelOptConfig),
        PackWhileLoading(DiffusersQuantizer, quantizer, ModelOptConfig),
        RestoreFromConfig(),
        AtomicSave(atomic_folder, write_manifest, verify, DiffusersQuantizer, model_class),
    )


def repair_states() -> dict[str, str]:
    """Return for every repair whether it is on, needed or unnecessary."""
    with quiet():
        return {repair.name: repair.state for repair in repairs()}


def enable() -> None:
    """Switch on every repair that the installed releases of ModelOpt and Diffusers need.

    Afterwards ``NVIDIAModelOptConfig(...)`` and ``from_pretrained(..., quantization_config=...)`` work, and packed models
    are saved atomically. Calling it again changes nothing. :func:`modelopt_nb.doctor` lists the repairs.
    """
    with quiet():
        for repair in repairs():
            if not repair.applied and repair.needed():
                repair.apply()


def quantize(
    model: nn.Module, config: ModelOptConfig, forward_loop: Callable[[nn.Module], None] | None = None
) -> Report:
    """Quantize a loaded model and pack its weights in place (``mtq.quantize``, then ``mtq.compress``).

    Args:
        model: Any model with linear layers or convolutions, on CPU or CUDA, in any float dtype.
        config: From :func:`modelopt_nb.make_config`.
        forward_loop: Called with the model to calibrate; ``config.forward_loop`` if None. Once, on the still dense model,
            for max calibration; as often as the algorithm needs it otherwise.

    Returns:
        What was packed, what stayed dense and why, and the bytes before and after.

    Raises:
        TypeError, ValueError: Before any weight changes: not a configuration, nothing to quantize, a name in
            ``modules_to_not_convert`` that matches nothing, an algorithm without what it needs.
        ValueError, FloatingPointError: A forward loop that misses layers or meets NaN. Any error, also one of the loop,
            leaves the model unchanged.
    """
    enable()
    planned, loop = plan(model, config), forward_loop or config.forward_loop
    check_algorithm(config, loop)
    report = pack(model, config, planned, loop)
    _attach(model, config, report)
    return report


def _attach(model: nn.Module, config: ModelOptConfig, report: Report) -> None:
    """Attach configuration and quantizer, so that a model packed in memory saves like a loaded one."""
    config = copy.copy(config)  # the caller may quantize another model with it
    config.packed_dtype = report.packed[0].dtype
    if isinstance(model, ModelMixin):
        model.hf_quantizer = DiffusersQuantizer(config)
        model.register_to_config(quantization_config=config)
    elif "transformers" in sys.modules and isinstance(model, sys.modules["transformers"].PreTrainedModel):
        from modelopt_nb.checkpoints.transformers_quantizer import TransformersQuantizer

        model.hf_quantizer = TransformersQuantizer(config)
        model.config.quantization_config = config
    else:
        return
    model.hf_quantizer.report = report


@contextlib.contextmanager
def dequantized(model: nn.Module) -> Iterator[nn.Module]:
    """Hold a packed model's weights dense while the block runs, then packed again.

    Outputs are the same bit for bit, without dequantizing at every call. Quantized activations stay quantized.
    """
    with unpacked(model):
        yield model


def export(
    model: nn.Module, config: ModelOptConfig, folder: str | os.PathLike,
    forward_loop: Callable[[nn.Module], None] | None = None,
) -> None:  # fmt: skip
    """Quantize a copy of a dense model and write it for TensorRT, TensorRT-LLM, SGLang or vLLM, which need CUDA.

    Args:
        model: A dense model, not changed. ModelOpt exports weights that are not packed yet.
        config: FP8 or INT8 per tensor or channel, INT4, or NVFP4, with or without activations.
        folder: Replaced atomically.
        forward_loop: Calibrates, as in :func:`quantize`.

    Raises:
        TypeError, ValueError: Before any work: a packed model, or a type that ModelOpt 0.47 cannot export.

    Source: ``modelopt.torch.export.export_hf_checkpoint``.
    """
    if has_packed_layers(model):
        raise TypeError("model is packed already. Allowed: the dense model, which export() quantizes itself")
    planned = plan(model, config)
    for layout in planned.layouts.values():
        if not layout.type.exportable or (layout.block is not None) != layout.type.needs_block:
            raise ValueError(
                f"config={config.quant_type!r}, block_quantize={config.block_quantize}: ModelOpt cannot export it. "
                "Allowed: FP8 and INT8 per tensor or channel, INT4, NVFP4"
            )
    enable()
    model = copy.deepcopy(model)
    insert_quantizers(model, planned.entries, config.algorithm)
    with atomic_folder(folder) as new:
        export_checkpoint(model, config.algorithm, forward_loop or config.forward_loop, new)
