"""Decide which layers a configuration packs. Arithmetic on rows: no weight is read, so a meta model will do."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.config.patterns import matching_layers
from modelopt_nb.config.weight_layout import WeightLayout
from modelopt_nb.upstream.layers import LayerRow, ModelRows, describe_layers

Entries = list[dict[str, Any]]


@dataclass(frozen=True)
class LayerPlan:
    """What happens to one layer.

    ``kind`` is its class, ``shape`` the weight's as packed, ``dtype`` the dense one's, ``reason`` why it stays dense.
    ``packed_bytes`` include scales; ``as_linear`` marks a 1x1 convolution that is packed as a linear layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    packed: bool
    reason: str
    dense_bytes: int
    packed_bytes: int
    layout: WeightLayout | None = None
    as_linear: bool = False


@dataclass(frozen=True)
class Plan:
    """What a configuration does to a model: its ``layers``, and ModelOpt's ``quant_cfg`` ``entries`` for it."""

    layers: list[LayerPlan]
    entries: Entries

    @property
    def layouts(self) -> dict[str, WeightLayout]:
        """The layout of every packed layer, by name."""
        return {x.name: x.layout for x in self.layers if x.layout is not None}

    @property
    def pointwise(self) -> list[str]:
        """The names of the convolutions that are packed as linear layers."""
        return [x.name for x in self.layers if x.as_linear]


def plan(model: nn.Module | ModelRows, config: ModelOptConfig, stored: Mapping[str, str] | None = None) -> Plan:
    """Decide for every layer whether ``config`` packs it. Activations are quantized at the layers that are packed.

    ``model`` is a model on any device, or its rows. ``stored`` are dtypes of a packed checkpoint's tensors, "" if
    packed: what it packed does not depend on the dtype that it is loaded in.

    Raises:
        TypeError, ValueError: Not a configuration, a name that matches no layer, a model without linear layers and
            convolutions or one that is packed already, or a configuration that packs no layer.
    """
    check_config(config)
    model = model if isinstance(model, ModelRows) else describe_layers(model)
    if not model.rows:
        raise ValueError(f"model={model.kind} has nothing to quantize. Needed: dense linear layers or convolutions")
    if packed := [row.name for row in model.rows if row.is_packed]:
        raise ValueError(f"model={model.kind} is quantized already ({packed[0]} is packed). Load a dense one")
    if adapted := [name for name in model.modules if name.endswith(".base_layer")]:
        wrong = f"model={model.kind} has an adapter in {adapted[0].removesuffix('.base_layer')}"
        raise ValueError(f"{wrong}. Load adapters after quantizing, or fuse and unload them before")
    names = [row.name for row in model.rows]
    lenient = config.lenient or config.packed_dtype is not None  # from Diffusers' class, or saved
    excluded = {
        name: pattern
        for pattern in config.modules_to_not_convert
        for name in matching_layers(model.kind, "modules_to_not_convert", pattern, names, model.modules, lenient)
    }
    entries = [*config.modelopt_config["quant_cfg"], *_entries_per_layer(model, config, names)]
    layers = [
        _plan_layer(row, entries, excluded.get(row.name, ""), model.in_float32, config, stored or {})
        for row in model.rows
    ]
    if not any(layer.packed for layer in layers):
        blocks = f"channel_quantize={config.channel_quantize} and block_quantize={config.block_quantize}"
        would = f"quant_type={config.quant_type!r} with {blocks} would pack no layer of {model.kind}"
        raise ValueError(f"{would}: {'; '.join(sorted({layer.reason for layer in layers}))}")
    return Plan(layers, _effective(entries, layers, model))


def check_config(config: object) -> None:
    """Raise TypeError for what is no configuration."""
    if not isinstance(config, ModelOptConfig):
        raise TypeError(f"config={config!r} is not a ModelOpt configuration. Build one with make_config('FP8')")


def _entries_per_layer(model: ModelRows, config: ModelOptConfig, names: Sequence[str]) -> Entries:
    """Return the entries of ``config.per_layer``."""
    entries, taken = [], {}
    for scheme, patterns in config.per_layer.items():
        which = f"per_layer[{scheme!r}]"
        cfgs = [e for e in ModelOptConfig(scheme).modelopt_config["quant_cfg"] if "cfg" in e]
        for name in (x for p in patterns for x in matching_layers(model.kind, which, p, names, model.modules)):
            if taken.setdefault(name, scheme) != scheme:
                raise ValueError(f"per_layer names {name} twice: under {taken[name]!r} and under {scheme!r}")
            entries.append({"quantizer_name": f"{name}.input_quantizer", "enable": False})
            entries += [e | {"quantizer_name": name + e["quantizer_name"].replace("*", ".")} for e in cfgs]
    return entries


def _plan_layer(
    row: LayerRow, entries: Entries, excluded: str, in_float32: frozenset[str], config: ModelOptConfig,
    stored: Mapping[str, str],
) -> LayerPlan:  # fmt: skip
    linear = config.pointwise_as_linear and row.is_pointwise
    classes = ("nn.Linear",) if linear else row.classes
    cfg, reason = None, "no entry of the configuration enables it"
    for entry in entries:
        applies = entry.get("parent_class", classes[0]) in classes
        if applies and fnmatch.fnmatchcase(f"{row.name}.weight_quantizer", entry["quantizer_name"]):
            if not entry.get("enable", True):
                cfg, reason = None, f"the configuration leaves {entry['quantizer_name']} dense"
            elif "cfg" in entry:
                cfg, reason = entry["cfg"], ""
    if row.is_convolution and config.disable_conv_quantization and not linear:
        reason = "disable_conv_quantization"
    if excluded:
        reason = f"modules_to_not_convert: {excluded}"
    if (kept := sorted(set(row.name.split(".")) & in_float32)) and stored.get(f"{row.name}.weight") != "":
        asks = "keeps it in float32" if row.dtype == "float32" else "asks for float32"
        reason = f"{', '.join(kept)}: the model's class {asks}"
    if row.shared_with:
        reason = f"it shares its weight with {row.shared_with}"
    if not row.is_known:
        reason = f"ModelOpt packs no {row.kind}"
    layout, shape = None, row.shape[:2] if linear else row.shape
    if not reason and cfg is not None:
        layout = WeightLayout.from_cfg(cfg)
        reason = layout.why_dense(shape, row.dtype)
        if (weight := f"{row.name}.weight") in stored:
            reason = stored[weight] and (reason or "it is dense in the checkpoint")
    if reason or layout is None:
        return LayerPlan(row.name, row.kind, row.shape, row.dtype, False, reason, row.bytes, row.bytes)
    packed = layout.bytes(shape, row.dtype)
    return LayerPlan(row.name, row.kind, shape, row.dtype, True, "", row.bytes, packed, layout, linear)


def _effective(entries: Entries, layers: list[LayerPlan], model: ModelRows) -> Entries:
    """Return the entries that mean something in this model, and those that switch the dense layers off.

    ModelOpt walks through the model for each entry, and most of its default exclusions are in no diffusion model.
    """
    names = [f"{name}.{which}_quantizer" for name in model.modules for which in ("input", "weight", "output")]
    always = [e.get("enable", True) or "parent_class" in e for e in entries]
    kept = [e for e, a in zip(entries, always, strict=True) if a or fnmatch.filter(names, e["quantizer_name"])]
    off = [f"{layer.name}.*_quantizer" for layer in layers if not layer.packed]
    if any("cfg" in e and e["quantizer_name"].endswith("input_quantizer") for e in kept):
        off += [f"{name}.input_quantizer" for name in model.weightless]  # of norms: no matrix product follows
    on = [f"{layer.name}.{which}_quantizer" for layer in layers if layer.packed for which in ("input", "weight")]
    return kept + [{"quantizer_name": pattern, "enable": False} for pattern in _over_blocks(off, on)]


def _over_blocks(patterns: Iterable[str], spared: list[str]) -> list[str]:
    """Merge patterns that differ by the index of a block into one, unless that would match a ``spared`` name."""
    wider = {pattern: re.sub(r"(?<=\.)\d+(?=\.)", "*", pattern) for pattern in patterns}
    return list(dict.fromkeys(p if fnmatch.filter(spared, wide) else wide for p, wide in wider.items()))
