"""Count the bytes of a component under each scheme, from a model on the meta device: no weight is made or read."""

import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers.utils import logging as diffusers_logging

from modelopt_nb import LayerPlan, LayerRow, ModelRows, describe_layers, make_config, plan
from modelopt_nb.lab.forecast.configs import Part


@dataclass(frozen=True)
class ComponentForecast:
    """One component: ``dense`` bytes, ``packed`` bytes by scheme, and why what stays dense does.

    ``parameters`` count what a checkpoint holds: parameters and saved buffers. ``reasons`` have (layers, bytes) by
    scheme and reason. ``widths`` are the most usual and the largest number of inputs of a linear layer, ``last`` the
    outputs and inputs of the decoder's last convolution, ``sizes`` the numbers in the configuration and the model.
    """

    name: str
    kind: str
    parameters: int
    dense: int
    packed: Mapping[str, int]
    reasons: Mapping[str, Mapping[str, tuple[int, int]]]
    widths: tuple[int, int]
    last: tuple[int, int]
    sizes: Mapping[str, Any]

    @property
    def is_codec(self) -> bool:
        """Whether it encodes and decodes latents."""
        return self.kind.startswith(("Autoencoder", "AsymmetricAutoencoder", "VQ"))


def forecast_component(part: Part, schemes: tuple[str, ...], dtype: torch.dtype) -> ComponentForecast:
    """Count a component's bytes. Raises ValueError if its class cannot be built, or for an unknown scheme."""
    config = {key: value for key, value in part.config.items() if key != "quantization_config"}
    text = json.dumps(config, sort_keys=True, default=str)
    return replace(_forecast(part.cls, text, schemes, dtype), name=part.name)


@functools.lru_cache(maxsize=64)  # many pipelines have the same text encoder
def _forecast(cls: Any, text: str, schemes: tuple[str, ...], dtype: torch.dtype) -> ComponentForecast:
    model = _build(cls, json.loads(text), dtype)
    described = describe_layers(model)
    rows, counts = _representatives(described)
    tensors, saved = dict(model.named_parameters()) | dict(model.named_buffers()), model.state_dict()
    total = sum(t.numel() * _itemsize(key, t, dtype, described.in_float32) for key, t in tensors.items())
    packed, reasons = {}, {}
    for scheme in schemes:
        layers, reason = _plan(rows, scheme)
        packed[scheme] = total - sum((x.dense_bytes - x.packed_bytes) * counts[x.name] for x in layers)
        found, size = Counter[str](), Counter[str]({reason: total})
        for x in layers:
            size[reason] -= x.dense_bytes * counts[x.name]
            if not x.packed:
                found[x.reason] += counts[x.name]
                size[x.reason] += x.dense_bytes * counts[x.name]
        reasons[scheme] = {reason: (found[reason], size[reason]) for reason in size}
    inputs = Counter(row.shape[1] for row in described.rows if len(row.shape) == 2)
    widths = (inputs.most_common(1)[0][0], max(inputs)) if inputs else (0, 0)
    ends = [row.shape for row in described.rows if "decoder.conv_out" in row.name and row.is_convolution]
    last = (ends[0][0], ends[0][1]) if ends else (3, 0)
    sizes = {k: v for k, v in (vars(model) | json.loads(text)).items() if isinstance(v, (int, list, tuple)) and v}
    parameters = sum(t.numel() for key, t in tensors.items() if key in saved)
    return ComponentForecast("", cls.__name__, parameters, total, packed, reasons, widths, last, sizes)


def _build(cls: Any, config: dict[str, Any], dtype: torch.dtype) -> Any:
    """Build a model on the meta device, without warnings of keys that it ignores."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):
            if hasattr(cls, "from_config"):
                return cls.from_config(config).to(dtype)
            return cls._from_config(cls.config_class.from_dict(config), dtype=dtype)
    except Exception as error:
        wrong = f"{cls.__name__} cannot be built from its configuration: {error}"
        raise ValueError(f"{wrong}. Check its config.json, and the release that saved it") from error
    finally:
        diffusers_logging.set_verbosity(level)


def _itemsize(name: str, tensor: torch.Tensor, dtype: torch.dtype, in_float32: frozenset[str]) -> int:
    """Return the bytes of one element of a tensor that is loaded as ``dtype``."""
    if not tensor.is_floating_point():
        return tensor.element_size()
    return 4 if in_float32 & {*name.split(".")} else dtype.itemsize


def _representatives(model: ModelRows) -> tuple[ModelRows, Counter[str]]:
    """Return one layer for all that differ only by the index of their block, and how many it stands for."""
    first: dict[tuple[Any, ...], LayerRow] = {}
    counts = Counter[str]()
    for row in model.rows:
        alike = replace(row, name=re.sub(r"(?<=\.)\d+(?=\.)", "*", row.name), shared_with=row.shared_with and "another")
        counts[first.setdefault(tuple(vars(alike).values()), row).name] += 1
    return replace(model, rows=tuple(first.values()), modules=frozenset(counts), weightless=()), counts


def _plan(rows: ModelRows, scheme: str) -> tuple[list[LayerPlan], str]:
    """Return a scheme's layers, and the reason of what is no layer; no layers if the scheme packs none."""
    config = make_config(scheme, pointwise_as_linear=True)
    try:
        return plan(rows, config).layers, "neither a linear layer nor a convolution"
    except ValueError as error:
        if "nothing to quantize" in str(error) or "would pack no layer" in str(error):
            return [], str(error)
        raise
