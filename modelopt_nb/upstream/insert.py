"""Ask ModelOpt for its defaults, and insert its quantizers."""

from collections.abc import Mapping
from typing import Any

import modelopt.torch.opt as mto
import torch
from modelopt.torch.quantization import config
from modelopt.torch.quantization.config import QuantizeAlgorithmConfig, QuantizerAttributeConfig
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import nn

from modelopt_nb.upstream.quiet import quiet


def default_exclusions() -> list[dict[str, Any]]:
    """Return the ``quant_cfg`` entries by which ModelOpt leaves layers dense by default."""
    return [dict(entry) for entry in config._default_disabled_quantizer_cfg]


def algorithm_dict(algorithm: str | Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``algorithm`` and its ``arguments`` as the dict that ModelOpt takes, validated by ModelOpt's own classes.

    Raises:
        ValueError: An unknown algorithm, or an argument that it does not have or allow.
    """
    if not isinstance(algorithm, (str, Mapping)) or (isinstance(algorithm, Mapping) and "method" not in algorithm):
        raise ValueError(f"algorithm={algorithm!r} is not one. Allowed: a name such as 'max', or a dict with 'method'")
    chosen = ({"method": algorithm} if isinstance(algorithm, str) else dict(algorithm)) | dict(arguments)
    known: dict[Any, Any] = {}
    classes: list[Any] = [QuantizeAlgorithmConfig]
    while classes:
        cls = classes.pop()
        classes += cls.__subclasses__()
        known[cls.model_fields["method"].default] = cls
    known.pop(None, None)
    method = chosen["method"]
    if method not in known:
        raise ValueError(f"algorithm={method!r} is not known to ModelOpt. Allowed: {', '.join(sorted(known))}")
    allowed = [field for field in known[method].model_fields if field != "method"]
    for name, value in chosen.items():
        if name != "method" and name not in allowed:
            raise ValueError(
                f"{name}={value!r} is not an argument of algorithm {method!r}. Allowed: {', '.join(allowed)}"
            )
    try:
        known[method](**chosen)
    except ValueError as error:
        raise ValueError(f"algorithm {method!r} does not take {dict(arguments) or chosen}: {error}") from error
    return chosen


def insert_quantizers(model: nn.Module, entries: list[dict[str, Any]], algorithm: dict[str, Any]) -> None:
    """Replace the layers of ``model`` by quantized ones, without calibration. Weights may be on the meta device."""
    with quiet():
        mto.apply_mode(model, mode=[("quantize", {"quant_cfg": entries, "algorithm": algorithm})])


def why_not_rounded(cfg: Mapping[str, Any], device: torch.device) -> str:
    """Try to round activations as ``cfg`` says on ``device``; return ModelOpt's error, or "" if it works."""
    if not (cfg.get("block_sizes") or {}).get("scale_bits"):
        return ""
    try:
        with quiet():
            quantizer = TensorQuantizer(QuantizerAttributeConfig(**cfg), amax=torch.ones(())).to(device)
            quantizer(torch.ones(1, 256, device=device))
    except Exception as error:  # whatever it is, it is the answer
        return str(error)
    return ""
