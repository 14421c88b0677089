"""Insert ModelOpt's quantizers, and calibrate them."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization import config
from modelopt.torch.quantization.calib import HistogramCalibrator
from modelopt.torch.quantization.nn import SequentialQuantizer, TensorQuantizer
from torch import nn

from modelopt_nb.upstream.quiet import quiet

#: Attribute of a model until it is packed: ModelOpt's states of the quantizers that layers left dense do not keep.
PLAIN = "_plain_quantizers"


def default_exclusions() -> list[dict[str, Any]]:
    """Return the ``quant_cfg`` entries by which ModelOpt leaves layers dense by default."""
    return [dict(entry) for entry in config._default_disabled_quantizer_cfg]


def algorithm_dict(algorithm: str | Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``algorithm`` and its ``arguments`` as ModelOpt's dict. Raises ValueError for what it does not have."""
    if not isinstance(algorithm, (str, Mapping)) or (isinstance(algorithm, Mapping) and "method" not in algorithm):
        raise ValueError(f"algorithm={algorithm!r} is not one. Allowed: a name such as 'max', or a dict with 'method'")
    chosen = ({"method": algorithm} if isinstance(algorithm, str) else dict(algorithm)) | dict(arguments)
    known, classes = {}, [cast(Any, config.QuantizeAlgorithmConfig)]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        known[cls.model_fields["method"].default] = cls
    known.pop(None, None)
    method = chosen["method"]
    if method not in known:
        raise ValueError(f"algorithm={method!r} is not known to ModelOpt. Allowed: {', '.join(sorted(known))}")
    allowed = [field for field in known[method].model_fields if field != "method"]
    if unknown := [name for name in chosen if name not in ("method", *allowed)]:
        wrong = f"{unknown[0]}={chosen[unknown[0]]!r}"
        raise ValueError(f"{wrong} is not an argument of algorithm {method!r}. Allowed: {', '.join(allowed)}")
    try:
        known[method](**chosen)
    except ValueError as error:
        raise ValueError(f"algorithm {method!r} does not take {dict(arguments) or chosen}: {error}") from error
    return chosen


def insert_quantizers(model: nn.Module, entries: list[dict[str, Any]], algorithm: dict[str, Any]) -> None:
    """Replace layers of ``model`` by quantized ones; those that stay dense keep their class. Weights may be on meta."""
    before = {name: (module, type(module), set(vars(module))) for name, module in model.named_modules()}
    with quiet():
        mto.apply_mode(model, mode=[("quantize", {"quant_cfg": entries, "algorithm": algorithm})])
    states: dict[str, Any] = {}
    for name, (module, cls, attributes) in before.items():
        added = {n: q for n, q in module._modules.items() if isinstance(q, (TensorQuantizer, SequentialQuantizer))}
        if module is model or not added or any(getattr(q, "is_enabled", True) for q in added.values()):
            continue
        states |= {f"{name}.{n}": module._modules.pop(n).get_modelopt_state() for n in added}
        module.__class__ = cls
        for attribute in vars(module).keys() - attributes:
            del vars(module)[attribute]
    vars(model)[PLAIN] = states


def run_calibration(
    model: nn.Module, algorithm: dict[str, Any], forward_loop: Callable[[nn.Module], None] | None,
    calibrator: str = "max", percentile: float = 99.9,
) -> None:  # fmt: skip
    """Calibrate a model that has quantizers. ``calibrator`` and ``percentile`` say how a histogram becomes an amax."""
    calibrators = [getattr(m, "_calibrator", None) for m in model.modules() if isinstance(m, TensorQuantizer)]
    histograms = [c for c in calibrators if isinstance(c, HistogramCalibrator)]
    for c in histograms:  # mtq.calibrate calls compute_amax without arguments
        vars(c)["compute_amax"] = functools.partial(c.compute_amax, calibrator, percentile=percentile)
    try:
        with quiet():
            mtq.calibrate(model, algorithm, forward_loop)
    finally:
        for c in histograms:
            del vars(c)["compute_amax"]


def collect_amax(model: nn.Module, amax: Mapping[str, torch.Tensor]) -> None:
    """Give the input quantizers of layers the amax of their inputs to calibrate on, without running the layers."""
    for name, values in amax.items():
        quantizer: Any = model.get_submodule(name).input_quantizer
        quantizer(values)


def has_channel_scales(model: nn.Module) -> bool:
    """Return whether calibration scaled the input channels of any layer, as smoothquant and awq_lite do."""
    quantizers = (getattr(module, "input_quantizer", None) for module in model.modules())
    return any(getattr(quantizer, "pre_quant_scale", None) is not None for quantizer in quantizers)
