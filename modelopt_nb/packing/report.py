"""Report what was packed, what stayed dense and why, and the bytes."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from modelopt_nb.config.activations import ACTIVATION_SCALES
from modelopt_nb.config.config import ModelOptConfig
from modelopt_nb.memory.weight_bytes import MIB, WeightBytes, stored_dtype, weight_bytes
from modelopt_nb.packing.plan import LayerPlan, Plan
from modelopt_nb.upstream.layers import is_packed

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """What :func:`modelopt_nb.quantize` did: every layer, and the model's bytes before and after.

    ``layers`` are the linear layers and convolutions, ``rest`` all other parameters and buffers, by their full names:
    the bytes of both together are those of the model. ``precision`` says what weights and activations are rounded to,
    such as ``"W8A8 static tensor"``. A packed layer multiplies in the model's dtype, unless ModelOpt has a
    low-precision product for it on CUDA.
    """

    quant_type: str
    layers: tuple[LayerPlan, ...]
    before: WeightBytes
    after: WeightBytes
    precision: str
    rest: tuple[LayerPlan, ...] = ()

    @classmethod
    def measure(cls, model: nn.Module, config: ModelOptConfig, plan: Plan) -> "Report":
        """Measure a model that was packed as ``plan`` says. Raises RuntimeError if it was not."""
        layers = tuple(_measured(model, layer) for layer in plan.layers)
        rest, after = tuple(_rest(model, layers)), weight_bytes(model)
        before = sum((Counter({x.dtype: x.dense_bytes}) for x in (*layers, *rest)), Counter[str]())
        quant_type = "per layer" if config.per_layer else config.quant_type
        return cls(quant_type, layers, WeightBytes(dict(before), after.weights), after, _precision(config, plan), rest)

    @property
    def packed(self) -> tuple[LayerPlan, ...]:
        """The layers that were packed."""
        return tuple(x for x in self.layers if x.packed)

    @property
    def frame(self) -> "pd.DataFrame":
        """A row per layer, then per other tensor: kind, shape, packed, reason if not, bytes before and after."""
        import pandas as pd

        fields = {"name": "layer", "dense_bytes": "bytes before", "packed_bytes": "bytes after"}
        frame = pd.DataFrame([vars(x) for x in (*self.layers, *self.rest)]).rename(columns=fields).set_index("layer")
        return frame[["kind", "shape", "packed", "reason", "bytes before", "bytes after"]]

    @property
    def packed_of_bf16(self) -> float:
        """Bytes of the packed layers' weights, scales included, over their bytes in bfloat16."""
        return sum(x.packed_bytes for x in self.packed) / (2 * sum(math.prod(x.shape) for x in self.packed))

    @property
    def warning(self) -> str:
        """The share of dense weights, if over a fifth, and why the largest such layer is dense; else empty."""
        share = 1 - sum(math.prod(x.shape) for x in self.packed) / self.after.weights
        largest = max(self.layers, key=lambda x: math.prod(x.shape) * bool(x.reason))
        text = f"{share:.0%} of the weights stay dense. The largest, {largest.name}: {largest.reason}"
        return text if share > 0.2 and largest.reason else ""

    def __str__(self) -> str:
        text = f"{self.quant_type} ({self.precision}): packed {len(self.packed)} of {len(self.layers)} layers, "
        before, after = self.before, self.after
        text += f"{before.mib:.2f} MiB -> {after.mib:.2f} MiB ({after.bits_per_weight:.2f} bits per weight)"
        text += f"\n  warning: {self.warning}" if self.warning else ""
        for reason in dict.fromkeys(x.reason for x in self.layers if x.reason):
            names = [x.name for x in self.layers if x.reason == reason]
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            text += f"\n  dense: {', '.join(names[:3])}{more}: {reason}"
        if self.rest:
            kinds = ", ".join(f"{count} of {kind}" for kind, count in Counter(x.kind for x in self.rest).most_common())
            text += f"\n  dense: {sum(x.packed_bytes for x in self.rest) / MIB:.2f} MiB of other tensors: {kinds}"
        return text


def _measured(model: nn.Module, layer: LayerPlan) -> LayerPlan:
    module: Any = model.get_submodule(layer.name)
    if is_packed(module) != layer.packed:
        raise RuntimeError(f"ModelOpt {'did not pack' if layer.packed else 'packed'} {layer.name}, against the plan")
    if not layer.packed:
        return layer
    return replace(layer, packed_bytes=sum(t.nbytes for t in (module.weight, *module.weight_quantizer.buffers())))


def _rest(model: nn.Module, layers: Sequence[LayerPlan]) -> Iterator[LayerPlan]:
    """Describe the parameters and buffers that are neither a layer's weight nor its scales. Shared ones count once."""
    modules: dict[str, Any] = dict(model.named_modules())
    counted = {id(modules[x.name].weight) for x in layers}
    counted |= {id(scale) for x in layers if x.packed for scale in modules[x.name].weight_quantizer.buffers()}
    names = {x.name for x in layers}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in counted:
            continue
        counted.add(id(tensor))
        owner, _, attribute = name.rpartition(".")
        kind = attribute if owner in names else type(modules[owner]).__name__  # such as bias
        added = "_quantizer." in name  # by calibration
        why = "the scale of activations" if added else f"a {kind}: no weight of a linear layer or convolution"
        size = tensor.nbytes
        yield LayerPlan(name, kind, tuple(tensor.shape), stored_dtype(tensor), False, why, 0 if added else size, size)


def _precision(config: ModelOptConfig, plan: Plan) -> str:
    bits = sorted({layout.type.bits for layout in plan.layouts.values()})
    weights = f"W{bits[0]}" if len(bits) == 1 else f"W{bits[0]}-{bits[-1]}"
    if (cfg := config.input_cfg) is None:
        return weights
    width = cfg["num_bits"] if isinstance(cfg["num_bits"], int) else sum(cfg["num_bits"]) + 1
    scale = {k: v for k, v in cfg.items() if k in ("type", "axis", "block_sizes") and v is not None}
    names = (name for name, (linear, _) in ACTIVATION_SCALES.items() if linear == scale)
    return f"{weights}A{width} {next(names, 'dynamic block')}"
