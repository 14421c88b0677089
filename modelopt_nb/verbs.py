"""The verbs on a loaded model: enable and quantize. (A module named like a verb would hide it, once imported.)"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.packing.calibrate import SCALE_CHANNELS, calibrate, check_algorithm, needs_only_amax
from modelopt_nb.packing.input_amax import run_forward_loop
from modelopt_nb.packing.packer import Packer
from modelopt_nb.packing.plan import plan
from modelopt_nb.packing.report import Report
from modelopt_nb.upstream import repairs
from modelopt_nb.upstream.layers import describe_layers, make_linear
from modelopt_nb.upstream.packed_weights import finish_packing, packed_dtype
from modelopt_nb.upstream.quantizers import insert_quantizers
from modelopt_nb.upstream.quiet import quiet
from modelopt_nb.upstream.rollback import rollback_on_error

#: Held while repairs are switched on: a second thread waits until all are.
_enabling = threading.RLock()


@functools.cache
def all_repairs() -> tuple[repairs.Repair, ...]:
    """Return every repair, with the parts of the kit that it puts in place."""
    speed = repairs.Nf4Rounding(), repairs.Nvfp4Rounding()
    numbers = repairs.Nf4ReadBack(), repairs.Zeros(), repairs.CalibratedScales(), repairs.HistogramMse()
    with_kit = repairs.ConfigClass(ModelOptConfig), repairs.PackWhileLoading(Packer, ModelOptConfig)
    return (*speed, *numbers, repairs.PackedModules(), *with_kit, repairs.RestoreFromConfig(), repairs.AtomicSave())


def repair_states() -> dict[str, str]:
    """Return for every repair whether it is on, needed or unnecessary."""
    with quiet(), torch.random.fork_rng([]):
        return {repair.name: repair.state for repair in all_repairs()}


def enable() -> None:
    """Switch on every repair that the installed releases of ModelOpt and Diffusers need.

    Afterwards ``NVIDIAModelOptConfig(...)`` and ``from_pretrained(..., quantization_config=...)`` work, and packed
    models are saved atomically. Calling it again changes nothing. :func:`modelopt_nb.doctor` lists the repairs.
    """
    with _enabling, quiet(), torch.random.fork_rng([]):
        for repair in all_repairs():
            if not repair.applied and repair.needed():
                repair.apply()


def quantize(
    model: nn.Module, config: ModelOptConfig, forward_loop: Callable[[nn.Module], None] | None = None
) -> Report:
    """Quantize a loaded model and pack its weights in place (``mtq.quantize``, then ``mtq.compress``).

    Args:
        model: Any model with linear layers or convolutions, on CPU or CUDA, in any float dtype.
        config: From :func:`modelopt_nb.make_config`.
        forward_loop: Called with the model to calibrate; ``config.forward_loop`` if None. For max calibration once, on
            the still dense model; as often as the algorithm needs it otherwise.

    Raises:
        TypeError, ValueError: As :func:`plan` does, or an algorithm without what it needs. No weight has changed.
        ValueError, FloatingPointError: A forward loop that misses layers or meets NaN. Any error restores the model.
    """
    enable()
    planned, loop = plan(describe_layers(model, with_weights=True), config), forward_loop or config.forward_loop
    check_algorithm(config, loop)
    with rollback_on_error(model, in_place=config.algorithm["method"] in SCALE_CHANNELS):
        for name in planned.pointwise:
            make_linear(model, name)
        only_amax = loop is not None and needs_only_amax(config, planned)
        amax = run_forward_loop(loop, model, planned.layouts) if loop and only_amax else None
        insert_quantizers(model, planned.entries, config.algorithm)
        calibrate(model, config, planned, loop, amax)
        finish_packing(model)
        report = Report.measure(model, config, planned)
        _attach(model, config, report)
    return report


def _attach(model: Any, config: ModelOptConfig, report: Report) -> None:
    """Attach configuration and quantizer, so that a model packed in memory saves like a loaded one."""
    for model_class, quantizer_class in repairs.model_classes():
        if isinstance(model, model_class):
            model.hf_quantizer = quantizer_class(config)
            config, model.hf_quantizer.report = model.hf_quantizer.quantization_config, report
            config.packed_dtype, config.forward_loop = packed_dtype(model), None
            if hasattr(model, "register_to_config"):
                model.register_to_config(quantization_config=config)
            elif hasattr(model, "config"):  # a MultiControlNetModel has none
                model.config.quantization_config = config
